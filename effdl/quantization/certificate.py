"""An attack on a certificate: looking for two inputs that a network pulls apart too far."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from effdl.errors import ConfigError

__all__ = ["LargestStretch", "attack_certificate"]

_EXPONENTS = (-3.0, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LargestStretch:
    """The worst that was found.

    Attributes:
        by_pairs: Largest (||f(x) - f(x')|| - 2 * rounding_error) / ||x - x'|| over random pairs.
        by_ascent: The same after gradient ascent on the pairs.
    """

    by_pairs: float
    by_ascent: float


def attack_certificate(
    module: nn.Module,
    inputs: Tensor,
    *,
    rounding_error: float = 0.0,
    num_pairs: int = 1000,
    num_ascents: int = 16,
    num_steps: int = 100,
    seed: int = 0,
) -> LargestStretch:
    """Try to exceed a network's Lipschitz bound.

    Random pairs lie at distances of 0.001 to 10 root-mean-squares of the inputs. The
    worst of them then climb along the gradient of the logarithm of their stretch.

    Args:
        module: In evaluation mode, on floating point inputs.
        inputs: [N, ...], where pairs start.
        rounding_error: Of the certificate: what rounding may add on each side.
        num_pairs: Random pairs.
        num_ascents: Pairs that climb.
        num_steps: Steps of each.
        seed: Of the pairs.

    Raises:
        ConfigError: The network is in training, or there are no inputs.
    """
    if module.training:
        raise ConfigError("an attack wanted a network in evaluation mode, got one in training")
    if not len(inputs):
        raise ConfigError("inputs: wanted at least one, got none")
    generator = torch.Generator().manual_seed(seed)
    x = inputs[torch.randint(len(inputs), (num_pairs,), generator=generator)]
    noise = torch.randn(x.shape, generator=generator).to(x)
    low, high = _EXPONENTS
    sizes = 10 ** (low + (high - low) * torch.rand(num_pairs, generator=generator))
    size = inputs.square().mean().sqrt().clamp_min(1e-6)
    noise = noise * (size * sizes.to(x)).reshape(-1, *[1] * (x.ndim - 1))
    with torch.no_grad():
        stretch = torch.cat(
            [
                _stretch(module, a, a + b, rounding_error)
                for a, b in zip(x.split(64), noise.split(64), strict=True)
            ]
        )
    worst = stretch.topk(min(num_ascents, num_pairs)).indices
    best = _climb(module, x[worst], noise[worst], rounding_error, num_steps)
    by_pairs = float(stretch.max())
    return LargestStretch(by_pairs=by_pairs, by_ascent=max(best, by_pairs))


def _stretch(module: nn.Module, a: Tensor, b: Tensor, rounding_error: float) -> Tensor:
    """[N], in double precision from the outputs on."""
    moved = (module(a).double() - module(b).double()).flatten(1).norm(dim=1)
    return (moved - 2 * rounding_error) / (a.double() - b.double()).flatten(1).norm(dim=1)


def _climb(
    module: nn.Module, x: Tensor, noise: Tensor, rounding_error: float, num_steps: int
) -> float:
    start = x.clone().requires_grad_()
    # Of length one and a size apart, so that neither shrinks to where numbers round.
    lengths = noise.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1))
    way = (noise / lengths).requires_grad_()
    optimizer = torch.optim.Adam([start, way], lr=0.02)
    best = -float("inf")
    for _ in range(num_steps):
        unit = way / way.flatten(1).norm(dim=1).reshape(lengths.shape)
        other = start + unit * lengths
        moved = (module(start) - module(other)).flatten(1).norm(dim=1)
        with torch.no_grad():
            best = max(best, float(_stretch(module, start, other, rounding_error).max()))
        loss = -(moved + 1e-12).log().sum()
        start.grad, way.grad = torch.autograd.grad(loss, [start, way])
        optimizer.step()
    return best
