"""Weights of TSM as the authors' repository and mmaction2 publish them.

Both wrap a shifted convolution in a module, so that ``.net`` stands in the names of
its weights; here shifted and plain networks have the same names. The options of the
network (T, fold_div, placement) stand in no tensor, in the authors' files only in the
file's name: where they can be read they are compared, and a network of other options
is refused, because it would load, run and be wrong.

Sources: github.com/mit-han-lab/temporal-shift-module (MIT), ``ops/models.py`` and
``archs/mobilenet_v2.py``; github.com/open-mmlab/mmaction2 (Apache-2.0),
``resnet_tsm.py`` and ``mobilenet_v2_tsm.py``.
"""

import re
from collections.abc import Iterable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Literal

from torch import Tensor

from effdl.errors import ConfigError, CorruptFileError, UnknownNameError
from effdl.models.resnet.network import ResNet
from effdl.models.tsm.network import TSM
from effdl.models.weights import fill_module, read_weights
from effdl.supernet.checkpoint import listed

__all__ = ["Style", "load_image_weights", "load_tsm_weights", "published_names"]

Style = Literal["mit", "mmaction2"]
"""Whose names: the authors' repository's, or mmaction2's."""

_FILE_NAME = re.compile(
    r"_shift(?P<fold_div>\d+)_(?P<place>[a-z]+)_avg_segment(?P<num_segments>\d+)"
)
_WRAPPER = ".net."
# Blocks of MobileNetV2's seven stages, the first of which follows the stem.
_STAGE_DEPTHS = (1, 2, 3, 4, 3, 3, 1)


def load_tsm_weights(module: TSM, path: Path, *, unmarked: bool = False) -> None:
    """Fill a network with published weights of TSM.

    Args:
        module: It is left as it was when an error is raised.
        path: A .pth file of the authors or of mmaction2, or its tensors as .safetensors.
        unmarked: Take a file whose names do not say that it was trained with shifts: the
            authors' files for online recognition, or an image network to start from.

    Raises:
        ConfigError: There is no such file, or it says that its network was of other
            options than this one: other convolutions shifted, another T or fold_div.
        CorruptFileError: The file is corrupt, or holds other tensors than the network.
    """
    tensors = _without_wrappers(read_weights(path))
    _check_file_name(module, path)
    _check_kind(tensors, path)
    style: Style = "mmaction2" if any(n.startswith("cls_head.") for n in tensors) else "mit"
    marked = any(_WRAPPER in name for name in tensors)
    shifts = module.options.form != "none"
    if marked and not shifts:
        raise ConfigError(
            f"{path} was trained with temporal shifts: wanted a network that shifts, got form "
            "'none'",
            hint='build it with ShiftOptions(form="folded")',
        )
    if shifts and not marked and not unmarked:
        raise ConfigError(
            f"{path} does not say that it was trained with temporal shifts: wanted {_WRAPPER!r} "
            "in the names of its shifted convolutions, got none",
            hint="unmarked=True takes it all the same",
        )
    names = published_names(module, style, marked=marked)
    if marked:
        wanted = {name for name in names.values() if _WRAPPER in name}
        got = {name for name in tensors if _WRAPPER in name}
        if wanted != got:
            raise ConfigError(
                f"{path} shifts other convolutions than this network: {len(got - wanted)} only "
                f"there ({listed(sorted(got - wanted))}), {len(wanted - got)} only here "
                f"({listed(sorted(wanted - got))})",
                hint="wanted the backbone and the placement (blockres) that it was trained with",
            )
    own = {published: name for name, published in names.items()}
    fill_module(
        module.backbone, {own.get(name, name): t for name, t in tensors.items()}, source=path
    )


def load_image_weights(module: TSM, path: Path) -> None:
    """Start from an image network: torchvision's weights, but for the classifier.

    Args:
        module: Its classifier keeps its weights; it is left as it was when an error is
            raised.
        path: As for `effdl.models.weights.load_torchvision_weights`.

    Raises:
        ConfigError: There is no such file.
        CorruptFileError: As for `effdl.models.weights.load_torchvision_weights`.
    """
    classifier = _classifier(module)
    own = {n: t for n, t in module.backbone.state_dict().items() if n.startswith(classifier)}
    tensors = {n: t for n, t in read_weights(path).items() if not n.startswith(classifier)}
    fill_module(module.backbone, tensors | own, source=path)


