"""The clock: interleaved rounds, a low percentile, and a reference beside every item.

Samples taken in a row share the machine's mood: a noisy neighbour lifts all of
one operator's samples and none of the next one's. Here every pending item is
sampled in every round, in a new order each time. A processor also changes its
speed, by ten percent and more for minutes; a fixed reference kernel is timed
beside every item, and each round is scaled by how fast the reference ran around
it. Tables take the 20th percentile, which noise hardly moves.
"""

import gc
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from effdl.targets.host import idlest_core
from effdl.targets.sampler import Opener, Sampler
from effdl.targets.timing_statistics import drop_interrupted, interval_half_width, row_percentile

__all__ = [
    "FINAL_PROTOCOL",
    "PROTOCOL_VERSION",
    "QUICK_PROTOCOL",
    "TABLE_PROTOCOL",
    "Instruments",
    "Progress",
    "Protocol",
    "Round",
    "Timing",
    "measure_interleaved",
    "summarise",
]

PROTOCOL_VERSION = 1

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what is going on)."""

# Of the reference kernel: samples beside each item, how far in time from an item's
# samples they still speak for it, and how few are too few.
_REFERENCE_SAMPLES = 4
_REFERENCE_SPAN_S = 0.25
_REFERENCE_MIN_SAMPLES = 8
_REFERENCE_PERCENT = 20
_MAX_REFERENCES_KEPT = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How long and how carefully to measure.

    Attributes:
        name: Stands, with the version, in the key of every stored measurement.
        min_rounds: Rounds every item takes part in.
        max_rounds: Rounds after which an item that has not settled is unstable.
        samples_per_round: Samples of one item in one round, after one warm-up.
        interval_percent: An item is done when half its 95 % interval is at most this.
        min_sample_s: One sample repeats the call until it lasts this long.
        min_span_s: Rounds go on until they span this long, whatever the interval.
    """

    name: str
    min_rounds: int = 6
    max_rounds: int = 20
    samples_per_round: int = 10
    interval_percent: float = 1.0
    min_sample_s: float = 50e-6
    min_span_s: float = 1.0


