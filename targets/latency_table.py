"""Measured operator latencies as a table: JSON lines, one header and one row an entry.

A row belongs to one operator key. Where a device was profiled once for each
input resolution, the same key comes with several values; such rows carry the
resolution they were measured for.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from effdl.errors import CorruptFileError, LatencyTableError, MissingEntryError
from effdl.files import read_limited, write_atomically
from effdl.opspec import OpSpec

__all__ = ["LatencyEntry", "LatencyTable", "TableHeader"]

_MAX_FILE_BYTES = 64 << 20
_MAX_KEYS_NAMED = 3

_Positive = Annotated[float, msgspec.Meta(gt=0.0, le=1e9)]
_NotNegative = Annotated[float, msgspec.Meta(ge=0.0, le=1e9)]
_Count = Annotated[int, msgspec.Meta(ge=1)]
_Key = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=2000)]


class LatencyEntry(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """The latency of one operator.

    Attributes:
        key: Identity of the operator (`effdl.opspec.OpSpec.key`).
        resolution: Input resolution of the network it was measured for, in
            pixels, where the table tells them apart.
        latency_ms: The header's statistic, for the whole batch.
        std_ms: Standard deviation of single runs.
        count: How many runs.
        p50_ms: Median of single runs.
        p95_ms: 95th percentile of single runs.
    """

    key: _Key
    resolution: _Count | None = None
    latency_ms: _Positive
    std_ms: _NotNegative | None = None
    count: _Count | None = None
    p50_ms: _Positive | None = None
    p95_ms: _Positive | None = None


class TableHeader(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """What the entries of a table have in common.

    Attributes:
        target: Name of the target.
        device: The device, as people call it.
        batch_size: Samples in one run.
        runtime: What ran the operators, with its version where known.
        statistic: What ``latency_ms`` is, such as ``"mean"`` or ``"p20"``.
        dtype: Number format.
        num_threads: Threads used, where known.
        origin: Who measured: a public repository, or this program.
        licence: Licence of the figures.
    """

    target: _Text
    device: _Text
    batch_size: _Count
    runtime: _Text
    statistic: _Text
    dtype: _Text = "float32"
    num_threads: _Count | None = None
    origin: str = ""
    licence: str = ""


class _HeaderLine(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False, forbid_unknown_fields=True
):
    schema_version: Literal[1] = 1
    kind: Literal["latency_table"]
    num_entries: Annotated[int, msgspec.Meta(ge=0)]
    header: TableHeader


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """Measured latencies of operators on one device, at one batch size.

    Attributes:
        header: What the entries have in common.
        entries: The rows.

    Raises:
        LatencyTableError: Two entries have the same key and resolution.
    """

    header: TableHeader
    entries: tuple[LatencyEntry, ...]

    def __post_init__(self) -> None:
        repeated = _first_repeated(self.entries)
        if repeated is not None:
            raise LatencyTableError(
                f"table of {self.header.target} has two entries for {self.entries[repeated].key}"
            )

    @property
    def source(self) -> Literal["measured"]:
        """How the latencies came about."""
        return "measured"

    @property
    def interval_percent(self) -> None:
        """Not known of sums of rows."""
        return None

    @property
    def device(self) -> str:
        """The device, as people call it."""
        return self.header.device

    @property
    def batch_size(self) -> int:
        """Samples in one run."""
        return self.header.batch_size

    @property
    def runtime(self) -> str:
        """What ran the operators."""
        return self.header.runtime

    @cached_property
    def resolutions(self) -> tuple[int, ...]:
        """Input resolutions, in pixels, that rows were measured for; may be empty."""
        return tuple(sorted({e.resolution for e in self.entries if e.resolution is not None}))

    @cached_property
    def _latencies_ms(self) -> dict[str, dict[int | None, float]]:
        latencies: dict[str, dict[int | None, float]] = {}
        for entry in self.entries:
            latencies.setdefault(entry.key, {})[entry.resolution] = entry.latency_ms
        return latencies

    def __contains__(self, key: str) -> bool:
        return key in self._latencies_ms

    def predict_op_ms(
        self, ops: Sequence[OpSpec], *, resolutions: Sequence[int] | None = None
    ) -> NDArray[np.float64]:
        """Latencies of operators [len(ops)], in milliseconds for the whole batch.

        Args:
            ops: The operators.
            resolutions: Input resolution of the network each operator stands
                in [len(ops)]. The row measured for that resolution is taken
                where there is one; otherwise the mean over the key's rows.

        Raises:
            MissingEntryError: The table has no row for an operator.
        """
        table = self._latencies_ms
        missing = {op.key: None for op in ops if op.key not in table}
        if missing:
            raise MissingEntryError(
                f"table of {self.header.target} at batch size {self.batch_size} lacks "
                f"{len(missing)} of the operators asked for: {_some(missing)}",
                hint=f"effdl profile --target {self.header.target} measures missing operators; "
                "for a shipped table, choose the space it was measured for",
            )
        wanted = [None] * len(ops) if resolutions is None else resolutions
        return np.array(
            [_pick(table[op.key], resolution) for op, resolution in zip(ops, wanted, strict=True)],
            dtype=np.float64,
        )

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a table from JSON lines.

        Raises:
            ConfigError: The file cannot be opened.
            CorruptFileError: It is not a table, or a line of it is malformed;
                the message names the line.
        """
        lines = read_limited(path, _MAX_FILE_BYTES).split(b"\n")
        if lines[-1] == b"":
            lines.pop()
        head = _decode(_HEADER_DECODER, lines[0] if lines else b"", path, 1)
        if head.num_entries != len(lines) - 1:
            raise CorruptFileError(
                f"{path} is not whole: wanted {head.num_entries} rows after the header, "
                f"got {len(lines) - 1}"
            )
        entries = tuple(
            _decode(_ENTRY_DECODER, line, path, number)
            for number, line in enumerate(lines[1:], start=2)
        )
        repeated = _first_repeated(entries)
        if repeated is not None:
            raise CorruptFileError(
                f"{path}, line {repeated + 2}: second row for {entries[repeated].key}"
            )
        return cls(header=head.header, entries=entries)

    def write(self, path: Path) -> None:
        """Write the table as JSON lines, whole or not at all.

        Raises:
            OutputError: The file cannot be written.
        """
        head = _HeaderLine(kind="latency_table", num_entries=len(self.entries), header=self.header)
        lines = map(msgspec.json.encode, (head, *self.entries))
        write_atomically(path, b"".join(line + b"\n" for line in lines))


_HEADER_DECODER = msgspec.json.Decoder(_HeaderLine)
_ENTRY_DECODER = msgspec.json.Decoder(LatencyEntry)

_T = TypeVar("_T")


def _decode(decoder: msgspec.json.Decoder[_T], line: bytes, path: Path, number: int) -> _T:
    try:
        return decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptFileError(f"{path}, line {number}: {error}") from error


def _pick(by_resolution: dict[int | None, float], resolution: int | None) -> float:
    if resolution in by_resolution:
        return by_resolution[resolution]
    if None in by_resolution:
        return by_resolution[None]
    return sum(by_resolution.values()) / len(by_resolution)


def _first_repeated(entries: Iterable[LatencyEntry]) -> int | None:
    seen: set[tuple[str, int | None]] = set()
    for i, entry in enumerate(entries):
        identity = (entry.key, entry.resolution)
        if identity in seen:
            return i
        seen.add(identity)
    return None


def _some(keys: Iterable[str]) -> str:
    named = list(keys)
    more = len(named) - _MAX_KEYS_NAMED
    return ", ".join(named[:_MAX_KEYS_NAMED]) + (f" and {more} more" if more > 0 else "")
