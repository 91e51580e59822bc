"""``effdl compare``: two ONNX files measured against each other."""

from pathlib import Path

import click

from effdl.cli import names, parameters
from effdl.cli.output import Answer, Table
from effdl.cli.progress import show_progress
from effdl.cli.verb import Verb

__all__ = ["command"]

_OPTIONS: list[click.Parameter] = [
    click.Argument(["first"], type=parameters.INPUT_FILE, metavar="A.onnx"),
    click.Argument(["second"], type=parameters.INPUT_FILE, metavar="B.onnx"),
    parameters.target_option(),
    click.Option(
        ["--batch-size"], type=parameters.COUNT, help="Samples in one forward pass.  [default: 1]"
    ),
    click.Option(
        ["--budget", "budget_s"],
        type=parameters.DURATION,
        help="Time it may take: 10m.  [default: 2m]",
    ),
    click.Option(
        ["--strict"], is_flag=True, help="Fail (exit 5) if the ratio is not known within 2 %."
    ),
]


@click.command("compare", cls=Verb, params=_OPTIONS)
def command(
    *,
    first: Path,
    second: Path,
    target_name: str,
    batch_size: int | None,
    budget_s: float | None,
    strict: bool,
) -> Answer:
    """Measure A.onnx and B.onnx in turns on the same inputs: which is faster, and do they agree?

    \b
    effdl compare old.onnx new.onnx --target cpu
    """
    target = names.resolve_target(target_name)
    from effdl.workflows.compare import compare_models

    with show_progress() as progress:
        done = compare_models(
            target,
            first,
            second,
            batch_size=batch_size,
            budget_s=budget_s,
            strict=strict,
            progress=progress,
        )
    ratio, difference = done.ratio, done.difference
    latencies = Table(
        title=f"{done.device}, {done.runtime}, batch size {done.batch_size}",
        columns=("model", "p20_ms", "p50_ms", "p95_ms", "unstable"),
        rows=[
            (str(path), timing.p20_ms, timing.median_ms, timing.p95_ms, timing.unstable)
            for path, timing in zip(done.paths, done.timings, strict=True)
        ],
    )
    verdict = Table(
        title=f"B takes {ratio.value:.3f} times as long as A "
        f"(95 % interval {ratio.low:.3f} to {ratio.high:.3f}): "
        + ("no difference is proved" if done.faster is None else f"{done.faster} is faster"),
        columns=("ratio", "ratio_low", "ratio_high", "largest_output_difference"),
        rows=[(ratio.value, ratio.low, ratio.high, difference.max_absolute)],
    )
    return Answer(json=done.to_json(), tables=(latencies, verdict))
