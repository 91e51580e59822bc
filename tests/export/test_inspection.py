"""Files that are broken or hostile end the child, never the caller."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from effdl.errors import ConfigError, CorruptFileError
from effdl.export.inspection import Inspection, inspect_onnx
from effdl.export.onnx_export import OnnxFile

Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Writes a graph of image [N, 3] to y, or given bytes, into a file."""

    def call(
        nodes: list[onnx.NodeProto], weights: tuple[onnx.TensorProto, ...] = (), *, width: int = 3
    ) -> Path:
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", width])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        graph = helper.make_graph(nodes, "g", [image], [y], list(weights))
        opsets = [helper.make_opsetid("", 20)]
        path = tmp_path / "made.onnx"
        path.write_bytes(
            helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
        )
        return path

    return call


def inspect(path: Path, *, timeout_s: float = 60.0) -> Inspection:
    return inspect_onnx(path, batch_sizes=(1, 2), timeout_s=timeout_s)


def test_facts_of_an_export(exported: OnnxFile) -> None:
    found = inspect(exported.path)
    facts = found.facts
    assert facts.opsets == {"ai.onnx": 20}
    assert [(v.name, v.dtype, v.shape) for v in (*facts.inputs, *facts.outputs)] == [
        ("image", "FLOAT", ("N", 3, 8, 8)),
        ("logits", "FLOAT", ("N", 5)),
    ]
    assert (facts.checker_error, facts.runtime_error, facts.local_path) == (None, None, None)
    assert facts.metadata["effdl.graph_sha256"] == facts.graph_sha256
    assert facts.num_nodes == exported.num_nodes
    assert facts.optimizer_gap is not None
    assert facts.optimizer_gap < 1e-6
    assert [y.shape[0] for y in found.outputs] == [1, 1, 1, 2, 2, 2]


def test_absent_file(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.onnx", tmp_path):
        with pytest.raises(ConfigError, match="no such file"):
            inspect(path)


@pytest.mark.parametrize("keep", [0, 1, 1000, -1])
def test_truncated_file(exported: OnnxFile, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes(exported.path.read_bytes()[:keep])
    with pytest.raises(CorruptFileError, match="not a readable ONNX file"):
        inspect(path)


@pytest.mark.parametrize("data", [b"hello, world\n", b"\x80\x04\x95pickle", b'{"json": 1}'])
def test_file_of_another_kind(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "other.onnx"
    path.write_bytes(data)
    with pytest.raises(CorruptFileError, match="not a readable ONNX file"):
        inspect(path)


def test_endless_loop_is_given_up(save: Save) -> None:
    state = helper.make_tensor_value_info("s", TensorProto.FLOAT, None)
    after = helper.make_tensor_value_info("s_next", TensorProto.FLOAT, None)
    index = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    go = helper.make_tensor_value_info("go", TensorProto.BOOL, [])
    going = helper.make_tensor_value_info("going", TensorProto.BOOL, [])
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["going"]),
            helper.make_node("Sin", ["s"], ["s_next"]),
        ],
        "body",
        [index, go, state],
        [going, after],
    )
    path = save(
        [helper.make_node("Loop", ["trips", "start", "image"], ["y"], body=body)],
        (
            numpy_helper.from_array(np.array(2**62, np.int64), "trips"),
            numpy_helper.from_array(np.array(True), "start"),
        ),
    )
    with pytest.raises(CorruptFileError, match="did not open and run within 3 s"):
        inspect(path, timeout_s=3.0)


def test_memory_beyond_the_limit(save: Save) -> None:
    path = save(
        [
            helper.make_node("ConstantOfShape", ["shape"], ["huge"]),
            helper.make_node("ReduceSum", ["huge"], ["total"], keepdims=0),
            helper.make_node("Add", ["image", "total"], ["y"]),
        ],
        (numpy_helper.from_array(np.array([1 << 40], np.int64), "shape"),),
    )
    facts = inspect(path).facts
    assert facts.runtime_error is not None


def test_external_data_are_not_followed(save: Save, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(np.ones(3, np.float32).tobytes())
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3])
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="weights.bin")
    found = inspect(save([helper.make_node("Add", ["image", "w"], ["y"])], (weight,)))
    assert found.facts.external_tensors == ("w",)
    assert found.outputs == ()


def test_unknown_operator(save: Save) -> None:
    facts = inspect(save([helper.make_node("Sinner", ["image"], ["y"])])).facts
    assert facts.checker_error is not None
    assert facts.runtime_error is not None


def test_nan_output_has_an_infinite_gap(save: Save) -> None:
    facts = inspect(save([helper.make_node("Log", ["image"], ["y"])])).facts
    assert facts.optimizer_gap == float("inf")


def test_model_that_cannot_be_fed(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 3]) for n in "aby"]
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["y"])], "g", values[:2], values[2:]
    )
    path = tmp_path / "two.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path
    )
    facts = inspect(path).facts
    assert facts.runtime_error is None
    assert facts.why_not_run is not None
    assert "got 2 and 1" in facts.why_not_run
