"""int8 1x1 convolution with few outputs on NCHW bytes, pixels in the lanes.

With AVX512-VNNI, 64 pixels of all input channels are interleaved into the first-level
cache, four channels to a lane; then six output channels at a time are summed over them, and
packed back into 64 neighbouring bytes. The interleaving and the packing permute alike, so
neither needs a shuffle of its own. Other processors run plain loops.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from effdl.kernels.tvm_runtime import CompiledModule, compile_module, has_vnni, use_threads
from effdl.kernels.tvm_vnni import (
    NUM_BYTES,
    NUM_LANES,
    dot,
    interleave_rows,
    load,
    pack_lanes,
    requantize_lanes,
    store,
)

__all__ = ["bind_conv1x1", "quantized_conv1x1"]

# With 64 pixels each, 24 sums: what stays in registers.
_MAX_OUTPUTS = 6
_PLAIN_PIXELS = 64


def quantized_conv1x1(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    *,
    x_zero_point: int,
    y_zero_point: int,
    y_min: int = 0,
    y_max: int = 255,
    vnni: bool | None = None,
) -> Tensor:
    """``clip(round(conv(x - x_zero_point) * multiplier) + y_zero_point, y_min, y_max)``.

    Args:
        x: uint8, [N, C, H, W].
        weight: int8, [O, C, 1, 1].
        bias: int32, [O], at the scale of the sums.
        multiplier: float32, [O].
        x_zero_point: Of the input.
        y_zero_point: Of the output.
        y_min: Smallest output.
        y_max: Largest output.
        vnni: Whether to use AVX512-VNNI; None: where the machine has it.

    Returns:
        uint8, [N, O, H, W].
    """
    num_images, num_inputs, height, width = x.shape
    num_outputs, num_pixels = weight.shape[0], height * width
    y = torch.empty((num_images, num_outputs, height, width), dtype=torch.uint8)
    if y.numel() == 0:
        return y
    vnni = has_vnni() if vnni is None else vnni
    function = _compiled(
        num_inputs,
        num_outputs,
        num_pixels,
        torch.get_num_threads(),
        vnni and num_pixels >= NUM_BYTES,
    )
    function.call(
        "pointwise",
        x.contiguous().view(num_images, num_inputs, num_pixels),
        weight.contiguous(),
        bias.contiguous(),
        multiplier.contiguous(),
        y.view(num_images, num_outputs, num_pixels),
        x_zero_point,
        y_zero_point,
        y_min,
        y_max,
    )
    return y


def bind_conv1x1(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    y: Tensor,
    *,
    x_zero_point: int,
    y_zero_point: int,
) -> Callable[[], None]:
    """`quantized_conv1x1` into ``y``, with all that is done once done before.

    Args:
        x: As there, contiguous like all others.
        weight: As there.
        bias: As there.
        multiplier: As there.
        y: uint8, [N, O, H, W].
        x_zero_point: As there.
        y_zero_point: As there.
    """
    num_images, num_inputs, height, width = x.shape
    num_pixels, num_threads = height * width, torch.get_num_threads()
    vnni = has_vnni() and num_pixels >= NUM_BYTES
    module = _compiled(num_inputs, weight.shape[0], num_pixels, num_threads, vnni)
    use_threads(num_threads)
    rows = x.view(num_images, num_inputs, num_pixels)
    y_rows = y.view(num_images, weight.shape[0], num_pixels)
    points = x_zero_point, y_zero_point, 0, 255
    return partial(module["pointwise"], rows, weight, bias, multiplier, y_rows, *points)


@cache
def _compiled(
    num_inputs: int, num_outputs: int, num_pixels: int, num_threads: int, vnni: bool
) -> CompiledModule:
    make = _vnni_function if vnni else _plain_function
    function = make(num_inputs, num_outputs, num_pixels, num_threads)
    return compile_module({"pointwise": function}, is_lowered=True)


def _flat(whole: Any, shape: tuple[Any, ...], dtype: str, align: int) -> Any:
    """A parameter seen as one row: a view of the tensor would cost the caller."""
    total = shape[0]
    for length in shape[1:]:
        total = total * length
    return T.decl_buffer((total,), dtype, data=whole.data, align=align)


class _Arguments:
    """The arguments that both forms share; made inside a function's frame."""

    def __init__(self, num_inputs: int, num_outputs: int, num_pixels: int) -> None:
        num_images = T.int64()
        shapes: dict[str, tuple[tuple[Any, ...], str, int]] = {
            "x": ((num_images, num_inputs, num_pixels), "uint8", 1),
            "weight": ((num_outputs, num_inputs, 1, 1), "int8", 1),
            "bias": ((num_outputs,), "int32", 4),
            "multiplier": ((num_outputs,), "float32", 4),
            "y": ((num_images, num_outputs, num_pixels), "uint8", 1),
        }
        tensors = {
            name: T.match_buffer(T.arg(name, T.handle()), shape, dtype, align=align)
            for name, (shape, dtype, align) in shapes.items()
        }
        names = ("x_zero_point", "y_zero_point", "y_min", "y_max")
        self.points = [T.arg(name, T.int32()) for name in names]
        flat = {name: _flat(tensor, *shapes[name]) for name, tensor in tensors.items()}
        self.x, self.weight, self.bias = flat["x"], flat["weight"], flat["bias"]
        self.multiplier, self.y = flat["multiplier"], flat["y"]
        self.num_images = T.cast(num_images, "int32")

    def emit_folded_biases(self, num_inputs: int, num_outputs: int) -> Any:
        """Biases without the input's zero point, a local buffer."""
        folded = T.alloc_buffer((num_outputs,), "int32")
        with T.serial(0, num_outputs) as output:
            total = T.alloc_buffer((1,), "int32")
            T.buffer_store(total, 0, [0])
            with T.serial(0, num_inputs) as i:
                value = T.cast(self.weight[output * num_inputs + i], "int32")
                T.buffer_store(total, total[0] + value, [0])
            T.buffer_store(folded, self.bias[output] - self.points[0] * total[0], [output])
        return folded


