"""``effdl targets``: list and show targets, and fit one from measurements."""

from pathlib import Path
from typing import Any

import click

from effdl.cli import names, parameters
from effdl.cli.output import Answer, Table
from effdl.cli.verb import Verb

__all__ = ["command"]


@click.group("targets")
def command() -> None:
    """List and show targets, and fit one from your own measurements."""


@command.command("list", cls=Verb)
def list_() -> Answer:
    """List every target."""
    from effdl.workflows.describe_targets import summarise_targets

    summaries, broken = summarise_targets()
    for error in broken:
        click.echo(f"warning: {error.message}", err=True)
    facts = [summary.to_json() for summary in summaries]
    columns = ("name", "device", "runtime", "latency_source", "default_batch_size")
    table = Table(
        title="Targets; gpu and mobile stand for the best known here",
        columns=(*columns, "batch_sizes"),
        rows=[
            (*(target[column] for column in columns), ", ".join(map(str, target["batch_sizes"])))
            for target in facts
        ],
    )
    return Answer(json={"targets": facts}, tables=(table,))


@command.command("show", cls=Verb)
@click.argument("name", type=parameters.TARGET)
def show(*, name: str) -> Answer:
    """Show what is known of target NAME."""
    target = names.resolve_target(name)
    import msgspec

    from effdl.workflows.describe_targets import describe_latencies

    latencies = describe_latencies(target)
    facts: dict[str, Any] = {
        **msgspec.to_builtins(target),
        "is_local": target.is_local,
        "latencies": latencies,
    }
    about = Table(
        title=f"Target {target.name}",
        columns=("fact", "value"),
        rows=[
            ("device", target.device),
            ("kind", target.kind),
            ("runtime", target.runtime),
            ("default batch size", target.default_batch_size),
            ("description", target.description),
        ],
    )
    columns = ("batch_size", "latency_source", "num_samples", "cv_mape_percent", "interval_percent")
    quality = Table(
        title="Latencies",
        columns=columns,
        rows=[[row.get(column) for column in columns] for row in latencies],
    )
    return Answer(json=facts, tables=(about, quality) if latencies else (about,))


@command.command("fit", cls=Verb)
@click.argument("name")
@click.option(
    "--measurements",
    type=parameters.INPUT_FILE,
    required=True,
    help="CSV: kernel_size, expand_ratio, depth (hyphenated), resolution, latency_ms.",
)
@click.option(
    "--batch-size",
    type=parameters.COUNT,
    default=1,
    show_default=True,
    help="Samples in one forward pass.",
)
@click.option("--samples", "num_samples", type=parameters.COUNT, help="Use the first N rows only.")
@click.option(
    "--space",
    "space_name",
    type=parameters.SPACE,
    default=names.DEFAULT_SPACE_NAME,
    show_default=True,
    help="Space of the measured networks.",
)
@click.option(
    "--device",
    help="The device, as its driver calls it, for `--target gpu` to find it.  [default: NAME]",
)
def fit(
    *,
    name: str,
    measurements: Path,
    batch_size: int,
    num_samples: int | None,
    space_name: str,
    device: str | None,
) -> Answer:
    """Make a target called NAME from 20 or more measured networks.

    \b
    effdl targets fit my-gpu --measurements mine.csv --batch-size 32
    effdl search --target my-gpu --latency 10ms
    """
    space = names.resolve_space(space_name)
    from effdl.workflows.fit_target import fit_target

    done = fit_target(
        name,
        measurements,
        space,
        batch_size=batch_size,
        num_samples=num_samples,
        device=device,
    )
    facts = {
        "name": done.name,
        "num_samples": done.num_samples,
        "cv_mape_percent": done.cv_mape_percent,
        "cv_spearman": done.cv_spearman,
        "interval_percent": done.interval_percent,
        "path": str(done.path),
    }
    table = Table(title=f"target {name}", columns=tuple(facts), rows=[tuple(facts.values())])
    return Answer(json=facts, tables=(table,))
