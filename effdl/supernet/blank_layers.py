"""Layers whose weights are allocated and left alone.

A network fills all of its weights at once (`effdl.supernet.initialization`, a
checkpoint, or slices of a supernet); what the layers would have drawn for
themselves before that would be thrown away, and drawing is nearly all that
building a network costs.
"""

from torch import nn

__all__ = ["BlankConv2d", "BlankLinear"]


class BlankConv2d(nn.Conv2d):
    """A `torch.nn.Conv2d` whose weight and bias are uninitialised memory."""

    def reset_parameters(self) -> None:
        """Leave the memory as it is."""


class BlankLinear(nn.Linear):
    """A `torch.nn.Linear` whose weight and bias are uninitialised memory."""

    def reset_parameters(self) -> None:
        """Leave the memory as it is."""
