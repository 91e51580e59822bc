"""Times a TensorFlow Lite file on an Android phone with LiteRT's own benchmark program.

effdl writes ONNX and converts none to this format: this is for files that a user has. The
program tells no single runs, only a summary of each start; so one start is one sample.
"""

import hashlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from effdl.errors import ConfigError, CorruptFileError
from effdl.files import read_limited
from effdl.targets.measure.adb_heat import Heat, Watched, rest, run_cold, run_watched
from effdl.targets.measure.adb_output import parse_litert_summary
from effdl.targets.measure.adb_phone import (
    Phone,
    affinity_mask,
    describe_phone,
    fixed_performance,
)
from effdl.targets.measure.adb_program import PhoneProgram, explain_failure, read_program
from effdl.targets.measure.adb_transport import PHONE_FOLDER, Adb, connect
from effdl.targets.sampler import Samples
from effdl.targets.timing import Instruments, Protocol, Timing, measure_interleaved

__all__ = ["LITERT_PROTOCOL", "PhoneTiming", "measure_tflite"]

LITERT_PROTOCOL = Protocol(
    name="litert", min_rounds=8, max_rounds=40, samples_per_round=1, min_span_s=0.0
)
"""One start of the program a round."""

_RUNS_PER_START, _WARM_UPS = 20, 5
_LONGEST_START_S = 150.0
_LIMIT_S = 2 * _LONGEST_START_S + 120.0
_MAX_FILE_BYTES = 1 << 31
# A flatbuffer's kind stands behind its first offset.
_MARK, _MARK_AT = b"TFL3", 4


@dataclass(frozen=True, slots=True, kw_only=True)
class PhoneTiming:
    """The latency of a file on a phone.

    Attributes:
        timing: Each sample is the median of one start's runs (the mean, where an old
            program tells no median). No reference kernel runs beside it.
        device: The phone and its cores.
        device_fingerprint: 16 hexadecimal digits of them.
        clock_policy: ``"fixed-performance"``, or the governor.
        runtime: The program and its build.
    """

    timing: Timing
    device: str
    device_fingerprint: str
    clock_policy: str
    runtime: str


def measure_tflite(
    model: Path,
    *,
    program: Path,
    serial: str | None = None,
    num_threads: int = 1,
    cores: Sequence[int] | None = None,
    heat: Heat | None = None,
    protocol: Protocol = LITERT_PROTOCOL,
    budget_s: float = 600.0,
) -> PhoneTiming:
    """Time a whole network on a phone, cold, in the burst regime.

    Args:
        model: A ``.tflite`` file.
        program: ``benchmark_model``, built for the phone.
        serial: The phone's serial number; None: the only one.
        num_threads: Threads inside an operator.
        cores: Cores it may use; None: the fastest clusters that have a core a thread.
        heat: How warmth is dealt with.
        protocol: How carefully.
        budget_s: Seconds after which the program is not started again.

    Raises:
        BackendUnavailableError: ``adb`` or the program is not here, or does not run.
        TargetUnavailableError: There is no phone, more than one, or it cannot be used.
        ConfigError: An argument is wrong, or the program is for another instruction set.
        CorruptFileError: The file is no TensorFlow Lite file, or the program refuses it.
        OutputError: The phone has no space left.
    """
    if model.suffix == ".onnx":
        raise ConfigError(
            f"wanted a .tflite file, got {model}",
            hint="ONNX files are measured with onnxruntime_perf_test; "
            "docs/guides/phone.md says how",
        )
    data = read_limited(model, _MAX_FILE_BYTES)
    if data[_MARK_AT : _MARK_AT + len(_MARK)] != _MARK:
        raise CorruptFileError(
            f"{model} is no TensorFlow Lite file: wanted {_MARK!r} at byte {_MARK_AT}, got "
            f"{data[_MARK_AT : _MARK_AT + len(_MARK)]!r}"
        )
    read, heat = read_program("litert", program), heat or Heat()
    adb = connect(serial)
    phone = describe_phone(adb)
    used = phone.choose_cores(num_threads, cores)
    read.push(adb, phone)
    path = f"{PHONE_FOLDER}/models/{hashlib.sha256(data).hexdigest()}.tflite"
    adb.push(data, path)
    with fixed_performance(adb, used[0]) as clock_policy:
        rest(adb, heat, name=phone.name)
        options = [f"--graph={path}", f"--num_threads={num_threads}"]
        runs = [f"--num_runs={_RUNS_PER_START}", f"--warmup_runs={_WARM_UPS}"]
        limits = ["--min_secs=0", f"--max_secs={_LONGEST_START_S:g}"]
        command = ["taskset", affinity_mask(used), *read.command, *options, *runs, *limits]
        sampler = _LiteRtSampler(
            adb=adb, phone=phone, program=read, command=shlex.join(command), heat=heat
        )
        (timing,) = measure_interleaved(
            [lambda: sampler],
            instruments=Instruments(reference=_NoReference),
            protocol=protocol,
            budget_s=budget_s,
        )
    return PhoneTiming(
        timing=timing,
        device=f"{phone.name} ({phone.soc}), cores {', '.join(map(str, used))}",
        device_fingerprint=phone.fingerprint(used),
        clock_policy=clock_policy,
        runtime=f"{read.build} {read.build.build}",
    )


class _NoReference:
    """A reference that never drifts, as there is no program here to make one of."""

    def sample(self, num: int, min_sample_s: float) -> Samples:
        return Samples((1.0,) * num, (False,) * num)


@dataclass(frozen=True, slots=True, kw_only=True)
class _LiteRtSampler:
    adb: Adb
    phone: Phone
    program: PhoneProgram
    command: str
    heat: Heat

    def sample(self, num: int, min_sample_s: float) -> Samples:
        starts = [self._start() for _ in range(num)]
        return Samples(tuple(s for s, _ in starts), tuple(throttled for _, throttled in starts))

    def _start(self) -> tuple[float, bool]:
        watched = run_cold(self.adb, self.heat, self._run, name=self.phone.name)
        summary = parse_litert_summary(watched.answer.text, num_runs=_RUNS_PER_START)
        return summary.median_s or summary.mean_s, watched.was_throttled

    def _run(self) -> Watched:
        watched = run_watched(self.adb, self.command, limit_s=_LIMIT_S)
        if watched.answer.exit_code != 0:
            raise explain_failure(self.program, watched.answer, "the file")
        return watched
