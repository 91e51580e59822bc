"""Where a board is, and how it is found: on this machine's loopback, and nowhere else.

TVM's protocol runs whatever it is sent, unencrypted; so a board is reached through
an ssh tunnel or adb's forwarding, whose near end is a port of 127.0.0.1.
"""

import hashlib
import json
import socket
import struct
from dataclasses import dataclass, field
from ipaddress import ip_address

import msgspec

from effdl.errors import ConfigError, TargetUnavailableError

__all__ = ["DAEMON_KEY", "Board", "BoardDescription", "parse_address"]

DAEMON_KEY = "effdl"
_DEFAULT_PORT = 9090
_MAX_FRAME_BYTES = 1 << 16
_TRACKER_MAGIC = 0x2F271
_TRACKER_REQUEST = 4
_TRACKER_SUCCESS = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """How to reach a board.

    Attributes:
        address: ``host:port`` of its server, or of TVM's tracker; a loopback address.
        token: What effdl-rpcd wants to hear; TVM's own server wants none.
        key: The server's name; with a tracker the boards of one kind share it.
        tracker: Whether the address is a tracker's, which names a free board.
        device: What the board is, as people call it. Needed where its server says
            nothing of itself, as TVM's own does; it vouches for real hardware.

    Raises:
        ConfigError: The address is not ``host:port``, or not on loopback; the key or
            the token has blanks.
    """

    address: str = f"127.0.0.1:{_DEFAULT_PORT}"
    token: str = field(default="", repr=False)
    key: str = DAEMON_KEY
    tracker: bool = False
    device: str = ""

    def __post_init__(self) -> None:
        parse_address(self.address)
        for what, text in (("key", self.key), ("token", self.token)):
            if any(c.isspace() for c in text):
                raise ConfigError(f"a board's {what} has no blanks")

    def find(self, limit_s: float) -> tuple[str, int, str]:
        """Host, port and what to say first; asks the tracker if there is one.

        Args:
            limit_s: Seconds to wait for each of the tracker's answers.

        Raises:
            ConfigError: The tracker names a board that is not on loopback.
            TargetUnavailableError: The tracker is not there, or has no free board.
        """
        host, port = parse_address(self.address)
        key = self.key
        if self.tracker:
            host, port, key = _ask_tracker(host, port, self.key, limit_s)
        return host, port, f"{key} -token={self.token}" if self.token else key


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardDescription:
    """What effdl-rpcd says of its device.

    Attributes:
        machine: The architecture, as the kernel calls it.
        emulated: Whether an emulator stands in for the device.
        name: As people call it.
        governor: What decides its frequency, or ``"unknown"``.
        fingerprint: 16 hexadecimal digits over all that was said.
    """

    machine: str
    emulated: bool
    name: str
    governor: str
    fingerprint: str

    @classmethod
    def parse(cls, text: str) -> "BoardDescription":
        """Read lines of ``name<tab>value``."""
        fields: dict[str, str] = {}
        for line in text[:_MAX_FRAME_BYTES].splitlines():
            name, _, value = line.partition("\t")
            fields[name] = value
        machine, emulated = fields.get("machine", ""), fields.get("emulated") != "0"
        part = " ".join(fields.get(name, "") for name in ("CPU implementer", "CPU part"))
        name = fields.get("board") or fields.get("model name") or f"{machine} {part}".strip()
        said = json.dumps(sorted(fields.items())).encode()
        return cls(
            machine=machine,
            emulated=emulated,
            name=f"emulated {machine}" if emulated else name,
            governor=fields.get("governor") or "unknown",
            fingerprint=hashlib.sha256(said).hexdigest()[:16],
        )


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of ``host:port``, the host being an address of loopback.

    Raises:
        ConfigError: It is not of this form, or another machine's.
    """
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise ConfigError(
            f"a board's address wanted HOST:PORT, got {text[:80]!r}",
            hint=f"such as 127.0.0.1:{_DEFAULT_PORT}",
        )
    if host == "localhost":
        host = "127.0.0.1"
    try:
        if ip_address(host.strip("[]")).is_loopback:
            return host.strip("[]"), int(port)
    except ValueError:
        pass
    raise ConfigError(
        f"a board is reached through a tunnel only, as its protocol is neither encrypted nor "
        f"safe: wanted 127.0.0.1:PORT, got {text[:80]!r}",
        hint=f"ssh -N -L {port}:127.0.0.1:{port} {host[:80]} (or adb forward tcp:{port} "
        f"tcp:{port}), then 127.0.0.1:{port}",
    )


def _ask_tracker(host: str, port: int, key: str, limit_s: float) -> tuple[str, int, str]:
    """Host, port and match key of a free board."""
    magic = struct.pack("<i", _TRACKER_MAGIC)
    try:
        with socket.create_connection((host, port), timeout=limit_s) as connection:
            connection.sendall(magic)
            if _receive(connection, 4) != magic:
                raise TargetUnavailableError(f"{host}:{port} is no tracker of TVM's")
            request = json.dumps([_TRACKER_REQUEST, key, "", 1]).encode()
            connection.sendall(struct.pack("<i", len(request)) + request)
            (size,) = struct.unpack("<i", _receive(connection, 4))
            if not 0 < size <= _MAX_FRAME_BYTES:
                raise TargetUnavailableError(f"{host}:{port} answered with {size} bytes")
            status, found = msgspec.json.decode(
                _receive(connection, size), type=tuple[int, tuple[str, int, str]]
            )
    except TimeoutError:
        raise TargetUnavailableError(
            f"the tracker at {host}:{port} named no free board {key!r} within {limit_s:.0f} s",
            hint=f"python -m tvm.exec.query_rpc_tracker --host {host} --port {port}",
        ) from None
    except (OSError, msgspec.MsgspecError) as error:
        raise TargetUnavailableError(
            f"the tracker at {host}:{port} gives no board: {error}",
            hint=f"python -m tvm.exec.rpc_tracker --host 127.0.0.1 --port {port}",
        ) from error
    if status != _TRACKER_SUCCESS:
        raise TargetUnavailableError(f"the tracker at {host}:{port} refused the request")
    board_host, board_port, match_key = found
    return (*parse_address(f"{board_host}:{board_port}"), match_key)


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionResetError("the connection was closed")
        data += part
    return data
