"""A whole int8 network compiled by TVM for this machine, without packing between operators.

It reads what QuantizeLinear and DequantizeLinear enclose (`effdl.export.int8_graph`), puts
every activation in blocks of 64 channels (`effdl.kernels.channel_blocks`), fuses inverted
residuals, and keeps one list of calls. All arithmetic is that of ONNX Runtime's QLinear
operators, so the outputs are the same numbers.
"""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from effdl.compilers import check_tvm
from effdl.errors import ConfigError
from effdl.export.int8_graph import Int8Graph, read_int8_graph
from effdl.export.int8_plan import Call, plan_calls

__all__ = ["Int8Engine", "compile_int8"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Engine:
    """A compiled network for images of one size, one at a time.

    Not for use by several threads at once: its buffers are its own.

    Attributes:
        graph: What it computes.
        image_call: Quantizes the image; its first argument is the image, [C * H * W].
        calls: What runs then, in order.
        logits: Where the output comes to stand, bytes or floats.
        order: Where each output channel stands in it.
        num_threads: How many threads share each function's work.
    """

    graph: Int8Graph
    image_call: Call
    calls: tuple[Call, ...]
    logits: torch.Tensor
    order: NDArray[np.int64]
    num_threads: int

    def run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """The network's output for one image.

        Args:
            x: float32, [1, C, H, W].

        Raises:
            ConfigError: Another shape or number format.
        """
        wanted = (1, *self.graph.image.shape)
        if x.shape != wanted or x.dtype != np.float32:
            raise ConfigError(
                f"int8 engine: wanted float32 {list(wanted)}, got {x.dtype} {list(x.shape)}"
            )
        from effdl.kernels.tvm_runtime import use_threads

        use_threads(self.num_threads)
        flat = torch.from_numpy(np.require(x, requirements=("C", "W"))).view(-1)
        self.image_call.function(flat, *self.image_call.arguments)
        for call in self.calls:
            call.function(*call.arguments)
        output = self.graph.output
        values = self.logits.numpy()[self.order].astype(np.float32)
        if self.logits.dtype == torch.uint8:
            values -= np.float32(output.zero_point)
            values *= np.float32(output.scale)
        return values.reshape(1, *self.graph.output_shape)


def compile_int8(
    model: onnx.ModelProto | str | PathLike[str],
    *,
    num_threads: int = 1,
    vnni: bool | None = None,
) -> Int8Engine:
    """Compile an int8 network for this machine.

    Args:
        model: An ONNX graph with QuantizeLinear and DequantizeLinear around all operators,
            or the path of its file; [N, C, H, W] with C <= 4.
        num_threads: How many threads share each function's work.
        vnni: Whether to use AVX512-VNNI; None: where the machine has it.

    Raises:
        BackendUnavailableError: TVM is not installed.
        ConfigError: An operator, or a form of one, that it does not know.
    """
    check_tvm()
    if not isinstance(model, onnx.ModelProto):
        model = onnx.load(Path(model))
    graph = read_int8_graph(model)
    logits, order, (image_call, *calls) = plan_calls(graph, vnni=vnni, num_threads=num_threads)
    return Int8Engine(
        graph=graph,
        image_call=image_call,
        calls=tuple(calls),
        logits=logits,
        order=order,
        num_threads=num_threads,
    )
