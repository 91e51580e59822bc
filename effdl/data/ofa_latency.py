"""Measured latencies of Once-for-All sub-networks, as CSV.

One row is one sub-network: ``kernel_size``, ``expand_ratio`` and ``depth`` are
lists joined by hyphens, unit-major; ``resolution`` is in pixels; latencies are in
milliseconds for the whole batch. The published file holds 4,000 rows with one
latency column for each device and batch size (github.com/HayeonLee/HELP, MIT).
"""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from effdl.errors import CorruptFileError
from effdl.files import read_limited, write_atomically
from effdl.search.space import SubnetConfig

__all__ = ["MeasuredNetwork", "read_measured_networks", "write_networks_to_measure"]

_MAX_FILE_BYTES = 64 << 20
_LISTS = ("kernel_size", "expand_ratio", "depth")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredNetwork:
    """One sub-network and its latencies.

    Attributes:
        line: Line of the file, from 1.
        config: The sub-network; values at inactive positions mean nothing.
        latencies_ms: One value for each column that was asked for.
    """

    line: int
    config: SubnetConfig
    latencies_ms: tuple[float, ...]


def read_measured_networks(
    path: Path, *, latency_columns: Sequence[str] = ("latency_ms",)
) -> list[MeasuredNetwork]:
    """Read measured sub-networks from CSV; further columns are left alone.

    Args:
        path: The file.
        latency_columns: Names of the columns with latencies.

    Raises:
        ConfigError: The file cannot be opened.
        CorruptFileError: A column is missing, or a row is malformed; the
            message names the line and the column.
    """
    try:
        text = read_limited(path, _MAX_FILE_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorruptFileError(f"{path} is not UTF-8 text: {error}") from error
    try:
        networks = list(_networks(path, text, latency_columns))
    except csv.Error as error:
        raise CorruptFileError(f"{path} is not CSV: {error}") from error
    if not networks:
        raise CorruptFileError(f"{path} has no rows")
    return networks


def write_networks_to_measure(
    path: Path, configs: Sequence[SubnetConfig], *, files: Sequence[str] | None = None
) -> None:
    """Write the CSV that `read_measured_networks` reads, ``latency_ms`` still empty.

    Args:
        path: The file.
        configs: The sub-networks [N].
        files: Further column ``onnx`` [N]: where each lies as an ONNX file.

    Raises:
        OutputError: The file cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_LISTS, "resolution", "latency_ms", *(["onnx"] if files else [])])
    for i, config in enumerate(configs):
        lists = ["-".join(map(str, config.ints(name))) for name in _LISTS]
        writer.writerow([*lists, config["resolution"], "", *([files[i]] if files else [])])
    write_atomically(path, text.getvalue().encode())


def _networks(path: Path, text: str, latency_columns: Sequence[str]) -> Iterator[MeasuredNetwork]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    columns = reader.fieldnames or ()
    missing = [c for c in (*_LISTS, "resolution", *latency_columns) if c not in columns]
    if missing:
        raise CorruptFileError(
            f"{path}, line 1: no column {', '.join(missing)}",
            hint=f"wanted columns: {', '.join((*_LISTS, 'resolution', *latency_columns))}",
        )
    for row in reader:
        line = reader.line_num
        if None in row or None in row.values():
            raise CorruptFileError(
                f"{path}, line {line}: wanted {len(columns)} values, as the first line has"
            )
        lists = {name: _integers(path, line, name, row[name]) for name in _LISTS}
        (resolution,) = _integers(path, line, "resolution", row["resolution"], num=1)
        yield MeasuredNetwork(
            line=line,
            config=SubnetConfig({**lists, "resolution": resolution}),
            latencies_ms=tuple(
                _milliseconds(path, line, name, row[name]) for name in latency_columns
            ),
        )


def _integers(
    path: Path, line: int, column: str, text: str, *, num: int | None = None
) -> tuple[int, ...]:
    parts = text.strip().split("-")
    if all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts) and (
        num is None or len(parts) == num
    ):
        return tuple(map(int, parts))
    wanted = "one integer" if num == 1 else "integers joined by hyphens"
    raise CorruptFileError(
        f"{path}, line {line}, column {column}: wanted {wanted}, got {text[:60]!r}"
    )


def _milliseconds(path: Path, line: int, column: str, text: str) -> float:
    if not text.strip():
        raise CorruptFileError(
            f"{path}, line {line}, column {column}: still empty, wanted the network's measured "
            "milliseconds",
            hint="fill it in, or take the row out",
        )
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise CorruptFileError(
            f"{path}, line {line}, column {column}: wanted a positive number of milliseconds, "
            f"got {text[:60]!r}"
        )
    return value
