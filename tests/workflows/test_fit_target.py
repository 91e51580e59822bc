"""A target from a user's CSV: what is written, how good it is, what is refused."""

import csv
from pathlib import Path

import numpy as np
import pytest

from effdl.errors import ConfigError, CorruptFileError, OutputError
from effdl.models.mobilenet_v3.space import MobileNetV3Space, ofa_mbv3_w12
from effdl.search.space import SubnetConfig
from effdl.targets.block_model import BlockCoefficients, BlockModel
from effdl.targets.latency_model import load_latency_model, table_batch_sizes
from effdl.targets.target import list_targets, load_target
from effdl.workflows.fit_target import fit_target

TRUTH = BlockCoefficients(
    launch_ms={"block": 0.08, "squeeze_excite": 0.03, "hswish": 0.01, "skip": 0.02},
    work_ms={"pointwise_macs": 0.01, "depthwise_macs": 0.03, "activation_elements": 0.2},
    exponent=3.0,
    offset_ms=0.5,
    offset_per_area_ms=0.9,
)
COLUMNS = ("kernel_size", "expand_ratio", "depth", "resolution", "latency_ms")


def true_latency_ms(space: MobileNetV3Space, config: SubnetConfig) -> float:
    return float(TRUTH.predict_op_ms([s.spec() for _, s in space.shapes(config)]).sum())


def random_configs(space: MobileNetV3Space, num: int, seed: int) -> list[SubnetConfig]:
    rows = space.search_space.sample(num, np.random.default_rng(seed))
    return [space.search_space.decode(row) for row in rows]


def as_row(config: SubnetConfig, latency_ms: float) -> dict[str, str]:
    return {
        **{name: "-".join(map(str, config.ints(name))) for name in COLUMNS[:3]},
        "resolution": str(config["resolution"]),
        "latency_ms": repr(latency_ms),
    }


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows([row[column] for column in COLUMNS] for row in rows)
    return path


@pytest.fixture
def measurements(tmp_path: Path) -> Path:
    """Thirty networks; every value at an inactive position is one that no choice has."""
    space = ofa_mbv3_w12()
    rows = []
    for config in random_configs(space, 30, seed=0):
        row = as_row(config, true_latency_ms(space, config))
        for name in ("kernel_size", "expand_ratio"):
            row[name] = "-".join(value.replace("0", "9") for value in row[name].split("-"))
        rows.append(row)
    return write_csv(tmp_path / "mine.csv", rows)


def test_a_target_of_ones_own(measurements: Path, effdl_home: Path) -> None:
    space = ofa_mbv3_w12()
    done = fit_target("my-gpu", measurements, space, batch_size=8, device="My GPU")
    assert (done.name, done.num_samples) == ("my-gpu", 30)
    assert done.path == effdl_home / "targets" / "my-gpu-b8.json"
    assert done.cv_mape_percent < 0.5
    assert done.interval_percent >= done.cv_mape_percent

    target = load_target("my-gpu")
    assert (target.device, target.default_batch_size) == ("My GPU", 8)
    model = load_latency_model(target)
    assert (model.source, model.batch_size, model.device) == ("fitted", 8, "My GPU")
    for config in random_configs(space, 50, seed=1):
        predicted = model.predict_op_ms([s.spec() for _, s in space.shapes(config)]).sum()
        assert predicted == pytest.approx(true_latency_ms(space, config), rel=0.01)


def test_same_seed_same_bytes(measurements: Path) -> None:
    paths = [
        fit_target(name, measurements, ofa_mbv3_w12(), batch_size=8, device="d").path
        for name in ("one", "two")
    ]
    first, second = (path.read_text() for path in paths)
    assert first.replace('"one"', '"two"') == second


def test_the_first_rows_only_and_other_resolutions(tmp_path: Path) -> None:
    space = ofa_mbv3_w12().with_resolutions((128, 140, 256))
    rows = [as_row(c, true_latency_ms(space, c)) for c in random_configs(space, 25, seed=2)]
    path = write_csv(tmp_path / "m.csv", [*rows, {**rows[0], "latency_ms": "1e6"}])
    done = fit_target("my-gpu", path, ofa_mbv3_w12(), batch_size=1, num_samples=25)
    assert done.num_samples == 25
    assert done.cv_mape_percent < 0.5
    assert BlockModel.read(done.path).resolutions == (128, 256)
    assert BlockModel.read(done.path).space == "ofa-mbv3-w1.2"
    with pytest.raises(ConfigError, match="between 1 and 26 samples"):
        fit_target("my-gpu", path, ofa_mbv3_w12(), num_samples=27)


def test_repeated_rows_count_once(measurements: Path) -> None:
    with measurements.open(newline="") as file:
        rows = list(csv.DictReader(file))
    once = fit_target("once", measurements, ofa_mbv3_w12())
    again = fit_target("again", write_csv(measurements, [*rows, *rows[:12]]), ofa_mbv3_w12())
    assert (once.num_samples, again.num_samples) == (30, 30)
    assert again.interval_percent == once.interval_percent
    few = write_csv(measurements, rows[:4] * 8)
    with pytest.raises(ConfigError, match="at least 10 different networks, got 4 in 32 rows"):
        fit_target("few", few, ofa_mbv3_w12())


def test_ten_networks_at_one_resolution(tmp_path: Path) -> None:
    space = ofa_mbv3_w12().with_resolutions((192,))
    rows = [as_row(c, true_latency_ms(space, c)) for c in random_configs(space, 10, seed=4)]
    done = fit_target("mine", write_csv(tmp_path / "m.csv", rows), ofa_mbv3_w12())
    assert (done.num_samples, done.resolutions) == (10, (192,))
    assert BlockModel.read(done.path).interval_percent == done.interval_percent
    with pytest.raises(ConfigError, match="at least 10 different networks, got 9"):
        fit_target("mine", write_csv(tmp_path / "m.csv", rows[:9]), ofa_mbv3_w12())


