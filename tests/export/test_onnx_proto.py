"""Texts, paths, foreign files and digests, down to the deepest subgraph."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from effdl.export.onnx_proto import (
    external_tensors,
    find_local_path,
    graph_sha256,
    replace_annotations,
)


def nested_model() -> onnx.ModelProto:
    """An If whose branch holds a weight of its own."""
    weight = numpy_helper.from_array(np.ones(2, np.float32), "inner")
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    branch = helper.make_graph(
        [helper.make_node("Identity", ["inner"], ["y"])], "branch", [], [out], [weight]
    )
    node = helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch)
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    graph = helper.make_graph([node], "outer", [flag], [out])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def branch_of(model: onnx.ModelProto) -> onnx.GraphProto:
    return model.graph.node[0].attribute[0].g


def test_annotations_are_replaced_everywhere() -> None:
    model = nested_model()
    clean = model.SerializeToString(deterministic=True)
    model.doc_string = model.graph.doc_string = "secret"
    model.metadata_props.add(key="old", value="secret")
    node, weight = branch_of(model).node[0], branch_of(model).initializer[0]
    node.doc_string = weight.doc_string = model.graph.input[0].doc_string = "secret"
    node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="secret")
    model.graph.node[0].attribute[0].doc_string = "secret"
    replace_annotations(model, {})
    assert model.SerializeToString(deterministic=True) == clean
    replace_annotations(model, {"b": "2", "a": "1"})
    assert [(p.key, p.value) for p in model.metadata_props] == [("a", "1"), ("b", "2")]


@pytest.mark.parametrize(
    "text",
    [
        "/home/someone/project/net.py",
        "made in /root/work",
        "file:/tmp/x.bin",
        "/Users/someone/net",
        r"C:\Users\someone\net.py",
        "lib/python3.11/site-packages/torch/nn/functional.py",
        'File "net.py", line 21, in forward',
    ],
)
def test_local_paths_are_found(text: str) -> None:
    model = nested_model()
    branch_of(model).node[0].metadata_props.add(key="trace", value=text)
    assert find_local_path(model) is not None


@pytest.mark.parametrize(
    "text", ["blocks.0/conv", "/features/conv/Conv", "n/a", "https://onnx.ai/x", "1/home", "a:b"]
)
def test_other_texts_are_not(text: str) -> None:
    model = nested_model()
    branch_of(model).node[0].name = text
    assert find_local_path(model) is None


def test_weights_are_not_searched() -> None:
    model = nested_model()
    weight = branch_of(model).initializer[0]
    weight.raw_data = b"/home/a/bcd"[:8]
    assert find_local_path(model) is None


def test_external_data_is_found_in_a_subgraph() -> None:
    model = nested_model()
    assert external_tensors(model) == ()
    weight = branch_of(model).initializer[0]
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="weights.bin")
    assert external_tensors(model) == ("inner",)


def test_digest_is_of_the_graph_alone() -> None:
    model = nested_model()
    digest = graph_sha256(model)
    model.metadata_props.add(key="a", value="b")
    model.producer_name = "another"
    assert graph_sha256(model) == digest
    branch_of(model).initializer[0].raw_data = np.array([1, 2], np.float32).tobytes()
    assert graph_sha256(model) != digest
