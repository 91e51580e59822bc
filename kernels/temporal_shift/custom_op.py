"""The temporal shift's operators as PyTorch's dispatcher, autograd and compiler see them.

They are defined by their schemas: `torch.library.custom_op` would wrap them in 40 to 90
microseconds of Python a call, several times what a small shift takes.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from effdl.kernels.backend import Backend, choose_backend
from effdl.kernels.temporal_shift import reference
from effdl.kernels.temporal_shift.reference import Sections

__all__ = [
    "ShiftInPlace",
    "layout_of",
    "shift",
    "shift_in_place",
    "shift_into",
    "shift_without_gradient",
    "step",
    "step_in_place",
]


_SHIFT = "int num_segments, int first, int second, int offset, int fill_value, str backend"
_SCHEMAS = {
    "temporal_shift": f"(Tensor x, {_SHIFT}) -> Tensor",
    "temporal_shift_into": f"(Tensor x, Tensor(a!) y, {_SHIFT}) -> ()",
    "temporal_shift_": f"(Tensor(a!) x, {_SHIFT}) -> ()",
    "temporal_shift_step": "(Tensor x, Tensor state, int num_segments, int fold, int offset, "
    "str backend) -> (Tensor, Tensor)",
    "temporal_shift_step_": "(Tensor(a!) x, Tensor(b!) state, int fold, str backend) -> ()",
}
for _name, _schema in _SCHEMAS.items():
    torch.library.define(f"effdl::{_name}", _schema)
shift = torch.ops.effdl.temporal_shift.default
shift_without_gradient = torch.ops.effdl.temporal_shift_into.default
shift_in_place = torch.ops.effdl.temporal_shift_.default
step = torch.ops.effdl.temporal_shift_step.default
step_in_place = torch.ops.effdl.temporal_shift_step_.default


def layout_of(x: Tensor) -> torch.memory_format:
    """The layout that results have: planes, unless x has channels_last and nothing else."""
    if not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def _kernel(backend: str, x: Tensor) -> ModuleType | None:
    """The module of the chosen backend; None: the reference."""
    match choose_backend(backend or None, device=x.device):
        case Backend.TVM:
            from effdl.kernels.temporal_shift import tvm_kernel

            return tvm_kernel
        case Backend.TRITON:
            from effdl.kernels.temporal_shift import triton_kernel

            return triton_kernel
        case Backend.REFERENCE:
            return None


def shift_into(
    x: Tensor, y: Tensor, *, num_segments: int, sections: Sections, fill_value: int, backend: str
) -> None:
    """Write the shifted x into y.

    Args:
        x: [N*T, C, H, W], contiguous or channels_last.
        y: Of the same shape and layout; not the same memory.
        num_segments: T.
        sections: Which channels come from where.
        fill_value: What stands at the ends, for integers.
        backend: Its name; empty: the fastest that is here.
    """
    kernel = _kernel(backend, x)
    if kernel is None:
        y.copy_(
            reference.shift(x, num_segments=num_segments, sections=sections, fill_value=fill_value)
        )
    elif x.numel() > 0:
        kernel.shift(x, y, num_segments=num_segments, sections=sections, fill_value=fill_value)


def _shift(
    x: Tensor,
    num_segments: int,
    first: int,
    second: int,
    offset: int,
    fill_value: int,
    backend: str,
) -> Tensor:
    x = x.contiguous(memory_format=layout_of(x))
    y = torch.empty_like(x)
    shift_into(
        x,
        y,
        num_segments=num_segments,
        sections=Sections(first, second, offset),
        fill_value=fill_value,
        backend=backend,
    )
    return y


def _shift_into(
    x: Tensor,
    y: Tensor,
    num_segments: int,
    first: int,
    second: int,
    offset: int,
    fill_value: int,
    backend: str,
) -> None:
    shift_into(
        x,
        y,
        num_segments=num_segments,
        sections=Sections(first, second, offset),
        fill_value=fill_value,
        backend=backend,
    )
    increment_version(y)


def _fake_shift(
    x: Tensor,
    num_segments: int,
    first: int,
    second: int,
    offset: int,
    fill_value: int,
    backend: str,
) -> Tensor:
    return torch.empty_like(x, memory_format=layout_of(x))


def _keep_options(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.num_segments, first, second, offset, _, ctx.backend = inputs
    ctx.sections = Sections(first, second, offset)


def _shift_back(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    back = shift(grad, ctx.num_segments, *ctx.sections.reversed(), 0, ctx.backend)
    return back, None, None, None, None, None, None


def _shift_in_place(
    x: Tensor,
    num_segments: int,
    first: int,
    second: int,
    offset: int,
    fill_value: int,
    backend: str,
) -> None:
    sections = Sections(first, second, offset)
    kernel = _kernel(backend, x)
    if x.numel() == 0 or first == 0:
        return
    increment_version(x)
    if kernel is None:
        x.copy_(
            reference.shift(x, num_segments=num_segments, sections=sections, fill_value=fill_value)
        )
    else:
        kernel.shift_in_place(
            x, num_segments=num_segments, sections=sections, fill_value=fill_value
        )


class ShiftInPlace(torch.autograd.Function):
    """Autograd of the shift in place: custom operators that mutate have none of their own."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, num_segments: int, sections: Sections, fill_value: int, backend: str
    ) -> Tensor:
        ctx.num_segments, ctx.sections, ctx.backend = num_segments, sections, backend
        ctx.mark_dirty(x)
        shift_in_place(x, num_segments, *sections, fill_value, backend)
        return x

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        back = shift(grad, ctx.num_segments, *ctx.sections.reversed(), 0, ctx.backend)
        return back, None, None, None, None


