"""The kernels compiled for ARM use its dot products; no ARM is needed to see that."""

import re

import pytest
import torch

from effdl.compilers import check_tvm
from effdl.errors import BackendUnavailableError

try:
    check_tvm()
except BackendUnavailableError as error:
    pytest.skip(error.message, allow_module_level=True)

from effdl.kernels.lipschitz_conv2d.dense_shape import DenseShape
from effdl.kernels.lipschitz_conv2d.tvm_dense import choose_tile as choose_dense_tile
from effdl.kernels.lipschitz_conv2d.tvm_dense import dense_function
from effdl.kernels.lipschitz_linear.tvm_int4_function import (
    int4_float_function,
    int4_integer_function,
)
from effdl.kernels.lipschitz_linear.tvm_int8 import choose_tile, linear_function
from effdl.kernels.tvm_dot import find_dot_product
from effdl.kernels.tvm_panels import make_epilogue, pack_panels
from effdl.kernels.tvm_runtime import compile_module

SHAPE = DenseShape(
    num_inputs=16,
    num_outputs=24,
    height=8,
    width=8,
    kernel=(3, 3),
    stride=(1, 1),
    padding=(1, 1),
)


def instructions_of(function: object, instructions: str) -> dict[str, int]:
    """How often each dot product stands in the assembly."""
    module = compile_module({"f": function}, target=find_dot_product(instructions).to_tvm())
    assembly = module.source()
    assert ".arch" in assembly or "aarch64" in assembly or "x29" in assembly
    names = ("usdot", "sdot", "udot")
    return {name: len(re.findall(rf"\t{name}\t", assembly)) for name in names}


@pytest.mark.parametrize(
    ("instructions", "wanted"), [("neon-i8mm", "usdot"), ("neon-dotprod", "sdot")]
)
def test_matrix_product(instructions: str, wanted: str) -> None:
    dot_product = find_dot_product(instructions)
    rows, panels = choose_tile(8, dot_product)
    function = linear_function(
        dot_product, num_inputs=64, num_outputs=48, tile_rows=rows, tile_panels=panels
    )
    counts = instructions_of(function, instructions)
    assert counts.pop(wanted) >= rows * panels
    assert not any(counts.values())


@pytest.mark.parametrize(
    ("instructions", "wanted"), [("neon-i8mm", "usdot"), ("neon-dotprod", "sdot")]
)
def test_convolution(instructions: str, wanted: str) -> None:
    dot_product = find_dot_product(instructions)
    pixels, panels = choose_dense_tile(SHAPE, dot_product)
    function = dense_function(dot_product, SHAPE, tile_pixels=pixels, tile_panels=panels)
    counts = instructions_of(function, instructions)
    assert counts.pop(wanted) >= pixels * panels
    assert not any(counts.values())


@pytest.mark.parametrize(
    ("instructions", "wanted"), [("neon-i8mm", "usdot"), ("neon-dotprod", "sdot")]
)
def test_four_bits(instructions: str, wanted: str) -> None:
    function = int4_float_function(
        find_dot_product(instructions), num_inputs=64, num_outputs=32, num_groups=2, tile_rows=1
    )
    # Four panels, two halves of a byte of weights, two bytes of an activation.
    assert instructions_of(function, instructions)[wanted] >= 16


@pytest.mark.parametrize(
    ("instructions", "wanted"), [("neon-i8mm", "usdot"), ("neon-dotprod", "udot")]
)
def test_four_bits_between_bytes(instructions: str, wanted: str) -> None:
    function = int4_integer_function(
        find_dot_product(instructions), num_inputs=64, num_outputs=32, tile_rows=1
    )
    assert instructions_of(function, instructions)[wanted] >= 8


def test_signed_activations_are_corrected_in_the_bias() -> None:
    """Without i8mm the kernel sees x - 128; by hand: 1 * (2 + 3) * 128 more."""
    weight = torch.tensor([[2, 3, 0, 0]], dtype=torch.int8)
    panels = pack_panels(weight, find_dot_product("neon-dotprod"))
    epilogue = make_epilogue(
        panels,
        torch.tensor([7], dtype=torch.int32),
        torch.ones(1),
        x_zero_point=10,
        y_zero_point=0,
        y_min=0,
        y_max=255,
    )
    assert epilogue.bias.tolist() == [7 + 128 * 5 - 10 * 5, 0, 0, 0]
    assert panels.weight.tolist() == [[[2, 3, 0, 0] + [0] * 12]]
