"""Ready-made algorithms, by effort and by name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from effdl.errors import UnknownNameError
from effdl.search.algorithm import SearchAlgorithm
from effdl.search.evolution import EvolutionSearch, ofa_evolution
from effdl.search.local_search import LocalSearch, RestartedSearch
from effdl.search.random_search import RandomSearch

__all__ = ["ALGORITHMS", "EFFORTS", "fast", "make_algorithm", "standard", "thorough"]


def fast() -> EvolutionSearch:
    """Evolution with Once-for-All's settings: 50,100 evaluations."""
    return ofa_evolution()


def standard() -> RestartedSearch:
    """Two evolutions and local search."""
    return RestartedSearch(
        num_restarts=3,
        evolution=EvolutionSearch(num_generations=100),
        local=LocalSearch(num_kicks=6),
    )


def thorough() -> RestartedSearch:
    """Many evolutions and local searches."""
    return RestartedSearch(
        num_restarts=12,
        evolution=EvolutionSearch(num_generations=200),
        local=LocalSearch(num_kicks=8),
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
