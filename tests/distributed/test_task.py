"""Names, identities, and errors that travel as text."""

import traceback
from types import ModuleType

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from effdl import errors
from effdl.distributed.task import ALLOWED, Failure, Outcome, Task, as_error, perform
from effdl.errors import ConfigError, EffdlError, InfeasibleConstraintError, UnknownNameError

TESTS = ("example_tasks:",)


def _one(members: dict[str, int]) -> None:
    """Stands for a task function."""


def _other(members: dict[str, int]) -> None:
    """Stands for another."""


def test_identity_is_the_digest_of_canonical_json(functions: ModuleType) -> None:
    task = Task.of(functions.nothing, {"b": 1, "a": [2.5]}, resources=["y", "x"])
    assert task.argument == b'{"a":[2.5],"b":1}'
    # sha256sum of the canonical text, taken by hand: argument, function, resources.
    assert task.key == "b3e2027ef59094b9a8eb0857677db511b6efb774e1dba2e1fce213f18ae61d44"
    assert task.name == f"example_tasks:nothing [{task.key[:12]}]"


@given(st.dictionaries(st.text(max_size=5), st.integers(), max_size=6), st.randoms())
def test_identity_knows_no_order(members: dict[str, int], random) -> None:
    pairs = list(members.items())
    random.shuffle(pairs)
    first, second = (Task.of(_one, dict(p)) for p in (members.items(), pairs))
    assert first == second
    assert first.key == second.key


def test_identity_depends_on_everything() -> None:
    tasks = [
        Task.of(_one, {"a": 1}),
        Task.of(_one, {"a": 2}),
        Task.of(_one, {"a": 1}, resources={"cpu"}),
        Task.of(_other, {"a": 1}),
    ]
    assert len({task.key for task in tasks}) == 4


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("os:getpid", "inside effdl"),
        ("effdl.evil", "package.module:name"),
        ("effdl.files:__import__", "package.module:name"),
        ("effdl.files:write_atomically.x", "package.module:name"),
        ("effdl..files:a", "package.module:name"),
        ("effdl.nowhere:f", "no module effdl.nowhere"),
        ("effdl.files:nothing", "has no function nothing"),
        # Imported there, or a class: not a function it offers.
        ("effdl.files:os", "has no function os"),
        ("effdl.distributed.worker_process:frame", "has no function frame"),
        ("effdl.errors:ConfigError", "has no function ConfigError"),
        ("effdl.files:write_atomically", "wants one parameter"),
        ("effdl.files:write_atomically\n", "package.module:name"),
    ],
)
def test_only_listed_functions_are_called(name: str, said: str) -> None:
    failure = perform(name, b"{}", ALLOWED).failure
    assert failure is not None
    assert failure.kind == "ConfigError"
    assert said in failure.message


@pytest.mark.parametrize("name", ["two", "loose"])
def test_functions_have_one_typed_parameter(functions: ModuleType, name: str) -> None:
    failure = perform(f"example_tasks:{name}", b"{}", TESTS).failure
    assert failure is not None
    assert "wants one parameter, with its type" in failure.message


@pytest.mark.parametrize("argument", [b'{"number":"x"}', b'{"unknown":1}', b"{", b"\xff", b""])
def test_arguments_that_do_not_fit(functions: ModuleType, argument: bytes) -> None:
    failure = perform("example_tasks:nothing", argument, TESTS).failure
    assert failure is not None
    assert failure.kind == "ConfigError"
    assert "example_tasks:nothing does not take this argument" in failure.message


def _travelled(functions: ModuleType, kind: str) -> Exception:
    task = Task.of(functions.fail, functions.Work(kind=kind))
    sent = msgspec.json.encode(perform(task.function, task.argument, TESTS))
    failure = msgspec.json.decode(sent, type=Outcome).failure
    assert failure is not None
    return as_error(failure, task)


def test_errors_come_back_as_themselves(functions: ModuleType) -> None:
    error = _travelled(functions, "config")
    assert type(error) is ConfigError
    assert (error.message, error.hint, str(error)) == (
        "wanted a, got b",
        "try a",
        "wanted a, got b",
    )
    assert "in fail" in "".join(traceback.format_exception(error))
    root = _travelled(functions, "root")
    assert type(root) is EffdlError
    assert root.hint is None


def test_members_of_errors_come_along(functions: ModuleType) -> None:
    error = _travelled(functions, "fastest")
    assert type(error) is InfeasibleConstraintError
    assert error.details() == {"fastest_latency_ms": 12.5}
    assert error.hint == "15ms"


def test_errors_made_in_other_ways(functions: ModuleType) -> None:
    error = _travelled(functions, "name")
    assert type(error) is UnknownNameError
    assert error.message.startswith("unknown fruit 'aple'")
    assert error.hint == "did you mean 'apple'?"


def test_classes_of_others_come_back_as_the_nearest_known(functions: ModuleType) -> None:
    error = _travelled(functions, "private")
    assert type(error) is ConfigError
    assert error.message == "hidden"


def test_defects_name_the_task_and_keep_the_traceback(functions: ModuleType) -> None:
    error = _travelled(functions, "defect")
    assert type(error) is RuntimeError
    assert str(error).startswith("task example_tasks:fail [")
    assert "] ended with ZeroDivisionError: by zero" in str(error)
    report = "".join(traceback.format_exception(error))
    assert "example_tasks.py" in report
    assert "line" in report
    assert "in fail" in report


@pytest.mark.parametrize("kind", ["OSError", "annotations", "difflib", "Iterable", "__doc__"])
def test_nothing_but_our_errors_is_made_from_text(kind: str) -> None:
    task = Task.of(_one, {})
    assert type(as_error(Failure(kind=kind, message="m"), task)) is RuntimeError


def test_every_error_of_the_tree_travels() -> None:
    kinds = [getattr(errors, name) for name in errors.__all__]
    for kind in kinds:
        failure = Failure(kind=kind.__name__, message="m", hint="h")
        error = as_error(failure, Task.of(_one, {}))
        assert type(error) is kind
        assert str(error) == "m"
