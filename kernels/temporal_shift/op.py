"""The temporal shift as PyTorch operators: of whole clips, in place, and frame by frame."""

from typing import Literal, cast

import torch
from torch import Tensor

from effdl.errors import ConfigError, UnknownNameError
from effdl.kernels.backend import Backend
from effdl.kernels.temporal_shift import custom_op, reference
from effdl.kernels.temporal_shift.custom_op import layout_of
from effdl.kernels.temporal_shift.reference import Sections
from effdl.kernels.validation import check_devices, check_dtype, check_rank, check_shape

__all__ = [
    "DTYPES",
    "Direction",
    "shift_sections",
    "temporal_shift",
    "temporal_shift_",
    "temporal_shift_state",
    "temporal_shift_step",
    "temporal_shift_step_",
]

Direction = Literal["mit", "paddle"]
"""Which neighbour the first section comes from: the next frame, or the previous one."""

DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int8,
    torch.uint8,
)
_OFFSETS = {"mit": 1, "paddle": -1}
_AXES = ("N*T", "C", "H", "W")


def temporal_shift(
    x: Tensor,
    *,
    num_segments: int,
    fold_div: int = 8,
    direction: Direction = "mit",
    causal: bool = False,
    channels_last: bool | None = None,
    fill_value: int = 0,
    backend: Backend | str | None = None,
) -> Tensor:
    """Take some channels of every frame from the next frame and some from the previous one.

    With ``fold = C // fold_div``::

        y[t, :fold]       = x[t + 1, :fold]        (0 in the last frame)
        y[t, fold:2*fold] = x[t - 1, fold:2*fold]  (0 in the first frame)
        y[t, 2*fold:]     = x[t, 2*fold:]

    ``direction="paddle"`` exchanges t + 1 and t - 1. A causal shift only has the past:
    ``y[t, :fold] = x[t - 1, :fold]``, all else stays. Nothing is computed, so the bits of
    every number survive. The gradient is the same shift to the other side; nothing is
    saved for it.

    Args:
        x: The frames of N clips one after another, [N*T, C, H, W].
        num_segments: T, frames of a clip.
        fold_div: One part in so many of the channels comes from each neighbour. With fewer
            channels than that, none does.
        direction: ``"mit"`` as the authors' code, ``"paddle"`` as PaddlePaddle's operator.
        causal: Whether to shift from the past only, as the authors' online models do; in
            any framework from the previous frame, so without a direction.
        channels_last: Memory format of the result; None: that of x. An x in another format
            is converted first.
        fill_value: What stands at a clip's ends; other than 0 only for integers: the zero
            point of quantized activations.
        backend: An implementation; None: the fastest that is here.

    Returns:
        As x, in other memory.

    Raises:
        ConfigError: A wrong shape, number format or option, or a number of frames that
            T does not divide.
        UnknownNameError: There is no such direction or backend.
        BackendUnavailableError: The backend's compiler is not installed.

    Source: Lin, Gan and Han, TSM, ICCV 2019 (arXiv 1811.08383), section 3; directions as
    in github.com/mit-han-lab/temporal-shift-module and in Paddle's ``temporal_shift``.
    """
    sections = _check(x, num_segments, fold_div, direction, causal, fill_value)
    if channels_last is not None:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        x = x.contiguous(memory_format=layout)
    if torch.onnx.is_in_onnx_export():
        return reference.shift_by_padding(
            x, num_segments=num_segments, sections=sections, fill_value=fill_value
        )
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and x.requires_grad):
        return custom_op.shift(x, num_segments, *sections, fill_value, _name(backend))
    # Autograd's part of a call takes as long as a small shift.
    x = x.contiguous(memory_format=layout_of(x))
    y = torch.empty_like(x)
    custom_op.shift_without_gradient(x, y, num_segments, *sections, fill_value, _name(backend))
    return y