def _vnni_function(num_inputs: int, num_outputs: int, num_pixels: int, num_threads: int) -> Any:
    num_groups = -(-num_inputs // 4)
    num_tiles = -(-num_pixels // NUM_BYTES)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("pointwise")
        T.func_attr({"tirx.noalias": True})
        given = _Arguments(num_inputs, num_outputs, num_pixels)
        folded = given.emit_folded_biases(num_inputs, num_outputs)
        weight = given.weight
        if num_inputs % 4:
            weight = _emit_whole_groups(weight, num_inputs, num_outputs)
        loop = T.parallel if num_threads > 1 else T.serial
        with loop(0, num_threads) as worker:
            panel = T.alloc_buffer((num_groups * 4 * NUM_BYTES,), "uint8", align=NUM_BYTES)
            total = given.num_images * num_tiles
            first = T.truncdiv(worker * total, num_threads)
            last = T.truncdiv((worker + 1) * total, num_threads)
            with T.serial(0, last - first) as index:
                image = T.bind(T.truncdiv(first + index, num_tiles))
                tile = T.truncmod(first + index, num_tiles)
                pixel = T.bind(T.min(tile * NUM_BYTES, num_pixels - NUM_BYTES))
                start = image * num_inputs * num_pixels + pixel
                _emit_panel(given.x, start, panel, num_inputs, num_pixels)
                base = image * num_outputs * num_pixels + pixel
                most = min(_MAX_OUTPUTS, num_outputs)
                with T.serial(0, -(-num_outputs // most)) as part:
                    output = T.bind(T.min(part * most, num_outputs - most))
                    _emit_outputs(
                        given, folded, weight, panel, output, most, num_groups, base, num_pixels
                    )
    return builder.get()


def _emit_whole_groups(weight: Any, num_inputs: int, num_outputs: int) -> Any:
    """The weights with rows that are filled up to fours."""
    row_bytes = -(-num_inputs // 4) * 4
    whole = T.alloc_buffer((num_outputs * row_bytes,), "int8")
    with T.serial(0, num_outputs * row_bytes) as i:
        T.buffer_store(whole, T.int8(0), [i])
    with T.serial(0, num_outputs) as output, T.serial(0, num_inputs) as i:
        T.buffer_store(whole, weight[output * num_inputs + i], [output * row_bytes + i])
    return whole


def _emit_panel(x: Any, start: Any, panel: Any, num_inputs: int, num_pixels: int) -> None:
    def interleave(group: Any, num_rows: int) -> None:
        # A channel that is not there has zero weights: any row will do.
        rows = [load(x, start + (4 * group + min(i, num_rows - 1)) * num_pixels) for i in range(4)]
        for part in range(4):
            store(panel, (4 * group + part) * NUM_BYTES, interleave_rows(rows, part))

    if num_inputs >= 4:
        with T.serial(0, num_inputs // 4) as group:
            interleave(group, 4)
    if num_inputs % 4:
        interleave(num_inputs // 4, num_inputs % 4)


def _emit_outputs(
    given: _Arguments,
    folded: Any,
    weight: Any,
    panel: Any,
    output: Any,
    num_outputs: int,
    num_groups: int,
    base: Any,
    num_pixels: int,
) -> None:
    sums = T.alloc_buffer((num_outputs * NUM_BYTES,), "int32", align=NUM_BYTES)
    for o in range(num_outputs):
        for part in range(4):
            at = o * NUM_BYTES + part * NUM_LANES
            store(sums, at, T.broadcast(folded[output + o], NUM_LANES), NUM_LANES)
    with T.serial(0, num_groups) as group:
        for o in range(num_outputs):
            word = load(weight, ((output + o) * num_groups + group) * 4, 4)
            taps = T.broadcast(T.reinterpret(word, dtype="int32"), NUM_LANES)
            for part in range(4):
                at = o * NUM_BYTES + part * NUM_LANES
                pixels = load(panel, (4 * group + part) * NUM_BYTES)
                store(sums, at, dot(load(sums, at, NUM_LANES), pixels, taps), NUM_LANES)
    for o in range(num_outputs):
        multiplier = T.broadcast(given.multiplier[output + o], NUM_LANES)
        parts = [
            requantize_lanes(
                load(sums, o * NUM_BYTES + part * NUM_LANES, NUM_LANES), multiplier, limit=256.0
            )
            for part in range(4)
        ]
        points = given.points
        packed = pack_lanes(*parts, zero_point=points[1], y_min=points[2], y_max=points[3])
        store(given.y, base + (output + o) * num_pixels, packed)


def _plain_function(num_inputs: int, num_outputs: int, num_pixels: int, num_threads: int) -> Any:
    tile = min(_PLAIN_PIXELS, num_pixels)
    num_tiles = -(-num_pixels // tile)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("pointwise")
        T.func_attr({"tirx.noalias": True})
        given = _Arguments(num_inputs, num_outputs, num_pixels)
        folded = given.emit_folded_biases(num_inputs, num_outputs)
        loop = T.parallel if num_threads > 1 else T.serial
        with loop(0, given.num_images * num_tiles) as index:
            image = T.bind(T.truncdiv(index, num_tiles))
            pixel = T.bind(T.min(T.truncmod(index, num_tiles) * tile, num_pixels - tile))
            sums = T.alloc_buffer((tile,), "int32")
            with T.serial(0, num_outputs) as output:
                with T.serial(0, tile) as i:
                    T.buffer_store(sums, folded[output], [i])
                with T.serial(0, num_inputs) as channel:
                    weight = T.bind(T.cast(given.weight[output * num_inputs + channel], "int32"))
                    start = (image * num_inputs + channel) * num_pixels + pixel
                    with T.serial(0, tile) as i:
                        product = T.cast(given.x[start + i], "int32") * weight
                        T.buffer_store(sums, sums[i] + product, [i])
                start = (image * num_outputs + output) * num_pixels + pixel
                zero, low, high = (T.cast(given.points[i], "float32") for i in (1, 2, 3))
                with T.serial(0, tile) as i:
                    scaled = T.cast(sums[i], "float32") * given.multiplier[output]
                    value = T.max(T.min(T.nearbyint(scaled) + zero, high), low)
                    T.buffer_store(given.y, T.cast(value, "uint8"), [start + i])
    return builder.get()
