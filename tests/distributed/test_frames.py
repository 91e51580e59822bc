"""Messages survive any way a pipe may cut them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effdl.distributed.frames import FrameReader, frame
from effdl.errors import CorruptFileError


def test_layout() -> None:
    assert frame({"a": 1}) == b'\x00\x00\x00\x07{"a":1}'


@given(st.lists(st.text(max_size=40), max_size=8), st.data())
def test_messages_come_out_whole(texts: list[str], data: st.DataObject) -> None:
    stream = b"".join(frame(text) for text in texts)
    reader, messages, start = FrameReader(), [], 0
    while start < len(stream):
        end = data.draw(st.integers(start + 1, len(stream)))
        messages += reader.add(stream[start:end])
        start = end
    assert [frame(text)[4:] for text in texts] == messages


def test_lengths_beyond_any_message_are_refused() -> None:
    with pytest.raises(CorruptFileError, match="a message of 4294967295 bytes"):
        FrameReader().add(b"\xff\xff\xff\xff")
