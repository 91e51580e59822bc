"""The report as one HTML page that needs no network, no script and no other file."""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from effdl.units import format_bytes, format_latency_ms, format_macs, format_params
from effdl.workflows.report_chart import ParetoChart
from effdl.workflows.report_svg import draw_svg

__all__ = ["render_page"]

_NUM_ROWS = 12

_LIMITS = {
    "latency_ms": ("latency at most", format_latency_ms),
    "macs": ("MACs at most", format_macs),
    "params": ("parameters at most", format_params),
    "peak_memory_bytes": ("peak memory at most", format_bytes),
}

_SOURCES = {
    "measured": "a table of measured operators",
    "fitted": "a model fitted to measured networks",
    "interpolated": "a measured table, interpolated between resolutions",
    "estimated": "an estimate from the device's published figures; nothing was measured",
}

_STYLE = """
:root{color-scheme:light dark;--paper:#fff;--card:#f6f8fa;--ink:#1f2933;--soft:#5b6773;
--line:#e1e6eb;--blue:#2563eb;--orange:#c2410c;--tint:rgba(91,103,115,.07)}
@media(prefers-color-scheme:dark){:root{--paper:#12171d;--card:#1a2129;--ink:#e6ebf0;
--soft:#9aa7b4;--line:#2b343e;--blue:#7aa5ff;--orange:#ff9d5c;--tint:rgba(154,167,180,.08)}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:960px;padding:2.5rem 1.25rem 4rem;background:var(--paper);
color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:1.75rem;line-height:1.25;margin:0 0 .4rem}
h2{font-size:1.15rem;margin:2.4rem 0 .7rem}
.lead{color:var(--soft);margin:0 0 1.6rem}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(170px,1fr));gap:.75rem;margin:0}
.facts div{background:var(--card);border:1px solid var(--line);border-radius:10px;
padding:.75rem .9rem}
.facts dt{color:var(--soft);font-size:.82rem}
.facts dd{margin:.1rem 0 0;font-size:1.3rem;font-weight:600;font-variant-numeric:tabular-nums}
.facts dd small{display:block;font-size:.78rem;font-weight:400;color:var(--soft)}
figure{margin:1.8rem 0 0;background:var(--card);border:1px solid var(--line);border-radius:12px;
padding:1rem}
figcaption{color:var(--soft);font-size:.88rem;padding:.4rem .3rem 0}
svg{display:block;width:100%;height:auto}
svg text{font:13px system-ui,sans-serif;fill:var(--ink)}
.tick{fill:var(--soft)!important;text-anchor:middle}
.tick.left{text-anchor:end}
.axis{text-anchor:middle}
.grid{stroke:var(--line)}
.front{fill:none;stroke:var(--blue);stroke-width:2;opacity:.55}
.point{fill:var(--blue)}
.point:hover{stroke:var(--blue);stroke-width:5;stroke-opacity:.35}
.limit{stroke:var(--soft);stroke-width:1.5;stroke-dasharray:6 5}
.limit-label{fill:var(--soft)!important;text-anchor:middle}
.beyond{fill:var(--tint)}
.chosen{fill:var(--orange);stroke:var(--card);stroke-width:1.5}
.measured{fill:var(--card);stroke:var(--orange);stroke-width:2}
.gap{stroke:var(--orange);stroke-dasharray:2 3}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.92rem;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--soft);font-size:.88rem;padding-bottom:.5rem}
th,td{padding:.42rem .6rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child,td.text{text-align:left}
th:last-child:nth-child(-n+3){text-align:left}
thead th{color:var(--soft);font-weight:600;font-size:.82rem}
tr.chosen-row td,tr.chosen-row th{color:var(--orange);font-weight:600}
.block{display:inline-block;border:1px solid var(--line);background:var(--card);border-radius:6px;
padding:.1rem .45rem;margin-right:.35rem;font-size:.85rem}
footer{margin-top:2.6rem;
color:var(--soft);font-size:.85rem;border-top:1px solid var(--line);padding-top:.9rem}
"""


