"""Several parts of one latency table become one."""

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from effdl.errors import ConfigError, TableMismatchError
from effdl.targets.latency_table import LatencyEntry, LatencyTable, TableHeader

__all__ = ["Preference", "merge_tables"]

Preference = Literal["first", "lowest"]
"""Which of two different rows for one operator is kept."""

_MAX_NAMED = 3
_BETWEEN_ORIGINS = "; "


def merge_tables(
    tables: Sequence[LatencyTable], *, prefer: Preference | None = None
) -> LatencyTable:
    """One table with the rows of all, in the order of their keys.

    But with ``prefer="first"``, the order of the tables does not matter, nor how they
    are grouped, nor how often one is given. Headers must be equal but for their
    origins, which are joined.

    Args:
        tables: At least one.
        prefer: What to keep of rows that differ for the same operator and resolution:
            that of the table given first, or the one with the lowest latency; None:
            such rows are an error.

    Raises:
        ConfigError: There are no tables.
        TableMismatchError: The headers differ, or rows do.
    """
    if not tables:
        raise ConfigError("wanted at least one table to merge, got none")
    header = tables[0].header
    for table in tables[1:]:
        _check_equal(header, table.header)
    rows: dict[tuple[str, int], LatencyEntry] = {}
    clashes: set[str] = set()
    for table in tables:
        for entry in table.entries:
            identity = (entry.key, entry.resolution or 0)
            known = rows.setdefault(identity, entry)
            if known == entry:
                continue
            clashes.add(entry.key)
            if prefer == "lowest":
                rows[identity] = min(known, entry, key=_order)
    if clashes and prefer is None:
        named = ", ".join(sorted(clashes)[:_MAX_NAMED])
        raise TableMismatchError(
            f"the tables differ in {len(clashes)} of the operators they share, such as {named}",
            hint="--prefer lowest or --prefer first says which row to keep; "
            "effdl table diff A.jsonl B.jsonl shows both",
        )
    return LatencyTable(
        header=msgspec.structs.replace(header, origin=_join(t.header.origin for t in tables)),
        entries=tuple(rows[identity] for identity in sorted(rows)),
    )


def _check_equal(wanted: TableHeader, got: TableHeader) -> None:
    for name in TableHeader.__struct_fields__:
        values = getattr(wanted, name), getattr(got, name)
        if name != "origin" and values[0] != values[1]:
            raise TableMismatchError(
                f"the tables differ in {name}: wanted {values[0]!r} as in the first, "
                f"got {values[1]!r}",
                hint="only parts of one table can be merged: latencies of one device, runtime, "
                "batch size, number format and number of threads",
            )


def _order(entry: LatencyEntry) -> tuple[float, bytes]:
    """The lowest latency first; of equal ones any, but always the same."""
    return entry.latency_ms, msgspec.json.encode(entry)


def _join(origins: Iterable[str]) -> str:
    different = set(origins)
    if len(different) == 1:
        return different.pop()
    parts = {part for origin in different for part in origin.split(_BETWEEN_ORIGINS) if part}
    return _BETWEEN_ORIGINS.join(sorted(parts))
