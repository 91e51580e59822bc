"""The peer itself: Once-for-All's own package computes the same bits.

Its checkpoint goes through a file, `import_checkpoint` and `load_supernet`;
then random sub-networks of both are compared on the same images.
"""

import importlib
import importlib.util
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from effdl.models.mobilenet_v3.network import MobileNetV3Supernet, load_supernet
from effdl.models.mobilenet_v3.space import MobileNetV3Space, ofa_mbv3_w10, ofa_mbv3_w12
from effdl.search.space import SubnetConfig
from effdl.supernet.initialization import calibrate_batch_norm, initialize_he_fan_out
from effdl.workflows.import_checkpoint import import_checkpoint

pytestmark = [pytest.mark.proof, pytest.mark.filterwarnings("default")]

NUM_SUBNETS = 20


def stand_in(name: str, **members: object) -> ModuleType:
    module = ModuleType(name)
    module.__dict__.update(members)
    return module


@pytest.fixture(scope="module")
def peer() -> Iterator[Any]:
    """The class of the peer's supernet; what it imports and does not need is stood in for."""
    if importlib.util.find_spec("ofa") is None:
        pytest.skip("the ofa package is not installed: make proof installs it")
    functional = stand_in("torchvision.transforms.functional")
    transforms = stand_in("torchvision.transforms", functional=functional, RandomResizedCrop=object)
    datasets = stand_in("torchvision.datasets")
    stand_ins = [
        stand_in("torchvision", transforms=transforms, datasets=datasets),
        transforms,
        functional,
        datasets,
        stand_in("torch._six", string_classes=(str, bytes)),
        stand_in("gdown"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        for module in stand_ins:
            patch.setitem(sys.modules, module.__name__, module)
        networks = importlib.import_module("ofa.imagenet_classification.elastic_nn.networks")
        yield networks.OFAMobileNetV3


def randomize(network: nn.Module, seed: int) -> None:
    """Draw weights, scales, matrices and running statistics, all different."""
    rng = np.random.default_rng(seed)

    def uniform(tensor: Tensor, low: float, high: float) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, tuple(tensor.shape)).astype(np.float32))

    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("_matrix"):
                tensor.add_(uniform(tensor, -0.1, 0.1))
            elif ".bn." in name and name.endswith("weight"):
                tensor.copy_(uniform(tensor, 0.5, 1.5))
            elif name.endswith("bias"):
                tensor.copy_(uniform(tensor, -0.3, 0.3))
        calibrate_batch_norm(network, 3, rng)
        for name, tensor in network.state_dict().items():
            if name.endswith("running_var"):
                tensor.mul_(uniform(tensor, 0.7, 1.4))
            elif name.endswith("num_batches_tracked"):
                tensor.fill_(int(rng.integers(1, 1000)))


def peer_network(peer: Any, width_mult: float, **choices: list[int]) -> Any:
    network = peer(
        width_mult=width_mult,
        dropout_rate=0,
        ks_list=choices.get("ks", [3, 5, 7]),
        expand_ratio_list=choices.get("e", [3, 4, 6]),
        depth_list=choices.get("d", [2, 3, 4]),
    )
    network.set_max_net()
    initialize_he_fan_out(network, np.random.default_rng(0))
    randomize(network, seed=int(10 * width_mult))
    return network


def through_files(
    network: Any, folder: Path, space: MobileNetV3Space, rename: Callable[[str], str]
) -> MobileNetV3Supernet:
    state = {rename(name): t for name, t in network.state_dict().items()}
    torch.save({"state_dict": state}, folder / "ofa.pth")
    done = import_checkpoint(folder / "ofa.pth", folder / "ofa.safetensors")
    assert done.space == space.name
    assert done.loaded == len(state)
    return load_supernet(folder / "ofa.safetensors", space)


def to_old_naming(name: str) -> str:
    return name.replace(".conv.", ".mobile_inverted_conv.", 1) if "blocks" in name else name


def same_name(name: str) -> str:
    return name


def images(batch: int, size: int, seed: int = 0) -> Tensor:
    values = np.random.default_rng(seed).standard_normal((batch, 3, size, size), dtype=np.float32)
    return torch.from_numpy(values)


