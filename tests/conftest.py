"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest

_REFERENCE_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if _REFERENCE_DATA.is_dir():
        return
    skip = pytest.mark.skip(reason="the published figures are not beside this checkout")
    for item in items:
        if "reference_data" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """The folder of published figures beside the checkout."""
    return _REFERENCE_DATA


@pytest.fixture(autouse=True)
def effdl_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user folder of the test's own, so that no test sees or changes the real one."""
    home = tmp_path_factory.mktemp("effdl-home")
    monkeypatch.setenv("EFFDL_HOME", os.fspath(home))
    return home


@pytest.fixture(scope="session")
def native_triple() -> str:
    """This machine's triple; skips where TVM, or a linker for it, is missing."""
    from effdl.errors import BackendUnavailableError
    from effdl.targets.measure.tvm_target import find_linker, find_tvm, host_triple

    triple = host_triple()
    if triple is None:
        pytest.skip("TVM compiles nothing that runs on this machine")
    try:
        find_tvm()
        find_linker(triple)
    except BackendUnavailableError as error:
        pytest.skip(f"{error.message}: {error.hint}")
    return triple


@pytest.fixture(scope="session")
def daemon_path(native_triple: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """effdl-rpcd, built for this machine."""
    from effdl.targets.measure.rpc_daemon_build import build_daemon

    return build_daemon(native_triple, tmp_path_factory.mktemp("rpcd"))


@pytest.fixture(scope="session")
def block_model() -> bytes:
    """A squeeze-excite block on [1, 8, 12, 12] as ONNX: nearly every operator of a network."""
    from effdl.models.mobilenet_v3.onnx_graph import build_operator
    from effdl.models.mobilenet_v3.operators import BlockShape

    shape = BlockShape(
        in_size=12,
        in_channels=8,
        mid_channels=24,
        out_channels=8,
        kernel_size=3,
        stride=1,
        squeeze_excite=True,
        activation="hswish",
        skip=True,
    )
    return build_operator(shape, 1)
