"""Weights in panels, and what surrounds a matrix product over them: requantization, cache.

A panel holds the weights of ``num_lanes`` neighbouring outputs, [K/4][num_lanes][4]: one
vector for every four inputs, read from first to last. Packing takes much longer than one
product with it; what packs is therefore called once, or remembers what it packed.
"""

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad
from tvm.script import tirx as T

from effdl.kernels.tvm_dot import DotProduct

__all__ = [
    "NUM_LIMITS",
    "Epilogue",
    "PackCache",
    "Panels",
    "Scratch",
    "alloc_sums",
    "fill_inputs",
    "lanes",
    "limits_tensor",
    "make_epilogue",
    "pack_panels",
    "requantize_tile",
    "set_lanes",
]

Made = TypeVar("Made")
_Witness = tuple[weakref.ref[Tensor], int]

# Zero point, smallest and largest byte of the output; zero point of the input.
NUM_LIMITS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Panels:
    """A weight matrix [O, K] in panels.

    Attributes:
        weight: int8, [ceil(O / num_lanes), K / 4, num_lanes * 4], filled with zeros.
        row_sums: int32, [O]: the sum of each output's weights.
        num_outputs: O.
        dot_product: What it was packed for.
    """

    weight: Tensor
    row_sums: Tensor
    num_outputs: int
    dot_product: DotProduct


@dataclass(frozen=True, slots=True, kw_only=True)
class Epilogue:
    """What becomes of the sums, filled up to whole panels.

    Attributes:
        bias: int32, with both zero points folded in.
        multiplier: float32.
        limits: float32, [4]: see `limits_tensor`.
    """

    bias: Tensor
    multiplier: Tensor
    limits: Tensor


def fill_inputs(num_inputs: int) -> int:
    """Zeros that bring K to a multiple of four, and to four at the least."""
    return -num_inputs % 4 if num_inputs else 4


def pack_panels(weight: Tensor, dot_product: DotProduct) -> Panels:
    """int8 [O, K] in panels."""
    num_outputs, num_inputs = weight.shape
    num_lanes = dot_product.num_lanes
    filled = pad(weight, (0, fill_inputs(num_inputs), 0, -num_outputs % num_lanes))
    split = filled.reshape(filled.shape[0] // num_lanes, num_lanes, filled.shape[1] // 4, 4)
    return Panels(
        weight=split.transpose(1, 2).flatten(2).contiguous(),
        row_sums=weight.sum(1, dtype=torch.int32),
        num_outputs=num_outputs,
        dot_product=dot_product,
    )


@cache
def limits_tensor(*, y_zero_point: int, y_min: int, y_max: int, x_zero_point: int) -> Tensor:
    """The four numbers of a layer that kernels take as arguments, float32."""
    return torch.tensor([y_zero_point, y_min, y_max, x_zero_point], dtype=torch.float32)


def make_epilogue(
    panels: Panels,
    bias: Tensor,
    multiplier: Tensor,
    *,
    x_zero_point: int,
    y_zero_point: int,
    y_min: int,
    y_max: int,
) -> Epilogue:
    """Bias and multiplier as the kernels take them.

    Args:
        panels: The weights.
        bias: int32, [O].
        multiplier: float32, [O] or [1].
        x_zero_point: Zero point of the input.
        y_zero_point: Zero point of the output.
        y_min: Smallest output.
        y_max: Largest output.
    """
    num_lanes = panels.dot_product.num_lanes
    fill = -panels.num_outputs % num_lanes
    offset = panels.dot_product.x_offset - x_zero_point
    return Epilogue(
        bias=_filled(torch.add(bias, panels.row_sums, alpha=offset), fill),
        multiplier=_filled(multiplier.expand(panels.num_outputs), fill),
        limits=limits_tensor(
            y_zero_point=y_zero_point, y_min=y_min, y_max=y_max, x_zero_point=x_zero_point
        ),
    )


def _filled(values: Tensor, num_zeros: int) -> Tensor:
    return pad(values, (0, num_zeros)) if num_zeros else values.contiguous()


def alloc_sums(num: int, num_lanes: int, dtype: str = "int32") -> list[Any]:
    """Vectors that stay in registers, one buffer each; inside a function's body."""
    return [T.alloc_buffer((num_lanes,), dtype) for _ in range(num)]


def lanes(buffer: Any, start: Any, num: int) -> Any:
    """``num`` neighbouring elements of a flat buffer, as one vector."""
    return buffer[T.ramp(start, 1, num)]


def set_lanes(buffer: Any, value: Any, start: Any, num: int) -> None:
    """Write ``num`` neighbouring elements of a flat buffer."""
    T.buffer_store(buffer, value, [T.ramp(start, 1, num)])


def requantize_tile(sums: Any, multiplier: Any, limits: Any, num_lanes: int) -> Any:
    """``clip(round(sums * multiplier) + zero_point)``, still float32.

    Args:
        sums: int32 vector.
        multiplier: float32 vector.
        limits: The buffer of `limits_tensor`.
        num_lanes: Of both vectors.
    """
    zero_point, y_min, y_max = (T.broadcast(limits[i], num_lanes) for i in range(3))
    rounded = T.nearbyint(T.cast(sums, f"float32x{num_lanes}") * multiplier)
    return T.min(T.max(rounded + zero_point, y_min), y_max)


class Scratch:
    """Memory that a kernel needs while it runs: one growing buffer for each thread.

    A new buffer of this size at every call would be mapped and cleared by the system anew.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._local = threading.local()

    def reserve(self, size: int) -> Tensor:
        """Flat, of at least so many elements, with whatever it held before."""
        buffer: Tensor | None = getattr(self._local, "buffer", None)
        if buffer is None or buffer.numel() < size:
            buffer = self._local.buffer = torch.empty(size, dtype=self._dtype)
        return buffer


class PackCache:
    """Remembers what was made from tensors, while they live unchanged."""

    def __init__(self, max_size: int = 256) -> None:
        self._max_size = max_size
        self._entries: dict[tuple[int, object], tuple[tuple[_Witness, ...], Any]] = {}

    def get(self, tensors: tuple[Tensor, ...], key: object, make: Callable[[], Made]) -> Made:
        """What ``make`` returned for these very tensors, else what it returns now.

        Args:
            tensors: What it is made from. One made under `torch.inference_mode` counts no
                changes: then nothing is remembered.
            key: What else it depends on.
            make: Makes it.
        """
        if any(tensor.is_inference() for tensor in tensors):
            return make()
        identity = (id(tensors[0]), key)
        witnesses, made = self._entries.get(identity, ((), None))
        if witnesses and all(
            reference() is tensor and version == tensor._version
            for (reference, version), tensor in zip(witnesses, tensors, strict=True)
        ):
            return made
        self._entries = {k: e for k, e in self._entries.items() if e[0][0][0]() is not None}
        while len(self._entries) >= self._max_size:
            del self._entries[next(iter(self._entries))]
        made = make()
        self._entries[identity] = (tuple((weakref.ref(t), t._version) for t in tensors), made)
        return made
