"""The folded shift against a shift and a product written out, and what it saves and refuses."""

import gc
import weakref
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from effdl.errors import ConfigError, EffdlError, UnknownNameError
from effdl.kernels.backend import Backend, choose_backend
from effdl.kernels.shift_conv1x1.module import ShiftConv1x1
from effdl.kernels.shift_conv1x1.op import shift_conv1x1
from effdl.kernels.shift_conv1x1.spec import default_specs, make_run, shift_conv1x1_spec

CPU_BACKENDS = ["reference", "tvm"]
TOLERANCE = 2e-6
GRADIENT_TOLERANCE = 5e-6


def expected(x: Tensor, weight: Tensor, bias: Tensor | None, **settings: Any) -> Tensor:
    """Frame by frame and channel by channel, in float64."""
    segments, fold = settings["num_segments"], x.shape[1] // settings.get("fold_div", 8)
    causal, direction = settings.get("causal", False), settings.get("direction", "mit")
    step = -1 if causal or direction == "paddle" else 1
    y = torch.zeros_like(x, dtype=torch.float64)
    for frame in range(len(x)):
        for channel in range(x.shape[1]):
            offset = 0
            if channel < fold:
                offset = step
            elif channel < 2 * fold and not causal:
                offset = -step
            if 0 <= frame % segments + offset < segments:
                y[frame, channel] = x[frame + offset, channel]
    every = settings.get("stride", 1)
    y = torch.einsum("nchw,oc->nohw", y[:, :, ::every, ::every], weight.flatten(1).double())
    if bias is not None:
        y = y + bias.double()[:, None, None]
    limits = {"relu": (0, float("inf")), "relu6": (0, 6)}
    activation = settings.get("activation")
    return y if activation is None else y.clamp(*limits[activation])


def made(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_near(got: Tensor, wanted: Tensor, tolerance: float = TOLERANCE) -> None:
    assert got.shape == wanted.shape
    scale = wanted.abs().max().clamp(min=1)
    assert (got.double() - wanted).abs().max() <= tolerance * scale


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_values_by_hand(backend: str) -> None:
    # Two clips of two frames, four channels, one pixel: 10 * frame + channel.
    x = torch.tensor([[10.0 * f + c for c in range(4)] for f in range(4)])[:, :, None, None]
    y = shift_conv1x1(x, torch.eye(4), num_segments=2, fold_div=4, backend=backend)
    assert y.flatten(1).tolist() == [
        [10, 0, 2, 3],
        [0, 1, 12, 13],
        [30, 0, 22, 23],
        [0, 21, 32, 33],
    ]


CASES = [
    pytest.param((8, 24, 4, 8), 20, {"num_segments": 8}, id="whole-vectors"),
    pytest.param((6, 63, 5, 7), 33, {"num_segments": 3, "direction": "paddle"}, id="odd"),
    pytest.param((4, 40, 7, 7), 12, {"num_segments": 2, "activation": "relu6"}, id="crossing"),
    pytest.param((6, 17, 1, 1), 100, {"num_segments": 2, "causal": True}, id="one-pixel"),
    pytest.param((2, 16, 5, 4), 8, {"num_segments": 1, "activation": "relu"}, id="one-frame"),
    pytest.param((8, 24, 7, 16), 20, {"num_segments": 8, "stride": 2}, id="stride"),
    pytest.param((3, 7, 4, 4), 5, {"num_segments": 3, "fold_div": 8}, id="no-fold"),
]


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("shape", "num_outputs", "options"), CASES)
def test_value_and_every_gradient(
    shape: tuple[int, ...],
    num_outputs: int,
    options: dict[str, Any],
    layout: torch.memory_format,
    backend: str,
) -> None:
    parameters = {
        "x": made(*shape).contiguous(memory_format=layout),
        "weight": made(num_outputs, shape[1], 1, 1, seed=1) * shape[1] ** -0.5,
        "bias": made(num_outputs, seed=2),
    }
    ours = {name: p.clone().requires_grad_() for name, p in parameters.items()}
    truth = {name: p.clone().double().requires_grad_() for name, p in parameters.items()}
    y = shift_conv1x1(ours["x"], ours["weight"], ours["bias"], backend=backend, **options)
    wanted = expected(truth["x"], truth["weight"], truth["bias"], **options)
    assert_near(y, wanted)
    assert y.is_contiguous(memory_format=layout)
    direction = made(*y.shape, seed=3)
    gradients = torch.autograd.grad(y, list(ours.values()), direction)
    wanted_gradients = torch.autograd.grad(wanted, list(truth.values()), direction.double())
    for name, gradient, right in zip(parameters, gradients, wanted_gradients, strict=True):
        scale = right.abs().max()
        assert (gradient - right).abs().max() <= GRADIENT_TOLERANCE * scale, name


