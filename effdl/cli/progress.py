"""How far a long job is, on stderr: a live line on a terminal, else a line every 10 s.

A step without a count is announced at once.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

from effdl.cli.output import can_style
from effdl.workflows.progress import Progress

__all__ = ["show_progress"]

_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def show_progress() -> Iterator[Progress]:
    """A `Progress` that shows on stderr while the body runs, and leaves nothing on a terminal."""
    if not can_style(sys.stderr):
        yield _plain_lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total or None, description=what)

        yield show


def _plain_lines() -> Progress:
    started = last = time.monotonic()

    def show(done: int, total: int, what: str) -> None:
        nonlocal last
        now = time.monotonic()
        if not done and not total:
            click.echo(what, err=True)
        elif now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            counted = f"{done:,} of {total:,}" if total else f"{done:,}"
            click.echo(f"{what}: {counted} after {now - started:.0f} s", err=True)

    return show
