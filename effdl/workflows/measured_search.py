"""Search, measure what was found, and search again until the clock agrees.

A table predicts; only the clock says whether a limit is met. Where the measured
latency of the best network is not where it was predicted, the search is repeated
with its limit moved by their ratio.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from effdl.errors import InfeasibleConstraintError, UnstableMeasurementError
from effdl.models.mobilenet_v3.space import MobileNetV3Space
from effdl.search.candidate import Candidate
from effdl.search.minimum import minimize_cost
from effdl.search.problem import SearchProblem
from effdl.search.result import SearchResult
from effdl.search.space import SubnetConfig
from effdl.targets.measure.runtime import MeasurementRuntime, measure_on
from effdl.targets.timing import Timing
from effdl.workflows.progress import Progress, no_progress

__all__ = [
    "MIN_MEASURED",
    "Attempt",
    "Clock",
    "FastestMissedError",
    "MeasuredCandidate",
    "MeasuredSearch",
    "search_and_measure",
    "search_by_the_clock",
]

MIN_MEASURED = 3
"""Networks of every search that are measured: the best one's neighbours are as accurate
to a hundredth of a point, but not as fast."""

_MEASURE_BUDGET_S = 20.0
_MAX_ATTEMPTS = 8
# Sums in another order differ in their last bits.
_SUM_ERROR = 1e-9
_MAX_ATTEMPTS_WITH_RESULT = 4
# A latency is met with what another measurement of the same network may differ by.
_LEAST_SPREAD_PERCENT = 0.7
# Room below the limit, predicted by mistake, that is worth another search.
_WORTH_TAKING_PERCENT = 1.5
_EXTRA_MARGIN_PERCENT = 0.4
# No table is so far off; what takes so much longer was disturbed, and is measured again.
_DOUBTFUL_RATIO = 1.08
_MAX_MEASUREMENTS = 3
# A processor's own speeds lie closer together.
_DISTURBED_RATIO = 1.3
# A disturbance that lasts must not empty the search at one stroke.
_LEAST_STEP = 0.85


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredCandidate:
    """A network that was searched for and measured.

    Attributes:
        candidate: The network.
        timing: What the clock says.
    """

    candidate: Candidate
    timing: Timing

    @property
    def predicted_ms(self) -> float:
        """Its predicted latency in milliseconds."""
        return self.candidate.costs["latency_ms"]

    @property
    def upper_ms(self) -> float:
        """What another measurement's median will hardly exceed, in milliseconds."""
        spread_percent = max(self.timing.interval_percent or 0.0, _LEAST_SPREAD_PERCENT)
        return self.timing.median_ms * (1 + spread_percent / 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One search and what the clock said of its most accurate network.

    Attributes:
        limit_ms: The predicted latency that was searched with.
        predicted_ms: Of the most accurate network.
        measured_ms: Its measured median.
    """

    limit_ms: float
    predicted_ms: float
    measured_ms: float

    def to_json(self) -> dict[str, float]:
        """The object of the contract."""
        return {
            "searched_latency_limit_ms": self.limit_ms,
            "predicted_latency_ms": self.predicted_ms,
            "measured_latency_ms": self.measured_ms,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredSearch:
    """The end of it.

    Attributes:
        result: Of the search whose limit the best network was found with.
        limit_ms: That limit.
        met: Networks that meet the asked limit by the clock, most accurate first.
        attempts: Every search, in order.
    """

    result: SearchResult
    limit_ms: float
    met: tuple[MeasuredCandidate, ...]
    attempts: tuple[Attempt, ...]


def search_and_measure(
    search: Callable[[float], SearchResult],
    measure: Callable[[Sequence[Candidate]], Sequence[Timing]],
    *,
    limit_ms: float,
    first_limit_ms: float,
    fastest_ms: float,
    num_wanted: int = 1,
    progress: Progress = no_progress,
) -> MeasuredSearch:
    """Search until ``num_wanted`` networks meet a latency by the clock.

    Args:
        search: Searches with a limit on the predicted latency in milliseconds.
        measure: Times networks against each other.
        limit_ms: What the measured median must meet.
        first_limit_ms: What to search with first.
        fastest_ms: Predicted latency of the fastest network: the tightest search.
        num_wanted: How many networks must meet it.
        progress: Told why it is searched again.

    Raises:
        FastestMissedError: By the clock not even the fastest network meets it.
        UnstableMeasurementError: Eight searches did not find one that meets it.
    """
    known: dict[bytes, MeasuredCandidate] = {}
    attempts: list[Attempt] = []
    best: tuple[SearchResult, float] | None = None
    searched_ms, num_tightened = first_limit_ms, 0

    def met() -> list[MeasuredCandidate]:
        found = [c for c in known.values() if c.upper_ms <= limit_ms]
        return sorted(found, key=lambda c: -c.candidate.objective)

    for number in range(1, _MAX_ATTEMPTS + 1):
        result = search(searched_ms)
        fresh = [
            c for c in result.best[: max(num_wanted, MIN_MEASURED)] if c.row.tobytes() not in known
        ]
        for one in _measure_with_doubt(measure, fresh):
            known[one.candidate.row.tobytes()] = one
        top = known[result.best[0].row.tobytes()]
        attempts.append(
            Attempt(
                limit_ms=searched_ms,
                predicted_ms=top.predicted_ms,
                measured_ms=top.timing.median_ms,
            )
        )
        found = met()
        if found and (best is None or found[0].candidate.row.tobytes() in _rows(result)):
            best = result, searched_ms
        if len(found) >= num_wanted and (
            number >= _MAX_ATTEMPTS_WITH_RESULT
            or found[0].upper_ms > limit_ms * (1 - _WORTH_TAKING_PERCENT / 100)
            # The limit did not hold the search back: nothing slower is more accurate.
            or top.predicted_ms < searched_ms * (1 - _WORTH_TAKING_PERCENT / 100)
        ):
            break
        fitting_ms = limit_ms * top.predicted_ms / top.upper_ms
        if top.upper_ms > limit_ms:
            fitting_ms, num_tightened = min(fitting_ms, searched_ms), num_tightened + 1
        elif len(found) < num_wanted:
            fitting_ms, num_tightened = searched_ms, num_tightened + 1
        fitting_ms *= 1 - num_tightened * _EXTRA_MARGIN_PERCENT / 100
        if max(searched_ms, fitting_ms) <= fastest_ms:
            if best is None:
                raise FastestMissedError(top)
            break
        searched_ms = max(fitting_ms, searched_ms * _LEAST_STEP, fastest_ms)
        progress(
            0,
            0,
            f"predicted {top.predicted_ms:.4g} ms, measured {top.timing.median_ms:.4g} ms, wanted "
            f"{limit_ms:g} ms: searching again up to {searched_ms:.4g} ms predicted",
        )
    if best is None:
        slowest = attempts[-1]
        raise UnstableMeasurementError(
            f"no network met {limit_ms:g} ms by the clock in {len(attempts)} searches: the last "
            f"was predicted at {slowest.predicted_ms:.4g} ms and measured at "
            f"{slowest.measured_ms:.4g} ms",
            hint="close what else is running, and see effdl table verify --target cpu",
        )
    result, used_ms = best
    return MeasuredSearch(
        result=result, limit_ms=used_ms, met=tuple(met()), attempts=tuple(attempts)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Measures networks of a space on this machine.

    Attributes:
        space: The family of networks.
        runtime: What runs them.
        batch_size: Samples in one run.
        reference_s: Usual time of the reference kernel, in seconds; None: not known.
    """

    space: MobileNetV3Space
    runtime: MeasurementRuntime
    batch_size: int
    reference_s: float | None = None

    def measure(self, configs: Sequence[SubnetConfig]) -> list[Timing]:
        """Time sub-networks against each other.

        What is measured while the machine runs faster than usual is scaled to its usual
        speed; what is measured while it is slower stays as it is.
        """
        # onnx takes a while to load, and most searches are for other devices.
        from effdl.models.mobilenet_v3.onnx_graph import build_network

        models = [build_network(self.space, config, self.batch_size) for config in configs]
        timings = measure_on(self.runtime, models, budget_s=_MEASURE_BUDGET_S)
        return [self._at_usual_speed(timing) for timing in timings]

    def _at_usual_speed(self, timing: Timing) -> Timing:
        usual_s = timing.reference_s if self.reference_s is None else self.reference_s
        if timing.reference_s >= usual_s:
            return timing
        scale = usual_s / timing.reference_s
        return replace(
            timing,
            p20_ms=scale * timing.p20_ms,
            median_ms=scale * timing.median_ms,
            p95_ms=scale * timing.p95_ms,
            reference_s=usual_s,
        )


def search_by_the_clock(
    search: Callable[[float], SearchResult],
    clock: Clock,
    problem: SearchProblem,
    *,
    limit_ms: float,
    num_wanted: int,
    progress: Progress,
) -> MeasuredSearch:
    """`search_and_measure`, refusing a limit that the fastest network misses.

    Args:
        search: Searches with a limit on the predicted latency in milliseconds.
        clock: Measures what it finds.
        problem: Of the first search; its first limit is the latency's.
        limit_ms: What the measured median must meet.
        num_wanted: How many networks must meet it.
        progress: Told what is going on.

    Raises:
        InfeasibleConstraintError: No network meets the limit, by the table or the clock.
        UnstableMeasurementError: Eight searches did not find one that meets it.
    """

    def measure(candidates: Sequence[Candidate]) -> list[Timing]:
        num = len(candidates)
        progress(0, 0, f"measuring {num} network{'s' if num > 1 else ''}")
        return clock.measure([candidate.config for candidate in candidates])

    latency = problem.constraints[0]
    _, predicted_ms = minimize_cost(problem.space, latency.cost)
    fastest_ms = predicted_ms * (1 + _SUM_ERROR)
    try:
        return search_and_measure(
            search,
            measure,
            limit_ms=limit_ms,
            first_limit_ms=max(latency.limit, fastest_ms),
            fastest_ms=fastest_ms,
            num_wanted=num_wanted,
            progress=progress,
        )
    except FastestMissedError as error:
        timing = error.fastest.timing
    slower = timing.reference_s / (clock.reference_s or timing.reference_s)
    if slower > _DISTURBED_RATIO:
        raise UnstableMeasurementError(
            f"{limit_ms:g} ms cannot be judged: this machine runs {slower:.1f} times slower now "
            "than when it was profiled",
            hint="close what else is running and search again; if it stays so slow, "
            "effdl table verify --target cpu says which entries no longer hold",
        )
    raise InfeasibleConstraintError(
        f"no sub-network of {problem.space.name} meets {limit_ms:g} ms by the clock: the "
        f"fastest was predicted at {predicted_ms:.4g} ms and measured at {timing.median_ms:.4g} ms",
        fastest_latency_ms=timing.median_ms,
        hint=f"--latency {math.ceil(timing.median_ms * 102) / 100:g}ms can be met",
    )


class FastestMissedError(Exception):
    """By the clock the fastest network misses the limit; never leaves this module's callers.

    Attributes:
        fastest: That network.
    """

    def __init__(self, fastest: MeasuredCandidate) -> None:
        super().__init__()
        self.fastest = fastest


def _measure_with_doubt(
    measure: Callable[[Sequence[Candidate]], Sequence[Timing]], candidates: Sequence[Candidate]
) -> list[MeasuredCandidate]:
    """Measure, and again what took far longer than predicted: noise only ever adds."""
    known: dict[int, MeasuredCandidate] = {}
    doubtful = list(range(len(candidates)))
    for _ in range(_MAX_MEASUREMENTS):
        if not doubtful:
            break
        timings = measure([candidates[i] for i in doubtful])
        for i, timing in zip(doubtful, timings, strict=True):
            if i not in known or timing.median_ms < known[i].timing.median_ms:
                known[i] = MeasuredCandidate(candidate=candidates[i], timing=timing)
        doubtful = [
            i
            for i in doubtful
            if known[i].timing.median_ms > _DOUBTFUL_RATIO * known[i].predicted_ms
        ]
    return [known[i] for i in range(len(candidates))]


def _rows(result: SearchResult) -> set[bytes]:
    return {candidate.row.tobytes() for candidate in result.best}
