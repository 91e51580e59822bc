"""What each kind of ONNX node computes, in PyTorch.

The kinds are those that effdl's own graphs, and PyTorch's exporter for the same
networks, are made of (onnx.ai/onnx/operators).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor
from torch.nn import functional

from effdl.errors import ConfigError

__all__ = ["NODE_KINDS", "Node", "Operator", "translate_node"]

Operator = Callable[..., Tensor]
"""Computes a node's output from the inputs that are not folded into it."""

_CONVOLUTIONS: Mapping[int, Operator] = {
    1: functional.conv1d,
    2: functional.conv2d,
    3: functional.conv3d,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node with its attributes decoded.

    Attributes:
        proto: The node.
        inputs: Names of its inputs; empty for one that is left out between others.
        attributes: Its attributes by name; those without effect are left out.
        constants: The constants of the graph by name.
    """

    proto: onnx.NodeProto
    inputs: tuple[str, ...]
    attributes: Mapping[str, object]
    constants: Mapping[str, NDArray[np.generic]]

    def refused(self, wanted: str, got: object) -> ConfigError:
        """An error that names this node."""
        name = self.proto.name or next(iter(self.proto.output), "")
        return ConfigError(
            f"PyTorch cannot run node {name!r} of kind {self.proto.op_type}: "
            f"wanted {wanted}, got {got}",
            hint="measure this model with ONNX Runtime: effdl profile --runtime onnxruntime",
        )

    def number(self, name: str, default: float) -> float:
        """A numeric attribute."""
        value = self.attributes.get(name, default)
        if not isinstance(value, int | float):
            raise self.refused(f"a number as {name}", value)
        return value

    def sizes(self, name: str, default: Sequence[int]) -> list[int]:
        """An attribute of integers."""
        value = self.attributes.get(name, default)
        if not isinstance(value, Sequence):
            raise self.refused(f"integers as {name}", value)
        return [int(size) for size in value]

    def has(self, index: int) -> bool:
        """Whether input ``index`` is given."""
        return len(self.inputs) > index and self.inputs[index] != ""

    def constant(self, index: int) -> NDArray[np.generic]:
        """Input ``index``, which must not be made by a node."""
        if self.inputs[index] not in self.constants:
            raise self.refused(f"a constant as input {index}", repr(self.inputs[index]))
        return self.constants[self.inputs[index]]

    def axes(self) -> list[int] | None:
        """The axes: input 1, or an attribute in older operator sets; None if left out."""
        if self.has(1):
            return [int(axis) for axis in self.constant(1).ravel()]
        return self.sizes("axes", ()) if "axes" in self.attributes else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """How nodes of one kind become operators.

    Attributes:
        translate: Makes the operator; refuses what it does not know.
        attributes: Names of the attributes that ``translate`` heeds.
        folded: Inputs that become part of the operator.
    """

    translate: Callable[[Node], Operator]
    attributes: frozenset[str] = frozenset()
    folded: frozenset[int] = frozenset()


def translate_node(node: Node) -> tuple[Operator, tuple[str, ...]]:
    """What a node computes, and the names of what it computes it from.

    Raises:
        ConfigError: The node's kind, or the way it is used, is not known here.
    """
    kind = NODE_KINDS.get(node.proto.op_type)
    if kind is None or node.proto.domain not in ("", "ai.onnx"):
        raise node.refused(f"one of {', '.join(sorted(NODE_KINDS))}", node.proto.op_type)
    unknown = sorted(set(node.attributes) - kind.attributes)
    if unknown:
        raise node.refused("no other attributes", ", ".join(unknown))
    if len(node.proto.output) != 1:
        raise node.refused("one output", len(node.proto.output))
    reads = [name for i, name in enumerate(node.inputs) if i not in kind.folded]
    while reads and reads[-1] == "":
        reads.pop()
    if not reads or "" in reads:
        raise node.refused("every input before the last to be given", list(node.inputs))
    return kind.translate(node), tuple(reads)


def _plain(operator: Operator) -> _Kind:
    return _Kind(translate=lambda node: operator)


def _conv(node: Node) -> Operator:
    num_dims = node.constant(1).ndim - 2
    if num_dims not in _CONVOLUTIONS:
        raise node.refused("one to three spatial dimensions", num_dims)
    pads = node.sizes("pads", [0] * (2 * num_dims))
    auto_pad = node.attributes.get("auto_pad", b"NOTSET")
    if auto_pad not in (b"NOTSET", b"VALID"):
        raise node.refused("explicit pads", f"auto_pad {auto_pad!r}")
    before, after = pads[:num_dims], pads[num_dims:]
    convolution = partial(
        _CONVOLUTIONS[num_dims],
        stride=node.sizes("strides", [1] * num_dims),
        padding=before if before == after else 0,
        dilation=node.sizes("dilations", [1] * num_dims),
        groups=int(node.number("group", 1)),
    )
    if before == after:
        return convolution
    # PyTorch counts padding from the last dimension, ONNX from the first.
    both = [pad for pair in zip(before[::-1], after[::-1], strict=True) for pad in pair]
    return lambda x, *weights: convolution(functional.pad(x, both), *weights)


def _gemm(node: Node) -> Operator:
    alpha, beta = node.number("alpha", 1.0), node.number("beta", 1.0)
    transposes = bool(node.number("transA", 0)), bool(node.number("transB", 0))
    if (alpha, beta, *transposes) == (1.0, 1.0, False, True):
        return functional.linear

    def gemm(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        product = (a.t() if transposes[0] else a) @ (b.t() if transposes[1] else b)
        return alpha * product if c is None else alpha * product + beta * c

    return gemm


def _hard_sigmoid(node: Node) -> Operator:
    alpha, beta = node.number("alpha", 0.2), node.number("beta", 0.5)
    if np.float32(alpha) == np.float32(1 / 6) and beta == 0.5:
        return functional.hardsigmoid
    return lambda x: torch.clamp(x * alpha + beta, 0.0, 1.0)


def _clip(node: Node) -> Operator:
    low, high = (node.constant(i).item() if node.has(i) else None for i in (1, 2))
    return partial(torch.clamp, min=low, max=high)


def _reduce_mean(node: Node) -> Operator:
    axes, keepdim = node.axes(), bool(node.number("keepdims", 1))
    if not axes and node.number("noop_with_empty_axes", 0):
        return torch.clone
    return lambda x: torch.mean(x, dim=axes or list(range(x.ndim)), keepdim=keepdim)


def _global_average_pool(node: Node) -> Operator:
    return lambda x: torch.mean(x, dim=list(range(2, x.ndim)), keepdim=True)


def _reshape(node: Node) -> Operator:
    shape = [int(size) for size in node.constant(1)]
    copies_zeros = not node.number("allowzero", 0)
    if 0 not in shape or not copies_zeros:
        return lambda x: torch.reshape(x, shape)
    return lambda x: torch.reshape(x, [x.shape[i] if s == 0 else s for i, s in enumerate(shape)])


def _flatten(node: Node) -> Operator:
    axis = int(node.number("axis", 1))

    def flatten(x: Tensor) -> Tensor:
        rows = int(np.prod(x.shape[:axis]))
        return torch.reshape(x, [rows, x.numel() // rows])

    return flatten


def _squeeze(node: Node) -> Operator:
    axes = node.axes()
    return torch.squeeze if axes is None else partial(torch.squeeze, dim=axes)


def _unsqueeze(node: Node) -> Operator:
    axes = node.axes()
    if axes is None or len(axes) != 1:
        raise node.refused("one axis", axes)
    return partial(torch.unsqueeze, dim=axes[0])


_CONV_ATTRIBUTES = frozenset({"auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"})
_REDUCE_ATTRIBUTES = frozenset({"axes", "keepdims", "noop_with_empty_axes"})

NODE_KINDS: Mapping[str, _Kind] = {
    "Add": _plain(torch.add),
    "Clip": _Kind(translate=_clip, folded=frozenset({1, 2})),
    "Conv": _Kind(translate=_conv, attributes=_CONV_ATTRIBUTES),
    "Div": _plain(torch.div),
    "Flatten": _Kind(translate=_flatten, attributes=frozenset({"axis"})),
    "Gemm": _Kind(translate=_gemm, attributes=frozenset({"alpha", "beta", "transA", "transB"})),
    "GlobalAveragePool": _Kind(translate=_global_average_pool),
    "HardSigmoid": _Kind(translate=_hard_sigmoid, attributes=frozenset({"alpha", "beta"})),
    "HardSwish": _plain(functional.hardswish),
    "Identity": _plain(lambda x: x),
    "MatMul": _plain(torch.matmul),
    "Mul": _plain(torch.mul),
    "ReduceMean": _Kind(
        translate=_reduce_mean, attributes=_REDUCE_ATTRIBUTES, folded=frozenset({1})
    ),
    "Relu": _plain(functional.relu),
    "Reshape": _Kind(
        translate=_reshape, attributes=frozenset({"allowzero"}), folded=frozenset({1})
    ),
    "Sigmoid": _plain(torch.sigmoid),
    "Squeeze": _Kind(translate=_squeeze, attributes=frozenset({"axes"}), folded=frozenset({1})),
    "Sub": _plain(torch.sub),
    "Unsqueeze": _Kind(translate=_unsqueeze, attributes=frozenset({"axes"}), folded=frozenset({1})),
}
"""The kinds of node that can be run, by name."""


def decode_node(proto: onnx.NodeProto, constants: Mapping[str, NDArray[np.generic]]) -> Node:
    """A node with its attributes decoded."""
    return Node(
        proto=proto,
        inputs=tuple(proto.input),
        attributes={a.name: helper.get_attribute_value(a) for a in proto.attribute},
        constants=constants,
    )
