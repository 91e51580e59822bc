"""effdl-rpcd under abuse: it admits who knows the token, and survives everybody else."""

import contextlib
import os
import signal
import socket
import stat
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from effdl.targets.measure.rpc_board import parse_address
from effdl.targets.measure.rpc_daemon_build import TOKEN_NAME, write_token
from effdl.targets.measure.rpc_daemon_process import RunningDaemon, run_daemon

MAGIC = 0xFF271
BUSY, MISMATCH = MAGIC + 1, MAGIC + 2
AVAILABLE_WITHIN_S = 6.0


@pytest.fixture
def daemon(daemon_path: Path) -> Iterator[RunningDaemon]:
    with run_daemon(daemon_path, session_s=20) as running:
        yield running


def connect(daemon: RunningDaemon) -> socket.socket:
    return socket.create_connection(parse_address(daemon.board.address), timeout=10)


def greeting(key: str) -> bytes:
    return struct.pack("<ii", MAGIC, len(key)) + key.encode()


def right_key(daemon: RunningDaemon) -> str:
    return f"client:effdl -timeout=60 -token={daemon.board.token}"


def receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (part := connection.recv(size - len(data))):
        data += part
    return data


def answer_to(connection: socket.socket, data: bytes) -> int | None:
    """What the daemon answers; None where it hangs up."""
    try:
        connection.sendall(data)
        got = receive(connection, 4)
    except ConnectionError:
        return None
    return struct.unpack("<i", got)[0] if len(got) == 4 else None


def open_session(daemon: RunningDaemon) -> socket.socket:
    """A session that was admitted, as soon as the one before has ended."""
    deadline = time.monotonic() + AVAILABLE_WITHIN_S
    while True:
        connection = connect(daemon)
        code = answer_to(connection, greeting(right_key(daemon)))
        if code == MAGIC:
            (size,) = struct.unpack("<i", receive(connection, 4))
            assert receive(connection, size) == b"server:effdl"
            return connection
        connection.close()
        assert code == BUSY
        assert time.monotonic() < deadline, "the daemon did not come back"
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until_idle(daemon: RunningDaemon) -> None:
    deadline = time.monotonic() + AVAILABLE_WITHIN_S
    while children(daemon.pid) or folders(daemon):
        assert time.monotonic() < deadline, "a session was left behind"
        time.sleep(0.05)


def folders(daemon: RunningDaemon) -> list[Path]:
    return [p for p in daemon.work_folder.iterdir() if p.is_dir()]


def test_admits_the_token(daemon: RunningDaemon) -> None:
    with open_session(daemon):
        (folder,) = folders(daemon)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    wait_until_idle(daemon)


@pytest.mark.parametrize(
    "change",
    [
        lambda token: "",
        lambda token: token[:-1],
        lambda token: token + "0",
        lambda token: token * 2,
        lambda token: ("1" if token[0] == "0" else "0") + token[1:],
    ],
)
def test_refuses_another_token(daemon: RunningDaemon, change) -> None:
    token = change(daemon.board.token)
    with connect(daemon) as connection:
        assert answer_to(connection, greeting(f"client:effdl -token={token}")) == MISMATCH
    with open_session(daemon):
        pass


@pytest.mark.parametrize("key", ["client:effdl", "server:effdl", "client:other -token=", " "])
def test_refuses_another_key(daemon: RunningDaemon, key: str) -> None:
    if key.endswith("-token="):
        key += daemon.board.token
    with connect(daemon) as connection:
        assert answer_to(connection, greeting(key)) == MISMATCH


@pytest.mark.parametrize("size", [0, -1, -(2**31), 513, 2**31 - 1])
def test_hangs_up_on_an_odd_length(daemon: RunningDaemon, size: int) -> None:
    with connect(daemon) as connection:
        assert answer_to(connection, struct.pack("<ii", MAGIC, size) + b"x" * 600) is None
    with open_session(daemon):
        pass


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 8, bytes(range(64))])
def test_hangs_up_on_another_protocol(daemon: RunningDaemon, data: bytes) -> None:
    with connect(daemon) as connection:
        assert answer_to(connection, data) is None


def test_idle_and_slow_clients_keep_nobody_out(daemon: RunningDaemon) -> None:
    """Neither has to end for others to be served, and both are ended after 5 s."""
    start = time.monotonic()
    with connect(daemon) as idle, connect(daemon) as slow:
        with open_session(daemon):
            assert time.monotonic() - start < 4.5
        hung_up_at = {}
        for byte in greeting(right_key(daemon)):
            with contextlib.suppress(ConnectionError):
                slow.sendall(bytes([byte]))
            for name, connection in (("idle", idle), ("slow", slow)):
                connection.settimeout(0.2)
                if name not in hung_up_at:
                    try:
                        if connection.recv(4) == b"":
                            hung_up_at[name] = time.monotonic() - start
                    except TimeoutError:
                        pass
                    except ConnectionError:
                        hung_up_at[name] = time.monotonic() - start
            if len(hung_up_at) == 2:
                break
    assert set(hung_up_at) == {"idle", "slow"}
    assert all(4 < after_s < AVAILABLE_WITHIN_S for after_s in hung_up_at.values())
    wait_until_idle(daemon)


