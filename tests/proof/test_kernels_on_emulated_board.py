"""The kernels' ARM forms, cross-compiled, run on an emulated processor, bit for bit."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from effdl.compilers import check_tvm
from effdl.errors import BackendUnavailableError
from effdl.kernels.bit_packing import pack_bits
from effdl.kernels.quantization import requantize

try:
    check_tvm()
except BackendUnavailableError as error:
    pytest.skip(error.message, allow_module_level=True)

import tvm_ffi

from effdl.kernels.lipschitz_conv2d.dense_shape import DenseShape
from effdl.kernels.lipschitz_conv2d.tvm_dense import choose_tile as choose_dense_tile
from effdl.kernels.lipschitz_conv2d.tvm_dense import dense_function
from effdl.kernels.lipschitz_linear.tvm_int4 import pack_int4, pack_int4_requantized, run_int4
from effdl.kernels.lipschitz_linear.tvm_int4_function import (
    NUM_PARTS,
    int4_float_function,
    int4_integer_function,
)
from effdl.kernels.lipschitz_linear.tvm_int8 import choose_tile, linear_function
from effdl.kernels.tvm_dot import find_dot_product
from effdl.kernels.tvm_panels import make_epilogue, pack_panels
from effdl.kernels.tvm_runtime import compile_module

pytestmark = pytest.mark.proof

TRIPLE = "aarch64-linux-gnu"
SYSTEM_ROOT = Path("/usr/aarch64-linux-gnu")
RUNNER = Path(__file__).with_name("packed_function_runner.c")
DEBIAN = "apt-get install qemu-user g++-aarch64-linux-gnu libc6-dev-arm64-cross"
ON_ARM = pytest.mark.parametrize("instructions", ["neon-i8mm", "neon-dotprod"])
LIMITS = {"x_zero_point": 117, "y_zero_point": 100, "y_min": 3, "y_max": 250}
# As DLPack numbers them.
DTYPE_CODES = {"i": 0, "u": 1, "f": 2}


def run_on_arm(
    function: object, instructions: str, folder: Path, arguments: list[Tensor]
) -> Tensor:
    """The last argument after the call, on an emulated processor with every extension."""
    compiler = shutil.which(f"{TRIPLE}-gcc")
    if shutil.which("qemu-aarch64") is None or compiler is None or not SYSTEM_ROOT.is_dir():
        pytest.skip(f"no ARM emulator and compiler here: {DEBIAN}")
    target = find_dot_product(instructions).to_tvm()
    compile_module({"kernel": function}, target=target).write_object(folder / "kernel.o")
    include = Path(tvm_ffi.libinfo.find_include_path())
    subprocess.run(
        [
            *(compiler, "-O1", "-DFUNCTION=__tvm_ffi_kernel", f"-I{include}"),
            *(str(RUNNER), str(folder / "kernel.o"), "-lm", "-o", str(folder / "run")),
        ],
        check=True,
    )
    with (folder / "in").open("wb") as file:
        file.write(np.int64(len(arguments)).tobytes())
        for tensor in arguments:
            array = tensor.contiguous().numpy()
            code, bits = DTYPE_CODES[array.dtype.kind], 8 * array.itemsize
            file.write(np.array([code, bits, array.ndim, *array.shape], np.int64).tobytes())
            file.write(array.tobytes())
    subprocess.run(
        [
            *("qemu-aarch64", "-cpu", "max", "-L", str(SYSTEM_ROOT)),
            *(str(folder / "run"), str(folder / "in"), str(folder / "out")),
        ],
        check=True,
    )
    last = arguments[-1]
    return torch.frombuffer(bytearray((folder / "out").read_bytes()), dtype=last.dtype).view(
        last.shape
    )


def random_bytes(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    info = torch.iinfo(dtype)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(info.min, info.max + 1, shape, dtype=dtype, generator=generator)


def requantized(sums: Tensor, multiplier: Tensor) -> np.ndarray:
    """Sums [..., channels] as bytes."""
    return requantize(
        sums.to(torch.int32).numpy(),
        multiplier.numpy(),
        y_zero_point=LIMITS["y_zero_point"],
        y_min=LIMITS["y_min"],
        y_max=LIMITS["y_max"],
    )


@ON_ARM
@pytest.mark.parametrize("rows", [1, 5, 9])
def test_matrix_product(instructions: str, rows: int, tmp_path: Path) -> None:
    dot_product = find_dot_product(instructions)
    x = random_bytes(rows, 68, dtype=torch.uint8, seed=0)
    weight = random_bytes(45, 68, dtype=torch.int8, seed=1)
    bias = torch.arange(-45, 45, 2, dtype=torch.int32) * 100
    multiplier = torch.linspace(1e-4, 2e-3, 45)
    panels = pack_panels(weight, dot_product)
    epilogue = make_epilogue(panels, bias, multiplier, **LIMITS)
    tile_rows, tile_panels = choose_tile(rows, dot_product)
    function = linear_function(
        dot_product, num_inputs=68, num_outputs=45, tile_rows=tile_rows, tile_panels=tile_panels
    )
    y = torch.full((rows, 45), 77, dtype=torch.uint8)
    arguments = [x, panels.weight, epilogue.bias, epilogue.multiplier, epilogue.limits, y]
    got = run_on_arm(function, instructions, tmp_path, arguments)
    sums = (x.long() - LIMITS["x_zero_point"]) @ weight.long().t() + bias
    np.testing.assert_array_equal(got.numpy(), requantized(sums, multiplier))


@ON_ARM
@pytest.mark.parametrize("stride", [1, 2])
def test_convolution(instructions: str, stride: int, tmp_path: Path) -> None:
    dot_product = find_dot_product(instructions)
    shape = DenseShape(
        num_inputs=10,
        num_outputs=22,
        height=9,
        width=7,
        kernel=(3, 3),
        stride=(stride, stride),
        padding=(1, 1),
    )
    x = random_bytes(2, 10, 9, 7, dtype=torch.uint8, seed=0)
    weight = random_bytes(22, 10, 3, 3, dtype=torch.int8, seed=1)
    bias = torch.arange(-22, 22, 2, dtype=torch.int32) * 100
    multiplier = torch.linspace(1e-4, 2e-3, 22)
    filled = pad(weight, (0, 0, 0, 0, 0, 2)).permute(0, 2, 3, 1).flatten(1)
    panels = pack_panels(filled, dot_product)
    epilogue = make_epilogue(panels, bias, multiplier, **LIMITS)
    pixels, tile_panels = choose_dense_tile(shape, dot_product)
    function = dense_function(dot_product, shape, tile_pixels=pixels, tile_panels=tile_panels)
    words = [
        torch.empty(2 * n, dtype=torch.uint8) for n in (shape.x_words_bytes, shape.y_words_bytes)
    ]
    y = torch.full((2, 22, *shape.output), 77, dtype=torch.uint8)
    arguments = [
        *(x, panels.weight, epilogue.bias, epilogue.multiplier, epilogue.limits),
        *(*words, y),
    ]
    got = run_on_arm(function, instructions, tmp_path, arguments)
    shifted = pad(x.double() - LIMITS["x_zero_point"], (1, 1, 1, 1))
    sums = conv2d(shifted, weight.double(), bias.double(), stride=stride)
    wanted = requantized(sums.permute(0, 2, 3, 1), multiplier)
    np.testing.assert_array_equal(got.permute(0, 2, 3, 1).numpy(), wanted)


@ON_ARM
@pytest.mark.parametrize("rows", [1, 3])
def test_four_bits(instructions: str, rows: int, tmp_path: Path) -> None:
    """As this machine's own form, which its tests compare with NumPy."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 60, generator=generator)
    weight = torch.randint(-8, 8, (37, 60), dtype=torch.int8, generator=generator)
    scale = torch.rand(37, 5, generator=generator)
    layer = pack_int4(pack_bits(weight, 4), scale, instructions=instructions)
    num_outputs = layer.scale.shape[1]
    function = int4_float_function(
        layer.dot_product,
        num_inputs=60,
        num_outputs=num_outputs,
        num_groups=5,
        tile_rows=min(rows, 2),
    )
    scratch = [
        torch.empty(rows * NUM_PARTS * 80, dtype=torch.int8),
        torch.empty(rows * NUM_PARTS * 5, dtype=torch.int32),
        torch.empty(rows),
    ]
    y = torch.full((rows, num_outputs), torch.nan)
    arguments = [x, layer.weight, layer.scale, *scratch, y]
    got = run_on_arm(function, instructions, tmp_path, arguments)
    here = run_int4(pack_int4(pack_bits(weight, 4), scale), x)
    assert torch.equal(got[:, :37], here)


@ON_ARM
def test_four_bits_between_bytes(instructions: str, tmp_path: Path) -> None:
    x = random_bytes(3, 64, dtype=torch.uint8, seed=0)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randint(-8, 8, (16, 64), dtype=torch.int8, generator=generator)
    bias = torch.arange(-16, 16, 2, dtype=torch.int32) * 100
    multiplier = torch.linspace(1e-3, 2e-2, 16)
    layer = pack_int4_requantized(
        pack_bits(weight, 4), bias, multiplier, instructions=instructions, **LIMITS
    )
    function = int4_integer_function(layer.dot_product, num_inputs=64, num_outputs=16, tile_rows=2)
    y = torch.full((3, 16), 77, dtype=torch.uint8)
    arguments = [
        *(x.view(-1), layer.weight, layer.bias, layer.multiplier, layer.limits),
        *(torch.empty(3, dtype=torch.int32), y),
    ]
    got = run_on_arm(function, instructions, tmp_path, arguments)
    sums = (x.long() - LIMITS["x_zero_point"]) @ weight.long().t() + bias
    np.testing.assert_array_equal(got.numpy(), requantized(sums, multiplier))
