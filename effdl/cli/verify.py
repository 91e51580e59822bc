"""``effdl verify``: is an ONNX file sound, and does it compute what it says?"""

from pathlib import Path

import click

from effdl.cli import parameters
from effdl.cli.output import Answer, Table
from effdl.cli.verb import Verb
from effdl.errors import ExportParityError

__all__ = ["command"]


@click.command("verify", cls=Verb)
@click.argument("model", metavar="MODEL.onnx", type=parameters.INPUT_FILE)
@click.option(
    "--weights", type=parameters.INPUT_FILE, help="Supernet (safetensors) the file was cut from."
)
def command(*, model: Path, weights: Path | None) -> Answer:
    """Check an ONNX file; one that effdl wrote is also compared with its network.

    \b
    effdl verify runs/search-2026-01-31-1/model.onnx
    """
    from effdl.workflows.verify import verify_model

    found = verify_model(model, weights=weights)
    failed = [check for check in found.checks if check.status == "failed"]
    failure = None
    if not found.ok:
        failure = ExportParityError(
            f"{model} failed {len(failed)} of {len(found.checks)} checks: "
            + "; ".join(f"{check.name}: {check.detail}" for check in failed),
            hint="effdl export writes the file anew",
        )
    table = Table(
        title=f"{model}: {'ok' if found.ok else 'failed'}",
        columns=("check", "status", "detail"),
        rows=[(check.name, check.status, check.detail) for check in found.checks],
    )
    return Answer(json=found.to_json(), tables=(table,), failure=failure)
