"""Batch norms behind convolutions become part of their weights and biases."""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from effdl.export.int8_operators import constants_of

__all__ = ["fold_batch_norms"]

_DEFAULT_EPSILON = 1e-5


def fold_batch_norms(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with every batch norm that alone reads a convolution folded into it.

    With gain ``g = gamma / sqrt(variance + epsilon)`` the weights become ``g * weight`` and
    the bias ``g * (bias - mean) + beta``, for each output channel, computed in float64.

    Args:
        model: In evaluation mode; it is not changed.
    """
    done = onnx.ModelProto()
    done.CopyFrom(model)
    graph, constants = done.graph, constants_of(model)
    readers: dict[str, int] = {value.name: 1 for value in graph.output}
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    writers = {node.output[0]: node for node in graph.node if node.op_type == "Conv"}
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        conv = writers.get(norm.input[0])
        if conv is None or readers[norm.input[0]] != 1 or conv.input[1] not in constants:
            continue
        if any(name not in constants for name in (*conv.input[2:], *norm.input[1:])):
            continue
        gamma, beta, mean, variance = (
            constants[name].astype(np.float64) for name in norm.input[1:5]
        )
        facts = {a.name: helper.get_attribute_value(a) for a in norm.attribute}
        gain = gamma / np.sqrt(variance + facts.get("epsilon", _DEFAULT_EPSILON))
        weight = constants[conv.input[1]].astype(np.float64)
        bias = constants[conv.input[2]].astype(np.float64) if len(conv.input) > 2 else 0.0
        folded = {
            f"{conv.output[0]}_folded_weight": weight * gain.reshape(-1, *[1] * (weight.ndim - 1)),
            f"{conv.output[0]}_folded_bias": (bias - mean) * gain + beta,
        }
        for name, value in folded.items():
            graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
        del conv.input[1:]
        conv.input.extend(folded)
        conv.output[0] = norm.output[0]
        graph.node.remove(norm)
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return done
