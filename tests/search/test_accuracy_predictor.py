"""Inference in numpy against an independent forward pass in torch and by hand."""

from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from effdl.errors import ConfigError, CorruptFileError, OutputError
from effdl.search.accuracy_predictor import AccuracyCalibration, AccuracyPredictor, PredictorInfo
from effdl.search.predictor_file import Network, read_predictor, write_predictor
from effdl.search.space import Dimension, Gate, SearchSpace

ANCHORS = (160, 192, 224)
RESOLUTIONS = (144, 160, 168, 176, 192, 200, 224, 228)
KNOWN = tuple(r for r in RESOLUTIONS if 160 <= r <= 224)


def make_space(
    resolutions: tuple[int, ...] = KNOWN,
    *,
    kernel_sizes: tuple[int, ...] = (3, 5, 7),
    name: str = "made",
) -> SearchSpace:
    """Two units of two or three blocks (depth 1, 2, 3 in the second), kernels, expansions."""
    depth = [
        Dimension(name="depth", position=0, choices=(2, 3)),
        Dimension(name="depth", position=1, choices=(1, 2, 3)),
    ]
    gates = (
        (None, None, Gate(dimension=0, minimum=1)),
        (
            None,
            Gate(dimension=1, minimum=1),
            Gate(dimension=1, minimum=2),
        ),
    )
    elastic = [
        Dimension(name=kind, position=3 * unit + block, choices=choices, gate=gates[unit][block])
        for kind, choices in (("kernel_size", kernel_sizes), ("expand_ratio", (3, 4, 6)))
        for unit in range(2)
        for block in range(3)
    ]
    resolution = Dimension(name="resolution", position=None, choices=resolutions)
    return SearchSpace(name=name, dimensions=(*depth, *elastic, resolution))


def make_info(**changes: object) -> PredictorInfo:
    info = PredictorInfo(
        schema_version=1,
        space="made",
        inputs=(("kernel_size", 6, (3.0, 5.0, 7.0)), ("expand_ratio", 6, (3.0, 4.0, 6.0))),
        anchors=ANCHORS,
        num_networks=2,
        metric="made accuracy",
        source="random numbers",
        licence="Apache-2.0",
        rmse_pp=0.1,
        spearman=0.9,
        num_pairs=10,
        held_out="none",
        seed=0,
    )
    return msgspec.structs.replace(info, **changes)


def make_networks(info: PredictorInfo, *, hidden: tuple[int, ...] = (7, 5)) -> list[Network]:
    rng = np.random.default_rng(5)
    pairs = list(zip((info.num_inputs, *accumulate(hidden)), (*hidden, 1), strict=True))
    return [
        Network(
            weights=tuple(rng.normal(size=pair).astype(np.float32) for pair in pairs),
            biases=tuple(rng.normal(size=n).astype(np.float32) for _, n in pairs),
            linear=rng.normal(size=info.num_inputs).astype(np.float32),
        )
        for _ in range(info.num_networks)
    ]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("predictor") / "made.safetensors"
    info = make_info()
    write_predictor(file, info, make_networks(info))
    return file


def torch_outputs(path: Path, space: SearchSpace, row: NDArray[np.uint8], anchor: int) -> float:
    """The mean output for one row at one anchor, from the file's layout as documented."""
    tensors = {name: torch.from_numpy(t).double() for name, t in load_file(path).items()}
    config = space.decode(row)
    one_hot = []
    for name, choices in (("kernel_size", (3, 5, 7)), ("expand_ratio", (3, 4, 6))):
        for value in config.ints(name):
            one_hot += [float(value == choice) for choice in choices]
    one_hot += [float(anchor == known) for known in ANCHORS]
    x = torch.tensor(one_hot, dtype=torch.float64)
    outputs = []
    for m in range(2):
        weights = [tensors[f"net{m}.layer{layer}.weight"] for layer in range(3)]
        biases = [tensors[f"net{m}.layer{layer}.bias"] for layer in range(3)]
        first = torch.relu(x @ weights[0] + biases[0])
        second = torch.relu(first @ weights[1] + biases[1])
        last = torch.cat([first, second]) @ weights[2] + biases[2]
        outputs.append(last[0] + x @ tensors[f"net{m}.linear"])
    return float(torch.stack(outputs).mean())


