"""Once-for-All's latency tables: one YAML file for each input resolution.

A file maps an operator key to ``count``, ``mean`` (milliseconds) and ``std``
(or ``var``). Files are read as a stream of parser events: no object is built
from the YAML, aliases are refused, and a mistake is reported with its line.
Format: github.com/mit-han-lab/once-for-all, latency lookup tables.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import yaml

from effdl.errors import ConfigError, CorruptFileError, LatencyTableError
from effdl.files import read_limited, write_atomically
from effdl.targets.latency_table import LatencyEntry, LatencyTable, TableHeader

__all__ = ["read_ofa_folder", "read_ofa_yaml", "write_ofa_folder", "write_ofa_yaml"]

_MAX_FILE_BYTES = 8 << 20
_FILE_NAME = re.compile(r"(\d{1,5})_lookup_table\.ya?ml")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_ofa_yaml(path: Path, *, resolution: int | None = None) -> tuple[LatencyEntry, ...]:
    """Entries of one YAML file, in its order.

    ProxylessNAS's files have the same form with other keys; they are read, and
    a search space whose keys differ then meets `MissingEntryError`.

    Args:
        path: The file.
        resolution: Input resolution, in pixels, that it was measured for.

    Raises:
        ConfigError: The file cannot be opened.
        CorruptFileError: It is not such a table; the message names the line.
    """
    data = read_limited(path, _MAX_FILE_BYTES)
    seen: set[str] = set()
    entries = []
    try:
        for line, key, numbers in _rows(yaml.parse(data, Loader=_LOADER), path):
            if key in seen:
                raise _corrupt(path, line, f"second entry for {key}")
            seen.add(key)
            entries.append(_entry(path, line, key, numbers, resolution))
    except yaml.YAMLError as error:
        raise CorruptFileError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not entries:
        raise CorruptFileError(f"{path} has no entries")
    return tuple(entries)


def write_ofa_yaml(path: Path, entries: Iterable[LatencyEntry]) -> None:
    """Write entries as one YAML file, sorted by key, whole or not at all.

    Raises:
        OutputError: The file cannot be written.
    """
    write_atomically(path, _dump(entries))


def read_ofa_folder(folder: Path, header: TableHeader) -> LatencyTable:
    """One table of all files ``<resolution>_lookup_table.yaml`` of a folder.

    Args:
        folder: Where the files are.
        header: What the files do not say: device, runtime, batch size.

    Raises:
        ConfigError: The folder cannot be opened, or holds no such file.
        CorruptFileError: A file is malformed.
    """
    try:
        named = [(_FILE_NAME.fullmatch(path.name), path) for path in folder.iterdir()]
    except OSError as error:
        raise ConfigError(f"cannot read {folder}: {error.strerror or error}") from error
    files = sorted((int(match[1]), path) for match, path in named if match)
    if not files:
        raise ConfigError(
            f"{folder} holds no latency table: wanted files named <resolution>_lookup_table.yaml"
        )
    entries = [entry for r, path in files for entry in read_ofa_yaml(path, resolution=r)]
    return LatencyTable(header=header, entries=tuple(entries))


def write_ofa_folder(folder: Path, table: LatencyTable) -> list[Path]:
    """Write a table as one file for each of its resolutions; the files written.

    Raises:
        LatencyTableError: An entry does not say which resolution it is for.
        OutputError: A file cannot be written.
    """
    rows: dict[int, list[LatencyEntry]] = {}
    for entry in table.entries:
        if entry.resolution is None:
            raise LatencyTableError(
                f"table of {table.header.target} cannot be written in OFA's format: wanted a "
                f"resolution for each entry, got none for {entry.key}",
                hint="--to jsonl",
            )
        rows.setdefault(entry.resolution, []).append(entry)
    paths = {r: folder / f"{r}_lookup_table.yaml" for r in sorted(rows)}
    for resolution, path in paths.items():
        write_ofa_yaml(path, rows[resolution])
    return list(paths.values())


_Row = tuple[int, str, dict[str, float]]


def _rows(events: Iterator[yaml.Event], path: Path) -> Iterator[_Row]:
    """Lines, keys and numbers, from events that must be a mapping of flat mappings."""
    depth, key, field = 0, None, None
    line, numbers = 0, {}
    for event in events:
        at = event.start_mark.line + 1
        match event:
            case yaml.MappingStartEvent() if depth == 0 or (depth == 1 and key is not None):
                depth += 1
                numbers = {}
            case yaml.MappingEndEvent() if depth == 2:
                assert key is not None
                yield line, key, numbers
                depth, key = 1, None
            case yaml.ScalarEvent() if depth == 1 and key is None:
                line, key = at, event.value
            case yaml.ScalarEvent() if depth == 2 and field is None:
                field = event.value
                if field not in ("count", "mean", "std", "var") or field in numbers:
                    raise _corrupt(
                        path, at, f"wanted count, mean and std or var once each, got {field!r}"
                    )
            case yaml.ScalarEvent() if depth == 2 and field is not None:
                numbers[field] = _number(path, at, field, event.value)
                field = None
            case yaml.MappingEndEvent() | yaml.StreamStartEvent() | yaml.StreamEndEvent():
                depth = 0
            case yaml.DocumentStartEvent() | yaml.DocumentEndEvent():
                pass
            case _:
                raise _corrupt(path, at, "wanted 'key:' with count, mean and std below it")


def _number(path: Path, line: int, field: str, text: str) -> float:
    try:
        return int(text) if field == "count" else float(text)
    except ValueError:
        raise _corrupt(path, line, f"wanted a number as {field}, got {text[:40]!r}") from None


def _entry(
    path: Path, line: int, key: str, numbers: dict[str, float], resolution: int | None
) -> LatencyEntry:
    std = numbers.get("std")
    variance = numbers.get("var")
    if std is None and variance is not None and variance >= 0:
        std = variance**0.5
    row = {
        "key": key,
        "resolution": resolution,
        "latency_ms": numbers.get("mean"),
        "std_ms": std,
        "count": numbers.get("count"),
    }
    try:
        return msgspec.convert(row, LatencyEntry)
    except msgspec.ValidationError as error:
        raise _corrupt(path, line, f"{key[:80]}: {error}") from error


def _corrupt(path: Path, line: int, what: str) -> CorruptFileError:
    return CorruptFileError(f"{path}, line {line}: {what}")


def _dump(entries: Iterable[LatencyEntry]) -> bytes:
    tree = {}
    for entry in entries:
        fields = {"count": entry.count, "mean": entry.latency_ms, "std": entry.std_ms}
        tree[entry.key] = {name: value for name, value in fields.items() if value is not None}
    return yaml.dump(tree, Dumper=yaml.SafeDumper).encode()
