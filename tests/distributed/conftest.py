"""What the tests that spread tasks over processes share."""

import importlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from effdl.distributed.dask_cluster import DaskExecutor
from effdl.distributed.executor import Executor, SerialExecutor
from effdl.distributed.local_processes import LocalProcessExecutor
from effdl.distributed.task import Task

HERE = Path(__file__).resolve().parent
ALLOWED = ("effdl.", "example_tasks:")

Make = Callable[..., Task]
Local = Callable[..., LocalProcessExecutor]


@pytest.fixture(scope="module")
def functions() -> Iterator[ModuleType]:
    """The module of task functions, found by this process and by its workers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(HERE))
        patch.syspath_prepend(HERE)
        yield importlib.import_module("example_tasks")


@pytest.fixture
def make(functions: ModuleType) -> Make:
    """Makes a task: ``make("sleep", seconds=1, resources={"cpu"})``."""

    def call(name: str, *, resources: Any = (), **members: Any) -> Task:
        texts = {k: str(v) if isinstance(v, Path) else v for k, v in members.items()}
        return Task.of(getattr(functions, name), functions.Work(**texts), resources=resources)

    return call


@pytest.fixture
def local(functions: ModuleType) -> Iterator[Local]:
    """Makes executors of local processes, and closes them."""
    made: list[LocalProcessExecutor] = []

    def call(num_workers: int = 2, **settings: Any) -> LocalProcessExecutor:
        made.append(LocalProcessExecutor(num_workers, allowed=ALLOWED, **settings))
        return made[-1]

    yield call
    for executor in made:
        executor.close()


@pytest.fixture(scope="module")
def dask(functions: ModuleType) -> Iterator[DaskExecutor]:
    """A cluster of this machine's own with two workers, one for all tests of a file."""
    if find_spec("distributed") is None:
        pytest.skip("the extra `dask` is not installed")
    with DaskExecutor(num_workers=2, timeout_s=20.0, allowed=ALLOWED) as executor:
        yield executor


@pytest.fixture
def serial() -> SerialExecutor:
    return SerialExecutor(allowed=ALLOWED)


@pytest.fixture(params=["serial", "local", "dask"])
def executor(request: pytest.FixtureRequest) -> Executor:
    """Every form of executor in turn."""
    made = request.getfixturevalue(request.param)
    return made() if request.param == "local" else made
