"""``effdl predict``: latency and accuracy of given configurations."""

from pathlib import Path

import click

from effdl.cli import names, parameters
from effdl.cli.output import Answer, Table
from effdl.cli.progress import show_progress
from effdl.cli.verb import Verb
from effdl.errors import ConfigError

__all__ = ["command"]

_OPTIONS: list[click.Parameter] = [
    click.Option(
        ["--configs"],
        type=parameters.INPUT_FILE,
        required=True,
        help="One JSON configuration a line, as `search` prints them or OFA's ks, e, d, r.",
    ),
    parameters.target_option(required=False),
    parameters.space_option(),
    parameters.batch_size_option(),
    parameters.runtime_option(),
    click.Option(
        ["--fine-tuned"], is_flag=True, help="Report the accuracy expected after fine-tuning."
    ),
    parameters.no_profile_option(),
]


@click.command("predict", cls=Verb, params=_OPTIONS)
def command(
    *,
    configs: Path,
    target_name: str | None,
    space_name: str,
    batch_size: int | None,
    runtime_name: str | None,
    fine_tuned: bool,
    no_profile: bool,
) -> Answer:
    """Predict latency, accuracy, parameters and MACs of configurations.

    \b
    effdl predict --configs nets.jsonl --target gpu --format csv
    """
    if target_name is None and runtime_name is not None:
        raise ConfigError("--runtime has no effect without a target", hint="add --target cpu")
    target = None if target_name is None else names.resolve_target(target_name)
    space = names.resolve_space(space_name)
    from effdl.workflows.predict import predict_subnets, read_configs

    population = read_configs(configs, space)
    with show_progress() as progress:
        found = predict_subnets(
            space=space,
            population=population,
            target=target,
            runtime=None if target is None else names.resolve_runtime(target, runtime_name),
            batch_size=batch_size,
            fine_tuned=fine_tuned,
            profile=not no_profile,
            progress=progress,
        )
    facts = found.to_json()
    title = f"{facts['space']}, {len(population):,} configurations"
    if facts["target"] is not None:
        title += f" on {facts['target']['name']}, batch size {facts['target']['batch_size']}"
    table = Table(
        title=title,
        columns=(
            "number",
            "predicted_latency_ms",
            "latency_source",
            "accuracy_percent",
            "params",
            "macs",
            "resolution",
            "depth",
            "reason",
        ),
        rows=[
            (
                number,
                network["predicted_latency_ms"],
                network["latency_source"],
                None if network["accuracy"] is None else network["accuracy"]["value"],
                network["params"],
                network["macs"],
                network["config"]["resolution"],
                network["config"]["depth"],
                network["reason"],
            )
            for number, network in enumerate(facts["predictions"], start=1)
        ],
    )
    return Answer(json=facts, tables=(table,))
