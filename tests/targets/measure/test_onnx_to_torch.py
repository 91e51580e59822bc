"""PyTorch as an interpreter of ONNX computes what ONNX Runtime computes."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from effdl.errors import ConfigError, CorruptFileError
from effdl.export.onnx_export import export_onnx
from effdl.models.mobilenet_v3.network import build_subnet
from effdl.models.mobilenet_v3.onnx_graph import build_network
from effdl.models.mobilenet_v3.space import ofa_mbv3_w10, ofa_mbv3_w12
from effdl.search.space import SubnetConfig
from effdl.targets.measure.onnx_nodes import NODE_KINDS
from effdl.targets.measure.onnx_to_torch import load_onnx_module
from effdl.targets.measure.onnxruntime import make_feeds, open_session, run_once

SPACE = ofa_mbv3_w10()


def config(seed: int) -> SubnetConfig:
    rows = SPACE.search_space.sample(1, np.random.default_rng(seed))
    return SPACE.search_space.decode(rows[0])


def model_of(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int | str],
    *constants: onnx.TensorProto,
    opset: int = 20,
    kind: int = TensorProto.FLOAT,
) -> bytes:
    """Nodes from ``input`` to ``output``, whose shape is left open."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("input", kind, shape)],
        [helper.make_tensor_value_info("output", kind, None)],
        constants,
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, ir_version=10, opset_imports=opsets).SerializeToString()


def one(kind: str, shape: Sequence[int], *constants: object, opset: int = 20, **more: Any) -> bytes:
    """One node of a kind, with constants as its inputs after the first; None leaves one out."""
    made = {f"constant{i}": np.asarray(c) for i, c in enumerate(constants) if c is not None}
    names = [f"constant{i}" if c is not None else "" for i, c in enumerate(constants)]
    node = helper.make_node(kind, ["input", *names], ["output"], name="the_node", **more)
    tensors = [numpy_helper.from_array(value, name) for name, value in made.items()]
    return model_of([node], shape, *tensors, opset=opset)


