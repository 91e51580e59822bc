"""Photos as inputs of an image network: to calibrate it, and to compare two forms of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from effdl.errors import ConfigError, CorruptFileError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = ["crop_randomly", "find_images", "read_centers"]

_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})
# Of the photo's shorter side, as networks for ImageNet are evaluated: 224 of 256.
_CENTER_SHARE = 0.875
_SMALLEST_AREA, _LARGEST_ASPECT = 0.25, 4 / 3
# Of ImageNet, red, green and blue; what the networks here were trained with.
_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
_STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)


def find_images(folder: Path, *, max_num: int) -> tuple[Path, ...]:
    """Photos in a folder and those below it, evenly spread over their names.

    Args:
        folder: Where to look.
        max_num: How many at most.

    Raises:
        ConfigError: There is no such folder, or no photo in it.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} wanted a folder of images, got no such folder")
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
    if not found:
        raise ConfigError(
            f"{folder} wanted images ({', '.join(sorted(_SUFFIXES))}), got none",
            hint="name a folder with photos such as the network will see",
        )
    if len(found) <= max_num:
        return tuple(found)
    return tuple(found[i] for i in np.linspace(0, len(found) - 1, max_num).round().astype(int))


def read_centers(paths: Sequence[Path], resolution: int) -> NDArray[np.float32]:
    """The middle of each photo [N, 3, resolution, resolution], normalised as for ImageNet.

    Raises:
        CorruptFileError: A file is no image.
    """
    made = []
    for path in paths:
        image = _open(path)
        width, height = image.size
        side = _CENTER_SHARE * min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        made.append(_sample(image, (left, top, left + side, top + side), resolution))
    return np.stack(made)


def crop_randomly(
    paths: Sequence[Path], resolution: int, *, num: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Random parts of the photos in turn, half of them mirrored.

    Args:
        paths: The photos.
        resolution: Height and width of the result in pixels.
        num: How many.
        rng: Chooses the parts: a quarter of the photo or more, at most a third wider than
            high or higher than wide.

    Returns:
        [num, 3, resolution, resolution], normalised as for ImageNet.

    Raises:
        CorruptFileError: A file is no image.
    """
    made = []
    for i in range(num):
        image = _open(paths[i % len(paths)])
        width, height = image.size
        area = rng.uniform(_SMALLEST_AREA, 1.0) * width * height
        aspect = _LARGEST_ASPECT ** rng.uniform(-1.0, 1.0)
        wide, high = min(width, (area * aspect) ** 0.5), min(height, (area / aspect) ** 0.5)
        left, top = rng.uniform(0, width - wide), rng.uniform(0, height - high)
        sample = _sample(image, (left, top, left + wide, top + high), resolution)
        made.append(sample[:, :, ::-1] if rng.integers(2) else sample)
    return np.stack(made)


def _open(path: Path) -> "Picture":
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise CorruptFileError(f"{path} is not an image that can be read: {error}") from error


def _sample(image, box: tuple[float, float, float, float], resolution: int) -> NDArray[np.float32]:
    from PIL import Image

    small = image.resize((resolution, resolution), Image.Resampling.BILINEAR, box=box)
    pixels = np.asarray(small, dtype=np.float32) / 255
    return np.ascontiguousarray(((pixels - _MEAN) / _STD).transpose(2, 0, 1), dtype=np.float32)
