"""Names of published TSM files, and the refusal of those of another network."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from effdl.errors import ConfigError, CorruptFileError, UnknownNameError
from effdl.models.resnet.network import Bottleneck, ResNet
from effdl.models.tsm.network import TSM, ShiftForm, ShiftOptions, tsm_mobilenet_v2, tsm_resnet50
from effdl.models.tsm.weights import Style, load_image_weights, load_tsm_weights, published_names

# From the authors' ops/models.py with archs/mobilenet_v2.py, and mmaction2's backbones.
RESNET_NAMES = {
    "mit": {
        "conv1.weight": "base_model.conv1.weight",
        "layer1.0.conv1.weight": "base_model.layer1.0.conv1.net.weight",
        "layer1.0.bn1.running_mean": "base_model.layer1.0.bn1.running_mean",
        "layer3.5.conv2.weight": "base_model.layer3.5.conv2.weight",
        "layer2.0.downsample.1.bias": "base_model.layer2.0.downsample.1.bias",
        "fc.bias": "new_fc.bias",
    },
    "mmaction2": {
        "conv1.weight": "backbone.conv1.conv.weight",
        "bn1.weight": "backbone.conv1.bn.weight",
        "layer1.0.conv1.weight": "backbone.layer1.0.conv1.conv.net.weight",
        "layer1.0.bn1.running_mean": "backbone.layer1.0.conv1.bn.running_mean",
        "layer3.5.conv2.weight": "backbone.layer3.5.conv2.conv.weight",
        "layer2.0.downsample.0.weight": "backbone.layer2.0.downsample.conv.weight",
        "layer2.0.downsample.1.bias": "backbone.layer2.0.downsample.bn.bias",
        "fc.weight": "cls_head.fc_cls.weight",
    },
}
MOBILENET_NAMES = {
    "mit": {
        "features.0.0.weight": "base_model.features.0.0.weight",
        "features.1.conv.0.0.weight": "base_model.features.1.conv.0.weight",
        "features.1.conv.1.weight": "base_model.features.1.conv.3.weight",
        "features.1.conv.2.bias": "base_model.features.1.conv.4.bias",
        "features.2.conv.0.0.weight": "base_model.features.2.conv.0.weight",
        "features.3.conv.0.0.weight": "base_model.features.3.conv.0.net.weight",
        "features.3.conv.0.1.weight": "base_model.features.3.conv.1.weight",
        "features.3.conv.1.0.weight": "base_model.features.3.conv.3.weight",
        "features.3.conv.1.1.running_var": "base_model.features.3.conv.4.running_var",
        "features.17.conv.2.weight": "base_model.features.17.conv.6.weight",
        "features.17.conv.3.weight": "base_model.features.17.conv.7.weight",
        "features.18.1.bias": "base_model.features.18.1.bias",
        "classifier.1.weight": "new_fc.weight",
    },
    "mmaction2": {
        "features.0.1.weight": "backbone.conv1.bn.weight",
        "features.1.conv.0.0.weight": "backbone.layer1.0.conv.0.conv.weight",
        "features.1.conv.1.weight": "backbone.layer1.0.conv.1.conv.weight",
        "features.1.conv.2.bias": "backbone.layer1.0.conv.1.bn.bias",
        "features.2.conv.0.0.weight": "backbone.layer2.0.conv.0.conv.weight",
        "features.3.conv.0.0.weight": "backbone.layer2.1.conv.0.net.conv.weight",
        "features.3.conv.0.1.weight": "backbone.layer2.1.conv.0.net.bn.weight",
        "features.9.conv.2.weight": "backbone.layer4.2.conv.2.conv.weight",
        "features.17.conv.3.weight": "backbone.layer7.0.conv.2.bn.weight",
        "features.18.0.weight": "backbone.conv2.conv.weight",
        "classifier.1.bias": "cls_head.fc_cls.bias",
    },
}
AUTHORS_NAME = "TSM_kinetics_RGB_resnet50_shift{}_{}_avg_segment{}_e50.safetensors"


def small(form: ShiftForm = "folded", seed: int = 0, depth: int = 2) -> TSM:
    torch.manual_seed(seed)
    backbone = ResNet(Bottleneck, (depth, 1, 1, 1), num_classes=2)
    return TSM(backbone, ShiftOptions(num_segments=4, form=form))


def published(module: TSM, style: Style, prefix: str = "") -> dict[str, Tensor]:
    """A network's tensors as a published file names them."""
    tensors = module.backbone.state_dict()
    return {f"{prefix}{n}": tensors[own] for own, n in published_names(module, style).items()}


