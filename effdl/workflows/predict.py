"""Latency, accuracy, parameters and MACs of given configurations."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from effdl.errors import ConfigError, CorruptFileError
from effdl.models.mobilenet_v3.pretrained import load_accuracy_predictor
from effdl.models.mobilenet_v3.space import MobileNetV3Space
from effdl.search.space import Population
from effdl.targets.latency_model import LatencyModel
from effdl.targets.measure.runtime import MeasurementRuntime
from effdl.targets.target import Target
from effdl.workflows.costs import SpaceCosts
from effdl.workflows.latencies import latency_model_of
from effdl.workflows.progress import Progress, no_progress
from effdl.workflows.subnets import SubnetReport, accuracy_of

__all__ = ["Prediction", "Predictions", "predict_subnets", "read_configs"]

_MAX_FILE_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What is predicted of one configuration.

    Attributes:
        subnet: Its figures; a figure that cannot be predicted is None.
        latency_source: Where the latency comes from, or None.
        reason: Why a figure is None, or None.
    """

    subnet: SubnetReport
    latency_source: str | None
    reason: str | None

    def to_json(self) -> dict[str, Any]:
        """The object of the contract."""
        subnet = self.subnet.to_json()
        kept = ("config", "predicted_latency_ms", "accuracy", "params", "macs")
        return {
            **{name: subnet[name] for name in kept},
            "latency_source": self.latency_source,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """Predictions in the order of the configurations.

    Attributes:
        target: The target, or None.
        latency_model: Where its latencies came from, or None.
        space: Name of the space.
        predictions: One for each configuration.
    """

    target: Target | None
    latency_model: LatencyModel | None
    space: str
    predictions: tuple[Prediction, ...]

    def to_json(self) -> dict[str, Any]:
        """The object of the contract, without ``schema_version``."""
        model = self.latency_model
        described = None
        if self.target is not None and model is not None:
            described = {
                "name": self.target.name,
                "device": model.device,
                "batch_size": model.batch_size,
                "runtime": model.runtime,
                "latency_source": model.source,
            }
        return {
            "target": described,
            "space": self.space,
            "predictions": [prediction.to_json() for prediction in self.predictions],
        }


def read_configs(path: Path, space: MobileNetV3Space) -> Population:
    """Canonical rows [N, num_dimensions] of a file of one JSON configuration a line.

    Raises:
        ConfigError: The file cannot be read.
        CorruptFileError: A line is not a configuration of the space; names the line.
    """
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise CorruptFileError(f"{path}: wanted at most {_MAX_FILE_BYTES} bytes")
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    decoder = msgspec.json.Decoder(dict[str, object])
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(space.search_space.encode(decoder.decode(line)))
        except (msgspec.DecodeError, UnicodeDecodeError, ConfigError) as error:
            raise CorruptFileError(f"{path}, line {number}: {error}") from error
    if not rows:
        raise CorruptFileError(f"{path}: wanted one configuration a line, got none")
    return np.stack(rows)


def predict_subnets(
    *,
    space: MobileNetV3Space,
    population: Population,
    target: Target | None = None,
    runtime: MeasurementRuntime | None = None,
    batch_size: int | None = None,
    fine_tuned: bool = False,
    profile: bool = True,
    progress: Progress = no_progress,
) -> Predictions:
    """Predict the figures of many sub-networks at once.

    Args:
        space: Their space.
        population: Canonical rows [N, num_dimensions].
        target: The target, or None: no latencies.
        runtime: What runs networks on this machine; None: the target's own.
        batch_size: Samples in one forward pass; None: the target's default.
        fine_tuned: Accuracies expected after fine-tuning.
        profile: Measure this machine first if it has no table yet.
        progress: Told how far that is.

    Raises:
        TargetUnavailableError: The target has no latencies here.
        LatencyTableError: The target's latencies do not fit the space.
    """
    if target is None and batch_size is not None:
        raise ConfigError("a batch size has no effect without a target", hint="add --target")
    model = (
        None
        if target is None
        else latency_model_of(
            target, space, batch_size, runtime=runtime, profile=profile, progress=progress
        )
    )
    part, rows = _used_resolutions(space, population)
    costs = SpaceCosts(space=part, batch_size=model.batch_size if model else 1, latency_model=model)
    params, macs = costs.params(rows), costs.macs(rows)
    latency_ms = None if model is None else costs.latency_ms(rows)
    predictor = load_accuracy_predictor(space)
    raw = np.full(len(population), np.nan)
    reason = f"space {space.name} has no accuracy predictor"
    if predictor is not None:
        known = predictor.predictable(population)
        raw[known] = predictor.predict_raw(population[known])
        low, high = min(predictor.anchors), max(predictor.anchors)
        where = f"resolution {low}" if low == high else f"resolutions from {low} to {high}"
        reason = f"accuracy is predictable only at {where}"
    predictions = []
    for i, row in enumerate(population):
        has_accuracy = predictor is not None and not np.isnan(raw[i])
        subnet = SubnetReport(
            config=space.search_space.decode(row),
            predicted_latency_ms=None if latency_ms is None else float(latency_ms[i]),
            accuracy=accuracy_of(predictor, float(raw[i]), fine_tuned=fine_tuned)
            if predictor is not None and has_accuracy
            else None,
            params=int(params[i]),
            macs=int(macs[i]),
        )
        predictions.append(
            Prediction(
                subnet=subnet,
                latency_source=None if model is None else model.source,
                reason=None if has_accuracy else reason,
            )
        )
    return Predictions(
        target=target, latency_model=model, space=space.name, predictions=tuple(predictions)
    )


def _used_resolutions(
    space: MobileNetV3Space, population: Population
) -> tuple[MobileNetV3Space, Population]:
    """The space at the resolutions that are used, all that a table must know, and its rows."""
    (column,) = space.search_space.columns("resolution")
    used, places = np.unique(population[:, column], return_inverse=True)
    rows = population.copy()
    rows[:, column] = places
    return space.with_resolutions(space.resolutions[i] for i in used), rows
