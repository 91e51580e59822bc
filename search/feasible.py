"""The feasible networks of a problem: whether there are any, and the way to them."""

import numpy as np
from numpy.typing import NDArray

from effdl.errors import InfeasibleConstraintError
from effdl.search.constraint import Constraint
from effdl.search.minimum import SlotMinimizer, minimize_cost
from effdl.search.problem import SearchProblem
from effdl.search.space import Population

__all__ = ["FeasibleRegion"]

# Fractions of the dimensions that a repair sets, in the order it tries them.
_REPAIR_LEVELS = (np.arange(1, 9, dtype=np.float32)[:, None, None] / 8) ** 2
_WEIGHT_STEPS = 60
_MENDING_STEPS, _MENDING_SIZE = 200, 128


class FeasibleRegion:
    """The canonical rows of a space that keep every limit of a problem.

    At least one such row, the anchor, is known; every other row can be moved
    towards it until it is feasible too.

    Args:
        problem: What is searched for.
        anchor: A row [num_dimensions] known to be feasible; None: looked for.

    Attributes:
        problem: What is searched for.
        anchor: A feasible row [num_dimensions]; with one constraint the
            cheapest of the space, where none was given.

    Raises:
        InfeasibleConstraintError: No row keeps every limit (proven), or none
            was found; the message says which.
    """

    def __init__(self, problem: SearchProblem, *, anchor: NDArray[np.uint8] | None = None) -> None:
        self.problem = problem
        self.anchor = _find_anchor(problem) if anchor is None else anchor

    def contains(self, population: Population) -> NDArray[np.bool_]:
        """Which canonical rows keep every limit [N]."""
        constraints = self.problem.constraints
        inside = np.ones(len(population), dtype=np.bool_)
        codes, index = None, None
        for constraint in constraints:
            cost = constraint.cost
            if codes is None or cost.index is not index:
                codes, index = cost.index.codes(population), cost.index
            inside &= cost.of_codes(codes) <= constraint.limit
        return inside

    def sample(self, num: int, rng: np.random.Generator) -> Population:
        """Feasible rows [num, num_dimensions]: uniform draws, repaired."""
        return self.repair(self.problem.space.sample(num, rng), rng)

    def repair(self, population: Population, rng: np.random.Generator) -> Population:
        """Feasible rows from any canonical rows [N, num_dimensions].

        A feasible row stays as it is. Of another one a random set of dimensions
        takes the anchor's choices: the smallest of a fixed number of nested
        sets that is enough. The largest is all of them, so this always ends
        well.
        """
        repaired = population.copy()
        wrong = np.flatnonzero(~self.contains(population))
        if len(wrong) == 0:
            return repaired
        rows = population[wrong]
        place = rng.random(rows.shape, dtype=np.float32)
        mixed = np.where(place < _REPAIR_LEVELS, self.anchor, rows)
        levels, num, num_dimensions = mixed.shape
        mixed = self.problem.space.canonicalize(mixed.reshape(-1, num_dimensions))
        inside = self.contains(mixed).reshape(levels, num)
        first = inside.argmax(axis=0)
        repaired[wrong] = mixed.reshape(levels, num, num_dimensions)[first, np.arange(num)]
        return repaired


def _find_anchor(problem: SearchProblem) -> NDArray[np.uint8]:
    space, constraints = problem.space, problem.constraints
    if not constraints:
        return np.zeros(len(space.dimensions), dtype=np.uint8)
    minima = [minimize_cost(space, constraint.cost) for constraint in constraints]
    for constraint, (_, minimum) in zip(constraints, minima, strict=True):
        if minimum > constraint.limit:
            raise _infeasible(
                problem,
                [minimum for _, minimum in minima],
                f"no network of {space.name} meets {constraint.name} <= {constraint.limit:g} "
                f"({constraint.cost.name}): the smallest possible is {minimum:.6g}",
            )
    rows = np.stack([row for row, _ in minima])
    violation = problem.violation(rows)
    if violation.min() > 0:
        rows = np.concatenate([rows, _weighted_minima(problem, [m for _, m in minima])])
        violation = problem.violation(rows)
    if violation.min() > 0:
        rows = _mend(problem, rows)
        violation = problem.violation(rows)
    best = int(violation.argmin())
    if violation[best] > 0:
        wanted = ", ".join(f"{c.name} <= {c.limit:g} ({c.cost.name})" for c in constraints)
        got = ", ".join(f"{c.name} {c.cost(rows[best : best + 1])[0]:.6g}" for c in constraints)
        raise _infeasible(
            problem,
            [minimum for _, minimum in minima],
            f"no network of {space.name} was found that meets {wanted} together (each one alone "
            f"can be met; not proven impossible): the nearest found has {got}",
        )
    return rows[best]