def temporal_shift_(
    x: Tensor,
    *,
    num_segments: int,
    fold_div: int = 8,
    direction: Direction = "mit",
    causal: bool = False,
    fill_value: int = 0,
    backend: Backend | str | None = None,
) -> Tensor:
    """`temporal_shift` in the memory of x: only the channels that move are touched.

    Legal where nobody needs x afterwards: before a convolution whose block has no identity
    path around it ("in-place shift" of the paper), or where that path took its copy. With
    gradients, x must be the result of an operation that does not need it in its backward
    pass (PyTorch refuses the backward pass otherwise).

    Args:
        x: [N*T, C, H, W], contiguous or channels_last.
        num_segments: As for `temporal_shift`.
        fold_div: As for `temporal_shift`.
        direction: As for `temporal_shift`.
        causal: As for `temporal_shift`.
        fill_value: As for `temporal_shift`.
        backend: As for `temporal_shift`.

    Returns:
        x itself.

    Raises:
        ConfigError: As for `temporal_shift`; or x is neither contiguous nor channels_last,
            or is a leaf that requires a gradient.
        UnknownNameError: There is no such direction or backend.
        BackendUnavailableError: The backend's compiler is not installed.
    """
    sections = _check(x, num_segments, fold_div, direction, causal, fill_value)
    _check_in_place("x", x)
    if torch.is_grad_enabled() and x.requires_grad:
        shifted = custom_op.ShiftInPlace.apply(
            x, num_segments, sections, fill_value, _name(backend)
        )
        return cast(Tensor, shifted)
    custom_op.shift_in_place(x, num_segments, *sections, fill_value, _name(backend))
    return x


