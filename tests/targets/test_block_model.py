"""The launch-and-work model by hand: its formula, its derivatives, its file."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from effdl.errors import CorruptFileError, OutputError
from effdl.models.mobilenet_v3.space import ofa_mbv3_w10, ofa_mbv3_w12
from effdl.opspec import OpSpec
from effdl.targets.block_model import (
    BlockCoefficients,
    BlockKind,
    BlockModel,
    block_kind,
    launch_and_work,
    op_features,
)

PLAIN = BlockCoefficients(
    launch_ms={"block": 0.1, "squeeze_excite": 0.2, "hswish": 0.05, "skip": 0.03},
    work_ms={"pointwise_macs": 0.5, "depthwise_macs": 2.0, "activation_elements": 1.0},
    exponent=2.0,
    offset_ms=0.7,
    offset_per_area_ms=0.4,
)


def make_model(coefficients: BlockCoefficients = PLAIN) -> BlockModel:
    return BlockModel(
        target="toy",
        device="Toy",
        batch_size=4,
        runtime="hand",
        space="ofa-mbv3-w1.2",
        resolutions=(160, 224),
        origin="made",
        licence="none",
        num_samples=20,
        cv_mape_percent=1.0,
        cv_spearman=0.9,
        interval_percent=3.0,
        coefficients=coefficients,
    )


def make_op(key: str = "k", **features: float) -> OpSpec:
    return OpSpec(
        key=key,
        num_params=0,
        macs=0,
        bytes_moved=0,
        peak_memory_bytes=0,
        features=features,
        build=lambda batch_size: b"",
    )


BLOCK = make_op(
    block=1.0,
    squeeze_excite=1.0,
    skip=1.0,
    pointwise_macs=4e5,
    depthwise_macs=1e5,
    activation_elements=4e4,
)


def test_one_block_and_the_stem_by_hand() -> None:
    # Launch 0.1 + 0.2 + 0.03 = 0.33; work 0.2 + 0.2 + 0.04 = 0.44; their 2-norm is 0.55.
    stem = make_op(image_pixels=112.0**2, dense_macs=1e6)
    head = make_op(dense_macs=1e9, activation_elements=1e9)
    latencies = make_model().predict_op_ms([BLOCK, stem, head])
    assert latencies == pytest.approx([0.55, 0.7 + 0.4 / 4, 0.0])
    assert make_model().source == "fitted"


def test_corrections_by_kind_and_by_resolution() -> None:
    corrected = msgspec.structs.replace(
        PLAIN,
        kinds={"k": BlockKind(scale=0.5, offset_ms=0.1), "low": BlockKind(scale=0.0, offset_ms=-1)},
        resolution_offset_ms={100: 0.2, 200: -0.2},
    )
    sides = (50, 100, 150, 200, 300)
    stems = [make_op("stem", image_pixels=float(side**2)) for side in sides]
    plain = PLAIN.predict_op_ms(stems)
    latencies = corrected.predict_op_ms([BLOCK, make_op("low", **BLOCK.features), *stems])
    assert latencies[:2] == pytest.approx([0.55 / 2 + 0.1, 0.0])
    assert latencies[2:] - plain == pytest.approx([0.2, 0.2, 0.0, -0.2, -0.2])


def test_kinds_are_keys_without_sizes() -> None:
    key = "expanded_conv-input:28x28x48-output:14x14x96-expand:144-kernel:3-stride:2-idskip:0"
    assert block_kind(key) == (
        "expanded_conv-input:48-output:96-expand:144-kernel:3-stride:2-idskip:0"
    )
    assert block_kind(key.replace("28x28", "26x26").replace("14x14", "13x13")) == block_kind(key)
    assert block_kind(key.replace("x48-", "x56-")) != block_kind(key)


@given(
    parameters=st.lists(st.floats(-6, 3), min_size=9, max_size=9),
    log_exponent=st.floats(-2.5, 2.0),
)
def test_derivatives_equal_finite_differences(parameters: list[float], log_exponent: float) -> None:
    ops = [BLOCK, make_op(image_pixels=1e4), make_op(block=1.0, pointwise_macs=2e6), make_op()]
    features, at = op_features(ops), np.array([*parameters, log_exponent])
    _, jacobian = launch_and_work(features, at)
    step = 1e-6
    for i in range(10):
        ahead, behind = at.copy(), at.copy()
        ahead[i] += step
        behind[i] -= step
        change = launch_and_work(features, ahead)[0] - launch_and_work(features, behind)[0]
        np.testing.assert_allclose(jacobian[:, i], change / (2 * step), rtol=2e-5, atol=1e-7)


@given(exponent=st.floats(1.0, 40.0))
def test_a_smooth_maximum_lies_between_maximum_and_sum(exponent: float) -> None:
    (latency,) = msgspec.structs.replace(PLAIN, exponent=exponent).predict_op_ms([BLOCK])
    assert 0.44 * (1 - 1e-9) <= latency <= 0.77 * (1 + 1e-9)


def test_an_exponent_of_one_adds_and_a_large_one_takes_the_larger() -> None:
    for exponent, expected in ((1.0, 0.77), (500.0, 0.44)):
        model = msgspec.structs.replace(PLAIN, exponent=exponent)
        assert model.predict_op_ms([BLOCK]) == pytest.approx([expected], rel=1e-6)


def test_no_operator_of_a_real_space_is_negative() -> None:
    for space in (ofa_mbv3_w10(), ofa_mbv3_w12()):
        ops = [op for slot in space.slots for op in slot.ops]
        latencies = make_model().predict_op_ms(ops)
        assert np.isfinite(latencies).all()
        assert (latencies >= 0).all()


def test_written_models_read_back(tmp_path: Path) -> None:
    model = make_model(
        msgspec.structs.replace(
            PLAIN,
            kinds={"k": BlockKind(scale=0.9, offset_ms=-0.1)},
            resolution_offset_ms={224: 0.1 + 0.2},
        )
    )
    model.write(tmp_path / "m.json")
    assert BlockModel.read(tmp_path / "m.json") == model
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        model.write(tmp_path / "file" / "m.json")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"schema_version":1', '"schema_version":9', "schema_version"),
        ('"kind":"block_model"', '"kind":"cake"', "kind"),
        ('"exponent":2.0', '"exponent":0.5', "exponent"),
        ('"offset_ms":0.7', '"offset_ms":-0.7', "offset_ms"),
        ('"offset_ms":0.7', '"offset_ms":NaN', "m.json"),
        ('"skip":0.03', '"jump":0.03', "launch_ms"),
        (',"skip":0.03', "", "launch_ms wanted block"),
        ('"cv_spearman":0.9', '"cv_spearman":1.9', "cv_spearman"),
        ('"num_samples":20,', "", "num_samples"),
        ('"target":"toy"', '"target":"toy","colour":1', "colour"),
        ('"resolutions":[160,224]', '"resolutions":[160]', "resolutions"),
    ],
)
def test_malformed_models(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = msgspec.json.encode(make_model()).decode()
    assert old in text
    (tmp_path / "m.json").write_text(text.replace(old, new, 1))
    with pytest.raises(CorruptFileError, match=message):
        BlockModel.read(tmp_path / "m.json")


def test_truncated_models(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    make_model().write(path)
    whole = path.read_bytes().rstrip()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptFileError):
            BlockModel.read(path)
