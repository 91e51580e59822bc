"""The same TensorIR for processors that are not here: what is emitted, and that it is right."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from effdl.kernels.temporal_shift import reference
from effdl.kernels.temporal_shift.reference import Sections

tvm = pytest.importorskip("tvm")

from effdl.kernels.temporal_shift import tvm_functions  # noqa: E402
from effdl.kernels.tvm_runtime import CompiledModule, compile_module  # noqa: E402

ARM = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mattr": ["+neon"]}
# Without AVX: what every x86-64 processor has.
OLD_X86 = {"kind": "llvm", "mcpu": "x86-64"}
SYSTEM_ROOT = Path("/usr/aarch64-linux-gnu")
SIZES = {"channels": 40, "first": 8, "second": 8, "num_blocks": 1}


def compiled(name: str, target: dict[str, Any], *, sizes: bool) -> CompiledModule:
    function = tvm_functions.build_function(name, 4)
    if sizes:
        function = tvm_functions.specialize(function, **SIZES)
    return compile_module({name: function}, target=tvm.target.Target(target))


@pytest.mark.parametrize("sizes", [False, True], ids=["planes", "channels_last"])
@pytest.mark.parametrize("name", tvm_functions.FUNCTION_NAMES)
def test_neon_moves_the_runs_on_aarch64(name: str, sizes: bool) -> None:
    assembly = compiled(name, ARM, sizes=sizes).source("asm")
    assert re.search(r"\bld[rpu]+\s+q\d+", assembly)
    assert re.search(r"\bst[rpu]+\s+q\d+", assembly)


@pytest.mark.parametrize("sizes", [False, True], ids=["planes", "channels_last"])
def test_a_processor_without_avx(sizes: bool) -> None:
    shift, in_place = (compiled(n, OLD_X86, sizes=sizes) for n in ("shift", "shift_in_place"))
    assert not re.search(r"\b[yz]mm\d", shift.source("asm") + in_place.source("asm"))
    x = torch.randn(6, 40, 5, 3)
    wanted = reference.shift(x, num_segments=3, sections=Sections(8, 8, 1))
    if sizes:
        frames = x.permute(0, 2, 3, 1).contiguous().view(torch.int32).view(6, 15, 40)
        first, numbers, block = [], (3, 1, 0), (4, 4)
    else:
        frames = x.view(torch.int32).view(6, 1, 600)
        first, numbers, block = [600, 120, 120], (3, 1, 0), (1, 1, 1)
    y = torch.full_like(frames, -1)
    shift["shift"](frames, y, *first, *numbers)
    in_place["shift_in_place"](frames, *first, *block, *numbers)
    for got in (y, frames):
        got = got.view(torch.float32)
        got = got.view(6, 5, 3, 40).permute(0, 3, 1, 2) if sizes else got.view(x.shape)
        assert torch.equal(got, wanted)


# What TVM's runtime gives a function, on one thread.
HARNESS = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
typedef struct { int32_t type; int32_t small; union { int64_t i; void *p; double d; } v; } Any;
typedef struct { int32_t type, id; } Device;
typedef struct { uint8_t code, bits; uint16_t lanes; } Dtype;
typedef struct { void *data; Device device; int32_t ndim; Dtype dtype; int64_t *shape, *strides;
                 uint64_t byte_offset; } Tensor;
typedef struct { void *sync; int32_t num_task; } Env;
typedef int (*Task)(int, Env *, void *);
static int launch(Task task, void *data, int num_task) {
  (void)num_task; Env env = {0, 1}; return task(0, &env, data);
}
extern void *__TVMBackendParallelLaunch;
void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t num) {
  fprintf(stderr, "%s: ", kind);
  for (int32_t i = 0; i < num; ++i) if (parts[i]) fprintf(stderr, "%s", parts[i]);
  fprintf(stderr, "\n");
}
void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message) {
  fprintf(stderr, "%s: %s\n", kind, message);
}
extern int __tvm_ffi_shift_in_place(void *, const Any *, int32_t, Any *);
int main(void) {
  enum { F = 6, P = 15, C = 40 };
  static int32_t x[F * P * C];
  for (int i = 0; i < F * P * C; ++i) x[i] = i + 1;
  __TVMBackendParallelLaunch = (void *)launch;
  int64_t shape[3] = {SHAPE};
  Tensor t = {x, {1, 0}, 3, {0, 32, 1}, shape, NULL, 0};
  int64_t strides[3] = {shape[1] * shape[2], shape[2], 1};
  t.strides = strides;
  int64_t numbers[] = {NUMBERS};
  enum { N = sizeof(numbers) / sizeof(*numbers) };
  Any arguments[N + 1] = {{7, 0, {.p = &t}}}, result = {0};
  for (int i = 0; i < N; ++i) arguments[i + 1] = (Any){1, 0, {.i = numbers[i]}};
  if (__tvm_ffi_shift_in_place(NULL, arguments, N + 1, &result)) return 1;
  for (int i = 0; i < F * P * C; ++i) printf("%d\n", x[i]);
  return 0;
}
"""


@pytest.mark.proof
@pytest.mark.parametrize("sizes", [False, True], ids=["planes", "channels_last"])
def test_runs_on_an_emulated_arm(sizes: bool, tmp_path: Path) -> None:
    emulator, compiler = shutil.which("qemu-aarch64"), shutil.which("aarch64-linux-gnu-gcc")
    if emulator is None or compiler is None or not SYSTEM_ROOT.is_dir():
        pytest.skip("no ARM emulator here: apt-get install qemu-user gcc-aarch64-linux-gnu")
    module = compiled("shift_in_place", ARM, sizes=sizes)
    module.write_object(tmp_path / "kernel.o")
    numbers = (4, 4, 3, 1, 0) if sizes else (600, 120, 120, 1, 1, 1, 3, 1, 0)
    shape = (6, 15, 40) if sizes else (6, 1, 600)
    code = HARNESS.replace("SHAPE", ", ".join(map(str, shape)))
    (tmp_path / "main.c").write_text(code.replace("NUMBERS", ", ".join(map(str, numbers))))
    program = str(tmp_path / "program")
    parts = [str(tmp_path / "main.c"), str(tmp_path / "kernel.o")]
    subprocess.run([compiler, "-static", "-o", program, *parts], check=True)
    done = subprocess.run([emulator, program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    got = torch.tensor([int(line) for line in done.stdout.split()], dtype=torch.int32)
    x = torch.arange(1, 3601, dtype=torch.int32).view(torch.float32)
    x = x.view(6, 5, 3, 40).permute(0, 3, 1, 2) if sizes else x.view(6, 40, 5, 3)
    wanted = reference.shift(x, num_segments=3, sections=Sections(8, 8, 1)).view(torch.int32)
    wanted = wanted.permute(0, 2, 3, 1) if sizes else wanted
    assert torch.equal(got, wanted.reshape(-1))
