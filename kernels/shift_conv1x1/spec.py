"""The folded shift as latency tables see it: its costs, its ONNX form, and how to run it."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor

from effdl.errors import BackendUnavailableError, ConfigError
from effdl.kernels.backend import Backend
from effdl.kernels.kernel_spec import KernelSpec
from effdl.kernels.shift_conv1x1.op import shift_conv1x1
from effdl.kernels.shift_conv1x1.reference import memory_format
from effdl.opspec import OpSpec

__all__ = [
    "MOBILENET_V2_SHAPES",
    "RESNET50_SHAPES",
    "default_specs",
    "make_run",
    "shift_conv1x1_spec",
]

_FLOAT32_BYTES = 4
_OPSET = 20
_IR_VERSION = 10

RESNET50_SHAPES = (
    (64, 64, 56),
    *[(256, 64, 56)] * 2,
    (256, 128, 56),
    *[(512, 128, 28)] * 3,
    (512, 256, 28),
    *[(1024, 256, 14)] * 5,
    (1024, 512, 14),
    *[(2048, 512, 7)] * 2,
)
"""Input and output channels and height (= width) of the 16 of a TSM ResNet-50 at 224 x 224."""

MOBILENET_V2_SHAPES = (
    (24, 144, 56),
    *[(32, 192, 28)] * 2,
    *[(64, 384, 14)] * 3,
    *[(96, 576, 14)] * 2,
    *[(160, 960, 7)] * 2,
)
"""The same of the 10 of a TSM MobileNetV2."""


def shift_conv1x1_spec(
    in_channels: int, out_channels: int, size: int, *, num_segments: int = 8, fold_div: int = 8
) -> OpSpec:
    """The convolution of shifted frames as an operator; one sample is one clip.

    Args:
        in_channels: C.
        out_channels: O.
        size: Height and width of a frame.
        num_segments: T.
        fold_div: As for `shift_conv1x1`; the direction is the MIT repository's.

    Raises:
        ConfigError: A fold_div below 2.
    """
    if fold_div < 2:
        raise ConfigError(f"fold_div: wanted at least 2, got {fold_div}")
    fold = in_channels // fold_div
    num_pixels = num_segments * size**2
    num_params = out_channels * in_channels + out_channels
    # In a clip's first and last frame one section of the channels has no frame to come from.
    macs = out_channels * (in_channels * num_pixels - 2 * fold * size**2)
    elements = num_pixels * (in_channels + out_channels)
    return OpSpec(
        key=f"ShiftConv1x1-input:{size}x{size}x{in_channels}"
        f"-output:{size}x{size}x{out_channels}-segments:{num_segments}-fold:{fold}-mit",
        num_params=num_params,
        macs=macs,
        bytes_moved=_FLOAT32_BYTES * (elements - 2 * fold * size**2 + num_params),
        peak_memory_bytes=_FLOAT32_BYTES * elements,
        features={"pointwise_macs": float(macs), "activation_elements": float(elements)},
        build=partial(_build, in_channels, out_channels, size, num_segments, fold),
    )


def make_run(
    in_channels: int,
    out_channels: int,
    size: int,
    *,
    num_segments: int = 8,
    fold_div: int = 8,
    channels_last: bool = False,
    batch_size: int,
    backend: Backend,
) -> Callable[[], object]:
    """A function that convolves made clips once, in float32, on TVM from memory to memory.

    Args:
        in_channels: C.
        out_channels: O.
        size: Height and width of a frame.
        num_segments: T.
        fold_div: As for `shift_conv1x1`.
        channels_last: Memory format of the frames.
        batch_size: Clips.
        backend: What runs it: Triton on a GPU, all else on the CPU.

    Raises:
        ConfigError: As for `shift_conv1x1`.
        BackendUnavailableError: The backend's compiler is not installed, or no GPU is here.
    """
    if backend is Backend.TRITON and not torch.cuda.is_available():
        raise BackendUnavailableError("Triton's kernels run on a GPU, got none here")
    device = "cuda" if backend is Backend.TRITON else "cpu"
    x = torch.rand(batch_size * num_segments, in_channels, size, size, device=device)
    x = x.contiguous(memory_format=torch.channels_last if channels_last else memory_format(x))
    weight = torch.rand(out_channels, in_channels, 1, 1, device=device) - 0.5
    bias = torch.rand(out_channels, device=device)

    def run() -> Tensor:
        return shift_conv1x1(
            x, weight, bias, num_segments=num_segments, fold_div=fold_div, backend=backend
        )

    y = run()
    if backend is not Backend.TVM:
        return run
    from effdl.kernels.shift_conv1x1 import tvm_kernel

    fold = in_channels // fold_div
    return partial(
        tvm_kernel.forward,
        x,
        weight,
        bias,
        num_segments=num_segments,
        fold_next=fold,
        fold_previous=fold,
        out=y,
    )


def default_specs() -> tuple[KernelSpec, ...]:
    """Those of 8-frame TSM ResNet-50 and MobileNetV2, each size once."""
    return tuple(
        KernelSpec(
            op=shift_conv1x1_spec(*shape),
            kernel="shift_conv1x1",
            case=f"{shape[0]}->{shape[1]}@{shape[2]}",
            dtype="float32",
            backends=(Backend.TVM, Backend.TRITON),
            make_run=partial(_make_default_run, *shape),
        )
        for shape in dict.fromkeys((*RESNET50_SHAPES, *MOBILENET_V2_SHAPES))
    )


def _make_default_run(
    in_channels: int, out_channels: int, size: int, batch_size: int, backend: Backend
) -> Callable[[], object]:
    return make_run(in_channels, out_channels, size, batch_size=batch_size, backend=backend)


def _build(
    in_channels: int, out_channels: int, size: int, num_segments: int, fold: int, batch_size: int
) -> bytes:
    """A Pad of -1 and 1 moves a section by one frame; then a Conv."""
    rng = np.random.default_rng(0)
    num_frames = batch_size * num_segments
    arrays: dict[str, np.ndarray] = {
        "weight": rng.standard_normal((out_channels, in_channels, 1, 1)).astype(np.float32)
        / np.float32(in_channels) ** 0.5,
        "bias": rng.standard_normal(out_channels).astype(np.float32),
    }
    nodes: list[NodeProto] = []
    convolved = "input"
    if fold:
        arrays |= {
            "clips": np.array([batch_size, num_segments, in_channels, size * size]),
            "frames": np.array([num_frames, in_channels, size, size]),
            "widths": np.array([fold, fold, in_channels - 2 * fold]),
            "ahead": np.array([0, -1, 0, 0, 0, 1, 0, 0]),
            "back": np.array([0, 1, 0, 0, 0, -1, 0, 0]),
        }
        convolved = "shifted"
        nodes = [
            helper.make_node("Reshape", ["input", "clips"], ["clip"]),
            helper.make_node("Split", ["clip", "widths"], ["next", "previous", "still"], axis=2),
            helper.make_node("Pad", ["next", "ahead"], ["from_next"]),
            helper.make_node("Pad", ["previous", "back"], ["from_previous"]),
            helper.make_node("Concat", ["from_next", "from_previous", "still"], ["all"], axis=2),
            helper.make_node("Reshape", ["all", "frames"], ["shifted"]),
        ]
    nodes.append(helper.make_node("Conv", [convolved, "weight", "bias"], ["output"]))
    images = [num_frames, in_channels, size, size]
    graph = helper.make_graph(
        nodes,
        "effdl",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, images)],
        [
            helper.make_tensor_value_info(
                "output", TensorProto.FLOAT, [num_frames, out_channels, size, size]
            )
        ],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(
        graph,
        ir_version=_IR_VERSION,
        opset_imports=[helper.make_opsetid("", _OPSET)],
        producer_name="effdl",
    )
    return model.SerializeToString()
