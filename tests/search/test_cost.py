"""Lookup costs against plain sums, and the exact minimum against trying everything."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effdl.search.cost import LookupCost
from effdl.search.minimum import SlotMinimizer, minimize_cost

Maker = Callable[[int], Any]


def occupied(made: Any, row: np.ndarray) -> list[float]:
    """The values of a row's occupied positions, by walking the definition."""
    picked = []
    for table, position in zip(made.values, made.positions, strict=True):
        if position.gate is not None and row[position.gate[0]] < position.gate[1]:
            continue
        shape = [len(made.space.dimensions[d].choices) for d in position.dimensions]
        picked.append(float(table.reshape(shape)[tuple(row[d] for d in position.dimensions)]))
    return picked


def as_maximum(made: Any) -> LookupCost:
    cost = made.problem.constraints[0].cost
    return LookupCost(name="peak", index=cost.index, values=cost.values, reduction="max")


def test_sum_and_maximum_are_over_occupied_positions(make_problem: Maker) -> None:
    made = make_problem(0)
    maximum = as_maximum(made)(made.rows)
    for i in range(0, len(made.rows), 37):
        values = occupied(made, made.rows[i])
        assert made.cost[i] == pytest.approx(sum(values), rel=1e-14)
        assert maximum[i] == max(values)


def test_number_of_networks_by_hand(make_problem: Maker) -> None:
    """A unit has 6 one-block and 36 two-block forms; two units, three resolutions."""
    assert len(make_problem(0).rows) == (6 + 36) ** 2 * 3


@pytest.mark.parametrize("seed", range(5))
def test_minimum_is_that_of_all_networks(make_problem: Maker, seed: int) -> None:
    made = make_problem(seed)
    row, minimum = minimize_cost(made.space, made.problem.constraints[0].cost)
    assert minimum == pytest.approx(made.cost.min(), rel=1e-14)
    assert row.tolist() == made.rows[made.cost.argmin()].tolist()
    peak = as_maximum(made)
    _, least_peak = minimize_cost(made.space, peak)
    assert least_peak == peak(made.rows).min()


def test_many_tables_are_minimised_at_once(make_problem: Maker) -> None:
    made = make_problem(1)
    index = made.problem.constraints[0].cost.index
    tables = np.random.default_rng(3).normal(size=(7, index.num_codes))
    rows, minima = SlotMinimizer(made.space, index).minimize(tables)
    for table, row, minimum in zip(tables, rows, minima, strict=True):
        costs = LookupCost(name="c", index=index, values=table)(made.rows)
        assert minimum == pytest.approx(costs.min(), rel=1e-12)
        assert made.rows[costs.argmin()].tolist() == row.tolist()


def test_forbidden_everywhere_is_infinite(make_problem: Maker) -> None:
    made = make_problem(1)
    index = made.problem.constraints[0].cost.index
    table = np.zeros((1, index.num_codes))
    table[0, : index.sizes[0]] = np.inf
    _, minima = SlotMinimizer(made.space, index).minimize(table)
    assert minima.tolist() == [np.inf]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_samples_are_canonical_and_within_the_space(make_problem: Maker, seed: int) -> None:
    made = make_problem(0)
    rows = made.space.sample(50, np.random.default_rng(seed))
    known = {row.tobytes() for row in made.rows}
    assert {row.tobytes() for row in rows} <= known