def published_names(module: TSM, style: Style, *, marked: bool | None = None) -> Mapping[str, str]:
    """What each tensor of the backbone is called in a published file.

    Args:
        module: The network.
        style: Whose names.
        marked: Whether shifted convolutions are wrapped; None: as the network is.

    Returns:
        From the names of ``module.backbone.state_dict()``; the authors' files have
        ``module.`` in front of everything besides.

    Raises:
        UnknownNameError: There is no such style.
    """
    if style not in ("mit", "mmaction2"):
        raise UnknownNameError("style of names", style, ("mit", "mmaction2"))
    wraps = module.options.form != "none" if marked is None else marked
    is_resnet = isinstance(module.backbone, ResNet)
    shifted = set(module.shifted_names) if wraps else set()
    rename = {
        ("mit", True): _mit_resnet,
        ("mit", False): _mit_mobilenet,
        ("mmaction2", True): _mmaction_resnet,
        ("mmaction2", False): _mmaction_mobilenet,
    }[style, is_resnet]
    classifier, head = _classifier(module), "new_fc" if style == "mit" else "cls_head.fc_cls"
    prefix = "base_model" if style == "mit" else "backbone"
    names = {}
    for name in module.backbone.state_dict():
        owner, _, tensor = name.rpartition(".")
        if f"{owner}." == classifier:
            names[name] = f"{head}.{tensor}"
        else:
            names[name] = f"{prefix}.{rename(owner, shifted)}.{tensor}"
    return names


def _classifier(module: TSM) -> str:
    return "fc." if isinstance(module.backbone, ResNet) else "classifier.1."


def _mit_resnet(owner: str, shifted: set[str]) -> str:
    return f"{owner}.net" if owner in shifted else owner


def _mit_mobilenet(owner: str, shifted: set[str]) -> str:
    """A block is one flat Sequential: convolution, norm and activation are three places."""
    parts = owner.split(".")
    if parts[2] != "conv":
        return owner
    if len(parts) == 5:
        index = 3 * int(parts[3]) + int(parts[4])
    else:
        num_groups = _num_groups(int(parts[1]))
        index = 3 * num_groups + int(parts[3]) - num_groups
    wrapper = ".net" if owner in shifted else ""
    return f"{'.'.join(parts[:3])}.{index}{wrapper}"


def _num_groups(block: int) -> int:
    """Groups of convolution, norm and activation before a block's projection."""
    return 1 if block == 1 else 2


def _mmaction_resnet(owner: str, shifted: set[str]) -> str:
    wrapper = ".net" if owner in shifted else ""
    owner = owner.replace("downsample.0", "downsample.conv").replace(
        "downsample.1", "downsample.bn"
    )
    owner = re.sub(r"bn(\d)$", r"conv\1.bn", owner)
    return re.sub(r"conv(\d)$", r"conv\1.conv", owner) + wrapper


def _mmaction_mobilenet(owner: str, shifted: set[str]) -> str:
    parts = owner.split(".")
    index, kinds = int(parts[1]), ("conv", "bn")
    ends = list(accumulate(_STAGE_DEPTHS))
    if index in (0, ends[-1] + 1):
        return f"conv{1 if index == 0 else 2}.{kinds[int(parts[2])]}"
    stage = next(s for s, end in enumerate(ends) if index <= end)
    block = f"layer{stage + 1}.{index - 1 - (ends[stage - 1] if stage else 0)}.conv"
    if len(parts) == 5:
        # The whole group of convolution and norm is wrapped, not the convolution alone.
        wrapper = ".net" if f"{owner.rpartition('.')[0]}.0" in shifted else ""
        return f"{block}.{parts[3]}{wrapper}.{kinds[int(parts[4])]}"
    num_groups = _num_groups(index)
    return f"{block}.{num_groups}.{kinds[int(parts[3]) - num_groups]}"


def _without_wrappers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names without what data parallelism and older versions put around them."""
    plain = {}
    for name, tensor in tensors.items():
        short = name.removeprefix("module.")
        short = re.sub(r"^base_model\.(?:fc|classifier)\.", "new_fc.", short)
        plain[short] = tensor
    return plain


def _check_file_name(module: TSM, path: Path) -> None:
    """The authors' test script reads the options from the name: so must we."""
    stated = _FILE_NAME.search(path.name)
    if stated is None:
        return
    options = module.options
    wanted = (int(stated["num_segments"]), int(stated["fold_div"]), stated["place"])
    if wanted != (options.num_segments, options.fold_div, "blockres"):
        raise ConfigError(
            f"{path.name} says T={wanted[0]}, fold_div={wanted[1]}, placement {wanted[2]}: got a "
            f"network of T={options.num_segments}, fold_div={options.fold_div}, placement blockres",
            hint="only residual shifts (blockres) are built here; T and fold_div are options",
        )


def _check_kind(tensors: Iterable[str], path: Path) -> None:
    foreign = [n for n in tensors if ".nl." in n or ".non_local_block." in n or ".block." in n]
    if foreign:
        raise CorruptFileError(
            f"{path} is of a network with non-local blocks, which are not built here: "
            f"{listed(foreign)}"
        )
