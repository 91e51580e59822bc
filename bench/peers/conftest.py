"""Once-for-All's own search, set up as its tutorial does, with what is broken stood in for."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "data" / "ofa"
RESOLUTIONS = (160, 176, 192, 208, 224)


def stand_in(name: str, **members: object) -> ModuleType:
    module = ModuleType(name)
    module.__dict__.update(members)
    return module


@pytest.fixture(scope="session")
def published() -> Path:
    """The published Note10 tables and accuracy predictor."""
    if not PUBLISHED.is_dir():
        pytest.skip("the published figures are not beside this checkout")
    return PUBLISHED


@pytest.fixture(scope="session")
def official_predictor(published: Path) -> dict[str, torch.Tensor]:
    """Weights of the published accuracy predictor by name."""
    path = published / "acc_predictor_mbv3_w1.2.pth"
    weights: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return weights.get("state_dict", weights)


@pytest.fixture(scope="session")
def peer_finder(
    published: Path, official_predictor: dict[str, torch.Tensor]
) -> Iterator[Callable[[float], Any]]:
    """Makes the peer's evolution finder for a limit in ms on the Note10."""
    if importlib.util.find_spec("ofa") is None:
        pytest.skip("the ofa package is not installed: pip install --no-deps ofa")
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
        stand_in("tqdm", tqdm=lambda iterable, **_: iterable),
    ]
    with pytest.MonkeyPatch.context() as patch:
        for module in stand_ins:
            patch.setitem(sys.modules, module.__name__, module)
        tutorial = importlib.import_module("ofa.tutorial")
        latency_table = importlib.import_module("ofa.tutorial.latency_table")
        # Its yaml.load(fp) is a TypeError on today's PyYAML.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        patch.setattr(
            latency_table, "yaml", stand_in("yaml", load=lambda fp: yaml.load(fp, Loader=loader))
        )
        table = tutorial.LatencyTable.__new__(tutorial.LatencyTable)
        table.latency_tables = {
            r: latency_table.LatencyEstimator(url=str(published / f"note10/{r}_lookup_table.yaml"))
            for r in RESOLUTIONS
        }
        predictor = tutorial.AccuracyPredictor(pretrained=False, device="cpu")
        predictor.model.load_state_dict(official_predictor)

        def make(limit_ms: float) -> Any:
            return tutorial.EvolutionFinder("note10", limit_ms, table, predictor)

        yield make