@settings(deadline=None, max_examples=12)
@given(
    clips=st.integers(1, 3),
    segments=st.integers(1, 5),
    channels=st.integers(1, 40),
    outputs=st.integers(1, 70),
    height=st.integers(1, 6),
    fold_div=st.integers(2, 9),
)
def test_any_size_channels_last(
    clips: int, segments: int, channels: int, outputs: int, height: int, fold_div: int
) -> None:
    x = made(clips * segments, channels, height, 3).contiguous(memory_format=torch.channels_last)
    weight = made(outputs, channels)
    options: dict[str, Any] = {"num_segments": segments, "fold_div": fold_div}
    y = shift_conv1x1(x, weight, backend="tvm", **options)
    assert_near(y, expected(x, weight, None, **options), 1e-5)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_nan_and_infinity_stay_where_they_belong(layout: torch.memory_format, backend: str) -> None:
    x = torch.zeros(8, 24, 4, 8)
    x[3, 0, 1, 2] = float("nan")
    x[5, 4, 0, 0] = float("inf")
    x[0, 3, 2, 2] = float("nan")
    y = shift_conv1x1(
        x.contiguous(memory_format=layout),
        torch.ones(20, 24),
        num_segments=8,
        activation="relu",
        backend=backend,
    )
    wanted = torch.zeros(8, 20, 4, 8)
    wanted[2, :, 1, 2] = float("nan")
    wanted[6, :, 0, 0] = float("inf")
    wanted[1, :, 2, 2] = float("nan")
    torch.testing.assert_close(y, wanted, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_every_element_is_written(layout: torch.memory_format, monkeypatch: Any) -> None:
    def poisoned(shape: Any, memory_format: Any = torch.contiguous_format) -> Tensor:
        return torch.full(shape, float("nan")).contiguous(memory_format=memory_format)

    x = made(8, 24, 4, 8).contiguous(memory_format=layout).requires_grad_()
    weight = made(20, 24)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", poisoned)
        y = shift_conv1x1(x, weight, num_segments=8, backend="tvm")
        (gradient,) = torch.autograd.grad(y.sum(), x)
    assert not y.isnan().any()
    assert not gradient.isnan().any()


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("shape", [(0, 24, 4, 8), (8, 24, 0, 8)])
def test_empty(shape: tuple[int, ...], backend: str) -> None:
    x = torch.zeros(shape, requires_grad=True)
    weight = made(20, 24).requires_grad_()
    y = shift_conv1x1(x, weight, num_segments=8, backend=backend)
    assert y.shape == (shape[0], 20, shape[2], 8)
    grad_x, grad_weight = torch.autograd.grad(y.sum(), (x, weight))
    assert grad_x.shape == shape
    assert grad_weight.count_nonzero() == 0


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_input_of_any_strides(backend: str) -> None:
    x = made(4, 8, 48, 8).permute(3, 2, 0, 1)[:, ::2]
    assert not x.is_contiguous()
    weight = made(24, 20).t()
    y = shift_conv1x1(x, weight, num_segments=8, backend=backend)
    assert_near(y, expected(x, weight, None, num_segments=8), 1e-5)


def test_misaligned_input() -> None:
    x = made(8 * 24 * 4 * 8 + 1)[1:].view(8, 24, 4, 8)
    weight = made(20, 24)
    y = shift_conv1x1(x, weight, num_segments=8, backend="tvm")
    assert_near(y, expected(x, weight, None, num_segments=8), 1e-5)


def test_two_threads_compute_the_same() -> None:
    x, weight = made(8, 24, 4, 8), made(20, 24)
    before = torch.get_num_threads()
    results = []
    try:
        for num_threads in (1, 2, 1):
            torch.set_num_threads(num_threads)
            results.append(shift_conv1x1(x, weight, num_segments=8, backend="tvm"))
    finally:
        torch.set_num_threads(before)
    assert results[0].equal(results[1])
    assert results[0].equal(results[2])


def test_a_written_weight_is_packed_anew() -> None:
    x, weight = made(8, 24, 4, 8), made(20, 24)
    shift_conv1x1(x, weight, num_segments=8, backend="tvm")
    weight.mul_(2)
    y = shift_conv1x1(x, weight, num_segments=8, backend="tvm")
    assert_near(y, expected(x, weight, None, num_segments=8), 1e-5)
    weight.data = made(20, 24, seed=5)
    y = shift_conv1x1(x, weight, num_segments=8, backend="tvm")
    assert_near(y, expected(x, weight, None, num_segments=8), 1e-5)
    with torch.inference_mode():
        weight = made(20, 24, seed=6)
        y = shift_conv1x1(x, weight, num_segments=8, backend="tvm")
        weight.mul_(3)
        tripled = shift_conv1x1(x, weight, num_segments=8, backend="tvm")
    torch.testing.assert_close(tripled, 3 * y)


def test_packed_weights_die_with_the_weight() -> None:
    weight = made(20, 24)
    shift_conv1x1(made(8, 24, 4, 8), weight, num_segments=8, backend="tvm")
    lives = weakref.ref(weight)
    del weight
    gc.collect()
    assert lives() is None


def saved_bytes(layer: nn.Module, x: Tensor) -> int:
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x).sum().backward()
    return sum(storages.values())


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_saves_no_byte_more_than_a_plain_convolution(backend: str, activation: Any) -> None:
    x = made(8, 24, 4, 8).requires_grad_()
    plain = nn.Sequential(nn.Conv2d(24, 20, 1))
    if activation is not None:
        plain.append(nn.ReLU())
    ours = ShiftConv1x1(24, 20, num_segments=8, activation=activation, backend=backend)
    assert saved_bytes(ours, x) == saved_bytes(plain, x)


