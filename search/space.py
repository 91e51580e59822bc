"""Search spaces: dimensions, their choices, and which of them count.

A population is a uint8 array [N, num_dimensions] of choice indices. A dimension
that its gate switches off is inactive; its index is then 0 in every canonical
row, so equal networks are equal rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from effdl.errors import ConfigError

__all__ = ["Dimension", "Gate", "Population", "SearchSpace", "SubnetConfig"]

Population = NDArray[np.uint8]

_ALIASES = {"ks": "kernel_size", "e": "expand_ratio", "d": "depth", "r": "resolution"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Switches a dimension on once another one has reached a choice.

    Attributes:
        dimension: Index of the gating dimension.
        minimum: The gated dimension is active iff the gating dimension's
            choice index is at least this.
    """

    dimension: int
    minimum: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimension:
    """One thing that can vary.

    Attributes:
        name: Its name in a configuration, shared by all positions.
        position: Index within that name's list, or None for a single value.
        choices: The values, in increasing order.
        gate: When the dimension counts; None: always.
    """

    name: str
    position: int | None
    choices: tuple[int | float, ...]
    gate: Gate | None = None


class SubnetConfig(Mapping[str, "int | float | tuple[int | float, ...]"]):
    """One sub-network: an immutable, hashable mapping from name to value or values.

    Lists are unit-major; 0 stands at inactive positions.
    """

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, int | float | Sequence[int | float]]) -> None:
        self._items: dict[str, int | float | tuple[int | float, ...]] = {
            name: tuple(value) if isinstance(value, Sequence) else value
            for name, value in items.items()
        }

    def __getitem__(self, name: str) -> int | float | tuple[int | float, ...]:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(tuple(self._items.items()))

    def __repr__(self) -> str:
        return f"SubnetConfig({self._items!r})"

    def ints(self, name: str) -> tuple[int, ...]:
        """The list called ``name`` as integers; a single value is a list of one."""
        value = self._items[name]
        return tuple(int(v) for v in (value if isinstance(value, tuple) else (value,)))

    def to_json(self) -> dict[str, object]:
        """The mapping with plain lists, ready for a JSON encoder."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in self._items.items()}


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """An ordered list of dimensions, and the maps to and from configurations.

    Attributes:
        name: Name of the space, such as ``"ofa-mbv3-w1.2"``.
        dimensions: The dimensions; column i of a population is dimension i.
    """

    name: str
    dimensions: tuple[Dimension, ...]

    @cached_property
    def num_choices(self) -> NDArray[np.int64]:
        """Choices of each dimension [num_dimensions]."""
        return np.array([len(d.choices) for d in self.dimensions])

    @cached_property
    def _gates(self) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.uint8]]:
        gated = [(i, d.gate) for i, d in enumerate(self.dimensions) if d.gate is not None]
        return (
            np.array([i for i, _ in gated], dtype=np.intp),
            np.array([g.dimension for _, g in gated], dtype=np.intp),
            np.array([g.minimum for _, g in gated], dtype=np.uint8),
        )

    @cached_property
    def _columns(self) -> dict[str, list[int]]:
        columns: dict[str, list[int]] = {}
        for i, dimension in enumerate(self.dimensions):
            columns.setdefault(dimension.name, []).append(i)
        return columns

    def columns(self, name: str) -> list[int]:
        """Columns of the dimensions called ``name``, by position."""
        return self._columns[name]

    def active(self, population: Population) -> NDArray[np.bool_]:
        """Which dimensions count [N, num_dimensions]."""
        mask = np.ones(population.shape, dtype=np.bool_)
        gated, gating, minimum = self._gates
        mask[:, gated] = population[:, gating] >= minimum
        return mask

    def canonicalize(self, population: Population) -> Population:
        """Set inactive dimensions to 0, in place; returns the same array."""
        gated, gating, minimum = self._gates
        population[:, gated] *= population[:, gating] >= minimum
        return population

    def sample(self, num: int, rng: np.random.Generator) -> Population:
        """Canonical rows [num, num_dimensions], uniform over each dimension's choices."""
        draws = rng.integers(0, self.num_choices, size=(num, len(self.dimensions)), dtype=np.uint8)
        return self.canonicalize(draws)

    def decode(self, row: NDArray[np.uint8]) -> SubnetConfig:
        """The configuration of one row [num_dimensions]; 0 at inactive positions."""
        active = self.active(row[None])[0]
        values: dict[str, int | float | list[int | float]] = {}
        for index, on, dimension in zip(row.tolist(), active, self.dimensions, strict=True):
            value = dimension.choices[index] if on else 0
            if dimension.position is None:
                values[dimension.name] = value
            else:
                values.setdefault(dimension.name, []).append(value)  # type: ignore[union-attr]
        return SubnetConfig(values)

    def encode(self, config: Mapping[str, object]) -> NDArray[np.uint8]:
        """The canonical row [num_dimensions] of one configuration.

        Values at inactive positions are ignored. OFA's short names ``ks e d r``
        are read too, and a single value may come as a list of one.

        Raises:
            ConfigError: A name is missing or unknown, a list has the wrong
                length, or an active value is not among its choices.
        """
        given = {_ALIASES.get(name, name): value for name, value in config.items()}
        unknown = sorted(given.keys() - self._columns.keys())
        missing = sorted(self._columns.keys() - given.keys())
        if unknown or missing:
            wrong = [f"no {name}" for name in missing] + [f"unknown {name}" for name in unknown]
            raise ConfigError(
                f"configuration does not fit space {self.name}: wanted "
                f"{', '.join(self._columns)}, got {', '.join(wrong)}"
            )
        values: list[object] = [None] * len(self.dimensions)
        for name, columns in self._columns.items():
            for column, value in zip(columns, self._as_list(name, given[name]), strict=True):
                values[column] = value
        row = np.zeros(len(self.dimensions), dtype=np.uint8)
        order = sorted(range(len(values)), key=lambda i: self.dimensions[i].gate is not None)
        for i in order:
            dimension = self.dimensions[i]
            gate = dimension.gate
            if gate is not None and row[gate.dimension] < gate.minimum:
                continue
            row[i] = self._choice_index(dimension, values[i])
        return row

    def _as_list(self, name: str, value: object) -> Sequence[object]:
        columns = self._columns[name]
        listed = (
            list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        )
        if len(listed) != len(columns):
            raise ConfigError(
                f"configuration does not fit space {self.name}: wanted {len(columns)} "
                f"values of {name}, got {len(listed)}"
            )
        return listed

    def _choice_index(self, dimension: Dimension, value: object) -> int:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and value in dimension.choices:
            return dimension.choices.index(value)
        where = "" if dimension.position is None else f" at position {dimension.position}"
        raise ConfigError(
            f"configuration does not fit space {self.name}: {dimension.name}{where} wanted one "
            f"of {', '.join(map(str, dimension.choices))}, got {value!r}"
        )