def test_latencies_that_have_nothing_to_do_with_the_networks(
    measurements: Path, effdl_home: Path
) -> None:
    with measurements.open(newline="") as file:
        rows = list(csv.DictReader(file))[:12]
    same = [row | {"latency_ms": "3.5"} for row in rows]
    with pytest.raises(ConfigError, match="all 12 networks have the same latency"):
        fit_target("mine", write_csv(measurements, same), ofa_mbv3_w12())
    exponents = np.random.default_rng(0).normal(scale=4, size=12)
    wild = [row | {"latency_ms": f"{10.0**e:.6g}"} for row, e in zip(rows, exponents, strict=True)]
    with pytest.raises(ConfigError, match="do not follow from the networks"):
        fit_target("mine", write_csv(measurements, wild), ofa_mbv3_w12())
    assert not (effdl_home / "targets").exists()


def test_a_second_batch_size_joins_the_first(measurements: Path) -> None:
    for batch_size in (8, 16, 8):
        fit_target("my-gpu", measurements, ofa_mbv3_w12(), batch_size=batch_size)
    target = load_target("my-gpu")
    assert tuple(table_batch_sizes(target)) == (8, 16)
    assert target.default_batch_size == 8


@pytest.mark.parametrize("name", ["gpu-titan-rtx", "gpu", "mobile", "cpu", "My GPU", "../up", ""])
def test_names_that_cannot_be_taken(name: str, measurements: Path, effdl_home: Path) -> None:
    with pytest.raises(ConfigError):
        fit_target(name, measurements, ofa_mbv3_w12())
    assert not (effdl_home / "targets").exists()


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("latency_ms", "fast", "line 4, column latency_ms: wanted a positive number"),
        ("latency_ms", "-1.0", "line 4, column latency_ms"),
        ("latency_ms", "0", "line 4, column latency_ms"),
        ("latency_ms", "nan", "line 4, column latency_ms"),
        ("latency_ms", "inf", "line 4, column latency_ms"),
        ("latency_ms", "", "line 4, column latency_ms"),
        ("resolution", "224-224", "line 4, column resolution: wanted one integer"),
        ("resolution", "-224", "line 4, column resolution"),
        ("resolution", "8", "line 4, column resolution: wanted 32 to 2048 pixels, got 8"),
        ("depth", "2-2-2-2", "line 4: .*wanted 5 values of depth, got 4"),
        ("depth", "2-2-2-2-5", "line 4: .*depth at position 4 wanted one of 2, 3, 4, got 5"),
        ("kernel_size", "3,5,7", "line 4, column kernel_size: wanted integers joined by hyphens"),
        ("expand_ratio", "-".join(["5"] * 20), "line 4: .*expand_ratio at position 0"),
        ("expand_ratio", "١-٢", "line 4, column expand_ratio"),
    ],
)
def test_malformed_rows(
    column: str, value: str, message: str, measurements: Path, effdl_home: Path
) -> None:
    with measurements.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[2][column] = value
    write_csv(measurements, rows)
    with pytest.raises(CorruptFileError, match=message):
        fit_target("my-gpu", measurements, ofa_mbv3_w12())
    assert not (effdl_home / "targets").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column kernel_size"),
        ("kernel_size,expand_ratio,depth,resolution\n", "no column latency_ms"),
        (",".join(COLUMNS) + "\n", "no rows"),
        (",".join(COLUMNS) + "\n1,2\n", "line 2: wanted 5 values"),
        (",".join(COLUMNS) + "\n1,2,3,4,5,6\n", "line 2: wanted 5 values"),
        (",".join(COLUMNS) + '\n"1,2,3,4,5\n', "not CSV"),
        (",".join(COLUMNS) + "\n1\0,2,3,4,5\n", "line 2|not CSV"),
    ],
)
def test_malformed_files(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text(text)
    with pytest.raises(CorruptFileError, match=message):
        fit_target("my-gpu", path, ofa_mbv3_w12())


def test_files_that_cannot_be_read_or_written(
    measurements: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        fit_target("my-gpu", tmp_path / "absent.csv", ofa_mbv3_w12())
    (tmp_path / "binary.csv").write_bytes(b"\xff\x00\xfe")
    with pytest.raises(CorruptFileError, match="not UTF-8"):
        fit_target("my-gpu", tmp_path / "binary.csv", ofa_mbv3_w12())
    few = measurements.read_text().splitlines(keepends=True)[:8]
    (tmp_path / "few.csv").write_text("".join(few))
    with pytest.raises(ConfigError, match="too few measurements"):
        fit_target("my-gpu", tmp_path / "few.csv", ofa_mbv3_w12())
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EFFDL_HOME", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="cannot write"):
        fit_target("my-gpu", measurements, ofa_mbv3_w12())
    assert "my-gpu" not in list_targets()


def test_latencies_of_other_rows_are_refused(tmp_path: Path) -> None:
    space = ofa_mbv3_w12()
    configs = random_configs(space, 20, seed=3)
    latencies = sorted(true_latency_ms(space, config) for config in configs)
    configs.sort(key=lambda config: true_latency_ms(space, config))
    # The slowest network is said to be the fastest, and so on.
    mixed = [as_row(c, ms) for c, ms in zip(configs, reversed(latencies), strict=True)]
    path = write_csv(tmp_path / "mixed.csv", mixed)
    with pytest.raises(ConfigError, match="do not follow the networks"):
        fit_target("mixed", path, space)
    assert "mixed" not in list_targets()