@pytest.mark.parametrize(
    "options", [{}, {"direction": "paddle"}, {"causal": True}, {"stride": 2}], ids=str
)
def test_gradients_in_float64(options: dict[str, Any]) -> None:
    inputs = [made(4, 9, 3, 2), made(5, 9, 1, 1, seed=1), made(5, seed=2)]
    inputs = [value.double().requires_grad_() for value in inputs]
    assert torch.autograd.gradcheck(
        lambda x, w, b: shift_conv1x1(x, w, b, num_segments=2, fold_div=4, **options), inputs
    )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_is_a_proper_operator(backend: str, layout: torch.memory_format) -> None:
    x = made(8, 24, 4, 8).contiguous(memory_format=layout).requires_grad_()
    weight, bias = made(20, 24).requires_grad_(), made(20).requires_grad_()
    torch.library.opcheck(
        torch.ops.effdl.shift_conv1x1.default,
        (x, weight, bias, 8, 3, 3, "next_first", "relu", backend),
    )
    settings = (8, 3, 3, "next_first", backend)
    grad_y = made(8, 20, 4, 8).contiguous(memory_format=layout)
    grad_input = torch.ops.effdl.shift_conv1x1_grad_input.default
    torch.library.opcheck(grad_input, (grad_y, weight.detach(), *settings))
    grad_weight = torch.ops.effdl.shift_conv1x1_grad_weight.default
    torch.library.opcheck(grad_weight, (grad_y, x.detach(), *settings))


def test_compiles_as_one_graph_with_any_batch() -> None:
    layer = ShiftConv1x1(24, 20, num_segments=8, activation="relu", backend="tvm")
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for num_clips in (1, 3):
        x = made(8 * num_clips, 24, 4, 8)
        torch.testing.assert_close(compiled(x), layer(x))
        gradients = [
            torch.autograd.grad(run(x).sum(), list(layer.parameters())) for run in (compiled, layer)
        ]
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_runs_on_the_reference_alone(dtype: torch.dtype) -> None:
    x, weight = made(4, 16, 3, 3).to(dtype), made(8, 16).to(dtype)
    y = shift_conv1x1(x, weight, num_segments=2)
    wanted = expected(x, weight, None, num_segments=2)
    assert y.dtype == dtype
    assert_near(y, wanted, torch.finfo(dtype).eps)
    with pytest.raises(ConfigError, match="no tvm kernel for this case"):
        shift_conv1x1(x, weight, num_segments=2, backend="tvm")


def test_int8_gives_exact_sums() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (
        torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8)
        for shape in ((4, 17, 3, 3), (5, 17))
    )
    y = shift_conv1x1(x, weight, torch.arange(5, dtype=torch.int32), num_segments=2)
    assert y.dtype == torch.int32
    assert y.equal(expected(x, weight, torch.arange(5), num_segments=2).int())


def test_fastest_backend_is_taken() -> None:
    assert choose_backend(None, device=torch.device("cpu")) in (Backend.TVM, Backend.REFERENCE)


