"""The programs of the quantized linear layers: what one block of threads does.

Told in `effdl.kernels.lipschitz_linear.triton_kernel`.
"""

import triton
import triton.language as tl

from effdl.kernels.triton_rounding import as_signed, requantize

__all__ = ["quantized_linear_kernel", "scaled_linear_kernel"]


@triton.jit
def _load_weights(
    weight_ptr,
    n,
    begin,
    num_outputs,
    num_terms: tl.constexpr,
    packed: tl.constexpr,
    index_type: tl.constexpr,
    depth: tl.constexpr,
):
    """[depth, columns] of the weight, bytes or 4 bits taken apart; 0 outside."""
    if packed:
        row_bytes: tl.constexpr = (num_terms + 1) // 2
        k = begin // 2 + tl.arange(0, depth // 2)
        pair = tl.load(
            weight_ptr + n.to(index_type)[:, None] * row_bytes + k[None, :],
            mask=(n < num_outputs)[:, None] & (k < row_bytes)[None, :],
            other=0,
        ).to(tl.int8, bitcast=True)
        weights = tl.trans(tl.interleave((pair << 4) >> 4, pair >> 4))
    else:
        k = begin + tl.arange(0, depth)
        zero = 0.0 if weight_ptr.dtype.element_ty.is_floating() else 0
        weights = tl.load(
            weight_ptr + n.to(index_type)[None, :] * num_terms + k[:, None],
            mask=(n < num_outputs)[None, :] & (k < num_terms)[:, None],
            other=zero,
        )
    return weights


@triton.jit
def quantized_linear_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    multiplier_ptr,
    y_ptr,
    num_rows,
    num_outputs,
    x_row,
    low,
    high,
    zero_point,
    num_terms: tl.constexpr,
    packed: tl.constexpr,
    index_type: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    depth: tl.constexpr,
):
    num_tiles = tl.cdiv(num_outputs, columns)
    m = (tl.program_id(0) // num_tiles) * rows + tl.arange(0, rows)
    n = (tl.program_id(0) % num_tiles) * columns + tl.arange(0, columns)
    acc = tl.zeros((rows, columns), tl.int32)
    for begin in range(0, num_terms, depth):
        k = begin + tl.arange(0, depth)
        x = tl.load(
            x_ptr + m.to(index_type)[:, None] * x_row + k[None, :],
            mask=(m < num_rows)[:, None] & (k < num_terms)[None, :],
            other=0,
        )
        if x_ptr.dtype.element_ty == tl.uint8:
            x = as_signed(x)
        w = _load_weights(weight_ptr, n, begin, num_outputs, num_terms, packed, index_type, depth)
        acc = tl.dot(x, w, acc, out_dtype=tl.int32)
    n_inside = n < num_outputs
    acc += tl.load(bias_ptr + n, mask=n_inside, other=0)[None, :]
    multiplier = tl.load(multiplier_ptr + n, mask=n_inside, other=0.0)[None, :]
    y = requantize(acc, multiplier, low, high, zero_point)
    tl.store(
        y_ptr + m.to(index_type)[:, None] * num_outputs + n[None, :],
        y.to(y_ptr.dtype.element_ty),
        mask=(m < num_rows)[:, None] & n_inside[None, :],
    )


@triton.jit
def scaled_linear_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    scale_ptr,
    y_ptr,
    num_rows,
    num_outputs,
    x_row,
    num_terms: tl.constexpr,
    packed: tl.constexpr,
    num_groups: tl.constexpr,
    has_bias: tl.constexpr,
    upcast: tl.constexpr,
    index_type: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    depth: tl.constexpr,
):
    num_tiles = tl.cdiv(num_outputs, columns)
    m = (tl.program_id(0) // num_tiles) * rows + tl.arange(0, rows)
    n = (tl.program_id(0) % num_tiles) * columns + tl.arange(0, columns)
    n_inside = n < num_outputs
    acc = tl.zeros((rows, columns), tl.float32)
    for begin in range(0, num_terms, depth):
        k = begin + tl.arange(0, depth)
        x = tl.load(
            x_ptr + m.to(index_type)[:, None] * x_row + k[None, :],
            mask=(m < num_rows)[:, None] & (k < num_terms)[None, :],
            other=0.0,
        )
        w = _load_weights(weight_ptr, n, begin, num_outputs, num_terms, packed, index_type, depth)
        if upcast:
            x, w = x.to(tl.float32), w.to(tl.float32)
        elif packed:
            w = w.to(x.dtype)
        if num_groups == 1:
            acc = tl.dot(x, w, acc, input_precision="ieee")
        else:
            group = begin // (num_terms // num_groups)
            scale = tl.load(scale_ptr + n * num_groups + group, mask=n_inside, other=0.0)
            acc += tl.dot(x, w, input_precision="ieee") * scale[None, :]
    if num_groups == 1:
        acc *= tl.load(scale_ptr + n, mask=n_inside, other=0.0)[None, :]
    if has_bias:
        acc += tl.load(bias_ptr + n, mask=n_inside, other=0.0).to(tl.float32)[None, :]
    tl.store(
        y_ptr + m.to(index_type)[:, None] * num_outputs + n[None, :],
        acc.to(y_ptr.dtype.element_ty),
        mask=(m < num_rows)[:, None] & n_inside[None, :],
    )
