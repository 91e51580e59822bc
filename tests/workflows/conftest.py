"""A space of twelve small networks, and one of them exported."""

from collections.abc import Callable
from pathlib import Path

import pytest

from effdl.models.mobilenet_v3.space import MobileNetV3Space, UnitSpec
from effdl.search.space import SubnetConfig

SMALL_SPACE = MobileNetV3Space(
    name="small",
    resolutions=(32, 40),
    units=(UnitSpec(out_channels=8, stride=2, squeeze_excite=True, activation="hswish"),),
    depths=(1, 2),
    expand_ratios=(2, 3),
    kernel_sizes=(3, 5),
    stem_channels=8,
    final_expand_channels=16,
    feature_channels=16,
    num_classes=7,
)
SMALL_CONFIG = SubnetConfig(
    {"depth": (1,), "kernel_size": (5, 0), "expand_ratio": (3, 0), "resolution": 32}
)


@pytest.fixture(scope="session")
def small_space() -> MobileNetV3Space:
    return SMALL_SPACE


@pytest.fixture(scope="session")
def small_config() -> SubnetConfig:
    return SMALL_CONFIG


@pytest.fixture(scope="session")
def find_small_space() -> Callable[[str], MobileNetV3Space]:
    """The small space by its name, beside the published ones."""
    from effdl.models.spaces import load_space

    return lambda name: SMALL_SPACE if name == SMALL_SPACE.name else load_space(name)


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A supernet of the small space as safetensors."""
    from effdl.models.mobilenet_v3.network import MobileNetV3Supernet, save_supernet

    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_supernet(MobileNetV3Supernet(SMALL_SPACE, seed=5).eval(), path)
    return path


@pytest.fixture(scope="session")
def untrained_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small configuration, untrained, with seed 3; tests may not change it."""
    from effdl.workflows.export import export_subnet

    path = tmp_path_factory.mktemp("untrained") / "model.onnx"
    info = {"target": "phone", "predicted_latency_ms": "20.5"}
    return export_subnet(
        space=SMALL_SPACE, config=SMALL_CONFIG, out=path, seed=3, target_info=info
    ).path


@pytest.fixture(scope="session")
def trained_onnx(tmp_path_factory: pytest.TempPathFactory, small_weights: Path) -> Path:
    """The small configuration cut from `small_weights`; tests may not change it."""
    from effdl.workflows.export import export_subnet

    path = tmp_path_factory.mktemp("trained") / "model.onnx"
    return export_subnet(
        space=SMALL_SPACE, config=SMALL_CONFIG, out=path, weights=small_weights
    ).path