TABLE_PROTOCOL = Protocol(name="table")
# The same rounds at the least, but no patience with a noisy machine.
QUICK_PROTOCOL = Protocol(name="quick", max_rounds=6, interval_percent=3.0)
FINAL_PROTOCOL = Protocol(name="final", min_rounds=8, max_rounds=40, interval_percent=0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One item's samples of one round.

    Attributes:
        seconds: Of one call, one value a sample.
        interrupted: Whether the operating system took the core away meanwhile.
        reference_s: Seconds of the reference kernel around them.
    """

    seconds: tuple[float, ...]
    interrupted: tuple[bool, ...]
    reference_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What the clock says of one item.

    Every round is first scaled to the speed at which the reference kernel takes
    ``reference_s``.

    Attributes:
        p20_ms: 20th percentile in milliseconds: for tables and comparisons.
        median_ms: Median in milliseconds: what a user sees.
        p95_ms: 95th percentile in milliseconds.
        interval_percent: Half the width of the 95 % interval of ``p20_ms``, in
            percent of it, by a bootstrap over rounds; None after a single round.
        num_samples: Samples that count.
        num_dropped: Samples dropped because the operating system interrupted them.
        num_rounds: Rounds the samples come from.
        reference_s: Usual time of the reference kernel in seconds.
        unstable: The interval did not come down to the protocol's in time.
    """

    p20_ms: float
    median_ms: float
    p95_ms: float
    interval_percent: float | None
    num_samples: int
    num_dropped: int
    num_rounds: int
    reference_s: float
    unstable: bool


def corrected_samples(rounds: Sequence[Round], reference_s: float) -> NDArray[np.float64]:
    """Seconds [rounds, samples] at the reference speed; NaN where dropped."""
    seconds = np.array([r.seconds for r in rounds])
    speed = reference_s / np.array([[r.reference_s] for r in rounds])
    return drop_interrupted(seconds * speed, np.array([r.interrupted for r in rounds]))


def summarise(rounds: Sequence[Round], *, reference_s: float, limit_percent: float) -> Timing:
    """The figures of one item.

    Args:
        rounds: At least one, all with equally many samples.
        reference_s: The reference kernel's usual time.
        limit_percent: With a wider interval the timing is unstable.
    """
    samples = corrected_samples(rounds, reference_s)
    p20, median, p95 = (float(row_percentile(samples.reshape(1, -1), p)[0]) for p in (20, 50, 95))
    interval = 100 * interval_half_width(samples, 20) / p20 if len(rounds) > 1 else None
    num_kept = int(np.isfinite(samples).sum())
    return Timing(
        p20_ms=1000 * p20,
        median_ms=1000 * median,
        p95_ms=1000 * p95,
        interval_percent=interval,
        num_samples=num_kept,
        num_dropped=samples.size - num_kept,
        num_rounds=len(rounds),
        reference_s=reference_s,
        unstable=interval is None or interval > limit_percent,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruments:
    """What measuring reads from the world; tests hand in made ones.

    Attributes:
        reference: Opens a fixed kernel of the same kind of work as the items, so
            that what slows the items slows it.
        clock: Seconds, rising: when samples were taken, and how long all takes.
    """

    reference: Opener
    clock: Callable[[], float] = time.perf_counter


@contextmanager
def quiet_thread() -> Iterator[None]:
    """Keep this thread on one core, the idlest, and the garbage collector out of it.

    Where the system cannot pin, the thread stays free.
    """
    pins = hasattr(os, "sched_setaffinity")
    before = os.sched_getaffinity(0) if pins else set()
    collects = gc.isenabled()
    if pins:
        os.sched_setaffinity(0, {idlest_core(before)})
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
        if pins:
            os.sched_setaffinity(0, before)


@dataclass(slots=True, kw_only=True)
class _Item:
    index: int
    opener: Opener
    rounds: list[Round] = field(default_factory=list)
    sampler: Sampler | None = None


@dataclass(slots=True, kw_only=True)
class _Visitor:
    """Times one item after another, with the reference kernel in between."""

    instruments: Instruments
    protocol: Protocol
    record: Callable[[int, Round], None] | None
    reference: Sampler = field(init=False)
    reference_at_s: list[float] = field(default_factory=list)
    reference_seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reference = self.instruments.reference()
        self._sample_reference()

    def visit(self, item: _Item) -> None:
        """One round of one item, recorded at once: a process that is killed loses no other."""
        sampler = item.sampler = item.sampler or item.opener()
        samples = sampler.sample(self.protocol.samples_per_round, self.protocol.min_sample_s)
        now = self.instruments.clock()
        self._sample_reference()
        finished = Round(
            seconds=samples.seconds,
            interrupted=samples.interrupted,
            reference_s=self._reference_around_s(now),
        )
        item.rounds.append(finished)
        if self.record is not None:
            self.record(item.index, finished)

    def _reference_around_s(self, now: float) -> float:
        distance = np.abs(np.array(self.reference_at_s) - now)
        nearest = np.argsort(distance, kind="stable")
        num = max(_REFERENCE_MIN_SAMPLES, int((distance <= _REFERENCE_SPAN_S).sum()))
        around = np.array(self.reference_seconds)[nearest[:num]]
        return float(np.percentile(around, _REFERENCE_PERCENT))

    def _sample_reference(self) -> None:
        seconds = self.reference.sample(_REFERENCE_SAMPLES, self.protocol.min_sample_s).seconds
        now = self.instruments.clock()
        self.reference_at_s += [now] * len(seconds)
        self.reference_seconds += seconds
        if len(self.reference_at_s) > _MAX_REFERENCES_KEPT:
            del self.reference_at_s[: _MAX_REFERENCES_KEPT // 2]
            del self.reference_seconds[: _MAX_REFERENCES_KEPT // 2]


def measure_interleaved(
    openers: Sequence[Opener],
    *,
    instruments: Instruments,
    protocol: Protocol = TABLE_PROTOCOL,
    budget_s: float = math.inf,
    max_open: int = 64,
    earlier: Sequence[Sequence[Round]] | None = None,
    record: Callable[[int, Round], None] | None = None,
    reference_s: float | None = None,
    progress: Progress | None = None,
    seed: int = 0,
) -> list[Timing]:
    """Time callables against each other, fairly.

    Every round visits every item that has not settled, in a new order, and takes
    ``protocol.samples_per_round`` samples of each after one warm-up.

    Args:
        openers: What to time.
        instruments: The clock and the reference.
        protocol: How carefully.
        budget_s: Seconds after which no further round is begun. One round is always
            measured; what has not settled by then is unstable.
        max_open: Samplers alive at once; with more items each is opened anew every round.
        earlier: Rounds of each item that an interrupted measurement left.
        record: Called with (item, round) as soon as a round of an item is measured.
        reference_s: The reference kernel's usual time in seconds; its median over
            all rounds if not given.
        progress: Called with (rounds of items done, at least to do, text).
        seed: Of the order.

    Returns:
        One timing for each item, in order.
    """
    if not openers:
        return []
    clock, rng = instruments.clock, np.random.default_rng(seed)
    items = [_Item(index=i, opener=opener) for i, opener in enumerate(openers)]
    for item, rounds in zip(items, earlier or [], strict=False):
        item.rounds.extend(rounds)

    def usual_reference_s() -> float:
        known = [r.reference_s for item in items for r in item.rounds]
        return reference_s or float(np.median(known or [1.0]))

    def unsettled(elapsed_s: float) -> list[_Item]:
        usual = usual_reference_s()
        return [item for item in items if not _is_done(item, protocol, usual, elapsed_s)]

    with quiet_thread():
        start, pending, num_done = clock(), unsettled(math.inf), 0
        to_do = sum(max(1, protocol.min_rounds - len(item.rounds)) for item in pending)
        visitor = _Visitor(instruments=instruments, protocol=protocol, record=record)
        while pending:
            keep_open = len(pending) <= max_open
            for index in rng.permutation(len(pending)).tolist():
                item = pending[index]
                if item.rounds and clock() - start > budget_s:
                    continue
                visitor.visit(item)
                if not keep_open:
                    item.sampler = None
                num_done += 1
                if progress is not None:
                    progress(num_done, max(to_do, num_done), f"{len(pending)} to measure")
            elapsed = clock() - start
            pending = [] if elapsed > budget_s else unsettled(elapsed)
    usual = usual_reference_s()
    return [
        summarise(item.rounds, reference_s=usual, limit_percent=protocol.interval_percent)
        for item in items
    ]


def _is_done(item: _Item, protocol: Protocol, reference_s: float, elapsed_s: float) -> bool:
    if len(item.rounds) >= protocol.max_rounds:
        return True
    if len(item.rounds) < protocol.min_rounds or elapsed_s < protocol.min_span_s:
        return False
    samples = corrected_samples(item.rounds, reference_s)
    p20 = row_percentile(samples.reshape(1, -1), 20)[0]
    return 100 * interval_half_width(samples, 20) <= protocol.interval_percent * p20
