"""Profile this machine: a latency table of a whole space."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from effdl.errors import (
    ConfigError,
    MissingEntryError,
    TargetUnavailableError,
    UnstableMeasurementError,
)
from effdl.models.mobilenet_v3.space import MobileNetV3Space
from effdl.opspec import OpSpec
from effdl.search.space import SubnetConfig
from effdl.targets.calibration import Calibration, fit_calibration, network_features
from effdl.targets.host import Noise, describe_host, find_runtime, read_noise
from effdl.targets.host_model import HostLatencyModel
from effdl.targets.measure.onnxruntime import (
    NUM_THREADS,
    host_instruments,
    measure_models,
    open_graph,
)
from effdl.targets.profiler import (
    estimate_round_s,
    finished_timings,
    interpolate_missing,
    profile_items,
    spread_indices,
)
from effdl.targets.store import MeasurementStore, Setting, default_store_path
from effdl.targets.target import Target
from effdl.targets.timing import QUICK_PROTOCOL, TABLE_PROTOCOL, Opener, Protocol, Timing
from effdl.workflows.progress import Progress, no_progress

__all__ = ["SpaceProfile", "load_host_latency_model", "measure_models", "profile_space"]

QUICK_BUDGET_S = 170.0
FULL_BUDGET_S = 840.0
_QUICK_NETWORKS, _FULL_NETWORKS = 16, 40
_MIN_NETWORKS = 8
# Of the budget; the rest is for what an estimate cannot know.
_PLANNED_SHARE = 0.7


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
        calibration: From operators to whole networks; None after a dry run.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What to measure: operators by key, and whole networks by key."""

    ops: Mapping[str, OpSpec]
    networks: Mapping[str, SubnetConfig]
    estimated_s: float


