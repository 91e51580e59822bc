"""The programs of the folded shift: what one block of threads does, for all three products.

Rows and columns of the results, and what each product reads where, are told in
`effdl.kernels.shift_conv1x1.triton_kernel`.
"""

import triton
import triton.language as tl

from effdl.kernels.shift_conv1x1.triton_configuration import choose_tile, choose_weight_tile
from effdl.kernels.triton_ahead import GPU_NAMES, AheadOfTimeCase

__all__ = [
    "ahead_of_time_cases",
    "forward_kernel",
    "grad_input_kernel",
    "grad_weight_kernel",
]


@triton.jit
def _frame_step(
    channel, first_end: tl.constexpr, second_end: tl.constexpr, first_step: tl.constexpr
):
    """Frames ahead of its own that a channel is read from."""
    return tl.where(channel < first_end, first_step, tl.where(channel < second_end, -first_step, 0))


@triton.jit
def forward_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    num_pixels,
    num_segments,
    x_frame,
    x_channel,
    x_pixel,
    y_frame,
    y_channel,
    y_pixel,
    num_outputs: tl.constexpr,
    num_channels: tl.constexpr,
    frame_pixels: tl.constexpr,
    first_end: tl.constexpr,
    second_end: tl.constexpr,
    first_step: tl.constexpr,
    straddles: tl.constexpr,
    activation: tl.constexpr,
    has_bias: tl.constexpr,
    sum_type: tl.constexpr,
    precision: tl.constexpr,
    index_type: tl.constexpr,
    upcast: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    depth: tl.constexpr,
):
    num_tiles: tl.constexpr = (num_outputs + rows - 1) // rows
    program = tl.program_id(0)
    o = (program % num_tiles) * rows + tl.arange(0, rows)
    p = (program // num_tiles).to(index_type) * columns + tl.arange(0, columns)
    o_inside = o < num_outputs
    p_inside = p < num_pixels
    frame = p // frame_pixels
    pixel = p % frame_pixels
    t = (frame % num_segments).to(tl.int32)
    x_rows = frame * x_frame + pixel * x_pixel
    acc = tl.zeros((rows, columns), sum_type)
    for begin in range(0, num_channels, depth):
        c = begin + tl.arange(0, depth)
        if straddles:
            step = _frame_step(c, first_end, second_end, first_step)[:, None]
        else:
            step = _frame_step(tl.full((1, 1), begin, tl.int32), first_end, second_end, first_step)
        source = t[None, :] + step
        x = tl.load(
            x_ptr
            + (x_rows[None, :] + step.to(index_type) * x_frame)
            + c.to(index_type)[:, None] * x_channel,
            mask=(c < num_channels)[:, None]
            & p_inside[None, :]
            & (source >= 0)
            & (source < num_segments),
            other=0,
        )
        w = tl.load(
            weight_ptr + (o[:, None].to(index_type) * num_channels + c[None, :]),
            mask=o_inside[:, None] & (c < num_channels)[None, :],
            other=0,
        )
        if upcast:
            w, x = w.to(tl.float32), x.to(tl.float32)
        acc = tl.dot(w, x, acc, input_precision=precision, out_dtype=sum_type)
    if has_bias:
        acc += tl.load(bias_ptr + o, mask=o_inside, other=0).to(sum_type)[:, None]
    if activation != "none":
        acc = tl.maximum(acc, 0, propagate_nan=tl.PropagateNan.ALL)
    if activation == "relu6":
        acc = tl.minimum(acc, 6, propagate_nan=tl.PropagateNan.ALL)
    tl.store(
        y_ptr
        + (frame * y_frame + pixel * y_pixel)[None, :]
        + o.to(index_type)[:, None] * y_channel,
        acc.to(y_ptr.dtype.element_ty),
        mask=o_inside[:, None] & p_inside[None, :],
    )


@triton.jit
def grad_input_kernel(
    grad_y_ptr,
    weight_ptr,
    grad_x_ptr,
    num_pixels,
    num_segments,
    y_frame,
    y_channel,
    y_pixel,
    x_frame,
    x_channel,
    x_pixel,
    num_outputs: tl.constexpr,
    num_channels: tl.constexpr,
    frame_pixels: tl.constexpr,
    first_end: tl.constexpr,
    second_end: tl.constexpr,
    first_step: tl.constexpr,
    precision: tl.constexpr,
    index_type: tl.constexpr,
    upcast: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    depth: tl.constexpr,
):
    num_tiles: tl.constexpr = (num_channels + rows - 1) // rows
    program = tl.program_id(0)
    c = (program % num_tiles) * rows + tl.arange(0, rows)
    p = (program // num_tiles).to(index_type) * columns + tl.arange(0, columns)
    c_inside = c < num_channels
    p_inside = p < num_pixels
    frame = p // frame_pixels
    pixel = p % frame_pixels
    y_rows = frame * y_frame + pixel * y_pixel
    acc = tl.zeros((rows, columns), tl.float32)
    for begin in range(0, num_outputs, depth):
        o = begin + tl.arange(0, depth)
        o_inside = o < num_outputs
        g = tl.load(
            grad_y_ptr + y_rows[None, :] + o.to(index_type)[:, None] * y_channel,
            mask=o_inside[:, None] & p_inside[None, :],
            other=0,
        )
        w = tl.load(
            weight_ptr + (o[None, :].to(index_type) * num_channels + c[:, None]),
            mask=c_inside[:, None] & o_inside[None, :],
            other=0,
        )
        if upcast:
            w, g = w.to(tl.float32), g.to(tl.float32)
        acc = tl.dot(w, g, acc, input_precision=precision)
    step = _frame_step(c, first_end, second_end, first_step)[:, None]
    target = (frame % num_segments).to(tl.int32)[None, :] + step
    is_read = (target >= 0) & (target < num_segments)
    around = tl.where(target < 0, num_segments, tl.where(is_read, 0, -num_segments))
    tl.store(
        grad_x_ptr
        + (frame * x_frame + pixel * x_pixel)[None, :]
        + (step + around).to(index_type) * x_frame
        + c.to(index_type)[:, None] * x_channel,
        tl.where(is_read, acc, 0.0).to(grad_x_ptr.dtype.element_ty),
        mask=c_inside[:, None] & p_inside[None, :],
    )


@triton.jit
def grad_weight_kernel(
    grad_y_ptr,
    x_ptr,
    parts_ptr,
    num_pixels,
    num_segments,
    y_frame,
    y_channel,
    y_pixel,
    x_frame,
    x_channel,
    x_pixel,
    num_outputs: tl.constexpr,
    num_channels: tl.constexpr,
    frame_pixels: tl.constexpr,
    first_end: tl.constexpr,
    second_end: tl.constexpr,
    first_step: tl.constexpr,
    precision: tl.constexpr,
    index_type: tl.constexpr,
    upcast: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    depth: tl.constexpr,
    num_steps: tl.constexpr,
):
    num_tiles_o: tl.constexpr = (num_outputs + rows - 1) // rows
    num_tiles_c: tl.constexpr = (num_channels + columns - 1) // columns
    program = tl.program_id(0)
    part = program // (num_tiles_o * num_tiles_c)
    tile = program % (num_tiles_o * num_tiles_c)
    o = (tile // num_tiles_c) * rows + tl.arange(0, rows)
    c = (tile % num_tiles_c) * columns + tl.arange(0, columns)
    o_inside = o < num_outputs
    c_inside = c < num_channels
    step = _frame_step(c, first_end, second_end, first_step)
    x_columns = step.to(index_type) * x_frame + c.to(index_type) * x_channel
    y_rows = o.to(index_type) * y_channel
    start = part.to(index_type) * (num_steps * depth)
    acc = tl.zeros((rows, columns), tl.float32)
    for i in range(0, num_steps):
        p = start + i * depth + tl.arange(0, depth)
        p_inside = p < num_pixels
        frame = p // frame_pixels
        pixel = p % frame_pixels
        source = (frame % num_segments).to(tl.int32)[:, None] + step[None, :]
        g = tl.load(
            grad_y_ptr + y_rows[:, None] + (frame * y_frame + pixel * y_pixel)[None, :],
            mask=o_inside[:, None] & p_inside[None, :],
            other=0,
        )
        x = tl.load(
            x_ptr + (frame * x_frame + pixel * x_pixel)[:, None] + x_columns[None, :],
            mask=p_inside[:, None] & c_inside[None, :] & (source >= 0) & (source < num_segments),
            other=0,
        )
        if upcast:
            g, x = g.to(tl.float32), x.to(tl.float32)
        acc = tl.dot(g, x, acc, input_precision=precision)
    tl.store(
        parts_ptr
        + part.to(tl.int64) * (num_outputs * num_channels)
        + (o[:, None] * num_channels + c[None, :]),
        acc,
        mask=o_inside[:, None] & c_inside[None, :],
    )


def ahead_of_time_cases() -> list[AheadOfTimeCase]:
    """All three products at sizes of ResNet-50 with 8 frames, in the shipped configurations."""
    return [
        _case(product, form, sizes, is_amd)
        for product, form, sizes in (
            ("forward", "float16", (64, 64, 56)),
            ("forward", "float16", (256, 64, 56)),
            ("forward", "float16", (1024, 512, 14)),
            ("forward", "bfloat16", (256, 128, 56)),
            ("forward", "float32", (256, 64, 56)),
            ("forward", "tf32", (256, 128, 56)),
            ("forward", "int8", (512, 128, 28)),
            ("grad_input", "float16", (256, 64, 56)),
            ("grad_input", "float32", (256, 64, 56)),
            ("grad_input", "tf32", (256, 64, 56)),
            ("grad_weight", "float16", (256, 64, 56)),
            ("grad_weight", "float32", (256, 64, 56)),
            ("grad_weight", "tf32", (256, 64, 56)),
        )
        for is_amd in (False, True)
    ]


def _case(product: str, form: str, sizes: tuple[int, int, int], is_amd: bool) -> AheadOfTimeCase:
    num_channels, num_outputs, side = sizes
    num_pixels = 8 * side * side
    fold = num_channels // 8
    element, element_bytes = _ELEMENTS[form]
    arithmetic = {
        "element_bytes": element_bytes,
        "tensor_cores": form != "float32",
        "is_amd": is_amd,
    }
    if product == "forward":
        tile = choose_tile(
            num_rows=num_outputs,
            num_columns=num_pixels,
            num_terms=num_channels,
            borders=(fold, 2 * fold),
            **arithmetic,
        )
        further = {
            "straddles": fold % tile.depth != 0,
            "activation": "relu",
            "has_bias": True,
            "sum_type": tl.int32 if form == "int8" else tl.float32,
        }
        result = "*i32" if form == "int8" else element
        tensors = {
            "x_ptr": element,
            "weight_ptr": element,
            "bias_ptr": result,
            "y_ptr": result,
        }
    elif product == "grad_input":
        tile = choose_tile(
            num_rows=num_channels,
            num_columns=num_pixels,
            num_terms=num_outputs,
            **arithmetic,
        )
        further = {}
        tensors = {"grad_y_ptr": element, "weight_ptr": element, "grad_x_ptr": element}
    else:
        tile, num_steps = choose_weight_tile(
            num_outputs=num_outputs,
            num_channels=num_channels,
            num_pixels=num_pixels,
            **arithmetic,
        )
        further = {"num_steps": num_steps}
        tensors = {"grad_y_ptr": element, "x_ptr": element, "parts_ptr": "*fp32"}
    strides = [f"{side}_{axis}" for side in ("x", "y") for axis in ("frame", "channel")]
    return AheadOfTimeCase(
        name=f"shift_conv1x1.{product}.{form}.{num_channels}-{num_outputs}@{side}",
        function=_PRODUCTS[product],
        signature={
            **tensors,
            **dict.fromkeys(["num_pixels", "num_segments", *strides], "i32"),
        },
        constexprs={
            "x_pixel": 1,
            "y_pixel": 1,
            "num_outputs": num_outputs,
            "num_channels": num_channels,
            "frame_pixels": side * side,
            "first_end": fold,
            "second_end": 2 * fold,
            "first_step": 1,
            "precision": "tf32" if form == "tf32" else "ieee",
            "index_type": tl.int32,
            "upcast": False,
            "rows": tile.rows,
            "columns": tile.columns,
            "depth": tile.depth,
            **further,
        },
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        divisible=("num_pixels", *strides) if side * side % 16 == 0 else ("num_pixels",),
        gpus=tuple(gpu for gpu in GPU_NAMES if gpu.startswith("gfx") == is_amd),
    )


_ELEMENTS = {
    "float32": ("*fp32", 4),
    "tf32": ("*fp32", 4),
    "float16": ("*fp16", 2),
    "bfloat16": ("*bf16", 2),
    "int8": ("*i8", 1),
}
_PRODUCTS = {
    "forward": forward_kernel,
    "grad_input": grad_input_kernel,
    "grad_weight": grad_weight_kernel,
}