def _step(
    x: Tensor, state: Tensor, num_segments: int, fold: int, offset: int, backend: str
) -> tuple[Tensor, Tensor]:
    sections = Sections(fold, 0, offset)
    kernel = _kernel(backend, x)
    x = x.contiguous(memory_format=layout_of(x))
    state = state.contiguous(memory_format=layout_of(x))
    if kernel is None:
        return reference.step(x, state, num_segments=num_segments, sections=sections)
    y, leaving = torch.empty_like(x), torch.empty_like(state, memory_format=layout_of(x))
    if fold == 0:
        y.copy_(x)
    elif x.numel() > 0:
        kernel.step(x, state, y, leaving, num_segments=num_segments, sections=sections)
    return y, leaving


def _fake_step(
    x: Tensor, state: Tensor, num_segments: int, fold: int, offset: int, backend: str
) -> tuple[Tensor, Tensor]:
    layout = layout_of(x)
    return (
        torch.empty_like(x, memory_format=layout),
        torch.empty_like(state, memory_format=layout),
    )


def _keep_step_options(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, _, ctx.num_segments, ctx.fold, ctx.offset, ctx.backend = inputs


def _step_back(ctx: Any, grad_y: Tensor, grad_leaving: Tensor) -> tuple[Tensor | None, ...]:
    # The frames and the state are one ring; its gradient goes round the other way.
    grad_x, grad_state = step(
        grad_y, grad_leaving, ctx.num_segments, ctx.fold, -ctx.offset, ctx.backend
    )
    return grad_x, grad_state, None, None, None, None


def _step_in_place(x: Tensor, state: Tensor, fold: int, backend: str) -> None:
    sections = Sections(fold, 0, -1)
    kernel = _kernel(backend, x)
    if x.numel() == 0 or fold == 0:
        return
    increment_version((x, state))
    if kernel is None:
        y, leaving = reference.step(x, state, num_segments=1, sections=sections)
        x.copy_(y)
        state.copy_(leaving)
    else:
        kernel.step_in_place(x, state, sections=sections)


torch.library.impl("effdl::temporal_shift", "default", _shift)
torch.library.impl("effdl::temporal_shift_into", "default", _shift_into)
torch.library.impl("effdl::temporal_shift_", "default", _shift_in_place)
torch.library.impl("effdl::temporal_shift_step", "default", _step)
torch.library.impl("effdl::temporal_shift_step_", "default", _step_in_place)
torch.library.register_fake("effdl::temporal_shift", _fake_shift)
torch.library.register_fake("effdl::temporal_shift_into", lambda *_: None)
torch.library.register_fake("effdl::temporal_shift_", lambda *_: None)
torch.library.register_fake("effdl::temporal_shift_step", _fake_step)
torch.library.register_fake("effdl::temporal_shift_step_", lambda *_: None)
torch.library.register_autograd("effdl::temporal_shift", _shift_back, setup_context=_keep_options)
torch.library.register_autograd(
    "effdl::temporal_shift_step", _step_back, setup_context=_keep_step_options
)
