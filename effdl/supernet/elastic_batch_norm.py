"""Batch norm over the leading channels of a wider one."""

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ElasticBatchNorm2d"]


class ElasticBatchNorm2d(nn.Module):
    """Batch norm whose scale, shift and statistics are sliced to the input's width.

    In training it normalises by the batch's own statistics and moves the
    running ones of the channels it used, as Once-for-All does. Those running
    statistics mix every width that was trained, so a sub-network needs its own
    before it is used.

    Args:
        max_features: Most channels.
    """

    def __init__(self, max_features: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(max_features)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, h, w] to the same shape."""
        bn, width = self.bn, x.shape[1]
        if width == bn.num_features:
            return bn(x)
        if bn.running_mean is None or bn.running_var is None or bn.num_batches_tracked is None:
            raise TypeError("an elastic batch norm tracks running statistics")
        momentum = 0.0
        if bn.training:
            bn.num_batches_tracked.add_(1)
            momentum = bn.momentum
            if momentum is None:
                momentum = 1.0 / float(bn.num_batches_tracked)
        return F.batch_norm(
            x,
            bn.running_mean[:width],
            bn.running_var[:width],
            bn.weight[:width],
            bn.bias[:width],
            bn.training,
            momentum,
            bn.eps,
        )

    def slices(self, features: int) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors of the plain batch norm that it stands for."""
        for name, tensor in self.bn.state_dict(keep_vars=True).items():
            yield name, tensor[:features] if tensor.ndim else tensor
