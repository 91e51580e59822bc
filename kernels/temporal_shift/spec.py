"""The temporal shift as latency tables see it: its costs, its ONNX form, and how to run it."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper

from effdl.errors import BackendUnavailableError
from effdl.kernels.backend import Backend
from effdl.kernels.kernel_spec import KernelSpec
from effdl.kernels.temporal_shift.custom_op import shift_into
from effdl.kernels.temporal_shift.op import Direction, shift_sections
from effdl.kernels.temporal_shift.reference import Sections
from effdl.opspec import OpSpec

__all__ = [
    "MOBILENET_V2_SHAPES",
    "RESNET50_SHAPES",
    "default_specs",
    "make_run",
    "temporal_shift_spec",
]

_FLOAT32_BYTES = 4
_OPSET = 20
_IR_VERSION = 10

RESNET50_SHAPES = (
    (64, 56),
    *[(256, 56)] * 3,
    *[(512, 28)] * 4,
    *[(1024, 14)] * 6,
    *[(2048, 7)] * 2,
)
"""Channels and height (= width) at the 16 shifts of a TSM ResNet-50 on 224 x 224 images."""

MOBILENET_V2_SHAPES = (
    (24, 56),
    *[(32, 28)] * 2,
    *[(64, 14)] * 3,
    *[(96, 14)] * 2,
    *[(160, 7)] * 2,
)
"""Channels and height (= width) at the 10 shifts of a TSM MobileNetV2 on 224 x 224 images."""


def temporal_shift_spec(
    channels: int,
    size: int,
    *,
    num_segments: int = 8,
    fold_div: int = 8,
    direction: Direction = "mit",
    causal: bool = False,
) -> OpSpec:
    """The shift as an operator; one sample is one clip.

    Args:
        channels: C.
        size: Height and width of a frame.
        num_segments: T.
        fold_div: As for `temporal_shift`.
        direction: As for `temporal_shift`.
        causal: As for `temporal_shift`.

    Raises:
        ConfigError: As for `temporal_shift`.
        UnknownNameError: There is no such direction.
    """
    sections = shift_sections(channels, fold_div=fold_div, direction=direction, causal=causal)
    elements = num_segments * channels * size**2
    # One frame's moving channels leave the clip and are never read.
    unread = (sections.first + sections.second) * size**2
    way = "causal" if causal else direction
    return OpSpec(
        key=f"TemporalShift-input:{size}x{size}x{channels}-output:{size}x{size}x{channels}"
        f"-segments:{num_segments}-fold:{sections.first}-{way}",
        num_params=0,
        macs=0,
        bytes_moved=_FLOAT32_BYTES * (2 * elements - unread),
        peak_memory_bytes=_FLOAT32_BYTES * 2 * elements,
        features={"activation_elements": 2.0 * elements},
        build=partial(_build, channels, size, num_segments, sections),
    )


def make_run(
    channels: int,
    size: int,
    *,
    num_segments: int = 8,
    fold_div: int = 8,
    direction: Direction = "mit",
    causal: bool = False,
    dtype: torch.dtype = torch.float32,
    batch_size: int,
    backend: Backend,
) -> Callable[[], object]:
    """A function that shifts made clips once, from memory to memory.

    Args:
        channels: C.
        size: Height and width of a frame.
        num_segments: T.
        fold_div: As for `temporal_shift`.
        direction: As for `temporal_shift`.
        causal: As for `temporal_shift`.
        dtype: Number format.
        batch_size: Clips.
        backend: What runs it: Triton on a GPU, all else on the CPU.

    Raises:
        ConfigError: As for `temporal_shift`.
        UnknownNameError: There is no such direction.
        BackendUnavailableError: The backend's compiler is not installed, or no GPU is here.
    """
    if backend is Backend.TRITON and not torch.cuda.is_available():
        raise BackendUnavailableError("Triton's kernels run on a GPU, got none here")
    sections = shift_sections(channels, fold_div=fold_div, direction=direction, causal=causal)
    device = "cuda" if backend is Backend.TRITON else "cpu"
    shape = (batch_size * num_segments, channels, size, size)
    x = torch.rand(shape, device=device).to(dtype)
    run = partial(
        shift_into,
        x,
        torch.empty_like(x),
        num_segments=num_segments,
        sections=sections,
        fill_value=0,
        backend=backend.value,
    )
    run()
    return run


def default_specs() -> tuple[KernelSpec, ...]:
    """The shifts of 8-frame TSM ResNet-50 and MobileNetV2, each size once."""
    return tuple(
        KernelSpec(
            op=temporal_shift_spec(channels, size),
            kernel="temporal_shift",
            case=f"{channels}@{size}",
            dtype="float32",
            backends=(Backend.TVM, Backend.TRITON),
            make_run=partial(_make_default_run, channels, size),
        )
        for channels, size in dict.fromkeys((*RESNET50_SHAPES, *MOBILENET_V2_SHAPES))
    )


def _make_default_run(
    channels: int, size: int, batch_size: int, backend: Backend
) -> Callable[[], object]:
    return make_run(channels, size, batch_size=batch_size, backend=backend)


def _build(
    channels: int, size: int, num_segments: int, sections: Sections, batch_size: int
) -> bytes:
    """The operators of `reference.shift_by_padding`: a Pad of -1 and 1 moves by one frame."""
    first, second, offset = sections
    frames = [batch_size * num_segments, channels, size, size]
    widths = {"first": first, "second": second, "still": channels - first - second}
    widths = {name: width for name, width in widths.items() if width > 0}
    steps = {"first": offset, "second": -offset}
    constants = {
        "clips": [batch_size, num_segments, channels, size * size],
        "frames": frames,
        "widths": list(widths.values()),
    }
    nodes: list[NodeProto] = [
        helper.make_node("Reshape", ["input", "clips"], ["clip"]),
        helper.make_node("Split", ["clip", "widths"], list(widths), axis=2),
    ]
    joined: list[str] = []
    for name in widths:
        if name in steps:
            constants[f"{name}_pads"] = [0, -steps[name], 0, 0, 0, steps[name], 0, 0]
            nodes.append(helper.make_node("Pad", [name, f"{name}_pads"], [f"{name}_moved"]))
            joined.append(f"{name}_moved")
        else:
            joined.append(name)
    nodes += [
        helper.make_node("Concat", joined, ["joined"], axis=2),
        helper.make_node("Reshape", ["joined", "frames"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "effdl",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, frames)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, frames)],
        [
            numpy_helper.from_array(np.array(values, np.int64), name)
            for name, values in constants.items()
        ],
    )
    model = helper.make_model(
        graph,
        ir_version=_IR_VERSION,
        opset_imports=[helper.make_opsetid("", _OPSET)],
        producer_name="effdl",
    )
    return model.SerializeToString()
