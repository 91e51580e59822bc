"""The search loop: ask, evaluate, tell."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from effdl.errors import ConfigError
from effdl.search.algorithm import SearchAlgorithm
from effdl.search.candidate import Archive, Candidate
from effdl.search.feasible import FeasibleRegion
from effdl.search.pareto import pareto_indices
from effdl.search.problem import SearchProblem
from effdl.search.result import SearchResult
from effdl.search.space import Population

__all__ = ["Progress", "SearchBudget", "run_search"]

Progress = Callable[[int, float], None]

_MAX_IDLE_ASKS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchBudget:
    """When to stop, at the latest.

    Attributes:
        max_evaluations: Different networks evaluated; None: the algorithm ends by itself.
        max_seconds: Elapsed time. A search it cuts short depends on the
            machine's speed, not on the seed alone.
    """

    max_evaluations: int | None = None
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.max_evaluations is not None and self.max_evaluations < 1:
            raise ConfigError(f"max_evaluations: wanted at least 1, got {self.max_evaluations}")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ConfigError(f"max_seconds: wanted a positive number, got {self.max_seconds}")


def run_search(
    problem: SearchProblem,
    algorithm: SearchAlgorithm,
    *,
    rng: np.random.Generator,
    budget: SearchBudget | None = None,
    num_best: int = 1,
    progress: Progress | None = None,
) -> SearchResult:
    """Search until the algorithm ends, the budget is spent, or nothing new is asked.

    Same problem, algorithm, evaluation budget and generator state: same result.

    Args:
        problem: What is searched for.
        algorithm: How.
        rng: The only source of randomness.
        budget: When to stop at the latest.
        num_best: How many of the best networks to return.
        progress: Called with (networks evaluated, best feasible objective) after every ask.

    Raises:
        InfeasibleConstraintError: No network keeps every limit, or none was found.
    """
    budget = budget or SearchBudget()
    cpu_start, wall_start = time.process_time(), time.perf_counter()
    # The batches are small: more BLAS threads would only wait for each other.
    with threadpool_limits(limits=1, user_api="blas"):
        archive, num_evaluations = _loop(problem, algorithm, rng, budget, progress, wall_start)
        return _result(problem, archive, num_evaluations, num_best, cpu_start, wall_start)


def _loop(
    problem: SearchProblem,
    algorithm: SearchAlgorithm,
    rng: np.random.Generator,
    budget: SearchBudget,
    progress: Progress | None,
    wall_start: float,
) -> tuple[Archive, int]:
    """Everything evaluated, and how many rows were asked for."""
    archive, region = Archive(problem), FeasibleRegion(problem)
    run = algorithm.start(region, archive, rng)
    num_evaluations = idle = 0
    best = -np.inf
    while idle < _MAX_IDLE_ASKS:
        rows = run.ask()
        asked = len(rows)
        if budget.max_evaluations is not None:
            rows = _cut(rows, archive, budget.max_evaluations - len(archive))
        if len(rows) == 0:
            break
        before = len(archive)
        values = archive.evaluate(rows)
        num_evaluations += len(rows)
        idle = 0 if len(archive) > before else idle + 1
        if progress is not None:
            better = values > best
            better[better] = region.contains(rows[better])
            best = float(values[better].max(initial=best))
            progress(len(archive), best)
        elapsed_s = time.perf_counter() - wall_start
        is_late = budget.max_seconds is not None and elapsed_s >= budget.max_seconds
        if is_late or len(rows) < asked:
            break
        run.tell(values)
    return archive, num_evaluations


def _cut(rows: Population, archive: Archive, left: int) -> Population:
    unseen = archive.unseen(rows)
    if len(unseen) <= left:
        return rows
    return rows[unseen[:left]]


def _result(
    problem: SearchProblem,
    archive: Archive,
    num_evaluations: int,
    num_best: int,
    cpu_start: float,
    wall_start: float,
) -> SearchResult:
    population, objective = archive.population, archive.objective
    feasible = problem.violation(population) == 0
    usable = np.where(feasible, objective, -np.inf)
    best = np.argsort(-usable, kind="stable")[:num_best]
    best = best[feasible[best]]
    front = np.empty(0, dtype=np.intp)
    if problem.constraints:
        rows = np.flatnonzero(feasible)
        cost = problem.constraints[0].cost(population[rows])
        front = rows[pareto_indices(objective[rows], cost)]
    return SearchResult(
        best=_candidates(problem, archive, best),
        pareto_front=_candidates(problem, archive, front),
        num_evaluations=num_evaluations,
        num_unique=len(archive),
        history=np.fmax.accumulate(usable),
        cpu_seconds=time.process_time() - cpu_start,
        wall_seconds=time.perf_counter() - wall_start,
    )


def _candidates(
    problem: SearchProblem, archive: Archive, places: NDArray[np.intp]
) -> tuple[Candidate, ...]:
    rows, values = archive.population[places], archive.objective[places]
    costs = {cost.name: cost(rows) for cost in problem.reported_costs}
    return tuple(
        Candidate(
            row=row.copy(),
            config=problem.space.decode(row),
            objective=float(values[i]),
            costs={name: float(column[i]) for name, column in costs.items()},
        )
        for i, row in enumerate(rows)
    )
