"""Training from published figures: on made files, and the shipped predictors' own errors."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from effdl.data.ofa_published import read_imagenet_top1
from effdl.errors import ConfigError, CorruptFileError, EffdlError
from effdl.models.mobilenet_v3.pretrained import accuracy_predictor_path
from effdl.models.mobilenet_v3.space import ofa_mbv3_w10, ofa_mbv3_w12
from effdl.models.spaces import load_space
from effdl.search.accuracy_predictor import AccuracyPredictor
from effdl.search.predictor_distillation import DistillationSettings
from effdl.search.predictor_errors import measure_errors
from effdl.search.predictor_sampling import sample_front
from effdl.search.predictor_training import PairSettings
from effdl.search.space import Population
from effdl.targets.latency_model import load_latency_model
from effdl.targets.target import load_target
from effdl.workflows.costs import SpaceCosts
from effdl.workflows.train_predictor import PublishedSettings, train_published_predictors

NAMES = ("ofa-mbv3-w1.2", "ofa-mbv3-w1.0")
ANCHORS = (160, 176, 192, 208, 224)
TINY = PublishedSettings(
    distillation=DistillationSettings(
        hidden_sizes=(8, 8, 8),
        num_samples=2048,
        num_threads=1,
    ),
    pairs=PairSettings(num_steps=60),
    num_test=500,
    num_front=900,
)


def made_state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {}
    for i, (inputs, outputs) in enumerate(((128, 400), (400, 400), (400, 400), (400, 1))):
        spread = (2 / inputs) ** 0.5
        state[f"{2 * i}.weight"] = torch.randn(outputs, inputs, generator=generator) * spread
        state[f"{2 * i}.bias"] = torch.zeros(outputs)
    return state


def made_top1(population: Population) -> np.ndarray:
    """Percent: additive in the choices, and 224 pixels throughout."""
    return 70.0 + 0.05 * population[:, :-1].sum(axis=1)


@pytest.fixture(scope="module")
def made_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    (folder / "ofa").mkdir()
    torch.save(made_state(), folder / "ofa/acc_predictor_mbv3_w1.2.pth")
    space = ofa_mbv3_w10().search_space
    population = space.sample(150, np.random.default_rng(0))
    population[:, -1] = space.num_choices[-1] - 1
    with (folder / "ofa/imagenet_top1_w1.0.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["kernel_size", "expand_ratio", "depth", "resolution", "imagenet_top1_percent"]
        )
        for row, top1 in zip(population, made_top1(population), strict=True):
            config = space.decode(row)
            lists = [config.ints(n) for n in ("kernel_size", "expand_ratio", "depth")]
            writer.writerow(["-".join(map(str, values)) for values in lists] + [224, top1])
    return folder


@pytest.fixture(scope="module")
def trained(made_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    train_published_predictors(made_data, out, seed=4, settings=TINY)
    return out


@pytest.fixture
def damaged_data(made_data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made_data, tmp_path / "published"))


def test_both_predictors_are_written_and_describe_themselves(
    made_data: Path, trained: Path
) -> None:
    assert sorted(p.name for p in trained.iterdir()) == sorted(f"{n}.safetensors" for n in NAMES)
    w12 = AccuracyPredictor.load(trained / "ofa-mbv3-w1.2.safetensors", ofa_mbv3_w12().search_space)
    assert w12.anchors == ANCHORS
    assert w12.has_fine_tuned
    assert w12.info.num_pairs == 2048
    w10_space = ofa_mbv3_w10().search_space
    w10 = AccuracyPredictor.load(trained / "ofa-mbv3-w1.0.safetensors", w10_space)
    assert w10.anchors == (224,)
    assert not w10.has_fine_tuned
    assert w10.info.num_pairs == 150
    population, top1 = read_imagenet_top1(made_data / "ofa/imagenet_top1_w1.0.csv", w10_space)
    np.testing.assert_allclose(top1, made_top1(population), atol=1e-9)
    predicted = w10.predict_top1(w10.predict_raw(population), fine_tuned=False)
    # A line fits the made accuracies; the ridge penalty leaves a little.
    assert np.sqrt(np.mean((predicted - top1) ** 2)) < 0.1
    assert {"grouped_rmse_pp", "grouped_spearman"} <= w10.info.errors.keys()


def test_equal_seeds_give_equal_bytes_and_a_finished_file_is_kept(
    made_data: Path, trained: Path, tmp_path: Path
) -> None:
    shutil.copy(trained / "ofa-mbv3-w1.2.safetensors", tmp_path)
    kept = (tmp_path / "ofa-mbv3-w1.2.safetensors").stat()
    said: list[str] = []
    results = train_published_predictors(
        made_data,
        tmp_path,
        seed=4,
        settings=TINY,
        progress=lambda done, total, what: said.append(what),
    )
    assert [r.resumed for r in results] == [True, False]
    assert [r.space for r in results] == list(NAMES)
    assert (tmp_path / "ofa-mbv3-w1.2.safetensors").stat().st_mtime_ns == kept.st_mtime_ns
    assert all(what.startswith("ofa-mbv3-w1.0") for what in said)
    assert said
    for result in results:
        assert result.path.read_bytes() == (trained / result.path.name).read_bytes()
    (tmp_path / "ofa-mbv3-w1.2.safetensors").unlink()
    train_published_predictors(made_data, tmp_path, seed=4, settings=TINY)
    again = (tmp_path / "ofa-mbv3-w1.2.safetensors").read_bytes()
    assert again == (trained / "ofa-mbv3-w1.2.safetensors").read_bytes()


def test_another_seed_trains_anew(made_data: Path, trained: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(trained, tmp_path / "out"))
    results = train_published_predictors(made_data, out, seed=5, settings=TINY)
    assert [r.resumed for r in results] == [False, False]
    for name in NAMES:
        file = f"{name}.safetensors"
        assert (out / file).read_bytes() != (trained / file).read_bytes()


_KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_train_predictor import TINY, train_published_predictors

def progress(done, total, what):
    if what.startswith("ofa-mbv3-w1.0"):
        os.kill(os.getpid(), signal.SIGKILL)

data, out = map(Path, sys.argv[2:])
train_published_predictors(data, out, seed=4, settings=TINY, progress=progress)
"""


