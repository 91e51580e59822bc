"""Temporal shifts that cost little in a runtime without such an operator.

A shift moves a quarter of the channels. As plain nodes it copies all of them, and
in ONNX Runtime converts all of them between its blocked layout and the plain one and
back. Here the channels that move are computed as a tensor of their own, wherever the
shifted tensor comes from: the convolutions that produce it are cut in two by output
channels, and everything between them (Add, Relu, pooling) is doubled. Only the small
tensor is converted and shifted::

    x = Relu(Conv(h) + identity)      moving = Relu(Conv'(h) + identity')
    Conv(Shift(x))                    still  = Relu(Conv''(h) + identity'')
                                      Conv(Concat(still, AveragePool(Shift(moving))))

The 1x1 AveragePool computes nothing: it brings the small tensor into the blocked
layout, in which the Concat then stays. The still channels come first because ONNX
Runtime takes the sizes of the result from the first input, and adds inside a
convolution only what it knows to be of equal size. All sums have the operands of the
unchanged graph, and no number is multiplied by zero: NaN and infinity stay in place.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from math import gcd

import numpy as np
from onnxscript import ir

from effdl.export.graph_builder import GraphBuilder
from effdl.export.shift_pattern import Shift, constant, find_shifts, static_sizes

__all__ = ["BLOCK", "split_shifted_channels"]

# Floats in a block of ONNX Runtime's layout on processors with AVX-512; 8 elsewhere.
BLOCK = 16
_CHANNELWISE = frozenset({"Add", "AveragePool", "Clip", "MaxPool", "Relu"})
_Parts = tuple[ir.Value, ir.Value]


def split_shifted_channels(model: ir.Model, *, block: int = BLOCK) -> int:
    """Rewrite the temporal shifts of an exported model, in place.

    A shift in float32 whose moving channels fill whole blocks, and whose input comes from
    convolutions, gets them as a tensor of their own. Any other becomes four nodes where it
    stands: Reshape, Pad, Gather, Reshape.

    Args:
        model: As PyTorch's exporter writes it, with static sizes but the batch's.
        block: Channels of a block.

    Returns:
        How many shifts there were.
    """
    shifts = find_shifts(model.graph)
    if shifts:
        _Rewrite(model.graph, shifts, block).run()
    return len(shifts)


def _is_channelwise(node: ir.Node | None) -> bool:
    """Whether channels [a, b) of the output need just channels [a, b) of the inputs."""
    if node is None or node.op_type not in _CHANNELWISE or node.domain or len(node.outputs) != 1:
        return False
    frames = static_sizes(node.outputs[0], 4)
    tensors = [v for v in node.inputs if v is not None and constant(v) is None]
    sizes = [static_sizes(v, 4) for v in tensors]
    if node.op_type == "Add":
        return len(tensors) == 2 and sizes == [frames, frames]
    return len(tensors) == 1 and frames is not None and sizes[0] is not None


def _is_plain_conv(node: ir.Node | None) -> bool:
    """A convolution over all channels, with constant weights."""
    if node is None or node.op_type != "Conv" or node.domain:
        return False
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return (
        node.attributes.get_int("group", 1) == 1
        and constant(node.inputs[1]) is not None
        and (bias is None or constant(bias) is not None)
    )


class _Rewrite:
    """One pass over a graph, from its inputs to its outputs."""

    def __init__(self, graph: ir.Graph, shifts: list[Shift], block: int) -> None:
        self._graph, self._builder = graph, GraphBuilder(graph, "shift")
        self._shifts: Mapping[ir.Node, Shift] = {shift.node: shift for shift in shifts}
        self._num_moving = self._plan(shifts, block)
        self._parts: dict[ir.Value, _Parts] = {}
        self._shifted: dict[ir.Value, _Parts] = {}
        self._whole: dict[tuple[ir.Value, bool], ir.Value] = {}

    def run(self) -> None:
        for node in list(self._graph):
            self._visit(node)
        self._remove_unused()

    def _plan(self, shifts: list[Shift], block: int) -> dict[ir.Value, int]:
        """How many first channels stand apart, for every value that is cut in two."""
        plan: dict[ir.Value, int] = {}
        outputs = set(self._graph.outputs)
        for shift in shifts:
            num = sum(size for _, size, _ in shift.moves)
            if num % block or not 0 < num < shift.channels:
                continue
            if shift.source.dtype != ir.DataType.FLOAT:
                continue
            values = set(_connected(shift.source))
            if values & outputs or shift.result in outputs:
                continue
            made_by = [v.producer() for v in values]
            cut = all(_is_channelwise(node) or _is_plain_conv(node) for node in made_by)
            if cut and all(plan.get(v, num) == num for v in values):
                plan |= dict.fromkeys(values, num)
        return plan

    def _visit(self, node: ir.Node) -> None:
        shift = self._shifts.get(node)
        if shift is not None:
            self._lower(shift)
        elif _is_plain_conv(node):
            self._convolve(node)
        elif node.outputs and node.outputs[0] in self._num_moving:
            self._parts[node.outputs[0]] = self._double(node)
        else:
            for index, value in enumerate(node.inputs):
                if value is not None and (value in self._parts or value in self._shifted):
                    whole = self._concat(value, node, still_first=False)
                    node.replace_input_with(index, whole)

    def _lower(self, shift: Shift) -> None:
        if shift.source not in self._parts or self._num_moving[shift.source] != sum(
            size for _, size, _ in shift.moves
        ):
            moved = self._move(shift, self._input(shift), shift.channels)
            ir.convenience.replace_all_uses_with(shift.result, moved, replace_graph_outputs=True)
            return
        moving, still = self._parts[shift.source]
        num = self._num_moving[shift.source]
        moved = self._builder.node(
            "AveragePool",
            [self._move(shift, moving, num)],
            before=shift.node,
            like=moving,
            sizes=(num, *shift.sizes),
            kernel_shape=[1, 1],
        )
        self._shifted[shift.result] = (moved, still)

    def _input(self, shift: Shift) -> ir.Value:
        if shift.source in self._parts or shift.source in self._shifted:
            return self._concat(shift.source, shift.node, still_first=False)
        return shift.source

    def _move(self, shift: Shift, x: ir.Value, channels: int) -> ir.Value:
        """The shift of all channels of a value: one row of zeros, and a gather of rows."""
        rows_per_frame = channels // gcd(channels, *(n for move in shift.moves for n in move[:2]))
        num_rows = shift.num_segments * rows_per_frame
        row = channels // rows_per_frame * shift.sizes[0] * shift.sizes[1]
        source = np.arange(num_rows).reshape(shift.num_segments, rows_per_frame)
        rows = source.copy()
        for begin, size, offset in shift.moves:
            first, last = (n * rows_per_frame // channels for n in (begin, begin + size))
            section = np.roll(source[:, first:last], -offset, axis=0)
            section[-1 if offset > 0 else 0] = num_rows
            rows[:, first:last] = section
        make, build, at = self._builder.node, self._builder, shift.node
        clips = shift.node.inputs[0]
        num_clips = clips.shape[0] if clips is not None and clips.shape is not None else None
        shape = build.integers((-1, num_rows, row), "shape")
        y = make("Reshape", [x, shape], before=at, like=x, sizes=(num_rows, row), first=num_clips)
        pads = [y, build.integers((0, 0, 0, 0, 1, 0), "pads")]
        if shift.fill is not None and np.any(constant(shift.fill)):
            pads.append(shift.fill)
        y = make("Pad", pads, before=at, like=y, sizes=(num_rows + 1, row))
        indices = build.constant(rows.reshape(-1).astype(np.int64), "rows")
        y = make("Gather", [y, indices], before=at, like=y, sizes=(num_rows, row), axis=1)
        sizes = (channels, *shift.sizes)
        return make(
            "Reshape", [y, build.integers((-1, *sizes), "shape")], before=at, like=x, sizes=sizes
        )

    def _convolve(self, node: ir.Node) -> None:
        """Take the still channels first; give the moving channels apart."""
        x, output = node.inputs[0], node.outputs[0]
        reorders = x is not None and (x in self._parts or x in self._shifted)
        num_out = self._num_moving.get(output)
        if x is None or (not reorders and num_out is None):
            return
        weight, bias = constant(node.inputs[1]), None
        assert weight is not None
        if len(node.inputs) > 2:
            bias = constant(node.inputs[2])
        if reorders:
            moving = (self._parts.get(x) or self._shifted[x])[0]
            num_in = moving.shape[1] if moving.shape is not None else None
            assert isinstance(num_in, int)
            weight = np.concatenate([weight[:, num_in:], weight[:, :num_in]], axis=1)
            x = self._concat(x, node, still_first=True)
        sizes = static_sizes(output, 4)
        assert sizes is not None
        bounds = [0, len(weight)] if num_out is None else [0, num_out, len(weight)]
        results = []
        for begin, end in pairwise(bounds):
            inputs = [x, self._builder.constant(weight[begin:end], "weight")]
            if bias is not None:
                inputs.append(self._builder.constant(bias[begin:end], "bias"))
            results.append(
                self._builder.node(
                    "Conv",
                    inputs,
                    before=node,
                    like=output,
                    sizes=(end - begin, *sizes[1:]),
                    attributes=tuple(node.attributes.values()),
                )
            )
        if num_out is None:
            _replace(output, results[0])
        else:
            self._parts[output] = (results[0], results[1])

    def _double(self, node: ir.Node) -> _Parts:
        output = node.outputs[0]
        sizes, num = static_sizes(output, 4), self._num_moving[output]
        assert sizes is not None
        both = [
            self._builder.node(
                node.op_type,
                [self._parts[v][part] if v in self._parts else v for v in node.inputs if v],
                before=node,
                like=output,
                sizes=(channels, *sizes[1:]),
                attributes=tuple(node.attributes.values()),
            )
            for part, channels in enumerate((num, sizes[0] - num))
        ]
        return both[0], both[1]

    def _concat(self, value: ir.Value, at: ir.Node, *, still_first: bool) -> ir.Value:
        """The whole of a value that was cut in two; once for all that need it so."""
        key = (value, still_first)
        if key not in self._whole:
            moving, still = self._parts.get(value) or self._shifted[value]
            order = (still, moving) if still_first else (moving, still)
            self._whole[key] = self._builder.node(
                "Concat", order, before=at, like=value, sizes=static_sizes(value, 4), axis=1
            )
        return self._whole[key]

    def _remove_unused(self) -> None:
        outputs = set(self._graph.outputs)
        for node in reversed(list(self._graph)):
            if not any(value.uses() or value in outputs for value in node.outputs):
                self._graph.remove(node, safe=True)
        for value in list(self._graph.initializers.values()):
            if not value.uses() and value not in outputs and value.name is not None:
                self._graph.initializers.pop(value.name)


def _replace(old: ir.Value, new: ir.Value) -> None:
    """Let all who use one value use another; an output of the graph keeps its name."""
    name, is_output = old.name, old.is_graph_output()
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    if is_output:
        old.name, new.name = f"{name}_replaced", name


def _connected(value: ir.Value) -> Iterator[ir.Value]:
    """The value, and all that are of the same channels through channel-wise nodes."""
    seen, waiting = {value}, [value]
    while waiting:
        current = waiting.pop()
        yield current
        near: list[ir.Value] = []
        producer = current.producer()
        if producer is not None and _is_channelwise(producer):
            near += [v for v in producer.inputs if v is not None and constant(v) is None]
        near += [u.node.outputs[0] for u in current.uses() if _is_channelwise(u.node)]
        new = set(near) - seen
        seen |= new
        waiting += sorted(new, key=lambda v: v.name or "")
