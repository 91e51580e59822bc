"""``effdl train-predictor``: the accuracy predictors, from published figures."""

from dataclasses import asdict
from pathlib import Path

import click

from effdl.cli import parameters
from effdl.cli.output import Answer, Table
from effdl.cli.progress import show_progress
from effdl.cli.verb import Verb

__all__ = ["command"]

_OPTIONS: list[click.Parameter] = [
    click.Option(
        ["--published"],
        is_flag=True,
        required=True,
        help="Learn from what Once-for-All and DyNAS-T published.",
    ),
    click.Option(
        ["--data"],
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        default="../shared/data",
        show_default=True,
        help="Folder of the published figures, with ofa/ in it.",
    ),
    click.Option(
        ["--out"],
        type=click.Path(path_type=Path),
        default="runs/train-predictor",
        show_default=True,
        help="Folder of the predictors; what is finished there is kept.",
    ),
    parameters.seed_option(),
]


@click.command("train-predictor", cls=Verb, params=_OPTIONS)
def command(*, published: bool, data: Path, out: Path, seed: int) -> Answer:
    """Train the accuracy predictors of both widths.

    \b
    effdl train-predictor --published --data ../shared/data
    """
    from effdl.workflows.train_predictor import train_published_predictors

    with show_progress() as progress:
        trained = train_published_predictors(data, out, seed=seed, progress=progress)
    predictors = [asdict(predictor) for predictor in trained]
    table = Table(
        title="Accuracy predictors; errors on held-out networks",
        columns=tuple(predictors[0]),
        rows=[tuple(map(_shown, predictor.values())) for predictor in predictors],
    )
    kept = ("rmse_pp", "spearman", "num_pairs", "path")
    facts = {**{name: predictors[0][name] for name in kept}, "predictors": predictors}
    return Answer(json=facts, tables=(table,))


def _shown(value: object) -> object:
    return str(value) if isinstance(value, Path) else value
