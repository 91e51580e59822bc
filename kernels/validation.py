"""One clear error for a wrong tensor, before any kernel is launched."""

from collections.abc import Sequence

import torch

from effdl.errors import ConfigError

__all__ = ["check_devices", "check_dtype", "check_rank", "check_shape", "format_shape"]


def format_shape(shape: Sequence[int | str]) -> str:
    """``[8, 64, 56, 56]``."""
    return f"[{', '.join(map(str, shape))}]"


def check_rank(name: str, tensor: torch.Tensor, axes: Sequence[str]) -> None:
    """The tensor has these axes.

    Args:
        name: What the caller calls it.
        tensor: Any.
        axes: Their names, such as ``("N*T", "C", "H", "W")``.

    Raises:
        ConfigError: It has another number of axes.
    """
    if tensor.ndim != len(axes):
        raise ConfigError(
            f"{name}: wanted {len(axes)} axes {format_shape(axes)}, "
            f"got shape {format_shape(tensor.shape)}"
        )


def check_shape(name: str, tensor: torch.Tensor, wanted: Sequence[int]) -> None:
    """The tensor has exactly this shape.

    Raises:
        ConfigError: It has another.
    """
    if tuple(tensor.shape) != tuple(wanted):
        raise ConfigError(
            f"{name}: wanted shape {format_shape(wanted)}, got {format_shape(tensor.shape)}"
        )


def check_dtype(name: str, tensor: torch.Tensor, wanted: Sequence[torch.dtype]) -> None:
    """The tensor's numbers are in one of these formats.

    Raises:
        ConfigError: They are in another.
    """
    if tensor.dtype not in wanted:
        raise ConfigError(f"{name}: wanted {' or '.join(map(str, wanted))}, got {tensor.dtype}")


def check_devices(**tensors: torch.Tensor | None) -> torch.device:
    """All given tensors lie on one device, which is returned.

    Raises:
        ConfigError: They do not.
    """
    devices = {name: t.device for name, t in tensors.items() if t is not None}
    if len(set(devices.values())) != 1:
        got = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ConfigError(f"wanted all tensors on one device, got {got}")
    return next(iter(devices.values()))
