"""The search spaces by name."""

from collections.abc import Callable, Mapping

from effdl.errors import UnknownNameError
from effdl.models.mobilenet_v3.space import MobileNetV3Space, ofa_mbv3_w10, ofa_mbv3_w12

__all__ = ["DEFAULT_SPACE", "SPACES", "load_space"]

DEFAULT_SPACE = "ofa-mbv3-w1.2"

SPACES: Mapping[str, Callable[[], MobileNetV3Space]] = {
    "ofa-mbv3-w1.0": ofa_mbv3_w10,
    "ofa-mbv3-w1.2": ofa_mbv3_w12,
}


def load_space(name: str) -> MobileNetV3Space:
    """The search space called ``name``.

    Raises:
        UnknownNameError: No space has that name.
    """
    if name not in SPACES:
        raise UnknownNameError("space", name, SPACES)
    return SPACES[name]()
