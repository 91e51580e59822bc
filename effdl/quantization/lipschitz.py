"""A certificate for a whole network: what the Euclidean norm can grow by, at most.

The network is traced; every layer's bound multiplies what its input brings, a sum of
branches adds theirs, and joined channels add theirs in squares. Batch norm in evaluation
is a scaling, folded into the layer before it. Rounding is no Lipschitz function: two
inputs an atom apart can land on different sides of a step. So two numbers are given:
``bound`` holds for the network with its quantized weights and clipped but unrounded
activations, and rounding moves its output by at most ``rounding_error``, so that

    ||f(x) - f(x')|| <= bound * ||x - x'|| + 2 * rounding_error

holds for the network f as it rounds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import fx, nn

from effdl.errors import ConfigError
from effdl.quantization.activation import ActivationQuantizer
from effdl.quantization.function_bounds import IN_PLACE, State, find_rule
from effdl.quantization.layer_bounds import (
    AFFINE_LAYERS,
    BATCH_NORMS,
    is_known,
    layer_bound,
)
from effdl.quantization.tracing import shape_of, trace

__all__ = ["LayerBound", "LipschitzBound", "lipschitz_bound"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerBound:
    """One layer's part.

    Attributes:
        name: Its path in the network, or the name of the operation.
        kind: Its class or function.
        bound: What it stretches a difference by at most, alone.
        product: What the network up to here stretches a difference by at most.
    """

    name: str
    kind: str
    bound: float
    product: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LipschitzBound:
    """A certificate.

    Attributes:
        layers: In the order they run.
        bound: Of the network with its quantized weights, its activations clipped but
            not rounded.
        rounding_error: How far rounding of the activations moves the output of one
            sample, at most, in the Euclidean norm.
    """

    layers: tuple[LayerBound, ...]
    bound: float
    rounding_error: float


_CONSTANT = State(0.0, 0.0)


def lipschitz_bound(module: nn.Module, input_shape: Sequence[int]) -> LipschitzBound:
    """Bound how much a network in evaluation can amplify a perturbation of its input.

    Args:
        module: In evaluation mode. It may be made of convolutions, linear layers, batch
            norms, pools, activations, sums, concatenations, reshapes, and effdl's
            Lipschitz-constrained layers and quantizers.
        input_shape: Of one sample, without the batch, such as (3, 224, 224).

    Raises:
        ConfigError: The network is in training, cannot be traced, does not take the
            shape, or has a layer without a known bound, which is named.
    """
    if module.training:
        raise ConfigError(
            "a bound wanted a network in evaluation mode, got one in training",
            hint="call .eval() first: batch norm and the weights' scales are then fixed",
        )
    # A layer alone has no path of its own to follow.
    graph = trace(
        nn.Sequential(module).eval() if is_known(module) else module, input_shape, is_leaf=is_known
    )
    layers: list[LayerBound] = []
    states: dict[fx.Node, State] = {}
    folded = _batch_norms_to_fold(graph)
    result = _CONSTANT
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            states[node] = State(1.0, 0.0)
        elif node.op == "get_attr":
            states[node] = _CONSTANT
        elif node.op == "output":
            if not isinstance(node.args[0], fx.Node):
                raise ConfigError("a bound wanted a network with one output tensor, got several")
            result = states[node.args[0]]
        elif node in folded.values():
            states[node] = states[node.args[0]]
        else:
            layer = _bound_node(graph, node, states, folded.get(node))
            _check_in_place(graph, node, layer)
            states[node] = layer.state
            layers.append(
                LayerBound(
                    name=layer.name, kind=layer.kind, bound=layer.bound, product=layer.state.gain
                )
            )
    return LipschitzBound(layers=tuple(layers), bound=result.gain, rounding_error=result.error)


class _Bounded(NamedTuple):
    name: str
    kind: str
    bound: float
    state: State


def _batch_norms_to_fold(graph: fx.GraphModule) -> dict[fx.Node, fx.Node]:
    """From an affine layer to the batch norm that alone reads it."""
    pairs: dict[fx.Node, fx.Node] = {}
    for node in graph.graph.nodes:
        if node.op != "call_module" or not isinstance(_module(graph, node), BATCH_NORMS):
            continue
        before = node.args[0]
        if isinstance(before, fx.Node) and before.op == "call_module" and len(before.users) == 1:
            # Behind a linear layer on sequences the batch norm's channels are another axis.
            axes = 2 if isinstance(_module(graph, node), nn.BatchNorm1d) else 4
            layer = _module(graph, before)
            foldable = isinstance(layer, AFFINE_LAYERS) and type(layer) is not nn.ConvTranspose2d
            if foldable and is_known(layer) and len(shape_of(before)) == axes:
                pairs[before] = node
    return pairs


def _bound_node(
    graph: fx.GraphModule,
    node: fx.Node,
    states: Mapping[fx.Node, State],
    batch_norm: fx.Node | None,
) -> _Bounded:
    if node.op == "call_module":
        return _bound_module(graph, node, states, batch_norm)
    kind = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "?")
    rule = find_rule(node.target)
    if rule is None:
        raise _unknown(node.name, str(kind))
    try:
        bound, state = rule(node, states)
    except ConfigError as error:
        raise ConfigError(f"{node.name}: {error.message}") from error
    return _Bounded(node.name, str(kind), bound, state)


def _bound_module(
    graph: fx.GraphModule,
    node: fx.Node,
    states: Mapping[fx.Node, State],
    batch_norm: fx.Node | None,
) -> _Bounded:
    name, layer = str(node.target), _module(graph, node)
    if not is_known(layer):
        raise _unknown(name, type(layer).__name__)
    source = node.args[0]
    assert isinstance(source, fx.Node)
    kind = type(layer).__name__
    folded = None
    if batch_norm is not None:
        folded = _module(graph, batch_norm)
        kind += f"+{type(folded).__name__}"
    try:
        bound = layer_bound(layer, shape_of(source), shape_of(node), folded)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error.message}") from error
    before = states[source]
    error = bound * before.error
    if isinstance(layer, ActivationQuantizer):
        half_step = float(layer.quantization().scale.max()) / 2
        error += half_step * math.sqrt(math.prod(shape_of(node)))
    return _Bounded(name, kind, bound, State(bound * before.gain, error))


def _check_in_place(graph: fx.GraphModule, node: fx.Node, layer: _Bounded) -> None:
    """A tensor that was changed in place is not read again as what it was.

    Where the change stretches nothing, what it was bounds what it is.
    """
    source = node.args[0]
    if node.op == "call_module":
        changes = layer.bound > 1 and getattr(_module(graph, node), "inplace", False)
    elif node.op == "call_method":
        changes = str(node.target).endswith("_") and node.target not in ("relu_",)
    else:
        changes = node.target in IN_PLACE
        changes = changes or (layer.bound > 1 and node.kwargs.get("inplace", False))
    if not changes or not isinstance(source, fx.Node):
        return
    later = _readers(node, source)
    if later:
        raise ConfigError(
            f"{layer.name}: wanted a tensor that nothing reads after it is changed in place, "
            f"got one that {later[0].name} reads"
        )


def _readers(node: fx.Node, source: fx.Node) -> list[fx.Node]:
    behind: list[fx.Node] = []
    following = node.next
    while following.op != "root":
        if following in source.users:
            behind.append(following)
        following = following.next
    return behind


def _unknown(name: str, kind: str) -> ConfigError:
    return ConfigError(
        f"{name} ({kind}): no Lipschitz bound is known for it",
        hint="bound the parts before and behind it apart",
    )


def _module(graph: fx.GraphModule, node: fx.Node) -> nn.Module:
    return graph.get_submodule(str(node.target))
