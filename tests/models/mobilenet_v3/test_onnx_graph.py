"""The made graphs compute the layers they stand for, node for node as exported ones."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional

from effdl.models.mobilenet_v3.onnx_graph import IR_VERSION, OPSET, build_network, build_operator
from effdl.models.mobilenet_v3.operators import BlockShape, ConvShape, LinearShape, PoolShape
from effdl.models.mobilenet_v3.space import MobileNetV3Space, Shape, ofa_mbv3_w10, ofa_mbv3_w12
from effdl.targets.measure.onnxruntime import make_feeds, open_session, run_once


def _oracle(shape: Shape, x: Tensor, weights: Iterator[Tensor]) -> Tensor:
    """One layer in plain PyTorch, with the graph's weights in their order."""
    if isinstance(shape, LinearShape):
        return functional.linear(x.flatten(1), next(weights), next(weights))
    if isinstance(shape, PoolShape):
        return functional.adaptive_avg_pool2d(x, 1)
    if isinstance(shape, ConvShape):
        weight = next(weights)
        bias = next(weights) if shape.batch_norm else None
        padding = shape.kernel_size // 2
        return functional.hardswish(
            functional.conv2d(x, weight, bias, stride=shape.stride, padding=padding)
        )
    act = functional.relu if shape.activation == "relu" else functional.hardswish
    value = x
    if shape.expand:
        value = act(functional.conv2d(value, next(weights), next(weights)))
    value = act(
        functional.conv2d(
            value,
            next(weights),
            next(weights),
            stride=shape.stride,
            padding=shape.kernel_size // 2,
            groups=shape.mid_channels,
        )
    )
    if shape.squeeze_excite:
        gate = functional.adaptive_avg_pool2d(value, 1)
        gate = functional.relu(functional.conv2d(gate, next(weights), next(weights)))
        gate = functional.conv2d(gate, next(weights), next(weights))
        value = value * functional.hardsigmoid(gate)
    value = functional.conv2d(value, next(weights), next(weights))
    return x + value if shape.skip else value


def _weights(model: onnx.ModelProto) -> Iterator[Tensor]:
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            yield torch.from_numpy(values.copy())


def _check(data: bytes, shapes: list[Shape], *, tolerance: float = 1e-5) -> None:
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == IR_VERSION
    assert [(o.domain, o.version) for o in model.opset_import] == [("", OPSET)]
    session = open_session(data)
    feeds = make_feeds(session)
    (output,) = run_once(session, feeds)
    weights = _weights(model)
    wanted = torch.from_numpy(feeds["input"])
    for shape in shapes:
        wanted = _oracle(shape, wanted, weights)
    assert next(weights, None) is None
    assert output.shape == tuple(wanted.shape)
    assert [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim] == list(
        output.shape
    )
    scale = float(wanted.abs().max())
    np.testing.assert_allclose(output, wanted.numpy(), atol=tolerance * scale, rtol=0)


def _block(**changes: object) -> BlockShape:
    shape: dict[str, object] = {
        "in_size": 9,
        "in_channels": 16,
        "mid_channels": 48,
        "out_channels": 16,
        "kernel_size": 5,
        "stride": 1,
        "squeeze_excite": False,
        "activation": "relu",
        "skip": True,
        **changes,
    }
    return BlockShape(**shape)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "shape",
    [
        ConvShape(name="Conv", in_size=11, in_channels=3, out_channels=16, kernel_size=3, stride=2),
        ConvShape(name="Conv_1", in_size=4, in_channels=16, out_channels=40),
        ConvShape(name="Conv_2", in_size=1, in_channels=40, out_channels=64, batch_norm=False),
        PoolShape(in_size=5, channels=24),
        LinearShape(in_features=64, out_features=10),
        _block(),
        _block(kernel_size=3, mid_channels=16, expand=False),
        _block(kernel_size=7, stride=2, skip=False, activation="hswish"),
        _block(squeeze_excite=True, activation="hswish", out_channels=24, skip=False),
        _block(squeeze_excite=True, stride=2, in_size=10, skip=False),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_operators_compute_what_they_stand_for(shape: Shape, batch_size: int):
    data = build_operator(shape, batch_size)
    _check(data, [shape])
    assert make_feeds(open_session(data))["input"].shape[0] == batch_size


def test_a_spec_builds_its_operator():
    shape = _block(squeeze_excite=True)
    assert shape.spec().build(2) == build_operator(shape, 2)


@pytest.mark.parametrize("space", [ofa_mbv3_w10(), ofa_mbv3_w12()], ids=lambda s: s.name)
def test_networks_compute_their_layers_one_after_another(space: MobileNetV3Space):
    search_space = space.search_space
    row = search_space.sample(1, np.random.default_rng(3))[0]
    row[search_space.columns("resolution")[0]] = 0
    config = search_space.decode(row)
    shapes = [shape for _, shape in space.shapes(config)]
    _check(build_network(space, config, 2), shapes, tolerance=2e-4)


def test_a_network_is_its_operators_joined():
    space = ofa_mbv3_w10()
    config = space.search_space.decode(space.search_space.sample(1, np.random.default_rng(0))[0])
    parts: Counter[str] = Counter()
    for _, shape in space.shapes(config):
        graph = onnx.load_from_string(build_operator(shape, 1)).graph
        parts.update(node.op_type for node in graph.node)
    whole = onnx.load_from_string(build_network(space, config, 1)).graph
    assert Counter(node.op_type for node in whole.node) == parts + Counter(Reshape=1)


def test_the_same_graph_every_time():
    assert build_operator(_block(), 1) == build_operator(_block(), 1)


@pytest.mark.proof
def test_node_kinds_are_those_of_an_exported_network(tmp_path: Path):
    from effdl.export.onnx_export import export_onnx
    from effdl.models.mobilenet_v3.network import build_subnet

    space = ofa_mbv3_w10()
    search_space = space.search_space
    config = search_space.decode(search_space.sample(1, np.random.default_rng(0))[0])
    (resolution,) = config.ints("resolution")
    path = tmp_path / "model.onnx"
    example = torch.zeros(2, 3, resolution, resolution)
    export_onnx(build_subnet(space, config, seed=0).eval(), path, example=example, metadata={})
    kinds = [
        Counter(node.op_type for node in model.graph.node)
        for model in (onnx.load(path), onnx.load_from_string(build_network(space, config, 1)))
    ]
    assert kinds[0] == kinds[1]
