"""The shipped table of the development machine."""

import numpy as np
import pytest

from effdl.models.mobilenet_v3.space import MobileNetV3Space, ofa_mbv3_w10, ofa_mbv3_w12
from effdl.targets.latency_model import load_latency_model
from effdl.targets.target import load_target
from effdl.workflows.costs import SpaceCosts
from effdl.workflows.host_table import STATISTIC


@pytest.mark.parametrize("space", [ofa_mbv3_w10(), ofa_mbv3_w12()], ids=lambda s: s.name)
def test_the_shipped_table_knows_both_widths(space: MobileNetV3Space):
    model = load_latency_model(load_target("cpu-xeon-amx"))
    assert (model.source, model.batch_size) == ("measured", 1)
    costs = SpaceCosts(space=space, batch_size=1, latency_model=model)
    population = space.search_space.sample(2000, np.random.default_rng(0))
    latency_ms, macs = costs.latency_ms(population), costs.macs(population)
    # One core of a server: 20 to 200 thousand million multiply-accumulates a second.
    speed = macs / (latency_ms / 1000)
    assert speed.min() > 20e9
    assert speed.max() < 200e9
    assert np.corrcoef(latency_ms, macs)[0, 1] > 0.9


def test_the_shipped_table_says_what_it_is():
    from effdl.targets.latency_table import LatencyTable

    model = load_latency_model(load_target("cpu-xeon-amx"))
    assert isinstance(model, LatencyTable)
    assert model.header.statistic == STATISTIC
    assert model.header.num_threads == 1
    assert "onnxruntime" in model.runtime
    assert "cross-validated error" in model.header.origin
