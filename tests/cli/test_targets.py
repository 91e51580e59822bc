"""``effdl targets``: list, show and fit."""

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