WRONG: list[Any] = [
    ({"x": torch.zeros(8, 16)}, r"x: wanted 4 axes \[N\*T, C, H, W\]"),
    ({"x": torch.zeros(8, 16, 2, 2, dtype=torch.int32)}, "x: wanted torch.float32"),
    ({"weight": torch.zeros(4, 15)}, r"weight: wanted shape \[O, 16, 1, 1\] or \[O, 16\], got"),
    ({"weight": torch.zeros(4, 16, 3, 3)}, r"got \[4, 16, 3, 3\]"),
    ({"weight": torch.zeros(4, 16, dtype=torch.float64)}, "weight: wanted torch.float32"),
    ({"bias": torch.zeros(5)}, r"bias: wanted shape \[4\], got \[5\]"),
    ({"weight": torch.zeros(4, 16, device="meta")}, "wanted all tensors on one device"),
    ({"num_segments": 3}, "wanted N\\*T frames with T = num_segments = 3, got 8"),
    ({"num_segments": 0}, "num_segments: wanted at least 1, got 0"),
    ({"fold_div": 1}, "fold_div: wanted at least 2, got 1"),
    ({"stride": 0}, "stride: wanted at least 1, got 0"),
    ({"direction": "paddle", "causal": True}, "a causal shift has none"),
    ({"direction": "up"}, "unknown direction 'up'"),
    ({"activation": "gelu"}, "unknown activation 'gelu'"),
    ({"backend": "cuda"}, "unknown backend 'cuda'"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_one_clear_error(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "x": torch.zeros(8, 16, 2, 2),
        "weight": torch.zeros(4, 16),
        "num_segments": 4,
        **change,
    }
    with pytest.raises(EffdlError, match=message) as caught:
        shift_conv1x1(**arguments)
    assert isinstance(caught.value, ConfigError | UnknownNameError)


def test_module_holds_a_folded_convolution() -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(24, 20, 1, bias=False), nn.BatchNorm2d(20)
    with torch.no_grad():
        for values in (norm.weight, norm.bias, norm.running_mean):
            assert values is not None
            values.normal_()
        assert norm.running_var is not None
        norm.running_var.uniform_(0.5, 2)
    norm.eval()
    layer = ShiftConv1x1.from_conv(conv, norm, num_segments=8, activation="relu")
    x = made(8, 24, 4, 8)
    shifted = expected(x, torch.eye(24), None, num_segments=8).float()
    torch.testing.assert_close(layer(x), norm(conv(shifted)).relu(), rtol=1e-5, atol=1e-5)
    assert list(layer.state_dict()) == ["weight", "bias"]
    with pytest.raises(ConfigError, match="wanted a 1x1 convolution"):
        ShiftConv1x1.from_conv(nn.Conv2d(8, 8, 3), num_segments=8)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_onnx_form_computes_the_same(batch_size: int) -> None:
    spec = shift_conv1x1_spec(24, 20, 4)
    session = onnxruntime.InferenceSession(
        spec.build(batch_size), providers=["CPUExecutionProvider"]
    )
    x = made(8 * batch_size, 24, 4, 4)
    (y,) = session.run(None, {"input": x.numpy()})
    rng = np.random.default_rng(0)
    weight = torch.from_numpy(rng.standard_normal((20, 24)).astype(np.float32) / 24**0.5)
    bias = torch.from_numpy(rng.standard_normal(20).astype(np.float32))
    assert_near(torch.from_numpy(y), expected(x, weight, bias, num_segments=8), 1e-5)
    assert spec.num_params == 20 * 24 + 20
    assert spec.macs == 20 * 16 * (8 * 24 - 2 * 3)


def test_specs_name_every_size_once_and_run() -> None:
    specs = default_specs()
    assert len({spec.op.key for spec in specs}) == len(specs) == 13
    assert {spec.kernel for spec in specs} == {"shift_conv1x1"}
    run = make_run(24, 20, 4, batch_size=1, backend=Backend.REFERENCE)
    y = run()
    assert isinstance(y, Tensor)
    assert y.shape == (8, 20, 4, 4)


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_run_writes_to_the_same_memory(channels_last: bool) -> None:
    sizes: Any = {"batch_size": 1, "channels_last": channels_last, "backend": Backend.TVM}
    run = make_run(24, 20, 4, **sizes)
    first, second = run(), run()
    assert isinstance(first, Tensor)
    assert isinstance(second, Tensor)
    assert first.data_ptr() == second.data_ptr()
    before = first.clone()
    first.fill_(float("nan"))
    run()
    assert first.equal(before)