def write(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    save_file(dict(tensors), path)
    return path


def assert_equal(module: TSM, other: TSM) -> None:
    wanted = other.state_dict()
    assert all(torch.equal(t, wanted[n]) for n, t in module.state_dict().items())


@pytest.mark.parametrize("style", ["mit", "mmaction2"])
@pytest.mark.parametrize(
    ("make", "known"), [(tsm_resnet50, RESNET_NAMES), (tsm_mobilenet_v2, MOBILENET_NAMES)]
)
def test_names_are_the_published_ones(
    make: Callable[..., TSM], known: Mapping[str, Mapping[str, str]], style: Style
) -> None:
    with torch.device("meta"):
        module = make(5)
    names = published_names(module, style)
    assert {own: names.get(own) for own in known[style]} == known[style]
    assert len(set(names.values())) == len(names) == len(module.backbone.state_dict())
    wrapped = 16 if make is tsm_resnet50 else 10
    per_wrapped = 6 if (style, make) == ("mmaction2", tsm_mobilenet_v2) else 1
    assert sum(".net." in name for name in names.values()) == wrapped * per_wrapped


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("style", ["mit", "mmaction2"])
def test_published_files_load(tmp_path: Path, style: Style, prefix: str) -> None:
    source, module = small(), small("separate", seed=1)
    path = write(tmp_path / "a.safetensors", published(source, style, prefix))
    load_tsm_weights(module, path)
    assert_equal(module, source)


def test_checkpoint_of_the_authors_loads(tmp_path: Path) -> None:
    """A .pth with the state dict under a key, and the classifier without dropout's name."""
    source, module = small(), small(seed=1)
    state = published(source, "mit", "module.")
    state = {n.replace("module.new_fc.", "module.base_model.fc."): t for n, t in state.items()}
    path = tmp_path / "a.pth"
    torch.save({"state_dict": state, "epoch": 50, "arch": "resnet50", "best_prec1": 71.2}, path)
    load_tsm_weights(module, path)
    assert_equal(module, source)


def test_file_with_shifts_and_network_without(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", published(small(), "mit"))
    with pytest.raises(ConfigError, match="trained with temporal shifts: wanted a network that"):
        load_tsm_weights(small("none"), path)


def test_file_without_shifts_and_network_with(tmp_path: Path) -> None:
    source, module = small("none"), small(seed=1)
    path = write(tmp_path / "a.safetensors", published(source, "mit"))
    with pytest.raises(ConfigError, match="does not say that it was trained"):
        load_tsm_weights(module, path)
    load_tsm_weights(module, path, unmarked=True)
    assert_equal(module, source)


def test_other_placement_is_refused(tmp_path: Path) -> None:
    """Every second block, as in ResNet-101: loads under any other name check, and is wrong."""
    state = published(small(depth=3), "mit")
    name = "base_model.layer1.1.conv1.net.weight"
    state[name.replace(".net", "")] = state.pop(name)
    path = write(tmp_path / "a.safetensors", state)
    with pytest.raises(ConfigError, match=rf"1 only here \({re.escape(name)}\)"):
        load_tsm_weights(small(depth=3), path)


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ((8, "blockres", 8), "T=8, fold_div=8, placement blockres"),
        ((4, "blockres", 4), "T=4, fold_div=4, placement blockres"),
        ((8, "block", 4), "T=4, fold_div=8, placement block:"),
    ],
)
def test_options_in_the_file_name_are_compared(
    tmp_path: Path, stated: tuple[object, ...], said: str
) -> None:
    state = published(small(), "mit")
    path = write(tmp_path / AUTHORS_NAME.format(*stated), state)
    with pytest.raises(ConfigError, match=said):
        load_tsm_weights(small(), path)
    right = write(tmp_path / AUTHORS_NAME.format(8, "blockres", 4), state)
    load_tsm_weights(small(), right)


def test_non_local_networks_are_refused(tmp_path: Path) -> None:
    state = published(small(), "mit") | {"base_model.layer2.0.nl.g.weight": torch.zeros(1)}
    with pytest.raises(CorruptFileError, match="non-local blocks"):
        load_tsm_weights(small(), write(tmp_path / "a.safetensors", state))


def test_optical_flow_does_not_fit(tmp_path: Path) -> None:
    state = published(small(), "mit") | {"base_model.conv1.weight": torch.zeros(64, 10, 7, 7)}
    with pytest.raises(
        CorruptFileError, match=r"conv1\.weight wanted \[64, 3, 7, 7\], got \[64, 10"
    ):
        load_tsm_weights(small(), write(tmp_path / "a.safetensors", state))


def test_image_weights_leave_the_classifier(tmp_path: Path) -> None:
    torch.manual_seed(3)
    images = ResNet(Bottleneck, (2, 1, 1, 1), num_classes=1000)
    module = small()
    classifier = module.backbone.get_parameter("fc.weight").detach().clone()
    load_image_weights(module, write(tmp_path / "a.safetensors", images.state_dict()))
    state = module.backbone.state_dict()
    assert torch.equal(state["fc.weight"], classifier)
    wanted = {n: t for n, t in images.state_dict().items() if not n.startswith("fc.")}
    assert all(torch.equal(state[n], t) for n, t in wanted.items())


def test_weights_of_an_image_network_are_those_of_its_tsm() -> None:
    module = small()
    plain = ResNet(Bottleneck, (2, 1, 1, 1), num_classes=2)
    plain.load_state_dict(module.backbone.state_dict(), strict=True)


def test_unknown_style_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="'paddle'"):
        published_names(small(), "paddle")  # pyright: ignore[reportArgumentType]