def draw(network: Any, resolution: int) -> SubnetConfig:
    """Draw the peer's active sub-network; the same as our configuration."""
    chosen = network.sample_active_subnet()
    return SubnetConfig(
        {
            "kernel_size": chosen["ks"],
            "expand_ratio": chosen["e"],
            "depth": chosen["d"],
            "resolution": resolution,
        }
    )


@pytest.mark.parametrize(
    ("width_mult", "make_space", "rename"),
    [(1.0, ofa_mbv3_w10, same_name), (1.2, ofa_mbv3_w12, to_old_naming)],
)
@torch.no_grad()
def test_random_subnets_are_bit_equal(
    peer: Any,
    tmp_path: Path,
    width_mult: float,
    make_space: Callable[[], MobileNetV3Space],
    rename: Callable[[str], str],
) -> None:
    space, theirs = make_space(), peer_network(peer, width_mult).eval()
    assert len(theirs.state_dict()) == 475
    ours = through_files(theirs, tmp_path, space, rename)
    random.seed(7)
    outputs: list[Tensor] = []
    for i in range(NUM_SUBNETS):
        resolution = space.resolutions[(5 * i) % len(space.resolutions)]
        config, x = draw(theirs, resolution), images(2, resolution, seed=i)
        expected = theirs(x)
        assert bool(expected.isfinite().all())
        assert expected.std() > 1e-3
        assert torch.equal(ours(x, config), expected)

        their_subnet, our_subnet = theirs.get_active_subnet().eval(), ours.extract(config)
        their_state, our_state = their_subnet.state_dict(), our_subnet.state_dict()
        assert their_state.keys() == our_state.keys()
        # The peer does not carry over the counters of sliced batch norms.
        assert all(
            torch.equal(t, our_state[name])
            for name, t in their_state.items()
            if not name.endswith("num_batches_tracked")
        )
        assert torch.equal(their_subnet(x), expected)
        assert torch.equal(our_subnet(x), expected)
        outputs.append(expected)
    assert len({float(y.sum()) for y in outputs}) == NUM_SUBNETS


def test_training_a_partial_width_is_bit_equal(peer: Any, tmp_path: Path) -> None:
    space, theirs = ofa_mbv3_w10(), peer_network(peer, 1.0)
    ours = through_files(theirs, tmp_path, space, same_name).train()
    theirs.train()
    random.seed(3)
    for step in range(3):
        config, x = draw(theirs, 128), images(4, 128, seed=step)
        assert torch.equal(ours(x, config), theirs(x))
    their_state = theirs.state_dict()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, their_state[name]), name


def test_gradients_agree(peer: Any, tmp_path: Path) -> None:
    """In float64, up to the sixth that PyTorch's hard sigmoid keeps in float32 backwards (3e-8)."""
    theirs = peer_network(peer, 1.0)
    ours = through_files(theirs, tmp_path, ofa_mbv3_w10(), same_name).train().double()
    theirs.train().double()
    random.seed(3)
    config, x = draw(theirs, 128), images(4, 128).double()
    theirs(x).square().mean().backward()
    ours(x, config).square().mean().backward()
    their_gradients = {name: p.grad for name, p in theirs.named_parameters()}
    # Some gradients are zero but for rounding (a shift that the next batch norm
    # takes away), so the scale is that of all of them.
    largest = max(float(g.abs().max()) for g in their_gradients.values() if g is not None)
    num_compared = 0
    for name, parameter in ours.named_parameters():
        expected = their_gradients[name]
        assert (parameter.grad is None) == (expected is None), name
        if parameter.grad is not None and expected is not None:
            difference = float((parameter.grad - expected).abs().max())
            assert difference < 1e-7 * float(expected.abs().max()) + 1e-12 * largest, name
            num_compared += 1
    assert num_compared > 100


@torch.no_grad()
def test_stage_before_elastic_kernels_is_bit_equal(peer: Any, tmp_path: Path) -> None:
    space = ofa_mbv3_w10()
    theirs = peer_network(peer, 1.0, ks=[7], e=[6], d=[4]).eval()
    assert not any(name.endswith("_matrix") for name in theirs.state_dict())
    ours = through_files(theirs, tmp_path, space, to_old_naming)
    largest = SubnetConfig(
        {"depth": (4,) * 5, "kernel_size": (7,) * 20, "expand_ratio": (6,) * 20, "resolution": 192}
    )
    x = images(2, 192)
    assert torch.equal(ours(x, largest), theirs(x))
