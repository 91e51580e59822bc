"""The store when processes are killed, when many write at once, and when it cannot be written."""

import contextlib
import json
import os
import random
import runpy
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from effdl.targets.store import MeasurementStore

CHILD = Path(__file__).with_name("profile_child.py")


@pytest.fixture(scope="module")
def child() -> dict[str, Any]:
    """The constants of the program that is killed."""
    return runpy.run_path(str(CHILD))


class Life:
    """One run of the profile, ended by a kill or by itself.

    Attributes:
        taken: How often each item's measurement began.
        kept: How often the store acknowledged a round of it.
        done: Whether it came to its end.
    """

    def __init__(self, store: Path, rng: random.Random | None) -> None:
        with subprocess.Popen(
            [sys.executable, str(CHILD), str(store)], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            if rng is not None:
                # Mostly while it measures, sometimes while it makes or opens the file.
                if rng.random() < 0.8:
                    process.stdout.readline()
                    time.sleep(rng.uniform(0, 0.12))
                else:
                    time.sleep(rng.uniform(0.1, 0.5))
                process.kill()
            said = process.stdout.read().decode()
            self.code = process.wait()
        # A kill in the middle of a line cannot be: short writes to a pipe are whole.
        words = [line.split() for line in said.splitlines()]
        self.taken = Counter(line[1] for line in words if line[0] == "taken")
        self.kept = Counter(line[1] for line in words if line[0] == "kept")
        self.done = ["done"] in words


def stored_rounds(path: Path, child: dict[str, Any]) -> Counter[str]:
    """Rounds of each item, from a file that must be sound."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    items = [str(item) for item in range(child["NUM_ITEMS"])]
    with MeasurementStore(path) as store:
        rounds = store.read_rounds(child["SETTING"], items)
    for found in rounds:
        assert all(len(r.seconds) == len(r.interrupted) == 2 for r in found)
        assert all(r.reference_s > 0 and min(r.seconds) > 0 for r in found)
    return Counter({item: len(found) for item, found in zip(items, rounds, strict=True) if found})


def kill_profiles(folder: Path, child: dict[str, Any], num_kills: int, seed: int) -> Counter[str]:
    """Kill profiles until that many died while running; each is resumed until it is whole.

    Returns:
        Of all of it: ``kills``, ``profiles`` that came to their end, ``kept`` rounds and
        measurements ``repeated``.
    """
    rng, seen = random.Random(seed), Counter[str]()
    num_wanted = child["NUM_ITEMS"] * child["NUM_ROUNDS"]
    while seen["kills"] < num_kills:
        path, before = folder / f"{seen['profiles']}.sqlite", Counter[str]()
        while True:
            enough = seen["kills"] >= num_kills
            life = Life(path, None if enough else rng)
            seen["kills"] += life.code == -signal.SIGKILL
            assert life.code in (0, -signal.SIGKILL)
            after = stored_rounds(path, child) if path.exists() else Counter[str]()
            gained = after - before
            # Nothing that was there, and nothing that was acknowledged, is lost.
            assert before - after == Counter()
            assert life.kept - gained == Counter()
            # At most one measurement was taken in vain, and none that was there already.
            assert (life.taken - gained).total() <= 1
            assert (gained - life.kept).total() <= 1
            assert max(after.values(), default=0) <= child["NUM_ROUNDS"]
            seen["repeated"] += (life.taken - gained).total()
            seen["kept"] += gained.total()
            before = after
            if life.done:
                break
        assert after.total() == num_wanted
        with MeasurementStore(path) as store:
            timings = store.read_timings(child["SETTING"])
        assert set(timings) == {str(item) for item in range(child["NUM_ITEMS"])}
        assert {t.num_rounds for t in timings.values()} == {child["NUM_ROUNDS"]}
        seen["profiles"] += 1
    return seen


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system cannot kill")
def test_killed_profiles_go_on_where_they_were(tmp_path: Path, child: dict[str, Any]):
    seen = kill_profiles(tmp_path, child, num_kills=15, seed=0)
    assert seen["kept"] == seen["profiles"] * child["NUM_ITEMS"] * child["NUM_ROUNDS"]
    assert seen["repeated"] <= seen["kills"]


@pytest.mark.proof
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system cannot kill")
def test_two_hundred_killed_profiles(tmp_path: Path, child: dict[str, Any]):
    seen = kill_profiles(tmp_path, child, num_kills=200, seed=1)
    assert seen["kills"] == 200
    assert seen["kept"] == seen["profiles"] * child["NUM_ITEMS"] * child["NUM_ROUNDS"]


_WRITER = """
import sys
import tempfile
from pathlib import Path
from effdl.targets.store import MeasurementStore, Setting
from effdl.targets.timing import Round
setting = Setting(runtime="r", runtime_version="1", runtime_build="b", device="d",
                  num_threads=1, batch_size=1, protocol="short")
sys.stdin.readline()
with MeasurementStore(Path(sys.argv[1])) as store:
    for i in range(2000):
        store.add_round(setting, f"{sys.argv[2]} {i}", Round(
            seconds=(1.0 + i,), interrupted=(False,), reference_s=1.0))
"""


def test_eight_writers_lose_nothing_while_others_read(tmp_path: Path, child: dict[str, Any]):
    path = tmp_path / "measurements.sqlite"
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", _WRITER, str(path), str(number)],
                    stdin=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for number in range(8)
        ]
        # All at once, on a file that none has made yet.
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("\n")
            writer.stdin.flush()
        num_seen, num_reads = 0, 0
        while any(writer.poll() is None for writer in writers):
            if path.exists():
                with MeasurementStore(path) as store:
                    found = store.read_rounds(child["SETTING"], [f"0 {i}" for i in range(2000)])
                num_found = sum(map(len, found))
                assert num_found >= num_seen
                num_seen, num_reads = num_found, num_reads + 1
        errors = [writer.communicate(timeout=60)[1] for writer in writers]
    assert errors == [""] * 8
    assert num_reads > 3
    items = [f"{number} {i}" for number in range(8) for i in range(2000)]
    with MeasurementStore(path) as store:
        rounds = store.read_rounds(child["SETTING"], items)
    assert [found[0].seconds[0] for found in rounds] == [1.0 + i for i in range(2000)] * 8
    assert {len(found) for found in rounds} == {1}


_SCENES = Path(__file__).with_name("unwritable_child.py")
_NAMESPACE = ["unshare", "--mount", "--map-root-user"]


@pytest.fixture(scope="module")
def namespace() -> list[str]:
    """What begins a command that may mount, and leaves no mount behind."""
    probe = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", "/tmp"]
    try:
        subprocess.run([*_NAMESPACE, *probe], check=True, capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"nothing can be mounted here: {error}")
    return _NAMESPACE


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter; the test's own is for one user."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
        folder.chmod(0o755)


def act(command: list[str], scene: str, folder: Path, *then: str) -> dict[str, Any]:
    """What a program says that plays a scene."""
    done = subprocess.run(
        [*command, sys.executable, str(_SCENES), scene, str(folder), *then],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "EFFDL_HOME": str(folder)},
        check=False,
    )
    assert done.stdout, done.stderr
    return {**json.loads(done.stdout), "code": done.returncode}


def read_seconds(folder: Path, items: list[str], child: dict[str, Any]) -> list[float]:
    path = folder / "measurements.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    with MeasurementStore(path) as store:
        return [rounds[0].seconds[0] for rounds in store.read_rounds(child["SETTING"], items)]


def test_a_full_disk_is_a_clean_error_and_loses_nothing(namespace: list[str], tmp_path: Path):
    found = act(namespace, "full disk", tmp_path)
    assert "full" in found["message"]
    assert "space left" in found["hint"]
    assert found["kept"] > 100
    assert found["stored"] == [7.0, *map(float, range(found["kept"])), 8.0]


def test_a_file_that_may_not_grow_is_a_clean_error(open_folder: Path, child: dict[str, Any]):
    found = act([], "file size limit", open_folder)
    assert "cannot write the store" in found["message"]
    assert "space left" in found["hint"]
    items = ["old", *(f"new {i}" for i in range(found["kept"]))]
    assert found["kept"] > 10
    assert read_seconds(open_folder, items, child) == [7.0, *map(float, range(found["kept"]))]


@pytest.mark.parametrize("scene", ["read-only folder", "read-only file"])
def test_what_may_not_be_written_is_a_clean_error(
    scene: str, open_folder: Path, child: dict[str, Any]
):
    found = act([], scene, open_folder)
    assert found["kept"] == 0
    assert "cannot write the store" in found["message"]
    assert "EFFDL_HOME" in found["hint"]
    assert read_seconds(open_folder, ["old"], child) == [7.0]


def test_a_read_only_disk_is_a_clean_error(
    namespace: list[str], tmp_path: Path, child: dict[str, Any]
):
    found = act(namespace, "read-only mount", tmp_path)
    assert found["kept"] == 0
    assert "cannot write the store" in found["message"]
    assert read_seconds(tmp_path, ["old"], child) == [7.0]


def test_a_network_file_system_is_refused_before_anything_is_opened(
    namespace: list[str], tmp_path: Path, child: dict[str, Any]
):
    found = act(namespace, "network", tmp_path)
    assert found["kept"] == 0
    assert f"got nfs4 (filer.lab:/home on {tmp_path})" in found["message"]
    assert "EFFDL_HOME" in found["hint"]
    assert read_seconds(tmp_path, ["old"], child) == [7.0]


@pytest.mark.parametrize(
    ("scene", "says"),
    [("network", "network file system"), ("read-only mount", "cannot write the store")],
)
def test_the_command_line_exits_with_8(scene: str, says: str, namespace: list[str], tmp_path: Path):
    command = ["-m", "effdl.cli", "profile", "--target", "cpu", "--format", "json"]
    found = act(namespace, scene, tmp_path, *command)
    assert found["code"] == 8
    assert found["error"]["type"] == "OutputError"
    assert says in found["error"]["message"]


@pytest.mark.proof
def test_the_command_line_exits_with_8_on_a_full_disk(namespace: list[str], tmp_path: Path):
    command = ["-m", "effdl.cli", "profile", "--target", "cpu", "--quick", "--format", "json"]
    found = act(namespace, "full disk", tmp_path, *command)
    assert found["code"] == 8
    assert found["error"]["type"] == "OutputError"
