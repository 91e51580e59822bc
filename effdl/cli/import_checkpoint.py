"""``effdl import-checkpoint``: a published checkpoint as safetensors."""

from pathlib import Path

import click

from effdl.cli import parameters
from effdl.cli.output import Answer, Table
from effdl.cli.verb import Verb

__all__ = ["command"]


@click.command("import-checkpoint", cls=Verb)
@click.argument("file", type=parameters.INPUT_FILE)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="Weights file to write (safetensors).",
)
def command(*, file: Path, output: Path) -> Answer:
    """Turn Once-for-All's published checkpoint FILE into safetensors.

    \b
    effdl import-checkpoint ofa_mbv3_d234_e346_k357_w1.2 -o w1.2.safetensors
    """
    from effdl.workflows.import_checkpoint import import_checkpoint

    done = import_checkpoint(file, output)
    for note in done.notes:
        click.echo(f"note: {note}", err=True)
    facts = {
        "space": done.space,
        "loaded": done.loaded,
        "missing": list(done.missing),
        "unexpected": list(done.unexpected),
        "notes": list(done.notes),
        "path": str(done.output),
    }
    table = Table(
        title=f"{done.source.name}: space {done.space}",
        columns=("path", "loaded", "missing", "unexpected"),
        rows=[(str(done.output), done.loaded, len(done.missing), len(done.unexpected))],
    )
    return Answer(json=facts, tables=(table,))
