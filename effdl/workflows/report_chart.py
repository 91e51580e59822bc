"""The picture of a Pareto front: what is in it, and its drawing as PNG."""

import io
from dataclasses import dataclass

__all__ = ["ChartPoint", "ParetoChart", "draw_png"]

_INK, _GREY, _BLUE, _ORANGE = "#1f2933", "#7b8794", "#2563eb", "#d9480f"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartPoint:
    """One network.

    Attributes:
        latency_ms: Predicted time of one forward pass of the whole batch.
        accuracy_percent: Its predicted accuracy.
        label: What a pointer over it shows.
    """

    latency_ms: float
    accuracy_percent: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ParetoChart:
    """What to draw.

    Attributes:
        title: One line over the picture.
        latency_axis: Label of the horizontal axis, with its unit.
        accuracy_axis: What the vertical axis shows, with its unit; long, so it stands above.
        points: The front, fastest first; at least one.
        chosen: The network the search returned.
        limit_ms: The latency limit; None: it lies beyond the picture.
        limit_label: What it is.
        measured_latency_ms: The chosen network's latency by the clock, if measured.
    """

    title: str
    latency_axis: str
    accuracy_axis: str
    points: tuple[ChartPoint, ...]
    chosen: ChartPoint
    limit_ms: float | None
    limit_label: str
    measured_latency_ms: float | None = None

    @property
    def latencies_ms(self) -> tuple[float, ...]:
        """Everything that has to fit on the horizontal axis."""
        others = (self.limit_ms, self.measured_latency_ms)
        return (
            *(point.latency_ms for point in (*self.points, self.chosen)),
            *(latency_ms for latency_ms in others if latency_ms is not None),
        )

    @property
    def accuracies_percent(self) -> tuple[float, ...]:
        """Everything that has to fit on the vertical axis."""
        return tuple(point.accuracy_percent for point in (*self.points, self.chosen))


def draw_png(chart: ParetoChart) -> bytes:
    """The chart as PNG, 1350 x 825 pixels; the same chart gives the same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.12)
    figure = Figure(figsize=(9, 5.5), dpi=150, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    # Names come from the user's files, and a dollar sign is no formula.
    axes.set_title(chart.title, loc="left", fontsize=13, color=_INK, pad=46, parse_math=False)
    label = {"fontsize": 10.5, "color": _INK, "parse_math": False}
    axes.set_xlabel(chart.latency_axis, labelpad=8, **label)
    offset = {"xycoords": "axes fraction", "textcoords": "offset points"}
    axes.annotate(chart.accuracy_axis, (0, 1), (0, 27), **offset, **label)
    axes.grid(color="#e4e8ec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b8c0c8")
    axes.tick_params(labelcolor=_INK, labelsize=9.5, color="#b8c0c8")
    latencies = [point.latency_ms for point in chart.points]
    accuracies = [point.accuracy_percent for point in chart.points]
    axes.plot(latencies, accuracies, color=_BLUE, linewidth=1.6, alpha=0.55, zorder=2)
    axes.scatter(
        latencies, accuracies, s=22, color=_BLUE, linewidths=0, zorder=3, label="Pareto front"
    )
    if chart.limit_ms is not None:
        axes.axvline(chart.limit_ms, color=_GREY, linestyle=(0, (5, 4)), linewidth=1.3, zorder=1)
        axes.annotate(
            chart.limit_label,
            (chart.limit_ms, 1),
            (0, 6),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            fontsize=9.5,
            color=_GREY,
        )
    height = chart.chosen.accuracy_percent
    if chart.measured_latency_ms is not None:
        ends = [chart.chosen.latency_ms, chart.measured_latency_ms]
        axes.plot(ends, [height, height], color=_ORANGE, linewidth=1, linestyle=":", zorder=3)
        axes.scatter(
            ends[1:],
            [height],
            s=70,
            marker="s",
            facecolor="white",
            edgecolor=_ORANGE,
            linewidth=1.8,
            zorder=4,
            label="chosen, measured",
        )
    axes.scatter(
        [chart.chosen.latency_ms],
        [height],
        s=230,
        marker="*",
        color=_ORANGE,
        edgecolor="white",
        linewidth=1,
        zorder=5,
        label="chosen",
    )
    axes.margins(0.06, 0.09)
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(0.92, 0.02),
        fontsize=9.5,
        labelcolor=_INK,
        framealpha=0.9,
        edgecolor="none",
    )
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    return data.getvalue()
