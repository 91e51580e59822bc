"""Fills the store: what is measured already, what is left, how long it will take."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from effdl.errors import MissingEntryError
from effdl.opspec import OpSpec
from effdl.targets.sampler import Opener
from effdl.targets.store import MeasurementStore, Setting
from effdl.targets.timing import Instruments, Progress, Protocol, Timing, measure_interleaved

__all__ = [
    "ProfiledItems",
    "estimate_round_s",
    "interpolate_missing",
    "profile_items",
    "spread_indices",
]

# Sessions hold weights twice, as given and repacked: few large ones at a time.
_MAX_OPEN = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfiledItems:
    """The items of one profile.

    Attributes:
        timings: Of every item.
        num_cached: How many the store had already.
    """

    timings: Mapping[str, Timing]
    num_cached: int


def finished_timings(
    store: MeasurementStore, setting: Setting, protocol: Protocol
) -> dict[str, Timing]:
    """What the store holds and need not be measured again."""
    timings = store.read_timings(setting)
    return {key: t for key, t in timings.items() if t.num_rounds >= protocol.min_rounds}


def profile_items(
    openers: Mapping[str, Opener],
    *,
    store: MeasurementStore,
    setting: Setting,
    protocol: Protocol,
    instruments: Instruments,
    budget_s: float,
    progress: Progress | None = None,
) -> ProfiledItems:
    """Measure what the store lacks, and go on where a stopped profile left off.

    Args:
        openers: What to time, by key.
        store: Where every round is committed as it is measured.
        setting: What the figures hold for.
        protocol: How carefully.
        instruments: The clock and the reference.
        budget_s: Seconds after which every item has one round and no more.
        progress: Told how many rounds are done, of how many.

    Raises:
        OutputError: The store cannot be written.
    """
    finished = finished_timings(store, setting, protocol)
    cached = {key: finished[key] for key in openers if key in finished}
    keys = [key for key in openers if key not in cached]
    measured = measure_interleaved(
        [openers[key] for key in keys],
        instruments=instruments,
        protocol=protocol,
        budget_s=budget_s,
        max_open=_MAX_OPEN,
        earlier=store.read_rounds(setting, keys),
        record=lambda index, done: store.add_round(setting, keys[index], done),
        progress=progress,
    )
    fresh = dict(zip(keys, measured, strict=True))
    store.write_timings(setting, fresh)
    return ProfiledItems(timings={**cached, **fresh}, num_cached=len(cached))


def estimate_round_s(
    openers: Sequence[Opener],
    protocol: Protocol,
    *,
    num_probes: int = 24,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds that one round of all these items will take, from an even sample of them."""
    if not openers:
        return 0.0
    probes = [openers[i] for i in spread_indices(len(openers), min(num_probes, len(openers)))]
    start = clock()
    for opener in probes:
        opener().sample(protocol.samples_per_round, protocol.min_sample_s)
    return (clock() - start) / len(probes) * len(openers)


def spread_indices(num: int, wanted: int) -> list[int]:
    """``wanted`` indices below ``num``, evenly spread, both ends among them."""
    if wanted >= num:
        return list(range(num))
    if wanted == 1:
        return [num // 2]
    return sorted({round(i) for i in np.linspace(0, num - 1, wanted)})


def interpolate_missing(
    lines: Sequence[Sequence[OpSpec]], measured_ms: Mapping[str, float]
) -> dict[str, float]:
    """Milliseconds of operators that were not measured, from larger and smaller ones.

    Linear in the bytes an operator moves, which is linear in its pixels.

    Args:
        lines: The same operator at rising input sizes, one line each.
        measured_ms: Milliseconds by key.

    Returns:
        Milliseconds of the keys that were missing.

    Raises:
        MissingEntryError: An operator is smaller or larger than all measured ones.
    """
    filled: dict[str, float] = {}
    for line in lines:
        known = {op.key: op for op in line if op.key in measured_ms}
        missing = [op for op in line if op.key not in measured_ms]
        if not missing:
            continue
        points = sorted((float(op.bytes_moved), measured_ms[key]) for key, op in known.items())
        sizes, values = [p[0] for p in points], [p[1] for p in points]
        for op in missing:
            if not sizes or not sizes[0] <= op.bytes_moved <= sizes[-1]:
                raise MissingEntryError(
                    f"no latency of {op.key}, and none of smaller and larger ones to go by",
                    hint="effdl profile --target cpu",
                )
            filled[op.key] = float(np.interp(op.bytes_moved, sizes, values))
    return filled
