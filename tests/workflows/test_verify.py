"""Verifying files: ours, altered, broken and foreign."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from effdl.errors import ConfigError, CorruptFileError
from effdl.export.onnx_proto import graph_sha256
from effdl.models.mobilenet_v3.space import MobileNetV3Space
from effdl.workflows.verify import Verification, verify_model

Alter = Callable[[onnx.ModelProto], None]
Verify = Callable[..., Verification]


@pytest.fixture
def verify(find_small_space: Callable[[str], MobileNetV3Space]) -> Verify:
    """`verify_model`, knowing the small space too."""
    return lambda path, **options: verify_model(path, find_space=find_small_space, **options)


def altered(source: Path, out: Path, alter: Alter, *, sign: bool = False) -> Path:
    """A changed copy; signed, its graph digest is made to fit."""
    model = onnx.load(source)
    alter(model)
    if sign:
        set_entry(model, "graph_sha256", graph_sha256(model))
    out.write_bytes(model.SerializeToString(deterministic=True))
    return out


def set_entry(model: onnx.ModelProto, key: str, value: str) -> None:
    next(p for p in model.metadata_props if p.key == f"effdl.{key}").value = value


def scale_last_weight(model: onnx.ModelProto, factor: float = 1.001) -> None:
    weight = max(model.graph.initializer, key=lambda t: (len(t.dims) == 2, len(t.raw_data)))
    values = (numpy_helper.to_array(weight) * factor).astype(np.float32)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))


def failed(verification: Verification) -> set[str]:
    return {check.name for check in verification.checks if check.status == "failed"}


def skipped(verification: Verification) -> set[str]:
    return {check.name for check in verification.checks if check.status == "not applicable"}


ALL = {
    *("one file", "onnx checker", "runtime", "optimized as plain", "metadata", "unchanged"),
    *("opset", "interface", "local paths", "outputs"),
}


def test_untrained_export_is_sound(untrained_onnx: Path, verify: Verify) -> None:
    before = untrained_onnx.read_bytes()
    found = verify(untrained_onnx)
    assert found.ok
    assert {check.name for check in found.checks} == ALL
    assert {check.status for check in found.checks} == {"passed"}
    assert "batch sizes 1, 2, 5" in found.checks[-1].detail
    assert untrained_onnx.read_bytes() == before
    facts = found.to_json()
    assert facts["ok"] is True
    assert facts["path"] == str(untrained_onnx)


def test_trained_export_with_its_weights(
    trained_onnx: Path, small_weights: Path, verify: Verify
) -> None:
    found = verify(trained_onnx, weights=small_weights)
    assert {check.status for check in found.checks} == {"passed"}


def test_trained_export_without_its_weights(trained_onnx: Path, verify: Verify) -> None:
    found = verify(trained_onnx)
    assert found.ok
    assert skipped(found) == {"outputs"}
    assert "--weights" in found.checks[-1].detail


def test_trained_export_with_other_weights(
    trained_onnx: Path, tmp_path: Path, verify: Verify
) -> None:
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"other")
    found = verify(trained_onnx, weights=other)
    assert failed(found) == {"outputs"}
    assert "other weights" in found.checks[-1].detail


def test_weights_without_effect(untrained_onnx: Path, small_weights: Path, verify: Verify) -> None:
    with pytest.raises(ConfigError, match="no effect"):
        verify(untrained_onnx, weights=small_weights)


def test_tampered_weight_is_seen_twice(
    untrained_onnx: Path, tmp_path: Path, verify: Verify
) -> None:
    found = verify(altered(untrained_onnx, tmp_path / "m.onnx", scale_last_weight))
    assert failed(found) == {"unchanged", "outputs"}


def test_tampered_weight_with_a_forged_digest(
    untrained_onnx: Path, tmp_path: Path, verify: Verify
) -> None:
    found = verify(altered(untrained_onnx, tmp_path / "m.onnx", scale_last_weight, sign=True))
    assert failed(found) == {"outputs"}


def fix_batch(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4


def leak(model: onnx.ModelProto) -> None:
    model.graph.node[0].doc_string = 'File "/home/someone/net.py", line 3'


def break_node(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Convolve"


def move_weight(model: onnx.ModelProto) -> None:
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../../etc/passwd")


@pytest.mark.parametrize(
    ("alter", "names"),
    [
        (fix_batch, {"interface", "outputs"}),
        (leak, {"local paths"}),
        (break_node, {"onnx checker", "runtime", "outputs"}),
        (move_weight, {"one file", "outputs"}),
        (lambda m: set_entry(m, "space", "smal"), {"metadata"}),
        (lambda m: set_entry(m, "weights", "trained"), {"metadata"}),
        (lambda m: set_entry(m, "schema_version", "9"), {"metadata"}),
        (lambda m: set_entry(m, "precision", "int4"), {"metadata"}),
        (lambda m: set_entry(m, "weights", "untrained seed=4"), {"outputs"}),
        (lambda m: m.opset_import.add(domain="com.other", version=1), {"opset"}),
    ],
)
def test_what_was_altered_is_named(
    untrained_onnx: Path, tmp_path: Path, verify: Verify, alter: Alter, names: set[str]
) -> None:
    found = verify(altered(untrained_onnx, tmp_path / "m.onnx", alter, sign=True))
    assert failed(found) == names
    assert not found.ok


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ('{"depth":[1],"expand_ratio":[3,0],"kernel_size":[3,0],"resolution":32}', {"outputs"}),
        ('{"depth":[1],"expand_ratio":[3,2],"kernel_size":[5,0],"resolution":32}', {"metadata"}),
        ('{"depth":[9],"expand_ratio":[3,0],"kernel_size":[5,0],"resolution":32}', {"metadata"}),
        (
            '{"depth":[1],"expand_ratio":[3,0],"kernel_size":[5,0],"resolution":40}',
            {"interface", "outputs"},
        ),
    ],
)
def test_another_configuration(
    untrained_onnx: Path, tmp_path: Path, verify: Verify, config: str, names: set[str]
) -> None:
    path = altered(untrained_onnx, tmp_path / "m.onnx", lambda m: set_entry(m, "config", config))
    assert failed(verify(path)) == names


def test_foreign_file_gets_the_generic_checks(tmp_path: Path, verify: Verify) -> None:
    image, y = (
        helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["N", 3]) for n in ("x", "y")
    )
    node = helper.make_node("Relu", ["x"], ["y"], doc_string="/home/someone/net.py")
    graph = helper.make_graph([node], "g", [image], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = tmp_path / "foreign.onnx"
    onnx.save(model, path)
    found = verify(path)
    assert found.ok
    assert {check.name for check in found.checks} == ALL
    assert skipped(found) == {
        *("metadata", "unchanged", "opset", "interface", "outputs", "local paths"),
    }
    assert "/home/someone/net.py" in found.checks[-1].detail


def test_broken_files(untrained_onnx: Path, tmp_path: Path, verify: Verify) -> None:
    path = tmp_path / "m.onnx"
    data = untrained_onnx.read_bytes()
    for broken in (data[: len(data) // 2], b"\0" * 100):
        path.write_bytes(broken)
        with pytest.raises(CorruptFileError):
            verify(path)
    with pytest.raises(ConfigError):
        verify(tmp_path / "absent.onnx")


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Flip bits, or now and then cut, repeat or insert a few bytes."""
    values = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(len(values)))
        match int(rng.integers(12)):
            case 0:
                del values[at : at + int(rng.integers(1, 200))]
            case 1:
                values[at:at] = values[at : at + int(rng.integers(1, 200))]
            case 2:
                values[at:at] = rng.bytes(int(rng.integers(1, 20)))
            case _:
                values[at] ^= 1 << int(rng.integers(8))
    return bytes(values)


def check_mutants(source: Path, path: Path, verify: Verify, seeds: range) -> int:
    """Every mutant is refused, or fails, or still has the graph that was written."""
    num_readable = 0
    data = source.read_bytes()
    digest = graph_sha256(onnx.load(source))
    for seed in seeds:
        path.write_bytes(mutate(data, np.random.default_rng(seed)))
        try:
            found = verify(path)
        except CorruptFileError:
            continue
        num_readable += 1
        foreign = "outputs" in skipped(found)
        assert not found.ok or foreign or graph_sha256(onnx.load(path)) == digest, seed
    return num_readable


def test_a_few_mutants(untrained_onnx: Path, tmp_path: Path, verify: Verify) -> None:
    check_mutants(untrained_onnx, tmp_path / "m.onnx", verify, range(4))


@pytest.mark.proof
def test_many_mutants(untrained_onnx: Path, tmp_path: Path, verify: Verify) -> None:
    num_readable = check_mutants(untrained_onnx, tmp_path / "m.onnx", verify, range(4, 204))
    assert num_readable > 20
