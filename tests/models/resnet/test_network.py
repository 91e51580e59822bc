"""ResNet against what is known of torchvision's, and its block against plain arithmetic."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from effdl.errors import ConfigError
from effdl.models.resnet.network import Bottleneck, ResNet, resnet18, resnet50, resnet101

# Parameters, entries of the state dict and billions of multiply-adds at 224 pixels, as
# torchvision's documentation and weight files give them.
KNOWN: dict[Callable[..., ResNet], tuple[int, int, float]] = {
    resnet18: (11_689_512, 122, 1.814),
    resnet50: (25_557_032, 320, 4.089),
    resnet101: (44_549_160, 626, 7.801),
}
# Sizes of some tensors of torchvision's resnet50-0676ba61.pth.
RESNET50_TENSORS = {
    "conv1.weight": (64, 3, 7, 7),
    "bn1.running_var": (64,),
    "layer1.0.conv1.weight": (64, 64, 1, 1),
    "layer1.0.downsample.0.weight": (256, 64, 1, 1),
    "layer1.0.downsample.1.num_batches_tracked": (),
    "layer2.0.conv2.weight": (128, 128, 3, 3),
    "layer3.5.conv3.weight": (1024, 256, 1, 1),
    "layer4.0.downsample.0.weight": (2048, 1024, 1, 1),
    "layer4.2.bn3.bias": (2048,),
    "fc.weight": (1000, 2048),
    "fc.bias": (1000,),
}


@pytest.mark.parametrize("make", KNOWN, ids=lambda make: make.__name__)
def test_sizes_are_torchvisions(make: Callable[..., ResNet]) -> None:
    num_parameters, num_tensors, giga_macs = KNOWN[make]
    with torch.device("meta"):
        network = make().eval()
        assert sum(p.numel() for p in network.parameters()) == num_parameters
        assert len(network.state_dict()) == num_tensors
        with FlopCounterMode(display=False) as counter:
            logits = network(torch.empty(1, 3, 224, 224))
    assert logits.shape == (1, 1000)
    assert counter.get_total_flops() / 2e9 == pytest.approx(giga_macs, abs=6e-4)


def test_names_are_torchvisions() -> None:
    shapes = {name: tuple(t.shape) for name, t in resnet50().state_dict().items()}
    assert {name: shapes.get(name) for name in RESNET50_TENSORS} == RESNET50_TENSORS
    assert [n for n in resnet18().state_dict() if n.startswith("layer2.0.")][::6] == [
        "layer2.0.conv1.weight",
        "layer2.0.conv2.weight",
        "layer2.0.downsample.0.weight",
    ]


def test_only_a_change_of_shape_has_a_projection() -> None:
    shallow = [n for n in resnet18().state_dict() if "downsample.0" in n]
    deep = [n for n in resnet50().state_dict() if "downsample.0" in n]
    assert shallow == [f"layer{i}.0.downsample.0.weight" for i in (2, 3, 4)]
    assert deep == [f"layer{i}.0.downsample.0.weight" for i in (1, 2, 3, 4)]


def test_bottleneck_is_the_arithmetic_of_the_paper() -> None:
    torch.manual_seed(0)
    block = Bottleneck(12, 5, stride=2).double().eval()
    for norm in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        nn.init.uniform_(norm.running_mean, -1, 1)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.uniform_(norm.bias, -1, 1)
    s = block.state_dict()

    def normed(x: Tensor, name: str) -> Tensor:
        mean, var = s[f"{name}.running_mean"], s[f"{name}.running_var"]
        scale = s[f"{name}.weight"] / (var + 1e-5).sqrt()
        return (x - mean[:, None, None]) * scale[:, None, None] + s[f"{name}.bias"][:, None, None]

    x = torch.randn(2, 12, 7, 7, dtype=torch.float64)
    y = normed(torch.einsum("nchw,oc->nohw", x, s["conv1.weight"][..., 0, 0]), "bn1").clamp(min=0)
    y = normed(functional.conv2d(y, s["conv2.weight"], stride=2, padding=1), "bn2").clamp(min=0)
    y = normed(torch.einsum("nchw,oc->nohw", y, s["conv3.weight"][..., 0, 0]), "bn3")
    shortcut = torch.einsum("nchw,oc->nohw", x[:, :, ::2, ::2], s["downsample.0.weight"][..., 0, 0])
    torch.testing.assert_close(block(x), (y + normed(shortcut, "downsample.1")).clamp(min=0))


def test_other_images_are_refused() -> None:
    network = resnet18(num_classes=3)
    assert network.eval()(torch.zeros(2, 3, 33, 65)).shape == (2, 3)
    with pytest.raises(ConfigError, match=r"\[batch, 3, height, width\], got \[1, 4, 32, 32\]"):
        network(torch.zeros(1, 4, 32, 32))
    with pytest.raises(ConfigError, match=r"got \[3, 32, 32\]"):
        network(torch.zeros(3, 32, 32))
