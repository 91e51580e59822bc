"""The plain form against the definition, number by number."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from effdl.kernels.temporal_shift import reference
from effdl.kernels.temporal_shift.op import Direction, shift_sections
from effdl.kernels.temporal_shift.reference import Sections


def defined(
    x: NDArray[np.float64],
    num_segments: int,
    fold_div: int,
    direction: Direction,
    causal: bool,
    fill_value: int,
) -> NDArray[np.float64]:
    """The definition, one channel of one frame at a time."""
    y = np.full_like(x, fill_value)
    fold = x.shape[1] // fold_div
    for frame in range(len(x)):
        t = frame % num_segments
        for c in range(x.shape[1]):
            if causal:
                source = t - 1 if c < fold else t
            elif c < fold:
                source = t + 1 if direction == "mit" else t - 1
            elif c < 2 * fold:
                source = t - 1 if direction == "mit" else t + 1
            else:
                source = t
            if 0 <= source < num_segments:
                y[frame, c] = x[frame - t + source, c]
    return y


def test_hand_computed() -> None:
    # Three frames of four channels of one pixel: channel c of frame t holds 10 t + c.
    x = torch.tensor([[0.0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]]).reshape(3, 4, 1, 1)
    wanted: dict[tuple[Direction, bool], list[list[int]]] = {
        ("mit", False): [[10, 0, 2, 3], [20, 1, 12, 13], [0, 11, 22, 23]],
        ("paddle", False): [[0, 11, 2, 3], [0, 21, 12, 13], [10, 0, 22, 23]],
        ("mit", True): [[0, 1, 2, 3], [0, 11, 12, 13], [10, 21, 22, 23]],
    }
    for (direction, causal), values in wanted.items():
        sections = shift_sections(4, fold_div=4, direction=direction, causal=causal)
        y = reference.shift(x, num_segments=3, sections=sections)
        assert y.reshape(3, 4).tolist() == values


@settings(max_examples=60, deadline=None)
@given(
    num_clips=st.integers(0, 3),
    num_segments=st.integers(1, 9),
    channels=st.integers(1, 40),
    fold_div=st.integers(2, 12),
    way=st.sampled_from([("mit", False), ("paddle", False), ("mit", True)]),
    fill_value=st.integers(-3, 3),
)
def test_both_plain_forms_are_the_definition(
    num_clips: int,
    num_segments: int,
    channels: int,
    fold_div: int,
    way: tuple[Direction, bool],
    fill_value: int,
) -> None:
    shape = (num_clips * num_segments, channels, 2, 1)
    x = torch.arange(1.0, 1 + int(np.prod(shape))).reshape(shape)
    direction, causal = way
    sections = shift_sections(channels, fold_div=fold_div, direction=direction, causal=causal)
    wanted = defined(x.numpy(), num_segments, fold_div, direction, causal, fill_value)
    for form in (reference.shift, reference.shift_by_padding):
        if num_clips == 0 and form is reference.shift_by_padding:
            continue  # exporters' form; nothing is exported for no clips
        y = form(x, num_segments=num_segments, sections=sections, fill_value=fill_value)
        np.testing.assert_array_equal(y.numpy(), wanted)


@pytest.mark.parametrize("num_segments", [1, 2, 5])
def test_a_step_is_the_shift_with_its_end_filled_from_the_state(num_segments: int) -> None:
    sections = Sections(3, 0, -1)
    x, state = torch.randn(2 * num_segments, 7, 2, 3), torch.randn(2, 3, 2, 3)
    clips = torch.cat(
        [torch.cat([state, torch.zeros(2, 4, 2, 3)], 1)[:, None], reference.clips(x, num_segments)],
        1,
    )
    longer = reference.shift(clips.flatten(0, 1), num_segments=num_segments + 1, sections=sections)
    wanted = reference.clips(longer, num_segments + 1)[:, 1:].flatten(0, 1)
    for form in (reference.step, reference.step_by_concatenation):
        y, leaving = form(x, state, num_segments=num_segments, sections=sections)
        assert torch.equal(y, wanted)
        assert torch.equal(leaving, x[num_segments - 1 :: num_segments, :3])
