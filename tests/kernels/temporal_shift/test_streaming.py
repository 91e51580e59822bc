"""Streams: frame by frame, in pieces, many at once, begun anew."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from effdl.errors import ConfigError
from effdl.kernels.temporal_shift.module import StreamingTemporalShift, TemporalShift
from effdl.kernels.temporal_shift.op import (
    temporal_shift,
    temporal_shift_state,
    temporal_shift_step,
    temporal_shift_step_,
)


@settings(max_examples=25, deadline=None)
@given(
    pieces=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    num_streams=st.integers(1, 3),
    channels=st.integers(1, 24),
    backend=st.sampled_from(["reference", "tvm"]),
)
def test_pieces_of_any_length_are_the_whole_clip(
    pieces: list[int], num_streams: int, channels: int, backend: str
) -> None:
    num_segments = sum(pieces)
    clips = torch.randn(num_streams, num_segments, channels, 2, 3)
    wanted = temporal_shift(clips.flatten(0, 1), num_segments=num_segments, causal=True)
    state = temporal_shift_state(clips[:, 0])
    outputs: list[torch.Tensor] = []
    for piece in clips.split(pieces, dim=1):
        y, state = temporal_shift_step(
            piece.flatten(0, 1), state, num_segments=piece.shape[1], backend=backend
        )
        outputs.append(y.view(piece.shape))
    assert torch.equal(torch.cat(outputs, 1).flatten(0, 1), wanted)
    assert torch.equal(state, clips[:, -1, : channels // 8])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_in_place_frame_by_frame(layout: torch.memory_format) -> None:
    clips = torch.randn(3, 6, 20, 4, 5)
    wanted = temporal_shift(clips.flatten(0, 1), num_segments=6, causal=True).view(clips.shape)
    frames = [clips[:, t].contiguous(memory_format=layout) for t in range(6)]
    state = temporal_shift_state(frames[0])
    memory = state.data_ptr()
    for t, frame in enumerate(frames):
        y = temporal_shift_step_(frame, state)
        assert torch.equal(y, wanted[:, t])
    assert state.data_ptr() == memory


def test_module_streams_what_it_was_trained_as() -> None:
    layer = TemporalShift(5, fold_div=4, causal=True)
    stream = layer.streaming()
    clip = torch.randn(5, 8, 2, 2)
    state, outputs = None, []
    for frame in clip:
        y, state = stream(frame[None], state)
        outputs.append(y)
    assert torch.equal(torch.cat(outputs), layer(clip))


def test_reset_begins_some_streams_anew() -> None:
    stream = StreamingTemporalShift(fold_div=4)
    x = torch.randn(3, 8, 2, 2)
    _, state = stream(x)
    begun = stream.reset(state, [0, 2])
    assert torch.equal(begun[1], state[1])
    assert not begun[[0, 2]].any()
    assert torch.equal(state, x[:, :2])
    fresh, _ = stream(x)
    again, _ = stream(x, begun)
    assert torch.equal(again[[0, 2]], fresh[[0, 2]])
    assert torch.equal(again[1, :2], x[1, :2])


def test_gradients_flow_through_time() -> None:
    """A stream that is trained, unrolled, has the gradients of the whole clip."""
    clip = torch.randn(4, 8, 2, 2, requires_grad=True)
    weight = torch.randn(4, 8, 2, 2)
    (wanted,) = torch.autograd.grad(
        (temporal_shift(clip, num_segments=4, causal=True) * weight).sum(), clip
    )
    stream, state, loss = StreamingTemporalShift(), None, torch.zeros(())
    for frame, w in zip(clip, weight, strict=True):
        y, state = stream(frame[None], state)
        loss = loss + (y[0] * w).sum()
    (got,) = torch.autograd.grad(loss, clip)
    assert torch.equal(got, wanted)


def test_mobilenet_v2_keeps_27048_numbers() -> None:
    """The ten states of the authors' online demo, 108 KB (facts in its code)."""
    shapes = [(24, 56), *[(32, 28)] * 2, *[(64, 14)] * 3, *[(96, 14)] * 2, *[(160, 7)] * 2]
    states = [temporal_shift_state(torch.zeros(1, c, s, s)) for c, s in shapes]
    assert sum(s.numel() for s in states) == 27048


def test_a_stream_has_no_next_frame() -> None:
    with pytest.raises(ConfigError, match="wanted a causal shift, got a bi-directional one"):
        TemporalShift(8).streaming()
