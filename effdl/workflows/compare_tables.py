"""Where two latency tables differ."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from effdl.errors import ConfigError
from effdl.targets.latency_table import LatencyTable, TableHeader

__all__ = ["RowRatio", "TableDifference", "compare_tables"]

_DESCRIBED = ("target", "device", "runtime", "batch_size", "statistic", "dtype", "num_threads")


class RowRatio(NamedTuple):
    """A row that both tables have.

    Attributes:
        key: The operator.
        resolution: Input resolution of the network in pixels, where the tables tell.
        a_ms: Milliseconds in the first table.
        b_ms: Milliseconds in the second.
        ratio: Second over first.
    """

    key: str
    resolution: int | None
    a_ms: float
    b_ms: float
    ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TableDifference:
    """Two tables, row by row.

    Attributes:
        headers: Of the first and the second.
        only_in_a: (key, resolution) of rows that the second lacks, in order.
        only_in_b: (key, resolution) of rows that the first lacks, in order.
        common: Rows that both have, in order.
        over_percent: From which difference on a row counts as changed.
    """

    headers: tuple[TableHeader, TableHeader]
    only_in_a: tuple[tuple[str, int | None], ...]
    only_in_b: tuple[tuple[str, int | None], ...]
    common: tuple[RowRatio, ...]
    over_percent: float

    @property
    def changed(self) -> list[RowRatio]:
        """Common rows that differ by more than ``over_percent`` of the first, worst first."""
        found = [row for row in self.common if 100 * abs(row.ratio - 1) > self.over_percent]
        return sorted(found, key=lambda row: (-abs(np.log(row.ratio)), row.key))

    @property
    def ratio(self) -> dict[str, float] | None:
        """Percentiles of second over first; ``worst`` is the one furthest from 1."""
        if not self.common:
            return None
        ratios = np.array([row.ratio for row in self.common])
        p5, median, p95 = np.percentile(ratios, [5, 50, 95]).tolist()
        worst = float(ratios[np.abs(np.log(ratios)).argmax()])
        return {"p5": p5, "median": median, "p95": p95, "worst": worst}

    def to_json(self) -> dict[str, Any]:
        """The object of the contract, without ``schema_version``."""
        a, b = ({name: getattr(h, name) for name in _DESCRIBED} for h in self.headers)
        return {
            "a": a,
            "b": b,
            "num_common": len(self.common),
            "only_in_a": [{"key": key, "resolution": size} for key, size in self.only_in_a],
            "only_in_b": [{"key": key, "resolution": size} for key, size in self.only_in_b],
            "ratio": self.ratio,
            "over_percent": self.over_percent,
            "changed": [row._asdict() for row in self.changed],
        }


def compare_tables(
    a: LatencyTable, b: LatencyTable, *, over_percent: float = 5.0
) -> TableDifference:
    """Set two tables beside each other; they may be of different devices.

    Args:
        a: The first.
        b: The second.
        over_percent: From which difference on a row counts as changed.

    Raises:
        ConfigError: The percentage is negative or not a number.
    """
    if not over_percent >= 0:
        raise ConfigError(f"wanted a percentage of 0 or more, got {over_percent:g}")
    first, second = _rows(a), _rows(b)
    common = sorted(first.keys() & second.keys())
    return TableDifference(
        headers=(a.header, b.header),
        only_in_a=tuple(_named(row) for row in sorted(first.keys() - second.keys())),
        only_in_b=tuple(_named(row) for row in sorted(second.keys() - first.keys())),
        common=tuple(
            RowRatio(*_named(row), first[row], second[row], second[row] / first[row])
            for row in common
        ),
        over_percent=over_percent,
    )


def _rows(table: LatencyTable) -> Mapping[tuple[str, int], float]:
    """Milliseconds by key and resolution, 0 where there is none."""
    return {(entry.key, entry.resolution or 0): entry.latency_ms for entry in table.entries}


def _named(row: tuple[str, int]) -> tuple[str, int | None]:
    return row[0], row[1] or None