def test_one_session_at_a_time(daemon: RunningDaemon) -> None:
    with open_session(daemon), connect(daemon) as second:
        assert answer_to(second, greeting(right_key(daemon))) == BUSY
    with open_session(daemon):
        pass


def test_session_has_a_limit(daemon_path: Path) -> None:
    with run_daemon(daemon_path, session_s=1) as daemon, open_session(daemon) as connection:
        start = time.monotonic()
        with contextlib.suppress(ConnectionError):
            assert connection.recv(1) == b""
        assert 0.5 < time.monotonic() - start < 30
        wait_until_idle(daemon)


def test_client_that_dies_frees_the_board(daemon: RunningDaemon) -> None:
    connection = open_session(daemon)
    # An abort, as of a killed process with unread data: no orderly end of the stream.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    with open_session(daemon):
        pass
    wait_until_idle(daemon)


def test_garbage_within_a_session_ends_it_alone(daemon: RunningDaemon) -> None:
    with open_session(daemon) as connection:
        connection.sendall(struct.pack("<Q", 2**63) + bytes(range(256)))
    with open_session(daemon):
        pass
    wait_until_idle(daemon)


def test_hundreds_of_reconnects_leave_nothing_behind(daemon: RunningDaemon) -> None:
    def held() -> tuple[int, int]:
        pages = int(Path(f"/proc/{daemon.pid}/statm").read_text().split()[1])
        return len(list(Path(f"/proc/{daemon.pid}/fd").iterdir())), pages

    for _ in range(20):
        open_session(daemon).close()
    wait_until_idle(daemon)
    fds, pages = held()
    for _ in range(200):
        open_session(daemon).close()
    wait_until_idle(daemon)
    fds_after, pages_after = held()
    assert fds_after == fds
    assert pages_after <= pages + 16


def test_flood_of_idle_clients_ends(daemon: RunningDaemon) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(connect(daemon))
        time.sleep(0.5)
        assert len(children(daemon.pid)) <= 16
    with open_session(daemon):
        pass


def test_end_takes_the_sessions_along(daemon_path: Path) -> None:
    with run_daemon(daemon_path) as daemon:
        connection = open_session(daemon)
        pids = [daemon.pid, *children(daemon.pid)]
        assert len(pids) == 2
    with connection, contextlib.suppress(ConnectionError):
        assert connection.recv(1) == b""
    assert not any(is_running(pid) for pid in pids)


def test_killed_daemon_takes_its_sessions_along(daemon_path: Path) -> None:
    with run_daemon(daemon_path) as daemon, open_session(daemon):
        (session,) = children(daemon.pid)
        os.kill(daemon.pid, signal.SIGKILL)
        deadline = time.monotonic() + 2
        while is_running(session):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_listens_on_loopback_only(daemon: RunningDaemon) -> None:
    _, port = parse_address(daemon.board.address)
    listening = [
        fields[1]
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
        if (fields := line.split())[3] == "0A" and fields[1].endswith(f":{port:04X}")
    ]
    assert listening == [f"0100007F:{port:04X}"]


def start(daemon_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(daemon_path), *options], capture_output=True, text=True, timeout=10, check=False
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "usage"),
        (("--port", "99999"), "0 to 65535"),
        (("--port", "-1"), "0 to 65535"),
        (("--port", "12x"), "0 to 65535"),
        (("--session-seconds", "0"), "1 to 86400"),
        (("--bind", "0.0.0.0"), "unknown option"),
        (("--port",), "wanted a value"),
    ],
)
def test_refuses_odd_options(daemon_path: Path, options: tuple[str, ...], said: str) -> None:
    done = start(daemon_path, *options)
    assert done.returncode == 2
    assert said in done.stderr


def test_token_file_must_be_private(daemon_path: Path, tmp_path: Path) -> None:
    token_file = tmp_path / TOKEN_NAME
    token = write_token(token_file)
    assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
    assert len(token) == 64
    assert write_token(token_file) != token
    token_file.chmod(0o644)
    done = start(daemon_path, "--port", "0", "--token-file", str(token_file), "--work-dir", "w")
    assert done.returncode == 2
    assert "chmod 600" in done.stderr


def test_short_token_is_refused(daemon_path: Path, tmp_path: Path) -> None:
    token_file = tmp_path / TOKEN_NAME
    write_token(token_file)
    token_file.write_text("short\n")
    done = start(daemon_path, "--port", "0", "--token-file", str(token_file), "--work-dir", "w")
    assert done.returncode == 2
    assert "32 to 256" in done.stderr
