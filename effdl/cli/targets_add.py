"""``effdl targets add``: a phone or a board becomes a target."""

from pathlib import Path
from typing import Literal

import click

from effdl.cli.output import Answer, Table
from effdl.cli.progress import show_progress
from effdl.cli.verb import Verb, is_given
from effdl.errors import ConfigError

__all__ = ["add"]

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_OF_PHONES = {"libraries": "--library", "serial": "--serial", "regime": "--regime"}
_OF_BOARDS = {
    "key": "--key",
    "tracker": "--tracker",
    "token_file": "--token-file",
    "triple": "--triple",
}


@click.command("add", cls=Verb)
@click.argument("name")
@click.option(
    "--phone",
    "program",
    type=_FILE,
    metavar="PROGRAM",
    help="A phone behind adb; PROGRAM is onnxruntime_perf_test, built for it.",
)
@click.option(
    "--library",
    "libraries",
    type=_FILE,
    multiple=True,
    help="Shared library that PROGRAM needs; may be repeated.",
)
@click.option("--serial", help="The phone's serial number.  [default: the only one]")
@click.option(
    "--regime",
    type=click.Choice(["burst", "sustained"]),
    default="burst",
    show_default=True,
    help="Measure the phone cool, or heated up first.",
)
@click.option(
    "--board",
    "address",
    metavar="HOST:PORT",
    help="A board that serves TVM's RPC, behind a loopback address.",
)
@click.option("--key", help="The server's name.  [default: effdl-rpcd's]")
@click.option("--tracker", is_flag=True, help="The address is a tracker's.")
@click.option("--token-file", type=_FILE, help="File with what effdl-rpcd wants to hear.")
@click.option(
    "--triple", help="What to compile for: aarch64-linux-gnu.  [default: what effdl-rpcd says]"
)
@click.option("--device", help="The device, as people call it.  [default: as it calls itself]")
def add(
    *,
    name: str,
    program: Path | None,
    libraries: tuple[Path, ...],
    serial: str | None,
    regime: Literal["burst", "sustained"],
    address: str | None,
    key: str | None,
    tracker: bool,
    token_file: Path | None,
    triple: str | None,
    device: str | None,
) -> Answer:
    """Make a phone or a board a target called NAME; it must be there.

    \b
    effdl targets add my-phone --phone onnxruntime_perf_test --library libonnxruntime.so
    effdl targets add my-board --board 127.0.0.1:9190 --token-file token
    effdl profile --target my-phone --quick
    """
    if (program is None) == (address is None):
        raise ConfigError(
            "wanted a phone or a board, got "
            + ("neither" if program is None else "both: they are two targets"),
            hint=f"effdl targets add {name} --phone PROGRAM, or --board HOST:PORT",
        )
    for parameter, option in (_OF_BOARDS if program is not None else _OF_PHONES).items():
        if is_given(parameter):
            raise ConfigError(
                f"{option} has no effect on a {'phone' if program is not None else 'board'}",
                hint=f"leave out {option}",
            )
    from effdl.targets.connection import BoardConnection, PhoneConnection
    from effdl.workflows.add_target import add_target

    if program is not None:
        connection = PhoneConnection(
            program=str(program.resolve()),
            libraries=tuple(str(library.resolve()) for library in libraries),
            serial=serial,
            regime=regime,
        )
    else:
        connection = BoardConnection(
            address=address or "",
            key=key,
            tracker=tracker,
            token_file=None if token_file is None else str(token_file.resolve()),
            triple=triple,
        )
    with show_progress() as progress:
        target = add_target(name, connection, device=device, progress=progress)
    facts = {
        "name": target.name,
        "device": target.device,
        "kind": target.kind,
        "runtime": target.runtime,
    }
    table = Table(title=f"target {name}", columns=tuple(facts), rows=[tuple(facts.values())])
    return Answer(json=facts, tables=(table,))
