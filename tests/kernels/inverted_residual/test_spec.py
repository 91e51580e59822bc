"""The block's entry in latency tables."""

import numpy as np
import onnxruntime
import pytest
import torch

from effdl.kernels.backend import Backend
from effdl.kernels.inverted_residual.op import quantized_inverted_residual
from effdl.kernels.inverted_residual.spec import (
    default_specs,
    inverted_residual_spec,
    made_block,
)


@pytest.mark.parametrize("sizes", [(8, 24, 8, 9, 1), (8, 8, 16, 9, 1), (8, 24, 12, 8, 2)], ids=str)
def test_onnx_form_computes_the_same(sizes: tuple[int, int, int, int, int]) -> None:
    in_channels, hidden, out_channels, size, stride = sizes
    session = onnxruntime.InferenceSession(inverted_residual_spec(*sizes).build(2))
    shape = (2, in_channels, size, size)
    x = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    expansion, depthwise, projection, addition = made_block(
        in_channels, hidden, out_channels, stride
    )
    # Half as large, so that older processors' 16-bit sums of products do not saturate.
    theirs = np.asarray(session.run(None, {"input": x // 2})[0])
    mine = quantized_inverted_residual(
        torch.from_numpy(x // 2),
        expansion=expansion,
        depthwise=depthwise,
        projection=projection,
        x_zero_point=128,
        stride=stride,
        addition=addition,
        backend="reference",
    )
    assert theirs.shape == mine.shape
    difference = np.abs(mine.numpy().astype(int) - theirs.astype(int))
    # The file's scales multiply to the multipliers but for the last bit.
    assert difference.max() <= 1
    assert np.count_nonzero(difference) <= 0.001 * difference.size


def test_costs_of_a_block() -> None:
    op = inverted_residual_spec(24, 144, 24, 56, 1)
    assert op.macs == 56 * 56 * 144 * (24 + 9 + 24)
    assert op.num_params == 144 * (24 + 9 + 24) + 144 + 144 + 24
    assert inverted_residual_spec(32, 32, 16, 112, 1).macs == 112 * 112 * 32 * (9 + 16)


def test_every_block_of_mobilenet_v2_once() -> None:
    specs = default_specs()
    assert len({spec.op.key for spec in specs}) == len(specs) == 12
    run = specs[-1].make_run(1, Backend.REFERENCE)
    assert isinstance(run(), torch.Tensor)
