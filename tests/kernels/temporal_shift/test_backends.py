"""Every implementation against the reference, bit for bit."""

import itertools
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from effdl.kernels.backend import Backend
from effdl.kernels.temporal_shift import reference
from effdl.kernels.temporal_shift.op import (
    DTYPES,
    Direction,
    temporal_shift,
    temporal_shift_,
    temporal_shift_step,
    temporal_shift_step_,
)
from effdl.kernels.temporal_shift.reference import Sections

tvm_kernel = pytest.importorskip("effdl.kernels.temporal_shift.tvm_kernel")
triton_kernel = pytest.importorskip("effdl.kernels.temporal_shift.triton_kernel")

BACKENDS = [Backend.TVM, Backend.TRITON]
WAYS: list[tuple[Direction, bool]] = [("mit", False), ("paddle", False), ("mit", True)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
CARRIERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Clips, frames of a clip, channels, height, width.
SIZES = {
    "even": (2, 8, 16, 4, 4),
    "odd": (3, 3, 63, 3, 5),
    "long": (1, 2, 1000, 3, 1),
    "one frame": (2, 1, 9, 1, 2),
    "fewer channels than fold_div": (1, 2, 5, 2, 2),
    "one channel": (2, 2, 1, 2, 3),
    "one pixel": (1, 5, 40, 1, 1),
}


def device_of(backend: Backend) -> str:
    return "cuda" if backend is Backend.TRITON and torch.cuda.is_available() else "cpu"


def kernel_of(backend: Backend) -> ModuleType:
    return tvm_kernel if backend is Backend.TVM else triton_kernel


def made(shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, seed: int = 0):
    """Any bits at all: NaNs, infinities and subnormal numbers among them."""
    generator = torch.Generator().manual_seed(seed)
    num_bytes = int(np.prod(shape)) * torch.empty((), dtype=dtype).element_size()
    bits = torch.randint(0, 256, (num_bytes,), generator=generator, dtype=torch.uint8)
    return bits.view(dtype).reshape(shape).contiguous(memory_format=layout)


def bits(x: Tensor) -> Tensor:
    return x.cpu().contiguous().view(CARRIERS[x.element_size()])


def assert_same(got: Tensor, wanted: Tensor) -> None:
    assert got.dtype == wanted.dtype
    assert got.stride() == wanted.stride()
    assert torch.equal(bits(got), bits(wanted))


@pytest.fixture(params=BACKENDS, ids=str)
def backend(request: pytest.FixtureRequest) -> Backend:
    return request.param


@pytest.fixture(params=LAYOUTS, ids=["planes", "channels_last"])
def layout(request: pytest.FixtureRequest) -> torch.memory_format:
    return request.param


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(("direction", "causal"), WAYS)
def test_shift(
    backend: Backend,
    layout: torch.memory_format,
    size: tuple[int, int, int, int, int],
    direction: Direction,
    causal: bool,
) -> None:
    num_clips, num_segments, *frame = size
    x = made((num_clips * num_segments, *frame), torch.float32, layout)
    options = {"num_segments": num_segments, "direction": direction, "causal": causal}
    wanted = temporal_shift(x, **options, backend="reference")
    given_bits = bits(x).clone()
    x = x.to(device_of(backend))
    assert_same(temporal_shift(x, **options, backend=backend), wanted)
    assert torch.equal(bits(x), given_bits)
    assert temporal_shift_(x, **options, backend=backend) is x
    assert_same(x, wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_number_format(
    backend: Backend, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    x = made((6, 70, 3, 2), dtype, layout)
    state = made((2, 8, 3, 2), dtype, layout, seed=1)
    fill_value = 0 if dtype.is_floating_point else 113
    wanted = temporal_shift(x, num_segments=3, fill_value=fill_value, backend="reference")
    assert x.dtype.is_floating_point or (wanted == 113).sum() >= 2 * 2 * 8 * 6
    wanted_y, wanted_state = temporal_shift_step(x, state, num_segments=3, backend="reference")
    x, state = x.to(device_of(backend)), state.to(device_of(backend))
    options = {"num_segments": 3, "fill_value": fill_value, "backend": backend}
    assert_same(temporal_shift(x, **options), wanted)
    y, leaving = temporal_shift_step(x, state, num_segments=3, backend=backend)
    assert_same(y, wanted_y)
    assert_same(leaving, wanted_state)
    assert_same(temporal_shift_(x, **options), wanted)


@pytest.mark.parametrize("offset", [1, -1], ids=["back", "forth"])
@pytest.mark.parametrize("size", [(2, 8, 16, 4, 4), (3, 3, 63, 3, 5), (2, 1, 300, 1, 1)], ids=str)
def test_step(
    backend: Backend,
    layout: torch.memory_format,
    size: tuple[int, int, int, int, int],
    offset: int,
) -> None:
    """Both ways round the ring of frames and state, into outputs full of NaN."""
    num_clips, num_segments, channels, height, width = size
    fold = channels // 8
    sections = Sections(fold, 0, offset)
    x = made((num_clips * num_segments, channels, height, width), torch.float32, layout)
    state = made((num_clips, fold, height, width), torch.float32, layout, seed=1)
    wanted = reference.step(x, state, num_segments=num_segments, sections=sections)
    x, state = x.to(device_of(backend)), state.to(device_of(backend))
    y, leaving = torch.full_like(x, torch.nan), torch.full_like(state, torch.nan)
    kernel_of(backend).step(x, state, y, leaving, num_segments=num_segments, sections=sections)
    assert_same(y, wanted[0])
    assert_same(leaving, wanted[1])


@pytest.mark.parametrize("channels", [16, 63, 300])
def test_step_in_place(backend: Backend, layout: torch.memory_format, channels: int) -> None:
    x = made((3, channels, 3, 2), torch.float32, layout)
    state = made((3, channels // 8, 3, 2), torch.float32, layout, seed=1)
    wanted_y, wanted_state = temporal_shift_step(x, state, backend="reference")
    x, state = x.to(device_of(backend)), state.to(device_of(backend))
    assert temporal_shift_step_(x, state, backend=backend) is x
    assert_same(x, wanted_y)
    assert_same(state, wanted_state)


@pytest.mark.parametrize("causal", [False, True])
def test_every_number_of_the_output_is_written(backend: Backend, causal: bool) -> None:
    sections = Sections(7, 0 if causal else 7, 1)
    for layout in LAYOUTS:
        x = made((6, 63, 3, 3), torch.float32, layout)
        wanted = reference.shift(x, num_segments=3, sections=sections)
        x = x.to(device_of(backend))
        y = torch.full_like(x, torch.nan)
        kernel_of(backend).shift(x, y, num_segments=3, sections=sections)
        assert_same(y, wanted)


def test_nan_and_infinity_stay_where_they_belong(
    backend: Backend, layout: torch.memory_format
) -> None:
    x = torch.zeros(4, 16, 2, 2).contiguous(memory_format=layout)
    x[0, 0], x[3, 2], x[1, 5] = torch.nan, torch.inf, -torch.inf
    x[2, 0] = torch.nan
    y = temporal_shift(x.to(device_of(backend)), num_segments=4, backend=backend).cpu()
    # Channel 0 of frame 0 and channel 2 of frame 3 leave the clip.
    assert torch.isnan(y).nonzero()[:, :2].unique(dim=0).tolist() == [[1, 0]]
    assert torch.isinf(y).nonzero()[:, :2].unique(dim=0).tolist() == [[1, 5]]


@pytest.mark.parametrize("shape", [(0, 16, 2, 2), (4, 0, 2, 2), (4, 16, 0, 2)], ids=str)
def test_empty(backend: Backend, layout: torch.memory_format, shape: tuple[int, ...]) -> None:
    x = torch.empty(shape).contiguous(memory_format=layout).to(device_of(backend))
    assert temporal_shift(x, num_segments=2, backend=backend).shape == shape
    assert temporal_shift_(x, num_segments=2, backend=backend).shape == shape
    state = torch.empty(shape[0], shape[1] // 8, *shape[2:], device=x.device)
    y, leaving = temporal_shift_step(x, state, backend=backend)
    assert (y.shape, leaving.shape) == (x.shape, state.shape)


def strided(device: str) -> Iterator[Tensor]:
    wide = torch.randn(4, 34, 6, 5, device=device)
    yield wide[:, 1:33:2]
    yield wide[:, 3:19, 1:5, ::2]
    yield wide[:, :16].transpose(2, 3)
    yield wide[:1, :16].expand(4, -1, -1, -1)
    yield wide[::2, :16].flip(1)


def test_other_strides(backend: Backend) -> None:
    for x in strided(device_of(backend)):
        wanted = temporal_shift(x.cpu().contiguous(), num_segments=2, backend="reference")
        y = temporal_shift(x, num_segments=2, backend=backend)
        assert y.is_contiguous()
        assert torch.equal(y.cpu(), wanted)


def test_memory_that_begins_anywhere(layout: torch.memory_format) -> None:
    """PyTorch aligns its own memory; views of it begin at any number."""
    for start, dtype in itertools.product((1, 3), (torch.int8, torch.float16, torch.float32)):
        memory = torch.zeros(4 * 24 * 9 + start, dtype=dtype)
        x = memory[start:].view(4, 24, 3, 3)
        if layout is torch.channels_last:
            x = memory[start:].view(4, 3, 3, 24).permute(0, 3, 1, 2)
        x.copy_(made((4, 24, 3, 3), dtype, layout))
        wanted = temporal_shift(x, num_segments=2, backend="reference")
        assert_same(temporal_shift(x, num_segments=2, backend=Backend.TVM), wanted)
        assert_same(temporal_shift_(x, num_segments=2, backend=Backend.TVM), wanted)
        assert not memory[:start].any()


def test_frames_beyond_32_bits(backend: Backend) -> None:
    """A frame that begins beyond 2**31 numbers; most of their memory is never touched."""
    side = 23500
    memory = torch.from_numpy(np.zeros(3 * 2 * side * side, np.int8))
    assert 2 * 2 * side * side > 2**31
    x = memory.view(3, 2, side, side)[:, :, :1, :8]
    x.copy_(made((3, 2, 1, 8), torch.int8, torch.contiguous_format))
    wanted = torch.stack([x[1, 0], x[2, 0], torch.zeros(1, 8, dtype=torch.int8)])
    kept = x[:, 1].clone()
    # As planes: a frame is 2 * side**2 numbers, of which 8 move.
    frames = memory.view(3, 2 * side * side, 1, 1).to(device_of(backend))
    kernel_of(backend).shift_in_place(frames, num_segments=3, sections=Sections(8, 0, 1))
    got = frames.view(3, 2, side, side)[:, :, :1, :8].cpu()
    assert torch.equal(got[:, 0], wanted)
    assert torch.equal(got[:, 1], kept)


@settings(max_examples=6, deadline=None)
@given(
    num_clips=st.integers(1, 3),
    num_segments=st.integers(1, 6),
    channels=st.integers(1, 80),
    area=st.integers(1, 300),
    first=st.integers(1, 80),
    second=st.integers(0, 80),
    offset=st.sampled_from([1, -1]),
)
def test_any_sections(
    num_clips: int,
    num_segments: int,
    channels: int,
    area: int,
    first: int,
    second: int,
    offset: int,
) -> None:
    first = min(first, channels)
    sections = Sections(first, min(second, channels - first), offset)
    x = made((num_clips * num_segments, channels, area, 1), torch.float32, torch.channels_last)
    for given_x, backend in itertools.product((x, x.contiguous()), BACKENDS):
        wanted = reference.shift(given_x, num_segments=num_segments, sections=sections)
        moved = given_x.to(device_of(backend), copy=True)
        kernel_of(backend).shift_in_place(moved, num_segments=num_segments, sections=sections)
        assert_same(moved, wanted)
        y = torch.full_like(moved, torch.nan)
        kernel_of(backend).shift(
            given_x.to(moved.device), y, num_segments=num_segments, sections=sections
        )
        assert_same(y, wanted)


def test_blocks_longer_than_one_and_threads(layout: torch.memory_format) -> None:
    """Sections of several blocks, whole and begun, on one thread and on two."""
    x = made((8, 64, 50, 51), torch.float32, layout)
    wanted = temporal_shift(x, num_segments=4, backend="reference")
    threads_before = torch.get_num_threads()
    try:
        for num_threads in (1, 2):
            torch.set_num_threads(num_threads)
            assert_same(temporal_shift(x, num_segments=4, backend=Backend.TVM), wanted)
            moved = x.clone()
            assert_same(temporal_shift_(moved, num_segments=4, backend=Backend.TVM), wanted)
    finally:
        torch.set_num_threads(threads_before)
