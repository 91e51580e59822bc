"""The runtime for real; only sanity is asserted of its times."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from effdl.errors import ConfigError, CorruptFileError
from effdl.targets.measure.onnxruntime import (
    OnnxRuntime,
    make_feeds,
    make_run,
    open_session,
    run_once,
)
from effdl.targets.measure.runtime import measure_on
from effdl.targets.timing import Protocol, measure_interleaved

_BRIEF = Protocol(name="brief", min_rounds=3, max_rounds=3, samples_per_round=5, min_span_s=0.0)


def graph(
    *shape: int | str, channels: int = 8, kind: int = TensorProto.FLOAT, repeats: int = 1
) -> bytes:
    """1x1 convolutions in a row (or identities, where the input is no float)."""
    nodes, weights, value = [], [], "input"
    for i in range(repeats):
        name = "output" if i == repeats - 1 else f"value{i}"
        if kind == TensorProto.FLOAT:
            weight = np.eye(channels, dtype=np.float32).reshape(channels, channels, 1, 1)
            weights.append(numpy_helper.from_array(weight, f"weight{i}"))
            nodes.append(helper.make_node("Conv", [value, f"weight{i}"], [name]))
        else:
            nodes.append(helper.make_node("Identity", [value], [name]))
        value = name
    made = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("input", kind, shape)],
        [helper.make_tensor_value_info("output", kind, shape)],
        weights,
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(made, ir_version=8, opset_imports=opsets).SerializeToString()


def test_bound_runs_compute_what_a_plain_run_computes():
    session = open_session(graph(2, 8, 6, 6))
    feeds = make_feeds(session)
    run = make_run(session, feeds)
    run()
    (output,) = run_once(session, feeds)
    np.testing.assert_allclose(output, feeds["input"], rtol=1e-6)


def test_a_free_first_dimension_becomes_the_batch():
    session = open_session(graph("N", 8, 4, 4))
    assert make_feeds(session)["input"].shape == (1, 8, 4, 4)
    assert make_feeds(session, batch_size=3)["input"].shape == (3, 8, 4, 4)


def test_a_fixed_batch_size_is_kept():
    session = open_session(graph(2, 8, 4, 4))
    assert make_feeds(session)["input"].shape == (2, 8, 4, 4)
    with pytest.raises(ConfigError, match="batch size 2 and no other"):
        make_feeds(session, batch_size=3)


def test_other_free_dimensions_are_refused():
    with pytest.raises(CorruptFileError, match=r"no fixed size.*\['N', 8, 'H', 4\]"):
        make_feeds(open_session(graph("N", 8, "H", 4)))


def test_made_inputs_are_the_same_every_time_and_of_the_right_type():
    session = open_session(graph(1, 8, 4, 4))
    np.testing.assert_array_equal(make_feeds(session)["input"], make_feeds(session)["input"])
    integers = make_feeds(open_session(graph(1, 8, kind=TensorProto.INT64)))["input"]
    assert integers.dtype == np.int64
    assert set(integers.ravel().tolist()) <= {0, 1}
    with pytest.raises(CorruptFileError, match=r"got tensor\(string\)"):
        make_feeds(open_session(graph(1, 8, kind=TensorProto.STRING)))


def test_damaged_models_are_refused(tmp_path: Path):
    good = graph(1, 8, 4, 4)
    for bad in (b"", b"no model", good[: len(good) // 2]):
        with pytest.raises(CorruptFileError, match="a model given as bytes"):
            open_session(bad)
    with pytest.raises(CorruptFileError, match=r"missing\.onnx"):
        open_session(tmp_path / "missing.onnx")


def test_more_work_takes_longer():
    """64 x the arithmetic; five times the time is asserted."""
    small, large = graph(1, 64, 8, 8, channels=64), graph(1, 64, 64, 64, channels=64)
    fast, slow = measure_on(OnnxRuntime(), [small, large], protocol=_BRIEF)
    assert 0 < fast.p20_ms < slow.p20_ms / 5
    assert fast.p20_ms <= fast.median_ms <= fast.p95_ms


def test_the_reference_kernel_runs():
    runtime = OnnxRuntime()
    (timing,) = measure_interleaved(
        [lambda: runtime.open_model(graph(1, 8, 4, 4))],
        instruments=runtime.instruments(),
        protocol=_BRIEF,
    )
    assert 0 < timing.reference_s < 1
