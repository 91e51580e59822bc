"""What is spread over workers: a function named by text, JSON in, JSON out.

Nothing but text travels, never a pickled closure. A task is its text: two with the
same text are the same task, and doing one twice gives the same result twice.
"""

import hashlib
import importlib
import inspect
import re
import traceback
import typing
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, Self

import msgspec

from effdl import errors
from effdl.errors import ConfigError, EffdlError

__all__ = ["ALLOWED", "MAX_MESSAGE_BYTES", "Failure", "Outcome", "Task", "as_error", "perform"]

ALLOWED = ("effdl.",)
"""What the name of a task's function must begin with, unless asked otherwise."""

MAX_MESSAGE_BYTES = 512 << 20

_NAME = re.compile(r"([A-Za-z]\w*(?:\.[A-Za-z]\w*)*):([A-Za-z]\w*)", re.ASCII)


class Task(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """One piece of work; `Task.of` makes it from a function.

    Attributes:
        function: ``"package.module:name"`` of a public function with one parameter.
        argument: That parameter as JSON, its keys sorted.
        resources: Devices that the function needs for itself alone while it runs.
    """

    function: str
    argument: bytes
    resources: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls, function: Callable[[Any], object], argument: object, *, resources: Iterable[str] = ()
    ) -> Self:
        """A task that calls ``function(argument)``.

        Args:
            function: At the top of its module, with one parameter, whose annotation
                is a type that msgspec decodes.
            argument: What msgspec encodes.
            resources: Names of devices.
        """
        return cls(
            function=f"{function.__module__}:{function.__qualname__}",
            argument=_canonical(argument),
            resources=frozenset(resources),
        )

    @cached_property
    def key(self) -> str:
        """Its identity: SHA-256 of its canonical JSON, 64 hexadecimal digits."""
        text = {
            "argument": msgspec.Raw(self.argument),
            "function": self.function,
            "resources": sorted(self.resources),
        }
        return hashlib.sha256(_canonical(text)).hexdigest()

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"{self.function} [{self.key[:12]}]"


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a task has no result.

    Attributes:
        kind: Name of a class of `effdl.errors`; empty: a defect.
        message: The error's message; of a defect the traceback's last line.
        hint: The error's hint.
        details: Other members of the error.
        report: The traceback where it happened, if it is known.
    """

    kind: str
    message: str
    hint: str | None = None
    details: dict[str, Any] = {}
    report: str = ""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a task.

    Attributes:
        result: JSON, its keys sorted; ``null`` after a failure.
        failure: Why there is no result, if there is none.
    """

    result: msgspec.Raw = msgspec.Raw(b"null")
    failure: Failure | None = None


def perform(function: str, argument: bytes, allowed: tuple[str, ...]) -> Outcome:
    """Call a task's function here; every error but an interrupt becomes an outcome.

    Args:
        function: ``"package.module:name"``.
        argument: JSON.
        allowed: What the name must begin with.
    """
    try:
        result = _canonical(_call(function, argument, allowed))
        if len(result) > MAX_MESSAGE_BYTES:
            raise ConfigError(
                f"the result of {function} is too large: wanted at most {MAX_MESSAGE_BYTES} "
                f"bytes, got {len(result)}"
            )
    except EffdlError as error:
        return Outcome(failure=_known_failure(error))
    # The edge of a worker: what is not foreseen goes back as text, with all that is known.
    except Exception as error:
        last = traceback.format_exception_only(error)[0].strip()
        report = "".join(traceback.format_exception(error))
        return Outcome(failure=Failure(kind="", message=last, report=report))
    return Outcome(result=msgspec.Raw(result))


def as_error(failure: Failure, task: Task) -> Exception:
    """The error that a failure of a task was, to be raised here.

    An error of `effdl.errors` comes back as its own class; anything else is a defect
    and becomes a `RuntimeError`. The worker's traceback is a note of either.
    """
    kind = getattr(errors, failure.kind, None) if failure.kind else None
    if isinstance(kind, type) and issubclass(kind, EffdlError):
        error = kind.__new__(kind, failure.message)
        vars(error).update(failure.details, message=failure.message, hint=failure.hint)
        error.add_note(f"in task {task.name}")
    else:
        error = RuntimeError(f"task {task.name} ended with {failure.message}")
    if failure.report:
        error.add_note(f"where it ran:\n{failure.report.rstrip()}")
    return error


def _canonical(value: object) -> bytes:
    return msgspec.json.encode(value, order="sorted")


def _call(name: str, argument: bytes, allowed: tuple[str, ...]) -> object:
    function, kind = _find(name, allowed)
    try:
        value = msgspec.json.decode(argument, type=kind)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{name} does not take this argument: {error}") from None
    return function(value)


def _find(name: str, allowed: tuple[str, ...]) -> tuple[Callable[[Any], object], Any]:
    """A function and the type of its parameter."""
    match = _NAME.fullmatch(name)
    if match is None or not name.startswith(allowed):
        raise ConfigError(
            f"not a task function: wanted package.module:name inside {' or '.join(allowed)}, "
            f"got {name!r}"
        )
    module_name, function_name = match.groups()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ConfigError(f"not a task function: there is no module {error.name}") from None
    function = getattr(module, function_name, None)
    # Only what is written there: a module's imports are not functions it offers.
    if not inspect.isfunction(function) or function.__module__ != module_name:
        raise ConfigError(f"not a task function: {module_name} has no function {function_name}")
    parameters = list(inspect.signature(function).parameters)
    kind = typing.get_type_hints(function).get(parameters[0]) if len(parameters) == 1 else None
    if kind is None:
        raise ConfigError(f"not a task function: {name} wants one parameter, with its type")
    return function, kind


def _known_failure(error: EffdlError) -> Failure:
    kind = next(k.__name__ for k in type(error).__mro__ if k.__module__ == errors.__name__)
    members = vars(error).items()
    others = {k: v for k, v in members if k not in ("message", "hint", "__notes__")}
    return Failure(
        kind=kind,
        message=error.message,
        hint=error.hint,
        details=msgspec.json.decode(msgspec.json.encode(others, enc_hook=str)),
        report="".join(traceback.format_exception(error)),
    )
