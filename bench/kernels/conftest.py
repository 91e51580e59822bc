"""One way to time a kernel beside its peers, print the figures and keep them."""

import datetime
import json
import os
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from effdl.kernels.backend import Backend, choose_backend
from effdl.targets.host import describe_host
from effdl.targets.measure.onnxruntime import OnnxRuntime
from effdl.targets.sampler import HostSampler
from effdl.targets.timing import QUICK_PROTOCOL, measure_interleaved

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "benchmarks"
SCHEMA_VERSION = 1
Run = Callable[[], object]
# Below it a copy is of the caches' bandwidth; arrays are of at least one page.
MIN_COPY_BYTES = 4096


@cache
def peak_operations_per_s(dtype: str) -> float | None:
    """The measured roof of one core, where this machine has a loop for the format."""
    if choose_backend(None, device=torch.device("cpu")) is not Backend.TVM:
        return None
    from effdl.kernels.tvm_peak import float32_peak_loop, int8_peak_loop

    makers = {"float32": float32_peak_loop, "int8": int8_peak_loop}
    loop = makers[dtype]() if dtype in makers else None
    if loop is None:
        return None
    (timing,) = measure_interleaved(
        [lambda: HostSampler(loop.run)],
        instruments=OnnxRuntime().instruments(),
        protocol=QUICK_PROTOCOL,
    )
    return loop.num_operations / (timing.p20_ms * 1e-3)


def copy_of(num_bytes: int) -> Run:
    """A plain copy that reads and writes so many bytes in all."""
    source = np.ones(max(MIN_COPY_BYTES, num_bytes // 2), np.uint8)
    target = np.empty_like(source)
    return lambda: np.copyto(target, source)


@pytest.fixture
def kernel_report() -> Callable[..., Mapping[str, float]]:
    """Times a kernel's variants, interleaved, prints them and keeps them as JSON."""
    return report


def report(
    benchmark: BenchmarkFixture,
    *,
    kernel: str,
    case: str,
    variants: Mapping[str, Run],
    dtype: str,
    bytes_moved: int,
    operations: int,
    num_threads: int = 1,
) -> dict[str, float]:
    """p20 of every variant in ms, ours first.

    Args:
        benchmark: Of pytest-benchmark.
        kernel: Its folder's name.
        case: The size, such as ``"256@56"``.
        variants: What to time, by name; ours first, then peers.
        dtype: Number format of the arithmetic.
        bytes_moved: Read and written if everything is touched once.
        operations: Multiplications and additions.
        num_threads: Threads of PyTorch and TVM; peers' are the caller's to set.
    """
    runs = {**variants, "copy of the same bytes": copy_of(bytes_moved)}

    def measure() -> dict[str, float]:
        timings = measure_interleaved(
            [lambda run=run: HostSampler(run) for run in runs.values()],
            instruments=OnnxRuntime().instruments(),
            protocol=QUICK_PROTOCOL,
        )
        return {name: t.p20_ms for name, t in zip(runs, timings, strict=True)}

    threads_before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        # Pools of threads start here: begun inside, they would share the pinned core.
        for run in runs.values():
            run()
        p20_ms = benchmark.pedantic(measure, rounds=1)
    finally:
        torch.set_num_threads(threads_before)
    peak = peak_operations_per_s(dtype)
    compute_ms = operations / (peak * num_threads) * 1e3 if peak and operations else 0.0
    ours = next(iter(variants))
    row: dict[str, Any] = {
        "kernel": kernel,
        "case": case,
        "dtype": dtype,
        "num_threads": num_threads,
        "bytes_moved": bytes_moved,
        "operations": operations,
        "gigabytes_per_s": bytes_moved / p20_ms[ours] / 1e6,
        "giga_operations_per_s": operations / p20_ms[ours] / 1e6,
        "floor_ms": max(compute_ms, p20_ms["copy of the same bytes"]),
        "ours": ours,
        "p20_ms": p20_ms,
    }
    row["floor_ratio"] = row["floor_ms"] / p20_ms[ours]
    benchmark.extra_info.update(row)
    keep(row)
    times = "  ".join(f"{name} {value:.4f}" for name, value in p20_ms.items())
    print(
        f"\n{kernel} {case} {dtype} {num_threads} thread(s): {row['gigabytes_per_s']:.1f} GB/s, "
        f"{row['giga_operations_per_s']:.0f} GOP/s, {row['floor_ratio']:.0%} of the floor; "
        f"p20 in ms: {times}"
    )
    return p20_ms


def keep(row: Mapping[str, Any]) -> None:
    """Put a row into this machine's file of this month, in place of the one it had."""
    host = describe_host()
    machine = re.sub(r"[^a-z0-9]+", "-", host.name.lower()).strip("-")
    path = FOLDER / f"kernels-{machine}-{datetime.date.today():%Y-%m}.json"
    rows: list[Mapping[str, Any]] = json.loads(path.read_text())["rows"] if path.is_file() else []
    identity = ("kernel", "case", "dtype", "num_threads")
    rows = [r for r in rows if any(r[key] != row[key] for key in identity)] + [row]
    rows.sort(key=lambda r: tuple(str(r[key]) for key in identity))
    document = {
        "schema_version": SCHEMA_VERSION,
        "device": host.name,
        "num_cores": os.cpu_count(),
        "torch": torch.__version__,
        "rows": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
