"""Images between planes, [C][H][W], and words of four channels, [C/4][H][W][4].

Both run under an ``IRBuilder``, in the body of a function. An image without a border is
one long row; its buffer is indexed beyond its width for that.
"""

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from effdl.kernels.lipschitz_conv2d.dense_shape import CACHE_LINE_BYTES, DenseShape

__all__ = ["emit_to_planes", "emit_to_words"]


def emit_to_words(shape: DenseShape, x: Any, limits: Any, words: Any, num_images: Any) -> None:
    """[N, C, H, W] to words with a border of zero points.

    What a word holds beyond C is not set; weights are zero there.

    Args:
        shape: Of the convolution.
        x: uint8, [N, C, H, W].
        limits: Of `effdl.kernels.tvm_panels.limits_tensor`.
        words: uint8, flat.
        num_images: N.
    """
    num_words, plane_bytes = shape.input_words, shape.plane_bytes
    columns, (top, left) = shape.padded[1], shape.padding
    height, width = (
        (shape.height, shape.width) if shape.is_bordered else (1, shape.height * shape.width)
    )
    vector = _vector_width(width)

    def emit_row(image: Any, plane: Any, row: Any, present: int) -> None:
        with T.serial(-(-width // vector)) as i:
            start = T.bind(T.min(i * vector, width - vector))
            word: Any = None
            for channel in range(present):
                byte = x[image, plane * 4 + channel, row, _neighbours(start, vector)]
                wide = T.cast(byte, _dtype("int32", vector))
                shifted = T.shift_left(wide, _each(T.int32(8 * channel), vector))
                word = wide if word is None else T.bitwise_or(word, shifted)
            pixel = (row + top) * columns + left + start
            offset = image * shape.x_words_bytes + plane * plane_bytes + 4 * pixel
            value = T.reinterpret(word, dtype=f"uint8x{4 * vector}")
            T.buffer_store(words, value, [T.ramp(offset, 1, 4 * vector)])

    with T.parallel(num_images * num_words) as task:
        image, plane = task // num_words, task % num_words
        if shape.is_bordered:
            zero_points = T.broadcast(T.cast(limits[3], "uint8"), CACHE_LINE_BYTES)
            with T.serial(plane_bytes // CACHE_LINE_BYTES) as line:
                offset = task * plane_bytes + line * CACHE_LINE_BYTES
                T.buffer_store(words, zero_points, [T.ramp(offset, 1, CACHE_LINE_BYTES)])
        with T.serial(height) as row:
            _for_present(
                shape.num_inputs, plane, lambda present: emit_row(image, plane, row, present)
            )


def emit_to_planes(shape: DenseShape, words: Any, y: Any, num_images: Any) -> None:
    """Words of the result to [N, O, output height, output width].

    Args:
        shape: Of the convolution.
        words: uint8, flat.
        y: uint8, [N, O, output height, output width].
        num_images: N.
    """
    num_words, num_pixels = shape.output_words, shape.num_pixels
    vector = _vector_width(num_pixels)

    def emit_plane(image: Any, plane: Any, present: int) -> None:
        with T.serial(-(-num_pixels // vector)) as i:
            start = T.bind(T.min(i * vector, num_pixels - vector))
            offset = image * shape.y_words_bytes + 4 * (plane * num_pixels + start)
            bytes_ = words[T.ramp(offset, 1, 4 * vector)]
            word = T.bind(T.reinterpret(bytes_, dtype=_dtype("int32", vector)))
            for channel in range(present):
                shifted = T.shift_right(word, _each(T.int32(8 * channel), vector))
                low = T.bitwise_and(shifted, _each(T.int32(255), vector))
                place = [image, plane * 4 + channel, 0, _neighbours(start, vector)]
                T.buffer_store(y, T.cast(low, _dtype("uint8", vector)), place)

    with T.parallel(num_images * num_words) as task:
        image, plane = task // num_words, task % num_words
        _for_present(shape.num_outputs, plane, lambda present: emit_plane(image, plane, present))


def _for_present(num_channels: int, plane: Any, emit: Callable[[int], None]) -> None:
    """``emit`` with the number of channels that a plane of words holds."""
    if num_channels % 4 == 0:
        emit(4)
        return
    with T.If(plane < num_channels // 4):
        with T.Then():
            emit(4)
        with T.Else():
            emit(num_channels % 4)


def _vector_width(size: int) -> int:
    return next(width for width in (16, 8, 4, 2, 1) if width <= size)


def _neighbours(start: Any, num: int) -> Any:
    return T.ramp(start, 1, num) if num > 1 else start


def _each(value: Any, num: int) -> Any:
    return T.broadcast(value, num) if num > 1 else value


def _dtype(name: str, num: int) -> str:
    return f"{name}x{num}" if num > 1 else name
