"""``effdl profile``: measure a space's operators, or one ONNX file, on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from effdl.cli import names, parameters
from effdl.cli.output import Answer, Table
from effdl.cli.progress import show_progress
from effdl.cli.verb import Verb, is_given
from effdl.errors import ConfigError

if TYPE_CHECKING:
    from effdl.targets.target import Target

__all__ = ["command"]

_OPTIONS: list[click.Parameter] = [
    click.Argument(["model"], required=False, type=parameters.INPUT_FILE, metavar="[MODEL.onnx]"),
    parameters.target_option(),
    parameters.space_option(),
    click.Option(
        ["--ops"],
        type=click.Choice(names.OPS_NAMES),
        help="Instead of a space, effdl's own kernels: each against its plain ONNX form.",
    ),
    click.Option(
        ["--batch-size"], type=parameters.COUNT, help="Samples in one forward pass.  [default: 1]"
    ),
    parameters.runtime_option(),
    click.Option(
        ["--budget", "budget_s"],
        type=parameters.DURATION,
        help="Time it may take: 10m.  [default: 14m; 170s with --quick; 60s for a file]",
    ),
    click.Option(
        ["--cluster"],
        metavar="ADDRESS",
        help="Share the work with a Dask cluster of machines equal to this one: tcp://HOST:8786.",
    ),
    click.Option(["--quick"], is_flag=True, help="Fewer rounds, and fewer whole networks."),
    click.Option(
        ["--dry-run"], is_flag=True, help="Say what would be measured, and measure nothing."
    ),
    click.Option(
        ["--strict"], is_flag=True, help="Fail (exit 5) if a measurement does not settle."
    ),
    parameters.seed_option(),
]

_NUM_NODES_SHOWN = 15

_OF_SPACES_ONLY = {
    "space_name": "--space",
    "runtime_name": "--runtime",
    "cluster": "--cluster",
    "quick": "--quick",
    "dry_run": "--dry-run",
    "seed": "--seed",
    "ops": "--ops",
}
_NOT_OF_KERNELS = ("space_name", "runtime_name", "cluster", "seed")


@click.command("profile", cls=Verb, params=_OPTIONS)
def command(
    *,
    model: Path | None,
    target_name: str,
    space_name: str,
    ops: str | None,
    batch_size: int | None,
    runtime_name: str | None,
    budget_s: float | None,
    cluster: str | None,
    quick: bool,
    dry_run: bool,
    strict: bool,
    seed: int,
) -> Answer:
    """Measure a space's latency table, the kernels, or the file MODEL.onnx, on this machine.

    An interrupted profile of a space or of the kernels goes on where it
    stopped; what is known is not measured again.

    \b
    effdl profile --target cpu --quick
    effdl profile --target cpu --space ofa-mbv3-w1.0 --budget 10m
    effdl profile --target cpu --ops kernels
    effdl profile --target cpu model.onnx
    """
    target = names.resolve_target(target_name)
    if model is not None:
        for parameter, option in _OF_SPACES_ONLY.items():
            if is_given(parameter):
                raise ConfigError(
                    f"{option} has no effect on an ONNX file", hint=f"leave out {option}"
                )
        return _profile_file(target, model, batch_size, budget_s, strict)
    if ops is not None:
        for parameter in _NOT_OF_KERNELS:
            if is_given(parameter):
                option = _OF_SPACES_ONLY[parameter]
                raise ConfigError(
                    f"{option} has no effect beside --ops kernels", hint=f"leave out {option}"
                )
        return _profile_kernels(target, batch_size, quick, budget_s, dry_run, strict)
    space = names.resolve_space(space_name)
    from effdl.workflows.profile_target import profile_target

    with show_progress() as progress, names.resolve_cluster(cluster) as executor:
        done = profile_target(
            target,
            space,
            runtime_name=runtime_name,
            executor=executor,
            batch_size=batch_size or target.default_batch_size,
            quick=quick,
            budget_s=budget_s,
            progress=progress,
            dry_run=dry_run,
            strict=strict,
            seed=seed,
        )
    shown: dict[str, object] = {
        "operators": done.num_entries,
        "to measure" if dry_run else "measured": done.num_measured,
        "cached": done.num_cached,
        "interpolated": done.num_interpolated,
        "unstable": done.num_unstable,
        "cut short": done.num_partial,
        "seconds, estimated" if dry_run else "seconds": done.seconds,
        "noise of this machine": done.noise.grade,
        "store": str(done.store),
    }
    if done.calibration is not None:
        shown["error on whole networks [%]"] = done.calibration.mape_percent
    if done.num_partial:
        click.echo(
            f"note: the time ended before all rounds of {done.num_partial:,} operators; the same "
            "command goes on, a larger --budget goes further",
            err=True,
        )
    table = Table(
        title=f"{done.space} on {done.device}, {done.runtime}, batch size {done.batch_size}",
        columns=("fact", "value"),
        rows=list(shown.items()),
    )
    return Answer(json=done.to_json(), tables=(table,))


def _profile_kernels(
    target: "Target",
    batch_size: int | None,
    quick: bool,
    budget_s: float | None,
    dry_run: bool,
    strict: bool,
) -> Answer:
    from effdl.workflows.profile_kernels import profile_kernels

    with show_progress() as progress:
        done = profile_kernels(
            target,
            batch_size=batch_size or target.default_batch_size,
            quick=quick,
            budget_s=budget_s,
            progress=progress,
            dry_run=dry_run,
            strict=strict,
        )
    for gone in done.missing:
        help_text = f" ({gone.hint})" if gone.hint else ""
        click.echo(f"note: {gone.backend} is not measured: {gone.reason}{help_text}", err=True)
    if done.num_partial:
        click.echo(
            f"note: the time ended before all rounds of {done.num_partial:,} timings; the same "
            "command goes on, a larger --budget goes further",
            err=True,
        )
    where = f"{done.device}, {done.runtime}, batch size {done.batch_size}"
    facts = Table(
        title=f"Kernels on {where}",
        columns=("fact", "value"),
        rows=[
            ("timings", done.num_entries),
            ("to measure" if dry_run else "measured", done.num_measured),
            ("cached", done.num_cached),
            ("unstable", done.num_unstable),
            ("cut short", done.num_partial),
            ("seconds, estimated" if dry_run else "seconds", done.seconds),
            ("noise of this machine", done.noise.grade),
            ("store", str(done.store)),
        ],
    )
    winners = Table(
        title="Which implementation of each operator is the fastest",
        columns=("kernel", "case", "dtype", "fastest", "p20_ms", "plain_onnx_ms", "speedup"),
        rows=[
            (
                operator.kernel,
                operator.case,
                operator.dtype,
                operator.fastest.name,
                operator.fastest.latency_ms,
                operator.plain.latency_ms,
                operator.plain.latency_ms / operator.fastest.latency_ms,
            )
            for operator in done.operators
        ],
    )
    return Answer(json=done.to_json(), tables=(winners, facts) if done.operators else (facts,))


def _profile_file(
    target: "Target", model: Path, batch_size: int | None, budget_s: float | None, strict: bool
) -> Answer:
    from effdl.workflows.profile_model import profile_model

    with show_progress() as progress:
        done = profile_model(
            target,
            model,
            batch_size=batch_size,
            budget_s=budget_s,
            strict=strict,
            progress=progress,
        )
    facts = done.to_json()
    columns = ("p20_ms", "p50_ms", "p95_ms", "peak_memory_bytes", "unstable", "noise")
    timing = done.timing
    whole = Table(
        title=f"{model} on {done.device}, {done.runtime}, batch size {done.batch_size}",
        columns=columns,
        rows=[
            (
                timing.p20_ms,
                timing.median_ms,
                timing.p95_ms,
                done.peak_memory_bytes,
                timing.unstable,
                done.noise.grade,
            )
        ],
    )
    fields = list(facts["nodes"][0]) if facts["nodes"] else []
    nodes = Table(
        title=f"The slowest of {len(facts['nodes'])} nodes",
        columns=tuple(fields),
        rows=[list(node.values()) for node in facts["nodes"][:_NUM_NODES_SHOWN]],
    )
    return Answer(json=facts, tables=(whole, nodes) if fields else (whole,))
