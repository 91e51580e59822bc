"""Supernet, extraction and plain networks on small spaces, and the published names."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from effdl.errors import ConfigError, CorruptFileError
from effdl.models.mobilenet_v3.network import (
    MobileNetV3,
    MobileNetV3Supernet,
    build_subnet,
    load_supernet,
    save_supernet,
)
from effdl.models.mobilenet_v3.space import MobileNetV3Space, UnitSpec, ofa_mbv3_w10, ofa_mbv3_w12
from effdl.search.space import SubnetConfig

SMALL = MobileNetV3Space(
    name="small",
    resolutions=(32, 40),
    units=(
        UnitSpec(out_channels=8, stride=2, squeeze_excite=False, activation="relu"),
        UnitSpec(out_channels=16, stride=2, squeeze_excite=True, activation="hswish"),
        UnitSpec(out_channels=16, stride=1, squeeze_excite=True, activation="relu"),
    ),
    depths=(1, 2, 3),
    stem_channels=8,
    final_expand_channels=24,
    feature_channels=32,
    in_channels=2,
    num_classes=5,
)


def drawn(supernet: MobileNetV3Supernet, seed: int = 0) -> MobileNetV3Supernet:
    """The supernet with random statistics, scales and matrices, in evaluation mode."""
    rng = np.random.default_rng(seed)
    for name, tensor in supernet.state_dict().items():
        values = torch.from_numpy(rng.uniform(0.5, 1.5, tuple(tensor.shape)).astype(np.float32))
        if name.endswith(("bn.weight", "running_var")):
            tensor.copy_(values if name.endswith("weight") else 0.05 * values)
        elif name.endswith(("bn.bias", "running_mean", "reduce.bias", "expand.bias")):
            tensor.copy_(0.1 * (values - 1))
        elif name.endswith("_matrix"):
            tensor.add_(0.2 * (values - 1))
    return supernet.eval()


def config_of(space: MobileNetV3Space, seed: int) -> SubnetConfig:
    row = space.search_space.sample(1, np.random.default_rng(seed))[0]
    return space.search_space.decode(row)


def images(space: MobileNetV3Space, batch: int = 2, size: int = 32) -> torch.Tensor:
    shape = (batch, space.in_channels, size, size)
    return torch.from_numpy(np.random.default_rng(5).standard_normal(shape, dtype=np.float32))


@pytest.fixture(scope="module")
def small() -> MobileNetV3Supernet:
    return drawn(MobileNetV3Supernet(SMALL))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.sampled_from([17, 32, 40]))
def test_extracted_network_equals_the_supernet_bit_for_bit(
    small: MobileNetV3Supernet, seed: int, size: int
) -> None:
    config, x = config_of(SMALL, seed), images(SMALL, size=size)
    with torch.no_grad():
        expected, got = small(x, config), small.extract(config)(x)
    assert expected.shape == (2, 5)
    assert expected.std() > 1e-6
    assert torch.equal(expected, got)


@pytest.mark.parametrize("kernel_sizes", [(3, 5), (3, 7), (5,)])
def test_other_kernel_sizes(kernel_sizes: tuple[int, ...]) -> None:
    space = replace(SMALL, kernel_sizes=kernel_sizes, expand_ratios=(2, 5))
    supernet = drawn(MobileNetV3Supernet(space))
    x = images(space)
    with torch.no_grad():
        for seed in range(5):
            config = config_of(space, seed)
            assert torch.equal(supernet(x, config), supernet.extract(config)(x))


def test_different_configurations_compute_different_things(small: MobileNetV3Supernet) -> None:
    x = images(SMALL)
    outputs = [small(x, config_of(SMALL, seed)) for seed in range(4)]
    assert all(not torch.allclose(a, b) for i, a in enumerate(outputs) for b in outputs[:i])


def test_supernet_keeps_no_choice(small: MobileNetV3Supernet) -> None:
    x, first, second = images(SMALL), config_of(SMALL, 1), config_of(SMALL, 2)
    once = small(x, first)
    small(x, second)
    assert torch.equal(small(x, first), once)


def test_resolution_of_the_configuration_is_not_enforced(small: MobileNetV3Supernet) -> None:
    config = config_of(SMALL, 1)
    elsewhere = SubnetConfig({**config, "resolution": 999})
    assert torch.equal(small(images(SMALL), config), small(images(SMALL), elsewhere))
    small.extract(elsewhere)


def test_extract_copies(small: MobileNetV3Supernet) -> None:
    before = {name: t.clone() for name, t in small.state_dict().items()}
    subnet = small.extract(config_of(SMALL, 3))
    with torch.no_grad():
        for tensor in subnet.state_dict().values():
            tensor.fill_(7)
    assert all(torch.equal(before[name], t) for name, t in small.state_dict().items())


def test_extract_keeps_mode_and_type() -> None:
    supernet = MobileNetV3Supernet(SMALL).double()
    subnet = supernet.extract(config_of(SMALL, 3))
    assert subnet.training
    assert {p.dtype for p in subnet.parameters()} == {torch.float64}
    assert not supernet.eval().extract(config_of(SMALL, 3)).training


def test_extract_allows_fine_tuning(small: MobileNetV3Supernet) -> None:
    subnet = small.extract(config_of(SMALL, 3)).train()
    subnet(images(SMALL)).sum().backward()
    assert all(p.requires_grad and p.grad is not None for p in subnet.parameters())


def test_training_moves_only_what_a_configuration_uses() -> None:
    supernet = MobileNetV3Supernet(SMALL).train()
    config = SubnetConfig(
        {"depth": (1,) * 3, "kernel_size": (7,) * 9, "expand_ratio": (3,) * 9, "resolution": 32}
    )
    before = {name: t.clone() for name, t in supernet.state_dict().items()}
    supernet(images(SMALL), config).square().sum().backward()
    after = supernet.state_dict()
    # Unit 1, block 1 expands 8 -> 24 of 48 channels; block 2 is not used at all.
    name = "blocks.1.conv.depth_conv.bn.bn.running_mean"
    assert (after[name][:24] != before[name][:24]).all()
    assert torch.equal(after[name][24:], before[name][24:])
    moved = {
        n.split(".")[1] for n in after if not torch.equal(after[n], before[n]) and "blocks" in n
    }
    assert moved == {"0", "1", "4", "7"}
    gradient = dict(supernet.named_parameters())["blocks.1.conv.point_linear.conv.conv.weight"].grad
    assert gradient is not None
    assert gradient[:, :24].abs().min() > 0
    assert gradient[:, 24:].abs().max() == 0


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 32, 32), (2, 2, 32), (1, 2, 2, 32, 32)])
def test_wrong_images_are_refused(small: MobileNetV3Supernet, shape: tuple[int, ...]) -> None:
    config = config_of(SMALL, 0)
    for call in (lambda x: small(x, config), small.extract(config)):
        with pytest.raises(ConfigError, match=r"wanted \[batch, 2, height, width\], got"):
            call(torch.zeros(shape))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("depth", (1, 2, 4), "depth at position 2 wanted one of 1, 2, 3, got 4"),
        ("kernel_size", (9,) * 9, "kernel_size at position 0"),
        ("expand_ratio", (3,) * 8, "wanted 9 values of expand_ratio, got 8"),
    ],
)
def test_wrong_configurations_are_refused(
    small: MobileNetV3Supernet, name: str, value: tuple[int, ...], message: str
) -> None:
    config = SubnetConfig({**config_of(SMALL, 0), name: value})
    with pytest.raises(ConfigError, match=message):
        small(images(SMALL), config)
    with pytest.raises(ConfigError, match=message):
        small.extract(config)
    with pytest.raises(ConfigError, match=message):
        build_subnet(SMALL, config, seed=0)


def test_plain_network_from_shapes() -> None:
    space = replace(SMALL, in_channels=1, num_classes=3)
    network = MobileNetV3(space.shapes(config_of(space, 0)))
    assert network(torch.zeros(2, 1, 30, 34)).shape == (2, 3)


def test_build_subnet_is_reproducible_from_its_seed() -> None:
    config = config_of(SMALL, 4)
    first, again = (build_subnet(SMALL, config, seed=7) for _ in range(2))
    other = build_subnet(SMALL, config, seed=8)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert not torch.equal(first(images(SMALL)), other(images(SMALL)))
    assert not first.training


def test_build_subnet_does_not_touch_the_global_generator() -> None:
    before = torch.get_rng_state()
    build_subnet(SMALL, config_of(SMALL, 4), seed=7)
    MobileNetV3Supernet(SMALL, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_build_subnet_keeps_activations_in_scale() -> None:
    space = ofa_mbv3_w10()
    config = config_of(space, 11)
    network = build_subnet(space, config, seed=0)
    squares: list[float] = []
    for block in network.blocks:
        block.register_forward_hook(lambda m, a, out: squares.append(float(out.square().mean())))
    with torch.no_grad():
        logits = network(
            torch.from_numpy(np.random.default_rng(0).random((2, 3, 160, 160), np.float32))
        )
    assert min(squares) > 1e-3
    assert max(squares) < 30
    assert 1e-3 < float(logits.std()) < 10
    variances = [m.running_var for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(v is not None and bool((v > 1e-4).all()) for v in variances)


def test_parameter_counts_are_those_of_the_space() -> None:
    for space in (ofa_mbv3_w10(), ofa_mbv3_w12(), SMALL):
        for seed in range(3):
            config = config_of(space, seed)
            shapes = space.shapes(config)
            network = MobileNetV3(shapes, seed=None)
            expected = sum(shape.spec().num_params for _, shape in shapes)
            assert sum(p.numel() for p in network.parameters()) == expected


def test_supernet_size_is_the_published_one() -> None:
    supernet = MobileNetV3Supernet(ofa_mbv3_w10(), seed=None)
    assert round(sum(p.numel() for p in supernet.parameters()) / 1e6, 3) == 7.679
    assert len(supernet.state_dict()) == 475


def names_and_shapes(module: nn.Module) -> set[str]:
    return {f"{name} {tuple(t.shape)}" for name, t in module.state_dict().items()}


@pytest.mark.reference_data
def test_supernet_names_and_shapes_are_the_published_ones(reference_data: Path) -> None:
    lines = (reference_data / "ofa" / "state_dict_keys_supernet.txt").read_text().splitlines()
    assert len(lines) == 475
    assert names_and_shapes(MobileNetV3Supernet(ofa_mbv3_w10(), seed=None)) == set(lines)


@pytest.mark.reference_data
def test_subnet_names_and_shapes_are_the_published_ones(reference_data: Path) -> None:
    lines = (reference_data / "ofa" / "state_dict_keys_subnet.txt").read_text().splitlines()
    space = ofa_mbv3_w10()
    config = SubnetConfig(
        {"depth": (2,) * 5, "kernel_size": (3,) * 20, "expand_ratio": (3,) * 20, "resolution": 224}
    )
    assert names_and_shapes(MobileNetV3Supernet(space, seed=None).extract(config)) == set(lines)


def test_names_of_the_small_supernet() -> None:
    names = set(MobileNetV3Supernet(SMALL, seed=None).state_dict())
    for name in (
        "first_conv.bn.running_var",
        "blocks.0.conv.depth_conv.conv.weight",
        "blocks.1.conv.inverted_bottleneck.conv.conv.weight",
        "blocks.9.conv.depth_conv.conv.7to5_matrix",
        "blocks.9.conv.depth_conv.se.fc.reduce.bias",
        "blocks.9.conv.point_linear.bn.bn.num_batches_tracked",
        "final_expand_layer.conv.weight",
        "feature_mix_layer.conv.weight",
        "classifier.linear.bias",
    ):
        assert name in names


def test_saved_supernet_loads(small: MobileNetV3Supernet, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_supernet(small, path, notes={"source": "a test"})
    loaded = load_supernet(path, SMALL)
    assert not loaded.training
    assert all(torch.equal(t, loaded.state_dict()[n]) for n, t in small.state_dict().items())


def test_supernet_of_another_space_is_refused(small: MobileNetV3Supernet, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_supernet(small, path)
    other = replace(SMALL, name="other", num_classes=7)
    with pytest.raises(CorruptFileError) as caught:
        load_supernet(path, other)
    message = caught.value.message
    assert "wanted a supernet of space other, got a supernet of space small" in message
    assert "classifier.linear.bias wanted [7], got [5]" in message
