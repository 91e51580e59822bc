"""Runs ONNX graphs of convolutional networks as PyTorch modules, node for node."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx, nn
from torch.fx.proxy import GraphAppendingTracer

from effdl.errors import ConfigError, CorruptFileError
from effdl.targets.measure.onnx_nodes import Operator, decode_node, translate_node

__all__ = ["OnnxModule", "TensorSpec", "load_onnx_module"]

_FLOAT_TYPES: Mapping[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.DOUBLE: torch.float64,
}


class TensorSpec(NamedTuple):
    """What an input of a model must be.

    Attributes:
        name: Its name in the model.
        shape: Sizes of all dimensions.
        dtype: Its number format in the model.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


class _Step(NamedTuple):
    """One node, by slots of values.

    Attributes:
        operator: Computes it.
        reads: What it takes, in order.
        frees: What nothing reads after it.
    """

    operator: Operator
    reads: tuple[int, ...]
    frees: tuple[int, ...]


class OnnxModule(nn.Module):
    """A graph as a module: its weights are parameters, and ``forward`` runs its nodes.

    Values are let go after their last use, as those of a hand-written module are.

    Args:
        inputs: What ``forward`` takes; slots from 0 on.
        weights: Floating-point constants that nodes read; slots after the inputs.
        steps: The nodes, in an order that can be run; each makes the next slot.
        outputs: Slots of what ``forward`` returns.
    """

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        weights: Sequence[Tensor],
        steps: Sequence[_Step],
        outputs: Sequence[int],
    ) -> None:
        super().__init__()
        self.inputs = tuple(inputs)
        self.weights = nn.ParameterList(nn.Parameter(w, requires_grad=False) for w in weights)
        self._steps = tuple(steps)
        self._outputs = tuple(outputs)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The graph's outputs, in its order, from its inputs, in theirs."""
        return tuple(self._run([*inputs, *self.weights]))

    def as_graph_module(self) -> fx.GraphModule:
        """The same nodes and parameters as code of its own, for `torch.compile`.

        Modules that share one ``forward`` count as one function to the compiler, which
        refuses to compile a function anew more than a few times.
        """
        graph = fx.Graph()
        tracer = GraphAppendingTracer(graph)
        inputs = [graph.placeholder(f"input_{i}") for i in range(len(self.inputs))]
        weights = [graph.get_attr(f"weights.{i}") for i in range(len(self.weights))]
        outputs = self._run([fx.Proxy(node, tracer) for node in [*inputs, *weights]])
        graph.output(tuple(proxy.node for proxy in outputs))
        return fx.GraphModule(self, graph)

    def _run(self, given: Sequence[Any]) -> list[Any]:
        """Values of the outputs: tensors, or proxies while the graph is traced."""
        values = list(given)
        for operator, reads, frees in self._steps:
            values.append(operator(*[values[i] for i in reads]))
            for i in frees:
                values[i] = None
        return [values[i] for i in self._outputs]


def load_onnx_module(model: bytes) -> OnnxModule:
    """A serialised ONNX model of fixed sizes as a module, on the CPU.

    Raises:
        CorruptFileError: It is no ONNX model, or damaged.
        ConfigError: An input is not of floating-point numbers of fixed sizes, or a
            node's kind, or the way it is used, is not known here.
    """
    try:
        graph = onnx.load_model_from_string(model).graph
        constants = {c.name: numpy_helper.to_array(c) for c in graph.initializer}
        constants |= _constant_nodes(graph)
    except (DecodeError, ValueError, TypeError) as error:
        raise _corrupt(str(error)) from None
    if not graph.node or not graph.output:
        raise _corrupt("it has no nodes, or no outputs")
    inputs = [_input_spec(value) for value in graph.input if value.name not in constants]
    translated = [
        (node.output[0], *translate_node(decode_node(node, constants)))
        for node in graph.node
        if node.op_type != "Constant"
    ]
    weights = list(dict.fromkeys(n for _, _, reads in translated for n in reads if n in constants))
    names = [i.name for i in inputs] + weights + [name for name, _, _ in translated]
    slots = {name: slot for slot, name in enumerate(names)}
    missing = {n for _, _, reads in translated for n in reads} | {o.name for o in graph.output}
    missing -= slots.keys()
    if missing:
        raise _corrupt(f"nothing makes {', '.join(map(repr, sorted(missing)))}")
    outputs = [slots[o.name] for o in graph.output]
    last_reads = {slots[n]: step for step, (_, _, reads) in enumerate(translated) for n in reads}
    steps = [
        _Step(
            operator=operator,
            reads=tuple(slots[n] for n in reads),
            frees=tuple(
                slot for slot, last in last_reads.items() if last == step and slot not in outputs
            ),
        )
        for step, (_, operator, reads) in enumerate(translated)
    ]
    tensors = [torch.from_numpy(np.array(constants[name])) for name in weights]
    return OnnxModule(inputs, tensors, steps, outputs)


def _constant_nodes(graph: onnx.GraphProto) -> dict[str, NDArray[np.generic]]:
    found = {}
    for node in graph.node:
        if node.op_type == "Constant":
            value = helper.get_attribute_value(node.attribute[0])
            is_tensor = isinstance(value, onnx.TensorProto)
            found[node.output[0]] = numpy_helper.to_array(value) if is_tensor else np.array(value)
    return found


def _input_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim)
    if not shape or min(shape) < 1 or tensor.elem_type not in _FLOAT_TYPES:
        kind = next((n for n, v in TensorProto.DataType.items() if v == tensor.elem_type), "none")
        sizes = [d.dim_param or d.dim_value or "?" for d in tensor.shape.dim]
        raise ConfigError(
            f"PyTorch cannot run a model with input {value.name!r}: wanted floating-point "
            f"numbers of fixed sizes, got {kind} {sizes}",
            hint="export the model with a fixed batch size",
        )
    return TensorSpec(value.name, shape, _FLOAT_TYPES[tensor.elem_type])


def _corrupt(why: str) -> CorruptFileError:
    return CorruptFileError(
        f"a model given as bytes is no ONNX model that can be run: {why[:300]}",
        hint="python -m onnx.checker MODEL.onnx may say more",
    )
