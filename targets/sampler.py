"""What is timed: one opened thing that gives samples, on this machine or another."""

import math
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

__all__ = ["HostSampler", "Opener", "Run", "Sampler", "Samples"]

# The quicker of so many calls, after loading, tells how often a sample must repeat it.
_NUM_WARM_UPS = 2

Run = Callable[[], object]
"""Does the work once."""


class Samples(NamedTuple):
    """Times of single calls.

    Attributes:
        seconds: Of one call, one value a sample.
        interrupted: Whether the system took the core away, or slowed it down, meanwhile.
    """

    seconds: tuple[float, ...]
    interrupted: tuple[bool, ...]


class Sampler(Protocol):
    """Something opened that can be timed."""

    def sample(self, num: int, min_sample_s: float) -> Samples:
        """Warm up, then take samples.

        Args:
            num: How many.
            min_sample_s: One sample repeats the call until it lasts this long.
        """
        ...


Opener = Callable[[], Sampler]
"""Makes a `Sampler`; what it holds is freed when it is let go."""


def _involuntary_switches() -> int:
    # Only Linux counts by thread; elsewhere no sample is ever dropped.
    import resource

    thread = getattr(resource, "RUSAGE_THREAD", None)
    return resource.getrusage(thread).ru_nivcsw if thread is not None else 0


class HostSampler:
    """Times a callable by this host's clock.

    Args:
        run: Does the work once.
        clock: Seconds, rising.
        switches: Involuntary context switches of this thread so far.
    """

    def __init__(
        self,
        run: Run,
        *,
        clock: Callable[[], float] = time.perf_counter,
        switches: Callable[[], int] = _involuntary_switches,
    ) -> None:
        self._run, self._clock, self._switches = run, clock, switches
        self._fastest_s = math.inf

    def sample(self, num: int, min_sample_s: float) -> Samples:
        """`Sampler.sample`."""
        run, clock, switches = self._run, self._clock, self._switches
        for _ in range(_NUM_WARM_UPS if math.isinf(self._fastest_s) else 1):
            start = clock()
            run()
            self._fastest_s = min(self._fastest_s, clock() - start)
        num_repeats = max(1, math.ceil(min_sample_s / max(self._fastest_s, 1e-9)))
        repeats, seconds, interrupted = range(num_repeats), [], []
        for _ in range(num):
            switches_before, start = switches(), clock()
            for _ in repeats:
                run()
            seconds.append((clock() - start) / num_repeats)
            interrupted.append(switches() > switches_before)
        return Samples(tuple(seconds), tuple(interrupted))
