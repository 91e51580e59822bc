"""Costs of a space against sums over the layers of each network."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from effdl.models.mobilenet_v3.space import ofa_mbv3_w12
from effdl.opspec import OpSpec
from effdl.targets.latency_model import LatencySource
from effdl.workflows.costs import SpaceCosts


class KeyLengths:
    """A made latency model: every operator costs the length of its key, plus its resolution."""

    source: LatencySource = "estimated"
    device = "none"
    batch_size = 3
    runtime = "none"
    interval_percent = None

    def predict_op_ms(
        self, ops: Sequence[OpSpec], *, resolutions: Sequence[int] | None = None
    ) -> NDArray[np.float64]:
        assert resolutions is not None
        pairs = zip(ops, resolutions, strict=True)
        return np.array([len(op.key) + 1000.0 * resolution for op, resolution in pairs])


def test_every_cost_is_a_reduction_over_the_layers() -> None:
    space = ofa_mbv3_w12()
    costs = SpaceCosts(space=space, batch_size=3, latency_model=KeyLengths())
    rows = space.search_space.sample(40, np.random.default_rng(5))
    for i, row in enumerate(rows):
        config = space.search_space.decode(row)
        ops = [shape.spec() for _, shape in space.shapes(config)]
        (resolution,) = config.ints("resolution")
        one = rows[i : i + 1]
        assert costs.macs(one)[0] == sum(op.macs for op in ops)
        assert costs.params(one)[0] == sum(op.num_params for op in ops)
        assert costs.peak_memory_bytes(one)[0] == 3 * max(op.peak_memory_bytes for op in ops)
        assert costs.latency_ms(one)[0] == sum(len(op.key) + 1000.0 * resolution for op in ops)


def test_peak_memory_of_the_largest_network_by_hand() -> None:
    """At 224 px unit 1's first block widens 112 x 112 x 24 to 144 channels (w1.2).

    Its expansion holds input and output, 24 + 144 channels of 112 x 112 pixels;
    its depthwise convolution holds 144 at 112 x 112 and 144 at 56 x 56.
    """
    space = ofa_mbv3_w12().with_resolutions((224,))
    costs = SpaceCosts(space=space, batch_size=1)
    largest = (space.search_space.num_choices - 1).astype(np.uint8)[None]
    expansion = 112 * 112 * (24 + 144)
    depthwise = 112 * 112 * 144 + 56 * 56 * 144
    assert costs.peak_memory_bytes(largest)[0] == 4 * max(expansion, depthwise)
