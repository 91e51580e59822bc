"""The public functions: gradients, PyTorch's own checks, what is refused."""

import itertools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from effdl.errors import BackendUnavailableError, ConfigError, UnknownNameError
from effdl.kernels.backend import Backend
from effdl.kernels.temporal_shift import custom_op, reference
from effdl.kernels.temporal_shift.op import (
    shift_sections,
    temporal_shift,
    temporal_shift_,
    temporal_shift_state,
    temporal_shift_step,
    temporal_shift_step_,
)
from effdl.kernels.temporal_shift.reference import Sections

LAYOUTS = [torch.contiguous_format, torch.channels_last]
BACKENDS = ["reference", "tvm", "triton"]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    if request.param != "reference":
        pytest.importorskip(request.param)
    return request.param


def device_of(backend: str) -> str:
    return "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"


def randn(*shape: int, device: str = "cpu", **options: Any) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), **options).to(device)


@pytest.mark.parametrize("causal", [False, True])
def test_gradient_of_x(backend: str, causal: bool) -> None:
    options: dict[str, Any] = {"num_segments": 2, "fold_div": 2, "causal": causal}
    x = randn(2, 5, 1, 1, dtype=torch.float64, device=device_of(backend)).requires_grad_()

    def shift(x: Tensor) -> Tensor:
        return temporal_shift(x, **options, backend=backend)

    assert torch.autograd.gradcheck(shift, x)
    if backend != "triton" or x.is_cuda:  # its interpreter would take minutes
        assert torch.autograd.gradgradcheck(shift, x)


