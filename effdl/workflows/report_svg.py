"""The picture of a Pareto front as inline SVG."""

import math
from collections.abc import Iterator, Sequence
from html import escape

from effdl.workflows.report_chart import ParetoChart

__all__ = ["draw_svg"]

_WIDTH, _HEIGHT = 860, 490
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 840, 62, 424


class _Axis:
    """Maps values to pixels over round tick positions."""

    def __init__(self, values: Sequence[float], start_px: float, end_px: float) -> None:
        low, high = min(values), max(values)
        margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        self.low, self.high = low - margin, high + margin
        self._start_px, self._end_px = start_px, end_px

    def px(self, value: float) -> float:
        ratio = (value - self.low) / (self.high - self.low)
        return round(self._start_px + ratio * (self._end_px - self._start_px), 2)

    def ticks(self, about: int) -> list[float]:
        rough = (self.high - self.low) / about
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [round(i * step, 10) for i in range(first, last + 1)]


def draw_svg(chart: ParetoChart) -> str:
    """The chart as one ``<svg>`` element; the page's style sheet gives the colours."""
    x = _Axis(chart.latencies_ms, _LEFT, _RIGHT)
    y = _Axis(chart.accuracies_percent, _BOTTOM, _TOP)
    return "\n".join(
        [
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
            'aria-labelledby="chart-title chart-text" xmlns="http://www.w3.org/2000/svg">',
            f'<title id="chart-title">{escape(chart.title)}</title>',
            f'<desc id="chart-text">{escape(_description(chart))}</desc>',
            *_frame(chart, x, y),
            *_limit(chart, x),
            *_front(chart, x, y),
            *_chosen(chart, x, y),
            "</svg>",
        ]
    )


def _frame(chart: ParetoChart, x: _Axis, y: _Axis) -> Iterator[str]:
    for tick in x.ticks(8):
        px = x.px(tick)
        yield f'<line class="grid" x1="{px}" x2="{px}" y1="{_TOP}" y2="{_BOTTOM}"/>'
        yield f'<text class="tick" x="{px}" y="{_BOTTOM + 20}">{tick:g}</text>'
    for tick in y.ticks(6):
        px = y.px(tick)
        yield f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{px}" y2="{px}"/>'
        yield f'<text class="tick left" x="{_LEFT - 10}" y="{px + 4}">{tick:g}</text>'
    across = (_LEFT + _RIGHT) / 2
    yield f'<text class="axis" x="{across}" y="{_HEIGHT - 14}">{escape(chart.latency_axis)}</text>'
    yield f'<text x="{_LEFT - 40}" y="22">{escape(chart.accuracy_axis)}</text>'


def _limit(chart: ParetoChart, x: _Axis) -> Iterator[str]:
    if chart.limit_ms is None:
        return
    px = x.px(chart.limit_ms)
    width = round(_RIGHT - px, 2)
    height = _BOTTOM - _TOP
    yield f'<rect class="beyond" x="{px}" y="{_TOP}" width="{width}" height="{height}"/>'
    yield f'<line class="limit" x1="{px}" x2="{px}" y1="{_TOP}" y2="{_BOTTOM}"/>'
    yield (
        f'<text class="limit-label" x="{min(px, _RIGHT - 40)}" y="{_TOP - 12}">'
        f"{escape(chart.limit_label)}</text>"
    )


def _front(chart: ParetoChart, x: _Axis, y: _Axis) -> Iterator[str]:
    places = [(x.px(p.latency_ms), y.px(p.accuracy_percent)) for p in chart.points]
    line = " ".join(f"{px},{py}" for px, py in places)
    yield f'<polyline class="front" points="{line}"/>'
    for (px, py), point in zip(places, chart.points, strict=True):
        yield (
            f'<circle class="point" cx="{px}" cy="{py}" r="4">'
            f"<title>{escape(point.label)}</title></circle>"
        )


def _chosen(chart: ParetoChart, x: _Axis, y: _Axis) -> Iterator[str]:
    px, py = x.px(chart.chosen.latency_ms), y.px(chart.chosen.accuracy_percent)
    if chart.measured_latency_ms is not None:
        measured = x.px(chart.measured_latency_ms)
        yield f'<line class="gap" x1="{px}" x2="{measured}" y1="{py}" y2="{py}"/>'
        yield (
            f'<rect class="measured" x="{measured - 6}" y="{py - 6}" width="12" height="12">'
            f"<title>measured: {chart.measured_latency_ms:.4g} ms</title></rect>"
        )
    yield (
        f'<path class="chosen" transform="translate({px} {py})" d="{_star(11)}">'
        f"<title>chosen: {escape(chart.chosen.label)}</title></path>"
    )


def _description(chart: ParetoChart) -> str:
    text = (
        f"{len(chart.points)} networks, the fastest {chart.points[0].label}; the slowest "
        f"{chart.points[-1].label}. Chosen: {chart.chosen.label}. {chart.limit_label}."
    )
    if chart.measured_latency_ms is None:
        return text
    return f"{text} By the clock the chosen one takes {chart.measured_latency_ms:.4g} ms."


def _star(radius: float) -> str:
    corners = []
    for i in range(10):
        length = radius if i % 2 == 0 else 0.45 * radius
        angle = math.pi * (i / 5 - 0.5)
        corners.append(f"{length * math.cos(angle):.2f} {length * math.sin(angle):.2f}")
    return "M" + "L".join(corners) + "Z"
