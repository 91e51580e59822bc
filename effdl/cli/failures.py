"""How every failure ends: one message on stderr, one JSON object, one exit code."""

import errno
import itertools
import os
import tempfile
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click

from effdl.cli.output import write_error
from effdl.errors import ConfigError, EffdlError, OutputError, TargetUnavailableError

__all__ = ["Terminated", "report"]

_CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived; what saves on an interrupt saves on this too."""


class _InterruptedError(EffdlError):
    """Ctrl-C or SIGTERM, after what was running has saved."""

    def __init__(self, *, terminated: bool) -> None:
        super().__init__(
            "terminated" if terminated else "interrupted",
            hint="run the same command again; it uses what was saved",
        )
        self.exit_code = 143 if terminated else 130


class _UnexpectedError(EffdlError):
    """A defect in effdl; carries where its report was written."""

    def __init__(self, error: Exception, crash_report: Path | None) -> None:
        where = "and no crash report could be written" if crash_report is None else ""
        super().__init__(
            f"unexpected {type(error).__name__}: {error} {where}".rstrip(),
            hint=None if crash_report is None else f"crash report: {crash_report}",
        )
        self._crash_report = crash_report

    def details(self) -> dict[str, object]:
        return {"crash_report": None if self._crash_report is None else str(self._crash_report)}


def report(error: Exception, args: Sequence[str]) -> int:
    """Write a failure where it belongs and return the exit code.

    Args:
        error: What ended the command.
        args: The command line, without the program's name.
    """
    known = _as_effdl_error(error, args)
    if "--debug" in args:
        click.echo("".join(traceback.format_exception(error)).rstrip(), err=True)
    write_error(known, as_json=_wants_json(args))
    return known.exit_code


def _as_effdl_error(error: Exception, args: Sequence[str]) -> EffdlError:
    if isinstance(error, EffdlError):
        return error
    if isinstance(error, click.Abort):
        return _InterruptedError(terminated=isinstance(error.__cause__, Terminated))
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx is not None else "effdl"
        return ConfigError(error.format_message(), hint=f"{path} --help lists the options")
    if isinstance(error, click.ClickException):
        return ConfigError(error.format_message())
    if isinstance(error, OSError) and error.errno in _CANNOT_WRITE:
        what = os.fsdecode(error.filename) if error.filename is not None else "the result"
        return OutputError(
            f"cannot write {what}: {error.strerror}",
            hint="free some space, or choose another folder with --out",
        )
    if isinstance(error, MemoryError):
        return TargetUnavailableError(
            f"this machine's memory does not hold it: {error}", hint="a smaller --batch-size"
        )
    return _UnexpectedError(error, _write_crash_report(error, args))


def _wants_json(args: Sequence[str]) -> bool:
    options = list(args[: args.index("--")] if "--" in args else args)
    return "--format=json" in options or any(
        pair == ("--format", "json") for pair in itertools.pairwise(options)
    )


def _write_crash_report(error: Exception, args: Sequence[str]) -> Path | None:
    import platform
    from importlib import metadata

    now = datetime.now(UTC)
    lines = [
        f"effdl {metadata.version('effdl')}, Python {platform.python_version()}, "
        f"{platform.platform()}",
        f"time: {now.isoformat(timespec='seconds')}",
        f"arguments: {list(args)!r}",
        "",
        "".join(traceback.format_exception(error)),
    ]
    name = f"crash-{now:%Y%m%d-%H%M%S}-{os.getpid()}.txt"
    for folder in _log_folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("\n".join(lines), encoding="utf-8", errors="replace")
        except OSError:
            continue
        return folder / name
    return None


def _log_folders() -> list[Path]:
    home = os.environ.get("EFFDL_HOME")
    if home:
        first = Path(home) / "log"
    else:
        import platformdirs

        first = Path(platformdirs.user_log_dir("effdl", appauthor=False))
    return [first, Path(tempfile.gettempdir())]
