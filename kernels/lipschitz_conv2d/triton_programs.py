"""The programs of the quantized convolutions: what one block of threads does.

Told in `effdl.kernels.lipschitz_conv2d.triton_kernel`.
"""

import triton
import triton.language as tl

from effdl.kernels.triton_rounding import as_signed, requantize

__all__ = ["dense_kernel", "depthwise_kernel"]


@triton.jit
def dense_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    multiplier_ptr,
    y_ptr,
    num_pixels,
    height,
    width,
    x_image,
    x_row,
    x_column,
    x_channel,
    y_image,
    y_pixel,
    y_channel,
    x_zero_point,
    low,
    high,
    zero_point,
    num_channels: tl.constexpr,
    num_outputs: tl.constexpr,
    num_groups: tl.constexpr,
    kernel_height: tl.constexpr,
    kernel_width: tl.constexpr,
    stride_height: tl.constexpr,
    stride_width: tl.constexpr,
    pad_height: tl.constexpr,
    pad_width: tl.constexpr,
    image_pixels: tl.constexpr,
    image_width: tl.constexpr,
    mixes_taps: tl.constexpr,
    index_type: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    depth: tl.constexpr,
):
    num_taps: tl.constexpr = kernel_height * kernel_width
    num_terms: tl.constexpr = num_taps * num_channels
    channel_steps: tl.constexpr = (num_channels + depth - 1) // depth
    all_steps: tl.constexpr = (num_terms + depth - 1) // depth
    num_steps: tl.constexpr = all_steps if mixes_taps else num_taps * channel_steps
    num_tiles: tl.constexpr = (num_outputs + columns - 1) // columns
    program = tl.program_id(0)
    group = program % num_groups
    n = (program // num_groups % num_tiles) * columns + tl.arange(0, columns)
    p = (program // (num_groups * num_tiles)).to(index_type) * rows + tl.arange(0, rows)
    n_inside = n < num_outputs
    p_inside = p < num_pixels
    image = p // image_pixels
    pixel = p % image_pixels
    top = (pixel // image_width).to(tl.int32) * stride_height - pad_height
    left = (pixel % image_width).to(tl.int32) * stride_width - pad_width
    o = group * num_outputs + n
    x_base = x_ptr + group.to(index_type) * num_channels * x_channel
    x_rows = image * x_image
    acc = tl.zeros((rows, columns), tl.int32)
    for i in range(0, num_steps):
        if mixes_taps:
            k = i * depth + tl.arange(0, depth)
            k_inside = k < num_terms
            c = (k % num_channels)[None, :]
            tap = k // num_channels
            y_of = top[:, None] + (tap // kernel_width)[None, :]
            x_of = left[:, None] + (tap % kernel_width)[None, :]
        else:
            tap = i // channel_steps
            channel = (i - tap * channel_steps) * depth + tl.arange(0, depth)
            k = tap * num_channels + channel
            k_inside = channel < num_channels
            c = channel[None, :]
            y_of = (top + tap // kernel_width)[:, None]
            x_of = (left + tap % kernel_width)[:, None]
        inside = (y_of >= 0) & (y_of < height) & (x_of >= 0) & (x_of < width)
        offsets = y_of.to(index_type) * x_row + x_of.to(index_type) * x_column
        x = tl.load(
            x_base + x_rows[:, None] + offsets + c.to(index_type) * x_channel,
            mask=inside & p_inside[:, None] & k_inside[None, :],
            other=x_zero_point,
        )
        if x_ptr.dtype.element_ty == tl.uint8:
            x = as_signed(x)
        w = tl.load(
            weight_ptr + o.to(index_type)[None, :] * num_terms + k[:, None],
            mask=n_inside[None, :] & k_inside[:, None],
            other=0,
        )
        acc = tl.dot(x, w, acc, out_dtype=tl.int32)
    acc += tl.load(bias_ptr + o, mask=n_inside, other=0)[None, :]
    multiplier = tl.load(multiplier_ptr + o, mask=n_inside, other=0.0)[None, :]
    y = requantize(acc, multiplier, low, high, zero_point)
    tl.store(
        y_ptr
        + (image * y_image + pixel * y_pixel)[:, None]
        + o.to(index_type)[None, :] * y_channel,
        y.to(y_ptr.dtype.element_ty),
        mask=p_inside[:, None] & n_inside[None, :],
    )


@triton.jit
def depthwise_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    multiplier_ptr,
    y_ptr,
    num_pixels,
    height,
    width,
    x_image,
    x_row,
    x_column,
    x_channel,
    y_image,
    y_pixel,
    y_channel,
    x_zero_point,
    low,
    high,
    zero_point,
    num_outputs: tl.constexpr,
    num_each: tl.constexpr,
    kernel_height: tl.constexpr,
    kernel_width: tl.constexpr,
    stride_height: tl.constexpr,
    stride_width: tl.constexpr,
    pad_height: tl.constexpr,
    pad_width: tl.constexpr,
    image_pixels: tl.constexpr,
    image_width: tl.constexpr,
    index_type: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    num_taps: tl.constexpr = kernel_height * kernel_width
    num_tiles: tl.constexpr = (num_outputs + columns - 1) // columns
    program = tl.program_id(0)
    o = (program % num_tiles) * columns + tl.arange(0, columns)
    p = (program // num_tiles).to(index_type) * rows + tl.arange(0, rows)
    o_inside = o < num_outputs
    p_inside = p < num_pixels
    image = p // image_pixels
    pixel = p % image_pixels
    top = (pixel // image_width).to(tl.int32) * stride_height - pad_height
    left = (pixel % image_width).to(tl.int32) * stride_width - pad_width
    x_columns = (o // num_each).to(index_type) * x_channel
    stored = p_inside[:, None] & o_inside[None, :]
    acc = tl.zeros((rows, columns), tl.int32)
    for tap in range(0, num_taps):
        tap_row = tap // kernel_width
        y_of = top + tap_row
        x_of = left + (tap - tap_row * kernel_width)
        inside = (y_of >= 0) & (y_of < height) & (x_of >= 0) & (x_of < width)
        offsets = image * x_image + y_of.to(index_type) * x_row + x_of.to(index_type) * x_column
        x = tl.load(
            x_ptr + offsets[:, None] + x_columns[None, :],
            mask=inside[:, None] & stored,
            other=x_zero_point,
        )
        w = tl.load(weight_ptr + o * num_taps + tap, mask=o_inside, other=0)
        acc += (x.to(tl.int32) - x_zero_point) * w.to(tl.int32)[None, :]
    acc += tl.load(bias_ptr + o, mask=o_inside, other=0)[None, :]
    multiplier = tl.load(multiplier_ptr + o, mask=o_inside, other=0.0)[None, :]
    y = requantize(acc, multiplier, low, high, zero_point)
    tl.store(
        y_ptr
        + (image * y_image + pixel * y_pixel)[:, None]
        + o.to(index_type)[None, :] * y_channel,
        y.to(y_ptr.dtype.element_ty),
        mask=stored,
    )
