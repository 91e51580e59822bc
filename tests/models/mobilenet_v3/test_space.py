"""The space against its published size and figures."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from effdl.errors import ConfigError
from effdl.models.mobilenet_v3.operators import BlockShape, ConvShape, make_divisible
from effdl.models.mobilenet_v3.space import MobileNetV3Space, ofa_mbv3_w10, ofa_mbv3_w12
from effdl.search.cost import LookupCost, SlotIndex

W10 = ofa_mbv3_w10()
W12 = ofa_mbv3_w12()


def cost_of(space: MobileNetV3Space, attribute: str) -> LookupCost:
    index = SlotIndex(space.search_space, space.slots)
    values = [np.array([float(getattr(op, attribute)) for op in s.ops]) for s in space.slots]
    return LookupCost(name=attribute, index=index, values=index.flatten(values))


def test_number_of_architectures_is_the_published_one() -> None:
    """A unit of depth d has 9^d block choices: (9^2 + 9^3 + 9^4)^5 = 7371^5."""
    space = W10.search_space
    per_unit = []
    for unit in range(5):
        blocks = [
            d.gate
            for d in space.dimensions
            if d.name == "kernel_size" and d.position is not None and d.position // 4 == unit
        ]
        always = sum(gate is None for gate in blocks)
        gated = sorted(gate.minimum for gate in blocks if gate is not None)
        per_unit.append(sum(9 ** (always + sum(g <= d for g in gated)) for d in range(3)))
    assert math.prod(per_unit) == 7371**5


@pytest.mark.parametrize(
    ("channels", "width_mult", "expected"),
    [
        (16, 1.2, 24),
        (24, 1.2, 32),
        (40, 1.2, 48),
        (80, 1.2, 96),
        (112, 1.2, 136),
        (160, 1.2, 192),
        (960, 1.2, 1152),
        (1280, 1.2, 1536),
        (12, 1.0, 16),
        (10, 1.0, 16),
        (9, 1.0, 16),
    ],
)
def test_make_divisible(channels: int, width_mult: float, expected: int) -> None:
    assert make_divisible(channels * width_mult) == expected


def test_block_figures_by_hand() -> None:
    """4x4 input, 8 -> 16 -> 8 channels, kernel 3, squeeze-excite over 8 channels, skip."""
    block = BlockShape(
        in_size=4,
        in_channels=8,
        mid_channels=16,
        out_channels=8,
        kernel_size=3,
        stride=1,
        squeeze_excite=True,
        activation="hswish",
        skip=True,
    ).spec()
    weights = 8 * 16 + 16 * 9 + 2 * 16 * 8 + 16 * 8
    assert block.num_params == weights + (16 + 8) + 2 * (16 + 16 + 8)
    assert block.macs == 16 * (8 * 16 + 16 * 9 + 16 * 8) + 2 * 16 * 8
    assert block.key == (
        "expanded_conv-input:4x4x8-output:4x4x8-expand:16-kernel:3-stride:1-idskip:1-se:1-hs:1"
    )
    # Depthwise in and out (16 pixels x 16 channels each) while the input (16 x 8) waits.
    assert block.peak_memory_bytes == 4 * (256 + 256 + 128)
    # expand 128+256, depthwise 256+256, gate 2x256, project 256+128, add 128+128; then weights.
    assert block.bytes_moved == 4 * (384 + 512 + 512 + 384 + 256 + weights)


def test_stem_figures_by_hand() -> None:
    stem = ConvShape(
        name="Conv", in_size=5, in_channels=3, out_channels=8, kernel_size=3, stride=2
    ).spec()
    assert stem.key == "Conv-input:5x5x3-output:3x3x8"
    assert stem.macs == 9 * 3 * 9 * 8
    assert stem.num_params == 9 * 3 * 8 + 16


def test_shapes_agree_with_slots() -> None:
    space = W12.search_space
    index = SlotIndex(space, W12.slots)
    rows = space.sample(50, np.random.default_rng(0))
    keys = np.concatenate([[*(op.key for op in slot.ops), ""] for slot in W12.slots])
    for row, codes in zip(rows, index.codes(rows), strict=True):
        by_slot = [key for key in keys[codes] if key]
        assert by_slot == [shape.spec().key for _, shape in W12.shapes(space.decode(row))]


@pytest.mark.reference_data
def test_params_and_macs_equal_the_published_ones(reference_data: Path) -> None:
    """All 1,730 rows, without building a module."""
    path = reference_data / "ofa" / "imagenet_top1_w1.0.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    space = W10.search_space

    def numbers(text: str) -> list[int]:
        return [int(value) for value in text.split("-")]

    population = np.stack(
        [
            space.encode(
                {
                    "ks": numbers(row["kernel_size"]),
                    "e": numbers(row["expand_ratio"]),
                    "d": numbers(row["depth"]),
                    "r": int(row["resolution"]),
                }
            )
            for row in rows
        ]
    )
    assert len(rows) == 1730
    assert cost_of(W10, "macs")(population).tolist() == [int(row["macs"]) for row in rows]
    assert cost_of(W10, "num_params")(population).tolist() == [int(row["params"]) for row in rows]


def test_published_extremes() -> None:
    """MACs at 224 px from 121.3 M to 566.2 M, parameters from 3.411 M to 7.665 M."""
    space = W10.with_resolutions((224,)).search_space
    smallest = np.zeros((1, len(space.dimensions)), dtype=np.uint8)
    largest = (space.num_choices - 1).astype(np.uint8)[None]
    w10 = W10.with_resolutions((224,))
    assert cost_of(w10, "macs")(smallest)[0] == pytest.approx(121.3e6, abs=0.05e6)
    assert cost_of(w10, "macs")(largest)[0] == pytest.approx(566.2e6, abs=0.05e6)
    assert cost_of(w10, "num_params")(smallest)[0] == pytest.approx(3.411e6, abs=0.0005e6)
    assert cost_of(w10, "num_params")(largest)[0] == pytest.approx(7.665e6, abs=0.0005e6)


@given(st.integers(0, 2**32 - 1))
def test_encode_undoes_decode(seed: int) -> None:
    space = W12.search_space
    rows = space.sample(4, np.random.default_rng(seed))
    for row in rows:
        assert space.encode(space.decode(row)).tolist() == row.tolist()


@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 3, 99, None, "x"]))
def test_inactive_positions_are_ignored(seed: int, junk: object) -> None:
    space = W12.search_space
    row = space.sample(1, np.random.default_rng(seed))[0]
    config = space.decode(row).to_json()
    kernels = space.decode(row).ints("kernel_size")
    config["kernel_size"] = [junk if kernel == 0 else kernel for kernel in kernels]
    assert space.encode(config).tolist() == row.tolist()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kernel_size": [3] * 19}, "wanted 20 values of kernel_size, got 19"),
        ({"kernel_size": [4] + [3] * 19}, "kernel_size at position 0 wanted one of 3, 5, 7, got 4"),
        ({"resolution": 225}, "resolution wanted one of 160"),
        ({"resolution": True}, "got True"),
        ({"depth": "22222"}, "wanted 5 values of depth, got 1"),
        ({"width": 1}, "unknown width"),
        ({"depth": [2, 2, 2, 2, float("nan")]}, "got nan"),
    ],
)
def test_wrong_configurations_say_what_was_wanted(change: dict[str, object], said: str) -> None:
    config: dict[str, object] = {
        "kernel_size": [3] * 20,
        "expand_ratio": [3] * 20,
        "depth": [2] * 5,
        "resolution": [224],
    }
    W12.search_space.encode(config)
    with pytest.raises(ConfigError) as caught:
        W12.search_space.encode(config | change)
    assert said in str(caught.value)


def test_missing_name_is_said() -> None:
    with pytest.raises(ConfigError, match="no depth"):
        W12.search_space.encode({"ks": [3] * 20, "e": [3] * 20, "r": 224})