def test_a_killed_run_goes_on_where_it_was(made_data: Path, trained: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _KILLED, os.fspath(Path(__file__).parent)]
    done = subprocess.run(
        [*command, os.fspath(made_data), os.fspath(tmp_path)], timeout=120, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert [p.name for p in tmp_path.iterdir()] == ["ofa-mbv3-w1.2.safetensors"]
    results = train_published_predictors(made_data, tmp_path, seed=4, settings=TINY)
    assert [r.resumed for r in results] == [True, False]
    for result in results:
        assert result.path.read_bytes() == (trained / result.path.name).read_bytes()


def test_missing_data_says_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"acc_predictor_mbv3_w1\.2\.pth") as caught:
        train_published_predictors(tmp_path, tmp_path / "out")
    assert caught.value.hint is not None
    assert not (tmp_path / "out").exists()


def _nan(state: dict[str, torch.Tensor]) -> None:
    state["2.bias"][7] = torch.nan


def _shape(state: dict[str, torch.Tensor]) -> None:
    state["4.weight"] = state["4.weight"][:, :-1].contiguous()


def _name(state: dict[str, torch.Tensor]) -> None:
    state["8.weight"] = state.pop("6.weight")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_nan, "not finite"),
        (_shape, "layer 2 wanted 400 x 400, got 400 x 399"),
        (_name, "not the official accuracy predictor"),
    ],
)
def test_a_damaged_official_predictor_is_a_corrupt_file(
    damaged_data: Path, damage: Callable[[dict[str, torch.Tensor]], None], words: str
) -> None:
    state = made_state()
    damage(state)
    torch.save(state, damaged_data / "ofa/acc_predictor_mbv3_w1.2.pth")
    with pytest.raises(CorruptFileError, match=words):
        train_published_predictors(damaged_data, damaged_data / "out", settings=TINY)
    assert not (damaged_data / "out").exists()


