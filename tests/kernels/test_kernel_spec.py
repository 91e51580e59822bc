"""Every kernel's specs: what they say is so, and what they make runs."""

import dataclasses
import importlib
import pkgutil

import numpy as np
import onnx
import pytest
import torch

import effdl.kernels
from effdl.errors import BackendUnavailableError
from effdl.kernels.backend import Backend, choose_backend
from effdl.kernels.kernel_spec import KernelSpec
from effdl.targets.measure.onnxruntime import make_feeds, open_session, run_once
from effdl.workflows.kernel_implementations import load_kernel_specs

KERNELS = sorted(m.name for m in pkgutil.iter_modules(effdl.kernels.__path__) if m.ispkg)
_MAX_KEY_LENGTH = 512


def specs_of(kernel: str) -> tuple[KernelSpec, ...]:
    return importlib.import_module(f"effdl.kernels.{kernel}.spec").default_specs()


def smallest_of(kernel: str) -> KernelSpec:
    return min(specs_of(kernel), key=lambda spec: spec.op.bytes_moved)


@pytest.mark.parametrize("kernel", KERNELS)
def test_specs_are_whole(kernel: str) -> None:
    specs = specs_of(kernel)
    assert specs
    for spec in specs:
        assert spec.kernel == kernel
        assert spec.case
        assert isinstance(getattr(torch, spec.dtype), torch.dtype)
        assert np.dtype(spec.dtype).name == spec.dtype
        assert spec.backends
        assert set(spec.backends) <= set(Backend)
        assert 0 < len(spec.op.key) <= _MAX_KEY_LENGTH
        assert spec.op.bytes_moved > 0
        assert spec.op.macs >= 0
    # A figure is stored under key, number format and backend.
    keys = [(spec.op.key, spec.dtype) for spec in specs]
    assert len(keys) == len(set(keys))
    cases = [(spec.case, spec.dtype) for spec in specs]
    assert len(cases) == len(set(cases))


def test_all_kernels_are_loaded() -> None:
    specs = load_kernel_specs()
    assert {spec.kernel for spec in specs} == set(KERNELS)
    by_key: dict[str, set[str]] = {}
    for spec in specs:
        by_key.setdefault(spec.op.key, set()).add(spec.dtype)
    assert all(len(dtypes) == 1 for dtypes in by_key.values())


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("kernel", KERNELS)
def test_plain_form_runs_in_onnx_runtime(kernel: str, batch_size: int) -> None:
    data = smallest_of(kernel).op.build(batch_size)
    model = onnx.load_model_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain for entry in model.opset_import} <= {"", "ai.onnx"}
    session = open_session(data)
    outputs = run_once(session, make_feeds(session))
    assert all(output.size > 0 for output in outputs)
    first = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    assert first % batch_size == 0


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_runs_on_the_processor(kernel: str) -> None:
    spec = smallest_of(kernel)
    for backend in set(spec.backends) - {Backend.TRITON}:
        try:
            choose_backend(backend, device=torch.device("cpu"))
        except BackendUnavailableError as error:
            pytest.skip(error.message)
        run = spec.make_run(2, backend)
        run()
        run()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("kernel", KERNELS)
def test_triton_without_a_gpu_is_said(kernel: str) -> None:
    spec = smallest_of(kernel)
    if Backend.TRITON in spec.backends:
        with pytest.raises(BackendUnavailableError):
            spec.make_run(1, Backend.TRITON)


def test_a_spec_does_not_change() -> None:
    (spec, *_) = specs_of("temporal_shift")
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.case = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        KernelSpec(spec.op, spec.kernel, spec.case, spec.dtype, spec.backends, spec.make_run)  # type: ignore[misc]
