"""The ``effdl`` command: finds the verb, imports only it, and turns errors into exit codes."""

import importlib
import signal
import sys
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any, NoReturn

import click

from effdl.cli import failures
from effdl.errors import UnknownNameError

__all__ = ["VERBS", "LazyGroup", "effdl", "main"]

VERBS = {
    "search": "Find the most accurate sub-network within a latency.",
    "predict": "Predict latency and accuracy of given configurations.",
    "profile": "Measure a space's latency table, or one ONNX file, on a target.",
    "compare": "Measure two ONNX files against each other.",
    "export": "Write a found sub-network as a verified ONNX file.",
    "verify": "Check an exported ONNX file.",
    "import-checkpoint": "Turn a published checkpoint into safetensors.",
    "train-predictor": "Train an accuracy predictor.",
    "targets": "List, show, add, fit targets, and suggest what to measure.",
    "table": "Show, verify, merge, compare, export and import latency tables.",
    "doctor": "Say what works here, and the command for what does not.",
    "completion": "Print the completion script of a shell.",
}


class LazyGroup(click.Group):
    """A group that imports a verb's module only when the verb is used.

    Args:
        verbs: Summary of each verb; verb ``a-b`` is ``command`` in module
            ``effdl.cli.a_b``.
    """

    def __init__(self, *args: Any, verbs: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._verbs = dict(verbs)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._verbs:
            return None
        module = importlib.import_module(f"effdl.cli.{cmd_name.replace('-', '_')}")
        return module.command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in self._verbs and not name.startswith("-") and not ctx.resilient_parsing:
            raise UnknownNameError("command", name, self._verbs, command="effdl --help")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(self._verbs.items()))

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Run the command line and exit; every error ends here (always as if standalone)."""
        given = list(sys.argv[1:] if args is None else args)
        try:
            code = super().main(
                args=given,
                prog_name=prog_name,
                complete_var=complete_var,
                standalone_mode=False,
                windows_expand_args=windows_expand_args,
                **extra,
            )
        except Exception as error:
            code = failures.report(error, given)
        sys.exit(code if isinstance(code, int) else 0)


@click.command(
    "effdl",
    cls=LazyGroup,
    verbs=VERBS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="`effdl VERB --help` describes a verb. A latency has a unit: 20ms, 800us, 30fps.",
)
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")
@click.version_option(package_name="effdl", message="%(prog)s %(version)s")
def effdl() -> None:
    """Hardware-aware efficient deep learning: the most accurate network that is fast enough."""


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    raise failures.Terminated


def main() -> NoReturn:
    """Entry point of the console script."""
    signal.signal(signal.SIGTERM, _terminate)
    effdl.main(prog_name="effdl")
