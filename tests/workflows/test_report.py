"""The run folder and the report of a search, from made outcomes."""

import csv
import html.parser
import io
import json
import struct
import subprocess
import sys
import xml.etree.ElementTree as ET
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effdl.errors import OutputError
from effdl.models.mobilenet_v3.space import ofa_mbv3_w12
from effdl.workflows.report import pareto_chart, pareto_csv, write_report
from effdl.workflows.report_page import render_page
from effdl.workflows.report_svg import draw_svg
from effdl.workflows.run_folder import installed_versions, run_folder

NASTY = "</title><script>alert('x')</script> & \"$x^2$\" <b>"


def make_network(config: dict[str, object], latency_ms: float, percent: float) -> dict[str, Any]:
    return {
        "config": config,
        "predicted_latency_ms": latency_ms,
        "measured_latency_ms": None,
        "accuracy": {
            "metric": "ImageNet top-1",
            "value": percent,
            "unit": "percent",
            "raw": percent / 100 + 0.03,
            "source": "made up",
        },
        "params": 6_000_000,
        "macs": 250_000_000,
        "onnx": None,
    }


def make_outcome(num: int = 40, *, device: str = "a made device") -> dict[str, Any]:
    space = ofa_mbv3_w12().search_space
    rows = space.sample(num, np.random.default_rng(0))
    front = [
        make_network(space.decode(row).to_json(), 8 + 12 * i / num, 72 + 6 * (i / num) ** 0.5)
        for i, row in enumerate(rows)
    ]
    return {
        "target": {
            "name": "made-gpu",
            "device": device,
            "batch_size": 64,
            "runtime": "a made runtime",
            "latency_source": "fitted",
        },
        "space": "ofa-mbv3-w1.2",
        "constraints": {"latency_ms": 20.0, "macs": 3e8},
        "best": front[-1],
        "top": front[-1:],
        "pareto_front": front,
        "num_evaluations": 50_100,
        "num_unique": 42_000,
        "search_cpu_seconds": 0.51,
        "search_wall_seconds": 0.55,
        "seed": 7,
        "out": "runs/made",
    }


def page_of(outcome: dict[str, Any]) -> str:
    return render_page(outcome, pareto_chart(outcome), installed_versions())


def svg_of(outcome: dict[str, Any]) -> ET.Element:
    return ET.fromstring(draw_svg(pareto_chart(outcome)))


def of_class(root: ET.Element, name: str) -> list[ET.Element]:
    return [element for element in root.iter() if element.get("class") == name]


