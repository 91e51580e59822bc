"""MobileNetV2 against what is known of torchvision's."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from effdl.errors import ConfigError
from effdl.models.mobilenet_v2.network import InvertedResidual, mobilenet_v2

# Sizes of some tensors of torchvision's mobilenet_v2-b0353104.pth.
TENSORS = {
    "features.0.0.weight": (32, 3, 3, 3),
    "features.0.1.running_mean": (32,),
    "features.1.conv.0.0.weight": (32, 1, 3, 3),
    "features.1.conv.1.weight": (16, 32, 1, 1),
    "features.1.conv.2.num_batches_tracked": (),
    "features.2.conv.0.0.weight": (96, 16, 1, 1),
    "features.2.conv.1.0.weight": (96, 1, 3, 3),
    "features.2.conv.2.weight": (24, 96, 1, 1),
    "features.17.conv.3.bias": (320,),
    "features.18.0.weight": (1280, 320, 1, 1),
    "classifier.1.weight": (1000, 1280),
    "classifier.1.bias": (1000,),
}


def test_sizes_and_names_are_torchvisions() -> None:
    with torch.device("meta"):
        network = mobilenet_v2().eval()
        assert sum(p.numel() for p in network.parameters()) == 3_504_872
        shapes = {name: tuple(t.shape) for name, t in network.state_dict().items()}
        with FlopCounterMode(display=False) as counter:
            assert network(torch.empty(1, 3, 224, 224)).shape == (1, 1000)
    assert len(shapes) == 314
    assert {name: shapes.get(name) for name in TENSORS} == TENSORS
    assert counter.get_total_flops() / 2e9 == pytest.approx(0.301, abs=6e-4)


def test_width_rounds_to_eights_and_keeps_the_head() -> None:
    # 0.35 * 16 = 5.6 -> 8; 0.35 * 24 = 8.4 -> 8; 0.35 * 96 = 33.6 -> 32.
    shapes = {n: tuple(t.shape) for n, t in mobilenet_v2(10, width_mult=0.35).state_dict().items()}
    assert shapes["features.0.0.weight"][0] == 16
    assert shapes["features.1.conv.1.weight"][0] == 8
    assert shapes["features.2.conv.2.weight"][0] == 8
    assert shapes["features.11.conv.2.weight"][0] == 32
    assert shapes["classifier.1.weight"] == (10, 1280)
    assert mobilenet_v2(10, width_mult=1.4).state_dict()["classifier.1.weight"].shape[1] == 1792


def test_where_residuals_and_expansions_are() -> None:
    blocks = {
        index: block
        for index, block in enumerate(mobilenet_v2().features)
        if isinstance(block, InvertedResidual)
    }
    assert [i for i, b in blocks.items() if b.has_residual] == [3, 5, 6, 8, 9, 10, 12, 13, 15, 16]
    assert [i for i, b in blocks.items() if b.expansion is None] == [1]


def test_a_block_that_computes_zero_is_its_residual() -> None:
    block = InvertedResidual(6, 6, stride=1, expand_ratio=4).eval()
    norm = block.conv[3]
    assert isinstance(norm, nn.BatchNorm2d)
    nn.init.zeros_(norm.weight)
    x = torch.randn(2, 6, 5, 5)
    torch.testing.assert_close(block(x), x)


def test_other_images_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"got \[2, 3, 32\]"):
        mobilenet_v2(2)(torch.zeros(2, 3, 32))
