"""Finding temporal shifts in an exported graph.

`effdl.kernels.temporal_shift` exports as six plain nodes: Reshape to clips, Split by
channels, one Pad per moving section (minus one frame at one end, plus one at the other),
Concat, Reshape back to frames.
"""

from dataclasses import dataclass

import numpy as np
from onnxscript import ir

__all__ = ["Shift", "constant", "find_shifts", "static_sizes"]

_CHANNEL_AXIS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """One temporal shift.

    Attributes:
        source: The frames it reads, [N*T, C, H, W].
        result: The shifted frames, of the same shape.
        num_segments: T, frames of a clip.
        channels: C.
        sizes: H and W.
        moves: (first channel, channels, frame offset) of every section that moves:
            offset 1 reads the following frame.
        fill: The Pads' constant value; None: zero.
        node: The last of its nodes.
    """

    source: ir.Value
    result: ir.Value
    num_segments: int
    channels: int
    sizes: tuple[int, int]
    moves: tuple[tuple[int, int, int], ...]
    fill: ir.Value | None
    node: ir.Node


def constant(value: ir.Value | None) -> np.ndarray | None:
    """What a value always is, or None."""
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()


def static_sizes(value: ir.Value | None, num_axes: int) -> tuple[int, ...] | None:
    """All sizes but the first of a value with so many axes, where they are fixed."""
    if value is None or value.shape is None or len(value.shape) != num_axes:
        return None
    sizes = [d for d in value.shape.dims[1:] if isinstance(d, int)]
    return tuple(sizes) if len(sizes) == num_axes - 1 else None


def find_shifts(graph: ir.Graph) -> list[Shift]:
    """The temporal shifts of a graph, in its order."""
    found = (_match(node) for node in graph if node.op_type == "Concat")
    return [shift for shift in found if shift is not None]


def _match(concat: ir.Node) -> Shift | None:
    back = _only_user(concat.outputs[0])
    split = _split_of(concat)
    if back is None or back.op_type != "Reshape" or split is None:
        return None
    clips = split.inputs[0].producer() if split.inputs[0] is not None else None
    if clips is None or clips.op_type != "Reshape":
        return None
    source, result = clips.inputs[0], back.outputs[0]
    frame, clip = static_sizes(source, 4), static_sizes(split.inputs[0], 5)
    if source is None or frame is None or clip is None:
        return None
    if clip[1:] != frame or static_sizes(result, 4) != frame:
        return None
    moves, fill, begin = [], None, 0
    for part in split.outputs:
        size = static_sizes(part, 5)
        if size is None:
            return None
        users = [use.node for use in part.uses()]
        if users and users[0].op_type == "Pad":
            offset = _offset(users[0])
            if offset is None:
                return None
            moves.append((begin, size[1], offset))
            fill = users[0].inputs[2] if len(users[0].inputs) > 2 else None
        begin += size[1]
    return Shift(
        source=source,
        result=result,
        num_segments=clip[0],
        channels=frame[0],
        sizes=(frame[1], frame[2]),
        moves=tuple(moves),
        fill=fill,
        node=back,
    )


def _only_user(value: ir.Value) -> ir.Node | None:
    users = [use.node for use in value.uses()]
    return users[0] if len(users) == 1 else None


def _split_of(concat: ir.Node) -> ir.Node | None:
    """The Split whose non-empty parts the node concatenates in order, moved or not."""
    parts = []
    for value in concat.inputs:
        pad = value.producer() if value is not None else None
        parts.append(pad.inputs[0] if pad is not None and pad.op_type == "Pad" else value)
    split = parts[0].producer() if parts[0] is not None else None
    if split is None or split.op_type != "Split":
        return None
    axes = {node.attributes.get_int("axis", 0) for node in (split, concat)}
    wanted = [part for part in split.outputs if part.uses()]
    alone = all(_only_user(part) is not None for part in wanted)
    return split if axes == {_CHANNEL_AXIS} and parts == wanted and alone else None


def _offset(pad: ir.Node) -> int | None:
    """1 where a Pad moves every frame one place ahead, -1 for one back, else None."""
    pads = constant(pad.inputs[1])
    mode = pad.attributes.get_string("mode", "constant")
    if pads is None or len(pads) != 10 or mode != "constant" or len(pad.inputs) > 3:
        return None
    before, after = int(pads[1]), int(pads[6])
    rest = np.delete(pads, [1, 6])
    return after if (before, after) in {(-1, 1), (1, -1)} and not rest.any() else None
