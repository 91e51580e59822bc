"""``effdl table``: measure a table again, merge parts of one, compare two."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from effdl.cli import names, parameters
from effdl.cli.output import Answer, Table
from effdl.cli.progress import show_progress
from effdl.cli.table_sources import tables_of_sources
from effdl.cli.verb import Verb
from effdl.errors import EffdlError, UnstableMeasurementError

if TYPE_CHECKING:
    from effdl.workflows.verify_table import TableCheck

__all__ = ["diff", "merge", "verify"]

_NUM_ROWS_SHOWN = 20


@click.command(
    "verify",
    cls=Verb,
    params=[
        parameters.target_option(),
        parameters.space_option(),
        parameters.batch_size_option(),
        parameters.runtime_option(),
        click.Option(
            ["--share", "share_percent"],
            type=parameters.PERCENT,
            default="5%",
            show_default=True,
            help="How much of the table to measure again; at least 10 entries.",
        ),
        click.Option(["--strict"], is_flag=True, help="Fail (exit 5) if the table has drifted."),
        parameters.seed_option(),
    ],
)
def verify(
    *,
    target_name: str,
    space_name: str,
    batch_size: int | None,
    runtime_name: str | None,
    share_percent: float,
    strict: bool,
    seed: int,
) -> Answer:
    """Measure a random part of a table of yours again and report how far it drifted.

    \b
    effdl table verify --target cpu
    effdl table verify --target cpu --share 20% --strict
    """
    target, space = names.resolve_target(target_name), names.resolve_space(space_name)
    from effdl.workflows.runtimes import open_runtime
    from effdl.workflows.verify_table import verify_table

    with (
        show_progress() as progress,
        open_runtime(target, runtime_name, progress=progress) as runtime,
    ):
        done = verify_table(
            target,
            space,
            runtime=runtime,
            batch_size=batch_size or target.default_batch_size,
            share_percent=share_percent,
            seed=seed,
            progress=progress,
        )
    summary = Table(
        title=f"{done.space} on {done.device}, {done.runtime}, batch size {done.batch_size}",
        columns=("fact", "value"),
        rows=[
            ("entries measured again", len(done.entries)),
            ("entries stored", done.num_stored),
            ("reference kernel, now / then", done.reference_ratio),
            ("entries, now / then", done.median_ratio),
            ("entries, corrected by the reference", done.median_corrected_ratio),
            ("spread of corrected ratios [%]", done.spread_percent),
            ("outside their interval", done.num_outside),
            ("drifted entries", done.num_drifted),
            ("the table has drifted", done.has_drifted),
            ("noise of this machine", done.noise.grade),
        ],
    )
    columns = ("key", "stored_ms", "measured_ms", "ratio", "corrected_ratio", "interval_percent")
    worst = sorted(done.entries, key=lambda e: -abs(e.corrected_ratio - 1))
    rows = [tuple(getattr(entry, column) for column in columns) for entry in worst]
    return Answer(
        json=done.to_json(),
        tables=(
            summary,
            Table(title="Furthest off", columns=columns, rows=rows[:_NUM_ROWS_SHOWN]),
        ),
        rows=Table(title="entries", columns=columns, rows=rows),
        failure=_drift(done) if strict and done.has_drifted else None,
    )


def _drift(done: "TableCheck") -> EffdlError:
    return UnstableMeasurementError(
        f"the table has drifted: {done.num_drifted} of {len(done.entries)} entries, and "
        f"{100 * (done.median_corrected_ratio - 1):+.1f} % in the median",
        hint=f"if a second check says so too, move {done.store} away and run effdl profile again",
    )


@click.command("merge", cls=Verb)
@click.argument(
    "tables", type=parameters.INPUT_FILE, nargs=-1, required=True, metavar="TABLE.jsonl..."
)
@click.option(
    "--prefer",
    type=click.Choice(["first", "lowest"]),
    help="Which of two different rows for one operator to keep.  [default: such rows are an error]",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="File to write.",
)
def merge(
    *, tables: tuple[Path, ...], prefer: Literal["first", "lowest"] | None, output: Path
) -> Answer:
    """Make one table of parts that were exported as JSON lines.

    \b
    effdl table merge width-1.0.jsonl width-1.2.jsonl -o both.jsonl
    """
    from effdl.targets.latency_table import LatencyTable
    from effdl.workflows.merge_tables import merge_tables

    read = [LatencyTable.read(path) for path in tables]
    merged = merge_tables(read, prefer=prefer)
    merged.write(output)
    facts = {
        "num_tables": len(read),
        "num_rows": sum(len(table.entries) for table in read),
        "num_entries": len(merged.entries),
        "path": str(output),
    }
    title = f"{merged.header.target} ({merged.device}), batch size {merged.batch_size}"
    shown = Table(title=title, columns=tuple(facts), rows=[tuple(facts.values())])
    return Answer(json=facts, tables=(shown,))


@click.command(
    "diff",
    cls=Verb,
    params=[
        click.Argument(["a"], metavar="A"),
        click.Argument(["b"], metavar="B"),
        parameters.space_option(),
        parameters.batch_size_option(),
        click.Option(
            ["--over", "over_percent"],
            type=parameters.PERCENT,
            default="5%",
            show_default=True,
            help="Which rows count as changed.",
        ),
    ],
)
def diff(*, a: str, b: str, space_name: str, batch_size: int | None, over_percent: float) -> Answer:
    """Show where two tables differ: A and B are files (JSON lines) or names of targets.

    \b
    effdl table diff before.jsonl after.jsonl --over 3%
    effdl table diff cpu cpu-xeon-amx
    """
    from effdl.workflows.compare_tables import RowRatio, compare_tables

    first, second = tables_of_sources((a, b), space_name, batch_size)
    found = compare_tables(first, second, over_percent=over_percent)
    ratio = found.ratio or {}
    if not found.common:
        click.echo("note: the tables have no row in common", err=True)
    summary = Table(
        title=f"B = {b} over A = {a}",
        columns=("fact", "value"),
        rows=[
            ("rows in both", len(found.common)),
            ("rows only in A", len(found.only_in_a)),
            ("rows only in B", len(found.only_in_b)),
            *((f"B / A, {name}", value) for name, value in ratio.items()),
            (f"changed by more than {over_percent:g} %", len(found.changed)),
        ],
    )
    changed = Table(title="The most changed", columns=RowRatio._fields, rows=found.changed)
    shown = Table(
        title=changed.title, columns=changed.columns, rows=found.changed[:_NUM_ROWS_SHOWN]
    )
    return Answer(
        json=found.to_json(),
        tables=(summary, shown) if found.changed else (summary,),
        rows=changed,
    )
