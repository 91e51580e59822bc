"""Scales, integers and packing, against hand-computed values and ONNX Runtime."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from effdl.errors import ConfigError
from effdl.kernels.bit_packing import pack_bits, unpack_bits
from effdl.kernels.quantization import (
    QuantizationParameters,
    asymmetric_parameters,
    bias_to_int32,
    dequantize,
    integer_range,
    quantize,
    relu6_parameters,
    requantize,
    symmetric_parameters,
    weight_parameters,
)


@pytest.mark.parametrize(
    ("num_bits", "signed", "narrow", "wanted"),
    [
        (8, False, False, (0, 255)),
        (8, True, False, (-128, 127)),
        (8, True, True, (-127, 127)),
        (4, True, False, (-8, 7)),
        (2, True, True, (-1, 1)),
        (1, False, False, (0, 1)),
    ],
)
def test_integer_range(num_bits: int, signed: bool, narrow: bool, wanted: tuple[int, int]) -> None:
    assert integer_range(num_bits, signed=signed, narrow=narrow) == wanted


@pytest.mark.parametrize("num_bits", [0, 9])
def test_integer_range_says_what_it_wanted(num_bits: int) -> None:
    with pytest.raises(ConfigError, match=f"wanted 1 to 8, got {num_bits}"):
        integer_range(num_bits, signed=False)


def test_a_symmetric_bit_has_no_range() -> None:
    with pytest.raises(ConfigError, match="wanted 2 to 8 for a symmetric range, got 1"):
        symmetric_parameters(torch.ones(3), 1)


def test_symmetric_by_hand() -> None:
    x = torch.tensor([[-1.27, 0.5], [0.0, 0.0635]])
    whole = symmetric_parameters(x, 8)
    torch.testing.assert_close(whole.scale, torch.tensor([0.01]))
    assert quantize(x, whole).tolist() == [[-127, 50], [0, 6]]
    rows = symmetric_parameters(x, 8, axis=0)
    torch.testing.assert_close(rows.scale, torch.tensor([0.01, 0.0005]))
    assert quantize(x, rows).tolist() == [[-127, 50], [0, 127]]
    columns = symmetric_parameters(x, 8, axis=-1)
    assert quantize(x, columns)[0].tolist() == [-127, 127]


def test_relu6_grid_is_the_papers() -> None:
    x = torch.linspace(-1, 7, 801, dtype=torch.float64)
    for num_bits in range(1, 9):
        parameters = relu6_parameters(num_bits)
        levels = 2**num_bits - 1
        wanted = torch.round(x.clamp(0, 6) * levels / 6) * 6 / levels
        got = dequantize(quantize(x, parameters), parameters).double()
        # Where x lies between two steps, either is the nearest.
        tie = ((x * levels / 6) % 1 - 0.5).abs() < 1e-4
        torch.testing.assert_close(got[~tie], wanted[~tie], atol=1e-6, rtol=1e-6)


def test_asymmetric_holds_zero_exactly() -> None:
    parameters = asymmetric_parameters(
        torch.tensor([0.5, -1.0]), torch.tensor([1.5, -0.5]), 4, axis=0
    )
    assert parameters.zero_point.tolist() == [0, 15]
    torch.testing.assert_close(parameters.scale, torch.tensor([0.1, 1 / 15]))
    zeros = torch.zeros(2, 3)
    assert torch.equal(dequantize(quantize(zeros, parameters), parameters), zeros)


@settings(max_examples=60, deadline=None)
@given(
    low=st.floats(-100, 0),
    width=st.floats(0.01, 100),
    num_bits=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_rounding_moves_a_number_by_half_a_step_at_most(
    low: float, width: float, num_bits: int, seed: int
) -> None:
    high = low + width
    parameters = asymmetric_parameters(torch.tensor(low), torch.tensor(high), num_bits)
    step = float(parameters.scale)
    start = (parameters.quant_min - int(parameters.zero_point)) * step
    end = (parameters.quant_max - int(parameters.zero_point)) * step
    x = torch.rand(64, generator=torch.Generator().manual_seed(seed)) * (end - start) + start
    moved = dequantize(quantize(x, parameters), parameters) - x
    assert float(moved.abs().max()) <= step * (0.5 + 1e-4)


def test_zeros_and_nothing_have_a_scale() -> None:
    for x in (torch.zeros(3, 4), torch.zeros(3, 0)):
        for per_channel in (True, False):
            for num_bits in (2, 4, 8):
                parameters = weight_parameters(x, num_bits, per_channel=per_channel)
                assert bool((parameters.scale > 0).all())
                assert not quantize(x, parameters).any()


def test_few_bits_keep_more_than_the_largest_weight() -> None:
    weight = torch.randn(1, 4096, generator=torch.Generator().manual_seed(0))
    weight[0, 0] = 40.0
    by_largest = symmetric_parameters(weight, 2)
    by_mean = weight_parameters(weight, 2, per_channel=False)
    torch.testing.assert_close(by_mean.scale, 2 * weight.abs().mean().reshape(1))
    assert int((quantize(weight, by_largest) != 0).sum()) == 1
    assert int((quantize(weight, by_mean) != 0).sum()) > 1000
    error = {
        p: float((dequantize(quantize(weight, q), q) - weight)[0, 1:].square().mean())
        for p, q in (("largest", by_largest), ("mean", by_mean))
    }
    assert error["mean"] < 0.6 * error["largest"]


def test_quantize_linear_of_onnxruntime_agrees() -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((5, 7)) * 40).astype(np.float32)
    # Halves, where a wrong rounding shows.
    x[0] = np.array([-3.5, -2.5, -0.5, 0.5, 1.5, 2.5, 3.5], np.float32) * np.float32(0.25)
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])],
            "q",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
            [helper.make_tensor_value_info("y", TensorProto.UINT8, x.shape)],
            [
                helper.make_tensor("s", TensorProto.FLOAT, [], [0.25]),
                helper.make_tensor("z", TensorProto.UINT8, [], [131]),
            ],
        ),
        opset_imports=[helper.make_opsetid("", 19)],
        ir_version=10,
    )
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    parameters = QuantizationParameters(
        scale=torch.tensor([0.25]),
        zero_point=torch.tensor([131], dtype=torch.int32),
        quant_min=0,
        quant_max=255,
    )
    wanted = np.asarray(session.run(None, {"x": x})[0])
    assert np.array_equal(quantize(torch.from_numpy(x), parameters).numpy(), wanted)


def test_requantize_rounds_halves_to_even() -> None:
    accumulator = np.array([[1, 3, 5, -1, -3, 2**30, -(2**30)]], np.int32)
    got = requantize(accumulator, np.array([0.5], np.float32), y_zero_point=10)
    assert got.tolist() == [[10, 12, 12, 10, 8, 255, 0]]
    clipped = requantize(
        accumulator, np.array([0.5], np.float32), y_zero_point=10, y_min=10, y_max=11
    )
    assert clipped.tolist() == [[10, 11, 11, 10, 10, 11, 10]]


def test_bias_in_steps_of_the_accumulator() -> None:
    got = bias_to_int32(torch.tensor([1.0, -0.26, 1e30]), 0.5, torch.tensor([0.1, 0.2, 0.1]))
    assert got.tolist() == [20, -3, 2**31 - 1]


def test_packing_by_hand() -> None:
    four = torch.tensor([[1, -1, 7, -8, 3]], dtype=torch.int8)
    assert pack_bits(four, 4).tolist() == [[0xF1, 0x87, 0x03]]
    two = torch.tensor([1, -1, -2, 0, 1], dtype=torch.int8)
    assert pack_bits(two, 2).tolist() == [0b00_10_11_01, 0b01]
    assert pack_bits(torch.tensor([15, 1], dtype=torch.uint8), 4).tolist() == [0x1F]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 3),
    size=st.integers(0, 17),
    num_bits=st.sampled_from([2, 4]),
    signed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_unpacking_undoes_packing(
    rows: int, size: int, num_bits: int, signed: bool, seed: int
) -> None:
    low, high = integer_range(num_bits, signed=signed)
    generator = torch.Generator().manual_seed(seed)
    q = torch.randint(low, high + 1, (rows, size), generator=generator)
    q = q.to(torch.int8 if signed else torch.uint8)
    packed = pack_bits(q, num_bits)
    assert packed.shape == (rows, -(-size * num_bits // 8))
    assert torch.equal(unpack_bits(packed, num_bits, size=size, signed=signed), q)


def test_packing_says_what_it_wanted() -> None:
    with pytest.raises(ConfigError, match="wanted 2 or 4 to pack, got 3"):
        pack_bits(torch.zeros(2, dtype=torch.int8), 3)
    with pytest.raises(ConfigError, match="wanted integers of 4 bits, -8 to 7, got -9 to 0"):
        pack_bits(torch.tensor([-9, 0], dtype=torch.int8), 4)
    with pytest.raises(ConfigError, match=r"wanted torch.int8 or torch.uint8, got torch.int32"):
        pack_bits(torch.zeros(2, dtype=torch.int32), 4)
    with pytest.raises(
        ConfigError, match="wanted 3 bytes in a row for 5 integers of 4 bits, got 2"
    ):
        unpack_bits(torch.zeros(2, dtype=torch.uint8), 4, size=5)
