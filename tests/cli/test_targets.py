"""``effdl targets``: list, show, fit and suggest."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from effdl.models.mobilenet_v3.space import ofa_mbv3_w12
from effdl.workflows.costs import SpaceCosts

Invoke = Callable[..., Result]
InvokeJson = Callable[..., dict[str, Any]]
LISTS = ("kernel_size", "expand_ratio", "depth")


@pytest.fixture
def measurements(tmp_path: Path) -> Path:
    """40 networks whose latency is 2 ms and 10 ns for each thousand MACs."""
    space = ofa_mbv3_w12()
    rows = space.search_space.sample(40, np.random.default_rng(0))
    macs = SpaceCosts(space=space, batch_size=1).macs(rows)
    path = tmp_path / "measured.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["kernel_size", "expand_ratio", "depth", "resolution", "latency_ms"])
        for row, num_macs in zip(rows, macs, strict=True):
            config = space.search_space.decode(row)
            lists = ["-".join(map(str, config.ints(name))) for name in LISTS]
            writer.writerow([*lists, config["resolution"], 2 + num_macs * 1e-8])
    return path


def test_list_and_show_agree(invoke_json: InvokeJson, documented_keys: Any) -> None:
    listed = invoke_json("targets", "list")
    assert set(listed) == documented_keys("effdl targets list") | {"schema_version"}
    names = [target["name"] for target in listed["targets"]]
    assert names == sorted(names)
    assert {"cpu", "mobile-note10", "gpu-titan-rtx", "gpu-h100", "raspberry-pi-5"} <= set(names)
    by_name = {target["name"]: target for target in listed["targets"]}
    assert by_name["cpu"]["is_local"]
    assert by_name["gpu-h100"]["latency_source"] == "estimated"
    for name in names:
        shown = invoke_json("targets", "show", name)
        assert shown["device"] == by_name[name]["device"]
        sources = {latency["latency_source"] for latency in shown["latencies"]}
        assert sources <= {by_name[name]["latency_source"]}


def test_a_broken_descriptor_is_a_warning_in_the_list(invoke: Invoke, effdl_home: Path) -> None:
    folder = effdl_home / "targets"
    folder.mkdir()
    (folder / "mine.toml").write_text("name = ")
    result = invoke("targets", "list")
    assert result.exit_code == 0
    assert "mine.toml" in result.stderr
    assert "mobile-note10" in result.stdout
    assert invoke("targets", "show", "mine").exit_code == 7


def test_fit_makes_a_target_that_predicts(
    measurements: Path, tmp_path: Path, invoke_json: InvokeJson, documented_keys: Any
) -> None:
    done = invoke_json("targets", "fit", "mine", "--measurements", measurements, "--samples", 30)
    assert set(done) == documented_keys("effdl targets fit") | {"schema_version"}
    assert done["num_samples"] == 30
    assert done["cv_mape_percent"] < 2
    listed = invoke_json("targets", "list")["targets"]
    assert {"mine": "fitted"}.items() <= {t["name"]: t["latency_source"] for t in listed}.items()
    with measurements.open(newline="") as file:
        held_out = list(csv.DictReader(file))[30:]
    configs = tmp_path / "configs.jsonl"
    lines = [
        json.dumps(
            {name: [int(v) for v in row[name].split("-")] for name in LISTS}
            | {"resolution": int(row["resolution"])}
        )
        for row in held_out
    ]
    configs.write_text("\n".join(lines))
    found = invoke_json("predict", "--configs", configs, "--target", "mine")["predictions"]
    predicted = [network["predicted_latency_ms"] for network in found]
    assert predicted == pytest.approx([float(row["latency_ms"]) for row in held_out], rel=0.05)
    assert {network["latency_source"] for network in found} == {"fitted"}


@pytest.mark.parametrize(
    ("name", "code"), [("gpu-titan-rtx", 2), ("gpu", 2), ("../evil", 2), ("UPPER", 2), ("ok", 7)]
)
def test_fit_refuses(
    name: str, code: int, tmp_path: Path, invoke: Invoke, effdl_home: Path
) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("kernel_size,expand_ratio,depth,resolution,latency_ms\n3,3,2,224,nan\n")
    result = invoke("targets", "fit", name, "--measurements", bad)
    assert result.exit_code == code
    assert list(effdl_home.rglob("*.json")) == []


def test_fit_says_which_resolutions_it_covers(
    measurements: Path, tmp_path: Path, invoke: Invoke, invoke_json: InvokeJson
) -> None:
    done = invoke_json("targets", "fit", "mine", "--measurements", measurements)
    assert set(done["resolutions"]) <= set(ofa_mbv3_w12().resolutions)
    with measurements.open(newline="") as file:
        rows = [row | {"resolution": "192"} for row in csv.DictReader(file)]
    path = tmp_path / "one.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    result = invoke("targets", "fit", "one", "--measurements", path, "--format", "json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["resolutions"] == [192]
    assert "note: measured at 192 px; latencies at other resolutions are extrap" in result.stderr


def test_suggest_then_fit(
    tmp_path: Path, invoke: Invoke, invoke_json: InvokeJson, documented_keys: Any
) -> None:
    path = tmp_path / "mine.csv"
    done = invoke_json("targets", "suggest", "-n", 12, "-o", path, "--seed", 3)
    assert set(done) == documented_keys("effdl targets suggest") | {"schema_version"}
    assert done["path"] == str(path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["depth"] for row in rows] == [
        "-".join(map(str, network["config"]["depth"])) for network in done["networks"]
    ]
    assert {network["onnx"] for network in done["networks"]} == {None}
    result = invoke("targets", "fit", "mine", "--measurements", path)
    assert result.exit_code == 7
    assert "line 2, column latency_ms: still empty" in result.stderr
    listed = invoke("targets", "suggest", "-n", 12, "--seed", 3, "--format", "csv").stdout
    assert [row["depth"] for row in csv.DictReader(listed.splitlines())] == [
        row["depth"] for row in rows
    ]
    space = ofa_mbv3_w12()
    encoded = np.stack([space.search_space.encode(n["config"]) for n in done["networks"]])
    macs = SpaceCosts(space=space, batch_size=1).macs(encoded)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(
            row | {"latency_ms": 2 + m * 1e-8} for row, m in zip(rows, macs, strict=True)
        )
    assert invoke_json("targets", "fit", "mine", "--measurements", path)["num_samples"] == 12


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-n", "1"], 2, "wanted 2 to 10000, got 1"),
        (["-n", "many"], 2, "many"),
        (["--resolution", "8"], 2, "wanted 32 to 2048 pixels, got 8"),
        (["--space", "ofa-mbv3"], 2, "ofa-mbv3"),
        (["--batch-size", "4"], 2, "--batch-size has no effect without --onnx"),
        (["-o", "taken.csv"], 8, "taken.csv exists already"),
    ],
)
def test_suggest_refuses(
    arguments: list[str],
    code: int,
    message: str,
    invoke: Invoke,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken.csv").write_text("")
    result = invoke("targets", "suggest", *arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr
