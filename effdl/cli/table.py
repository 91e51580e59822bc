"""``effdl table``: show, export and import latency tables; the group of all its verbs."""

from pathlib import Path
from typing import Literal

import click

from effdl.cli import parameters, table_checks
from effdl.cli.output import Answer, Table
from effdl.cli.table_sources import table_of_target
from effdl.cli.verb import Verb

__all__ = ["command"]


@click.group("table")
def command() -> None:
    """Show, verify, merge, compare, export and import latency tables."""


command.add_command(table_checks.verify)
command.add_command(table_checks.merge)
command.add_command(table_checks.diff)


def _selection() -> list[click.Parameter]:
    return [
        parameters.target_option(),
        parameters.space_option(),
        parameters.batch_size_option(),
        parameters.runtime_option(),
    ]


@command.command("show", cls=Verb, params=_selection())
def show(
    *, target_name: str, space_name: str, batch_size: int | None, runtime_name: str | None
) -> Answer:
    """Show the rows of a target's measured table."""
    table = table_of_target(target_name, space_name, batch_size, runtime_name)
    rows = [
        (entry.key, entry.resolution, entry.latency_ms, entry.std_ms, entry.count)
        for entry in table.entries
    ]
    columns = ("key", "resolution", "latency_ms", "std_ms", "count")
    shown = Table(
        title=f"{table.header.target} ({table.device}), batch size {table.batch_size}: "
        f"{table.header.statistic}",
        columns=columns,
        rows=rows,
    )
    facts = {
        "target": table.header.target,
        "device": table.device,
        "batch_size": table.batch_size,
        "runtime": table.runtime,
        "statistic": table.header.statistic,
        "origin": table.header.origin,
        "licence": table.header.licence,
        "num_entries": len(rows),
        "resolutions": list(table.resolutions),
        "entries": [dict(zip(columns, row, strict=True)) for row in rows],
    }
    return Answer(json=facts, tables=(shown,))


@command.command(
    "export",
    cls=Verb,
    params=[
        *_selection(),
        click.Option(
            ["--to", "to"],
            type=click.Choice(["ofa", "jsonl"]),
            default="ofa",
            show_default=True,
            help="OFA's YAML files in a folder, or effdl's JSON lines in a file.",
        ),
        click.Option(
            ["-o", "--output"],
            type=click.Path(path_type=Path),
            required=True,
            help="Folder or file to write.",
        ),
    ],
)
def export(
    *,
    target_name: str,
    space_name: str,
    batch_size: int | None,
    runtime_name: str | None,
    to: Literal["ofa", "jsonl"],
    output: Path,
) -> Answer:
    """Write a target's measured table for others."""
    table = table_of_target(target_name, space_name, batch_size, runtime_name)
    from effdl.workflows.exchange_tables import export_table

    paths = export_table(table, output, form=to)
    facts = {"num_entries": len(table.entries), "paths": [str(path) for path in paths]}
    written = Table(
        title=f"{len(table.entries):,} entries of {table.header.target}",
        columns=("path",),
        rows=[(str(path),) for path in paths],
    )
    return Answer(json=facts, tables=(written,))


@command.command("import", cls=Verb)
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--name", required=True, help="Name of the new target.")
@click.option("--device", help="The device, as people call it.  [default: the name]")
@click.option(
    "--kind",
    type=click.Choice(["cpu", "gpu", "phone", "embedded"]),
    default="embedded",
    show_default=True,
    help="What sort of device.",
)
@click.option("--runtime", default="unknown", show_default=True, help="What ran the networks.")
@click.option(
    "--batch-size",
    type=parameters.COUNT,
    default=1,
    show_default=True,
    help="Samples in one forward pass.",
)
def import_(
    *,
    path: Path,
    name: str,
    device: str | None,
    kind: Literal["cpu", "gpu", "phone", "embedded"],
    runtime: str,
    batch_size: int,
) -> Answer:
    """Make PATH (OFA's YAML files, or JSON lines) a target of your own.

    \b
    effdl table import note10/ --name my-phone --kind phone
    effdl search --target my-phone --latency 25ms
    """
    from effdl.targets.target import Target
    from effdl.workflows.exchange_tables import import_table

    target = Target(
        name=name,
        device=device or name,
        kind=kind,
        runtime=runtime,
        description=f"Imported from {path.name}.",
        default_batch_size=batch_size,
    )
    done = import_table(path, target=target)
    facts = {
        "name": name,
        "batch_size": batch_size,
        "num_entries": len(done.table.entries),
        "resolutions": list(done.table.resolutions),
        "path": str(done.path),
    }
    imported = Table(title=f"target {name}", columns=tuple(facts), rows=[tuple(facts.values())])
    return Answer(json=facts, tables=(imported,))
