"""The CPU kernels for processors other than this one, and how the work is divided."""

import platform

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from effdl.compilers import check_tvm
from effdl.errors import BackendUnavailableError
from effdl.kernels.shift_conv1x1 import reference

try:
    check_tvm()
except BackendUnavailableError as error:
    pytest.skip(str(error), allow_module_level=True)

import tvm

from effdl.kernels.shift_conv1x1.tvm_builder import Geometry, VectorUnit
from effdl.kernels.shift_conv1x1.tvm_kernel import choose_split, planar_kernel, rows_kernel
from effdl.kernels.tvm_runtime import compile_module, has_feature

IS_X86 = platform.machine() in ("x86_64", "AMD64")
SHIFT = Geometry(num_segments=3, fold_next=3, fold_previous=3)
UNITS = {
    "haswell": VectorUnit(num_lanes=8, num_registers=16),
    "x86-64": VectorUnit(num_lanes=4, num_registers=16),
}


def wanted(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return reference.forward(x, weight, None, num_segments=3, fold_next=3, fold_previous=3)


@pytest.mark.skipif(not IS_X86 or not has_feature("avx2"), reason="another processor")
@pytest.mark.parametrize("processor", UNITS)
def test_planes_on_older_processors(processor: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 24, 5, 7, generator=generator)
    weight = torch.randn(10, 24, generator=generator)
    kernel = planar_kernel(24, 10, 35, read=SHIFT, vectors=UNITS[processor])
    target = tvm.target.Target({"kind": "llvm", "mcpu": processor})
    library = compile_module({"planes": kernel.build()}, target=target)
    size = kernel.num_blocks * kernel.num_rows
    filled = torch.nn.functional.pad(weight, (0, 0, 0, size - 10))
    packed = filled.unflatten(0, (kernel.num_blocks, kernel.num_rows)).transpose(1, 2).contiguous()
    for width in range(1, kernel.num_vectors + 1):
        for num_groups in (1, 2):
            y = torch.full((6, 10, 35), float("nan"))
            library.call("planes", x.flatten(2), packed, torch.zeros(size), width, num_groups, y)
            torch.testing.assert_close(y.view(6, 10, 5, 7), wanted(x, weight))


@pytest.mark.skipif(not IS_X86 or not has_feature("avx2"), reason="another processor")
@pytest.mark.parametrize("processor", UNITS)
def test_rows_on_older_processors(processor: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 24, 5, 7, generator=generator)
    weight = torch.randn(10, 24, generator=generator)
    kernel = rows_kernel(24, 10, 35, read=SHIFT, vectors=UNITS[processor])
    target = tvm.target.Target({"kind": "llvm", "mcpu": processor})
    library = compile_module({"rows": kernel.build()}, target=target)
    size = kernel.num_panels * kernel.panel_size
    filled = torch.nn.functional.pad(weight, (0, 0, 0, size - 10))
    shape = (kernel.num_panels, kernel.panel_size)
    packed = filled.unflatten(0, shape).transpose(1, 2).contiguous()
    y = torch.full((210, 10), float("nan"))
    rows = x.permute(0, 2, 3, 1).flatten(0, 2).contiguous()
    library.call("rows", rows, packed, torch.zeros(size), y)
    torch.testing.assert_close(y.view(6, 5, 7, 10).permute(0, 3, 1, 2), wanted(x, weight))


def test_compiles_for_arm() -> None:
    unit = VectorUnit(num_lanes=4, num_registers=32)
    target = tvm.target.Target({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mattr": ["+neon"]})
    kernel = rows_kernel(24, 16, 35, read=SHIFT, vectors=unit)
    source = compile_module({"rows": kernel.build()}, target=target).source()
    assert source.count("fmla") >= kernel.num_rows * kernel.num_vectors


@given(
    num_columns=st.integers(1, 30_000),
    num_outputs=st.integers(1, 2048),
    num_threads=st.integers(1, 16),
)
def test_no_thread_waits_long(num_columns: int, num_outputs: int, num_threads: int) -> None:
    split = choose_split(num_columns, num_outputs, num_lanes=16, most=6, num_threads=num_threads)
    assert 1 <= split.width <= 6
    assert split.num_groups in (1, num_threads)
    if num_threads == 1:
        assert split.num_groups == 1


def test_few_columns_are_shared_by_output_channels() -> None:
    split = choose_split(392, 512, num_lanes=16, most=6, num_threads=8)
    assert split.num_groups == 8
    assert choose_split(25_088, 64, num_lanes=16, most=6, num_threads=2).num_groups == 1
