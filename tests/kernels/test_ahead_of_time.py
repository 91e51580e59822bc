"""Every Triton kernel compiled for GPUs that are not here: nothing spills, tensor cores work."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("triton")

from effdl.errors import UnknownNameError
from effdl.kernels.triton_ahead import GPU_NAMES, KernelResources, compile_all

ROOT = Path(__file__).resolve().parents[2]
KERNELS = sorted(p.parent.name for p in (ROOT / "kernels").glob("*/triton_kernel.py"))
# What stands in a matrix instruction of these formats, on NVIDIA's GPUs and on AMD's.
FORMATS = {
    "int8": ("s8", "i8"),
    "int4": ("s8", "i8"),
    "float16": ("f16",),
    "bfloat16": ("bf16", "f16"),
    "tf32": ("tf32", "xf32"),
    "fp8": ("e4m3", "f8f6f4", "fp8"),
}

SPILLING = """
import json, sys
from dataclasses import replace
from effdl.kernels.triton_ahead import compile_ahead, find_cases
case = next(c for c in find_cases() if c.name == "shift_conv1x1.forward.int8.512-128@28")
tile = {"rows": 256, "columns": 128, "depth": 64}
large = replace(case, constexprs={**case.constexprs, **tile}, num_warps=4)
sys.stdout.write(json.dumps(compile_ahead(large, "sm_80").spills))
"""


@cache
def all_compiled() -> tuple[KernelResources, ...]:
    return compile_all()


def compiled(gpu: str) -> tuple[KernelResources, ...]:
    return tuple(kernel for kernel in all_compiled() if kernel.gpu == gpu)


@pytest.mark.parametrize("gpu", GPU_NAMES)
def test_nothing_spills(gpu: str) -> None:
    kernels = compiled(gpu)
    assert [k for k in kernels if k.spills] == []
    assert [k for k in kernels if not k.fits] == []
    names = [k.name for k in kernels]
    assert len(names) == len(set(names))
    assert [k for k in KERNELS if not any(n.startswith(f"{k}.") for n in names)] == []


@pytest.mark.parametrize("gpu", GPU_NAMES)
def test_products_run_on_tensor_cores_in_their_own_format(gpu: str) -> None:
    checked = 0
    for kernel in compiled(gpu):
        for form, spellings in FORMATS.items():
            if f".{form}." in kernel.name:
                checked += 1
                assert kernel.matrix_instructions, kernel
                for instruction in kernel.matrix_instructions:
                    assert any(s in instruction for s in spellings), kernel
        if ".float32." in kernel.name or ".fp32." in kernel.name:
            assert not any("tf32" in i or "xf32" in i for i in kernel.matrix_instructions)
    assert checked >= 12


def test_spills_are_seen() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", SPILLING],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.stdout == "true", done.stderr


def test_unknown_gpu_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown GPU 'sm_91'") as caught:
        compile_all(["sm_91"])
    assert caught.value.hint == "did you mean 'sm_90'?"
