"""What profiling a space measures: operators and whole networks, within a budget."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import msgspec
import numpy as np

from effdl.models.mobilenet_v3.space import MobileNetV3Space
from effdl.opspec import OpSpec
from effdl.search.space import SubnetConfig
from effdl.targets.measure.runtime import MeasurementRuntime
from effdl.targets.profiler import estimate_round_s, spread_indices
from effdl.targets.sampler import Opener, Sampler
from effdl.targets.timing import Protocol, Timing

__all__ = ["ProfilePlan", "distinct_ops", "plan_profile", "resolution_lines"]

_MIN_NETWORKS = 8
# Of the budget; the rest is for what an estimate cannot know.
_PLANNED_SHARE = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfilePlan:
    """What to measure.

    Attributes:
        space: The space.
        runtime: What measures.
        batch_size: Samples in one run.
        ops: Operators by key; those of the space that are missing are interpolated.
        networks: Whole networks by key.
        estimated_s: Seconds that what is not measured yet will take.
    """

    space: MobileNetV3Space
    runtime: MeasurementRuntime
    batch_size: int
    ops: Mapping[str, OpSpec]
    networks: Mapping[str, SubnetConfig]
    estimated_s: float

    def models(self) -> dict[str, Callable[[], bytes]]:
        """What to time, by key, as functions that write ONNX models."""
        from effdl.models.mobilenet_v3.onnx_graph import build_network

        return {
            **{key: partial(op.build, self.batch_size) for key, op in self.ops.items()},
            **{
                key: partial(build_network, self.space, config, self.batch_size)
                for key, config in self.networks.items()
            },
        }

    def openers(self) -> dict[str, Opener]:
        """What to time, by key."""

        def opened(build: Callable[[], bytes]) -> Sampler:
            return self.runtime.open_model(build())

        return {key: partial(opened, build) for key, build in self.models().items()}


def plan_profile(
    space: MobileNetV3Space,
    *,
    runtime: MeasurementRuntime,
    batch_size: int,
    protocol: Protocol,
    budget_s: float,
    num_networks: int,
    done: Mapping[str, Timing],
    rounds: Mapping[str, int],
    seed: int,
) -> ProfilePlan:
    """As many resolutions, and then whole networks, as the budget reaches for.

    A few operators are run to find out how long the rest will take.

    Args:
        space: Whose operators are measured.
        runtime: What measures.
        batch_size: Samples in one run.
        protocol: How carefully.
        budget_s: Seconds it may take.
        num_networks: Whole networks at most; at least 8 are planned.
        done: What is measured already, by key.
        rounds: Rounds measured so far, by key.
        seed: Chooses the whole networks.
    """
    all_ops = distinct_ops(space)
    openers = [_opener(runtime, op, batch_size) for op in all_ops.values()]
    round_s = estimate_round_s(openers, protocol) / len(openers)
    op_s = protocol.min_rounds * round_s
    network_s = op_s * len(space.slots)
    affordable_s, fewest_s = _PLANNED_SHARE * budget_s, network_s * _MIN_NETWORKS

    def left_s(ops: Mapping[str, OpSpec]) -> float:
        left = (max(0, protocol.min_rounds - rounds.get(key, 0)) for key in ops if key not in done)
        return round_s * sum(left)

    part, ops = space, all_ops
    while left_s(ops) + fewest_s > affordable_s and len(part.resolutions) > 2:
        num = len(part.resolutions) // 2 + 1 if len(part.resolutions) > 3 else 2
        kept = spread_indices(len(space.resolutions), num)
        part = space.with_resolutions(space.resolutions[i] for i in kept)
        ops = distinct_ops(part)
    room = int((affordable_s - left_s(ops)) / network_s)
    sampled = list(_sample_networks(part, num_networks, seed).items())
    chosen = spread_indices(len(sampled), max(_MIN_NETWORKS, room))
    networks = dict(sampled[i] for i in chosen)
    networks_s = network_s * sum(key not in done for key in networks)
    return ProfilePlan(
        space=space,
        runtime=runtime,
        batch_size=batch_size,
        ops=ops,
        networks=networks,
        estimated_s=left_s(ops) + networks_s,
    )


def distinct_ops(space: MobileNetV3Space) -> dict[str, OpSpec]:
    """Every operator of a space, equal ones once, by key."""
    return {op.key: op for slot in space.slots for op in slot.ops}


def resolution_lines(space: MobileNetV3Space) -> list[list[OpSpec]]:
    """The same operator at rising resolutions, one line each."""
    num, lines = len(space.resolutions), []
    for slot in space.slots:
        # The resolution is every slot's first dimension, so it varies slowest.
        per_resolution = len(slot.ops) // num
        lines += [list(slot.ops[i::per_resolution]) for i in range(per_resolution)]
    return lines


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


def _opener(runtime: MeasurementRuntime, op: OpSpec, batch_size: int) -> Opener:
    return lambda: runtime.open_model(op.build(batch_size))
