"""Ready-made algorithms, by effort and by name."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from effdl.errors import UnknownNameError
from effdl.search.algorithm import SearchAlgorithm
from effdl.search.evolution import EvolutionSearch, ofa_evolution
from effdl.search.local_search import LocalSearch
from effdl.search.pareto import ParetoSearch
from effdl.search.random_search import RandomSearch
from effdl.search.restarts import RestartedSearch

__all__ = [
    "ALGORITHMS",
    "EFFORTS",
    "fast",
    "make_algorithm",
    "standard",
    "thorough",
    "whole_front",
]


def fast() -> EvolutionSearch:
    """Evolution with Once-for-All's settings: 50,100 evaluations."""
    return ofa_evolution()


def standard() -> RestartedSearch:
    """Two dozen short evolutions, each finished by local search: some 150,000 evaluations."""
    return RestartedSearch(
        num_restarts=26,
        evolution=EvolutionSearch(population_size=50, num_generations=15),
        local=LocalSearch(num_kicks=2),
    )


def thorough() -> RestartedSearch:
    """The same five times as often: some 750,000 evaluations."""
    return replace(standard(), num_restarts=130)


def whole_front() -> ParetoSearch:
    """Sixteen limits up to the one given: some 60,000 evaluations."""
    return ParetoSearch(
        num_limits=16,
        evolution=EvolutionSearch(num_generations=20),
        local=LocalSearch(num_kicks=1),
    )


EFFORTS: Mapping[str, Callable[[], SearchAlgorithm]] = MappingProxyType(
    {"fast": fast, "standard": standard, "thorough": thorough}
)
ALGORITHMS: Mapping[str, Callable[[], SearchAlgorithm]] = MappingProxyType(
    {
        "evolution": ofa_evolution,
        "random": RandomSearch,
        "local": lambda: LocalSearch(num_kicks=64),
        "restarts": standard,
        "pareto": whole_front,
    }
)


def make_algorithm(*, effort: str = "standard", algorithm: str | None = None) -> SearchAlgorithm:
    """The algorithm of that name, or, where none is named, the one of that effort.

    Raises:
        UnknownNameError: No such effort or algorithm.
    """
    kind, name, known = (
        ("effort", effort, EFFORTS) if algorithm is None else ("algorithm", algorithm, ALGORITHMS)
    )
    if name not in known:
        raise UnknownNameError(kind, name, known)
    return known[name]()