class PageParser(html.parser.HTMLParser):
    """Every start tag with its attributes, and whether tags are balanced."""

    VOID = frozenset(("meta", "line", "rect", "circle", "path", "polyline", "br"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.stack: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.stack.pop() == tag


def test_csv_holds_the_front_exactly() -> None:
    outcome = make_outcome()
    rows = list(csv.DictReader(io.StringIO(pareto_csv(outcome))))
    assert len(rows) == 40
    for row, network in zip(rows, outcome["pareto_front"], strict=True):
        assert float(row["predicted_latency_ms"]) == network["predicted_latency_ms"]
        assert float(row["accuracy_percent"]) == network["accuracy"]["value"]
        assert row["measured_latency_ms"] == ""
        for name in ("depth", "kernel_size", "expand_ratio"):
            assert [int(v) for v in row[name].split("-")] == network["config"][name]
        assert int(row["resolution"]) == network["config"]["resolution"]
    assert [row["chosen"] for row in rows] == ["false"] * 39 + ["true"]


def test_svg_places_points_in_order_and_marks_choice_and_limit() -> None:
    outcome = make_outcome()
    outcome["constraints"]["latency_ms"] = 25.0
    root = svg_of(outcome)
    points = of_class(root, "point")
    xs = [float(point.get("cx", "nan")) for point in points]
    ys = [float(point.get("cy", "nan")) for point in points]
    assert len(points) == 40
    assert xs == sorted(xs)
    assert ys == sorted(ys, reverse=True)
    (limit,) = of_class(root, "limit")
    assert float(limit.get("x1", "nan")) > xs[-1]
    (chosen,) = of_class(root, "chosen")
    assert chosen.get("transform") == f"translate({points[-1].get('cx')} {points[-1].get('cy')})"
    # The horizontal distance between points is proportional to their latency.
    first, middle, last = xs[0], xs[20], xs[-1]
    assert (middle - first) / (last - first) == pytest.approx(20 / 39, abs=1e-3)


def test_a_limit_far_away_does_not_squeeze_the_front() -> None:
    outcome = make_outcome()
    outcome["constraints"]["latency_ms"] = 5000.0
    root = svg_of(outcome)
    xs = [float(point.get("cx", "nan")) for point in of_class(root, "point")]
    assert xs[-1] - xs[0] > 500
    assert of_class(root, "limit") == []
    assert "limit 5s lies beyond the picture" in page_of(outcome)


def test_svg_ticks_are_round_and_on_scale() -> None:
    root = svg_of(make_outcome())
    ticks = {float(t.text or "nan"): float(t.get("x", "nan")) for t in of_class(root, "tick")}
    assert all(value == round(value, 0) for value in ticks)
    points = of_class(root, "point")
    # The point at 8 ms and the tick that says 8 are at one place.
    assert ticks[8.0] == pytest.approx(float(points[0].get("cx", "nan")), abs=0.01)


def test_measured_latency_stands_beside_the_predicted_one() -> None:
    outcome = make_outcome()
    assert not of_class(svg_of(outcome), "measured")
    outcome["best"]["measured_latency_ms"] = 21.25
    (square,) = of_class(svg_of(outcome), "measured")
    (chosen,) = of_class(svg_of(outcome), "chosen")
    star_x = float((chosen.get("transform") or "")[len("translate(") :].split()[0])
    assert float(square.get("x", "nan")) + 6 > star_x
    page = page_of(outcome)
    assert "21.25 ms" in page
    assert "measured latency" in page


def test_page_states_where_the_latency_comes_from() -> None:
    outcome = make_outcome()
    assert "fitted to measured networks" in page_of(outcome)
    outcome["target"]["latency_source"] = "estimated"
    assert "nothing was measured" in page_of(outcome)
    assert "measured operators" not in page_of(outcome)


def test_page_is_one_offline_accessible_file() -> None:
    text = page_of(make_outcome())
    page = PageParser(text)
    assert page.stack == []
    names = [tag for tag, _ in page.tags]
    assert not {"script", "link", "img", "iframe", "object"} & set(names)
    assert "url(" not in text
    assert "@import" not in text
    attributes = [(k, v) for _, attrs in page.tags for k, v in attrs.items()]
    assert not [k for k, v in attributes if k in {"src", "href"} or k.startswith("on")]
    assert dict(page.tags)["html"]["lang"] == "en"
    svg = dict(page.tags)["svg"]
    labels = (svg["aria-labelledby"] or "").split()
    ids = {attrs.get("id") for _, attrs in page.tags}
    assert svg["role"] == "img"
    assert set(labels) <= ids
    assert names.count("table") == names.count("caption") == 3
    assert all("scope" in attrs for tag, attrs in page.tags if tag == "th")
    assert "prefers-color-scheme:dark" in text


def test_names_cannot_inject_anything() -> None:
    outcome = make_outcome(device=NASTY)
    for name in ("name", "runtime"):
        outcome["target"][name] = NASTY
    outcome["space"] = NASTY
    outcome["best"]["accuracy"]["metric"] = NASTY
    outcome["best"]["accuracy"]["source"] = NASTY
    page = PageParser(page_of(outcome))
    assert page.stack == []
    assert not {"script", "b"} & {tag for tag, _ in page.tags}


@settings(max_examples=30, deadline=None)
@given(
    device=st.text(min_size=1, max_size=40),
    latencies=st.lists(st.floats(1e-3, 1e5), min_size=1, max_size=8),
    percents=st.lists(st.floats(0.1, 99.9), min_size=1, max_size=8),
)
def test_any_front_gives_a_balanced_page(
    device: str, latencies: list[float], percents: list[float]
) -> None:
    outcome = make_outcome(1, device=device)
    config = outcome["best"]["config"]
    pairs = zip(sorted(latencies), sorted(percents), strict=False)
    front = [make_network(config, latency, percent) for latency, percent in pairs]
    outcome |= {"pareto_front": front, "best": front[-1], "top": front[-1:]}
    assert PageParser(page_of(outcome)).stack == []


def test_report_files_are_complete_and_repeatable(tmp_path: Path) -> None:
    outcome = make_outcome(device=NASTY)
    outcome["best"]["measured_latency_ms"] = 19.0
    contents = []
    for name in ("a", "b"):
        folder = tmp_path / name
        write_report(folder, outcome)
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert sorted(contents[0]) == ["pareto.csv", "pareto.png", "report.html", "result.json"]
    assert contents[0] == contents[1]
    assert json.loads(contents[0]["result.json"]) == {"schema_version": 1, **outcome}


def test_png_is_whole_and_not_blank(tmp_path: Path) -> None:
    write_report(tmp_path, make_outcome())
    data = (tmp_path / "pareto.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (1350, 825)
    position, pixels = 8, b""
    while position < len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        kind = data[position + 4 : position + 8]
        body = data[position + 8 : position + 8 + length]
        assert struct.unpack(">I", data[position + 8 + length :][:4])[0] == zlib.crc32(kind + body)
        pixels += body if kind == b"IDAT" else b""
        position += 12 + length
    assert len(set(zlib.decompress(pixels))) > 50


def test_report_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    taken = tmp_path / "file"
    taken.write_text("mine")
    with pytest.raises(OutputError):
        write_report(taken / "folder", make_outcome(2))
    assert taken.read_text() == "mine"


def test_default_run_folders_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with run_folder("search", None, {"target": "gpu"}) as first:
        pass
    with run_folder("search", None, {"target": "gpu"}) as second:
        pass
    assert first.parent == second.parent == Path("runs")
    assert (first.name[-2:], second.name[-2:]) == ("-1", "-2")
    config = json.loads((first / "config.json").read_text())
    assert config == {"schema_version": 1, "verb": "search", "settings": {"target": "gpu"}}
    assert "numpy" in json.loads((first / "versions.json").read_text())


def test_run_folder_of_another_run_is_refused_and_untouched(tmp_path: Path) -> None:
    with run_folder("search", tmp_path / "run", {"seed": 1}) as folder:
        (folder / "result.json").write_text("{}")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(OutputError, match="taken"), run_folder("search", folder, {"seed": 2}):
        pass
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_failed_run_leaves_no_folder(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        with run_folder("search", folder, {}) as made:
            (made / "model.onnx").write_text("half")
            (made / "sub").mkdir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "given").mkdir()
    with pytest.raises(KeyboardInterrupt):
        fail(tmp_path / "given")
    assert list((tmp_path / "given").iterdir()) == []


@pytest.mark.parametrize("below", ["file/run", "file"])
def test_run_folder_that_cannot_be_made(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError) as caught, run_folder("search", tmp_path / below, {}):
        pass
    assert caught.value.exit_code == 8


def test_two_processes_never_share_a_folder(tmp_path: Path) -> None:
    code = (
        "from effdl.workflows.run_folder import run_folder\n"
        "for _ in range(20):\n"
        "    with run_folder('race', None, {}) as folder:\n"
        "        print(folder.name)\n"
    )
    command = [sys.executable, "-c", code]
    racers = [
        subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    names = [name for racer in racers for name in racer.communicate(timeout=60)[0].split()]
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    assert len(names) == len(set(names)) == 60