def profile_space(
    target: Target,
    space: MobileNetV3Space,
    *,
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
    if not target.is_local or target.kind != "cpu":
        raise TargetUnavailableError(
            f"target {target.name} cannot be measured from here: wanted this machine's processor",
            hint="effdl profile --target cpu",
        )
    budget_s = (QUICK_BUDGET_S if quick else FULL_BUDGET_S) if budget_s is None else budget_s
    if batch_size < 1 or budget_s <= 0:
        raise ConfigError(
            f"wanted a batch size of at least 1 and a budget above 0 s, "
            f"got {batch_size} and {budget_s:g} s"
        )
    start, noise = time.perf_counter(), read_noise()
    protocol = QUICK_PROTOCOL if quick else TABLE_PROTOCOL
    setting = _setting(protocol, batch_size)
    with MeasurementStore(store_path) as store:
        num_networks = _QUICK_NETWORKS if quick else _FULL_NETWORKS
        done = finished_timings(store, setting, protocol)
        plan = _plan(space, batch_size, protocol, budget_s, num_networks, done, seed)
        all_ops = _distinct_ops(space)
        cached = [key for key in plan.ops if key in done]
        timings: Mapping[str, Timing] = {}
        calibration = None
        if not dry_run:
            profiled = profile_items(
                _openers(space, plan, batch_size),
                store=store,
                setting=setting,
                protocol=protocol,
                instruments=host_instruments(),
                budget_s=budget_s - (time.perf_counter() - start),
                progress=progress,
            )
            timings = profiled.timings
            calibration = _calibrate(space, plan, timings)
            name = _calibration_name(space)
            store.write_calibration(setting, name, msgspec.json.encode(calibration))
        store_file = store.path
    unstable = [key for key in plan.ops if key in timings and timings[key].unstable]
    if strict and unstable:
        raise UnstableMeasurementError(
            f"{len(unstable)} of {len(plan.ops)} operators did not settle within "
            f"{protocol.interval_percent:g} %, such as {unstable[0]}",
            hint="close what else is running and run it again, or leave out --strict",
        )
    return SpaceProfile(
        space=space.name,
        device=describe_host().name,
        runtime=str(find_runtime()),
        batch_size=batch_size,
        protocol=protocol.name,
        num_entries=len(all_ops),
        num_measured=len(plan.ops) - len(cached),
        num_cached=len(cached),
        num_interpolated=len(all_ops) - len(plan.ops),
        num_unstable=len(unstable),
        calibration=calibration,
        noise=noise,
        seconds=plan.estimated_s if dry_run else time.perf_counter() - start,
        store=store_file,
    )


def load_host_latency_model(
    space: MobileNetV3Space, batch_size: int = 1, *, store_path: Path | None = None
) -> HostLatencyModel | None:
    """This machine's latency model of a space, or None where it was not profiled.

    The careful protocol's figures are taken before the quick one's.

    Args:
        space: Whose operators it must know.
        batch_size: Samples in one run.
        store_path: The store; None: the user's own.

    Raises:
        BackendUnavailableError: ONNX Runtime is not installed.
        CorruptFileError: The store is damaged.
    """
    path = store_path or default_store_path()
    if not path.exists():
        return None
    with MeasurementStore(path) as store:
        for protocol in (TABLE_PROTOCOL, QUICK_PROTOCOL):
            setting = _setting(protocol, batch_size)
            calibration = _covering(store.read_calibrations(setting), space)
            if calibration is None:
                continue
            timings = store.read_timings(setting)
            speed = calibration.reference_s
            op_ms = {
                op.key: timings[op.key].p20_ms * speed / timings[op.key].reference_s
                for op in _distinct_ops(space).values()
                if op.key in timings
            }
            try:
                filled = interpolate_missing(_lines(space), op_ms)
            except MissingEntryError:
                continue
            return HostLatencyModel(
                op_ms={**op_ms, **filled},
                calibration=calibration,
                device=describe_host().name,
                batch_size=batch_size,
                runtime=str(find_runtime()),
                source="interpolated" if filled else "measured",
            )
    return None


def _setting(protocol: Protocol, batch_size: int) -> Setting:
    return Setting.here(find_runtime(), protocol, batch_size=batch_size, num_threads=NUM_THREADS)


def _distinct_ops(space: MobileNetV3Space) -> dict[str, OpSpec]:
    return {op.key: op for slot in space.slots for op in slot.ops}


def _lines(space: MobileNetV3Space) -> list[list[OpSpec]]:
    """The same operator at rising resolutions; the resolution is every slot's first dimension."""
    num = len(space.resolutions)
    lines = []
    for slot in space.slots:
        per_resolution = len(slot.ops) // num
        lines += [list(slot.ops[i::per_resolution]) for i in range(per_resolution)]
    return lines


def _plan(
    space: MobileNetV3Space,
    batch_size: int,
    protocol: Protocol,
    budget_s: float,
    num_networks: int,
    done: Mapping[str, Timing],
    seed: int,
) -> _Plan:
    """As many resolutions, and then whole networks, as the budget reaches for."""
    all_ops = _distinct_ops(space)
    left = [op for op in all_ops.values() if op.key not in done]
    openers = [_operator_opener(op, batch_size) for op in left]
    op_s = protocol.min_rounds * estimate_round_s(openers, protocol) / max(1, len(left))
    network_s = op_s * np.mean([sum(slot.gate is None for slot in space.slots), len(space.slots)])
    affordable_s, fewest_s = _PLANNED_SHARE * budget_s, network_s * _MIN_NETWORKS

    def left_s(ops: Mapping[str, OpSpec]) -> float:
        return op_s * sum(key not in done for key in ops)

    part, ops = space, all_ops
    while left_s(ops) + fewest_s > affordable_s and len(part.resolutions) > 2:
        num = len(part.resolutions) // 2 + 1
        kept = spread_indices(len(space.resolutions), num)
        part = space.with_resolutions(space.resolutions[i] for i in kept)
        ops = _distinct_ops(part)
    room = int((affordable_s - left_s(ops)) / network_s) if network_s else num_networks
    networks = _sample_networks(part, min(num_networks, max(_MIN_NETWORKS, room)), seed)
    networks_s = network_s * sum(key not in done for key in networks)
    return _Plan(ops=ops, networks=networks, estimated_s=float(left_s(ops) + networks_s))


def _sample_networks(space: MobileNetV3Space, num: int, seed: int) -> dict[str, SubnetConfig]:
    """Random sub-networks by key, their resolutions evenly spread."""
    search_space = space.search_space
    rows = search_space.sample(num, np.random.default_rng(seed))
    spread = np.linspace(0, len(space.resolutions) - 1, num).round()
    rows[:, search_space.columns("resolution")[0]] = spread
    configs = [search_space.decode(row) for row in rows]
    return {_network_key(space, config): config for config in configs}


def _network_key(space: MobileNetV3Space, config: SubnetConfig) -> str:
    text = msgspec.json.encode(config.to_json(), order="sorted")
    return f"network:{space.name}:{hashlib.sha256(text).hexdigest()[:24]}"


def _operator_opener(op: OpSpec, batch_size: int) -> Opener:
    return lambda: open_graph(op.build(batch_size))


def _openers(space: MobileNetV3Space, plan: _Plan, batch_size: int) -> dict[str, Opener]:
    from effdl.models.mobilenet_v3.onnx_graph import build_network

    def network(config: SubnetConfig) -> Opener:
        return lambda: open_graph(build_network(space, config, batch_size))

    operators = {key: _operator_opener(op, batch_size) for key, op in plan.ops.items()}
    return operators | {key: network(config) for key, config in plan.networks.items()}


def _calibrate(space: MobileNetV3Space, plan: _Plan, timings: Mapping[str, Timing]) -> Calibration:
    """Fit the correction on the plan's networks, all at one speed of the machine."""
    reference_s = float(np.median([timings[key].reference_s for key in timings]))

    def at_reference(key: str, ms: float) -> float:
        return ms * reference_s / timings[key].reference_s

    features = []
    for config in plan.networks.values():
        ops = [shape.spec() for _, shape in space.shapes(config)]
        op_ms = [at_reference(op.key, timings[op.key].p20_ms) for op in ops]
        features.append(network_features(ops, np.array(op_ms)))
    return fit_calibration(
        np.array(features),
        np.array([at_reference(key, timings[key].p20_ms) for key in plan.networks]),
        np.array([at_reference(key, timings[key].median_ms) for key in plan.networks]),
        reference_s=reference_s,
        resolutions=(min(space.resolutions), max(space.resolutions)),
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
