"""Samples timed by a GPU's own events, with the arithmetic apart from the device.

Work on a GPU runs behind the host's back. An event is a mark in the queue of work;
the time between two marks is what the device spent, launches excepted that the host
was too slow to give.
"""

import math
from collections.abc import Callable, Sequence
from typing import Protocol, Self

from effdl.targets.sampler import Samples

__all__ = ["Event", "EventSampler", "calls_per_graph", "flush_bytes", "launches_per_sample"]

# Events tell times about 0.5 us apart; a sample of 400 of these is good to 0.25 %.
_MIN_SAMPLE_S = 200e-6
# Replaying a graph costs the host some microseconds; a longer graph hides them.
_MIN_GRAPH_S = 200e-6
_MAX_CALLS_PER_GRAPH = 64
_MAX_LAUNCHES = 1000
# An idle GPU takes about so long to raise its clock.
_WARM_UP_S = 0.02
_MIN_FLUSH_BYTES = 256 * 2**20


class Event(Protocol):
    """A mark in the device's queue."""

    def record(self) -> None:
        """Put the mark behind all work given so far."""
        ...

    def elapsed_time(self, end_event: Self, /) -> float:
        """Milliseconds from this mark to a later one, once both are passed."""
        ...


def launches_per_sample(call_s: float, min_sample_s: float) -> int:
    """How often a sample launches what takes ``call_s`` so that it lasts long enough."""
    return min(_MAX_LAUNCHES, max(1, math.ceil(min_sample_s / max(call_s, 1e-9))))


def calls_per_graph(call_s: float) -> int:
    """How many calls that take ``call_s`` one graph repeats, so that replays cost nothing."""
    return min(_MAX_CALLS_PER_GRAPH, launches_per_sample(call_s, _MIN_GRAPH_S))


def flush_bytes(cache_bytes: int) -> int:
    """How much to write so that nothing else is left in a cache of ``cache_bytes``."""
    return max(2 * cache_bytes, _MIN_FLUSH_BYTES)


class EventSampler:
    """Times launches of work by events, as a `Sampler`.

    Without a flush, one sample is a row of launches between two events: caches are
    warm. With one, the cache is flushed before every launch, each launch stands
    between events of its own, and the flush counts in none.

    Args:
        launch: Gives the device the work; returns before it is done.
        new_event: Makes an event.
        synchronize: Waits until the device is idle.
        calls_per_launch: How many calls one launch makes.
        flush: Gives the device the work that empties its cache.
        slowed: Whether the device runs slower now than it would like.
    """

    def __init__(
        self,
        launch: Callable[[], object],
        *,
        new_event: Callable[[], Event],
        synchronize: Callable[[], object],
        calls_per_launch: int = 1,
        flush: Callable[[], object] | None = None,
        slowed: Callable[[], bool] = lambda: False,
    ) -> None:
        self._launch, self._flush = launch, flush
        self._new_event, self._synchronize = new_event, synchronize
        self._calls_per_launch, self._slowed = calls_per_launch, slowed
        self._fastest_s = math.inf

    def sample(self, num: int, min_sample_s: float) -> Samples:
        """`Sampler.sample`; all samples count as interrupted if the device is slowed at the end."""
        if math.isinf(self._fastest_s):
            self._warm_up()
        self._fastest_s = min(self._fastest_s, *self._timed(1, 1))
        wanted_s = max(min_sample_s, _MIN_SAMPLE_S) if self._flush is None else min_sample_s
        num_launches = launches_per_sample(self._fastest_s, wanted_s)
        seconds = [s / self._calls_per_launch for s in self._timed(num, num_launches)]
        return Samples(tuple(seconds), (self._slowed(),) * num)

    def _warm_up(self) -> None:
        """Work until an idle device has raised its clock."""
        spent_s, num_launches = 0.0, 1
        while spent_s < _WARM_UP_S and num_launches <= _MAX_LAUNCHES:
            marks = [self._between(num_launches)]
            self._synchronize()
            spent_s += num_launches * _mean_s(marks, num_launches)
            num_launches *= 2

    def _timed(self, num: int, num_launches: int) -> list[float]:
        """Seconds of one launch, one value a sample."""
        samples = [self._marked(num_launches) for _ in range(num)]
        self._synchronize()
        return [_mean_s(marks, num_launches) for marks in samples]

    def _marked(self, num_launches: int) -> list[tuple[Event, Event]]:
        if self._flush is None:
            return [self._between(num_launches)]
        marks = []
        for _ in range(num_launches):
            self._flush()
            marks.append(self._between(1))
        return marks

    def _between(self, num_launches: int) -> tuple[Event, Event]:
        start, end = self._new_event(), self._new_event()
        start.record()
        for _ in range(num_launches):
            self._launch()
        end.record()
        return start, end


def _mean_s(marks: Sequence[tuple[Event, Event]], num_launches: int) -> float:
    return sum(start.elapsed_time(end) for start, end in marks) / 1000 / num_launches
