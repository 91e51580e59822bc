"""The child of `effdl.targets.measure.isolated`: started as a module, imported by no other."""

import contextlib
import resource
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from effdl.errors import ConfigError, EffdlError
from effdl.targets.measure.isolated import Answer, Difference, NodeTime, Question, Ratio
from effdl.targets.measure.onnxruntime import (
    OnnxRuntime,
    make_feeds,
    make_run,
    open_session,
    run_once,
)
from effdl.targets.sampler import HostSampler, Opener
from effdl.targets.timing import (
    FINAL_PROTOCOL,
    Protocol,
    Round,
    corrected_samples,
    measure_interleaved,
)
from effdl.targets.timing_statistics import paired_ratio

if TYPE_CHECKING:
    import onnxruntime

_MAX_OUTPUT_BYTES = 256 << 20
_PROFILED_RUNS = 20
# Both files take part in every round: only then are rounds pairs.
_COMPARE_PROTOCOL = Protocol(name="compare", min_rounds=20, max_rounds=20)


def main() -> int:
    """Answer the question in the first argument; returns the exit status."""
    question = msgspec.json.decode(sys.argv[1], type=Question)
    for limit, value in (
        (resource.RLIMIT_AS, question.memory_bytes),
        (resource.RLIMIT_CPU, question.cpu_seconds),
        (resource.RLIMIT_FSIZE, _MAX_OUTPUT_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(limit, (value, value + 5))
    try:
        answer = _profile(question) if len(question.paths) == 1 else _compare(question)
    except EffdlError as error:
        answer = Answer(error=(type(error).__name__, error.message, error.hint))
    (Path(question.folder) / "answer.json").write_bytes(msgspec.json.encode(answer))
    return 0


def _resident_bytes() -> int:
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return 0


def _peak_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _open(question: Question, index: int, **options: Any) -> "onnxruntime.InferenceSession":
    path = Path(question.paths[index])
    return open_session(path, num_threads=question.num_threads, **options)


def _profile(question: Question) -> Answer:
    instruments = OnnxRuntime().instruments()
    instruments.reference()
    before = _resident_bytes()
    session = _open(question, 0)
    feeds = make_feeds(session, batch_size=question.batch_size)
    run = make_run(session, feeds)
    timings = measure_interleaved(
        [lambda: HostSampler(run)],
        instruments=instruments,
        protocol=FINAL_PROTOCOL,
        budget_s=question.budget_s,
    )
    peak = _peak_bytes() - before
    return Answer(
        timings=tuple(timings),
        batch_size=_batch_size(feeds),
        peak_memory_bytes=peak,
        nodes=_profile_nodes(question, feeds),
    )


def _batch_size(feeds: dict[str, NDArray[Any]]) -> int:
    first = next(iter(feeds.values()), np.zeros(1))
    return first.shape[0] if first.ndim else 1


def _profile_nodes(question: Question, feeds: dict[str, NDArray[Any]]) -> tuple[NodeTime, ...]:
    """The runtime's own profile of each node, in a session of its own."""
    session = _open(question, 0, profile_prefix=Path(question.folder) / "nodes")
    for _ in range(_PROFILED_RUNS):
        run_once(session, feeds)
    events = msgspec.json.decode(Path(session.end_profiling()).read_bytes())
    times_us: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            times_us[name, event["args"].get("op_name", "")].append(event["dur"])
    medians_ms = {node: median(times) / 1000 for node, times in times_us.items()}
    total_ms = sum(medians_ms.values()) or 1.0
    nodes = [
        NodeTime(name=name, operator=operator, median_ms=ms, share_percent=100 * ms / total_ms)
        for (name, operator), ms in medians_ms.items()
    ]
    return tuple(sorted(nodes, key=lambda node: -node.median_ms))


def _compare(question: Question) -> Answer:
    instruments = OnnxRuntime().instruments()
    instruments.reference()
    before = _resident_bytes()
    sessions = [_open(question, 0), _open(question, 1)]
    feeds = [make_feeds(session, batch_size=question.batch_size) for session in sessions]
    described = [[f"{v.dtype} {list(v.shape)}" for v in feed.values()] for feed in feeds]
    if described[0] != described[1]:
        raise ConfigError(
            f"the files take different inputs: {', '.join(described[0])} against "
            f"{', '.join(described[1])}",
            hint="compare files with the same input shapes and types",
        )
    # The same values for both, by position: names may differ.
    feeds[1] = dict(zip(feeds[1], feeds[0].values(), strict=True))
    difference = _difference(*(run_once(s, f) for s, f in zip(sessions, feeds, strict=True)))
    rounds: tuple[list[Round], list[Round]] = ([], [])
    timings = measure_interleaved(
        [_opener(session, feed) for session, feed in zip(sessions, feeds, strict=True)],
        instruments=instruments,
        protocol=_COMPARE_PROTOCOL,
        budget_s=question.budget_s,
        record=lambda index, measured: rounds[index].append(measured),
    )
    reference_s = timings[0].reference_s
    num = min(map(len, rounds))
    first, second = (corrected_samples(r[:num], reference_s) for r in rounds)
    value, low, high = paired_ratio(first, second, 20)
    return Answer(
        timings=tuple(timings),
        batch_size=_batch_size(feeds[0]),
        peak_memory_bytes=_peak_bytes() - before,
        ratio=Ratio(value=value, low=low, high=high),
        difference=difference,
    )


def _opener(session: "onnxruntime.InferenceSession", feed: dict[str, NDArray[Any]]) -> Opener:
    return lambda: HostSampler(make_run(session, feed))


def _difference(first: list[NDArray[Any]], second: list[NDArray[Any]]) -> Difference:
    shapes = [[list(value.shape) for value in outputs] for outputs in (first, second)]
    if shapes[0] != shapes[1]:
        raise ConfigError(f"the files give different outputs: {shapes[0]} against {shapes[1]}")
    absolute = relative = 0.0
    for a, b in zip(first, second, strict=True):
        wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
        if not wide_a.size:
            continue
        gap = float(np.abs(wide_a - wide_b).max())
        absolute = max(absolute, gap)
        relative = max(relative, gap / max(float(np.abs(wide_a).max()), 1e-30))
    return Difference(max_absolute=absolute, max_relative=relative)


if __name__ == "__main__":
    sys.exit(main())
