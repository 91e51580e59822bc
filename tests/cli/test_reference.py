"""docs/reference/cli.md and the program say the same."""

import re
from pathlib import Path

import click
import pytest

from effdl.cli.main import effdl
from effdl.cli.verb import Verb

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "cli.md").read_text()
COMMON = {"--format", "--debug"}


def verbs(group: click.Group = effdl, path: str = "effdl") -> dict[str, click.Command]:
    """Every verb of the program by its full name."""
    found: dict[str, click.Command] = {}
    context = click.Context(group, info_name=path)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            found |= verbs(command, f"{path} {name}")
        else:
            found[f"{path} {name}"] = command
    return found


def sections() -> dict[str, str]:
    """The page's section of each verb."""
    parts = re.split(r"^## `(effdl [a-z -]+)`$", PAGE, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def documented_options(section: str) -> set[str]:
    return set(re.findall(r"^\| `(?:-o, )?(--[a-z-]+)", section, flags=re.MULTILINE))


def test_verbs_are_those_of_the_page() -> None:
    program = {name for name, command in verbs().items() if isinstance(command, Verb)}
    assert program == set(sections())


@pytest.mark.parametrize("name", sorted(sections()))
def test_options_are_those_of_the_page(name: str) -> None:
    command = verbs()[name]
    options = {
        next(opt for opt in parameter.opts if opt.startswith("--"))
        for parameter in command.params
        if isinstance(parameter, click.Option)
    }
    assert options >= COMMON
    assert options - COMMON == documented_options(sections()[name])


@pytest.mark.parametrize("name", sorted(sections()))
def test_every_argument_stands_in_the_page(name: str) -> None:
    arguments = [
        parameter for parameter in verbs()[name].params if isinstance(parameter, click.Argument)
    ]
    for argument in arguments:
        assert f"`{argument.make_metavar(click.Context(verbs()[name]))}`" in sections()[name]


@pytest.mark.parametrize("name", sorted(sections()))
def test_every_option_has_help(name: str) -> None:
    for parameter in verbs()[name].params:
        if isinstance(parameter, click.Option):
            assert parameter.help
    assert verbs()[name].help


def test_common_options_and_exit_codes_stand_in_the_page() -> None:
    from effdl import errors

    common = PAGE.partition("## `effdl")[0]
    assert documented_options(common) == COMMON | {"--help"}
    codes = {getattr(errors, name).exit_code for name in errors.__all__}
    documented = set(map(int, re.findall(r"^\| (\d+) \|", common, flags=re.MULTILINE)))
    assert codes <= documented
