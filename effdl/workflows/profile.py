"""Profile this machine: a latency table of a whole space."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from effdl.distributed.executor import Executor
from effdl.errors import (
    ConfigError,
    MissingEntryError,
    UnstableMeasurementError,
)
from effdl.models.mobilenet_v3.space import MobileNetV3Space
from effdl.targets.calibration import Calibration, fit_calibration, network_features
from effdl.targets.host import Noise, read_noise
from effdl.targets.host_model import HostLatencyModel
from effdl.targets.measure.onnxruntime import OnnxRuntime
from effdl.targets.measure.runtime import MeasurementRuntime
from effdl.targets.profiler import finished_timings, interpolate_missing, profile_items
from effdl.targets.store import MeasurementStore, Setting, default_store_path
from effdl.targets.target import Target
from effdl.targets.timing import QUICK_PROTOCOL, TABLE_PROTOCOL, Protocol, Timing
from effdl.workflows.profile_plan import (
    ProfilePlan,
    distinct_ops,
    plan_profile,
    resolution_lines,
)
from effdl.workflows.profile_spread import profile_on_workers
from effdl.workflows.progress import Progress, no_progress
from effdl.workflows.runtimes import runtime_of

__all__ = ["SpaceProfile", "load_host_latency_model", "profile_space"]

QUICK_BUDGET_S = 170.0
FULL_BUDGET_S = 840.0
_QUICK_NETWORKS, _FULL_NETWORKS = 16, 40


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceProfile:
    """What profiling a space came to.

    Attributes:
        space: Name of the space.
        device: This machine.
        runtime: What ran the operators.
        batch_size: Samples in one run.
        protocol: How carefully it was measured.
        num_entries: Different operators of the space.
        num_measured: Measured now (with ``dry_run``: to be measured).
        num_cached: Found in the store.
        num_interpolated: Filled in between smaller and larger ones.
        num_unstable: Whose noise did not settle.
        num_partial: For which the budget ended before all rounds; another run goes on.
        calibration: From operators to whole networks; None where a dry run found none.
        noise: Of the machine before measuring.
        seconds: How long it took (with ``dry_run``: an estimate).
        store: The file the measurements are in.
    """

    space: str
    device: str
    runtime: str
    batch_size: int
    protocol: str
    num_entries: int
    num_measured: int
    num_cached: int
    num_interpolated: int
    num_unstable: int
    num_partial: int
    calibration: Calibration | None
    noise: Noise
    seconds: float
    store: Path

    def to_json(self) -> dict[str, Any]:
        """The object of the contract, without ``schema_version``."""
        fit = self.calibration
        return {
            **{name: value for name, value in asdict(self).items() if name != "calibration"},
            "store": str(self.store),
            "calibration": None if fit is None else msgspec.to_builtins(fit),
        }


def profile_space(
    target: Target,
    space: MobileNetV3Space,
    *,
    runtime: MeasurementRuntime | None = None,
    executor: Executor | None = None,
    batch_size: int = 1,
    quick: bool = False,
    budget_s: float | None = None,
    progress: Progress = no_progress,
    dry_run: bool = False,
    strict: bool = False,
    store_path: Path | None = None,
    seed: int = 0,
) -> SpaceProfile:
    """Measure every operator of a space on this machine, and correct their sums.

    What the store has is not measured again, and a profile that was stopped goes on
    where it stopped. Operators and whole networks are measured in the same rounds,
    so the correction compares like with like. If the budget does not reach for all
    resolutions, fewer are measured and those between are interpolated.

    Args:
        target: This machine.
        space: Whose operators are measured.
        runtime: What measures; None: the target's own.
        executor: Has workers on machines equal to this one that share the work; None:
            this process does it.
        batch_size: Samples in one run.
        quick: Fewer rounds and fewer whole networks.
        budget_s: Seconds it may take; None: 170 quick, else 840.
        progress: Told how far it is.
        dry_run: Measure nothing; say what would be measured and how long it takes.
        strict: Unstable operators are an error (what was measured is kept).
        store_path: The store; None: the user's own.
        seed: Chooses the whole networks.

    Raises:
        TargetUnavailableError: The target cannot be measured from here.
        ConfigError: The batch size or the budget is not positive.
        UnstableMeasurementError: With ``strict``, some operators did not settle.
        OutputError: The store cannot be written.
        CorruptFileError: The store is damaged.
    """
    runtime = runtime or runtime_of(target)
    budget_s = (QUICK_BUDGET_S if quick else FULL_BUDGET_S) if budget_s is None else budget_s
    if batch_size < 1 or budget_s <= 0:
        raise ConfigError(
            f"wanted a batch size of at least 1 and a budget above 0 s, "
            f"got {batch_size} and {budget_s:g} s"
        )
    start, noise = time.perf_counter(), read_noise()
    protocol, path = QUICK_PROTOCOL if quick else TABLE_PROTOCOL, store_path or default_store_path()
    setting = Setting.of(runtime, protocol, batch_size=batch_size)
    done, rounds, calibration = _known(path, setting, protocol, space)
    all_ops = distinct_ops(space)
    cached, planned = all_ops.keys() & done.keys(), all_ops.keys()
    timings, estimated_s = done, 0.0
    if len(cached) < len(all_ops) or calibration is None:
        plan = plan_profile(
            space,
            runtime=runtime,
            batch_size=batch_size,
            protocol=protocol,
            budget_s=budget_s,
            num_networks=_QUICK_NETWORKS if quick else _FULL_NETWORKS,
            done=done,
            rounds=rounds,
            seed=seed,
        )
        planned, estimated_s = plan.ops.keys() | cached, plan.estimated_s
        if not dry_run:
            with MeasurementStore(path) as store:
                left_s = budget_s - (time.perf_counter() - start)
                if executor is None:
                    timings = profile_items(
                        plan.openers(),
                        store=store,
                        setting=setting,
                        protocol=protocol,
                        instruments=runtime.instruments(),
                        budget_s=left_s,
                        progress=progress,
                    ).timings
                else:
                    timings = profile_on_workers(
                        plan,
                        executor,
                        store=store,
                        setting=setting,
                        protocol=protocol,
                        budget_s=left_s,
                        progress=progress,
                    )
                calibration = _calibrate(plan, timings, store.read_reference_s(setting))
                fit = msgspec.json.encode(calibration)
                store.write_calibration(setting, _calibration_name(space), fit)
    unstable = sorted(key for key in planned if key in timings and timings[key].unstable)
    if strict and unstable:
        raise UnstableMeasurementError(
            f"{len(unstable)} of {len(planned)} operators did not settle within "
            f"{protocol.interval_percent:g} %, such as {unstable[0]}",
            hint="close what else is running and run it again, or leave out --strict",
        )
    num_partial = 0 if dry_run else sum(_is_partial(timings.get(k), protocol) for k in planned)
    return SpaceProfile(
        space=space.name,
        device=runtime.device,
        runtime=str(runtime.build),
        batch_size=batch_size,
        protocol=protocol.name,
        num_entries=len(all_ops),
        num_measured=len(planned) - len(cached),
        num_cached=len(cached),
        num_interpolated=len(all_ops) - len(planned),
        num_unstable=len(unstable),
        num_partial=num_partial,
        calibration=calibration,
        noise=noise,
        seconds=estimated_s if dry_run else time.perf_counter() - start,
        store=path,
    )


def _is_partial(timing: Timing | None, protocol: Protocol) -> bool:
    return timing is None or timing.num_rounds < protocol.min_rounds


def _known(
    path: Path, setting: Setting, protocol: Protocol, space: MobileNetV3Space
) -> tuple[Mapping[str, Timing], Mapping[str, int], Calibration | None]:
    """What the store has of a space; it is not made where it is not there yet."""
    if not path.exists():
        return {}, {}, None
    with MeasurementStore(path) as store:
        fit = store.read_calibrations(setting).get(_calibration_name(space))
        known = None if fit is None else msgspec.json.decode(fit, type=Calibration)
        return finished_timings(store, setting, protocol), store.count_rounds(setting), known


def load_host_latency_model(
    space: MobileNetV3Space,
    batch_size: int = 1,
    *,
    runtime: MeasurementRuntime | None = None,
    store_path: Path | None = None,
) -> HostLatencyModel | None:
    """This machine's latency model of a space, or None where it was not profiled.

    The careful protocol's figures are taken before the quick one's.

    Args:
        space: Whose operators it must know.
        batch_size: Samples in one run.
        runtime: What measured; None: ONNX Runtime on one thread.
        store_path: The store; None: the user's own.

    Raises:
        BackendUnavailableError: ONNX Runtime is not installed.
        CorruptFileError: The store is damaged.
    """
    path, runtime = store_path or default_store_path(), runtime or OnnxRuntime()
    if not path.exists():
        return None
    with MeasurementStore(path) as store:
        for protocol in (TABLE_PROTOCOL, QUICK_PROTOCOL):
            setting = Setting.of(runtime, protocol, batch_size=batch_size)
            calibration = _covering(store.read_calibrations(setting), space)
            if calibration is None:
                continue
            timings = store.read_timings(setting)
            speed = calibration.reference_s
            op_ms = {
                op.key: timings[op.key].p20_ms * speed / timings[op.key].reference_s
                for op in distinct_ops(space).values()
                if op.key in timings
            }
            try:
                filled = interpolate_missing(resolution_lines(space), op_ms)
            except MissingEntryError:
                continue
            return HostLatencyModel(
                op_ms={**op_ms, **filled},
                calibration=calibration,
                device=runtime.device,
                batch_size=batch_size,
                runtime=str(runtime.build),
                source="interpolated" if filled else "measured",
            )
    return None


def _calibrate(
    plan: ProfilePlan, timings: Mapping[str, Timing], references_s: NDArray[np.float64]
) -> Calibration:
    """Fit the correction on the plan's networks, all at one speed of the machine."""
    resolutions = plan.space.resolutions
    reference_s = float(np.median([timings[key].reference_s for key in timings]))

    def at_reference(key: str, ms: float) -> float:
        return ms * reference_s / timings[key].reference_s

    features = []
    for config in plan.networks.values():
        ops = [shape.spec() for _, shape in plan.space.shapes(config)]
        op_ms = [at_reference(op.key, timings[op.key].p20_ms) for op in ops]
        features.append(network_features(ops, np.array(op_ms)))
    return fit_calibration(
        np.array(features),
        np.array([at_reference(key, timings[key].p20_ms) for key in plan.networks]),
        np.array([at_reference(key, timings[key].median_ms) for key in plan.networks]),
        reference_s=reference_s,
        slow_percent=max(0.0, 100 * (float(np.percentile(references_s, 95)) / reference_s - 1)),
        resolutions=(min(resolutions), max(resolutions)),
    )


def _calibration_name(space: MobileNetV3Space) -> str:
    return f"{space.name}@{min(space.resolutions)}-{max(space.resolutions)}"


def _covering(found: Mapping[str, bytes], space: MobileNetV3Space) -> Calibration | None:
    """The narrowest calibration of the space that covers all its resolutions."""
    fits: Sequence[Calibration] = [
        msgspec.json.decode(fit, type=Calibration)
        for name, fit in found.items()
        if name.rpartition("@")[0] == space.name
    ]
    low, high = min(space.resolutions), max(space.resolutions)
    covering = [fit for fit in fits if fit.resolutions[0] <= low and high <= fit.resolutions[1]]
    return min(covering, key=lambda fit: fit.resolutions[1] - fit.resolutions[0], default=None)
