"""What is said of one sub-network, in every report."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from effdl.search.accuracy_predictor import AccuracyPredictor
from effdl.search.space import SubnetConfig

__all__ = ["Accuracy", "SubnetReport", "accuracy_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """A predicted or measured accuracy.

    Attributes:
        metric: What is right, on which data.
        percent: The accuracy in percent.
        raw: The predictor's own output as a fraction.
        source: Where the figure comes from.
    """

    metric: str
    percent: float
    raw: float
    source: str

    def to_json(self) -> dict[str, object]:
        """The object of the contract."""
        return {
            "metric": self.metric,
            "value": self.percent,
            "unit": "percent",
            "raw": self.raw,
            "source": self.source,
        }


def accuracy_of(predictor: AccuracyPredictor, raw: float, *, fine_tuned: bool) -> Accuracy:
    """The accuracy that a predictor's output stands for.

    Args:
        predictor: Which predictor.
        raw: Its output, as a fraction.
        fine_tuned: After fine-tuning the sub-network, where the predictor
            knows a calibration for that.
    """
    return Accuracy(
        metric=predictor.metric,
        percent=float(predictor.predict_top1(np.array(raw), fine_tuned=fine_tuned)),
        raw=raw,
        source=predictor.source,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SubnetReport:
    """One sub-network with its figures.

    Attributes:
        config: The sub-network.
        predicted_latency_ms: From the target's table or model.
        measured_latency_ms: Median of the exported file here, where the
            target is this machine.
        accuracy: Predicted accuracy.
        params: Trainable parameters.
        macs: Multiply-accumulate operations for one sample.
        onnx: The exported file.
        weights: Whose weights the file carries.
        parity: Largest relative difference between the file and PyTorch.
    """

    config: SubnetConfig
    predicted_latency_ms: float | None
    accuracy: Accuracy | None
    params: int
    macs: int
    measured_latency_ms: float | None = None
    onnx: Path | None = None
    weights: str | None = None
    parity: Mapping[str, object] | None = None

    def to_json(self) -> dict[str, Any]:
        """The object of the contract."""
        return {
            "config": self.config.to_json(),
            "predicted_latency_ms": self.predicted_latency_ms,
            "measured_latency_ms": self.measured_latency_ms,
            "accuracy": None if self.accuracy is None else self.accuracy.to_json(),
            "params": self.params,
            "macs": self.macs,
            "onnx": None if self.onnx is None else str(self.onnx),
            "weights": self.weights,
            "parity": None if self.parity is None else dict(self.parity),
        }