def test_outputs_equal_torch_and_interpolate_between_anchors(path: Path) -> None:
    space = make_space()
    population = space.sample(200, np.random.default_rng(0))
    found = AccuracyPredictor.load(path, space).predict_raw(population)
    assert found.shape == (200,)
    assert found.dtype == np.float64
    seen = set()
    for row, raw in zip(population, found, strict=True):
        (resolution,) = space.decode(row).ints("resolution")
        seen.add(resolution)
        low = max(a for a in ANCHORS if a <= resolution)
        high = min(a for a in ANCHORS if a >= resolution)
        lower, upper = (torch_outputs(path, space, row, a) for a in (low, high))
        share = (resolution - low) / (high - low) if high > low else 0.0
        assert raw == pytest.approx(lower + share * (upper - lower), abs=2e-4)
    assert seen == set(KNOWN)


def test_interpolation_by_hand(tmp_path: Path) -> None:
    """Only the resolution counts: outputs 0.5, 0.7, 0.8 at 160, 192, 224."""
    info = make_info(num_networks=1)
    inputs = info.num_inputs
    linear = np.zeros(inputs, dtype=np.float32)
    linear[-3:] = (0.5, 0.7, 0.8)
    silent = Network(
        weights=(np.zeros((inputs, 1), np.float32), np.zeros((1, 1), np.float32)),
        biases=(np.zeros(1, np.float32), np.zeros(1, np.float32)),
        linear=linear,
    )
    write_predictor(tmp_path / "p.safetensors", info, [silent])
    space = make_space()
    predictor = AccuracyPredictor.load(tmp_path / "p.safetensors", space)
    population = np.zeros((len(KNOWN), len(space.dimensions)), dtype=np.uint8)
    population[:, -1] = range(len(KNOWN))
    # 168 is a quarter of the way from 160 to 192; 200 a quarter from 192 to 224.
    expected = {160: 0.5, 168: 0.55, 176: 0.6, 192: 0.7, 200: 0.725, 224: 0.8}
    np.testing.assert_allclose(
        predictor.predict_raw(population), [expected[r] for r in KNOWN], atol=1e-6
    )


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_inactive_positions_are_ignored(path: Path, seed: int) -> None:
    space = make_space()
    predictor = AccuracyPredictor.load(path, space)
    rng = np.random.default_rng(seed)
    population = space.sample(20, rng)
    noise = rng.integers(0, space.num_choices, population.shape, dtype=np.uint8)
    disturbed = np.where(space.active(population), population, noise)
    before = disturbed.copy()
    np.testing.assert_array_equal(
        predictor.predict_raw(disturbed), predictor.predict_raw(population)
    )
    np.testing.assert_array_equal(disturbed, before)


def test_a_row_does_not_depend_on_its_batch(path: Path) -> None:
    space = make_space()
    predictor = AccuracyPredictor.load(path, space)
    population = space.sample(1300, np.random.default_rng(1))
    whole = predictor.predict_raw(population)
    for size in (1, 7, 100, 511, 513):
        parts = [predictor.predict_raw(population[i : i + size]) for i in range(0, 1300, size)]
        np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)
    assert predictor.predict_raw(population[:0]).shape == (0,)


