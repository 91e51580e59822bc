"""Feasibility: repairs, anchors, and an honest no."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effdl.errors import ConfigError, InfeasibleConstraintError
from effdl.search.constraint import Constraint
from effdl.search.cost import LookupCost
from effdl.search.feasible import FeasibleRegion
from effdl.search.problem import SearchProblem

Maker = Callable[[int], Any]


def two_limits(made: Any, first: float, second: float) -> SearchProblem:
    """The made latency and another made cost on the same slots."""
    cost = made.problem.constraints[0].cost
    values = np.random.default_rng(99).uniform(0.5, 3.0, len(cost.values))
    empty = np.cumsum(cost.index.sizes + 1) - 1
    values[empty] = 0.0
    other = LookupCost(name="macs", index=cost.index, values=values)
    return SearchProblem(
        space=made.space,
        objective=made.problem.objective,
        constraints=(
            Constraint(name="latency", limit=first, cost=cost),
            Constraint(name="macs", limit=second, cost=other),
        ),
    )


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0.0, 1.0))
def test_repair_is_feasible_canonical_and_leaves_feasible_rows(
    make_problem: Maker, seed: int, share: float
) -> None:
    made = make_problem(2)
    limit = made.cost.min() + share * (made.cost.max() - made.cost.min())
    region = FeasibleRegion(made.within(limit))
    rng = np.random.default_rng(seed)
    rows = made.space.sample(60, rng)
    repaired = region.repair(rows, rng)
    cost = made.problem.constraints[0].cost
    assert (cost(repaired) <= limit).all()
    assert (repaired == made.space.canonicalize(repaired.copy())).all()
    inside = cost(rows) <= limit
    assert (repaired[inside] == rows[inside]).all()


def test_the_minimum_itself_is_feasible_and_just_below_is_not(make_problem: Maker) -> None:
    made = make_problem(3)
    minimum = float(made.cost.min())
    region = FeasibleRegion(made.within(minimum))
    assert region.anchor.tolist() == made.rows[made.cost.argmin()].tolist()
    with pytest.raises(InfeasibleConstraintError) as caught:
        FeasibleRegion(made.within(minimum * (1 - 1e-12)))
    assert caught.value.fastest_latency_ms == pytest.approx(minimum, rel=1e-14)


@pytest.mark.parametrize("seed", range(8))
def test_two_limits_are_met_together_wherever_they_can_be(make_problem: Maker, seed: int) -> None:
    """The tightest second limit that some network within the first one meets."""
    made = make_problem(seed)
    first = float(np.quantile(made.cost, 0.02))
    other = two_limits(made, first, 1.0).constraints[1].cost(made.rows)
    tightest = float(other[made.cost <= first].min())
    region = FeasibleRegion(two_limits(made, first, tightest * 1.05))
    assert region.contains(region.anchor[None]).all()
    with pytest.raises(InfeasibleConstraintError):
        FeasibleRegion(two_limits(made, first, tightest * 0.999999))


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan"), float("inf")])
def test_a_limit_must_be_positive_and_finite(make_problem: Maker, limit: float) -> None:
    with pytest.raises(ConfigError, match="positive number"):
        make_problem(0).within(limit)


def test_violation_is_relative(make_problem: Maker) -> None:
    made = make_problem(0)
    limit = float(np.median(made.cost))
    violation = made.within(limit).violation(made.rows)
    assert violation == pytest.approx(np.maximum(made.cost / limit - 1, 0), abs=1e-12)
    assert ((violation == 0) == (made.cost <= limit)).all()
