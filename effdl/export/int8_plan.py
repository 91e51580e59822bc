"""From the steps of an int8 graph to compiled functions and the buffers they share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from effdl.errors import ConfigError
from effdl.export.int8_graph import (
    AddStep,
    ByteTensor,
    ConvolutionStep,
    Int8Graph,
    MeanStep,
    Step,
)
from effdl.kernels.channel_blocks import pack_pointwise_vectors, padded_channels
from effdl.kernels.inverted_residual.reference import QuantizedAddition, QuantizedConvolution

__all__ = ["Call", "plan_calls"]

_MAX_IMAGE_CHANNELS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A compiled function with its arguments.

    Attributes:
        name: What it computes, for reports.
        function: Compiled.
        arguments: Tensors, as TVM takes them.
        macs: Multiply-accumulate operations.
    """

    name: str
    function: Callable[..., object]
    arguments: tuple[Any, ...]
    macs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Planned:
    name: str
    function: Any
    arguments: tuple[Tensor, ...]
    macs: int


def plan_calls(
    graph: Int8Graph, *, vnni: bool | None, num_threads: int
) -> tuple[Tensor, NDArray[np.int64], tuple[Call, ...]]:
    """Compile a graph.

    Args:
        graph: From `read_int8_graph`.
        vnni: Whether to use AVX512-VNNI; None: where the machine has it.
        num_threads: How many threads share each function's work.

    Returns:
        The buffer of the output, where its channels stand in it, and the calls; the first
        one wants the float image before its arguments.
    """
    # Only here, so that reading a graph needs no TVM.
    import tvm_ffi

    from effdl.kernels.tvm_runtime import compile_module, has_vnni

    plan = _Plan(graph, has_vnni() if vnni is None else vnni, num_threads)
    plan.add_all()
    # One module each: TVM's time grows faster than a module.
    calls = tuple(
        Call(
            name=planned.name,
            function=compile_module({"step": planned.function}, is_lowered=True)["step"],
            arguments=tuple(tvm_ffi.from_dlpack(tensor) for tensor in planned.arguments),
            macs=planned.macs,
        )
        for planned in plan.planned
    )
    logits = plan.buffer(graph.output) if plan.logits is None else plan.logits
    return logits, plan.order, calls


