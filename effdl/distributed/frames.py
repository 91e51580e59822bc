"""Messages on a pipe: four bytes of length, most significant first, then JSON."""

import msgspec

from effdl.distributed.task import MAX_MESSAGE_BYTES
from effdl.errors import CorruptFileError

__all__ = ["HEADER_BYTES", "FrameReader", "Question", "Settings", "frame"]

HEADER_BYTES = 4
# The rest of a message beside a task's argument or result.
_ROOM_BYTES = 1 << 20


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker is to work.

    Attributes:
        life: File descriptor of a pipe that ends when the parent does.
        core: Core that it keeps to; None: any.
        allowed: What the name of a task's function must begin with.
    """

    life: int
    core: int | None
    allowed: tuple[str, ...]


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is asked to do: a function's name and its argument."""

    function: str
    argument: msgspec.Raw


def frame(message: object) -> bytes:
    """A message as it goes through a pipe."""
    data = msgspec.json.encode(message)
    return len(data).to_bytes(HEADER_BYTES, "big") + data


class FrameReader:
    """Puts messages together from the pieces in which a pipe delivers them."""

    def __init__(self) -> None:
        self._pieces = bytearray()

    def add(self, piece: bytes) -> list[bytes]:
        """The messages that a piece completes, without their lengths.

        Raises:
            CorruptFileError: No message can be as long as this one says.
        """
        self._pieces += piece
        messages, start = [], 0
        while len(self._pieces) - start >= HEADER_BYTES:
            body = start + HEADER_BYTES
            length = int.from_bytes(self._pieces[start:body], "big")
            if length > MAX_MESSAGE_BYTES + _ROOM_BYTES:
                raise CorruptFileError(f"a message of {length} bytes on a worker's pipe")
            if len(self._pieces) - body < length:
                break
            start = body + length
            messages.append(bytes(self._pieces[body:start]))
        del self._pieces[:start]
        return messages
