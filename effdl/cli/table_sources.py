"""Which latency table is meant: a target's by its name, or a file."""

from pathlib import Path
from typing import TYPE_CHECKING

from effdl.cli import names
from effdl.cli.verb import is_given
from effdl.errors import ConfigError

if TYPE_CHECKING:
    from effdl.targets.latency_table import LatencyTable

__all__ = ["table_of_target", "tables_of_sources"]


def table_of_target(
    target_name: str, space_name: str, batch_size: int | None, runtime_name: str | None = None
) -> "LatencyTable":
    """The measured table of a target; of this machine, that of a profiled space.

    Raises:
        UnknownNameError: There is no such target or space.
        LatencyTableError: The target has no table, or none at that batch size.
        TargetUnavailableError: This machine was not profiled.
        ConfigError: A runtime was named for another device.
    """
    target, space = names.resolve_target(target_name), names.resolve_space(space_name)
    if target.is_local:
        from effdl.workflows.host_table import export_host_table

        return export_host_table(
            [space],
            target.name,
            runtime=names.resolve_runtime(target, runtime_name),
            batch_size=batch_size or target.default_batch_size,
        )
    names.resolve_runtime(target, runtime_name)
    from effdl.targets.latency_model import load_latency_model
    from effdl.workflows.exchange_tables import measured_table

    return measured_table(target, load_latency_model(target, batch_size=batch_size))


def tables_of_sources(
    sources: tuple[str, ...], space_name: str, batch_size: int | None
) -> "list[LatencyTable]":
    """The tables of files and of targets; ``--batch-size`` must mean one of them.

    Raises:
        ConfigError: A file cannot be opened, or an option has no effect.
        CorruptFileError: A file is malformed.
    """
    from effdl.targets.latency_table import LatencyTable

    targets = [source for source in sources if not _is_file(source)]
    options = {"batch_size": "--batch-size", "space_name": "--space"}
    for parameter, option in options.items():
        if is_given(parameter) and not targets:
            raise ConfigError(f"{option} has no effect on files", hint=f"leave out {option}")
    return [
        table_of_target(source, space_name, batch_size)
        if source in targets
        else LatencyTable.read(Path(source))
        for source in sources
    ]


def _is_file(source: str) -> bool:
    return source.endswith(".jsonl") or Path(source).is_file()
