"""The folded shift beside the same convolution without a shift, and beside ONNX Runtime's."""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from effdl.kernels.backend import Backend
from effdl.kernels.shift_conv1x1.module import ShiftConv1x1
from effdl.kernels.shift_conv1x1.spec import (
    MOBILENET_V2_SHAPES,
    RESNET50_SHAPES,
    make_run,
    shift_conv1x1_spec,
)
from effdl.models.resnet.network import resnet50

Report = Callable[..., Mapping[str, float]]
Run = Callable[[], object]
NUM_SEGMENTS = 8
NO_FOLD = 10**6
SHAPES = tuple(dict.fromkeys((*RESNET50_SHAPES, *MOBILENET_V2_SHAPES)))


def shifted_naively(x: Tensor) -> Tensor:
    frames = x.view(-1, NUM_SEGMENTS, *x.shape[1:])
    fold = x.shape[1] // 8
    shifted = torch.zeros_like(frames)
    shifted[:, :-1, :fold] = frames[:, 1:, :fold]
    shifted[:, 1:, fold : 2 * fold] = frames[:, :-1, fold : 2 * fold]
    shifted[:, :, 2 * fold :] = frames[:, :, 2 * fold :]
    return shifted.view(x.shape)


def naively(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.conv2d(shifted_naively(x), weight, bias)


def onnxruntime_conv(x: Tensor, weight: Tensor, bias: Tensor, num_threads: int) -> Run:
    """Its plain 1x1 convolution, without a shift, from memory to memory."""
    y = torch.empty(x.shape[0], weight.shape[0], *x.shape[2:])
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "weight", "bias"], ["y"])],
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y.shape)],
        [
            numpy_helper.from_array(weight.numpy(), "weight"),
            numpy_helper.from_array(bias.numpy(), "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    binding.bind_input("x", "cpu", 0, np.float32, list(x.shape), x.data_ptr())
    binding.bind_output("y", "cpu", 0, np.float32, list(y.shape), y.data_ptr())

    def run(_kept: tuple[Tensor, Tensor] = (x, y)) -> None:
        session.run_with_iobinding(binding)

    return run


@pytest.fixture(scope="module")
def sums() -> Iterator[dict[tuple[int, str], float]]:
    """Milliseconds of the 16 of ResNet-50, by threads and variant; printed at the end."""
    totals: dict[tuple[int, str], float] = {}
    yield totals
    for num_threads in sorted({threads for threads, _ in totals}):
        row = {name: value for (threads, name), value in totals.items() if threads == num_threads}
        times = "  ".join(f"{name} {value:.2f}" for name, value in row.items())
        print(
            f"\n16 of resnet50, {num_threads} thread(s), ms: {times}; "
            f"the shift costs {row['tvm'] / row['tvm unshifted'] - 1:+.1%} in planes and "
            f"{row['tvm NHWC'] / row['tvm NHWC unshifted'] - 1:+.1%} channels-last"
        )


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}->{s[1]}@{s[2]}")
def test_one_convolution(
    benchmark: BenchmarkFixture,
    kernel_report: Report,
    sums: dict[tuple[int, str], float],
    shape: tuple[int, int, int],
    num_threads: int,
) -> None:
    channels, outputs, size = shape
    x = torch.randn(NUM_SEGMENTS, channels, size, size)
    ours = partial(make_run, *shape, batch_size=1, backend=Backend.TVM)
    weight = torch.randn(outputs, channels, 1, 1) * channels**-0.5
    bias = torch.randn(outputs)
    spec = shift_conv1x1_spec(*shape)
    with torch.no_grad():
        p20_ms = kernel_report(
            benchmark,
            kernel="shift_conv1x1",
            case=f"{channels}->{outputs}@{size}",
            variants={
                "tvm": ours(),
                "tvm unshifted": ours(fold_div=NO_FOLD),
                "tvm NHWC": ours(channels_last=True),
                "tvm NHWC unshifted": ours(channels_last=True, fold_div=NO_FOLD),
                "onnxruntime unshifted": onnxruntime_conv(x, weight, bias, num_threads),
                "torch unshifted": partial(functional.conv2d, x, weight, bias),
                "naive": partial(naively, x, weight, bias),
            },
            dtype="float32",
            bytes_moved=spec.bytes_moved,
            operations=spec.flops,
            num_threads=num_threads,
        )
    for name, value in p20_ms.items():
        key = (num_threads, name)
        sums[key] = sums.get(key, 0.0) + RESNET50_SHAPES.count(shape) * value
    print(
        f"shift {p20_ms['tvm'] / p20_ms['tvm unshifted'] - 1:+.1%}, "
        f"{p20_ms['tvm'] / p20_ms['onnxruntime unshifted']:.2f} x ONNX Runtime unshifted"
    )


class Naive(nn.Module):
    """Zeros, three copies of slices, and the convolution."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(shifted_naively(x))


def own(conv: nn.Conv2d, fold_div: int) -> nn.Module:
    return ShiftConv1x1.from_conv(conv, num_segments=NUM_SEGMENTS, fold_div=fold_div, backend="tvm")


FORMS: Mapping[str, Callable[[nn.Conv2d], nn.Module]] = {
    "folded": partial(own, fold_div=8),
    "2D": lambda conv: conv,
    "2D with own convolutions": partial(own, fold_div=NO_FOLD),
    "naive": Naive,
}


def network(form: str, layout: torch.memory_format, *, folds_norms: bool) -> nn.Module:
    """ResNet-50 with every block's first convolution in a form of its own."""
    torch.manual_seed(0)
    model = resnet50()
    if folds_norms:
        model.eval()
        modules: list[Any] = list(model.modules())
        for module in modules:
            for index in (1, 2, 3):
                conv, norm = getattr(module, f"conv{index}", None), f"bn{index}"
                if isinstance(conv, nn.Conv2d):
                    setattr(module, f"conv{index}", fuse_conv_bn_eval(conv, getattr(module, norm)))
                    setattr(module, norm, nn.Identity())
            downsample = getattr(module, "downsample", None)
            if isinstance(downsample, nn.Sequential):
                module.downsample = fuse_conv_bn_eval(module.downsample[0], module.downsample[1])
    stages: Any = model.stages
    for stage in stages:
        for block in stage:
            block.conv1 = FORMS[form](block.conv1)
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)
    return model


LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


def frames(layout: str) -> Tensor:
    return torch.randn(NUM_SEGMENTS, 3, 224, 224).contiguous(memory_format=LAYOUTS[layout])


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_network(
    benchmark: BenchmarkFixture, kernel_report: Report, layout: str, num_threads: int
) -> None:
    x = frames(layout)
    models = {form: network(form, LAYOUTS[layout], folds_norms=True) for form in FORMS}
    with torch.no_grad():
        p20_ms = kernel_report(
            benchmark,
            kernel="shift_conv1x1",
            case=f"resnet50 of {NUM_SEGMENTS} frames {layout}",
            variants={form: partial(model, x) for form, model in models.items()},
            dtype="float32",
            bytes_moved=x.nbytes,
            operations=0,
            num_threads=num_threads,
        )
    for form in ("2D", "2D with own convolutions"):
        print(f"folded {p20_ms['folded'] / p20_ms[form] - 1:+.1%} over {form}")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_step(benchmark: BenchmarkFixture, layout: str) -> None:
    """One step of each form in turn: the clock of `kernel_report` would take ten minutes."""
    x, label = frames(layout), torch.zeros(NUM_SEGMENTS, dtype=torch.long)
    models = {form: network(form, LAYOUTS[layout], folds_norms=False).train() for form in FORMS}
    seconds: dict[str, list[float]] = {form: [] for form in models}

    def step(model: nn.Module) -> None:
        functional.cross_entropy(model(x), label).backward()
        with torch.no_grad():
            # As an optimiser does: weights are packed anew for the next step.
            for parameter in model.parameters():
                parameter.mul_(1)

    def measure() -> None:
        for round_index in range(6):
            for form, model in models.items():
                start = time.perf_counter()
                step(model)
                if round_index:
                    seconds[form].append(time.perf_counter() - start)

    benchmark.pedantic(measure, rounds=1)
    fastest_ms = {form: 1000 * min(values) for form, values in seconds.items()}
    times = "  ".join(f"{form} {value:.0f}" for form, value in fastest_ms.items())
    print(f"\ntraining step {layout}, {torch.get_num_threads()} thread(s), fastest in ms: {times}")
    for form in ("2D", "2D with own convolutions"):
        print(f"folded {fastest_ms['folded'] / fastest_ms[form] - 1:+.1%} over {form}")
