"""Every way to compute a kernel's operator on this machine: plain ONNX, and our backends."""

import hashlib
import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch

import effdl.kernels
from effdl.compilers import TVM_VERSION
from effdl.errors import BackendUnavailableError
from effdl.kernels.backend import Backend, choose_backend
from effdl.kernels.kernel_spec import KernelSpec
from effdl.targets.host import RuntimeBuild, find_runtime
from effdl.targets.implementations import Implementation
from effdl.targets.measure.runtime import MeasurementRuntime
from effdl.targets.sampler import HostSampler, Opener, Sampler
from effdl.targets.store import Setting
from effdl.targets.timing import Protocol

__all__ = [
    "PLAIN",
    "KernelImplementation",
    "MissingBackend",
    "find_implementations",
    "load_kernel_specs",
]

PLAIN = "onnxruntime"
"""Name of the implementation that is the operator's plain ONNX form."""

_PACKAGES = {Backend.TVM: "apache-tvm", Backend.TRITON: "triton", Backend.REFERENCE: "torch"}


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelImplementation:
    """One way to compute one kernel's operator.

    Attributes:
        spec: The kernel at one size.
        runtime: What runs it, with its version.
        implementation: What the clock needs of it.
    """

    spec: KernelSpec
    runtime: str
    implementation: Implementation


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingBackend:
    """A backend that cannot be measured here.

    Attributes:
        backend: Its name.
        reason: Why.
        hint: What helps, if there is anything.
    """

    backend: str
    reason: str
    hint: str | None


def load_kernel_specs() -> tuple[KernelSpec, ...]:
    """Every kernel at its usual sizes, by name of the kernel."""
    folders = sorted(m.name for m in pkgutil.iter_modules(effdl.kernels.__path__) if m.ispkg)
    modules = [importlib.import_module(f"effdl.kernels.{name}.spec") for name in folders]
    return tuple(spec for module in modules for spec in module.default_specs())


def find_implementations(
    specs: Sequence[KernelSpec],
    *,
    runtime: MeasurementRuntime,
    protocol: Protocol,
    batch_size: int,
) -> tuple[list[KernelImplementation], list[MissingBackend]]:
    """What can be measured on this machine's processor, and which backends cannot.

    An operator that several kernels compute has its plain ONNX form once.

    Args:
        specs: Kernels at their sizes.
        runtime: Runs the plain ONNX forms.
        protocol: How carefully they will be measured.
        batch_size: Samples in one run.
    """
    usable, missing = _split_backends({b for spec in specs for b in spec.backends})
    found: dict[tuple[str, str], KernelImplementation] = {}
    for spec in specs:
        plain = replace(Setting.of(runtime, protocol, batch_size=batch_size), dtype=spec.dtype)
        choices = [(PLAIN, runtime.build, _plain_opener(runtime, spec, batch_size))]
        for backend in spec.backends:
            if backend in usable:
                opener = partial(_open_kernel, spec, batch_size, backend)
                choices.append((f"{spec.kernel}.{backend}", _build(spec.kernel, backend), opener))
        for name, build, opener in choices:
            implementation = Implementation(
                key=spec.op.key,
                name=name,
                setting=replace(
                    plain,
                    runtime=build.name,
                    runtime_version=build.version,
                    runtime_build=build.build,
                ),
                opener=opener,
            )
            found.setdefault(
                (spec.op.key, name),
                KernelImplementation(spec=spec, runtime=str(build), implementation=implementation),
            )
    return list(found.values()), missing


def _split_backends(backends: set[Backend]) -> tuple[set[Backend], list[MissingBackend]]:
    usable: set[Backend] = set()
    missing: list[MissingBackend] = []
    for backend in sorted(backends):
        if backend is Backend.TRITON:
            # Its interpreter would run here, but says nothing of its speed.
            reason, hint = "Triton's kernels are measured on a GPU", None
            missing.append(MissingBackend(backend=backend, reason=reason, hint=hint))
            continue
        try:
            choose_backend(backend, device=torch.device("cpu"))
        except BackendUnavailableError as error:
            missing.append(MissingBackend(backend=backend, reason=error.message, hint=error.hint))
        else:
            usable.add(backend)
    return usable, missing


def _plain_opener(runtime: MeasurementRuntime, spec: KernelSpec, batch_size: int) -> Opener:
    def opened() -> Sampler:
        return runtime.open_model(spec.op.build(batch_size))

    return opened


def _open_kernel(spec: KernelSpec, batch_size: int, backend: Backend) -> Sampler:
    return HostSampler(spec.make_run(batch_size, backend))


@cache
def _build(kernel: str, backend: Backend) -> RuntimeBuild:
    """The backend as what runs the kernel: its compiler's build, and the kernel's source."""
    compiler = find_runtime(_PACKAGES[backend])
    digest = hashlib.sha256(compiler.build.encode())
    for path in _sources(kernel):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    version = TVM_VERSION if backend is Backend.TVM else compiler.version
    return RuntimeBuild(name=f"effdl-{backend}", version=version, build=digest.hexdigest()[:16])


def _sources(kernel: str) -> list[Path]:
    shared = Path(effdl.kernels.__path__[0])
    return [*sorted(shared.glob("*.py")), *sorted((shared / kernel).glob("*.py"))]
