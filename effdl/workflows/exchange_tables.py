"""Latency tables in and out: effdl's JSON lines and Once-for-All's YAML files."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import msgspec

from effdl.errors import ConfigError, TableMismatchError
from effdl.targets.latency_model import LatencyModel, table_path
from effdl.targets.latency_table import LatencyTable, TableHeader
from effdl.targets.ofa_yaml import read_ofa_folder, read_ofa_yaml, write_ofa_folder
from effdl.targets.target import (
    Target,
    check_own_target,
    list_targets,
    user_targets_folder,
    write_target,
)

__all__ = ["ImportedTable", "export_table", "import_table", "measured_table"]

_RESOLUTION = re.compile(r"(\d{1,5})_")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedTable:
    """A table that became a target of the user.

    Attributes:
        target: The target, new or extended.
        table: What was read.
        path: Where the table lies now.
    """

    target: Target
    table: LatencyTable
    path: Path


def measured_table(target: Target, model: LatencyModel) -> LatencyTable:
    """The table behind a target's latencies.

    Raises:
        ConfigError: They are fitted or estimated, and have no rows.
    """
    if not isinstance(model, LatencyTable):
        raise ConfigError(
            f"target {target.name} has no table: its latencies are {model.source}",
            hint="effdl targets list says which targets have measured tables",
        )
    return model


def export_table(table: LatencyTable, out: Path, *, form: Literal["ofa", "jsonl"]) -> list[Path]:
    """Write a table for others; the files written.

    Args:
        table: The table.
        out: ``"ofa"``: a folder, for one YAML file a resolution; ``"jsonl"``: a file.
        form: The format.

    Raises:
        LatencyTableError: OFA's format cannot hold the table.
        OutputError: A file cannot be written.
    """
    if form == "ofa":
        return write_ofa_folder(out, table)
    table.write(out)
    return [out]


def import_table(source: Path, *, target: Target) -> ImportedTable:
    """Make a table the user's own target, or one more batch size of it.

    Args:
        source: A folder of OFA's ``<resolution>_lookup_table.yaml`` files, one
            such file, or effdl's JSON lines.
        target: What to call it; its default batch size is the table's.

    Raises:
        ConfigError: The source cannot be opened, or the name is taken.
        CorruptFileError: The source is malformed.
        OutputError: The user's folder cannot be written.
    """
    check_own_target(target)
    batch_size, folder = target.default_batch_size, user_targets_folder()
    header = TableHeader(
        target=target.name,
        device=target.device,
        batch_size=batch_size,
        runtime=target.runtime,
        statistic="mean",
        origin=f"imported from {source.name}",
    )
    if source.is_dir():
        table = read_ofa_folder(source, header)
    elif source.suffix == ".jsonl":
        read = LatencyTable.read(source)
        if read.batch_size != batch_size:
            raise TableMismatchError(
                f"{source} is of batch size {read.batch_size}, wanted {batch_size}",
                hint=f"--batch-size {read.batch_size}",
            )
        table = replace(read, header=msgspec.structs.replace(read.header, target=target.name))
    else:
        match = _RESOLUTION.match(source.name)
        entries = read_ofa_yaml(source, resolution=int(match[1]) if match else None)
        table = LatencyTable(header=header, entries=entries)
    path = table_path(folder, target.name, batch_size, fitted=False)
    if path.exists():
        raise ConfigError(
            f"there is a target {target.name} at batch size {batch_size} already",
            hint="choose another --name",
        )
    table.write(path)
    if target.name not in list_targets():
        write_target(folder, target)
    return ImportedTable(target=target, table=table, path=path)
