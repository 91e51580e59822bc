"""Which kernel backends can be imported here, found without importing them."""

import importlib.metadata
import importlib.util
from dataclasses import dataclass

__all__ = ["BACKENDS", "Backend", "find_backend", "find_backends"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """A compiler or framework that can run kernels.

    Attributes:
        name: What effdl calls it.
        module: What Python imports.
        packages: Distributions that bring it; the first is the one to install.
        version: The installed version, or None where it is not here.
    """

    name: str
    module: str
    packages: tuple[str, ...]
    version: str | None = None

    @property
    def is_available(self) -> bool:
        """Whether it can be imported."""
        return self.version is not None


BACKENDS = (
    Backend(name="torch", module="torch", packages=("torch",)),
    Backend(name="triton", module="triton", packages=("triton", "pytorch-triton", "triton-cpu")),
    Backend(name="tvm", module="tvm", packages=("apache-tvm", "mlc-ai-cpu")),
)


def find_backend(name: str) -> Backend:
    """One backend by name, with its version if it is here.

    Raises:
        KeyError: There is no backend of that name.
    """
    return {backend.name: backend for backend in find_backends()}[name]


def find_backends() -> tuple[Backend, ...]:
    """Every backend, with its version where it is here."""
    return tuple(_with_version(backend) for backend in BACKENDS)


def _with_version(backend: Backend) -> Backend:
    version = None
    if importlib.util.find_spec(backend.module) is not None:
        version = next(filter(None, map(_package_version, backend.packages)), "unknown")
    return Backend(
        name=backend.name, module=backend.module, packages=backend.packages, version=version
    )


def _package_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
