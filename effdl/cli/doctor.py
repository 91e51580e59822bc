"""``effdl doctor``: what works here, and the command for what does not."""

import click

from effdl.cli.output import Answer, Table
from effdl.cli.verb import Verb
from effdl.errors import BackendUnavailableError

__all__ = ["command"]


@click.command("doctor", cls=Verb)
def command() -> Answer:
    """Say what works here, and the command for what does not."""
    from effdl.workflows.doctor import examine

    checks = examine()
    missing = [check for check in checks if check.needed and not check.ok]
    failure = None
    if missing:
        failure = BackendUnavailableError(
            f"effdl cannot do its main job here: {', '.join(check.name for check in missing)}",
            hint=missing[0].command,
        )
    table = Table(
        title="What works here" if failure is None else "What is missing here",
        columns=("check", "ok", "needed", "found", "command"),
        rows=[(check.name, check.ok, check.needed, check.found, check.command) for check in checks],
    )
    facts = {"ok": not missing, "checks": [check.to_json() for check in checks]}
    return Answer(json=facts, tables=(table,), failure=failure)
