"""Values on the command line: quantities with units, names, files."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from effdl import units
from effdl.cli import names

__all__ = [
    "BYTES",
    "COUNT",
    "DURATION",
    "INPUT_FILE",
    "LATENCY",
    "MACS",
    "PARAMS",
    "PERCENT",
    "SECONDS",
    "SPACE",
    "TARGET",
    "Latency",
    "NameType",
    "Quantity",
    "batch_size_option",
    "seed_option",
    "space_option",
    "target_option",
]


class Quantity(click.ParamType):
    """A number with a unit.

    Args:
        name: What it is, shown as the placeholder in the help.
        parse: Reads it; raises ConfigError.
    """

    def __init__(self, name: str, parse: Callable[[str], float]) -> None:
        self.name = name
        self._parse = parse

    def convert(
        self, value: str | float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        return self._parse(value) if isinstance(value, str) else value


class Latency:
    """A latency as it was written; frames per second need the batch size first."""

    def __init__(self, text: str) -> None:
        units.parse_latency_ms(text, batch_size=1)
        self.text = text

    def ms(self, batch_size: int) -> float:
        """Milliseconds of one forward pass of the whole batch."""
        return units.parse_latency_ms(self.text, batch_size=batch_size)


class _LatencyType(click.ParamType):
    name = "latency"

    def convert(
        self, value: str | Latency, param: click.Parameter | None, ctx: click.Context | None
    ) -> Latency:
        return Latency(value) if isinstance(value, str) else value


class NameType(click.ParamType):
    """A name that shells complete; whether it is known is decided where it is resolved.

    Args:
        name: What it names.
        known: Lists the names.
    """

    def __init__(self, name: str, known: Callable[[], Iterable[str]]) -> None:
        self.name = name
        self._known = known

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [CompletionItem(name) for name in self._known() if name.startswith(incomplete)]


def _parse_seconds(text: str) -> float:
    """A duration whose option already names the unit, so that ``10`` is ``10s``."""
    stripped = text.strip()
    return units.parse_duration_s(f"{stripped}s" if stripped[-1:].isdigit() else stripped)


LATENCY = _LatencyType()
DURATION = Quantity("duration", units.parse_duration_s)
SECONDS = Quantity("seconds", _parse_seconds)
BYTES = Quantity("bytes", units.parse_bytes)
MACS = Quantity("macs", units.parse_macs)
PARAMS = Quantity("params", units.parse_params)
PERCENT = Quantity("percent", units.parse_percent)
COUNT = click.IntRange(min=1)
INPUT_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)

TARGET = NameType("target", names.target_names)
SPACE = NameType("space", lambda: names.SPACE_NAMES)


def target_option(*, required: bool = True) -> click.Option:
    """``--target``."""
    return click.Option(
        ["--target", "target_name"],
        type=TARGET,
        required=required,
        help="Device to compile for; `effdl targets list` names them.",
    )


def space_option(default: str | None = names.DEFAULT_SPACE_NAME) -> click.Option:
    """``--space``."""
    return click.Option(
        ["--space", "space_name"],
        type=SPACE,
        default=default,
        show_default=default is not None,
        help=f"Search space: {_listed(names.SPACE_NAMES)}.",
    )


def runtime_option() -> click.Option:
    """``--runtime``: what runs networks on this machine."""
    return click.Option(
        ["--runtime", "runtime_name"],
        type=click.Choice(names.RUNTIME_NAMES),
        help="What runs networks on this machine.  [default: the target's]",
    )


def no_profile_option() -> click.Option:
    """``--no-profile``."""
    return click.Option(
        ["--no-profile"],
        is_flag=True,
        help="Fail instead of measuring this machine if it has no table yet.",
    )


def batch_size_option() -> click.Option:
    """``--batch-size``."""
    return click.Option(
        ["--batch-size"], type=COUNT, help="Samples in one forward pass.  [default: the target's]"
    )


def seed_option() -> click.Option:
    """``--seed``."""
    return click.Option(
        ["--seed"],
        type=click.IntRange(min=0, max=2**63 - 1),
        default=0,
        show_default=True,
        help="Of everything random.",
    )


def _listed(choices: Sequence[str]) -> str:
    return " or ".join(choices)
