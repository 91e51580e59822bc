"""The layer, and what latency tables read of it."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from effdl.errors import BackendUnavailableError, ConfigError, UnknownNameError
from effdl.kernels.backend import Backend
from effdl.kernels.temporal_shift.module import StreamingTemporalShift, TemporalShift
from effdl.kernels.temporal_shift.op import temporal_shift
from effdl.kernels.temporal_shift.spec import default_specs, make_run, temporal_shift_spec

WAYS: list[dict[str, Any]] = [{}, {"direction": "paddle"}, {"causal": True}, {"fold_div": 2}]


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_layer_is_the_function(options: dict[str, Any]) -> None:
    x = torch.randn(6, 16, 2, 3)
    wanted = temporal_shift(x, num_segments=3, **options)
    assert torch.equal(TemporalShift(3, **options)(x), wanted)
    layer = TemporalShift(3, in_place=True, backend="reference", **options)
    assert layer(x) is x
    assert torch.equal(x, wanted)
    assert list(layer.state_dict()) == []


def test_layers_say_what_they_are() -> None:
    assert repr(TemporalShift(8)) == "TemporalShift(num_segments=8, fold_div=8, direction='mit')"
    layer = TemporalShift(4, fold_div=3, causal=True, in_place=True)
    assert repr(layer) == "TemporalShift(num_segments=4, fold_div=3, causal, in_place)"
    assert repr(layer.streaming()) == "StreamingTemporalShift(num_segments=1, fold_div=3)"


def test_wrong_options_are_refused_when_the_layer_is_made() -> None:
    with pytest.raises(ConfigError, match="num_segments: wanted 1 or more, got 0"):
        TemporalShift(0)
    with pytest.raises(ConfigError, match="fold_div: wanted 2 or more, got 1"):
        TemporalShift(8, fold_div=1)
    with pytest.raises(ConfigError, match="wanted none, got 'paddle'"):
        TemporalShift(8, causal=True, direction="paddle")
    with pytest.raises(UnknownNameError, match="unknown direction"):
        TemporalShift(8, direction="forward")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="num_segments: wanted 1 or more, got -1"):
        StreamingTemporalShift(num_segments=-1)


@pytest.mark.parametrize("options", [*WAYS, {"fold_div": 100}], ids=str)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_onnx_form_is_the_same_operator(options: dict[str, Any], batch_size: int) -> None:
    spec = temporal_shift_spec(19, 3, num_segments=5, **options)
    data = spec.build(batch_size)
    model = onnx.load_model_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    assert len(model.graph.node) <= 6
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    x = torch.randn(5 * batch_size, 19, 3, 3)
    x[0, 0] = torch.nan
    (got,) = session.run(None, {"input": x.numpy()})
    wanted = temporal_shift(x, num_segments=5, **options, backend="reference")
    np.testing.assert_array_equal(np.asarray(got), wanted.numpy())


def test_costs_by_hand() -> None:
    spec = temporal_shift_spec(16, 4, num_segments=8)
    # 8 frames of 256 numbers are written; of them 2 sections of 32 leave the clip unread.
    assert spec.bytes_moved == 4 * (8 * 256 + 8 * 256 - 2 * 32)
    assert spec.peak_memory_bytes == 2 * 4 * 8 * 256
    assert (spec.macs, spec.num_params, spec.flops) == (0, 0, 0)


def test_default_specs_are_the_networks_shifts_once_each() -> None:
    specs = default_specs()
    assert [spec.case for spec in specs] == [
        *("64@56", "256@56", "512@28", "1024@14", "2048@7"),
        *("24@56", "32@28", "64@14", "96@14", "160@7"),
    ]
    assert len({spec.op.key for spec in specs}) == len(specs)


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.TVM])
def test_runs_to_time(backend: Backend) -> None:
    if backend is Backend.TVM:
        pytest.importorskip("tvm")
    run = default_specs()[-1].make_run(2, backend)
    run()
    make_run(8, 2, num_segments=2, dtype=torch.float16, batch_size=1, backend=backend)()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_triton_is_timed_on_a_gpu_only() -> None:
    with pytest.raises(BackendUnavailableError, match="run on a GPU, got none here"):
        default_specs()[0].make_run(1, Backend.TRITON)