def test_a_truncated_official_predictor_is_a_corrupt_file(damaged_data: Path) -> None:
    file = damaged_data / "ofa/acc_predictor_mbv3_w1.2.pth"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(CorruptFileError, match="cannot be read"):
        train_published_predictors(damaged_data, damaged_data / "out", settings=TINY)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("3-3,3-3,2-2-2-2-2,224,75", "line 2: configuration does not fit"),
        ("{k},{k},2-2-2-2-2,224,nan", "line 2, column imagenet_top1_percent"),
        ("{k},{k},2-2-2-2-2,224,175", "line 2, column imagenet_top1_percent"),
        ("{k},{k},2-2-2-2-x,224,75", "line 2: invalid literal"),
        ("{k},{k},2-2-2-2-2,224", "line 2: wrong number of values"),
        ("{k},{k},2-2-2-2-2,192,75", "wanted resolution 224 only, got 192"),
    ],
)
def test_a_malformed_row_is_a_corrupt_file(
    damaged_data: Path, trained: Path, line: str, words: str
) -> None:
    file = damaged_data / "ofa/imagenet_top1_w1.0.csv"
    first, second = file.read_text().splitlines()[:2]
    assert second.count(",") == 4
    file.write_text(f"{first}\n{line.format(k='-'.join(['3'] * 20))}\n")
    with pytest.raises(CorruptFileError, match=words):
        # The width-1.2 predictor is there already, so only the rows are read.
        train_published_predictors(damaged_data, trained, seed=4, settings=TINY)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "no column"), (b"a,b\n1,2\n", "no column"), (b"\xff\xfe\x00", "not UTF-8")],
)
def test_other_files_are_no_accuracies(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(CorruptFileError, match=words):
        read_imagenet_top1(tmp_path / "a.csv", ofa_mbv3_w10().search_space)
    with pytest.raises(EffdlError, match="cannot read"):
        read_imagenet_top1(tmp_path / "none.csv", ofa_mbv3_w10().search_space)


def test_shipped_predictors_are_small_and_name_their_source() -> None:
    paths = [accuracy_predictor_path(name) for name in NAMES]
    assert sum(path.stat().st_size for path in paths) < 2_000_000
    for name, path in zip(NAMES, paths, strict=True):
        predictor = AccuracyPredictor.load(path, load_space(name).search_space)
        assert predictor.licence == "Apache-2.0"
        assert "Apache-2.0" in predictor.source
        assert predictor.info.made_from
        json.dumps(predictor.info.errors)


def official_raw(reference_data: Path, population: Population) -> np.ndarray:
    """The official predictor on its own 128 inputs, for rows at the anchors' resolutions."""
    path = reference_data / "ofa/acc_predictor_mbv3_w1.2.pth"
    state = torch.load(path, weights_only=True, map_location="cpu")
    space = ofa_mbv3_w12().with_resolutions(ANCHORS).search_space
    x = torch.zeros(len(population), 128)
    active = torch.from_numpy(space.active(population))
    choices = torch.from_numpy(population.astype(np.int64))
    for start, name in ((0, "kernel_size"), (60, "expand_ratio")):
        for position, column in enumerate(space.columns(name)):
            x[torch.arange(len(x)), start + 3 * position + choices[:, column]] = active[
                :, column
            ].float()
    (resolution,) = space.columns("resolution")
    x[torch.arange(len(x)), 120 + (torch.tensor(ANCHORS)[choices[:, resolution]] - 112) // 16] = 1
    for layer in (0, 2, 4):
        x = torch.relu(x @ state[f"{layer}.weight"].T + state[f"{layer}.bias"])
    return (x @ state["6.weight"].T + state["6.bias"])[:, 0].double().numpy()


@pytest.fixture(scope="module")
def shipped_w12() -> AccuracyPredictor:
    space = ofa_mbv3_w12().with_resolutions(ANCHORS).search_space
    return AccuracyPredictor.load(accuracy_predictor_path("ofa-mbv3-w1.2"), space)


@pytest.mark.reference_data
def test_official_layout_gives_the_published_extremes(reference_data: Path) -> None:
    """The largest network is predicted at 0.836 and the smallest at 160 pixels at 0.753."""
    space = ofa_mbv3_w12().with_resolutions(ANCHORS).search_space
    population = np.zeros((2, len(space.dimensions)), dtype=np.uint8)
    population[0] = space.num_choices - 1
    assert official_raw(reference_data, population) == pytest.approx([0.836, 0.753], abs=5e-4)


@pytest.mark.reference_data
def test_shipped_w12_equals_the_official_predictor(
    reference_data: Path, shipped_w12: AccuracyPredictor
) -> None:
    population = shipped_w12.space.sample(50_000, np.random.default_rng(123))
    errors = measure_errors(
        shipped_w12.predict_raw(population), official_raw(reference_data, population)
    )
    assert errors.rmse_pp <= 0.05
    assert errors.rmse_pp == pytest.approx(shipped_w12.rmse_pp, rel=0.05)
    assert errors.spearman > 0.998


@pytest.mark.reference_data
def test_shipped_w12_holds_near_the_front_of_the_note10(
    reference_data: Path, shipped_w12: AccuracyPredictor
) -> None:
    """A search goes to the extremes, where an error would be exploited."""
    space = ofa_mbv3_w12().with_resolutions(ANCHORS)
    latency = load_latency_model(load_target("mobile-note10"))
    costs = SpaceCosts(space=space, batch_size=1, latency_model=latency)
    front = sample_front(
        space.search_space,
        [costs.latency_ms],
        lambda population: official_raw(reference_data, population),
        10_000,
        np.random.default_rng(5),
    )
    errors = measure_errors(shipped_w12.predict_raw(front), official_raw(reference_data, front))
    assert errors.rmse_pp <= 0.05
    assert errors.max_pp <= 0.5


@pytest.mark.reference_data
def test_shipped_w10_fits_the_published_accuracies(reference_data: Path) -> None:
    space = ofa_mbv3_w10().search_space
    predictor = AccuracyPredictor.load(accuracy_predictor_path("ofa-mbv3-w1.0"), space)
    population, top1 = read_imagenet_top1(reference_data / "ofa/imagenet_top1_w1.0.csv", space)
    assert len(top1) == 1730
    errors = measure_errors(predictor.predict_raw(population), top1 / 100.0)
    assert errors.rmse_pp <= 0.06
    assert errors.spearman >= 0.998
    assert predictor.rmse_pp <= 0.08
    assert predictor.spearman >= 0.997