def render_page(outcome: Mapping[str, Any], chart: ParetoChart, versions: Mapping[str, str]) -> str:
    """The whole page.

    Args:
        outcome: What ``effdl search --format json`` prints.
        chart: Its picture.
        versions: Installed versions by package.
    """
    target, best = outcome["target"], outcome["best"]
    source = target["latency_source"]
    headline = f"{_percent(best)} at {_ms(best['predicted_latency_ms'])} on {target['name']}"
    lead = (
        f"{outcome['space']} on {target['device']}, {target['runtime']}, batch size "
        f"{target['batch_size']}. Latency comes from {_SOURCES.get(source, source)}."
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{escape(f"effdl search: {target['name']}")}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{escape(headline)}</h1>
<p class="lead">{escape(lead)}</p>
{_facts(outcome)}
<figure>
{draw_svg(chart)}
<figcaption>{escape(_caption(chart))}</figcaption>
</figure>
<h2>The chosen network</h2>
{_network(best["config"])}
<h2>Top networks</h2>
{_networks(outcome)}
<h2>How it was found</h2>
{_run(outcome)}
</main>
<footer>{escape(", ".join(f"{name} {version}" for name, version in versions.items()))}</footer>
</body>
</html>
"""


def _facts(outcome: Mapping[str, Any]) -> str:
    best, source = outcome["best"], outcome["target"]["latency_source"]
    accuracy = best["accuracy"]
    said = [accuracy["metric"], accuracy["source"]]
    if accuracy["raw"] is not None:
        said.append(f"raw {accuracy['raw']:.4f}")
    facts = [
        ("predicted accuracy", _percent(best), "; ".join(said)),
        ("predicted latency", _ms(best["predicted_latency_ms"]), source),
    ]
    if best["measured_latency_ms"] is not None:
        facts.append(("measured latency", _ms(best["measured_latency_ms"]), "by the clock"))
    facts.append(("MACs", _millions(best["macs"]), "for one sample"))
    facts.append(("parameters", _millions(best["params"]), ""))
    cards = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"
        for name, value, note in facts
    )
    return f'<dl class="facts">{cards}</dl>'


def _caption(chart: ParetoChart) -> str:
    square = ", the square its latency by the clock" if chart.measured_latency_ms else ""
    line = "the dashed line is the limit"
    if chart.limit_ms is None:
        line = f"the {chart.limit_label} lies beyond the picture"
    return (
        f"{len(chart.points)} networks of which none is both slower and less accurate than "
        f"another. The star is the chosen one{square}; {line}."
    )


def _network(config: Mapping[str, Any]) -> str:
    per_unit = len(config["kernel_size"]) // len(config["depth"])
    body = ""
    for unit, depth in enumerate(config["depth"]):
        start = unit * per_unit
        places = zip(config["kernel_size"], config["expand_ratio"], strict=True)
        blocks = "".join(
            f'<span class="block">{kernel_size}&times;{kernel_size}, expand {expand_ratio:g}</span>'
            for kernel_size, expand_ratio in list(places)[start : start + depth]
        )
        body += _row(f"unit {unit + 1}", [f"<td>{depth}</td>", f'<td class="text">{blocks}</td>'])
    size = f"{config['resolution']} &times; {config['resolution']} px"
    return _table(
        f"Input {size}. Each block: its depthwise kernel and its expansion.",
        ["unit", "depth", "blocks"],
        body,
    )


def _networks(outcome: Mapping[str, Any]) -> str:
    top = list(outcome["top"])
    shown = top + [n for n in reversed(outcome["pareto_front"]) if n not in top]
    shown = shown[: max(_NUM_ROWS, len(top))]
    measured = any(network["measured_latency_ms"] is not None for network in shown)
    columns = ["network", "accuracy", "predicted latency", "measured latency"]
    columns += ["MACs", "parameters", "resolution", "depths"]
    body = ""
    for number, network in enumerate(shown):
        config = network["config"]
        cells = [
            _percent(network),
            _ms(network["predicted_latency_ms"]),
            _ms(network["measured_latency_ms"]),
            _millions(network["macs"]),
            _millions(network["params"]),
            f"{config['resolution']} px",
            "-".join(map(str, config["depth"])),
        ]
        if not measured:
            del cells[2]
        name = f"#{number + 1}" if number else "#1, chosen"
        body += _row(name, [f"<td>{escape(cell)}</td>" for cell in cells], chosen=number == 0)
    if not measured:
        columns.remove("measured latency")
    return _table("The best, then the slowest of the front; pareto.csv has all.", columns, body)


def _run(outcome: Mapping[str, Any]) -> str:
    rows = [
        *((_LIMITS[name][0], _LIMITS[name][1](x)) for name, x in outcome["constraints"].items()),
        ("networks asked for", f"{outcome['num_evaluations']:,}"),
        ("different networks evaluated", f"{outcome['num_unique']:,}"),
        ("processor time", f"{outcome['search_cpu_seconds']:.3g} s"),
        ("elapsed time", f"{outcome['search_wall_seconds']:.3g} s"),
        ("seed", str(outcome["seed"])),
    ]
    return _table(
        "The same inputs and the same seed give the same networks.",
        ["setting", "value"],
        "".join(_row(name, [f"<td>{escape(value)}</td>"]) for name, value in rows),
    )


def _table(caption: str, columns: Iterable[str], body: str) -> str:
    """A table with its caption and body given as HTML."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    return (
        f'<div class="scroll"><table><caption>{caption}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _row(name: str, cells: Iterable[str], *, chosen: bool = False) -> str:
    """A row with its cells given as HTML."""
    mark = ' class="chosen-row"' if chosen else ""
    return f'<tr{mark}><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>'


def _ms(latency_ms: float | None) -> str:
    if latency_ms is None:
        return "-"
    return f"{latency_ms:.2f} ms" if latency_ms >= 1 else f"{latency_ms:.4g} ms"


def _percent(network: Mapping[str, Any]) -> str:
    return f"{network['accuracy']['value']:.2f} %"


def _millions(count: float) -> str:
    return f"{count / 1e6:,.1f} M"
