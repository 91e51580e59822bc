"""First weights of a network, drawn from one NumPy generator.

NumPy's streams are the same on every machine; PyTorch's depend on the vector
width of the processor.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["calibrate_batch_norm", "initialize_he_fan_out"]


def _fill_uniform(weight: Tensor, bound: float, rng: np.random.Generator) -> None:
    values = weight.detach().numpy()
    rng.random(dtype=np.float32, out=values)
    values -= np.float32(0.5)
    values *= np.float32(2.0 * bound)


def initialize_he_fan_out(module: nn.Module, rng: np.random.Generator) -> None:
    """Draw every convolution and linear weight of a module on the CPU, in place.

    A convolution's weight is uniform with variance 2 / (kernel area * output
    channels) (He et al. 2015 in fan-out mode, the channels not divided by the
    groups), a linear weight uniform within 1 / sqrt(input features); biases
    are 0. Batch norms keep what they were built with: scale 1, shift 0.

    Args:
        module: Float32 module on the CPU; its submodules are visited in order.
        rng: Source of every draw.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.out_channels * math.prod(layer.kernel_size)
            _fill_uniform(layer.weight, math.sqrt(6.0 / fan_out), rng)
        elif isinstance(layer, nn.Linear):
            _fill_uniform(layer.weight, 1.0 / math.sqrt(layer.in_features), rng)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def calibrate_batch_norm(network: nn.Module, in_channels: int, rng: np.random.Generator) -> None:
    """Give an untrained network running statistics that keep its activations in scale.

    One batch of made images (patches, a tint and noise) passes through; each
    batch norm takes its channels' means and, for every channel, the mean of its
    channels' variances. A channel that happens to be nearly constant on these
    images would otherwise be amplified without bound on others. Leaves the
    network in evaluation mode.

    Args:
        network: Takes images [batch, in_channels, height, width] on the CPU.
        in_channels: Channels of its images.
        rng: Source of the images.
    """
    patches = rng.standard_normal((8, in_channels, 4, 4), dtype=np.float32)
    images = patches.repeat(24, axis=2).repeat(24, axis=3)
    images += rng.standard_normal((8, in_channels, 1, 1), dtype=np.float32)
    images += np.float32(0.3) * rng.standard_normal(images.shape, dtype=np.float32)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(_take_statistics) for norm in norms]
    network.eval()
    with torch.no_grad():
        network(torch.from_numpy(images))
    for hook in hooks:
        hook.remove()


def _take_statistics(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3))
    norm.running_mean.copy_(mean)
    norm.running_var.fill_(variance.mean())
