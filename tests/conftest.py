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
