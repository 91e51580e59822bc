"""Trains a small accuracy predictor from a large one, the teacher, in PyTorch.

The teacher is asked about fresh architectures in every step. From its outputs
alone a student learns slowly, for most of what a line leaves over is made of
many weak interactions of high order. So the student first learns, layer by layer
and from random weights, the responses of those hidden units of the teacher that
matter most to its output (hints: Romero et al., ICLR 2015, arXiv 1412.6550), and
then, as a whole, the outputs. Hidden matrices are moved by orthogonalised
momentum (Muon: Jordan et al., github.com/KellerJordan/Muon), the rest by Adam.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from effdl.errors import ConfigError
from effdl.search.predictor_file import Network
from effdl.search.predictor_training import (
    LinearPart,
    Report,
    layer_shapes,
    reproducible,
    to_network,
)

__all__ = ["DistillationSettings", "Teacher", "distil"]

Draw = Callable[[int, np.random.Generator], NDArray[np.float32]]

_POOL_ROWS = 65_536
_PIECE_ROWS = 8_192
# A Newton-Schulz step of the quintic that drives singular values towards 1.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_MOMENTUM = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationSettings:
    """How `distil` trains.

    Attributes:
        hidden_sizes: Widths of the student's hidden layers.
        num_hint_steps: Steps on the teacher's hidden responses; 0 learns from
            its outputs alone.
        num_output_steps: Steps on its outputs.
        batch_size: Fresh samples a step.
        hint_learning_rate: Of Adam in the hint steps; falls linearly to 0.
        matrix_learning_rate: Of hidden matrices in the output steps; likewise.
        learning_rate: Of everything else in the output steps; likewise.
        num_threads: Threads of PyTorch; another number gives other bytes.
    """

    hidden_sizes: tuple[int, ...] = (352, 320, 192)
    num_hint_steps: int = 2_500
    num_output_steps: int = 16_000
    batch_size: int = 2_048
    hint_learning_rate: float = 3e-3
    matrix_learning_rate: float = 5e-3
    learning_rate: float = 1e-3
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
        draw: Makes fresh inputs [N, num_inputs] from a number and a generator.
        settings: How to train.
        seed: Of the first weights and of every draw.
        report: Told how far it is.

    Raises:
        ConfigError: With hints, the student has another number of hidden
            layers than the teacher, or a wider one.
    """
    sizes = settings.hidden_sizes
    widths = teacher.widths
    if settings.num_hint_steps and (
        len(sizes) != len(widths) or any(a > b for a, b in zip(sizes, widths, strict=False))
    ):
        raise ConfigError(
            f"a student that takes hints wants hidden layers of at most {widths}, got {sizes}"
        )
    rng = np.random.default_rng(seed)
    with reproducible(seed, num_threads=settings.num_threads) as generator:
        student = _Student(teacher, torch.from_numpy(draw(_POOL_ROWS, rng)), settings, generator)
        total = settings.num_hint_steps + settings.num_output_steps
        pool, used = torch.empty(0), 0
        for step in range(total):
            if used + settings.batch_size > len(pool):
                pool, used = torch.from_numpy(draw(_POOL_ROWS, rng)), 0
            batch = pool[used : used + settings.batch_size]
            used += settings.batch_size
            torch.set_float32_matmul_precision("highest")
            with torch.no_grad():
                outputs, responses = teacher.respond(batch)
            if step < settings.num_hint_steps:
                student.learn_hints(batch, outputs, responses, step)
            else:
                # Where the processor multiplies bfloat16 matrices, this is several times faster.
                torch.set_float32_matmul_precision("medium")
                student.learn_outputs(batch, outputs, step - settings.num_hint_steps)
            report(step + 1, total)
        return to_network(student.weights, student.biases, student.line)


