"""How much an operation of a traced network can stretch a difference of two inputs."""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx
from torch.nn import functional

from effdl.errors import ConfigError
from effdl.quantization.layer_bounds import average_pool_bound, max_pool_bound, mean_bound
from effdl.quantization.tracing import shape_of

__all__ = ["IN_PLACE", "Rule", "State", "find_rule"]


IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv)
"""Operators that change their first tensor."""

_DIVISIONS = (operator.truediv, operator.itruediv, torch.div)


class State(NamedTuple):
    """What is known of a tensor inside a network.

    Attributes:
        gain: What the network up to here stretches a difference by, at most.
        error: How far rounding has moved the tensor, at most.
    """

    gain: float
    error: float


Rule = Callable[[fx.Node, Mapping[fx.Node, State]], tuple[float, State]]
"""From an operation and what is known of its inputs to its own bound and its output."""


def find_rule(target: Any) -> Rule | None:
    """The rule of a function, or of a tensor's method by name; None: there is none."""
    return _METHODS.get(target) if isinstance(target, str) else _RULES.get(target)


def _scaled(bound: float) -> Rule:
    def rule(node: fx.Node, states: Mapping[fx.Node, State]) -> tuple[float, State]:
        return bound, _times(bound, _first(node, states))

    return rule


def _first(node: fx.Node, states: Mapping[fx.Node, State]) -> State:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return states[source]


def _times(bound: float, state: State) -> State:
    return State(bound * state.gain, bound * state.error)


def _sum(node: fx.Node, states: Mapping[fx.Node, State]) -> tuple[float, State]:
    parts = [states[a] for a in node.args[:2] if isinstance(a, fx.Node)]
    # Numbers of smaller tensors that are repeated count more than once.
    weights = [
        math.sqrt(math.prod(shape_of(node)) / math.prod(shape_of(a)))
        for a in node.args[:2]
        if isinstance(a, fx.Node)
    ]
    alpha = abs(float(node.kwargs.get("alpha", 1)))  # pyright: ignore[reportArgumentType]
    if len(weights) > 1:
        weights[1] *= alpha
    gain = sum(w * part.gain for w, part in zip(weights, parts, strict=True))
    error = sum(w * part.error for w, part in zip(weights, parts, strict=True))
    return 1.0, State(gain, error)


def _concatenation(node: fx.Node, states: Mapping[fx.Node, State]) -> tuple[float, State]:
    tensors = node.args[0]
    assert isinstance(tensors, Sequence)
    parts = [states[t] for t in tensors if isinstance(t, fx.Node)]
    return 1.0, State(
        math.hypot(*(part.gain for part in parts)), math.hypot(*(part.error for part in parts))
    )


def _factor(node: fx.Node, states: Mapping[fx.Node, State]) -> tuple[float, State]:
    numbers = [a for a in node.args[:2] if isinstance(a, int | float)]
    if len(numbers) != 1 or not isinstance(node.args[0], fx.Node | int | float):
        raise ConfigError("a product of two tensors has no Lipschitz bound")
    source = next(a for a in node.args[:2] if isinstance(a, fx.Node))
    divides = node.target in _DIVISIONS
    if divides and node.args[0] is not source:
        raise ConfigError("a quotient by a tensor has no Lipschitz bound")
    bound = abs(1 / numbers[0] if divides else numbers[0])
    return bound, _times(bound, states[source])


def _mean(node: fx.Node, states: Mapping[fx.Node, State]) -> tuple[float, State]:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    bound = math.sqrt(math.prod(shape_of(node)) / math.prod(shape_of(source)))
    return bound, _times(bound, states[source])


def _pooled(node: fx.Node, states: Mapping[fx.Node, State]) -> tuple[float, State]:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    bound = mean_bound(shape_of(source)[2:], shape_of(node)[2:])
    return bound, _times(bound, states[source])


def _windows(node: fx.Node, states: Mapping[fx.Node, State]) -> tuple[float, State]:
    names = ("input", "kernel_size", "stride", "padding")
    if len(node.args) > len(names):
        raise ConfigError(f"wanted at most {len(names)} positional arguments, got {len(node.args)}")
    given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    extra = set(given) - {*names, "dilation", "ceil_mode", "return_indices"}
    if extra or given.get("ceil_mode") or given.get("return_indices"):
        raise ConfigError(f"wanted a plain pool, got {sorted(given)}")
    stride = given.get("stride") or given["kernel_size"]
    if node.target is functional.max_pool2d:
        bound = max_pool_bound(given["kernel_size"], stride, given.get("dilation", 1))
    else:
        bound = average_pool_bound(given["kernel_size"], stride, given.get("padding", 0))
    return bound, _times(bound, _first(node, states))


_RULES: Mapping[Any, Rule] = {
    **dict.fromkeys(
        (operator.add, operator.iadd, torch.add, operator.sub, operator.isub, torch.sub), _sum
    ),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, *_DIVISIONS), _factor),
    **dict.fromkeys(
        (
            *(torch.relu, functional.relu, functional.relu6, functional.hardtanh, torch.tanh),
            *(torch.flatten, torch.reshape, torch.permute, torch.transpose, operator.neg),
            *(torch.squeeze, torch.unsqueeze),
        ),
        _scaled(1.0),
    ),
    torch.sigmoid: _scaled(0.25),
    functional.hardswish: _scaled(1.5),
    functional.hardsigmoid: _scaled(0.16667),
    **dict.fromkeys((torch.cat, torch.concat), _concatenation),
    torch.mean: _mean,
    functional.adaptive_avg_pool2d: _pooled,
    functional.max_pool2d: _windows,
    functional.avg_pool2d: _windows,
}
_METHODS: Mapping[str, Rule] = {
    **dict.fromkeys(("add", "add_", "sub"), _sum),
    **dict.fromkeys(
        (
            *("relu", "relu_", "tanh", "flatten", "view", "reshape", "permute", "transpose"),
            *("contiguous", "squeeze", "unsqueeze", "detach"),
        ),
        _scaled(1.0),
    ),
    "sigmoid": _scaled(0.25),
    "mean": _mean,
}
