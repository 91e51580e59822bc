"""The user's own measurements, in one SQLite file.

Every round of every item is committed as it is measured, so a process that is
killed loses none it has acknowledged, and the next one goes on from there. Rows
are kept apart by their setting: runtime and build, device, threads, batch size,
number format and protocol. A setting that differs in anything is a miss. The
file must lie on a file system of this machine's own.
"""

import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import numpy as np
import platformdirs
from numpy.typing import NDArray

from effdl.errors import CorruptFileError, OutputError
from effdl.targets.measure.runtime import MeasurementRuntime
from effdl.targets.mounts import find_mount, is_shared_between_machines
from effdl.targets.timing import PROTOCOL_VERSION, Protocol, Round, Timing

__all__ = ["MeasurementStore", "Setting", "default_store_path"]

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE setting(id INTEGER PRIMARY KEY, description TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE round(
    setting INTEGER NOT NULL REFERENCES setting(id), item TEXT NOT NULL, number INTEGER NOT NULL,
    reference_s REAL NOT NULL, seconds BLOB NOT NULL, interrupted BLOB NOT NULL,
    PRIMARY KEY(setting, item, number)
) STRICT, WITHOUT ROWID;
CREATE TABLE timing(
    setting INTEGER NOT NULL REFERENCES setting(id), item TEXT NOT NULL,
    figures TEXT NOT NULL, measured_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP,
    PRIMARY KEY(setting, item)
) STRICT, WITHOUT ROWID;
CREATE TABLE calibration(
    setting INTEGER NOT NULL REFERENCES setting(id), space TEXT NOT NULL, fit TEXT NOT NULL,
    PRIMARY KEY(setting, space)
) STRICT, WITHOUT ROWID;
"""
_BUSY_SECONDS = 30.0
_BUSY_PAUSE_S = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Everything but the operator that a latency depends on.

    Attributes:
        runtime: Name of what ran it.
        runtime_version: Its version.
        runtime_build: Digest of its binaries.
        device: Fingerprint of the machine.
        num_threads: Threads inside an operator.
        batch_size: Samples in one run.
        dtype: Number format.
        layout: Order of the dimensions at the graph's edges.
        clock_policy: The frequency governor.
        regime: What is timed where the runtime gives a choice; empty where not.
        protocol: Name of the protocol.
        protocol_version: Version of the way of measuring.
    """

    runtime: str
    runtime_version: str
    runtime_build: str
    device: str
    num_threads: int
    batch_size: int
    dtype: str = "float32"
    layout: str = "nchw"
    clock_policy: str = "unknown"
    regime: str = ""
    protocol: str
    protocol_version: int = PROTOCOL_VERSION

    @classmethod
    def of(cls, runtime: MeasurementRuntime, protocol: Protocol, *, batch_size: int) -> Self:
        """The setting of a measurement by a runtime."""
        return cls(
            runtime=runtime.build.name,
            runtime_version=runtime.build.version,
            runtime_build=runtime.build.build,
            device=runtime.device_fingerprint,
            num_threads=runtime.num_threads,
            batch_size=batch_size,
            dtype=runtime.dtype,
            clock_policy=runtime.clock_policy,
            regime=runtime.regime,
            protocol=protocol.name,
        )

    def describe(self) -> str:
        """Canonical JSON: equal settings have equal text."""
        return msgspec.json.encode(asdict(self), order="sorted").decode()


def default_store_path() -> Path:
    """``$EFFDL_HOME/measurements.sqlite``, else in the platform's folder for user data."""
    home = os.environ.get("EFFDL_HOME")
    folder = Path(home) if home else Path(platformdirs.user_data_dir("effdl"))
    return folder / "measurements.sqlite"


class MeasurementStore:
    """Reads and writes the file; use it as a context manager.

    Args:
        path: The file; made if it is missing.

    Raises:
        OutputError: The folder or the file cannot be written, or lies on a network
            file system.
        CorruptFileError: The file is not a store, or of another version.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or default_store_path()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(self.path, error.strerror or str(error)) from error
        _check_local(self.path)
        self._setting_ids: dict[str, int] = {}
        with self._errors():
            self._db = sqlite3.connect(
                self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
        try:
            with self._errors():
                self._prepare_when_free()
        except (CorruptFileError, OutputError):
            self._db.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._db.close()

    def read_timings(self, setting: Setting) -> dict[str, Timing]:
        """All finished items of a setting."""
        query = (
            "SELECT item, figures FROM timing JOIN setting ON setting = id WHERE description = ?"
        )
        with self._errors():
            rows = self._db.execute(query, [setting.describe()]).fetchall()
            return {item: _TIMING.decode(figures) for item, figures in rows}

    def read_rounds(self, setting: Setting, items: Sequence[str]) -> list[list[Round]]:
        """The rounds measured so far of each item, in the order they were added."""
        query = (
            "SELECT item, reference_s, seconds, interrupted "
            "FROM setting CROSS JOIN json_each(?2) AS wanted CROSS JOIN round "
            "ON round.setting = setting.id AND item = wanted.value "
            "WHERE description = ?1 ORDER BY item, number"
        )
        wanted = msgspec.json.encode(sorted(set(items))).decode()
        found: dict[str, list[Round]] = {item: [] for item in items}
        with self._errors():
            rows = self._db.execute(query, [setting.describe(), wanted])
            for item, reference_s, seconds, interrupted in rows:
                found[item].append(
                    Round(
                        seconds=tuple(np.frombuffer(seconds).tolist()),
                        interrupted=tuple(np.frombuffer(interrupted, dtype=bool).tolist()),
                        reference_s=reference_s,
                    )
                )
        return [found[item] for item in items]

    def count_rounds(self, setting: Setting) -> dict[str, int]:
        """Rounds measured so far of each item of a setting."""
        query = (
            "SELECT item, count(*) FROM round JOIN setting ON setting = id "
            "WHERE description = ? GROUP BY item"
        )
        with self._errors():
            return dict(self._db.execute(query, [setting.describe()]).fetchall())

    def read_every_calibration(self) -> list[tuple[Setting, str, bytes]]:
        """Every setting with a calibration, its name and its JSON."""
        query = "SELECT description, space, fit FROM calibration JOIN setting ON setting = id"
        with self._errors():
            rows = self._db.execute(query).fetchall()
            return [
                (msgspec.json.decode(text, type=Setting), space, fit.encode())
                for text, space, fit in rows
            ]

    def read_reference_s(self, setting: Setting) -> NDArray[np.float64]:
        """Seconds of the reference kernel around every round of a setting [num_rounds]."""
        query = "SELECT reference_s FROM round JOIN setting ON setting = id WHERE description = ?"
        with self._errors():
            rows = self._db.execute(query, [setting.describe()]).fetchall()
        return np.array(rows, dtype=np.float64).reshape(-1)

    def add_round(self, setting: Setting, item: str, measured: Round) -> None:
        """Commit one round of one item."""
        number = "(SELECT count(*) FROM round WHERE setting = ?1 AND item = ?2)"
        with self._errors():
            self._db.execute(
                f"INSERT INTO round VALUES (?1, ?2, {number}, ?3, ?4, ?5)",  # noqa: S608
                [
                    self._setting_id(setting),
                    item,
                    measured.reference_s,
                    np.array(measured.seconds).tobytes(),
                    np.array(measured.interrupted).tobytes(),
                ],
            )

    def write_timings(self, setting: Setting, timings: Mapping[str, Timing]) -> None:
        """Commit the figures of finished items, all or none."""
        number = self._setting_id(setting)
        rows = [(number, item, msgspec.json.encode(t).decode()) for item, t in timings.items()]
        with self._errors(), self._transaction():
            self._db.executemany(
                "INSERT OR REPLACE INTO timing(setting, item, figures) VALUES (?, ?, ?)", rows
            )

    def read_calibrations(self, setting: Setting) -> dict[str, bytes]:
        """The JSON of every calibration of a setting, by name."""
        query = (
            "SELECT space, fit FROM calibration JOIN setting ON setting = id WHERE description = ?"
        )
        with self._errors():
            rows = self._db.execute(query, [setting.describe()]).fetchall()
        return {space: fit.encode() for space, fit in rows}

    def write_calibration(self, setting: Setting, space: str, fit: bytes) -> None:
        """Commit a space's calibration."""
        number = self._setting_id(setting)
        with self._errors():
            self._db.execute(
                "INSERT OR REPLACE INTO calibration VALUES (?, ?, ?)", [number, space, fit.decode()]
            )

    def _prepare_when_free(self) -> None:
        # While another process makes the file, or is the last to close it, SQLite
        # reports it as locked at once instead of waiting as it does elsewhere.
        give_up_at_s = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                return self._prepare()
            except sqlite3.OperationalError as error:
                busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                if not busy or time.monotonic() > give_up_at_s:
                    raise
            time.sleep(_BUSY_PAUSE_S)

    def _prepare(self) -> None:
        # Killing a process never harms a WAL file; NORMAL risks the last rows
        # only when the whole machine loses power.
        mode = self._db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise _unwritable(self.path, f"no write-ahead log can be kept there, only {mode}")
        self._db.execute("PRAGMA synchronous = NORMAL")
        if self._version() == 0:
            with self._transaction():
                if self._version() == 0:
                    for statement in _SCHEMA.split(";"):
                        self._db.execute(statement)
                    self._db.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        if self._version() != _SCHEMA_VERSION:
            raise CorruptFileError(
                f"{self.path}: wanted a store of version {_SCHEMA_VERSION}, "
                f"got version {self._version()}",
                hint=f"move {self.path} away and run effdl profile again",
            )

    def _version(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def _setting_id(self, setting: Setting) -> int:
        text = setting.describe()
        if text not in self._setting_ids:
            with self._errors():
                self._db.execute("INSERT OR IGNORE INTO setting(description) VALUES (?)", [text])
                row = self._db.execute(
                    "SELECT id FROM setting WHERE description = ?", [text]
                ).fetchone()
            self._setting_ids[text] = int(row[0])
        return self._setting_ids[text]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        finally:
            # After some errors, such as a full disk, SQLite has rolled back by itself.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn SQLite's errors into ours."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise _unwritable(self.path, str(error)) from error
        except (sqlite3.DatabaseError, msgspec.DecodeError, ValueError) as error:
            raise CorruptFileError(
                f"{self.path} is not a store of measurements: {error}",
                hint=f"move {self.path} away and run effdl profile again",
            ) from error


_TIMING = msgspec.json.Decoder(Timing)


def _check_local(path: Path) -> None:
    mount = find_mount(path)
    if mount is not None and is_shared_between_machines(mount):
        raise OutputError(
            f"cannot keep the store of measurements {path} on a network file system: "
            f"wanted a local one, got {mount.kind} ({mount.source} on {mount.folder})",
            hint="set EFFDL_HOME to a folder on a disk of this machine",
        )


def _unwritable(path: Path, why: str) -> OutputError:
    return OutputError(
        f"cannot write the store of measurements {path}: {why}",
        hint="set EFFDL_HOME to a folder that is writable and has space left",
    )
