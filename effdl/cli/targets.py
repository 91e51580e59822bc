"""``effdl targets``: list and show targets, choose networks to measure, and fit one to them."""

from pathlib import Path
from typing import Any

import click

from effdl.cli import names, parameters
from effdl.cli.output import Answer, Table
from effdl.cli.progress import show_progress
from effdl.cli.targets_add import add
from effdl.cli.verb import Verb
from effdl.errors import ConfigError

__all__ = ["command"]

# How far beyond the measured resolutions a fit still holds.
_WIDE_PERCENT = 30.0
_SLIGHTLY = 1.05


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
    if target.is_local:
        columns = ("space", "runtime", "protocol", *columns)
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
    """Make a target called NAME from 10 or more measured networks.

    \b
    effdl targets suggest -n 20 -o mine.csv
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
    low, high = done.resolutions[0], done.resolutions[-1]
    if low > _SLIGHTLY * min(space.resolutions) or max(space.resolutions) > _SLIGHTLY * high:
        measured = f"{low} px" if low == high else f"{low} to {high} px"
        click.echo(
            f"note: measured at {measured}; latencies at other resolutions are extrapolated, and "
            "interval_percent does not hold there",
            err=True,
        )
    if done.interval_percent > _WIDE_PERCENT:
        click.echo(
            f"note: predictions of {name} may be {done.interval_percent:.0f} % off; more networks, "
            "or a quieter device, would narrow that",
            err=True,
        )
    facts = {
        "name": done.name,
        "num_samples": done.num_samples,
        "resolutions": list(done.resolutions),
        "cv_mape_percent": done.cv_mape_percent,
        "cv_spearman": done.cv_spearman,
        "interval_percent": done.interval_percent,
        "path": str(done.path),
    }
    table = Table(title=f"target {name}", columns=tuple(facts), rows=[tuple(facts.values())])
    return Answer(json=facts, tables=(table,))


@command.command("suggest", cls=Verb, params=[parameters.space_option(), parameters.seed_option()])
@click.option(
    "-n",
    "--num",
    type=int,
    default=20,
    show_default=True,
    help="How many networks; a fit needs 10.",
)
@click.option(
    "--resolution",
    "resolutions",
    type=int,
    multiple=True,
    help="Only this input in pixels; may be repeated.  [default: all of the space's]",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="CSV to write for `effdl targets fit`, latencies to be filled in.",
)
@click.option(
    "--onnx",
    type=click.Path(path_type=Path),
    help="Folder to write each network to as an ONNX file, to be timed elsewhere.",
)
@click.option("--batch-size", type=parameters.COUNT, help="Of the ONNX files.  [default: 1]")
def suggest(
    *,
    space_name: str,
    seed: int,
    num: int,
    resolutions: tuple[int, ...],
    output: Path | None,
    onnx: Path | None,
    batch_size: int | None,
) -> Answer:
    """Choose the networks to measure that tell the most of a device.

    \b
    effdl targets suggest -n 20 -o mine.csv --onnx networks
    effdl targets fit my-gpu --measurements mine.csv
    """
    if batch_size is not None and onnx is None:
        raise ConfigError(
            "--batch-size has no effect without --onnx", hint="leave it out, or add --onnx DIR"
        )
    space = names.resolve_space(space_name)
    from effdl.workflows.suggest_networks import suggest_networks

    with show_progress() as progress:
        done = suggest_networks(
            space,
            num,
            resolutions=resolutions or None,
            seed=seed,
            out=output,
            onnx=onnx,
            batch_size=batch_size or 1,
            progress=progress,
        )
    lists = ("kernel_size", "expand_ratio", "depth", "resolution")
    table = Table(
        title="Networks to measure",
        columns=(*lists, *(("onnx",) if onnx is not None else ())),
        rows=[
            [
                *("-".join(map(str, network.config.ints(name))) for name in lists),
                *([network.onnx] if network.onnx is not None else []),
            ]
            for network in done.networks
        ],
    )
    if done.path is not None:
        click.echo(
            f"written: {done.path}; when latency_ms is filled in: effdl targets fit NAME "
            f"--measurements {done.path}",
            err=True,
        )
    return Answer(json=done.to_json(), tables=(table,))


command.add_command(add)