def _infeasible(
    problem: SearchProblem, minima: list[float], message: str
) -> InfeasibleConstraintError:
    names = [constraint.cost.name for constraint in problem.constraints]
    fastest = minima[names.index("latency_ms")] if "latency_ms" in names else None
    smallest = ", ".join(
        f"{c.name} {m:.6g}" for c, m in zip(problem.constraints, minima, strict=True)
    )
    return InfeasibleConstraintError(
        message,
        fastest_latency_ms=fastest,
        hint=f"raise the limit: the smallest possible, each alone, is {smallest}",
    )


def _weighted_minima(problem: SearchProblem, minima: list[float]) -> Population:
    """Minimisers of weighted sums of the relative costs, weights adapted to the violations.

    A limit on a maximum forbids single codes, so it is kept exactly. A limit on
    a sum is priced: whichever is exceeded most gets dearer. Where the cheapest
    weighted sum exceeds its weights, no row can keep all limits.

    Raises:
        InfeasibleConstraintError: Proven so.
    """
    constraints = problem.constraints
    index = constraints[0].cost.index
    if any(c.cost.index is not index for c in constraints):
        return np.empty((0, len(problem.space.dimensions)), dtype=np.uint8)
    minimizer = SlotMinimizer(problem.space, index)
    forbidden = np.zeros(index.num_codes, dtype=np.bool_)
    priced: list[Constraint] = []
    for constraint in constraints:
        if constraint.cost.reduction == "max":
            forbidden |= constraint.cost.values > constraint.limit
        else:
            priced.append(constraint)
    relative = np.array([c.cost.values / c.limit for c in priced]).reshape(len(priced), -1)
    weights = np.full(len(priced), 1.0 / max(1, len(priced)))
    found = []
    for step in range(_WEIGHT_STEPS):
        table = np.where(forbidden, np.inf, weights @ relative)
        row, bound = minimizer.minimize(table[None])
        if bound[0] > weights.sum() * (1 + 1e-9):
            wanted = ", ".join(f"{c.name} <= {c.limit:g}" for c in constraints)
            raise _infeasible(
                problem,
                minima,
                f"no network of {problem.space.name} meets {wanted} together, though each one "
                "alone can be met (proven by a weighted sum of the costs)",
            )
        found.append(row[0])
        if problem.violation(row)[0] == 0 or len(priced) < 2:
            break
        excess = np.array([c.cost(row)[0] / c.limit for c in priced])
        weights = weights * np.exp((excess - excess.mean()) * 4.0 / np.sqrt(1.0 + step))
        weights /= weights.sum()
    return np.stack(found)


def _mend(problem: SearchProblem, rows: Population) -> Population:
    """Breed rows towards the least worst violation, until one keeps every limit.

    A small evolution of its own: the objective plays no part, and its random
    numbers are fixed, so whether a region has an anchor depends on the problem alone.
    """
    space, rng = problem.space, np.random.default_rng(0)
    violation = problem.violation(rows)
    for _ in range(_MENDING_STEPS):
        if violation.min() == 0:
            break
        parents = rng.integers(len(rows), size=(2, _MENDING_SIZE))
        shape = (_MENDING_SIZE, rows.shape[1])
        children = np.where(rng.random(shape) < 0.5, *rows[parents])
        fresh = rng.integers(0, space.num_choices, size=shape, dtype=np.uint8)
        children = np.where(rng.random(shape) < 2.0 / shape[1], fresh, children)
        every = np.concatenate([rows, space.canonicalize(children)])
        every = np.unique(every, axis=0)
        violation = problem.violation(every)
        kept = violation.argsort(kind="stable")[:_MENDING_SIZE]
        rows, violation = every[kept], violation[kept]
    return rows
