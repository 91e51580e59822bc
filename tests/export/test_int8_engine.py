"""The int8 engine against ONNX Runtime, on graphs as quantizers write them."""

import copy
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from effdl.errors import ConfigError
from effdl.export.int8_engine import Int8Engine, compile_int8
from effdl.export.int8_graph import ConvolutionStep, read_int8_graph
from effdl.kernels.tvm_runtime import has_vnni
from effdl.targets.host import describe_host

PATHS = [
    pytest.param(
        True,
        id="vnni",
        marks=pytest.mark.skipif(not has_vnni(), reason="the processor has no AVX512-VNNI"),
    ),
    pytest.param(False, id="plain"),
]
SIZE = 23
needs_exact_peer = pytest.mark.skipif(
    describe_host().architecture == "x86_64"
    and not {"avx512_vnni", "avx_vnni"} & set(describe_host().isa),
    reason="ONNX Runtime's sums of products saturate without VNNI",
)


class Network:
    """A graph under construction; every tensor is named after its float form."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(0)
        self.shapes: dict[str, tuple[int, ...]] = {"input": (3, SIZE, SIZE)}
        self.scales: dict[str, tuple[float, int]] = {}

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def through_bytes(self, name: str, scale: float, point: int) -> str:
        """Quantize a float tensor and dequantize it again."""
        self.scales[name] = scale, point
        inputs = [
            self.constant(f"{name}_scale", np.array(scale, np.float32)),
            self.constant(f"{name}_point", np.array(point, np.uint8)),
        ]
        self.node("QuantizeLinear", [name, *inputs], f"{name}_q")
        return self.node("DequantizeLinear", [f"{name}_q", *inputs], f"{name}_dq")

    def weights(self, name: str, shape: tuple[int, ...], x_scale: float) -> list[str]:
        # Seven bits: older processors' 16-bit sums of products must not saturate.
        weight = self.rng.integers(-63, 64, shape).astype(np.int8)
        scale = (0.01 + 0.01 * self.rng.random(shape[0])).astype(np.float32)
        bias = self.rng.integers(-500, 500, shape[0]).astype(np.int32)
        self.constant(f"{name}_wq", weight)
        self.constant(f"{name}_ws", scale)
        self.constant(f"{name}_wz", np.zeros(shape[0], np.int8))
        self.constant(f"{name}_bq", bias)
        self.constant(f"{name}_bs", np.float32(x_scale) * scale)
        self.constant(f"{name}_bz", np.zeros(shape[0], np.int32))
        parts = ["wq", "ws", "wz"], ["bq", "bs", "bz"]
        return [
            self.node(
                "DequantizeLinear", [f"{name}_{p}" for p in part], f"{name}_{part[0][0]}", axis=0
            )
            for part in parts
        ]

    def convolution(
        self,
        x: str,
        name: str,
        num_outputs: int,
        size: int = 1,
        stride: int = 1,
        *,
        depthwise: bool = False,
        activation: str | None = None,
        scale: float = 0.05,
        point: int = 128,
    ) -> str:
        channels, height, _ = self.shapes[x.removesuffix("_dq")]
        padding = size // 2
        shape = (num_outputs, 1 if depthwise else channels, size, size)
        x_scale = self.scales[x.removesuffix("_dq")][0]
        y = f"{name}_conv" if activation else name
        self.node(
            "Conv",
            [x, *self.weights(name, shape, x_scale)],
            y,
            group=channels if depthwise else 1,
            kernel_shape=[size] * 2,
            strides=[stride] * 2,
            pads=[padding] * 4,
        )
        if activation == "Clip":
            bounds = [
                self.constant(f"{name}_low", np.array(0, np.float32)),
                self.constant(f"{name}_high", np.array(6, np.float32)),
            ]
            self.node("Clip", [y, *bounds], name)
        elif activation:
            self.node(activation, [y], name)
        out = (height + 2 * padding - size) // stride + 1
        self.shapes[name] = (num_outputs, out, out)
        return self.through_bytes(name, scale, point)

    def model(self, output: str, shape: list[int]) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, SIZE, SIZE])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
            self.constants,
        )
        opset = helper.make_opsetid("", 17)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
        onnx.checker.check_model(model)
        return model


def small_network(*, gives_floats: bool = False) -> onnx.ModelProto:
    """A small MobileNetV2 with every kind of block, and sums outside of blocks."""
    net = Network()
    x = net.through_bytes("input", 0.02, 120)
    relu6 = {"activation": "Clip", "scale": 0.03, "point": 0}
    x = net.convolution(x, "stem", 24, 3, 2, activation="Clip", scale=0.02, point=0)
    x = net.convolution(x, "deep1", 24, 3, depthwise=True, activation="Relu", point=0)
    x = net.convolution(x, "narrow1", 12)
    x = block = net.convolution(x, "wide2", 72, activation="Clip", scale=6 / 255, point=0)
    x = net.convolution(x, "deep2", 72, 3, depthwise=True, activation="Clip", scale=0.03, point=0)
    x = net.convolution(x, "narrow2", 12)
    net.node("Add", ["narrow1_dq", x], "sum2")
    net.shapes["sum2"] = net.shapes["narrow1"]
    x = net.through_bytes("sum2", 0.07, 131)
    x = net.convolution(x, "wide3", 48, activation="Clip", scale=0.03, point=0)
    x = net.convolution(
        x, "deep3", 48, 5, 2, depthwise=True, activation="Clip", scale=0.03, point=0
    )
    x = net.convolution(x, "narrow3", 20)
    y = net.convolution(x, "side", 20)
    net.node("Add", [y, "narrow3_dq"], "sum3")
    net.shapes["sum3"] = net.shapes["narrow3"]
    x = net.through_bytes("sum3", 0.06, 127)
    x = net.convolution(x, "last", 80, **relu6)
    net.node("GlobalAveragePool", [x], "mean")
    x = net.through_bytes("mean", 0.02, 3)
    net.node("Flatten", [x], "features")
    x = net.through_bytes("features", 0.02, 3)
    net.node("Gemm", [x, *net.weights("classes", (90, 80), 0.02)], "classes", transB=1)
    if gives_floats:
        return net.model("classes", [1, 90])
    net.through_bytes("classes", 0.05, 120)
    assert block
    return net.model("classes_dq", [1, 90])


@pytest.fixture(scope="module")
def network() -> onnx.ModelProto:
    return small_network()


@pytest.fixture(scope="module")
def engine(network: onnx.ModelProto) -> Int8Engine:
    return compile_int8(network, vnni=False)


def images(num: int) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(5)
    return [rng.normal(0, 1.2, (1, 3, SIZE, SIZE)).astype(np.float32) for _ in range(num)]


@needs_exact_peer
@pytest.mark.parametrize("vnni", PATHS)
@pytest.mark.parametrize("num_threads", [1, 2])
def test_equals_onnxruntime(network: onnx.ModelProto, num_threads: int, vnni: bool) -> None:
    session = onnxruntime.InferenceSession(network.SerializeToString())
    engine = compile_int8(network, num_threads=num_threads, vnni=vnni)
    outputs = []
    for x in images(4):
        wanted = np.asarray(session.run(None, {"input": x})[0])
        np.testing.assert_array_equal(engine.run(x), wanted)
        outputs.append(wanted)
    assert len({o.tobytes() for o in outputs}) == len(outputs)
    assert np.ptp(outputs) > 1


@needs_exact_peer
@pytest.mark.parametrize("vnni", PATHS)
def test_logits_in_floats(vnni: bool) -> None:
    model = small_network(gives_floats=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    engine = compile_int8(model, vnni=vnni)
    for x in images(2):
        wanted = np.asarray(session.run(None, {"input": x})[0])
        # One float32 product; ONNX Runtime may compute it in two steps.
        np.testing.assert_allclose(engine.run(x), wanted, rtol=3e-7, atol=1e-6)


def test_blocks_are_fused(engine: Int8Engine) -> None:
    names = [call.name.split()[0] for call in engine.calls]
    assert names == ["stem", "block", "block", "block", "1x1", "add", "1x1", "mean", "1x1"]


def test_strided_input(engine: Int8Engine) -> None:
    (x,) = images(1)
    np.testing.assert_array_equal(
        engine.run(x.transpose(0, 1, 3, 2)),
        engine.run(np.ascontiguousarray(x.transpose(0, 1, 3, 2))),
    )


@pytest.mark.parametrize(
    "x",
    [np.zeros((2, 3, SIZE, SIZE), np.float32), np.zeros((1, 3, SIZE, SIZE), np.float64)],
    ids=["shape", "dtype"],
)
def test_wrong_image(engine: Int8Engine, x: NDArray[np.floating]) -> None:
    with pytest.raises(ConfigError, match=r"wanted float32 \[1, 3, 23, 23\], got"):
        engine.run(x)  # pyright: ignore[reportArgumentType]


def test_reads_what_activations_limit(network: onnx.ModelProto) -> None:
    found = read_int8_graph(network).steps
    steps = {s.y.name: s for s in found if isinstance(s, ConvolutionStep)}
    # 6 / 0.02 is beyond the bytes; 6 / 0.03 is 200; a ReLU begins at the zero point.
    assert (steps["stem_q"].y_min, steps["stem_q"].y_max) == (0, 255)
    assert (steps["deep2_q"].y_min, steps["deep2_q"].y_max) == (0, 200)
    assert (steps["narrow2_q"].y_min, steps["narrow2_q"].y_max) == (0, 255)


def test_an_unknown_operator_is_named(network: onnx.ModelProto) -> None:
    model = copy.deepcopy(network)
    node = next(n for n in model.graph.node if n.op_type == "GlobalAveragePool")
    node.op_type = "GlobalMaxPool"
    with pytest.raises(ConfigError, match="does not know the operator GlobalMaxPool 'mean'"):
        compile_int8(model)


def test_a_float_operator_is_refused() -> None:
    net = Network()
    x = net.through_bytes("input", 0.02, 120)
    net.node("Conv", [x, net.constant("w", np.ones((8, 3, 1, 1), np.float32))], "conv")
    net.through_bytes("conv", 0.02, 120)
    with pytest.raises(ConfigError, match="Conv 'conv' has a weight that is not int8"):
        compile_int8(net.model("conv_dq", [1, 8, SIZE, SIZE]))


def test_a_dense_convolution_in_the_middle_is_refused() -> None:
    net = Network()
    x = net.through_bytes("input", 0.02, 120)
    x = net.convolution(x, "stem", 8, 3)
    net.convolution(x, "dense", 8, 3)
    with pytest.raises(ConfigError, match=r"wanted 1x1 or depthwise .* got weights \[8, 8, 3, 3\]"):
        compile_int8(net.model("dense_dq", [1, 8, SIZE, SIZE]), vnni=False)
