"""``effdl export``: a found sub-network as a verified ONNX file, or as code for a board."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from effdl.cli import names, parameters
from effdl.cli.output import Answer, Table
from effdl.cli.progress import show_progress
from effdl.cli.verb import Verb, is_given
from effdl.errors import ConfigError

if TYPE_CHECKING:
    from effdl.models.mobilenet_v3.space import MobileNetV3Space

__all__ = ["command"]

DEFAULT_TRIPLE = "aarch64-linux-gnu"

_OPTIONS: list[click.Parameter] = [
    click.Argument(
        ["source"], type=click.Path(exists=True, path_type=Path), metavar="RUN|CONFIG.json"
    ),
    click.Option(
        ["-o", "--output"],
        type=click.Path(dir_okay=False, path_type=Path),
        required=True,
        help="File to write.",
    ),
    click.Option(
        ["--rank"],
        type=parameters.COUNT,
        default=1,
        show_default=True,
        help="Which of a run's networks, 1 being the best.",
    ),
    click.Option(
        ["--weights"],
        type=parameters.INPUT_FILE,
        help="Trained supernet (safetensors).  [default: untrained]",
    ),
    click.Option(
        ["--space", "space_name"],
        type=parameters.SPACE,
        help=f"Space of a CONFIG.json; a run knows its own.  [default: {names.DEFAULT_SPACE_NAME}]",
    ),
    parameters.seed_option(),
    click.Option(
        ["--precision"],
        default="fp32",
        show_default=True,
        help="Number format: fp32, or int8 where this machine's clock says it is faster.",
    ),
    click.Option(
        ["--calibration-data", "images"],
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        metavar="DIR",
        help="With int8: photos such as the network will see.  [default: made inputs]",
    ),
    click.Option(
        ["--to", "container"],
        default="onnx",
        show_default=True,
        help="Format: onnx, or tvm for a board with TVM's runtime.",
    ),
    click.Option(
        ["--triple"],
        default=DEFAULT_TRIPLE,
        show_default=True,
        help="With --to tvm: the board's processor, system and C library.",
    ),
]


@click.command("export", cls=Verb, params=_OPTIONS)
def command(
    *,
    source: Path,
    output: Path,
    rank: int,
    weights: Path | None,
    space_name: str | None,
    seed: int,
    precision: str,
    images: Path | None,
    container: str,
    triple: str,
) -> Answer:
    """Write a sub-network as an ONNX file, or as code for a board, verified against PyTorch.

    \b
    effdl export runs/search-2026-01-31-1 -o best.onnx
    effdl export config.json --space ofa-mbv3-w1.0 -o model.onnx
    effdl export config.json --precision int8 --calibration-data photos/ -o int8.onnx
    effdl export config.json --to tvm --triple aarch64-linux-gnu -o model.so
    """
    from effdl.workflows.export_source import read_export_source

    found = read_export_source(source, rank=rank)
    if found.space is not None and space_name not in (None, found.space):
        raise ConfigError(
            f"--space {space_name} has no effect: {source} is of space {found.space}",
            hint="leave out --space",
        )
    space = names.resolve_space(found.space or space_name or names.DEFAULT_SPACE_NAME)
    if weights is not None and is_given("seed"):
        raise ConfigError("--seed has no effect beside --weights", hint="leave out one of the two")
    from effdl.workflows.export import export_subnet, require_supported

    require_supported(precision=precision, container=container)
    if images is not None and precision != "int8":
        raise ConfigError(
            "--calibration-data has no effect without --precision int8",
            hint="add --precision int8",
        )
    if container == "tvm":
        return _export_tvm(
            space=space,
            config=found.config,
            out=output,
            triple=triple,
            weights=weights,
            seed=seed,
            target_info=found.target_info,
        )
    if is_given("triple"):
        raise ConfigError("--triple has no effect without --to tvm", hint="add --to tvm")
    if precision == "int8":
        return _export_int8(
            space=space,
            config=found.config,
            out=output,
            images=images,
            weights=weights,
            seed=seed,
            target_info=found.target_info,
        )
    done = export_subnet(
        space=space,
        config=found.config,
        out=output,
        weights=weights,
        seed=seed,
        target_info=found.target_info,
    )
    _note_untrained(done.weights)
    facts = done.to_json()
    table = Table(
        title=f"A network of {done.space}, verified at batch sizes "
        f"{', '.join(map(str, done.parity.batch_sizes))}",
        columns=("path", "opset", "size_bytes", "max_relative_error", "weights"),
        rows=[
            (
                str(done.path),
                done.opset,
                done.num_bytes,
                done.parity.max_relative_error,
                done.weights,
            )
        ],
    )
    return Answer(json=facts, tables=(table,))


def _note_untrained(weights: str) -> None:
    if weights.startswith("untrained"):
        click.echo("note: the weights are untrained; --weights gives trained ones", err=True)


def _export_int8(
    *,
    space: "MobileNetV3Space",
    config: Mapping[str, object],
    out: Path,
    images: Path | None,
    weights: Path | None,
    seed: int,
    target_info: Mapping[str, str],
) -> Answer:
    from effdl.workflows.export_int8 import export_int8_subnet

    if images is None:
        click.echo(
            "note: calibrated with made inputs, whose ranges are not those of photos; "
            "--calibration-data DIR gives real ones",
            err=True,
        )
    with show_progress() as progress:
        done = export_int8_subnet(
            space=space,
            config=config,
            out=out,
            images=images,
            weights=weights,
            seed=seed,
            target_info=target_info,
            progress=progress,
        )
    _note_untrained(done.weights)
    if not done.is_target:
        click.echo(
            f"note: operators were chosen by the clock of this machine, not of target "
            f"{target_info.get('target')}",
            err=True,
        )
    if done.int8.num_int8 == 0:
        click.echo("note: nothing is faster in int8 on this machine: the file is fp32", err=True)
    parity = done.int8.parity
    latency = done.to_json()["latency_ms"]
    whole = Table(
        title=f"A network of {space.name}: {done.int8.num_int8} of {len(done.int8.operators)} "
        f"operators on int8, calibrated with {done.calibration}",
        columns=("path", "size_bytes", "fp32_ms", "int8_ms", "SQNR [dB]", "agreement_percent"),
        rows=[
            (
                str(done.path),
                done.num_bytes,
                done.int8.fp32_ms if latency else None,
                done.int8.int8_ms if latency else None,
                parity.sqnr_db,
                parity.agreement_percent,
            )
        ],
    )
    kept = Table(
        title="Operators kept in fp32, and why",
        columns=("operator", "name", "int8_ms", "fp32_ms", "reason"),
        rows=[
            (c.operator, c.name, c.int8_ms, c.fp32_ms, c.reason)
            for c in done.int8.operators
            if c.precision == "fp32"
        ],
    )
    return Answer(json=done.to_json(), tables=(whole, kept) if kept.rows else (whole,))


def _export_tvm(
    *,
    space: "MobileNetV3Space",
    config: Mapping[str, object],
    out: Path,
    triple: str,
    weights: Path | None,
    seed: int,
    target_info: Mapping[str, str],
) -> Answer:
    from effdl.targets.measure.tvm_target import TvmTarget
    from effdl.workflows.export_tvm import export_tvm_subnet

    done = export_tvm_subnet(
        space=space,
        config=config,
        out=out,
        target=TvmTarget(triple=triple),
        weights=weights,
        seed=seed,
        target_info=target_info,
    )
    _note_untrained(done.weights)
    table = Table(
        title=f"A network of {done.space} for {triple}; verified: {done.parity.checked}",
        columns=("path", "size_bytes", "max_relative_error", "weights"),
        rows=[(str(done.path), done.num_bytes, done.parity.max_relative_error, done.weights)],
    )
    return Answer(json=done.to_json(), tables=(table,))
