"""Profile the kernels on this machine: which implementation of each operator is the fastest."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from effdl.errors import ConfigError, TargetUnavailableError, UnstableMeasurementError
from effdl.export.threads import one_thread
from effdl.kernels.kernel_spec import KernelSpec
from effdl.targets.host import Noise, read_noise
from effdl.targets.implementations import (
    FastestLatencyModel,
    Implementation,
    finished_implementations,
    profile_implementations,
)
from effdl.targets.measure.onnxruntime import OnnxRuntime
from effdl.targets.measure.runtime import MeasurementRuntime
from effdl.targets.profiler import estimate_round_s
from effdl.targets.store import MeasurementStore, default_store_path
from effdl.targets.target import Target
from effdl.targets.timing import QUICK_PROTOCOL, TABLE_PROTOCOL, Protocol, Timing
from effdl.workflows.kernel_implementations import (
    PLAIN,
    KernelImplementation,
    MissingBackend,
    find_implementations,
    load_kernel_specs,
)
from effdl.workflows.progress import Progress, no_progress

__all__ = [
    "KernelsProfile",
    "MeasuredImplementation",
    "MeasuredOperator",
    "load_kernel_latency_model",
    "profile_kernels",
]

QUICK_BUDGET_S = 170.0
FULL_BUDGET_S = 840.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredImplementation:
    """The latency of one way to compute an operator.

    Attributes:
        name: ``onnxruntime``, or the kernel and its backend.
        runtime: What ran it, with its version.
        latency_ms: 20th percentile in milliseconds for the whole batch, at the same speed
            of the machine as all others.
        interval_percent: Half the width of its 95 % interval.
        unstable: Its noise did not settle.
    """

    name: str
    runtime: str
    latency_ms: float
    interval_percent: float | None
    unstable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredOperator:
    """One operator and all its implementations.

    Attributes:
        key: Its identity in latency tables.
        kernel: Name of the kernel.
        case: Its size, as the benchmarks call it.
        dtype: Number format.
        implementations: The fastest first.
    """

    key: str
    kernel: str
    case: str
    dtype: str
    implementations: tuple[MeasuredImplementation, ...]

    @property
    def fastest(self) -> MeasuredImplementation:
        """What a search takes."""
        return self.implementations[0]

    @property
    def plain(self) -> MeasuredImplementation:
        """Its plain ONNX form."""
        return next(one for one in self.implementations if one.name == PLAIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelsProfile:
    """What profiling the kernels came to.

    Attributes:
        device: This machine.
        runtime: What ran the plain ONNX forms.
        batch_size: Samples in one run.
        protocol: How carefully it was measured.
        num_entries: Different operators, times their implementations here.
        num_measured: Measured now (with ``dry_run``: to be measured).
        num_cached: Found in the store.
        num_unstable: Whose noise did not settle.
        num_partial: For which the budget ended before all rounds; another run goes on.
        operators: What is measured; empty for a dry run.
        missing: Backends that cannot be measured here.
        noise: Of the machine before measuring.
        seconds: How long it took (with ``dry_run``: an estimate).
        store: The file the measurements are in.
    """

    device: str
    runtime: str
    batch_size: int
    protocol: str
    num_entries: int
    num_measured: int
    num_cached: int
    num_unstable: int
    num_partial: int
    operators: tuple[MeasuredOperator, ...]
    missing: tuple[MissingBackend, ...]
    noise: Noise
    seconds: float
    store: Path

    def to_json(self) -> dict[str, Any]:
        """The object of the contract, without ``schema_version``."""
        operators = [
            {**asdict(operator), "fastest": operator.fastest.name} for operator in self.operators
        ]
        return {**asdict(self), "store": str(self.store), "operators": operators}


@one_thread()
def profile_kernels(
    target: Target,
    *,
    specs: Sequence[KernelSpec] | None = None,
    batch_size: int = 1,
    quick: bool = False,
    budget_s: float | None = None,
    progress: Progress = no_progress,
    dry_run: bool = False,
    strict: bool = False,
    store_path: Path | None = None,
) -> KernelsProfile:
    """Measure every kernel on every backend here, and its plain ONNX form, interleaved.

    What the store has is not measured again, and a profile that was stopped goes on
    where it stopped. Everything runs on one thread.

    Args:
        target: This machine's processor.
        specs: Kernels at their sizes; None: all of effdl's.
        batch_size: Samples in one run.
        quick: Fewer rounds.
        budget_s: Seconds it may take; None: 170 quick, else 840.
        progress: Told how far it is.
        dry_run: Measure nothing; say what would be measured and how long it takes.
        strict: Unstable timings are an error (what was measured is kept).
        store_path: The store; None: the user's own.

    Raises:
        TargetUnavailableError: The target is not this machine's processor.
        ConfigError: The batch size or the budget is not positive.
        UnstableMeasurementError: With ``strict``, some timings did not settle.
        OutputError: The store cannot be written.
        CorruptFileError: The store is damaged.
    """
    if not target.is_local or target.kind != "cpu":
        raise TargetUnavailableError(
            f"kernels cannot be measured on target {target.name}: wanted this machine's processor",
            hint="effdl profile --target cpu --ops kernels",
        )
    budget_s = (QUICK_BUDGET_S if quick else FULL_BUDGET_S) if budget_s is None else budget_s
    if batch_size < 1 or budget_s <= 0:
        raise ConfigError(
            f"wanted a batch size of at least 1 and a budget above 0 s, "
            f"got {batch_size} and {budget_s:g} s"
        )
    start, noise = time.perf_counter(), read_noise()
    path, runtime = store_path or default_store_path(), OnnxRuntime()
    protocol = QUICK_PROTOCOL if quick else TABLE_PROTOCOL
    found, missing = find_implementations(
        load_kernel_specs() if specs is None else specs,
        runtime=runtime,
        protocol=protocol,
        batch_size=batch_size,
    )
    plain = [one.implementation for one in found]
    done = _finished(plain, path, protocol)
    num_cached = sum(timing is not None for timing in done)
    timings: list[Timing] = []
    operators: tuple[MeasuredOperator, ...] = ()
    if dry_run:
        left = [one.opener for one, known in zip(plain, done, strict=True) if known is None]
        seconds = protocol.min_rounds * estimate_round_s(left, protocol)
    else:
        with MeasurementStore(path) as store:
            timings = profile_implementations(
                plain,
                store=store,
                protocol=protocol,
                instruments=runtime.instruments(),
                budget_s=budget_s - (time.perf_counter() - start),
                progress=progress,
            )
        operators, seconds = _operators(found, timings), time.perf_counter() - start
    unstable = [one for one, t in zip(plain, timings, strict=False) if t.unstable]
    if strict and unstable:
        raise UnstableMeasurementError(
            f"{len(unstable)} of {len(plain)} timings did not settle within "
            f"{protocol.interval_percent:g} %, such as {unstable[0].key} in {unstable[0].name}",
            hint="close what else is running and run it again, or leave out --strict",
        )
    return KernelsProfile(
        device=runtime.device,
        runtime=str(runtime.build),
        batch_size=batch_size,
        protocol=protocol.name,
        num_entries=len(plain),
        num_measured=len(plain) - num_cached,
        num_cached=num_cached,
        num_unstable=len(unstable),
        num_partial=sum(timing.num_rounds < protocol.min_rounds for timing in timings),
        operators=operators,
        missing=tuple(missing),
        noise=noise,
        seconds=seconds,
        store=path,
    )


def load_kernel_latency_model(
    specs: Sequence[KernelSpec] | None = None,
    batch_size: int = 1,
    *,
    runtime: MeasurementRuntime | None = None,
    store_path: Path | None = None,
) -> FastestLatencyModel | None:
    """The fastest measured implementation of every operator, or None where none is measured.

    The careful protocol's figures are taken before the quick one's; operators of which
    only a part of the implementations is measured are not taken.

    Args:
        specs: Kernels at their sizes; None: all of effdl's.
        batch_size: Samples in one run.
        runtime: What ran the plain ONNX forms; None: ONNX Runtime on one thread.
        store_path: The store; None: the user's own.

    Raises:
        CorruptFileError: The store is damaged.
    """
    path, runtime = store_path or default_store_path(), runtime or OnnxRuntime()
    specs = load_kernel_specs() if specs is None else specs
    chosen: list[Implementation] = []
    timings: list[Timing] = []
    for protocol in (TABLE_PROTOCOL, QUICK_PROTOCOL):
        known = {one.key for one in chosen}
        found, _ = find_implementations(
            [spec for spec in specs if spec.op.key not in known],
            runtime=runtime,
            protocol=protocol,
            batch_size=batch_size,
        )
        plain = [one.implementation for one in found]
        done = _finished(plain, path, protocol)
        partly = {one.key for one, timing in zip(plain, done, strict=True) if timing is None}
        for one, timing in zip(plain, done, strict=True):
            if timing is not None and one.key not in partly:
                chosen.append(one)
                timings.append(timing)
    if not chosen:
        return None
    return FastestLatencyModel.of_timings(chosen, timings, device=runtime.device)


def _finished(
    implementations: Sequence[Implementation], path: Path, protocol: Protocol
) -> list[Timing | None]:
    """What the store has; it is not made where it is not there yet."""
    if not path.exists():
        return [None] * len(implementations)
    with MeasurementStore(path) as store:
        return finished_implementations(implementations, store, protocol)


def _operators(
    found: Sequence[KernelImplementation], timings: Sequence[Timing]
) -> tuple[MeasuredOperator, ...]:
    plain = [one.implementation for one in found]
    model = FastestLatencyModel.of_timings(plain, timings, device="")
    by_key: dict[str, list[MeasuredImplementation]] = {}
    specs: dict[str, KernelSpec] = {}
    for one, timing in zip(found, timings, strict=True):
        key, name = one.implementation.key, one.implementation.name
        specs.setdefault(key, one.spec)
        by_key.setdefault(key, []).append(
            MeasuredImplementation(
                name=name,
                runtime=one.runtime,
                latency_ms=model.implementations_ms[key][name],
                interval_percent=timing.interval_percent,
                unstable=timing.unstable,
            )
        )
    return tuple(
        MeasuredOperator(
            key=key,
            kernel=specs[key].kernel,
            case=specs[key].case,
            dtype=specs[key].dtype,
            implementations=tuple(sorted(every, key=lambda one: one.latency_ms)),
        )
        for key, every in by_key.items()
    )
