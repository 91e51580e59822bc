"""Populations to train and to test an accuracy predictor on.

Uniform sampling is not enough: a search goes to the extremes, where one choice
prevails and the accuracy is high for its cost. Half of a diverse population
therefore has its own odds in every row, and a front population has climbed.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from effdl.search.space import Population, SearchSpace

__all__ = ["one_hot_inputs", "sample_biased", "sample_front"]

# Low concentrations make rows in which one choice prevails.
_CONCENTRATION = 0.6


def one_hot_inputs(
    population: Population,
    space: SearchSpace,
    *,
    inputs: Sequence[tuple[str, int, tuple[float, ...]]],
    anchors: Sequence[int],
) -> NDArray[np.float32]:
    """A predictor's inputs [N, num_inputs]: see `search.predictor_file`.

    Args:
        population: Rows [N, num_dimensions].
        space: Their space; its resolutions are anchors.
        inputs: ``(dimension name, number of positions, choices)`` in order.
        anchors: Resolutions that have an input, in pixels.
    """
    active = space.active(population)
    blocks = []
    names = [(name, choices) for name, _, choices in inputs]
    for name, choices in (*names, ("resolution", tuple(map(float, anchors)))):
        for column in space.columns(name):
            values = np.array(space.dimensions[column].choices, dtype=np.float64)
            codes = values[:, None] == np.array(choices)
            blocks.append(codes[population[:, column]] & active[:, column, None])
    return np.concatenate(blocks, axis=1).astype(np.float32)


def sample_biased(space: SearchSpace, num: int, rng: np.random.Generator) -> Population:
    """Canonical rows [num, num_dimensions] with odds of their own in every row.

    In a row, all dimensions of one name share their odds, drawn from a
    symmetric Dirichlet distribution; the resolution is uniform.
    """
    population = space.sample(num, rng)
    for name in dict.fromkeys(d.name for d in space.dimensions if d.name != "resolution"):
        columns = space.columns(name)
        num_choices = len(space.dimensions[columns[0]].choices)
        odds = rng.dirichlet([_CONCENTRATION] * num_choices, num).cumsum(axis=1)
        draws = rng.random((num, len(columns)), dtype=np.float32)
        population[:, columns] = sum(
            (draws > odds[:, i, None]).astype(np.uint8) for i in range(num_choices - 1)
        )
    return space.canonicalize(population)


def sample_front(
    space: SearchSpace,
    costs: Sequence[Callable[[Population], NDArray[np.float64]]],
    accuracy: Callable[[Population], NDArray[np.float64]],
    num: int,
    rng: np.random.Generator,
    *,
    num_steps: int = 60,
) -> Population:
    """Canonical rows [num, num_dimensions] on their way to Pareto fronts.

    Many rows climb at once, each by random changes that are kept if accuracy
    minus its own weight times one of the costs grows; the rows of the later
    half of the steps are returned, so near and far ones mix.

    Args:
        space: The search space.
        costs: Costs [N] of a population, in any unit.
        accuracy: Accuracy [N] of a population, in any unit.
        num: Rows wanted.
        rng: Source of every draw.
        num_steps: Changes tried on each row.
    """
    kept_steps = num_steps // 2
    num_climbers = -(-num // kept_steps)
    rows = sample_biased(space, num_climbers, rng)
    reference = space.sample(4096, rng)
    spread = float(accuracy(reference).std())
    which = rng.integers(len(costs), size=num_climbers)
    scale = np.array([float(cost(reference).std()) for cost in costs])
    weight = (spread / scale)[which] * np.exp(rng.normal(0.0, 1.0, num_climbers))

    def score(population: Population) -> NDArray[np.float64]:
        cost = np.stack([cost(population) for cost in costs], axis=1)
        return accuracy(population) - weight * cost[np.arange(num_climbers), which]

    best = score(rows)
    visited = []
    for step in range(num_steps):
        change_prob = 0.15 * (1.0 - step / num_steps) + 0.02
        changed = rng.random(rows.shape) < change_prob
        trial = space.canonicalize(np.where(changed, space.sample(num_climbers, rng), rows))
        trial_score = score(trial)
        better = trial_score > best
        rows[better], best[better] = trial[better], trial_score[better]
        if step >= num_steps - kept_steps:
            # What was tried is as near the front as what was kept, and never the same twice.
            visited.append(trial)
    return np.concatenate(visited)[:num]
