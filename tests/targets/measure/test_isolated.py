"""Files of others, in a child: what they do to it never reaches the caller."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from effdl.errors import ConfigError, CorruptFileError
from effdl.targets.measure.isolated import Answer, time_files


def _write(path: Path, *shape: int | str, scale: float = 1.0, repeats: int = 1) -> Path:
    channels = shape[1]
    assert isinstance(channels, int)
    weight = scale * np.eye(channels, dtype=np.float32).reshape(channels, channels, 1, 1)
    names = ["input", *(f"value{i}" for i in range(repeats - 1)), "output"]
    made = helper.make_graph(
        [helper.make_node("Conv", [a, "w"], [b]) for a, b in pairwise(names)],
        "test",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, "w")],
    )
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(made, ir_version=8, opset_imports=opsets)
    path.write_bytes(model.SerializeToString())
    return path


def _time(*paths: Path, batch_size: int | None = None) -> Answer:
    return time_files(paths, batch_size=batch_size, num_threads=1, budget_s=1.0)


def test_one_file(tmp_path: Path):
    answer = _time(_write(tmp_path / "a.onnx", "N", 16, 32, 32, repeats=3), batch_size=2)
    (timing,) = answer.timings
    assert 0 < timing.p20_ms <= timing.p95_ms
    assert answer.batch_size == 2
    assert answer.peak_memory_bytes > 0
    assert sum(node.share_percent for node in answer.nodes) == pytest.approx(100)
    assert [node.operator for node in answer.nodes].count("Conv") == 3
    times = [node.median_ms for node in answer.nodes]
    assert times == sorted(times, reverse=True)


def test_two_files(tmp_path: Path):
    first = _write(tmp_path / "a.onnx", 1, 32, 48, 48, repeats=1)
    second = _write(tmp_path / "b.onnx", 1, 32, 48, 48, repeats=25, scale=1.0)
    answer = _time(first, second)
    assert answer.ratio is not None
    assert answer.ratio.low <= answer.ratio.value <= answer.ratio.high
    assert answer.ratio.value > 5
    assert answer.difference is not None
    assert answer.difference.max_absolute == 0.0


def test_outputs_are_compared_on_the_same_inputs(tmp_path: Path):
    first = _write(tmp_path / "a.onnx", 1, 4, 8, 8, scale=2.0)
    second = _write(tmp_path / "b.onnx", 1, 4, 8, 8, scale=2.5)
    difference = _time(first, second).difference
    assert difference is not None
    # One doubles its input, the other takes it two and a half times.
    assert difference.max_relative == pytest.approx(0.25, rel=1e-6)


def test_files_with_different_inputs(tmp_path: Path):
    first = _write(tmp_path / "a.onnx", 1, 4, 8, 8)
    second = _write(tmp_path / "b.onnx", 1, 4, 9, 9)
    with pytest.raises(ConfigError, match=r"different inputs.*\[1, 4, 8, 8\].*\[1, 4, 9, 9\]"):
        _time(first, second)


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.9])
def test_truncated_files(tmp_path: Path, kept: float):
    path = _write(tmp_path / "a.onnx", 1, 16, 8, 8)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept if kept > 1 else kept * len(data))])
    with pytest.raises(CorruptFileError, match="cannot run"):
        _time(path)


def test_a_file_that_asks_for_too_much_memory(tmp_path: Path):
    path = _write(tmp_path / "a.onnx", "N", 4096, 64, 64)
    with pytest.raises(CorruptFileError):
        _time(path, batch_size=100_000)


def test_missing_file(tmp_path: Path):
    with pytest.raises(ConfigError, match="no such file"):
        _time(tmp_path / "none.onnx")


def test_free_sizes_and_fixed_batches(tmp_path: Path):
    with pytest.raises(CorruptFileError, match="no fixed size"):
        _time(_write(tmp_path / "a.onnx", "N", 4, "H", 8))
    with pytest.raises(ConfigError, match="batch size 3"):
        _time(_write(tmp_path / "b.onnx", 3, 4, 8, 8), batch_size=2)