@pytest.mark.parametrize("num_segments", [1, 2])
def test_gradients_of_x_and_state(backend: str, num_segments: int) -> None:
    device = device_of(backend)
    x = randn(num_segments, 3, 1, 1, dtype=torch.float64, device=device).requires_grad_()
    state = randn(1, 1, 1, 1, dtype=torch.float64, device=device).requires_grad_()

    def step(x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return temporal_shift_step(x, state, fold_div=2, num_segments=num_segments, backend=backend)

    assert torch.autograd.gradcheck(step, (x, state))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_are_those_of_the_reference(backend: str, layout: torch.memory_format) -> None:
    """By plain autograd through slices, which knows nothing of the operators' formulas."""
    sections = Sections(3, 0, -1)
    leaves = [randn(6, 25, 3, 2), randn(2, 3, 3, 2)]
    leaves = [t.contiguous(memory_format=layout).requires_grad_() for t in leaves]
    x, state = leaves
    weight = randn(6, 25, 3, 2)
    y, leaving = reference.step(x, state, num_segments=3, sections=sections)
    wanted = torch.autograd.grad((y * weight).sum() + leaving.exp().sum(), leaves)
    leaves = [t.detach().to(device_of(backend)).requires_grad_() for t in leaves]
    y, leaving = temporal_shift_step(*leaves, num_segments=3, backend=backend)
    got = torch.autograd.grad((y * weight.to(y.device)).sum() + leaving.exp().sum(), leaves)
    for name, one, other in zip(("x", "state"), got, wanted, strict=True):
        assert torch.equal(one.cpu(), other), name


def test_gradient_is_the_shift_to_the_other_side(backend: str) -> None:
    """By hand: each number's gradient goes back to the frame that it came from."""
    x = randn(3, 4, 1, 1, device=device_of(backend)).requires_grad_()
    y = temporal_shift(x, num_segments=3, fold_div=4, backend=backend)
    grad = torch.tensor([[0.0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]]).reshape(3, 4, 1, 1)
    y.backward(grad.to(x.device))
    assert x.grad is not None
    wanted = [[0, 11, 2, 3], [0, 21, 12, 13], [10, 0, 22, 23]]
    assert x.grad.reshape(3, 4).tolist() == wanted


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_saved_for_the_gradient(layout: torch.memory_format) -> None:
    x = randn(4, 16, 3, 3).contiguous(memory_format=layout).requires_grad_()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = temporal_shift(x, num_segments=4)
    assert saved == []
    y.square().sum().backward()
    assert x.grad is not None
    assert x.grad.is_contiguous(memory_format=layout)


def test_gradient_through_a_shift_in_place(backend: str) -> None:
    x = randn(4, 16, 3, 3, device=device_of(backend)).requires_grad_()
    grads: list[Tensor] = []
    for shift in (temporal_shift, temporal_shift_):
        y = shift(x * 3, num_segments=2, backend=backend)
        grads.append(torch.autograd.grad((y * torch.arange(16.0).view(16, 1, 1)).sum(), x)[0])
    assert torch.equal(grads[0], grads[1])


def test_a_shift_in_place_of_what_others_need_is_refused_in_the_backward_pass() -> None:
    y = randn(4, 16, 3, 3).requires_grad_().exp()
    temporal_shift_(y, num_segments=2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_autograd_knows_what_was_overwritten_without_a_graph() -> None:
    weight = torch.ones(4, 16, 1, 1, requires_grad=True)
    x, frame, state = torch.ones(4, 16, 1, 1), torch.ones(4, 16, 1, 1), torch.ones(4, 2, 1, 1)
    products = [x * weight, frame * weight, state * weight[:, :2]]
    temporal_shift_(x, num_segments=2)
    temporal_shift_step_(frame, state)
    for product in products:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.sum().backward()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(backend: str, layout: torch.memory_format) -> None:
    device = device_of(backend)
    x = randn(6, 16, 3, 2, device=device).contiguous(memory_format=layout)
    state = randn(2, 2, 3, 2, device=device).contiguous(memory_format=layout)
    gradient = x.clone().requires_grad_()
    cases: list[tuple[Any, tuple[object, ...]]] = [
        (custom_op.shift, (gradient, 3, 2, 2, 1, 0, backend)),
        (custom_op.shift, (x[:, ::2], 3, 1, 0, -1, 0, backend)),
        (custom_op.shift_without_gradient, (x, torch.empty_like(x), 3, 2, 2, 1, 0, backend)),
        (custom_op.shift_in_place, (x.clone(), 3, 2, 2, 1, 0, backend)),
        (custom_op.step, (gradient, state, 3, 2, -1, backend)),
        (custom_op.step_in_place, (x[:2].clone(), state.clone(), 2, backend)),
    ]
    for operator, arguments in cases:
        torch.library.opcheck(operator, arguments)


def test_compiled_whole_and_for_every_batch(backend: str) -> None:
    device = device_of(backend)

    def block(x: Tensor, state: Tensor) -> tuple[Tensor, ...]:
        y = temporal_shift(x * 2, num_segments=4, backend=backend)
        z = temporal_shift_(y + 1, num_segments=2, direction="paddle", backend=backend)
        return y, z, *temporal_shift_step(z, state, num_segments=4, backend=backend)

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=True)
    for num_clips in (2, 3, 5):
        x = randn(4 * num_clips, 16, 3, 2, device=device)
        state = randn(num_clips, 2, 3, 2, device=device)
        for got, wanted in zip(compiled(x, state), block(x, state), strict=True):
            assert torch.equal(got, wanted)


def test_compiled_gradients() -> None:
    def loss(x: Tensor) -> Tensor:
        return temporal_shift(x.sin(), num_segments=4, causal=True).square().sum()

    x = randn(8, 16, 3, 2).requires_grad_()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.equal(torch.autograd.grad(compiled(x), x)[0], torch.autograd.grad(loss(x), x)[0])


def test_memory_format_of_the_result() -> None:
    planes = randn(4, 16, 3, 2)
    pixels = planes.contiguous(memory_format=torch.channels_last)
    wanted = temporal_shift(planes, num_segments=2)
    for x, channels_last in itertools.product((planes, pixels), (None, True, False)):
        y = temporal_shift(x, num_segments=2, channels_last=channels_last)
        assert torch.equal(y, wanted)
        is_last = x is pixels if channels_last is None else channels_last
        assert y.is_contiguous(memory_format=LAYOUTS[is_last])


def test_shifting_back_restores_all_but_the_ends() -> None:
    x = randn(5, 16, 2, 2)
    there = temporal_shift(x, num_segments=5)
    back = temporal_shift(there, num_segments=5, direction="paddle")
    wanted = x.clone()
    wanted[0, :2] = 0  # left the clip on the way there
    wanted[-1, 2:4] = 0
    assert torch.equal(back, wanted)


class _Model(nn.Module):
    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.causal = causal

    def forward(self, image: Tensor) -> Tensor:
        return temporal_shift(image, num_segments=4, causal=self.causal)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("causal", [False, True])
def test_exports_as_plain_nodes_that_see_their_neighbours(causal: bool) -> None:
    program = torch.onnx.export(
        _Model(causal).eval(),
        (randn(8, 16, 3, 2),),
        dynamo=True,
        dynamic_shapes=({0: 4 * torch.export.Dim("clips")},),
        input_names=["image"],
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    assert {node.domain for node in model.graph.node} == {""}
    assert len(model.graph.node) <= 6
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for num_clips in (1, 3):
        x = randn(4 * num_clips, 16, 3, 2)
        (got,) = session.run(None, {"image": x.numpy()})
        wanted = temporal_shift(x, num_segments=4, causal=causal)
        np.testing.assert_array_equal(np.asarray(got), wanted.numpy())
        x[1] += 1
        (moved,) = session.run(None, {"image": x.numpy()})
        assert (np.asarray(moved) != np.asarray(got)).any(axis=(1, 2, 3))[2]


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "rank": (
        lambda: temporal_shift(torch.zeros(8, 3, 4), num_segments=2),
        r"x: wanted 4 axes \[N\*T, C, H, W\], got shape \[8, 3, 4\]",
    ),
    "dtype": (
        lambda: temporal_shift(torch.zeros(2, 8, 1, 1, dtype=torch.int64), num_segments=2),
        r"x: wanted torch.float32 or .* got torch.int64",
    ),
    "frames": (
        lambda: temporal_shift(torch.zeros(7, 8, 1, 1), num_segments=2),
        r"num_segments=2 divides, got 7",
    ),
    "num_segments": (
        lambda: temporal_shift(torch.zeros(8, 8, 1, 1), num_segments=0),
        r"num_segments: wanted 1 or more, got 0",
    ),
    "fold_div": (
        lambda: temporal_shift(torch.zeros(8, 8, 1, 1), num_segments=2, fold_div=1),
        r"fold_div: wanted 2 or more, got 1",
    ),
    "causal direction": (
        lambda: temporal_shift(
            torch.zeros(8, 8, 1, 1), num_segments=2, causal=True, direction="paddle"
        ),
        r"wanted none, got 'paddle'",
    ),
    "fill of floats": (
        lambda: temporal_shift(torch.zeros(8, 8, 1, 1), num_segments=2, fill_value=1),
        r"fill_value: wanted 0 for torch.float32, got 1",
    ),
    "fill beyond int8": (
        lambda: temporal_shift(
            torch.zeros(8, 8, 1, 1, dtype=torch.int8), num_segments=2, fill_value=128
        ),
        r"fill_value: wanted -128 to 127 for torch.int8, got 128",
    ),
    "in place, strides": (
        lambda: temporal_shift_(torch.zeros(8, 16, 2, 2)[:, ::2], num_segments=2),
        r"x: wanted contiguous or channels_last memory to work in, got strides",
    ),
    "in place, one memory for all": (
        lambda: temporal_shift_(torch.zeros(1, 16, 2, 2).expand(8, -1, -1, -1), num_segments=2),
        r"x: wanted contiguous or channels_last memory to work in, got strides",
    ),
    "in place, leaf": (
        lambda: temporal_shift_(torch.zeros(8, 8, 1, 1, requires_grad=True), num_segments=2),
        r"x: wanted a tensor that may be overwritten, got a leaf",
    ),
    "state, shape": (
        lambda: temporal_shift_step(torch.zeros(2, 16, 3, 3), torch.zeros(2, 4, 3, 3)),
        r"state: wanted shape \[2, 2, 3, 3\], got \[2, 4, 3, 3\]",
    ),
    "state, dtype": (
        lambda: temporal_shift_step(torch.zeros(2, 16, 3, 3), torch.zeros(2, 2, 3, 3).half()),
        r"state: wanted torch.float32, got torch.float16",
    ),
    "step in place, layout": (
        lambda: temporal_shift_step_(
            torch.zeros(2, 16, 3, 3),
            torch.zeros(2, 2, 3, 3).contiguous(memory_format=torch.channels_last),
        ),
        r"state: wanted the layout of x",
    ),
    "step in place, gradient": (
        lambda: temporal_shift_step_(
            torch.zeros(2, 16, 3, 3), torch.zeros(2, 2, 3, 3, requires_grad=True)
        ),
        r"wanted no gradients through a step in place",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        call()


def test_unknown_names() -> None:
    x = torch.zeros(2, 8, 1, 1)
    with pytest.raises(UnknownNameError, match="unknown direction 'tsm'"):
        temporal_shift(x, num_segments=2, direction="tsm")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UnknownNameError, match="unknown backend 'cuda'"):
        temporal_shift(x, num_segments=2, backend="cuda")


def test_triton_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendUnavailableError, match="run on a GPU"):
        temporal_shift(torch.zeros(2, 8, 1, 1), num_segments=2, backend=Backend.TRITON)


def test_sections() -> None:
    assert shift_sections(63) == (7, 7, 1)
    assert shift_sections(63, direction="paddle") == (7, 7, -1)
    assert shift_sections(63, fold_div=1, causal=True) == (63, 0, -1)
    assert shift_sections(7) == (0, 0, 1)


def test_state_has_the_layout_of_x() -> None:
    x = torch.zeros(6, 16, 3, 2, dtype=torch.int8).contiguous(memory_format=torch.channels_last)
    state = temporal_shift_state(x, num_segments=3, fill_value=-7)
    assert state.shape == (2, 2, 3, 2)
    assert state.dtype == torch.int8
    assert state.is_contiguous(memory_format=torch.channels_last)
    assert (state == -7).all()


def test_importing_loads_no_compiler() -> None:
    code = (
        "import sys, effdl.kernels.temporal_shift.spec; "
        "sys.exit(str({'tvm', 'triton'} & set(sys.modules)) if {'tvm', 'triton'} & set(sys.modules)"
        " else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
