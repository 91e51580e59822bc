"""The sizes of a convolution without groups, and how its image lies in words."""

from dataclasses import dataclass

__all__ = ["CACHE_LINE_BYTES", "DenseShape"]

CACHE_LINE_BYTES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseShape:
    """A convolution without groups, but for the batch.

    Attributes:
        num_inputs: C.
        num_outputs: O.
        height: Of the image, in pixels.
        width: Of the image, in pixels.
        kernel: Rows and columns of the weights.
        stride: Vertical and horizontal.
        padding: Above and below, left and right.
    """

    num_inputs: int
    num_outputs: int
    height: int
    width: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    @property
    def input_words(self) -> int:
        """Words of four channels in a pixel of the image."""
        return -(-self.num_inputs // 4)

    @property
    def output_words(self) -> int:
        """Words of four channels in a pixel of the result."""
        return -(-self.num_outputs // 4)

    @property
    def is_bordered(self) -> bool:
        """Whether the image has a border."""
        return self.padding != (0, 0)

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width of the image with its border."""
        return self.height + 2 * self.padding[0], self.width + 2 * self.padding[1]

    @property
    def output(self) -> tuple[int, int]:
        """Height and width of the result."""
        rows, columns = (
            (size - kernel) // stride + 1
            for size, kernel, stride in zip(self.padded, self.kernel, self.stride, strict=True)
        )
        return rows, columns

    @property
    def num_pixels(self) -> int:
        """Of one plane of the result."""
        return self.output[0] * self.output[1]

    @property
    def plane_bytes(self) -> int:
        """From one word of a pixel to the next.

        With a border it is an odd number of cache lines: planes a power of two apart
        would fight for the same lines of the cache.
        """
        rows, columns = self.padded
        num_bytes = 4 * rows * columns
        if not self.is_bordered:
            return num_bytes
        num_lines = -(-num_bytes // CACHE_LINE_BYTES)
        return (num_lines + (num_lines + 1) % 2) * CACHE_LINE_BYTES

    @property
    def x_words_bytes(self) -> int:
        """Of one image in words, with its border."""
        return self.input_words * self.plane_bytes

    @property
    def y_words_bytes(self) -> int:
        """Of one result in words."""
        return self.output_words * self.num_pixels * 4