def normal(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal(shape, dtype=np.float32)


def check(model: bytes, *, tolerance: float = 1e-4) -> None:
    """Both runtimes on the same inputs."""
    session = open_session(model)
    feeds = make_feeds(session)
    (wanted,) = run_once(session, feeds)
    module = load_onnx_module(model)
    assert {spec.name: spec.shape for spec in module.inputs} == {
        name: value.shape for name, value in feeds.items()
    }
    with torch.no_grad():
        (got,) = module(*[torch.from_numpy(feeds[spec.name]) for spec in module.inputs])
    assert tuple(got.shape) == wanted.shape
    scale = max(float(np.abs(wanted).max()), 1e-6)
    np.testing.assert_allclose(got.numpy(), wanted, atol=tolerance * scale, rtol=0)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_operators_of_the_spaces(batch_size: int):
    spaces = [SPACE, ofa_mbv3_w12()]
    found = [
        shape.spec()
        for space in spaces
        for seed in range(2)
        for _, shape in space.shapes(config(seed))
    ]
    specs = list({spec.key: spec for spec in found}.values())
    for spec in specs[:: 5 if batch_size > 1 else 2]:
        check(spec.build(batch_size))


def check_network(model: bytes) -> None:
    """Made weights let float32's rounding grow a thousandfold: float64 judges both runtimes.

    A node that is read wrongly is off by as much as the outputs are large; the operators
    by themselves agree to 1e-4.
    """
    session = open_session(model)
    feeds = make_feeds(session)
    (peer,) = run_once(session, feeds)
    module = load_onnx_module(model)
    with torch.no_grad():
        (got,) = module(*[torch.from_numpy(feed) for feed in feeds.values()])
        (exact,) = module.double()(*[torch.from_numpy(feed).double() for feed in feeds.values()])
    scale = float(exact.abs().max())
    peer_error = float((torch.from_numpy(peer) - exact).abs().max()) / scale
    error = float((got - exact).abs().max()) / scale
    assert max(peer_error, error) < 5e-3


@pytest.mark.parametrize("seed", range(3))
def test_whole_networks(seed: int):
    check_network(build_network(SPACE, config(seed), 1 + seed % 2))


def test_what_pytorch_exports_is_read_back(tmp_path: Path):
    """Exported with a free batch, which is fixed afterwards, as a profile does."""
    chosen = config(2)
    network = build_subnet(SPACE, chosen, seed=0).eval()
    size = chosen.ints("resolution")[0]
    path = tmp_path / "model.onnx"
    export_onnx(network, path, example=torch.zeros(2, 3, size, size), metadata={})
    exported = onnx.load(path)
    with pytest.raises(
        ConfigError, match=r"wanted floating-point numbers of fixed sizes, got FLOAT"
    ):
        load_onnx_module(exported.SerializeToString())
    exported.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        (got,) = load_onnx_module(exported.SerializeToString())(x)
        wanted = network(x)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_convolutions_of_any_shape(data: st.DataObject):
    groups = data.draw(st.integers(1, 3), label="groups")
    ins, outs = (groups * data.draw(st.integers(1, 3), label=n) for n in ("ins", "outs"))
    kernel = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)), label="kernel")
    dilations = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 2)), label="dilations")
    strides = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)), label="strides")
    pads = data.draw(st.tuples(*[st.integers(0, 2)] * 4), label="pads")
    sizes = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)), label="sizes")
    for i in range(2):
        assume(sizes[i] + pads[i] + pads[i + 2] >= dilations[i] * (kernel[i] - 1) + 1)
    bias = [normal(outs)] if data.draw(st.booleans(), label="bias") else []
    check(
        one(
            "Conv",
            [2, ins, *sizes],
            normal(outs, ins // groups, *kernel),
            *bias,
            group=groups,
            kernel_shape=kernel,
            dilations=dilations,
            strides=strides,
            pads=pads,
        )
    )


INTEGERS = np.int64
NODES = {
    "conv without attributes": one("Conv", [1, 2, 5, 5], normal(3, 2, 3, 3)),
    "conv over time": one("Conv", [1, 2, 7], normal(3, 2, 3), pads=[2, 0]),
    "conv over space and time": one("Conv", [1, 2, 4, 5, 5], normal(3, 2, 2, 3, 3)),
    "gemm as linear": one("Gemm", [3, 4], normal(5, 4), normal(5), transB=1),
    "gemm without bias": one("Gemm", [3, 4], normal(4, 5)),
    "gemm scaled": one("Gemm", [4, 3], normal(4, 5), normal(5), alpha=0.5, beta=2.0, transA=1),
    "matmul": one("MatMul", [2, 3, 4], normal(4, 5)),
    "add": one("Add", [2, 3, 4], normal(4)),
    "sub": one("Sub", [2, 3, 4], normal(3, 1)),
    "mul by a number": one("Mul", [2, 3], np.float32(2.5)),
    "div": one("Div", [2, 3], normal(3) + 5),
    "relu": one("Relu", [2, 30]),
    "sigmoid": one("Sigmoid", [2, 30]),
    "hard swish": one("HardSwish", [2, 300]),
    "hard sigmoid by default": one("HardSigmoid", [2, 300]),
    "hard sigmoid of MobileNet": one("HardSigmoid", [2, 300], alpha=1 / 6, beta=0.5),
    "clip on both sides": one("Clip", [2, 300], np.float32(-0.5), np.float32(0.75)),
    "clip above": one("Clip", [2, 300], None, np.float32(0.75)),
    "identity": one("Identity", [2, 3]),
    "mean of all": one("ReduceMean", [2, 3, 4]),
    "mean of none": one("ReduceMean", [2, 3, 4], noop_with_empty_axes=1),
    "mean of two": one("ReduceMean", [2, 3, 4], np.array([-1, 0], INTEGERS), keepdims=0),
    "mean in an older opset": one("ReduceMean", [2, 3, 4], axes=[1], opset=13),
    "global average pool": one("GlobalAveragePool", [2, 3, 4, 5]),
    "reshape": one("Reshape", [2, 3, 4], np.array([4, -1], INTEGERS)),
    "reshape that copies": one("Reshape", [2, 3, 4], np.array([0, -1], INTEGERS)),
    "flatten": one("Flatten", [2, 3, 4]),
    "flatten to one row": one("Flatten", [2, 3, 4], axis=0),
    "flatten from the end": one("Flatten", [2, 3, 4], axis=-1),
    "squeeze all": one("Squeeze", [2, 1, 4, 1]),
    "squeeze one": one("Squeeze", [2, 1, 4, 1], np.array([3], INTEGERS)),
    "unsqueeze": one("Unsqueeze", [2, 4], np.array([-1], INTEGERS)),
}


@pytest.mark.parametrize("name", NODES)
def test_single_nodes(name: str):
    check(NODES[name])


def test_every_kind_is_tested():
    tested = {onnx.load_model_from_string(m).graph.node[0].op_type for m in NODES.values()}
    assert tested == set(NODE_KINDS)


def test_constants_may_be_nodes_and_values_may_be_read_twice():
    nodes = [
        helper.make_node("Constant", [], ["half"], value_float=0.5),
        helper.make_node("Mul", ["input", "half"], ["scaled"]),
        helper.make_node("Add", ["scaled", "input"], ["sum"]),
        helper.make_node("Mul", ["sum", "scaled"], ["output"]),
    ]
    check(model_of(nodes, [2, 3]))


def test_values_are_freed_after_their_last_use():
    """A chain of a hundred nodes holds two or three values at once, not a hundred."""
    names = ["input", *[f"value{i}" for i in range(99)], "output"]
    nodes = [helper.make_node("Relu", [a], [b]) for a, b in itertools.pairwise(names)]
    module = load_onnx_module(model_of(nodes, [2, 3]))
    alive, most = 0, 0

    class Counted:
        def __init__(self) -> None:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

        @classmethod
        def __torch_function__(cls, *arguments: object) -> "Counted":
            return cls()

    module(Counted())
    assert 2 <= most <= 3


def test_the_graph_module_is_the_same_function_and_compiles_every_time():
    """More modules of one shape than the compiler would take of one function."""
    for seed in range(10):
        x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(seed))
        module = load_onnx_module(
            one("Conv", [2, 4, 6, 6], normal(8, 4, 3, 3) * seed, pads=[1] * 4)
        )
        compiled = torch.compile(
            module.as_graph_module(), backend="eager", fullgraph=True, dynamic=False
        )
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), module(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            one("Softmax", [2, 3]),
            r"'the_node' of kind Softmax: wanted one of Add, Clip, .*got Softmax",
        ),
        (one("Relu", [2, 3], domain="com.example"), "'the_node' of kind Relu"),
        (
            one("Conv", [1, 2, 5, 5], normal(3, 2, 3, 3), auto_pad="SAME_UPPER"),
            "wanted explicit pads, got auto_pad b'SAME_UPPER'",
        ),
        (one("Conv", [1, 2, 5, 5], normal(3, 2, 3, 3), shine=1), "no other attributes, got shine"),
        (one("Unsqueeze", [2, 4], np.array([0, 1], INTEGERS)), "wanted one axis"),
        (one("Conv", [1, 2], normal(3, 2)), "one to three spatial dimensions, got 0"),
        (
            model_of(
                [
                    helper.make_node("Shape", ["input"], ["shape"]),
                    helper.make_node("Reshape", ["input", "shape"], ["output"], name="r"),
                ],
                [2, 3],
            ),
            "of kind Shape",
        ),
    ],
)
def test_what_is_not_known_is_refused_by_name(model: bytes, message: str):
    with pytest.raises(ConfigError, match=message) as error:
        load_onnx_module(model)
    assert error.value.hint is not None


def test_shapes_that_are_computed_are_refused():
    nodes = [
        helper.make_node("Relu", ["input"], ["made"]),
        helper.make_node("Reshape", ["input", "made"], ["output"], name="computed"),
    ]
    with pytest.raises(ConfigError, match=r"'computed' .*a constant as input 1, got 'made'"):
        load_onnx_module(model_of(nodes, [2, 3]))


def test_damaged_models_are_refused():
    good = one("Relu", [2, 3])
    missing = model_of([helper.make_node("Relu", ["nowhere"], ["output"])], [2, 3])
    for bad in (b"", b"no model", good[: len(good) // 2]):
        with pytest.raises(CorruptFileError):
            load_onnx_module(bad)
    with pytest.raises(CorruptFileError, match="nothing makes 'nowhere'"):
        load_onnx_module(missing)
    with pytest.raises(ConfigError, match=r"got INT64 \[2, 3\]"):
        load_onnx_module(
            model_of([helper.make_node("Identity", ["input"], ["output"])], [2, 3], kind=7)
        )