def test_any_subset_of_resolutions_and_choices_gives_the_same(path: Path) -> None:
    wide = make_space()
    population = wide.sample(300, np.random.default_rng(2))
    configs = [wide.decode(row) for row in population]
    raw = AccuracyPredictor.load(path, wide).predict_raw(population)
    few = make_space((160, 176, 192), kernel_sizes=(5, 7))
    predictor = AccuracyPredictor.load(path, few)
    kept = [
        i
        for i, config in enumerate(configs)
        if 3 not in config.ints("kernel_size") and config["resolution"] in (160, 176, 192)
    ]
    assert len(kept) > 5
    again = predictor.predict_raw(np.stack([few.encode(configs[i]) for i in kept]))
    np.testing.assert_allclose(again, raw[kept], atol=1e-5)


def test_resolutions_outside_the_anchors_are_refused(path: Path) -> None:
    space = make_space(RESOLUTIONS)
    predictor = AccuracyPredictor.load(path, space)
    population = space.sample(100, np.random.default_rng(3))
    resolutions = np.array(RESOLUTIONS)[population[:, -1]]
    inside = predictor.predictable(population)
    np.testing.assert_array_equal(inside, (resolutions >= 160) & (resolutions <= 224))
    assert np.isfinite(predictor.predict_raw(population[inside])).all()
    with pytest.raises(ConfigError, match=r"160 to 224 only, got (144|228)"):
        predictor.predict_raw(population)


def test_one_anchor_knows_one_resolution(tmp_path: Path) -> None:
    info = make_info(anchors=(224,), num_networks=1)
    write_predictor(tmp_path / "p.safetensors", info, make_networks(info))
    predictor = AccuracyPredictor.load(tmp_path / "p.safetensors", make_space((220, 224)))
    assert predictor.anchors == (224,)
    population = np.zeros((2, 15), dtype=np.uint8)
    population[1, -1] = 1
    assert predictor.predictable(population).tolist() == [False, True]
    with pytest.raises(ConfigError, match="resolution 224 only, got 220"):
        predictor.predict_raw(population)


def test_calibration_by_hand(tmp_path: Path) -> None:
    """HELP's first network: raw 82.36 %, top-1 78.1 % by 1.0988 p - 12.537 = 77.960."""
    straight = AccuracyCalibration(
        slope=1.0988, intercept_percent=-12.537, rmse_pp=0.16, num_points=7, source="made"
    )
    fine_tuned = AccuracyCalibration(
        slope=2.0, intercept_percent=-90.0, rmse_pp=0.1, num_points=2, source="made"
    )
    info = make_info(straight=straight, fine_tuned=fine_tuned)
    write_predictor(tmp_path / "p.safetensors", info, make_networks(info))
    predictor = AccuracyPredictor.load(tmp_path / "p.safetensors", make_space())
    raw = np.array([0.8236, 0.8])
    assert predictor.has_fine_tuned
    assert predictor.predict_top1(raw, fine_tuned=False) == pytest.approx([77.960168, 75.367])
    assert predictor.predict_top1(raw, fine_tuned=True) == pytest.approx([74.72, 70.0])


def test_without_calibration_raw_is_top1(path: Path) -> None:
    predictor = AccuracyPredictor.load(path, make_space())
    assert not predictor.has_fine_tuned
    assert predictor.predict_top1(np.array([0.76]), fine_tuned=False) == pytest.approx([76.0])
    with pytest.raises(ConfigError, match="fine-tuned"):
        predictor.predict_top1(np.array([0.76]), fine_tuned=True)


def test_the_file_says_what_it_is(path: Path) -> None:
    predictor = AccuracyPredictor.load(path, make_space())
    assert (predictor.metric, predictor.source) == ("made accuracy", "random numbers")
    assert (predictor.rmse_pp, predictor.spearman, predictor.licence) == (0.1, 0.9, "Apache-2.0")


def test_equal_content_is_equal_bytes(path: Path, tmp_path: Path) -> None:
    info, networks = read_predictor(path)
    write_predictor(tmp_path / "again.safetensors", info, networks)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["again.safetensors"]


