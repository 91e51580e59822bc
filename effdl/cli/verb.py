"""A verb of the command line: its callback returns an `Answer`, this writes it."""

from typing import Any

import click
from click.core import ParameterSource

from effdl.cli.output import Answer, write_answer

__all__ = ["Verb", "asked_options", "is_given"]


class Verb(click.Command):
    """A command with the options every verb has: ``--format`` and ``--debug``."""

    def __init__(
        self, *args: Any, params: list[click.Parameter] | None = None, **kwargs: Any
    ) -> None:
        common = [
            click.Option(
                ["--format", "form"],
                type=click.Choice(["table", "json", "csv"]),
                default="table",
                show_default=True,
                help="How stdout is written.",
            ),
            click.Option(["--debug"], is_flag=True, help="Show the traceback of an error."),
        ]
        super().__init__(*args, params=[*(params or []), *common], **kwargs)

    def invoke(self, ctx: click.Context) -> None:
        """Run the callback and write what it answers."""
        form = ctx.params.pop("form")
        ctx.params.pop("debug")
        answer = super().invoke(ctx)
        if isinstance(answer, Answer):
            write_answer(answer, form)
            if answer.failure is not None:
                ctx.exit(answer.failure.exit_code)


def is_given(name: str) -> bool:
    """Whether the running verb's parameter stands on the command line."""
    source = click.get_current_context().get_parameter_source(name)
    return source is ParameterSource.COMMANDLINE


def asked_options() -> dict[str, object]:
    """The running verb's parameters, ready for JSON."""
    return {
        name: value if isinstance(value, int | float | str | None) else str(value)
        for name, value in click.get_current_context().params.items()
    }
