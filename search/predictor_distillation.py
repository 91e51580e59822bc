"""Makes a small accuracy predictor from a large one, the teacher, in PyTorch.

The student's layers are fitted one after the other, by least squares, to the
responses of those hidden units of the teacher that bend its output most
(hints: Romero et al., ICLR 2015, arXiv 1412.6550); its output then learns the
teacher's output from all of them. Learning from outputs alone, by gradient
steps, was tried: most of what a line leaves over is made of many weak
interactions, and after minutes the error was still three times as large.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from effdl.errors import ConfigError
from effdl.search.predictor_file import Network
from effdl.search.predictor_training import LinearPart, Report, reproducible, to_network

__all__ = ["DistillationSettings", "Teacher", "distil"]

Draw = Callable[[int, np.random.Generator], NDArray[np.float32]]

_PIECE_ROWS = 8_192


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationSettings:
    """How `distil` fits.

    Attributes:
        hidden_sizes: Widths of the student's hidden layers.
        num_samples: Inputs that the teacher is asked about.
        num_threads: Threads of PyTorch; another number gives other bytes.
    """

    hidden_sizes: tuple[int, ...] = (384, 352, 256)
    num_samples: int = 65_536
    num_threads: int = 2


class Teacher:
    """A plain chain of ReLU layers with one output: what a student learns from.

    Args:
        layers: ``(weight [inputs, outputs], bias [outputs])`` of every layer.
    """

    def __init__(self, layers: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]]) -> None:
        self.weights = [torch.from_numpy(weight) for weight, _ in layers]
        self.biases = [torch.from_numpy(bias) for _, bias in layers]

    @property
    def widths(self) -> tuple[int, ...]:
        """Units of every hidden layer."""
        return tuple(weight.shape[1] for weight in self.weights[:-1])

    def respond(self, inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Outputs [N], and what goes into every hidden layer's ReLU, of inputs [N, inputs]."""
        responses, hidden = [], inputs
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            responses.append(torch.addmm(bias, hidden, weight))
            hidden = responses[-1].relu()
        return torch.addmm(self.biases[-1], hidden, self.weights[-1])[:, 0], responses

    def predict(self, inputs: NDArray[np.float32]) -> NDArray[np.float64]:
        """Outputs [N] of inputs [N, inputs]."""
        pieces = torch.from_numpy(inputs).split(_PIECE_ROWS)
        return torch.cat([self.respond(piece)[0] for piece in pieces]).double().numpy()

    def choose_units(self, inputs: Tensor, sizes: tuple[int, ...]) -> list[Tensor]:
        """Per hidden layer, the units that bend the output most.

        A unit's weight is the variance of its ReLU that no line through its
        own input explains, times the mean square of the output's slope by it.
        """
        _, responses = self.respond(inputs)
        slope = self.weights[-1].T.expand(len(inputs), -1)
        chosen = []
        for layer in reversed(range(len(responses))):
            response = responses[layer]
            z, h = response - response.mean(0), response.relu()
            h = h - h.mean(0)
            line = (z * h).sum(0) / z.square().sum(0).clamp_min(1e-12)
            bend = (h - line * z).square().mean(0) * slope.square().mean(0)
            chosen.append(bend.argsort(descending=True, stable=True)[: sizes[layer]].sort()[0])
            slope = (slope * (response > 0)) @ self.weights[layer].T
        return chosen[::-1]


@torch.no_grad()
def distil(
    teacher: Teacher,
    draw: Draw,
    *,
    settings: DistillationSettings,
    seed: int,
    report: Report = lambda done, total: None,
) -> Network:
    """A network of its own widths that computes about what another one computes.

    Args:
        teacher: What to learn from.
        draw: Makes inputs [N, num_inputs] from a number and a generator.
        settings: How to fit.
        seed: Of every draw.
        report: Told how many layers are fitted.

    Raises:
        ConfigError: The student has another number of hidden layers than the
            teacher, or a wider one.
    """
    sizes, widths = settings.hidden_sizes, teacher.widths
    if len(sizes) != len(widths) or any(a > b for a, b in zip(sizes, widths, strict=False)):
        raise ConfigError(f"a student wants hidden layers of at most {widths}, got {sizes}")
    with reproducible(seed, num_threads=settings.num_threads):
        inputs = torch.from_numpy(draw(settings.num_samples, np.random.default_rng(seed)))
        outputs, responses = teacher.respond(inputs)
        line = LinearPart.fit(inputs, outputs, ridge=1.0)
        centered = inputs - line.center
        weights: list[Tensor] = []
        biases: list[Tensor] = []
        units: list[Tensor] = []
        read = centered
        for response, chosen in zip(responses, teacher.choose_units(inputs, sizes), strict=True):
            weight, bias = _least_squares(read, response[:, chosen])
            weights.append(weight)
            biases.append(bias)
            units.append(torch.addmm(bias, read, weight).relu())
            read = torch.cat(units, dim=1)
            report(len(units), len(sizes) + 1)
        # The teacher has no linear part of its own: what the units need of one is found with them.
        rest = line.rest(inputs, outputs)[:, None]
        slope, bias = _least_squares(torch.cat([read, centered], dim=1), rest)
        linear = line.slope + line.scale * slope[read.shape[1] :, 0]
        weights.append(slope[: read.shape[1]])
        biases.append(bias)
        report(len(sizes) + 1, len(sizes) + 1)
        return to_network(weights, biases, replace(line, slope=linear))


def _least_squares(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Slope [inputs, outputs] and offset [outputs] of a line through pairs, in float64 inside."""
    x, y = inputs.double(), targets.double()
    center, mean = x.mean(0), y.mean(0)
    # One-hot inputs are linearly dependent; the small penalty picks one of many solutions.
    penalty = 1e-3 * torch.eye(x.shape[1], dtype=torch.float64)
    gram = (x - center).T @ (x - center) + penalty
    slope = torch.linalg.solve(gram, (x - center).T @ (y - mean))
    return slope.float(), (mean - center @ slope).float()
