"""How closely a file on bytes follows the same network in floats."""

from dataclasses import asdict, dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from effdl.export.runtime import open_session, run

__all__ = ["Int8Parity", "compare_int8", "signal_to_noise_db"]

_BATCH_SIZE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Parity:
    """How closely bytes follow floats.

    Attributes:
        sqnr_db: Energy of the float outputs over that of the difference, in decibels.
        agreement_percent: Samples for which both name the same class.
        num_samples: How many were compared.
        samples: What they were.
    """

    sqnr_db: float
    agreement_percent: float
    num_samples: int
    samples: str

    def to_json(self) -> dict[str, object]:
        """The object of the contract."""
        return asdict(self)


def compare_int8(
    float_model: onnx.ModelProto,
    int8_model: onnx.ModelProto,
    samples: NDArray[np.float32],
    *,
    description: str,
) -> Int8Parity:
    """Run both in ONNX Runtime on the same samples.

    Args:
        float_model: Classes [N, num_classes] of images.
        int8_model: The same on bytes.
        samples: Inputs [N, ...] that calibration has not seen.
        description: What the samples are.
    """
    wanted, got = (_outputs(model, samples) for model in (float_model, int8_model))
    same = wanted.argmax(axis=-1) == got.argmax(axis=-1)
    return Int8Parity(
        sqnr_db=signal_to_noise_db(wanted, got),
        agreement_percent=100.0 * float(same.mean()),
        num_samples=len(samples),
        samples=description,
    )


def signal_to_noise_db(wanted: NDArray[np.floating], got: NDArray[np.floating]) -> float:
    """``10 log10(|wanted|^2 / |wanted - got|^2)``; infinite where they are equal."""
    exact = wanted.astype(np.float64)
    noise = float(((exact - got) ** 2).sum())
    return float("inf") if noise == 0.0 else float(10 * np.log10((exact**2).sum() / noise))


def _outputs(model: onnx.ModelProto, samples: NDArray[np.float32]) -> NDArray[np.float32]:
    session = open_session(model.SerializeToString(), optimize=True, num_threads=1)
    # Weights that are fixed to one batch size take one sample after another.
    free = not isinstance(session.get_inputs()[0].shape[0], int)
    step = _BATCH_SIZE if free else 1
    return np.concatenate(
        [run(session, samples[i : i + step]) for i in range(0, len(samples), step)]
    )
