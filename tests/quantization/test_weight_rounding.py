"""Rounding that keeps the output: against nearest rounding, and patches against PyTorch's."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from effdl.quantization.calibration import quantize_weight
from effdl.quantization.weight_rounding import round_weight, sample_patches


def output_error(
    weight: NDArray[np.floating], real: NDArray[np.floating], x: NDArray[np.float32]
) -> float:
    """Mean square of what the outputs move around their mean."""
    moved = np.einsum("ngi,goi->ngo", x, weight - real)
    return float(moved.var(axis=0).mean())


@pytest.mark.parametrize(("groups", "outputs", "inputs"), [(1, 16, 24), (12, 1, 9), (3, 4, 10)])
def test_correlated_inputs_lose_less(groups: int, outputs: int, inputs: int) -> None:
    rng = np.random.default_rng(0)
    mixed = rng.standard_normal((groups, 3, inputs))
    x = np.einsum("ngk,gki->ngi", rng.standard_normal((500, groups, 3)), mixed)
    x = (x + 0.05 * rng.standard_normal(x.shape) + 1.0).astype(np.float32)
    weight = rng.standard_normal((groups, outputs, inputs))
    nearest, scales = quantize_weight(weight.reshape(groups * outputs, inputs), axis=0)
    scales = scales.reshape(groups, outputs)
    ours = round_weight(weight, scales, x)
    steps = scales[..., None]
    plain = output_error(weight, nearest.reshape(weight.shape) * steps, x)
    assert output_error(weight, ours * steps, x) < 0.5 * plain
    assert np.abs(ours * steps - weight).max() < 10 * steps.max()


def test_independent_inputs_are_rounded_to_the_nearest() -> None:
    rng = np.random.default_rng(1)
    # Columns of an orthogonal matrix without a mean: the covariance is diagonal.
    x = np.linalg.qr(rng.standard_normal((64, 9)) - 0.0)[0]
    x -= x.mean(axis=0)
    x = np.linalg.qr(x)[0][:, None, :].astype(np.float32)
    weight = rng.standard_normal((1, 5, 9))
    nearest, scales = quantize_weight(weight[0], axis=0)
    ours = round_weight(weight, scales[None], x)
    np.testing.assert_array_equal(ours[0], nearest)


def test_constant_inputs_leave_nothing_to_make_up_for() -> None:
    weight = np.random.default_rng(2).standard_normal((2, 3, 4))
    nearest, scales = quantize_weight(weight.reshape(6, 4), axis=0)
    x = np.zeros((10, 2, 4), dtype=np.float32)
    ours = round_weight(weight, scales.reshape(2, 3), x)
    np.testing.assert_array_equal(ours, nearest.reshape(2, 3, 4))


@pytest.mark.parametrize(
    ("kernel", "strides", "pads", "dilations"),
    [((3, 3), (1, 1), (1, 1, 1, 1), (1, 1)), ((1, 1), (2, 2), (0, 0, 0, 0), (1, 1)),
     ((3, 2), (2, 1), (1, 0, 1, 0), (2, 1))],
)  # fmt: skip
def test_patches_are_those_of_unfold(
    kernel: tuple[int, int],
    strides: tuple[int, int],
    pads: tuple[int, int, int, int],
    dilations: tuple[int, int],
) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 7, 9), dtype=np.float32)
    facts = {"kernel": kernel, "strides": strides, "pads": pads, "dilations": dilations}
    got = sample_patches(x, max_patches=10**6, rng=np.random.default_rng(0), **facts)
    unfolded = torch.nn.functional.unfold(
        torch.from_numpy(x), kernel, dilation=dilations, padding=pads[:2], stride=strides
    )
    wanted = unfolded.numpy().transpose(0, 2, 1).reshape(-1, 3, kernel[0] * kernel[1])
    np.testing.assert_array_equal(got, wanted)
    few = sample_patches(x, max_patches=5, rng=np.random.default_rng(0), **facts)
    assert few.shape == (5, *wanted.shape[1:])
    assert all(any((row == one).all() for one in wanted) for row in few)
