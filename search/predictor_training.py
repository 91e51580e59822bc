"""Trains the networks of an accuracy predictor, in PyTorch.

A ridge regression first takes the linear part, which is most of an accuracy;
the networks learn what remains. `fit_pairs` learns from a fixed, small set of
measured pairs and averages several small networks. `search.predictor_distillation`
learns from another predictor, which can be asked for any number of pairs.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from effdl.search.predictor_file import Network

__all__ = ["LinearPart", "PairSettings", "fit_pairs", "layer_shapes", "reproducible", "to_network"]

Float32Array = NDArray[np.float32]
Report = Callable[[int, int], None]
"""Called with the steps done and the steps there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSettings:
    """How `fit_pairs` trains.

    Attributes:
        hidden_sizes: Widths of the hidden layers.
        num_networks: Networks that are averaged.
        num_steps: Steps of AdamW, each over all pairs.
        learning_rate: At the start; it falls linearly to 0.
        weight_decay: Of AdamW.
        ridge: Penalty of the linear part.
    """

    hidden_sizes: tuple[int, ...] = (32, 32)
    num_networks: int = 4
    num_steps: int = 300
    learning_rate: float = 5e-3
    weight_decay: float = 1.0
    ridge: float = 100.0


@contextmanager
def reproducible(seed: int, *, num_threads: int) -> Iterator[torch.Generator]:
    """A seeded generator; inside, equal seeds give equal bytes on one machine."""
    before = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    precision = torch.get_float32_matmul_precision()
    torch.set_num_threads(num_threads)
    torch.use_deterministic_algorithms(True)
    try:
        yield torch.Generator().manual_seed(seed)
    finally:
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(deterministic)
        torch.set_float32_matmul_precision(precision)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearPart:
    """A ridge regression, and what it leaves over in units of its own deviation.

    Attributes:
        center: Mean inputs [inputs].
        slope: Per input [inputs].
        mean: Target at the mean inputs.
        scale: Standard deviation of what is left over.
    """

    center: Tensor
    slope: Tensor
    mean: float
    scale: float

    @classmethod
    def fit(cls, inputs: Tensor, targets: Tensor, *, ridge: float) -> "LinearPart":
        """Of targets [N] over inputs [N, inputs]; float64 throughout."""
        x, y = inputs.double(), targets.double()
        center, mean = x.mean(0), y.mean()
        centered = x - center
        gram = centered.T @ centered + ridge * torch.eye(x.shape[1], dtype=torch.float64)
        slope = torch.linalg.solve(gram, centered.T @ (y - mean))
        rest = y - mean - centered @ slope
        # Targets that a line fits exactly leave nothing to learn, but a scale all the same.
        scale = max(float(rest.std()), 1e-6 * max(float(y.std()), 1e-6))
        return cls(center=center.float(), slope=slope.float(), mean=float(mean), scale=scale)

    def rest(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """What is left to learn [N], with about unit deviation."""
        return (targets - self.mean - (inputs - self.center) @ self.slope) / self.scale


def layer_shapes(num_inputs: int, hidden_sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Units read and outputs of every layer of a `Network`, the last one with one output."""
    read = [num_inputs, *accumulate(hidden_sizes)]
    return list(zip(read, (*hidden_sizes, 1), strict=True))


def to_network(weights: Sequence[Tensor], biases: Sequence[Tensor], line: LinearPart) -> Network:
    """The network over plain inputs, from layers over centred inputs that learned `rest`."""
    w = [weight.detach().double().numpy() for weight in weights]
    b = [bias.detach().double().numpy() for bias in biases]
    center, slope = line.center.double().numpy(), line.slope.double().numpy()
    b[0] = b[0] - center @ w[0]
    w[-1], b[-1] = w[-1] * line.scale, b[-1] * line.scale + line.mean - center @ slope
    return Network(
        weights=tuple(weight.astype(np.float32) for weight in w),
        biases=tuple(bias.astype(np.float32) for bias in b),
        linear=slope.astype(np.float32),
    )


def fit_pairs(
    inputs: Float32Array,
    targets: NDArray[np.float64],
    *,
    settings: PairSettings,
    seed: int,
    report: Report = lambda done, total: None,
) -> tuple[Network, ...]:
    """Networks whose mean output fits pairs of inputs and targets.

    Args:
        inputs: One-hot inputs [N, num_inputs].
        targets: Accuracies [N] as fractions.
        settings: How to train.
        seed: Of the first weights.
        report: Told how far it is.
    """
    with reproducible(seed, num_threads=1) as generator:
        x, y = torch.from_numpy(inputs), torch.from_numpy(targets).float()
        line = LinearPart.fit(x, y, ridge=settings.ridge)
        centered, rest = x - line.center, line.rest(x, y)
        shapes = layer_shapes(inputs.shape[1], settings.hidden_sizes)
        num = settings.num_networks
        weights, biases = [], []
        for i, (before, after) in enumerate(shapes):
            # About 40 of the one-hot inputs are set, and the rest is small beside the line.
            gain = 0.1 * before**0.5 if i == 0 else (0.3 if after == 1 else 1.4)
            spread = gain * before**-0.5
            weights.append(torch.randn(num, before, after, generator=generator) * spread)
            biases.append(torch.zeros(num, 1, after))
        parameters = [*weights, *biases]
        for parameter in parameters:
            parameter.requires_grad_()
        optimizer = torch.optim.AdamW(
            parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        for step in range(settings.num_steps):
            warm_up = min(1.0, (step + 1) / 20)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * warm_up * (1 - step / settings.num_steps)
            read, units = centered.expand(num, -1, -1), []
            for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
                units.append(torch.relu(torch.baddbmm(bias, read, weight)))
                read = torch.cat(units, dim=2)
            outputs = torch.baddbmm(biases[-1], read, weights[-1])[:, :, 0]
            loss = (outputs - rest).square().mean(dim=1).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            report(step + 1, settings.num_steps)
        return tuple(
            to_network([w[m] for w in weights], [b[m, 0] for b in biases], line) for m in range(num)
        )