def temporal_shift_state(
    x: Tensor, *, fold_div: int = 8, num_segments: int = 1, fill_value: int = 0
) -> Tensor:
    """The state before the first frame, for frames like x.

    Args:
        x: Frames of N streams, [N*T, C, H, W].
        fold_div: As for `temporal_shift`.
        num_segments: T, frames of each stream in x.
        fill_value: What stands before the first frame.

    Returns:
        [N, C // fold_div, H, W], in the number format, device and layout of x.

    Raises:
        ConfigError: A wrong shape, number format or option.
    """
    sections = _check(x, num_segments, fold_div, "mit", True, fill_value)
    shape = (x.shape[0] // num_segments, sections.first, *x.shape[2:])
    state = torch.full(shape, fill_value, dtype=x.dtype, device=x.device)
    return state.contiguous(memory_format=layout_of(x))


def temporal_shift_step(
    x: Tensor,
    state: Tensor,
    *,
    fold_div: int = 8,
    num_segments: int = 1,
    backend: Backend | str | None = None,
) -> tuple[Tensor, Tensor]:
    """The causal shift of the next frames of N streams.

    For one frame, with ``fold = C // fold_div``: ``y = [state, x[:, fold:]]``, and the next
    state is ``x[:, :fold]``. Feeding a clip in pieces of any lengths gives, bit for bit,
    what ``temporal_shift(..., causal=True)`` makes of the whole clip. Gradients flow to x
    and to the state.

    Args:
        x: The next T frames of each stream, [N*T, C, H, W].
        state: What the last frame left, [N, C // fold_div, H, W]; at first that of
            `temporal_shift_state`. To reset a stream, write zeros into its state.
        fold_div: As for `temporal_shift`.
        num_segments: T.
        backend: As for `temporal_shift`.

    Returns:
        The shifted frames, as x, and the next state, as the state.

    Raises:
        ConfigError: A wrong shape, number format or option.
        UnknownNameError: There is no such backend.
        BackendUnavailableError: The backend's compiler is not installed.
    """
    sections = _check(x, num_segments, fold_div, "mit", True, 0)
    _check_state(x, state, num_segments, sections)
    if torch.onnx.is_in_onnx_export():
        return reference.step_by_concatenation(
            x, state, num_segments=num_segments, sections=sections
        )
    return custom_op.step(x, state, num_segments, sections.first, sections.offset, _name(backend))


def temporal_shift_step_(
    x: Tensor, state: Tensor, *, fold_div: int = 8, backend: Backend | str | None = None
) -> Tensor:
    """`temporal_shift_step` of one frame of each stream, in place: x and the state swap channels.

    Legal where nobody needs x afterwards; without gradients.

    Args:
        x: One frame of each stream, [N, C, H, W], contiguous or channels_last.
        state: [N, C // fold_div, H, W], in the layout of x; becomes the next state.
        fold_div: As for `temporal_shift`.
        backend: As for `temporal_shift`.

    Returns:
        x itself.

    Raises:
        ConfigError: As for `temporal_shift_step`; or x or the state lie in other layouts, or
            require a gradient.
        UnknownNameError: There is no such backend.
        BackendUnavailableError: The backend's compiler is not installed.
    """
    sections = _check(x, 1, fold_div, "mit", True, 0)
    _check_state(x, state, 1, sections)
    _check_in_place("x", x)
    if not state.is_contiguous(memory_format=layout_of(x)):
        raise ConfigError(
            f"state: wanted the layout of x, {layout_of(x)}, got strides {state.stride()}"
        )
    if torch.is_grad_enabled() and (x.requires_grad or state.requires_grad):
        raise ConfigError(
            "wanted no gradients through a step in place, got an x or a state that requires one",
            hint="temporal_shift_step has gradients; or run under torch.no_grad()",
        )
    custom_op.step_in_place(x, state, sections.first, _name(backend))
    return x


def shift_sections(
    channels: int, *, fold_div: int = 8, direction: Direction = "mit", causal: bool = False
) -> Sections:
    """Which channels come from where, for the options of `temporal_shift`.

    Args:
        channels: C.
        fold_div: As for `temporal_shift`.
        direction: As for `temporal_shift`.
        causal: As for `temporal_shift`.

    Raises:
        ConfigError: A fold_div below 2 (1 if causal), or a causal shift with a direction.
        UnknownNameError: There is no such direction.
    """
    if direction not in _OFFSETS:
        raise UnknownNameError("direction", str(direction), _OFFSETS)
    least = 1 if causal else 2
    if fold_div < least:
        raise ConfigError(f"fold_div: wanted {least} or more, got {fold_div}")
    if not causal:
        return Sections(channels // fold_div, channels // fold_div, _OFFSETS[direction])
    if direction != "mit":
        raise ConfigError(
            f"a causal shift has one direction: wanted none, got {direction!r}",
            hint='leave direction="mit"',
        )
    return Sections(channels // fold_div, 0, -1)


def _check(
    x: Tensor, num_segments: int, fold_div: int, direction: Direction, causal: bool, fill_value: int
) -> Sections:
    check_rank("x", x, _AXES)
    check_dtype("x", x, DTYPES)
    if num_segments < 1:
        raise ConfigError(f"num_segments: wanted 1 or more, got {num_segments}")
    if x.shape[0] % num_segments != 0:
        raise ConfigError(
            f"x: wanted a number of frames that num_segments={num_segments} divides, "
            f"got {x.shape[0]}"
        )
    if fill_value != 0:
        if x.dtype.is_floating_point:
            raise ConfigError(f"fill_value: wanted 0 for {x.dtype}, got {fill_value}")
        limits = torch.iinfo(x.dtype)
        if not limits.min <= fill_value <= limits.max:
            raise ConfigError(
                f"fill_value: wanted {limits.min} to {limits.max} for {x.dtype}, got {fill_value}"
            )
    return shift_sections(x.shape[1], fold_div=fold_div, direction=direction, causal=causal)


def _check_state(x: Tensor, state: Tensor, num_segments: int, sections: Sections) -> None:
    check_dtype("state", state, (x.dtype,))
    check_shape("state", state, (x.shape[0] // num_segments, sections.first, *x.shape[2:]))
    check_devices(x=x, state=state)


def _check_in_place(name: str, x: Tensor) -> None:
    if not (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)):
        raise ConfigError(
            f"{name}: wanted contiguous or channels_last memory to work in, "
            f"got strides {x.stride()}",
            hint="temporal_shift takes any layout",
        )
    if torch.is_grad_enabled() and x.requires_grad and x.is_leaf:
        raise ConfigError(
            f"{name}: wanted a tensor that may be overwritten, got a leaf that requires a gradient",
            hint="temporal_shift leaves it as it is; or run under torch.no_grad()",
        )


def _name(backend: Backend | str | None) -> str:
    # Chosen inside the operator, where torch.compile does not look.
    return "" if backend is None else str(backend)
