"""TSM against the authors' definition written out, and its forms against each other."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from effdl.errors import ConfigError, UnknownNameError
from effdl.kernels.backend import Backend
from effdl.models.mobilenet_v2.network import MobileNetV2, mobilenet_v2
from effdl.models.resnet.network import BasicBlock, Bottleneck, ResNet, resnet18, resnet101
from effdl.models.tsm.network import (
    TSM,
    ShiftedConv2d,
    ShiftForm,
    ShiftOptions,
    tsm_mobilenet_v2,
    tsm_resnet50,
    tsm_resnet101,
)

T = 3


def small_resnet() -> ResNet:
    torch.manual_seed(0)
    return ResNet(Bottleneck, (2, 1, 1, 1), num_classes=5).eval()


def small(form: ShiftForm, **options: Any) -> TSM:
    return TSM(small_resnet(), ShiftOptions(num_segments=T, form=form, **options))


def shift_written_out(x: Tensor, first: int, second: int) -> Tensor:
    """Source frame of each of three sections, looked up one frame at a time."""
    y = torch.zeros_like(x)
    fold = x.shape[1] // 8
    for frame in range(x.shape[0]):
        clip = frame // T
        for begin, end, offset in (
            (0, fold, first),
            (fold, 2 * fold, second),
            (2 * fold, x.shape[1], 0),
        ):
            source = frame + offset
            if 0 <= source < x.shape[0] and source // T == clip:
                y[frame, begin:end] = x[source, begin:end]
    return y


def written_out(network: ResNet, clips: Tensor, first: int = 1, second: int = -1) -> Tensor:
    """Every frame's features by a pre-hook on each block's first convolution."""
    hooks = [
        stage[i]
        .get_submodule("conv1")
        .register_forward_pre_hook(lambda _, args: (shift_written_out(args[0], first, second),))
        for stage in network.stages
        for i in range(len(stage))
    ]
    try:
        return network(clips.flatten(0, 1)).view(len(clips), T, -1).mean(1)
    finally:
        for hook in hooks:
            hook.remove()


@pytest.fixture
def clips() -> Tensor:
    return torch.randn(2, T, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("form", ["folded", "separate"])
@pytest.mark.parametrize(
    ("options", "sources"),
    [
        ({}, (1, -1)),
        ({"backend": Backend.REFERENCE}, (1, -1)),
        ({"backend": Backend.REFERENCE, "direction": "paddle"}, (-1, 1)),
        ({"backend": Backend.REFERENCE, "causal": True}, (-1, 0)),
    ],
    ids=["fastest", "mit", "paddle", "causal"],
)
def test_forms_compute_the_definition(
    clips: Tensor, form: ShiftForm, options: dict[str, Any], sources: tuple[int, int]
) -> None:
    with torch.no_grad():
        wanted = written_out(small_resnet(), clips, *sources)
        plain = small("none")(clips)
        got = small(form, **options)(clips)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    assert (got - plain).abs().max() > 1e-3


def test_no_shift_is_the_image_network(clips: Tensor) -> None:
    with torch.no_grad():
        wanted = torch.stack([small_resnet()(clip).mean(0) for clip in clips])
        torch.testing.assert_close(small("none")(clips), wanted, rtol=1e-5, atol=1e-5)


def test_gradients_of_the_forms_are_equal(clips: Tensor) -> None:
    networks = [small(form, backend=Backend.REFERENCE) for form in ("folded", "separate")]
    for network in networks:
        network(clips).square().sum().backward()
    folded, separate = (dict(n.named_parameters()) for n in networks)
    for name, parameter in folded.items():
        grad, wanted = parameter.grad, separate[name].grad
        assert grad is not None
        assert wanted is not None
        torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-5, msg=name)


def test_forms_have_the_same_weights() -> None:
    names = [list(small(form).state_dict()) for form in ("folded", "separate", "none")]
    assert names[0] == names[1] == names[2]
    assert names[0][0] == "backbone.conv1.weight"
    assert "backbone.layer1.1.conv1.weight" in names[0]
    assert list(small("none").backbone.state_dict()) == list(small_resnet().state_dict())


def shifted(module: TSM) -> list[str]:
    return [n for n, m in module.backbone.named_modules() if isinstance(m, ShiftedConv2d)]


def test_which_convolutions_are_shifted() -> None:
    with torch.device("meta"):
        deep, deeper, mobile = tsm_resnet50(), tsm_resnet101(), tsm_mobilenet_v2()
    assert shifted(deep) == [
        f"layer{stage}.{block}.conv1"
        for stage, depth in ((1, 3), (2, 4), (3, 6), (4, 3))
        for block in range(depth)
    ]
    assert len(shifted(deep)) == 16
    # From 23 blocks in the third stage on, every second block of each stage.
    assert shifted(deeper) == [
        f"layer{stage}.{block}.conv1"
        for stage, depth in ((1, 3), (2, 4), (3, 23), (4, 3))
        for block in range(0, depth, 2)
    ]
    assert shifted(mobile) == [
        f"features.{i}.conv.0.0" for i in (3, 5, 6, 8, 9, 10, 12, 13, 15, 16)
    ]
    assert shifted(TSM(small_resnet(), ShiftOptions(form="none"))) == []


def test_mobilenet_forms_are_equal() -> None:
    clips = torch.randn(1, 4, 3, 32, 32)
    outputs = []
    for form in ("folded", "separate"):
        torch.manual_seed(0)
        options = ShiftOptions(num_segments=4, form=form, backend=Backend.REFERENCE)
        network = tsm_mobilenet_v2(3, options=options).eval()
        with torch.no_grad():
            outputs.append(network(clips))
    assert isinstance(network.backbone, MobileNetV2)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-6)


def test_frame_logits_are_one_row_a_frame(clips: Tensor) -> None:
    network = small("separate")
    with torch.no_grad():
        rows = network.frame_logits(clips)
        assert rows.shape == (2, T, 5)
        torch.testing.assert_close(rows.mean(1), network(clips))


def test_clips_do_not_see_each_other(clips: Tensor) -> None:
    network = small("folded", backend=Backend.REFERENCE)
    with torch.no_grad():
        together = network(clips)
        alone = torch.cat([network(clips[:1]), network(clips[1:])])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_causal_frames_see_the_past_only(clips: Tensor) -> None:
    network = small("separate", causal=True)
    later = clips.clone()
    later[:, 2] += 1
    with torch.no_grad():
        before, after = network.frame_logits(clips), network.frame_logits(later)
    torch.testing.assert_close(after[:, :2], before[:, :2], rtol=0, atol=0)
    assert not torch.equal(after[:, 2], before[:, 2])


@pytest.mark.parametrize("shape", [(2, 4, 3, 32, 32), (6, 3, 32, 32), (2, 3, 4, 32, 32)])
def test_other_clips_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"wanted \[batch, 3, 3, height, width\], got"):
        small("folded")(torch.zeros(shape))


def test_wrong_options_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="'inplace'"):
        small("inplace")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="num_segments: wanted 1 or more, got 0"):
        ShiftOptions(num_segments=0)
    with pytest.raises(ConfigError, match="without shifts has no direction"):
        ShiftOptions(form="none", causal=True)


def test_only_1x1_convolutions_take_the_folded_form() -> None:
    with pytest.raises(ConfigError, match="folds into a 1x1 convolution"):
        TSM(resnet18(2), ShiftOptions())
    shallow = ResNet(BasicBlock, (1, 1, 1, 1), num_classes=2).eval()
    network = TSM(shallow, ShiftOptions(num_segments=2, form="separate"))
    assert network(torch.zeros(1, 2, 3, 32, 32)).shape == (1, 2)


def test_training_updates_the_given_parameters() -> None:
    backbone = mobilenet_v2(2)
    expansion = backbone.get_submodule("features.3.conv.0.0")
    assert isinstance(expansion, nn.Conv2d)
    weight = expansion.weight
    network = TSM(backbone, ShiftOptions(num_segments=2))
    assert network.backbone.get_parameter("features.3.conv.0.0.weight") is weight


def test_resnet101_has_the_parameters_of_the_image_network() -> None:
    with torch.device("meta"):
        count = sum(p.numel() for p in tsm_resnet101(1000).parameters())
        assert count == sum(p.numel() for p in resnet101().parameters())
