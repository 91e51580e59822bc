"""The folded shift on Triton against a shift and a product in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from effdl.errors import ConfigError
from effdl.kernels.shift_conv1x1.triton_configuration import choose_tile
from effdl.kernels.triton_tiles import Tile

triton_kernel = pytest.importorskip("effdl.kernels.shift_conv1x1.triton_kernel")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = Tile(rows=16, columns=32, depth=16, num_warps=4, num_stages=2)
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
SECTIONS = [
    pytest.param(4, 4, "next_first", id="straddling"),
    pytest.param(16, 16, "next_first", id="aligned"),
    pytest.param(3, 5, "previous_first", id="previous-first"),
    pytest.param(0, 6, "next_first", id="causal"),
    pytest.param(0, 0, "next_first", id="unshifted"),
]


def shifted(
    x: torch.Tensor, num_segments: int, fold_next: int, fold_previous: int, order: str
) -> torch.Tensor:
    """Frame by frame and section by section, in float64: nothing of the kernel's."""
    clips = x.double().reshape(len(x) // num_segments, num_segments, *x.shape[1:])
    out = torch.zeros_like(clips)
    if order == "next_first":
        ahead = slice(0, fold_next)
        back = slice(fold_next, fold_next + fold_previous)
    else:
        back = slice(0, fold_previous)
        ahead = slice(fold_previous, fold_next + fold_previous)
    out[:, :-1, ahead] = clips[:, 1:, ahead]
    out[:, 1:, back] = clips[:, :-1, back]
    out[:, :, fold_next + fold_previous :] = clips[:, :, fold_next + fold_previous :]
    return out.reshape(x.shape)


def expected(
    x: torch.Tensor, weight: torch.Tensor, num_segments: int, *sections: object
) -> torch.Tensor:
    moved = shifted(x, num_segments, *sections)  # pyright: ignore[reportArgumentType]
    return torch.einsum("nchw,oc->nohw", moved, weight.double())


def made(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if not dtype.is_floating_point:
        return torch.randint(-128, 128, shape, generator=generator, dtype=dtype).to(DEVICE)
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def assert_near(got: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> None:
    error = (got.double() - wanted).abs().max().item()
    assert error <= TOLERANCE[dtype] * wanted.abs().max().item()


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel does not write is NaN."""
    empty, new_empty = torch.empty, torch.Tensor.new_empty

    def filled(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.fill_(float("nan") if tensor.dtype.is_floating_point else 77)

    monkeypatch.setattr(torch, "empty", lambda *a, **k: filled(empty(*a, **k)))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: filled(new_empty(*a, **k)))


@pytest.mark.parametrize(("fold_next", "fold_previous", "order"), SECTIONS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_all_three_products(
    fold_next: int, fold_previous: int, order: str, memory_format: torch.memory_format
) -> None:
    sections = {"fold_next": fold_next, "fold_previous": fold_previous, "order": order}
    x = made(6, 37, 3, 5).to(memory_format=memory_format)
    weight, bias = made(19, 37, seed=1), made(19, seed=2)
    grad_y = made(6, 19, 3, 5, seed=3).to(memory_format=memory_format)

    y = triton_kernel.forward(x, weight, bias, num_segments=3, tile=SMALL, **sections)
    wanted = expected(x, weight, 3, fold_next, fold_previous, order)
    assert_near(y, wanted + bias.double()[:, None, None], torch.float32)
    assert y.is_contiguous(memory_format=memory_format)

    inputs = (x.double().requires_grad_(), weight.double().requires_grad_())
    out = expected(*inputs, 3, fold_next, fold_previous, order)
    for_x, for_weight = torch.autograd.grad(out, inputs, grad_y.double())
    grad_x = triton_kernel.grad_input(grad_y, weight, num_segments=3, tile=SMALL, **sections)
    assert_near(grad_x, for_x, torch.float32)
    assert grad_x.is_contiguous(memory_format=memory_format)
    grad_w = triton_kernel.grad_weight(
        grad_y, x, num_segments=3, tile=SMALL, num_steps=2, **sections
    )
    assert_near(grad_w, for_weight, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_formats(dtype: torch.dtype) -> None:
    sections = {"fold_next": 4, "fold_previous": 4, "num_segments": 4}
    x, weight, bias = made(4, 35, 4, 4, dtype=dtype), made(20, 35, dtype=dtype), made(20)
    grad_y = made(4, 20, 4, 4, dtype=dtype, seed=5)
    y = triton_kernel.forward(x, weight, bias.to(dtype), tile=SMALL, **sections)
    wanted = expected(x, weight, 4, 4, 4, "next_first") + bias.to(dtype).double()[:, None, None]
    assert_near(y, wanted, dtype)
    inputs = (x.double().requires_grad_(), weight.double().requires_grad_())
    out = expected(*inputs, 4, 4, 4, "next_first")
    for_x, for_weight = torch.autograd.grad(out, inputs, grad_y.double())
    assert_near(triton_kernel.grad_input(grad_y, weight, tile=SMALL, **sections), for_x, dtype)
    grad_w = triton_kernel.grad_weight(grad_y, x, tile=SMALL, num_steps=1, **sections)
    assert grad_w.dtype == dtype
    assert_near(grad_w, for_weight, dtype)


def test_int8_sums_are_exact() -> None:
    x, weight = made(4, 40, 3, 3, dtype=torch.int8), made(17, 40, dtype=torch.int8, seed=1)
    bias = torch.arange(-8, 9, dtype=torch.int32, device=DEVICE) * 10_000
    deep = Tile(rows=32, columns=32, depth=32, num_warps=4, num_stages=2)
    y = triton_kernel.forward(
        x, weight, bias, num_segments=2, fold_next=5, fold_previous=5, tile=deep
    )
    wanted = expected(x, weight, 2, 5, 5, "next_first") + bias[:, None, None]
    assert y.dtype == torch.int32
    assert torch.equal(y.double(), wanted)


def test_hand_computed_frames() -> None:
    """Two channels, three frames of one pixel: the sum of the next and the previous frame."""
    x = torch.tensor([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]], device=DEVICE)[:, :, None, None]
    weight = torch.ones(1, 2, device=DEVICE)
    y = triton_kernel.forward(x, weight, None, num_segments=3, fold_next=1, fold_previous=1)
    assert y.flatten().tolist() == [2.0, 14.0, 20.0]
    grad_y = torch.tensor([1.0, 10.0, 100.0], device=DEVICE).reshape(3, 1, 1, 1)
    sections = {"num_segments": 3, "fold_next": 1, "fold_previous": 1}
    grad_x = triton_kernel.grad_input(grad_y, weight, **sections)
    assert grad_x[:, :, 0, 0].tolist() == [[0.0, 10.0], [1.0, 100.0], [10.0, 0.0]]
    assert triton_kernel.grad_weight(grad_y, x, **sections).tolist() == [[42.0, 2100.0]]


@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_activation(activation: str) -> None:
    x, weight, bias = 3 * made(2, 8, 3, 3), made(5, 8, seed=1), made(5, seed=2)
    sections = {"num_segments": 2, "fold_next": 1, "fold_previous": 1}
    y = triton_kernel.forward(x, weight, bias, activation=activation, **sections)
    plain = triton_kernel.forward(x, weight, bias, **sections)
    assert torch.equal(y, plain.relu() if activation == "relu" else plain.clamp(0, 6))


def test_nan_and_infinity_stay_where_they_belong() -> None:
    x = torch.ones(4, 8, 1, 1, device=DEVICE)
    x[0, 0], x[3, 1] = float("nan"), float("inf")
    weight = torch.eye(8, device=DEVICE)
    y = triton_kernel.forward(
        x, weight, None, num_segments=4, fold_next=1, fold_previous=1, activation="relu"
    )
    # The NaN of frame 0 would move to the frame before, the Inf of frame 3 to the one after.
    assert torch.isfinite(y).all()


@pytest.mark.parametrize(
    ("shape", "num_outputs"), [((0, 8, 3, 3), 5), ((4, 8, 0, 3), 5), ((4, 8, 2, 2), 0)]
)
def test_empty(shape: tuple[int, ...], num_outputs: int) -> None:
    sections = {"num_segments": 2, "fold_next": 1, "fold_previous": 1}
    x, weight = made(*shape), made(num_outputs, 8)
    y = triton_kernel.forward(x, weight, None, **sections)
    assert y.shape == (shape[0], num_outputs, *shape[2:])
    assert torch.equal(triton_kernel.grad_input(y, weight, **sections), torch.zeros_like(x))
    assert torch.equal(triton_kernel.grad_weight(y, x, **sections), torch.zeros_like(weight))


def test_other_strides() -> None:
    sections = {"num_segments": 2, "fold_next": 2, "fold_previous": 2}
    wide = made(4, 24, 3, 8)
    weight = made(6, 12)
    for x in (wide[:, ::2], wide[:, 6:18, :, :4], wide[:, :12].transpose(2, 3)):
        y = triton_kernel.forward(x, weight, None, tile=SMALL, **sections)
        assert_near(y, expected(x, weight, 2, 2, 2, "next_first"), torch.float32)


def test_elements_beyond_32_bits() -> None:
    """Frames that lie 2**31 elements apart; their memory is never touched but at the ends."""
    memory = torch.from_numpy(np.zeros(2**31 + 64, np.int8)).to(DEVICE)
    x = memory.as_strided((2, 4, 2, 2), (2**31, 4, 2, 1))
    x.copy_(made(2, 4, 2, 2, dtype=torch.int8))
    weight = made(3, 4, dtype=torch.int8, seed=1)
    y = triton_kernel.forward(x, weight, None, num_segments=2, fold_next=1, fold_previous=1)
    assert torch.equal(y.double(), expected(x, weight, 2, 1, 1, "next_first"))


def test_same_bits_every_time() -> None:
    x, grad_y = made(4, 9, 7, 9), made(4, 5, 7, 9, seed=1)
    sections = {"num_segments": 4, "fold_next": 1, "fold_previous": 1}
    runs = [
        triton_kernel.grad_weight(grad_y, x, tile=SMALL, num_steps=1, **sections) for _ in range(2)
    ]
    assert torch.equal(*runs)


@settings(max_examples=12, deadline=None)
@given(
    num_segments=st.integers(1, 4),
    num_clips=st.integers(1, 2),
    sections=st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 25)),
    num_outputs=st.integers(1, 20),
    order=st.sampled_from(["next_first", "previous_first"]),
)
def test_any_sizes(
    num_segments: int,
    num_clips: int,
    sections: tuple[int, int, int],
    num_outputs: int,
    order: str,
) -> None:
    fold_next, fold_previous, rest = sections
    x = made(num_segments * num_clips, fold_next + fold_previous + rest, 2, 3)
    weight = made(num_outputs, x.shape[1], seed=1)
    y = triton_kernel.forward(
        x,
        weight,
        None,
        num_segments=num_segments,
        fold_next=fold_next,
        fold_previous=fold_previous,
        order=order,
        tile=SMALL,
    )
    wanted = expected(x, weight, num_segments, fold_next, fold_previous, order)
    torch.testing.assert_close(y.double(), wanted, rtol=1e-5, atol=1e-5)


def test_shipped_depths_divide_the_sections() -> None:
    """Every shifted convolution of a ResNet-50 but the first takes the fast path."""
    for num_channels in (256, 512, 1024, 2048):
        fold = num_channels // 8
        tile = choose_tile(
            num_rows=64,
            num_columns=25_088,
            num_terms=num_channels,
            borders=(fold, 2 * fold),
            element_bytes=2,
            tensor_cores=True,
        )
        assert fold % tile.depth == 0


def test_unknown_words_are_refused() -> None:
    x, weight = made(2, 4, 1, 1), made(3, 4)
    sections = {"num_segments": 2, "fold_next": 1, "fold_previous": 1}
    with pytest.raises(ConfigError, match="order: wanted"):
        triton_kernel.forward(x, weight, None, order="both", **sections)
    with pytest.raises(ConfigError, match="activation: wanted"):
        triton_kernel.forward(x, weight, None, activation="gelu", **sections)
