"""The accuracy predictors that come with the space."""

from pathlib import Path

from effdl.models.mobilenet_v3.space import MobileNetV3Space
from effdl.search.accuracy_predictor import AccuracyPredictor

__all__ = ["accuracy_predictor_path", "load_accuracy_predictor"]


def accuracy_predictor_path(name: str) -> Path:
    """Where the shipped predictor of a space lies, if there is one."""
    return Path(__file__).parent / "accuracy" / f"{name}.safetensors"


def load_accuracy_predictor(space: MobileNetV3Space) -> AccuracyPredictor | None:
    """The shipped accuracy predictor of a space, or None where there is none.

    Raises:
        CorruptFileError: The file is damaged.
    """
    path = accuracy_predictor_path(space.name)
    return AccuracyPredictor.load(path, space.search_space) if path.is_file() else None
