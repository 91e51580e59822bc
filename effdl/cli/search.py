"""``effdl search``: the most accurate sub-network within a latency."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from effdl.cli import names, parameters
from effdl.cli.output import Answer, Table
from effdl.cli.parameters import Latency
from effdl.cli.progress import show_progress
from effdl.cli.verb import Verb, asked_options, is_given
from effdl.errors import ConfigError

if TYPE_CHECKING:
    from effdl.workflows.search_outcome import SearchOutcome

__all__ = ["command"]

_OPTIONS: list[click.Parameter] = [
    parameters.target_option(),
    click.Option(
        ["--latency"],
        type=parameters.LATENCY,
        required=True,
        help="Limit for one forward pass of the whole batch: 20ms, 800us, 30fps.",
    ),
    parameters.space_option(),
    parameters.batch_size_option(),
    parameters.runtime_option(),
    click.Option(["--macs"], type=parameters.MACS, help="Limit for one sample: 300MMACs."),
    click.Option(["--params"], type=parameters.PARAMS, help="Limit: 5Mparams."),
    click.Option(
        ["--peak-memory", "peak_memory_bytes"],
        type=parameters.BYTES,
        help="Limit on activations of the whole batch in float32: 64MiB.",
    ),
    click.Option(
        ["--effort"],
        type=click.Choice(names.EFFORT_NAMES),
        default="standard",
        show_default=True,
        help="How long to search: about 1, 3 or 15 processor seconds.",
    ),
    click.Option(
        ["--algorithm"],
        type=click.Choice(names.ALGORITHM_NAMES),
        help="One algorithm instead of the effort's own.",
    ),
    click.Option(["--max-evaluations"], type=parameters.COUNT, help="Networks evaluated at most."),
    click.Option(
        ["--max-seconds", "max_seconds"],
        type=parameters.SECONDS,
        help="Search time at most: 10 or 10s. The result then depends on the machine.",
    ),
    click.Option(
        ["--top-k"],
        type=parameters.COUNT,
        default=1,
        show_default=True,
        help="How many of the best are exported and reported.",
    ),
    click.Option(
        ["--weights"],
        type=parameters.INPUT_FILE,
        help="Trained supernet (safetensors) for the exported files.",
    ),
    click.Option(
        ["--fine-tuned"], is_flag=True, help="Report the accuracy expected after fine-tuning."
    ),
    click.Option(
        ["--confidence"],
        type=parameters.PERCENT,
        help="Chance that the true latency meets the limit: 95%.",
    ),
    click.Option(["--no-export"], is_flag=True, help="Write no ONNX file."),
    parameters.no_profile_option(),
    parameters.seed_option(),
    click.Option(
        ["--out"],
        type=click.Path(path_type=Path),
        help="Run folder.  [default: runs/search-DATE-N; none with --no-export]",
    ),
]


@click.command("search", cls=Verb, params=_OPTIONS)
def command(
    *,
    target_name: str,
    latency: Latency,
    space_name: str,
    batch_size: int | None,
    runtime_name: str | None,
    macs: float | None,
    params: float | None,
    peak_memory_bytes: float | None,
    effort: str,
    algorithm: str | None,
    no_export: bool,
    no_profile: bool,
    confidence: float | None,
    **options: Any,
) -> Answer:
    """Find the most accurate sub-network within a latency, and export it verified.

    \b
    effdl search --target gpu --latency 20ms
    effdl search --target mobile --latency 30ms --top-k 3 --out runs/phone
    """
    if algorithm is not None and is_given("effort"):
        raise ConfigError(
            "--effort has no effect beside --algorithm", hint="leave out one of the two"
        )
    target, space = names.resolve_target(target_name), names.resolve_space(space_name)
    limit_ms = latency.ms(batch_size or target.default_batch_size)
    from effdl.workflows.search import search_subnet
    from effdl.workflows.search_outcome import Limits

    with show_progress() as progress:
        outcome = search_subnet(
            target=target,
            space=space,
            limits=Limits(
                latency_ms=limit_ms,
                macs=macs,
                params=params,
                peak_memory_bytes=peak_memory_bytes,
            ),
            runtime=names.resolve_runtime(target, runtime_name),
            batch_size=batch_size,
            effort=effort,
            algorithm=algorithm,
            confidence=None if confidence is None else confidence / 100,
            export=not no_export,
            profile=not no_profile,
            settings={**asked_options(), "latency": latency.text},
            progress=progress,
            **options,
        )
    if outcome.out is not None:
        click.echo(f"report: {outcome.out / 'report.html'}", err=True)
    return _answer(outcome)


def _answer(outcome: "SearchOutcome") -> Answer:
    facts = outcome.to_json()
    target = facts["target"]
    columns = (
        "rank",
        "predicted_latency_ms",
        "measured_latency_ms",
        "accuracy_percent",
        "params",
        "macs",
        "resolution",
        "depth",
    )
    title = (
        f"{facts['space']} on {target['name']} ({target['device']}), batch size "
        f"{target['batch_size']}: at most {outcome.limits.latency_ms:g} ms, "
        f"latency {target['latency_source']}"
    )
    if facts["measured_searches"]:
        title += (
            f"\nMeasured here; searched up to {facts['searched_latency_limit_ms']:.4g} ms predicted"
        )
    best = Table(
        title=title,
        columns=(*columns, "onnx"),
        rows=[
            (rank, *_row(network), network["onnx"])
            for rank, network in enumerate(facts["top"], start=1)
        ],
    )
    front = Table(
        title="Pareto front",
        columns=(*columns[1:], "kernel_size", "expand_ratio"),
        rows=[
            (*_row(network), network["config"]["kernel_size"], network["config"]["expand_ratio"])
            for network in facts["pareto_front"]
        ],
    )
    return Answer(json=facts, tables=(best,), rows=front)


def _row(network: dict[str, Any]) -> tuple[object, ...]:
    accuracy = network["accuracy"]
    return (
        network["predicted_latency_ms"],
        network["measured_latency_ms"],
        None if accuracy is None else accuracy["value"],
        network["params"],
        network["macs"],
        network["config"]["resolution"],
        network["config"]["depth"],
    )
