"""What latency tables know of the quantized layer is what runs."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from effdl.compilers import check_tvm
from effdl.errors import BackendUnavailableError
from effdl.kernels.backend import Backend
from effdl.kernels.kernel_spec import KernelSpec
from effdl.kernels.lipschitz_linear.spec import default_specs

SPECS = {spec.case: spec for spec in default_specs()}


def has_tvm() -> bool:
    try:
        check_tvm()
    except BackendUnavailableError:
        return False
    return True


BACKENDS = [
    Backend.REFERENCE,
    pytest.param(Backend.TVM, marks=pytest.mark.skipif(not has_tvm(), reason="needs TVM")),
]


def operands(run: Callable[[], object]) -> tuple[Any, ...]:
    assert isinstance(run, partial)
    return run.args


def by_onnxruntime(spec: KernelSpec, x: Any, batch_size: int) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        spec.op.build(batch_size), providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {"input": x.numpy()})[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", SPECS)
def test_onnx_form_computes_the_same(case: str, backend: Backend) -> None:
    spec = SPECS[case]
    run = spec.make_run(1, backend)
    wanted = by_onnxruntime(spec, operands(run)[0], 1)
    assert np.array_equal(np.asarray(run()), wanted)
    assert len(np.unique(wanted)) > 100


def test_batches() -> None:
    spec = next(iter(SPECS.values()))
    run = spec.make_run(2, Backend.REFERENCE)
    x = operands(run)[0]
    assert np.array_equal(np.asarray(run()), by_onnxruntime(spec, x, 2))


@pytest.mark.parametrize("case", SPECS)
def test_costs_are_those_of_the_graph(case: str) -> None:
    spec = SPECS[case]
    model = onnx.load_model_from_string(spec.op.build(1))
    onnx.checker.check_model(model, full_check=True)
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    assert spec.op.num_params == weights["weight"].size + weights["bias"].size
    positions = np.prod([d.dim_value for d in _dims(model)]) // len(weights["bias"])
    assert spec.op.macs == weights["weight"].size * positions
    assert spec.dtype == "uint8"
    assert len({s.op.key for s in SPECS.values()}) == len(SPECS)


def _dims(model: onnx.ModelProto) -> Any:
    return model.graph.output[0].type.tensor_type.shape.dim
