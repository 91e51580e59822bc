"""The temporal shift beside the ways that others write it, on this machine's processor."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from effdl.kernels.temporal_shift.custom_op import shift_into
from effdl.kernels.temporal_shift.op import temporal_shift, temporal_shift_
from effdl.kernels.temporal_shift.reference import Sections
from effdl.kernels.temporal_shift.spec import MOBILENET_V2_SHAPES, RESNET50_SHAPES

Report = Callable[..., Mapping[str, float]]
NUM_SEGMENTS = 8
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


def naive(x: Tensor) -> Tensor:
    """As the authors' code writes it: zeros and three copies of slices."""
    frames = x.view(-1, NUM_SEGMENTS, *x.shape[1:])
    fold = x.shape[1] // 8
    out = torch.zeros_like(frames)
    out[:, :-1, :fold] = frames[:, 1:, :fold]
    out[:, 1:, fold : 2 * fold] = frames[:, :-1, fold : 2 * fold]
    out[:, :, 2 * fold :] = frames[:, :, 2 * fold :]
    return out.view(x.shape)


def concatenated(x: Tensor) -> Tensor:
    """As MMAction2 writes it: slices and zeros put together three times."""
    frames = x.view(-1, NUM_SEGMENTS, *x.shape[1:])
    fold = x.shape[1] // 8
    first, second, still = frames.split([fold, fold, x.shape[1] - 2 * fold], dim=2)
    zeros = torch.zeros_like(first[:, :1])
    first = torch.cat([first[:, 1:], zeros], dim=1)
    second = torch.cat([zeros, second[:, :-1]], dim=1)
    return torch.cat([first, second, still], dim=2).view(x.shape)


def copied(x: Tensor) -> Tensor:
    """The naive form without its zeros, but where they stay."""
    frames = x.view(-1, NUM_SEGMENTS, *x.shape[1:])
    fold = x.shape[1] // 8
    result = torch.empty_like(x)
    out = result.view(frames.shape)
    out[:, :-1, :fold] = frames[:, 1:, :fold]
    out[:, -1, :fold] = 0
    out[:, 1:, fold : 2 * fold] = frames[:, :-1, fold : 2 * fold]
    out[:, 0, fold : 2 * fold] = 0
    out[:, :, 2 * fold :] = frames[:, :, 2 * fold :]
    return result


WAYS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "tvm in place": partial(temporal_shift_, num_segments=NUM_SEGMENTS, backend="tvm"),
    "tvm": partial(temporal_shift, num_segments=NUM_SEGMENTS, backend="tvm"),
    "naive": naive,
    "torch.cat": concatenated,
    "empty and copies": copied,
    "clone": torch.clone,
}


def all_at_once(way: Callable[[Tensor], Tensor], frames: list[Tensor]) -> None:
    for x in frames:
        way(x)


def numbers(shape: tuple[int, int], layout: torch.memory_format) -> Tensor:
    channels, size = shape
    x = torch.rand(NUM_SEGMENTS, channels, size, size)
    return x.contiguous(memory_format=layout)


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("network", "shapes"),
    [("resnet50", RESNET50_SHAPES), ("mobilenet_v2", MOBILENET_V2_SHAPES)],
)
def test_all_shifts_of_a_network(
    benchmark: BenchmarkFixture,
    kernel_report: Report,
    network: str,
    shapes: tuple[tuple[int, int], ...],
    layout: str,
    num_threads: int,
) -> None:
    frames = [numbers(shape, LAYOUTS[layout]) for shape in shapes]
    num_bytes = sum(x.nbytes for x in frames)
    p20_ms = kernel_report(
        benchmark,
        kernel="temporal_shift",
        case=f"{len(shapes)} shifts of {network} {layout}",
        variants={name: partial(all_at_once, way, frames) for name, way in WAYS.items()},
        dtype="float32",
        # Two of eight channels, in seven of eight frames, are read; and written in all.
        bytes_moved=round(num_bytes * (2 / 8) * (7 / 8 + 1)),
        operations=0,
        num_threads=num_threads,
    )
    print(
        f"in place {p20_ms['tvm in place'] / p20_ms['naive']:.3f} x naive, "
        f"out of place {p20_ms['tvm'] / p20_ms['clone']:.3f} x a clone"
    )


@pytest.fixture(scope="module")
def sums() -> Iterator[dict[str, dict[str, float]]]:
    """Milliseconds of the 16 shifts of ResNet-50, each size timed alone; printed at the end."""
    totals: dict[str, dict[str, float]] = {layout: {} for layout in LAYOUTS}
    yield totals
    for layout, total in totals.items():
        if total:
            times = "  ".join(f"{name} {value:.3f}" for name, value in total.items())
            print(
                f"\n16 shifts of resnet50 {layout}, sizes one by one: {times}; "
                f"in place {total['tvm in place'] / total['naive']:.3f} x naive, "
                f"out of place {total['tvm'] / total['clone']:.3f} x a clone, "
                f"into given memory {total['tvm into y'] / total['copy_']:.3f} x copy_"
            )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", list(dict.fromkeys(RESNET50_SHAPES)), ids=str)
def test_one_shift(
    benchmark: BenchmarkFixture,
    kernel_report: Report,
    sums: dict[str, dict[str, float]],
    shape: tuple[int, int],
    layout: str,
) -> None:
    x = numbers(shape, LAYOUTS[layout])
    y = torch.empty_like(x)
    fold = shape[0] // 8
    into = partial(
        shift_into,
        x,
        y,
        num_segments=NUM_SEGMENTS,
        sections=Sections(fold, fold, 1),
        fill_value=0,
        backend="tvm",
    )
    # Out of place first: the figures of the table are those of the first one.
    ways = {"tvm": WAYS["tvm"], **WAYS}
    variants = {name: partial(way, x) for name, way in ways.items()}
    p20_ms = kernel_report(
        benchmark,
        kernel="temporal_shift",
        case=f"{shape[0]}@{shape[1]} {layout}",
        variants={**variants, "tvm into y": into, "copy_": partial(y.copy_, x)},
        dtype="float32",
        bytes_moved=2 * x.nbytes,
        operations=0,
    )
    for name, value in p20_ms.items():
        sums[layout][name] = sums[layout].get(name, 0.0) + RESNET50_SHAPES.count(shape) * value
