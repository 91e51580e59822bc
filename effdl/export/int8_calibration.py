"""A float graph walked node by node, in floats and as it will be on bytes, side by side.

One walk over the calibration samples chooses every activation's range, rounds every
weight and corrects every bias, each with the errors of all before it in view.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from effdl.export.int8_operators import Int8Operator, constants_of
from effdl.export.runtime import open_session
from effdl.quantization.calibration import (
    ActivationScale,
    Histogram,
    RangeMethod,
    activation_scale,
    choose_range,
    quantize_weight,
)
from effdl.quantization.weight_rounding import round_weight, sample_patches

__all__ = ["CalibrationOptions", "Int8Parameters", "calibrate"]

_MAX_PATCHES = 5_000
# Of a sample's energy: more is no rounding error.
_MAX_ERROR_SHARE = 0.05
_MIN_FAITHFUL = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Parameters:
    """All numbers that a graph on bytes needs beside the graph itself.

    Attributes:
        activations: Scale of each byte tensor, by name.
        weights: Bytes of each weight in its own layout, by operator.
        weight_scales: Scale of each output channel [output channels], by operator.
        biases: Real bias [output channels], by operator.
    """

    activations: Mapping[str, ActivationScale] = field(default_factory=dict)
    weights: Mapping[str, NDArray[np.int8]] = field(default_factory=dict)
    weight_scales: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    biases: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationOptions:
    """What calibration does; the presets of tests switch parts off.

    Attributes:
        range_method: How activation ranges are chosen.
        rounds_weights: Whether rounding errors of weights are made up for by others.
        corrects_biases: Whether the mean error of each channel goes into its bias.
        seed: Of the choice of places whose inputs are looked at.
    """

    range_method: RangeMethod = "percentile"
    rounds_weights: bool = True
    corrects_biases: bool = True
    seed: int = 0


def calibrate(
    model: onnx.ModelProto,
    operators: Collection[Int8Operator],
    samples: NDArray[np.float32],
    options: CalibrationOptions | None = None,
) -> Int8Parameters:
    """Everything that these operators need to run on bytes.

    Args:
        model: The float graph, with one input.
        operators: Those of `find_int8_operators` that shall run on bytes.
        samples: Inputs [N, ...].
        options: How; None: all that helps.
    """
    return _Walk(model, operators, options or CalibrationOptions()).run(samples)


class _Walk:
    def __init__(
        self,
        model: onnx.ModelProto,
        operators: Collection[Int8Operator],
        options: CalibrationOptions,
    ) -> None:
        self._model, self._options = model, options
        self._by_node = {op.nodes[0]: op for op in operators}
        self._constants = constants_of(model)
        self._floats: dict[str, NDArray[np.float32]] = {}
        self._values: dict[str, NDArray[np.float32]] = {}
        self._bytes: dict[str, NDArray[np.float32]] = {}
        self._activations: dict[str, ActivationScale] = {}
        self._weights: dict[str, NDArray[np.int8]] = {}
        self._weight_scales: dict[str, NDArray[np.float32]] = {}
        self._biases: dict[str, NDArray[np.float32]] = {}

    def run(self, samples: NDArray[np.float32]) -> Int8Parameters:
        (fed,) = (value.name for value in self._model.graph.input)
        self._floats[fed] = self._values[fed] = samples
        last_use = {name: i for i, node in enumerate(self._model.graph.node) for name in node.input}
        fused = {i for op in self._by_node.values() for i in op.nodes[1:]}
        for i, node in enumerate(self._model.graph.node):
            operator = self._by_node.get(i)
            if i not in fused and node.op_type != "Constant":
                nodes = (
                    [node]
                    if operator is None
                    else [self._model.graph.node[j] for j in operator.nodes]
                )
                if operator is None:
                    self._pass(nodes)
                else:
                    self._quantize(operator, nodes)
            for name in [n for n in self._floats if last_use.get(n, -1) <= i]:
                for kept in (self._floats, self._values, self._bytes):
                    kept.pop(name, None)
        return Int8Parameters(
            activations=self._activations,
            weights=self._weights,
            weight_scales=self._weight_scales,
            biases=self._biases,
        )

    def _pass(self, nodes: Sequence[onnx.NodeProto]) -> None:
        """An operator in floats, on both sides."""
        self._compute_floats(nodes)
        inputs = {name: self._values[name] for name in nodes[0].input if name in self._values}
        same = all(self._values[name] is self._floats[name] for name in inputs)
        for name in nodes[-1].output:
            self._values[name] = self._floats[name]
        if not same:
            self._values.update(self._compute(nodes, inputs, {}))

    def _quantize(self, operator: Int8Operator, nodes: Sequence[onnx.NodeProto]) -> None:
        self._compute_floats(nodes)
        inputs = {name: self._as_bytes(name) for name in operator.inputs}
        replaced: dict[str, NDArray[np.generic]] = {}
        if operator.weight is not None:
            replaced = self._round_weights(operator, nodes[0], inputs[operator.inputs[0]])
        done = self._compute(nodes, inputs, replaced)
        if operator.keeps_scale:
            self._activations[operator.output] = self._activations[operator.inputs[0]]
        self._values.update(done)
        if operator.writes_bytes:
            self._values[operator.output] = self._as_bytes(operator.output)

    def _as_bytes(self, name: str) -> NDArray[np.float32]:
        """A tensor as its bytes give it back; the first time its range is chosen."""
        if name not in self._bytes:
            values = self._values[name]
            if name not in self._activations:
                histogram = Histogram(low=float(values.min()), high=float(values.max()))
                histogram.add(values)
                ends = choose_range(histogram, self._options.range_method)
                self._activations[name] = activation_scale(*ends)
            self._bytes[name] = self._activations[name].round(values)
        return self._bytes[name]

    def _round_weights(
        self, operator: Int8Operator, node: onnx.NodeProto, x: NDArray[np.float32]
    ) -> dict[str, NDArray[np.generic]]:
        """Choose the bytes of the weight and the bias; what they stand for, by name."""
        assert operator.weight is not None
        weight = self._constants[operator.weight].astype(np.float32)
        layout = _Layout.of(operator, node, weight)
        steps, scales = quantize_weight(weight, axis=layout.axis)
        # Equal generators: the same places of the float and of the byte input.
        given, seen = (
            layout.patches(values, np.random.default_rng(self._options.seed))
            for values in (self._floats[operator.inputs[0]], x)
        )
        faithful = _faithful(given, seen)
        given, seen = given[faithful], seen[faithful]
        if self._options.rounds_weights:
            rounded = round_weight(layout.grouped(weight), scales.reshape(layout.groups, -1), seen)
            steps = layout.ungrouped(rounded)
        shape = [-1 if i == layout.axis else 1 for i in range(weight.ndim)]
        real = (steps * scales.reshape(shape)).astype(np.float32)
        bias = np.zeros(len(scales), dtype=np.float32)
        if operator.bias is not None:
            bias = self._constants[operator.bias].astype(np.float32)
        if self._options.corrects_biases and operator.kind != "MatMul":
            wanted = np.einsum("goi,gi->go", layout.grouped(weight), given.mean(axis=0))
            got = np.einsum("goi,gi->go", layout.grouped(real), seen.mean(axis=0))
            bias = bias + (wanted - got).reshape(-1).astype(np.float32)
        self._weights[operator.name], self._weight_scales[operator.name] = steps, scales
        self._biases[operator.name] = bias
        return {"weight": real, "bias": bias}

    def _compute_floats(self, nodes: Sequence[onnx.NodeProto]) -> None:
        inputs = {name: self._floats[name] for name in nodes[0].input if name in self._floats}
        self._floats.update(self._compute(nodes, inputs, {}))

    def _compute(
        self,
        nodes: Sequence[onnx.NodeProto],
        inputs: Mapping[str, NDArray[np.float32]],
        replaced: Mapping[str, NDArray[np.generic]],
    ) -> dict[str, NDArray[np.float32]]:
        """Outputs of a few nodes in a row, in floats."""
        first = onnx.NodeProto()
        first.CopyFrom(nodes[0])
        constants = {
            name: self._constants[name]
            for node in nodes
            for name in node.input
            if name in self._constants
        }
        if replaced:
            constants |= replaced
            del first.input[1:]
            first.input.extend(["weight"] if first.op_type == "MatMul" else ["weight", "bias"])
        outputs = [name for name in nodes[-1].output if name]
        graph = helper.make_graph(
            [first, *nodes[1:]],
            "step",
            [
                helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), None)
                for k, v in inputs.items()
            ],
            [helper.make_empty_tensor_value_info(name) for name in outputs],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )
        step = helper.make_model(
            graph, ir_version=self._model.ir_version, opset_imports=self._model.opset_import
        )
        session = open_session(step.SerializeToString(), optimize=True, num_threads=1)
        values = session.run(outputs, dict(inputs))
        return {name: np.asarray(v) for name, v in zip(outputs, values, strict=True)}


def _faithful(given: NDArray[np.float32], seen: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which samples [num_samples, ...] the bytes still resemble.

    A few places of a network carry values far beyond all others that its answer hardly
    depends on. Bytes clip them; a mean that includes them would bend every bias.
    """
    error = ((seen - given) ** 2).sum(axis=(1, 2))
    kept = error <= _MAX_ERROR_SHARE * (given**2).sum(axis=(1, 2))
    return kept if kept.mean() >= _MIN_FAITHFUL else np.ones(len(given), dtype=np.bool_)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """How a weight maps inputs to outputs, whatever the operator.

    Attributes:
        kind: The operator.
        axis: Axis of the output channels.
        groups: Of a convolution.
        shape: Of the weight.
        convolution: Kernel, strides, pads and dilations of a convolution.
    """

    kind: str
    axis: int
    groups: int
    shape: tuple[int, ...]
    convolution: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(
        cls, operator: Int8Operator, node: onnx.NodeProto, weight: NDArray[np.generic]
    ) -> "_Layout":
        facts = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        convolution: dict[str, tuple[int, ...]] = {}
        if operator.kind == "Conv":
            convolution = {
                "kernel": tuple(weight.shape[2:]),
                "strides": tuple(facts.get("strides", (1, 1))),
                "pads": tuple(facts.get("pads", (0, 0, 0, 0))),
                "dilations": tuple(facts.get("dilations", (1, 1))),
            }
        return cls(
            kind=operator.kind,
            axis=operator.output_axis(node),
            groups=int(facts.get("group", 1)),
            shape=weight.shape,
            convolution=convolution,
        )

    def grouped(self, weight: NDArray[np.generic]) -> NDArray[np.floating]:
        """The weight as [groups, outputs a group, inputs a group]."""
        rows = weight if self.axis == 0 else weight.T
        return rows.reshape(self.groups, rows.shape[0] // self.groups, -1)  # type: ignore[return-value]

    def ungrouped(self, weight: NDArray[np.int8]) -> NDArray[np.int8]:
        """The inverse of `grouped`."""
        if self.axis == 0:
            return weight.reshape(self.shape)
        return np.ascontiguousarray(weight.reshape(self.shape[::-1]).T)

    def patches(self, x: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        """Inputs [num_samples, groups, inputs a group] that the weight is multiplied with."""
        if self.kind != "Conv":
            return x.reshape(-1, 1, x.shape[-1])
        found = sample_patches(x, max_patches=_MAX_PATCHES, rng=rng, **self.convolution)  # type: ignore[arg-type]
        return found.reshape(len(found), self.groups, -1)
