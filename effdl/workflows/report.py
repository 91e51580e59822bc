"""The report of a search: the Pareto front as a table, a picture and one page."""

import csv
import io
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from effdl.files import write_atomically
from effdl.units import format_latency_ms
from effdl.workflows.report_chart import ChartPoint, ParetoChart, draw_png
from effdl.workflows.report_page import render_page
from effdl.workflows.run_folder import encode_json, installed_versions

__all__ = ["pareto_chart", "pareto_csv", "write_report"]

_COLUMNS = (
    "chosen",
    "predicted_latency_ms",
    "measured_latency_ms",
    "accuracy_percent",
    "params",
    "macs",
    "resolution",
    "depth",
    "kernel_size",
    "expand_ratio",
)


def write_report(folder: Path, outcome: Mapping[str, Any]) -> None:
    """Write ``result.json``, ``pareto.csv``, ``pareto.png`` and ``report.html``.

    Everything is drawn before the first file is written, and each file is
    written whole or not at all.

    Args:
        folder: The run folder; it exists.
        outcome: What ``effdl search --format json`` prints.

    Raises:
        OutputError: A file cannot be written.
    """
    chart = pareto_chart(outcome)
    page = render_page(outcome, chart, installed_versions())
    files = {
        "result.json": encode_json(outcome),
        "pareto.csv": pareto_csv(outcome).encode(),
        "pareto.png": draw_png(chart),
        "report.html": page.encode(),
    }
    for name, data in files.items():
        write_atomically(folder / name, data)


def pareto_csv(outcome: Mapping[str, Any]) -> str:
    """The front by increasing cost, one network a row, lists joined by hyphens."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    best = outcome["best"]
    for network in outcome["pareto_front"] or [best]:
        config = network["config"]
        writer.writerow(
            [
                str(config == best["config"]).lower(),
                network["predicted_latency_ms"],
                _cell(network["measured_latency_ms"]),
                network["accuracy"]["value"],
                network["params"],
                network["macs"],
                *(_cell(config[name]) for name in _COLUMNS[6:]),
            ]
        )
    return text.getvalue()


def pareto_chart(outcome: Mapping[str, Any]) -> ParetoChart:
    """What the pictures show: predicted accuracy over predicted latency."""
    target, best = outcome["target"], outcome["best"]
    batch_size, limit_ms = target["batch_size"], outcome["constraints"]["latency_ms"]
    points = tuple(map(_point, outcome["pareto_front"] or [best]))
    slowest_ms = max(point.latency_ms for point in points)
    samples = "1 sample" if batch_size == 1 else f"{batch_size} samples"
    return ParetoChart(
        title=f"The most accurate networks of {_short(outcome['space'], 30)} on {target['name']}",
        latency_axis=(
            f"Latency of one forward pass of {samples} on {_short(target['device'], 50)} [ms], "
            f"{target['latency_source']}"
        ),
        accuracy_axis=f"{_short(best['accuracy']['metric'], 90)} [%]",
        points=points,
        chosen=_point(best),
        # A limit far beyond every network would squeeze the front into a corner.
        limit_ms=limit_ms if limit_ms <= 1.5 * slowest_ms else None,
        limit_label=f"limit {format_latency_ms(limit_ms)}",
        measured_latency_ms=best["measured_latency_ms"],
    )


def _point(network: Mapping[str, Any]) -> ChartPoint:
    latency_ms, percent = network["predicted_latency_ms"], network["accuracy"]["value"]
    return ChartPoint(
        latency_ms=latency_ms,
        accuracy_percent=percent,
        label=(
            f"{latency_ms:.4g} ms, {percent:.2f} %, {network['macs'] / 1e6:,.0f} million MACs, "
            f"{network['config']['resolution']} px"
        ),
    )


def _short(text: str, num_characters: int) -> str:
    return textwrap.shorten(text, num_characters, placeholder="...")


def _cell(value: object) -> object:
    if isinstance(value, list | tuple):
        return "-".join(map(str, value))
    return "" if value is None else value
