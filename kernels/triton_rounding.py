"""Rounding in Triton that gives equal bits on every GPU and in the interpreter.

Only correctly rounded float32 operations are used. Between the multiplication and the
addition stands a clip, so that no compiler can fuse the two into one rounding.
"""

import triton
import triton.language as tl

__all__ = ["as_signed", "requantize", "round_half_even"]


@triton.jit
def round_half_even(x):
    """The nearest integer, ties to even: exact for float32 below 2**22 in magnitude.

    Adding 1.5 * 2**23 leaves no bits for the fraction; the hardware rounds it away.
    """
    return (x + 12582912.0) - 12582912.0


@triton.jit
def requantize(accumulator, multiplier, low, high, zero_point):
    """``clip(round(accumulator * multiplier) + zero_point, y_min, y_max)``, as int32.

    ``low`` and ``high`` are y_min and y_max less the zero point; all three are integers in
    float32. With integer bounds, clipping first gives the same and keeps the rounding exact.
    """
    scaled = accumulator.to(tl.float32) * multiplier
    clipped = tl.minimum(tl.maximum(scaled, low), high)
    return (round_half_even(clipped) + zero_point).to(tl.int32)


@triton.jit
def as_signed(x):
    """Unsigned bytes less 128, as signed ones: Triton multiplies no unsigned bytes."""
    return (x ^ 128).to(tl.int8, bitcast=True)