def test_every_truncation_is_a_corrupt_file(path: Path, tmp_path: Path) -> None:
    content = path.read_bytes()
    damaged = tmp_path / "cut.safetensors"
    for length in (0, 4, 8, 100, len(content) // 2, len(content) - 1):
        damaged.write_bytes(content[:length])
        with pytest.raises(CorruptFileError, match=r"cut\.safetensors"):
            AccuracyPredictor.load(damaged, make_space())


Tensors = dict[str, NDArray[np.float32]]


def _drop(tensors: Tensors) -> None:
    del tensors["net1.layer1.bias"]


def _add(tensors: Tensors) -> None:
    tensors["net2.linear"] = tensors["net1.linear"]


def _poison(tensors: Tensors) -> None:
    tensors["net0.layer1.weight"][2, 3] = np.nan


def _narrow(tensors: Tensors) -> None:
    tensors["net0.layer0.weight"] = tensors["net0.layer0.weight"][:-1].copy()


def _widen(tensors: Tensors) -> None:
    tensors["net0.layer2.weight"] = np.ones((12, 2), np.float32)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_drop, "lacks the tensor net1.layer1.bias"),
        (_add, "other tensors: wanted 14, got 15"),
        (_poison, "net0.layer1.weight holds values that are not finite"),
        (_narrow, "net0.layer0.weight has another shape or type: wanted float32 39 x any"),
        (_widen, "net0.layer2.weight has another shape or type: wanted float32 12 x 1"),
    ],
)
def test_wrong_tensors_are_a_corrupt_file(
    path: Path, tmp_path: Path, damage: Callable[[Tensors], None], words: str
) -> None:
    tensors = load_file(path)
    damage(tensors)
    metadata = {"effdl": msgspec.json.encode(make_info()).decode()}
    save_file(tensors, tmp_path / "bad.safetensors", metadata)
    with pytest.raises(CorruptFileError, match=words):
        AccuracyPredictor.load(tmp_path / "bad.safetensors", make_space())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema_version": 2}, "wanted schema_version 1, got 2"),
        ({"anchors": ()}, "increasing anchor"),
        ({"anchors": (224, 192, 160)}, "increasing anchor"),
        ({"num_networks": 0}, "1 to 64 networks"),
        ({"space": "other"}, "another space: wanted made, got other"),
    ],
)
def test_a_wrong_description_is_a_corrupt_file(
    path: Path, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    metadata = {"effdl": msgspec.json.encode(make_info(**changes)).decode()}
    save_file(load_file(path), tmp_path / "bad.safetensors", metadata)
    with pytest.raises(CorruptFileError, match=words):
        AccuracyPredictor.load(tmp_path / "bad.safetensors", make_space())


@pytest.mark.parametrize("metadata", [None, {"effdl": "{"}, {"effdl": "[]"}, {"effdl": "{}"}])
def test_no_description_is_a_corrupt_file(
    path: Path, tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    save_file(load_file(path), tmp_path / "bad.safetensors", metadata)
    with pytest.raises(CorruptFileError, match="does not describe"):
        AccuracyPredictor.load(tmp_path / "bad.safetensors", make_space())


def test_a_space_the_networks_do_not_know_is_refused(path: Path) -> None:
    with pytest.raises(CorruptFileError, match="kernel_size"):
        AccuracyPredictor.load(path, make_space(kernel_sizes=(3, 9)))
    space = make_space()
    fewer = replace(space, dimensions=space.dimensions[:7] + space.dimensions[8:])
    with pytest.raises(CorruptFileError, match="wanted 5 positions of kernel_size, got 6"):
        AccuracyPredictor.load(path, fewer)


def test_a_missing_file_and_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no accuracy predictor"):
        AccuracyPredictor.load(tmp_path / "none.safetensors", make_space())
    (tmp_path / "file").write_text("")
    info = make_info()
    with pytest.raises(OutputError, match="cannot write"):
        write_predictor(tmp_path / "file" / "p.safetensors", info, make_networks(info))