class _Plan:
    def __init__(self, graph: Int8Graph, vnni: bool, num_threads: int) -> None:
        self._graph, self._vnni, self._num_threads = graph, vnni, num_threads
        self._buffers: dict[tuple[str, int], Tensor] = {}
        self._scratch: dict[str, Tensor] = {}
        self._readers: dict[str, list[Step]] = {}
        for step in graph.steps:
            for tensor in _inputs(step):
                self._readers.setdefault(tensor.name, []).append(step)
        self._done: set[int] = set()
        self.logits: Tensor | None = None
        self.order = np.arange(graph.output.shape[0])
        self.planned: list[_Planned] = []

    def buffer(self, tensor: ByteTensor, padding: int = 0) -> Tensor:
        """The buffer of a tensor with borders of so many pixels."""
        key = tensor.name, padding
        if key not in self._buffers:
            channels, height, width = tensor.shape
            size = padded_channels(channels) * (height + 2 * padding) * (width + 2 * padding)
            self._buffers[key] = torch.zeros(size, dtype=torch.uint8)
        return self._buffers[key]

    def add_all(self) -> None:
        for position, step in enumerate(self._graph.steps):
            if position in self._done:
                continue
            if isinstance(step, AddStep):
                self._add_sum(step)
            elif isinstance(step, MeanStep):
                self._add_mean(step)
            elif step.x.name == self._graph.image.name:
                self._add_stem(step)
            elif step.is_depthwise:
                self._add_block(None, step)
            elif step.gives_floats:
                self._add_logits(step)
            elif step.is_pointwise:
                follower = self._only_reader(step.y)
                if isinstance(follower, ConvolutionStep) and self._heads_block(follower):
                    self._add_block(step, follower)
                else:
                    self._add_pointwise(step)
            else:
                raise ConfigError(
                    "int8 engine: wanted 1x1 or depthwise convolutions after the first, got "
                    f"weights {list(step.weight.shape)} with stride {step.stride}",
                    hint="run the file with ONNX Runtime instead",
                )

    def _only_reader(self, tensor: ByteTensor) -> Step | None:
        readers = self._readers.get(tensor.name, [])
        is_output = tensor.name == self._graph.output.name
        return readers[0] if len(readers) == 1 and not is_output else None

    def _heads_block(self, step: ConvolutionStep) -> bool:
        follower = self._only_reader(step.y)
        return (
            step.is_depthwise
            and isinstance(follower, ConvolutionStep)
            and follower.is_pointwise
            and step.padding == step.weight.shape[2] // 2
            and step.weight.shape[2] % 2 == 1
            and step.stride in (1, 2)
        )

    def _mark(self, step: Step) -> None:
        self._done.add(next(i for i, s in enumerate(self._graph.steps) if s is step))

    def _put(self, name: str, function: Any, arguments: Sequence[Tensor], macs: int = 0) -> None:
        self.planned.append(
            _Planned(name=name, function=function, arguments=tuple(arguments), macs=macs)
        )

    def _scratch_of(self, name: str, num_bytes: int) -> None:
        if name not in self._scratch or self._scratch[name].numel() < num_bytes:
            self._scratch[name] = torch.zeros(num_bytes, dtype=torch.uint8)

    def _add_block(self, expansion: ConvolutionStep | None, depthwise: ConvolutionStep) -> None:
        from effdl.kernels.inverted_residual.tvm_block import pack_block

        if not self._heads_block(depthwise):
            raise ConfigError(
                "int8 engine: wanted every depthwise convolution with padding k // 2, stride 1 "
                "or 2 and a 1x1 convolution after it, got "
                f"weights {list(depthwise.weight.shape)}, padding {depthwise.padding}, "
                f"stride {depthwise.stride}",
                hint="run the file with ONNX Runtime instead",
            )
        projection = self._only_reader(depthwise.y)
        assert isinstance(projection, ConvolutionStep)
        first = depthwise if expansion is None else expansion
        x, y, addition = first.x, projection.y, None
        total = self._only_reader(projection.y)
        if isinstance(total, AddStep) and {total.a.name, total.b.name} == {x.name, y.name}:
            addition = QuantizedAddition(
                x_scale=x.scale,
                y_scale=y.scale,
                sum_scale=total.y.scale,
                sum_zero_point=total.y.zero_point,
                x_first=total.a.name == x.name,
            )
            y = total.y
            self._mark(total)
        block = pack_block(
            expansion=None if expansion is None else _layer(expansion),
            depthwise=_layer(depthwise),
            projection=_layer(projection),
            x_zero_point=x.zero_point,
            height=x.shape[1],
            width=x.shape[2],
            stride=depthwise.stride,
            addition=addition,
            vnni=self._vnni,
            num_threads=self._num_threads,
        )
        shape = block.shape
        padding = 0 if shape.expands else shape.padding
        self._scratch_of("wide", shape.wide_bytes)
        self._scratch_of("deep", shape.deep_bytes)
        arguments = block.arguments(
            self._padded(x, padding),
            self.buffer(y),
            wide=self._scratch["wide"],
            deep=self._scratch["deep"],
            shortcut=self.buffer(x) if shape.has_shortcut else None,
        )
        layers = [layer for layer in (expansion, depthwise, projection) if layer is not None]
        for layer in layers:
            self._mark(layer)
        name = (
            f"block {x.shape[0]}-{shape.hidden_channels}-{shape.out_channels}@{shape.height}"
            f" s{shape.stride}"
        )
        self._put(name, block.function(), arguments, sum(map(_macs, layers)))

    def _padded(self, tensor: ByteTensor, padding: int) -> Tensor:
        if padding and (tensor.name, padding) not in self._buffers:
            from effdl.export.int8_functions import pad_function

            channels, height, width = tensor.shape
            function = pad_function(
                num_channels=channels,
                height=height,
                width=width,
                padding=padding,
                point=tensor.zero_point,
            )
            self._put("borders", function, (self.buffer(tensor), self.buffer(tensor, padding)))
        return self.buffer(tensor, padding)

    def _add_stem(self, step: ConvolutionStep) -> None:
        from effdl.export.int8_functions import image_function, stem_function
        from effdl.kernels.inverted_residual.tvm_block import output_of, pack_pointwise

        channels, height, width = step.x.shape
        size, padding = step.weight.shape[2], step.padding
        if channels > _MAX_IMAGE_CHANNELS or step.groups != 1:
            raise ConfigError(
                f"int8 engine: wanted an image of at most {_MAX_IMAGE_CHANNELS} channels and a "
                f"convolution over all of them, got {channels} in {step.groups} groups"
            )
        if (step.x.name, -1) in self._buffers:
            raise ConfigError("int8 engine: wanted one convolution of the image, got several")
        pixels = torch.zeros((height + 2 * padding) * (width + 2 * padding) * 4, dtype=torch.uint8)
        self._buffers[step.x.name, -1] = pixels
        self._put(
            "image",
            image_function(
                shape=step.x.shape,
                padding=padding,
                scale=step.x.scale,
                zero_point=step.x.zero_point,
                num_threads=self._num_threads,
            ),
            (pixels,),
        )
        # Where only depthwise convolutions read it, it is written with their borders.
        readers = self._readers.get(step.y.name, [])
        borders = {
            r.padding if isinstance(r, ConvolutionStep) and r.is_depthwise else 0 for r in readers
        }
        y_padding = borders.pop() if len(borders) == 1 else 0
        kernels = np.zeros((step.weight.shape[0], size, size, 4), np.int8)
        kernels[..., :channels] = step.weight.transpose(0, 2, 3, 1)
        layer = _layer(step)
        flat = QuantizedConvolution(
            weight=torch.from_numpy(kernels.reshape(kernels.shape[0], -1)),
            bias=layer.bias,
            multiplier=layer.multiplier,
            y_zero_point=layer.y_zero_point,
            y_min=layer.y_min,
            y_max=layer.y_max,
        )
        function = stem_function(
            num_outputs=step.weight.shape[0],
            height=height,
            width=width,
            x_padding=padding,
            kernel_size=size,
            stride=step.stride,
            y_padding=y_padding,
            y_point=step.y.zero_point,
            output=output_of(layer),
            vnni=self._vnni,
            num_threads=self._num_threads,
        )
        weights = pack_pointwise(flat, x_zero_point=step.x.zero_point, vnni=self._vnni)
        y = self.buffer(step.y, y_padding)
        self._put("stem", function, (pixels, *weights, y), _macs(step))

    def _add_pointwise(self, step: ConvolutionStep) -> None:
        from effdl.export.int8_functions import pointwise_function
        from effdl.kernels.inverted_residual.tvm_block import output_of, pack_pointwise

        layer = _layer(step)
        channels, height, width = step.x.shape
        function = pointwise_function(
            num_inputs=channels,
            num_outputs=step.y.shape[0],
            num_pixels=height * width,
            output=output_of(layer),
            vnni=self._vnni,
            num_threads=self._num_threads,
        )
        weights = pack_pointwise(layer, x_zero_point=step.x.zero_point, vnni=self._vnni)
        name = f"1x1 {channels}-{step.y.shape[0]}@{height}"
        arguments = (self.buffer(step.x), *weights, self.buffer(step.y))
        self._put(name, function, arguments, _macs(step))

    def _add_logits(self, step: ConvolutionStep) -> None:
        from effdl.export.int8_functions import logits_function
        from effdl.kernels.inverted_residual.tvm_block import pack_pointwise

        num_inputs, num_outputs = step.x.shape[0], step.y.shape[0]
        function = logits_function(num_inputs=num_inputs, num_outputs=num_outputs, vnni=self._vnni)
        weights = pack_pointwise(_layer(step), x_zero_point=step.x.zero_point, vnni=self._vnni)
        self.logits = torch.zeros(padded_channels(num_outputs), dtype=torch.float32)
        channels = np.arange(num_outputs)
        # Where each channel stands among the lanes.
        self.order = channels
        if self._vnni:
            lanes = pack_pointwise_vectors(channels + 1)
            self.order = np.argsort(lanes)[lanes.size - num_outputs :]
        name = f"linear {num_inputs}-{num_outputs}"
        self._put(name, function, (self.buffer(step.x), *weights, self.logits), _macs(step))

    def _add_mean(self, step: MeanStep) -> None:
        from effdl.export.int8_functions import mean_function

        channels, height, width = step.x.shape
        num_pixels = height * width
        multiplier = np.float32(step.x.scale) / (np.float32(step.y.scale) * np.float32(num_pixels))
        function = mean_function(
            num_channels=channels,
            num_pixels=num_pixels,
            x_zero_point=step.x.zero_point,
            multiplier=float(multiplier),
            y_zero_point=step.y.zero_point,
        )
        self._put("mean", function, (self.buffer(step.x), self.buffer(step.y)))

    def _add_sum(self, step: AddStep) -> None:
        from effdl.export.int8_functions import add_function

        addition = QuantizedAddition(
            x_scale=step.a.scale,
            y_scale=step.b.scale,
            sum_scale=step.y.scale,
            sum_zero_point=step.y.zero_point,
        )
        a_ratio, b_ratio = addition.ratios()
        buffers = [self.buffer(tensor) for tensor in (step.a, step.b, step.y)]
        function = add_function(
            num_bytes=buffers[0].numel(),
            a_ratio=a_ratio,
            b_ratio=b_ratio,
            offset=addition.offset(x_zero_point=step.a.zero_point, y_zero_point=step.b.zero_point),
        )
        self._put("add", function, buffers)


def _inputs(step: Step) -> tuple[ByteTensor, ...]:
    return (step.a, step.b) if isinstance(step, AddStep) else (step.x,)


def _macs(step: ConvolutionStep) -> int:
    return step.weight.size * step.y.shape[1] * step.y.shape[2]


def _layer(step: ConvolutionStep) -> QuantizedConvolution:
    return QuantizedConvolution(
        weight=torch.from_numpy(np.array(step.weight)),
        bias=torch.from_numpy(np.array(step.bias)),
        multiplier=torch.from_numpy(np.array(step.multiplier)),
        y_zero_point=step.y.zero_point,
        y_min=step.y_min,
        y_max=step.y_max,
    )
