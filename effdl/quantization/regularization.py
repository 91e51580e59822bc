"""The defensive-quantization regulariser of a whole network."""

from collections import defaultdict

from torch import Tensor, nn

from effdl.errors import ConfigError, UnknownNameError
from effdl.kernels.lipschitz_conv2d.module import LipschitzConv2d, Norm
from effdl.kernels.lipschitz_linear.module import LipschitzLinear
from effdl.kernels.spectral_conv import ConvGeometry
from effdl.kernels.spectral_penalty import conv_orthogonality_penalty, orthogonality_penalty

__all__ = ["defensive_quantization_loss"]


def defensive_quantization_loss(
    module: nn.Module, *, beta: float, norm: Norm = "reshaped"
) -> Tensor:
    """beta / 2 * the sum over layers of ||W^T W - I||^2.

    ``norm="reshaped"`` is the published form, on weights reshaped to matrices: it leaves
    a 3x3 convolution with a norm of up to about 1.9. ``norm="operator"`` takes the
    convolutions as they are applied. Layers of equal shape are computed together, and of
    the two Gram matrices the smaller is taken, which changes the loss by a constant.

    Source: Defensive Quantization (Lin, Gan and Han, ICLR 2019, arXiv:1904.08444).

    Args:
        module: Its Linear and Conv2d layers count, also the Lipschitz-constrained ones.
        beta: Weight of the loss.
        norm: What W is of a convolution.

    Returns:
        The loss, [].

    Raises:
        ConfigError: There is no such layer.
        UnknownNameError: There is no such norm.
    """
    if norm not in ("operator", "reshaped"):
        raise UnknownNameError("norm", norm, ("operator", "reshaped"))
    matrices: list[Tensor] = []
    convolutions: defaultdict[tuple[tuple[int, ...], ConvGeometry], list[Tensor]]
    convolutions = defaultdict(list)
    for layer in module.modules():
        if isinstance(layer, nn.Linear | LipschitzLinear):
            matrices.append(layer.weight)
        elif isinstance(layer, nn.Conv2d | LipschitzConv2d):
            geometry = _geometry(layer)
            is_matrix = layer.weight.shape[2:] == (1, 1) and geometry.groups == 1
            if norm == "reshaped" or is_matrix:
                matrices.append(layer.weight)
            else:
                convolutions[tuple(layer.weight.shape), geometry].append(layer.weight)
    if not matrices and not convolutions:
        raise ConfigError(f"{type(module).__name__}: wanted a Linear or Conv2d layer, got none")
    terms = [
        conv_orthogonality_penalty(weights, geometry, beta=beta)
        for (_, geometry), weights in convolutions.items()
    ]
    if matrices:
        terms.append(orthogonality_penalty(matrices, beta=beta))
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _geometry(layer: nn.Conv2d | LipschitzConv2d) -> ConvGeometry:
    if isinstance(layer, LipschitzConv2d):
        return layer.geometry
    (sh, sw), (dh, dw) = layer.stride, layer.dilation
    return ConvGeometry(stride=(sh, sw), dilation=(dh, dw), groups=layer.groups)
