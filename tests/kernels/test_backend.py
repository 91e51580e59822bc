"""Backends are found without importing them."""

import importlib.metadata
import subprocess
import sys

import pytest

from effdl.kernels.backend import find_backend, find_backends


def test_torch_is_found_with_its_version():
    backend = find_backend("torch")
    assert backend.is_available
    assert backend.version == importlib.metadata.version("torch")


def test_every_backend_agrees_with_what_can_be_imported():
    for backend in find_backends():
        code = f"import importlib.util as u, sys; sys.exit(u.find_spec({backend.module!r}) is None)"
        missing = subprocess.run([sys.executable, "-c", code], check=False).returncode
        assert backend.is_available == (not missing)


def test_unknown_backend():
    with pytest.raises(KeyError):
        find_backend("no such backend")


def test_nothing_is_imported():
    code = (
        "import sys; from effdl.kernels.backend import find_backends; find_backends(); "
        "sys.exit(bool({'torch', 'triton', 'tvm'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
