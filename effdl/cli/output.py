"""What goes to stdout: one JSON object, CSV rows, or tables for people."""

import csv
import io
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TextIO

import click

from effdl.errors import EffdlError

__all__ = ["SCHEMA_VERSION", "Answer", "Table", "can_style", "write_answer", "write_error"]

SCHEMA_VERSION = 1

Format = Literal["table", "json", "csv"]

_UNITS = {"ms": "ms", "us": "us", "s": "s", "bytes": "bytes", "percent": "%", "seconds": "s"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows under named columns.

    Attributes:
        title: What the rows are.
        columns: Names with units, such as ``"latency_ms"``: the header of the
            CSV form, and made readable for the table.
        rows: Cells: text, numbers, truth values, lists or None.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a verb found, in every form it can be asked for.

    Attributes:
        json: Members of the JSON object beside ``schema_version``.
        tables: For people, in order.
        rows: For CSV; None: the first table.
        failure: What is wrong with it, where that decides the exit code.
    """

    json: Mapping[str, object]
    tables: tuple[Table, ...]
    rows: Table | None = None
    failure: EffdlError | None = None


def can_style(stream: TextIO) -> bool:
    """Whether colours and moving lines are welcome on a stream."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return stream.isatty() and not plain


def write_answer(answer: Answer, form: Format) -> None:
    """Write an answer to stdout in the form asked for."""
    if form == "json":
        failed = {} if answer.failure is None else {"error": _error_body(answer.failure)}
        _write(_json_line({"schema_version": SCHEMA_VERSION, **answer.json, **failed}))
    elif form == "csv":
        _write(_csv_text(answer.rows or answer.tables[0]))
    elif can_style(sys.stdout):
        _write_rich(answer.tables)
    else:
        _write("\n".join(_plain_text(table) for table in answer.tables))
    if answer.failure is not None:
        _write_message(answer.failure)


def write_error(error: EffdlError, *, as_json: bool) -> None:
    """Write a failure: for people on stderr, and where asked for as JSON on stdout."""
    if as_json:
        _write(_json_line({"schema_version": SCHEMA_VERSION, "error": _error_body(error)}))
    _write_message(error)


def _error_body(error: EffdlError) -> dict[str, object]:
    name = type(error).__name__.removeprefix("_")
    return {"type": name, "message": error.message, "hint": error.hint, **error.details()}


def _write_message(error: EffdlError) -> None:
    label, hint = "error:", "hint:"
    if can_style(sys.stderr):
        label, hint = click.style(label, fg="red", bold=True), click.style(hint, fg="cyan")
    click.echo(f"{label} {error.message}", err=True)
    if error.hint is not None:
        click.echo(f"\n{hint} {error.hint}", err=True)


def _write(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    try:
        click.echo(text.encode(encoding, "backslashreplace").decode(encoding), nl=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has had enough; Python would complain again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None


def _json_line(value: Mapping[str, object]) -> str:
    try:
        text = json.dumps(value, allow_nan=False, default=os.fspath)
    except ValueError:
        text = json.dumps(_finite(value), allow_nan=False, default=os.fspath)
    return text + "\n"


def _finite(value: object) -> object:
    """The value with null where a float is not a number JSON can hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _csv_text(table: Table) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows([_csv_cell(cell) for cell in row] for row in table.rows)
    return text.getvalue()


def _csv_cell(cell: object) -> object:
    if isinstance(cell, list | tuple):
        return "-".join(map(str, cell))
    if isinstance(cell, bool):
        return str(cell).lower()
    return "" if cell is None or (isinstance(cell, float) and not math.isfinite(cell)) else cell


def _heading(column: str) -> str:
    words = column.split("_")
    unit = _UNITS.get(words[-1]) if len(words) > 1 else None
    return " ".join(words) if unit is None else f"{' '.join(words[:-1])} [{unit}]"


def _text_cell(cell: object) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell / 1e6:,.1f} M" if cell >= 1e6 else f"{cell:,}"
    if isinstance(cell, float):
        if not math.isfinite(cell):
            return "-"
        return f"{cell:,.0f}" if abs(cell) >= 1e5 else f"{cell:.4g}"
    if isinstance(cell, list | tuple):
        return "-".join(map(str, cell))
    return str(cell)


def _right_aligned(table: Table) -> list[bool]:
    """Which columns hold numbers only."""
    columns = zip(*table.rows, strict=True) if table.rows else [()] * len(table.columns)
    kinds = [{type(cell) for cell in column if cell is not None} for column in columns]
    return [bool(kind) and kind <= {int, float} for kind in kinds]


def _plain_text(table: Table) -> str:
    table = _without_empty_columns(table)
    cells = [
        [_heading(column) for column in table.columns],
        *([_text_cell(cell) for cell in row] for row in table.rows),
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = _right_aligned(table)
    lines = [
        "  ".join(
            text.rjust(width) if numbers else text.ljust(width)
            for text, width, numbers in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    ]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([table.title, "", lines[0], rule, *lines[1:]]) + "\n"


def _write_rich(tables: Sequence[Table]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as RichTable

    console = Console(file=sys.stdout, highlight=False)
    for table in map(_without_empty_columns, tables):
        shown = RichTable(title=escape(table.title), title_justify="left", box=box.SIMPLE_HEAD)
        cells = [[_text_cell(cell) for cell in row] for row in table.rows]
        for i, right in enumerate(_right_aligned(table)):
            shown.add_column(
                escape(_heading(table.columns[i])),
                justify="right" if right else "left",
                overflow="fold",
                # A number broken over two lines is another number.
                min_width=max(len(row[i]) for row in cells) if right else None,
            )
        for row in cells:
            shown.add_row(*map(escape, row))
        console.print(shown)


def _without_empty_columns(table: Table) -> Table:
    kept = [
        i
        for i, column in enumerate(zip(*table.rows, strict=True))
        if any(c is not None for c in column)
    ]
    if not kept:
        return table
    return replace(
        table,
        columns=tuple(table.columns[i] for i in kept),
        rows=[[row[i] for i in kept] for row in table.rows],
    )
