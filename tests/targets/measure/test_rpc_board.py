"""A board's address is one of loopback, and a tracker is not trusted to name another."""

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effdl.errors import ConfigError, TargetUnavailableError
from effdl.targets.measure.rpc_board import Board, BoardDescription, parse_address

TRACKER_MAGIC = struct.pack("<i", 0x2F271)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("127.0.0.1:9090", ("127.0.0.1", 9090)),
        ("localhost:1", ("127.0.0.1", 1)),
        ("127.8.9.1:65535", ("127.8.9.1", 65535)),
        ("[::1]:9090", ("::1", 9090)),
    ],
)
def test_loopback(text: str, parsed: tuple[str, int]) -> None:
    assert parse_address(text) == parsed


@pytest.mark.parametrize(
    "host", ["192.168.1.7", "10.0.0.1", "0.0.0.0", "[::]", "8.8.8.8", "pi", "127.0.0.1.nip.io"]
)
def test_other_machines_are_refused_with_the_tunnel(host: str) -> None:
    with pytest.raises(ConfigError, match="tunnel") as error:
        Board(address=f"{host}:9190")
    assert error.value.hint is not None
    assert f"ssh -N -L 9190:127.0.0.1:9190 {host}" in error.value.hint
    assert "adb forward tcp:9190 tcp:9190" in error.value.hint


@pytest.mark.parametrize(
    "text", ["", "127.0.0.1", ":9090", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "h:9o9"]
)
def test_no_address(text: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        parse_address(text)


@given(st.text())
def test_any_text_is_an_address_or_a_config_error(text: str) -> None:
    try:
        _, port = parse_address(text)
    except ConfigError:
        return
    assert 0 < port < 65536


def test_blanks_would_end_a_key() -> None:
    with pytest.raises(ConfigError, match="key"):
        Board(key="a b")
    with pytest.raises(ConfigError, match="token"):
        Board(token="a\n")


def test_token_is_said_after_the_key_and_never_shown() -> None:
    board = Board(address="127.0.0.1:9", token="secret")
    assert board.find(1.0) == ("127.0.0.1", 9, "effdl -token=secret")
    assert Board(address="127.0.0.1:9", key="pi").find(1.0)[2] == "pi"
    assert "secret" not in repr(board)


@contextmanager
def tracker(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """A listener that treats its one client as the test says."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                serve(connection)

        thread = threading.Thread(target=run)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join(5)


def naming(host: str, port: int) -> Callable[[socket.socket], None]:
    def serve(connection: socket.socket) -> None:
        assert connection.recv(4) == TRACKER_MAGIC
        connection.sendall(TRACKER_MAGIC)
        (size,) = struct.unpack("<i", connection.recv(4))
        assert json.loads(connection.recv(size)) == [4, "pi", "", 1]
        found = json.dumps([0, [host, port, "pi:0.5"]]).encode()
        for part in (struct.pack("<i", len(found)), found[:5], found[5:]):
            connection.sendall(part)

    return serve


def test_tracker_names_a_board() -> None:
    with tracker(naming("127.0.0.1", 9091)) as address:
        board = Board(address=address, tracker=True, key="pi", token="t")
        assert board.find(2.0) == ("127.0.0.1", 9091, "pi:0.5 -token=t")


def test_tracker_may_not_name_another_machine() -> None:
    with (
        tracker(naming("192.168.1.7", 9091)) as address,
        pytest.raises(ConfigError, match="tunnel"),
    ):
        Board(address=address, tracker=True, key="pi").find(2.0)


def test_tracker_without_a_free_board_is_not_waited_for() -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(4)
        connection.sendall(TRACKER_MAGIC)
        while connection.recv(64):
            pass

    start = time.monotonic()
    with tracker(serve) as address:
        with pytest.raises(TargetUnavailableError, match="no free board 'pi' within") as error:
            Board(address=address, tracker=True, key="pi").find(0.3)
        assert time.monotonic() - start < 30
    assert error.value.hint is not None
    assert "query_rpc_tracker" in error.value.hint


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP",
        TRACKER_MAGIC,
        TRACKER_MAGIC + struct.pack("<i", -1),
        TRACKER_MAGIC + struct.pack("<i", 2**31 - 1),
        TRACKER_MAGIC + struct.pack("<i", 4) + b"[0,7",
        TRACKER_MAGIC + struct.pack("<i", 9) + b'[0,["a"]]',
        TRACKER_MAGIC + struct.pack("<i", 27) + b'[-1,["127.0.0.1",9090,"k"]]',
    ],
)
def test_odd_trackers(answer: bytes) -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(4)
        connection.sendall(answer)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(64):
            pass

    with tracker(serve) as address, pytest.raises(TargetUnavailableError):
        Board(address=address, tracker=True).find(1.0)


def test_no_tracker() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(TargetUnavailableError, match="gives no board"):
        Board(address=f"127.0.0.1:{port}", tracker=True).find(1.0)


PI = (
    "machine\taarch64\nemulated\t0\ncores\t4\ngovernor\tondemand\nboard\tRaspberry Pi 4 Model B\n"
    "CPU implementer\t0x41\nCPU part\t0xd08\n"
)


def test_description_of_a_board() -> None:
    found = BoardDescription.parse(PI)
    assert (found.machine, found.emulated, found.name) == (
        "aarch64",
        False,
        "Raspberry Pi 4 Model B",
    )
    assert found.governor == "ondemand"
    assert len(found.fingerprint) == 16


def test_fingerprint_tells_devices_apart() -> None:
    again = BoardDescription.parse("\n".join(reversed(PI.splitlines())))
    assert again.fingerprint == BoardDescription.parse(PI).fingerprint
    other = BoardDescription.parse(PI.replace("0xd08", "0xd0b"))
    assert other.fingerprint != again.fingerprint


@pytest.mark.parametrize(
    "text", ["", PI.replace("emulated\t0\n", ""), PI.replace("ed\t0", "ed\t1")]
)
def test_what_does_not_deny_it_is_emulated(text: str) -> None:
    assert BoardDescription.parse(text).emulated
    assert BoardDescription.parse(text).name.startswith("emulated")


@given(st.text())
def test_any_text_is_a_description(text: str) -> None:
    assert len(BoardDescription.parse(text).fingerprint) == 16