class _Student:
    """The network that learns, over centred inputs, with its optimizers."""

    def __init__(
        self,
        teacher: Teacher,
        inputs: Tensor,
        settings: DistillationSettings,
        generator: torch.Generator,
    ) -> None:
        self.settings = settings
        with torch.no_grad():
            outputs, responses = teacher.respond(inputs)
            self.line = LinearPart.fit(inputs, outputs, ridge=1.0)
            if settings.num_hint_steps:
                self.units = teacher.choose_units(inputs, settings.hidden_sizes)
                self.deviations = [
                    response[:, units].std(0).clamp_min(1e-6)
                    for response, units in zip(responses, self.units, strict=True)
                ]
        self.weights: list[Tensor] = []
        self.biases: list[Tensor] = []
        for before, after in layer_shapes(inputs.shape[1], settings.hidden_sizes):
            weight = torch.randn(before, after, generator=generator) * (2 / before) ** 0.5
            self.weights.append(weight.requires_grad_())
            self.biases.append(torch.zeros(after, requires_grad=True))
        matrices = self.weights[:-1]
        vectors = [self.weights[-1], *self.biases]
        self._hint_optimizer = torch.optim.Adam([*matrices, *vectors], lr=1.0)
        self._optimizer = torch.optim.Adam(vectors, lr=1.0)
        self._momenta = [torch.zeros_like(matrix) for matrix in matrices]

    def learn_hints(
        self, inputs: Tensor, outputs: Tensor, responses: list[Tensor], step: int
    ) -> None:
        """One step of every layer on its own towards the teacher's responses."""
        settings = self.settings
        read, units = inputs - self.line.center, []
        losses = []
        layers = zip(self.weights, self.biases, strict=True)
        for layer, (weight, bias) in enumerate(layers):
            found = torch.addmm(bias, read, weight)
            if layer == len(responses):
                losses.append((found[:, 0] - self.line.rest(inputs, outputs)).square().mean())
            else:
                wanted = responses[layer][:, self.units[layer]]
                losses.append(((found - wanted) / self.deviations[layer]).square().mean())
                # Its own units, not the teacher's: the next layer learns to make good what is missing.
                units.append(found.detach().relu())
                read = torch.cat(units, dim=1)
        self._hint_optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        rate = settings.hint_learning_rate * _schedule(step, settings.num_hint_steps)
        _step(self._hint_optimizer, rate)

    def learn_outputs(self, inputs: Tensor, outputs: Tensor, step: int) -> None:
        """One step of the whole network on the teacher's outputs."""
        settings, matrices = self.settings, self.weights[:-1]
        read, units = inputs - self.line.center, []
        for weight, bias in zip(matrices, self.biases[:-1], strict=True):
            units.append(torch.addmm(bias, read, weight).relu())
            read = torch.cat(units, dim=1)
        found = torch.addmm(self.biases[-1], read, self.weights[-1])[:, 0]
        loss = (found - self.line.rest(inputs, outputs)).square().mean()
        for parameter in (*self.weights, *self.biases):
            parameter.grad = None
        loss.backward()
        part = _schedule(step, settings.num_output_steps)
        _step(self._optimizer, settings.learning_rate * part)
        with torch.no_grad():
            for matrix, momentum in zip(matrices, self._momenta, strict=True):
                assert matrix.grad is not None
                momentum.lerp_(matrix.grad, 1 - _MOMENTUM)
                ahead = torch.lerp(momentum, matrix.grad, 1 - _MOMENTUM)
                wide = max(1.0, matrix.shape[1] / matrix.shape[0]) ** 0.5
                rate = settings.matrix_learning_rate * part * wide
                matrix.add_(_orthogonalize(ahead), alpha=-rate)


def _schedule(step: int, num_steps: int) -> float:
    """Share of the learning rate: a short rise, then a line to 0."""
    return min(1.0, (step + 1) / 100) * (1 - step / num_steps)


def _step(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()


def _orthogonalize(matrix: Tensor) -> Tensor:
    """A matrix of the same singular vectors, with singular values about 1."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-12)
    first, third, fifth = _QUINTIC
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=third, alpha=fifth), x, beta=first)
    return x.T if tall else x
