"""Suggested networks: which, what is written, what is refused, and that a fit takes them."""

import csv
from pathlib import Path

import onnx
import pytest

from effdl.errors import ConfigError, CorruptFileError, OutputError
from effdl.models.mobilenet_v3.space import MobileNetV3Space, ofa_mbv3_w12
from effdl.targets.block_model import BlockCoefficients
from effdl.workflows.fit_target import fit_target
from effdl.workflows.suggest_networks import MAX_NETWORKS, suggest_networks

TRUTH = BlockCoefficients(
    launch_ms={"block": 0.08, "squeeze_excite": 0.03, "hswish": 0.01, "skip": 0.02},
    work_ms={"pointwise_macs": 0.01, "depthwise_macs": 0.03, "activation_elements": 0.2},
    exponent=3.0,
    offset_ms=0.5,
    offset_per_area_ms=0.9,
)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_they_are_different_networks_of_the_space() -> None:
    space = ofa_mbv3_w12()
    done = suggest_networks(space, 20)
    rows = {space.search_space.encode(network.config).tobytes() for network in done.networks}
    assert len(done.networks) == len(rows) == 20
    assert (done.space, done.path, done.seed) == ("ofa-mbv3-w1.2", None, 0)
    resolutions = [network.config.ints("resolution")[0] for network in done.networks]
    assert max(resolutions) - min(resolutions) >= 48
    depths = {sum(network.config.ints("depth")) for network in done.networks}
    assert min(depths) <= 12
    assert max(depths) >= 18


def test_the_seed_decides() -> None:
    space = ofa_mbv3_w12()
    first, second = suggest_networks(space, 12, seed=5), suggest_networks(space, 12, seed=5)
    assert first == second
    assert first.networks != suggest_networks(space, 12, seed=6).networks


def test_thousands() -> None:
    done = suggest_networks(ofa_mbv3_w12(), 3000)
    assert len({network.config for network in done.networks}) == 3000


def test_from_suggestion_to_target(tmp_path: Path, effdl_home: Path) -> None:
    space, path = ofa_mbv3_w12(), tmp_path / "new" / "mine.csv"
    done = suggest_networks(space, 10, out=path)
    assert done.path == path
    rows = read_rows(path)
    assert list(rows[0]) == ["kernel_size", "expand_ratio", "depth", "resolution", "latency_ms"]
    with pytest.raises(CorruptFileError, match="line 2, column latency_ms: still empty"):
        fit_target("mine", path, space)
    for row, network in zip(rows, done.networks, strict=True):
        ops = [shape.spec() for _, shape in space.shapes(network.config)]
        row["latency_ms"] = repr(float(TRUTH.predict_op_ms(ops).sum()))
    forgotten = rows[6].pop("latency_ms")
    write_rows(path, [row | {"latency_ms": row.get("latency_ms", " ")} for row in rows])
    with pytest.raises(CorruptFileError, match="line 8, column latency_ms: still empty"):
        fit_target("mine", path, space)
    assert list(effdl_home.rglob("*.json")) == []
    rows[6]["latency_ms"] = forgotten
    write_rows(path, rows)
    fitted = fit_target("mine", path, space)
    assert fitted.num_samples == 10
    assert fitted.cv_mape_percent < 5


def test_only_some_resolutions() -> None:
    done = suggest_networks(ofa_mbv3_w12(), 10, resolutions=(256, 140, 256))
    assert {network.config["resolution"] for network in done.networks} == {140, 256}


def test_onnx_files_by_row(tmp_path: Path, small_space: MobileNetV3Space) -> None:
    folder, path = tmp_path / "networks", tmp_path / "mine.csv"
    folder.mkdir()
    done = suggest_networks(small_space, 3, onnx=folder, out=path, batch_size=5)
    assert [network.onnx for network in done.networks] == [
        folder / name for name in ("0001.onnx", "0002.onnx", "0003.onnx")
    ]
    assert [row["onnx"] for row in read_rows(path)] == [str(n.onnx) for n in done.networks]
    for network in done.networks:
        assert network.onnx is not None
        model = onnx.load(network.onnx)
        onnx.checker.check_model(model)
        shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
        resolution = network.config["resolution"]
        assert shape == [5, 3, resolution, resolution]
        num_depthwise = sum(
            any(a.name == "group" and a.i > 1 for a in node.attribute)
            for node in model.graph.node
            if node.op_type == "Conv"
        )
        assert num_depthwise == 1 + sum(network.config.ints("depth"))


def test_nothing_is_overwritten(tmp_path: Path, small_space: MobileNetV3Space) -> None:
    path, folder = tmp_path / "mine.csv", tmp_path / "networks"
    path.write_text("measured all night")
    with pytest.raises(OutputError, match=r"mine\.csv exists already"):
        suggest_networks(small_space, 2, out=path, onnx=folder)
    assert path.read_text() == "measured all night"
    folder.mkdir()
    (folder / "0001.onnx").write_text("mine")
    with pytest.raises(OutputError, match="networks is no empty folder"):
        suggest_networks(small_space, 2, onnx=folder)
    with pytest.raises(OutputError, match=r"mine\.csv is no empty folder"):
        suggest_networks(small_space, 2, onnx=path)
    with pytest.raises(OutputError, match="cannot write"):
        suggest_networks(small_space, 2, out=path / "below.csv")


@pytest.mark.parametrize("num", [-1, 0, 1, MAX_NETWORKS + 1])
def test_numbers_out_of_range(num: int) -> None:
    with pytest.raises(ConfigError, match=f"wanted 2 to 10000, got {num}"):
        suggest_networks(ofa_mbv3_w12(), num)


def test_resolutions_out_of_range() -> None:
    for resolution in (0, -224, 8, 4096):
        with pytest.raises(ConfigError, match=f"wanted 32 to 2048 pixels, got {resolution}"):
            suggest_networks(ofa_mbv3_w12(), 10, resolutions=(224, resolution))
    with pytest.raises(ConfigError, match="at least one"):
        suggest_networks(ofa_mbv3_w12(), 10, resolutions=())


def test_a_space_with_too_few_networks(small_space: MobileNetV3Space) -> None:
    # Depth 1 has 2 x 2 choices, depth 2 has 4 x 4, at each of two resolutions.
    assert len(suggest_networks(small_space, 40).networks) == 40
    with pytest.raises(ConfigError, match="too few networks at 32, 40 px: wanted 41, found 40"):
        suggest_networks(small_space, 41)
