"""What every image network asks of its input."""

from torch import Tensor

from effdl.errors import ConfigError

__all__ = ["check_images"]


def check_images(x: Tensor, in_channels: int = 3) -> None:
    """The tensor is [batch, in_channels, height, width].

    Raises:
        ConfigError: Another rank, or another number of channels.
    """
    if x.dim() != 4 or x.shape[1] != in_channels:
        raise ConfigError(
            f"images do not fit the network: wanted [batch, {in_channels}, height, width], "
            f"got {list(x.shape)}"
        )
