"""Trains the networks of an accuracy predictor, in PyTorch.

A ridge regression first takes the linear part, which is most of an accuracy;
the networks learn what remains. `fit_pairs` learns from a fixed, small set of
measured pairs and averages several small networks. `distil` learns a function
that can be evaluated anywhere from fresh samples, which cannot be over-fitted.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from effdl.search.predictor_file import Network

__all__ = ["DistillationSettings", "PairSettings", "distil", "fit_pairs"]

Float32Array = NDArray[np.float32]
Report = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSettings:
    """How `fit_pairs` trains.

    Attributes:
        hidden_sizes: Widths of the hidden layers.
        num_networks: Networks that are averaged.
        num_steps: Steps of full-batch AdamW.
        learning_rate: At the start; it falls linearly to 0.
        weight_decay: Of AdamW.
        ridge: Penalty of the linear part, on sums of squares.
    """

    hidden_sizes: tuple[int, ...] = (32, 32)
    num_networks: int = 4
    num_steps: int = 300
    learning_rate: float = 5e-3
    weight_decay: float = 1.0
    ridge: float = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationSettings:
    """How `distil` trains.

    Attributes:
        hidden_sizes: Widths of the hidden layers.
        num_steps: Steps of Adam.
        batch_size: Fresh samples a step.
        learning_rate: At the start; it falls linearly to 0.
        ridge: Penalty of the linear part, on sums of squares.
    """

    hidden_sizes: tuple[int, ...] = (256, 128)
    num_steps: int = 20_000
    batch_size: int = 1024
    learning_rate: float = 3e-3
    ridge: float = 1.0
