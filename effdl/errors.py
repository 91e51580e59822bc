"""Every error effdl raises on purpose.

The tree, with the exit code the command line gives it::

    EffdlError                          1
    ├── ConfigError                     2   a wrong argument, unit, name or setting
    │   └── UnknownNameError            2   says the nearest known name
    ├── InfeasibleConstraintError       3   names the fastest reachable latency
    ├── TargetUnavailableError          4   the target is not here or cannot be measured
    ├── BackendUnavailableError         4   a tool or an optional package is missing
    ├── WorkerLostError                 4   a task ended its worker, or did not end in time
    ├── UnstableMeasurementError        5   under --strict: the noise did not settle
    ├── ExportParityError               6   an exported file does not compute what it should
    ├── CorruptFileError                7   a given file is malformed or of another kind
    ├── LatencyTableError               7
    │   ├── MissingEntryError           7   the table has no row for an operator
    │   └── TableMismatchError          7   the table is of another space, device or version
    └── OutputError                     8   a result cannot be written

A message says what failed, what was wanted and what came; the hint is the
command that helps.
"""

import difflib
from collections.abc import Iterable

__all__ = [
    "BackendUnavailableError",
    "ConfigError",
    "CorruptFileError",
    "EffdlError",
    "ExportParityError",
    "InfeasibleConstraintError",
    "LatencyTableError",
    "MissingEntryError",
    "OutputError",
    "TableMismatchError",
    "TargetUnavailableError",
    "UnknownNameError",
    "UnstableMeasurementError",
    "WorkerLostError",
]


class EffdlError(Exception):
    """Root of the tree.

    Args:
        message: What failed, what was wanted and what came; one sentence
            carries no full stop.
        hint: The command or change that helps, if there is one.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def details(self) -> dict[str, object]:
        """Further JSON members of ``error`` (empty here)."""
        return {}


class ConfigError(EffdlError):
    """A wrong argument, unit, name or setting."""

    exit_code = 2


class UnknownNameError(ConfigError):
    """A name that is not known; the hint gives the nearest one.

    Args:
        kind: What the name stands for, such as ``"target"``.
        name: The name that was given.
        known: All names that would have been right.
        command: A command that lists them, if there is one.
    """

    def __init__(
        self, kind: str, name: str, known: Iterable[str], *, command: str | None = None
    ) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        hints = [f"did you mean {near[0]!r}?"] if near else []
        if command is not None:
            hints.append(f"{command} lists them all")
        super().__init__(
            f"unknown {kind} {name!r}: wanted one of {', '.join(names)}",
            hint="; ".join(hints) or None,
        )


class InfeasibleConstraintError(EffdlError):
    """No sub-network meets the constraints.

    Args:
        message: Which constraint cannot be met.
        fastest_latency_ms: The lowest latency the space reaches on the
            target, in milliseconds, or None where no latency was limited.
        hint: The command that would succeed.
    """

    exit_code = 3

    def __init__(
        self, message: str, *, fastest_latency_ms: float | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.fastest_latency_ms = fastest_latency_ms

    def details(self) -> dict[str, object]:
        return {"fastest_latency_ms": self.fastest_latency_ms}


class TargetUnavailableError(EffdlError):
    """The target is not here, or cannot be measured from here."""

    exit_code = 4


class BackendUnavailableError(EffdlError):
    """A tool or an optional package is missing; the hint installs it."""

    exit_code = 4


class WorkerLostError(EffdlError):
    """A task ended its worker each time it was tried, or did not end in time."""

    exit_code = 4


class UnstableMeasurementError(EffdlError):
    """A measurement's noise did not settle, and ``--strict`` was asked for."""

    exit_code = 5


class ExportParityError(EffdlError):
    """An exported file does not compute what the network computes."""

    exit_code = 6


class CorruptFileError(EffdlError):
    """A given file is malformed, truncated, or of another kind or version."""

    exit_code = 7


class LatencyTableError(EffdlError):
    """A latency table cannot serve the request."""

    exit_code = 7


class MissingEntryError(LatencyTableError):
    """The table has no row for an operator that the space needs."""


class TableMismatchError(LatencyTableError):
    """The table belongs to another space, device, batch size or version."""


class OutputError(EffdlError):
    """A result cannot be written: the folder is full, read-only or taken."""

    exit_code = 8
