"""Searches against the best of all networks; their ends, budgets and seeds."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from effdl.errors import ConfigError, InfeasibleConstraintError, UnknownNameError
from effdl.search.algorithm import SearchAlgorithm
from effdl.search.candidate import Candidate
from effdl.search.evolution import EvolutionSearch, mutate
from effdl.search.local_search import LocalSearch
from effdl.search.loop import SearchBudget, run_search
from effdl.search.pareto import pareto_indices
from effdl.search.presets import ALGORITHMS, EFFORTS, make_algorithm, whole_front
from effdl.search.problem import SearchProblem
from effdl.search.random_search import RandomSearch
from effdl.search.result import SearchResult

Maker = Callable[[int], Any]

SMALL_EVOLUTION = EvolutionSearch(population_size=20, num_generations=40)


def run(
    problem: SearchProblem, algorithm: SearchAlgorithm, seed: int = 0, **options: Any
) -> SearchResult:
    return run_search(problem, algorithm, rng=np.random.default_rng(seed), **options)


class CountingObjective:
    """Remembers every row it was asked about."""

    def __init__(self, objective: Callable[[Any], Any]) -> None:
        self.objective = objective
        self.asked: list[bytes] = []

    def __call__(self, population: Any) -> Any:
        self.asked += [row.tobytes() for row in population]
        return self.objective(population)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_no_network_is_evaluated_twice_and_all_are_feasible(make_problem: Maker, name: str) -> None:
    made = make_problem(4)
    limited = made.within(float(np.quantile(made.cost, 0.5)))
    counting = CountingObjective(made.problem.objective)
    problem = SearchProblem(space=made.space, objective=counting, constraints=limited.constraints)
    result = run(problem, make_algorithm(algorithm=name), budget=SearchBudget(max_evaluations=900))
    assert len(counting.asked) == len(set(counting.asked)) == result.num_unique <= 900
    assert len(result.history) == result.num_unique
    assert (np.diff(result.history) >= 0).all()
    best = result.best[0]
    assert best.costs["latency_ms"] <= limited.constraints[0].limit
    assert best.objective == result.history[-1]


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("share", [0.02, 0.3])
def test_every_effort_finds_the_optimum_of_a_small_space(
    make_problem: Maker, effort: str, share: float
) -> None:
    """The search ends by itself, at the optimum."""
    made = make_problem(5)
    limit = float(np.quantile(made.cost, share))
    result = run(made.within(limit), make_algorithm(effort=effort))
    assert result.best[0].objective == pytest.approx(made.optimum(limit), rel=1e-12)


@pytest.mark.parametrize("algorithm", [LocalSearch(num_kicks=6), SMALL_EVOLUTION])
def test_searches_come_near_the_optimum_with_a_fraction_of_the_space(
    make_problem: Maker, algorithm: SearchAlgorithm
) -> None:
    ranks = []
    for seed in range(6):
        made = make_problem(seed)
        limit = float(np.quantile(made.cost, 0.4))
        result = run(made.within(limit), algorithm, seed, budget=SearchBudget(max_evaluations=700))
        better = (made.objective > result.best[0].objective + 1e-12) & (made.cost <= limit)
        ranks.append(int(better.sum()))
    assert np.median(ranks) <= 2


@pytest.mark.parametrize("name", sorted(set(ALGORITHMS) - {"random"}))
def test_random_search_is_beaten(make_problem: Maker, name: str) -> None:
    budget = SearchBudget(max_evaluations=400)
    gains = []
    for seed in range(8):
        made = make_problem(seed)
        problem = made.within(float(np.quantile(made.cost, 0.5)))
        ours = run(problem, make_algorithm(algorithm=name), seed, budget=budget)
        random = run(problem, RandomSearch(), seed, budget=budget)
        gains.append(ours.best[0].objective - random.best[0].objective)
    assert np.mean(gains) > 0
    assert sum(gain < 0 for gain in gains) <= 2


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_feasible_set_of_one_network_ends(make_problem: Maker, name: str) -> None:
    made = make_problem(6)
    result = run(made.within(float(made.cost.min())), make_algorithm(algorithm=name), num_best=9)
    assert len(result.best) == 1
    assert result.best[0].row.tolist() == made.rows[made.cost.argmin()].tolist()
    assert len(result.pareto_front) == 1


def test_an_empty_feasible_set_is_refused(make_problem: Maker) -> None:
    made = make_problem(6)
    with pytest.raises(InfeasibleConstraintError, match="smallest possible"):
        run(made.within(float(made.cost.min()) * 0.999), RandomSearch())


def test_without_limits_the_whole_space_is_searched(make_problem: Maker) -> None:
    made = make_problem(7)
    problem = SearchProblem(space=made.space, objective=made.problem.objective)
    result = run(problem, LocalSearch(num_kicks=20))
    assert result.best[0].objective == pytest.approx(made.objective.max(), rel=1e-12)
    assert result.pareto_front == ()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_same_seed_same_search(make_problem: Maker, name: str) -> None:
    made = make_problem(1)
    algorithm, budget = make_algorithm(algorithm=name), SearchBudget(max_evaluations=500)
    first, again, other = (
        run(made.problem, algorithm, seed, budget=budget).history.tolist() for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


def test_top_k_are_the_best_distinct_ones_evaluated(make_problem: Maker) -> None:
    made = make_problem(2)
    result = run(made.problem, make_algorithm(effort="standard"), num_best=5)
    feasible = np.sort(made.objective[made.cost <= made.problem.constraints[0].limit])[::-1]
    assert [c.objective for c in result.best] == pytest.approx(feasible[:5].tolist(), rel=1e-12)


def test_front_is_that_of_everything_evaluated(make_problem: Maker) -> None:
    made = make_problem(2)
    counting = CountingObjective(made.problem.objective)
    problem = replace(made.problem, objective=counting)
    result = run(
        problem, make_algorithm(algorithm="random"), budget=SearchBudget(max_evaluations=300)
    )
    keys = {row.tobytes(): i for i, row in enumerate(made.rows)}
    asked = np.array([keys[key] for key in counting.asked])
    cost, objective = made.cost[asked], made.objective[asked]
    indices = pareto_indices(objective, cost)
    assert len(indices) > 3
    front = [(c.costs["latency_ms"], c.objective) for c in result.pareto_front]
    expected = list(zip(cost[indices].tolist(), objective[indices].tolist(), strict=True))
    assert front == [pytest.approx(point, rel=1e-12) for point in expected]


@pytest.mark.parametrize("seed", range(3))
def test_whole_front_is_that_of_all_networks(make_problem: Maker, seed: int) -> None:
    """The area under the front, over all limits, is nearly the greatest possible."""
    made = make_problem(seed)
    problem = made.within(float(made.cost.max()))
    budget = SearchBudget(max_evaluations=2500)
    result = run(problem, whole_front(), budget=budget)
    limits = np.linspace(made.cost.min(), made.cost.max(), 40)

    def reached(front: Sequence[Candidate]) -> list[float]:
        return [max(c.objective for c in front if c.costs["latency_ms"] <= x) for x in limits]

    ideal = np.array([made.optimum(limit) for limit in limits])
    lost = ideal - np.array(reached(result.pareto_front))
    assert (lost >= -1e-9).all()
    assert lost.mean() < 0.01 * np.ptp(ideal)
    one_end = run(problem, make_algorithm(algorithm="restarts"), budget=budget)
    shared = limits >= one_end.pareto_front[0].costs["latency_ms"]
    lost_by_one_end = ideal[shared] - np.array(
        [
            max(c.objective for c in one_end.pareto_front if c.costs["latency_ms"] <= x)
            for x in limits[shared]
        ]
    )
    assert lost[shared].mean() <= lost_by_one_end.mean()


def test_a_front_wants_a_limit(make_problem: Maker) -> None:
    made = make_problem(0)
    problem = replace(made.problem, constraints=())
    with pytest.raises(ConfigError, match="Pareto"):
        run(problem, whole_front())


def test_progress_tells_the_best_feasible_objective(make_problem: Maker) -> None:
    made = make_problem(5)
    told: list[tuple[int, float]] = []
    result = run(
        made.problem,
        LocalSearch(num_kicks=3),
        progress=lambda num, best: told.append((num, best)),
    )
    assert told == sorted(told)
    assert told[-1] == (result.num_unique, result.best[0].objective)
    history = result.history
    assert all(best == history[num - 1] for num, best in told)


def test_mutation_redraws_each_place_with_its_probability(make_problem: Maker) -> None:
    """A redrawn place differs unless the same choice comes again."""
    space = make_problem(0).space
    deep = np.full((20_000, len(space.dimensions)), 1, dtype=np.uint8)
    mutants = mutate(space, deep, 0.3, np.random.default_rng(0))
    for column in (0, 1, space.columns("resolution")[0]):
        other = 1 - 1 / space.num_choices[column]
        assert (mutants[:, column] != 1).mean() == pytest.approx(0.3 * other, abs=0.012)


def test_budgets(make_problem: Maker) -> None:
    made = make_problem(0)
    unlimited = made.within(float(made.cost.max()))
    assert run(unlimited, RandomSearch(), budget=SearchBudget(max_evaluations=7)).num_unique == 7
    timed = run(unlimited, RandomSearch(), budget=SearchBudget(max_seconds=1e-9))
    assert timed.num_unique <= RandomSearch().batch_size
    for wrong in ({"max_evaluations": 0}, {"max_seconds": 0.0}, {"max_seconds": float("nan")}):
        with pytest.raises(ConfigError):
            SearchBudget(**cast(Any, wrong))


def test_unknown_names_give_the_nearest() -> None:
    with pytest.raises(UnknownNameError) as caught:
        make_algorithm(algorithm="evolutoin")
    assert caught.value.hint is not None
    assert "evolution" in caught.value.hint
    with pytest.raises(UnknownNameError, match="effort"):
        make_algorithm(effort="lazy")


@given(st.lists(st.tuples(st.integers(0, 8).map(float), st.integers(0, 8).map(float)), max_size=40))
def test_pareto_front_is_the_non_dominated_set(points: list[tuple[float, float]]) -> None:
    objective = np.array([p[0] for p in points], dtype=float)
    cost = np.array([p[1] for p in points], dtype=float)
    indices = pareto_indices(objective, cost).tolist()
    expected = {
        (o, c)
        for o, c in points
        if not any(o2 >= o and c2 <= c and (o2, c2) != (o, c) for o2, c2 in points)
    }
    assert {(objective[i], cost[i]) for i in indices} == expected
    assert len(indices) == len(expected)
    assert cost[indices].tolist() == sorted(cost[indices])
