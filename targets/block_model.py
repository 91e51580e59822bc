"""The launch-and-work latency model: a block costs its launches or its arithmetic.

For one block, with all coefficients positive and p >= 1::

    launch = a0 + a1 squeeze_excite + a2 hswish + a3 skip
    work   = b0 pointwise_macs + b1 depthwise_macs + b2 activation_elements
    ms     = (launch^p + work^p)^(1/p)

The smooth maximum lets small blocks be bound by kernel launches, as on a GPU at
batch size 1, and large ones by arithmetic. What every network pays,
c0 + c1 (resolution / 224)^2, goes to the stem. A model fitted to thousands of
networks also holds corrections: a scale and an offset for each kind of block
(its key without image sizes), and an offset for each resolution. Everything
is a sum over operators, so whole populations are priced by table lookup.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from effdl.errors import CorruptFileError
from effdl.files import read_limited, write_atomically
from effdl.opspec import OpSpec

__all__ = [
    "BlockCoefficients",
    "BlockKind",
    "BlockModel",
    "block_kind",
    "launch_and_work",
    "op_features",
    "sum_over_slots",
]

_LAUNCH = ("block", "squeeze_excite", "hswish", "skip")
_WORK = ("pointwise_macs", "depthwise_macs", "activation_elements")
_MEGA = 1e6
_FULL_SIZE = 224
_MAX_FILE_BYTES = 4 << 20
_SIZES = re.compile(r"(\d+)x\1x")

_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=2000)]
_Count = Annotated[int, msgspec.Meta(ge=1)]
_NotNegative = Annotated[float, msgspec.Meta(ge=0.0, le=1e9)]
_Any = Annotated[float, msgspec.Meta(ge=-1e9, le=1e9)]


def block_kind(key: str) -> str:
    """An operator's key without image sizes: the same layer at another resolution."""
    return _SIZES.sub("", key)


def op_features(ops: Sequence[OpSpec]) -> NDArray[np.float64]:
    """What the model reads of operators [len(ops), 9]; work in millions.

    Columns: four launch indicators, three work counts, and for the stem 1 and
    the squared ratio of the image's side to 224.
    """
    rows = np.array(
        [[op.features.get(name, 0.0) for name in (*_LAUNCH, *_WORK)] for op in ops],
        dtype=np.float64,
    ).reshape(len(ops), len(_LAUNCH) + len(_WORK))
    rows[:, len(_LAUNCH) :] *= rows[:, :1] / _MEGA
    pixels = np.array([op.features.get("image_pixels", 0.0) for op in ops], dtype=np.float64)
    is_stem = (pixels > 0).astype(np.float64)
    return np.column_stack([rows, is_stem, pixels / _FULL_SIZE**2])


def launch_and_work(
    features: NDArray[np.float64], parameters: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Milliseconds of operators [C] and their derivatives [C, 10].

    Args:
        features: From `op_features` [C, 9].
        parameters: Natural logarithms of a0..a3, b0..b2, c0, c1 and p - 1 [10].
    """
    terms = features * np.exp(parameters[:9])
    launch, work = terms[:, :4].sum(axis=1), terms[:, 4:7].sum(axis=1)
    p = 1.0 + math.exp(parameters[9])
    largest = np.maximum(np.maximum(launch, work), np.finfo(np.float64).tiny)
    low, high = launch / largest, work / largest
    powers = low**p + high**p
    norm = np.maximum(powers, np.finfo(np.float64).tiny) ** (1.0 / p)
    block_ms = np.where(powers > 0, largest * norm, 0.0)
    share = np.maximum(norm, np.finfo(np.float64).tiny)
    by_launch, by_work = (low / share) ** (p - 1.0), (high / share) ** (p - 1.0)
    entropy = _x_log_x(low, p) + _x_log_x(high, p)
    with np.errstate(divide="ignore", invalid="ignore"):
        by_p = np.where(powers > 0, block_ms * (entropy / (p * powers) - np.log(powers) / p**2), 0)
    jacobian = np.column_stack(
        [
            terms[:, :4] * by_launch[:, None],
            terms[:, 4:7] * by_work[:, None],
            terms[:, 7:9],
            by_p * (p - 1.0),
        ]
    )
    return block_ms + terms[:, 7:9].sum(axis=1), jacobian


def sum_over_slots(codes: NDArray[np.intp], of_ops: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums [N, ...] over each network of values of operators [num_ops, ...].

    Args:
        codes: Operators of each network [N, num_slots]; ``num_ops`` stands for
            an empty slot.
        of_ops: Values of the operators [num_ops, ...].
    """
    padded = np.concatenate([of_ops, np.zeros((1, *of_ops.shape[1:]))])
    return padded[codes].sum(axis=1)


def _x_log_x(ratio: NDArray[np.float64], p: float) -> NDArray[np.float64]:
    """ratio^p log(ratio), 0 at 0."""
    safe = np.where(ratio > 0, ratio, 1.0)
    return safe**p * np.log(safe)


class BlockKind(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Correction of one kind of block: ``scale`` times the model plus ``offset_ms``."""

    scale: _NotNegative
    offset_ms: _Any


class BlockCoefficients(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The numbers of a launch-and-work model.

    Attributes:
        launch_ms: Launch cost of a block and of its parts.
        work_ms: Cost of a million multiply-accumulates or elements.
        exponent: p of the smooth maximum.
        offset_ms: c0, what every network pays.
        offset_per_area_ms: c1, what an image of 224 x 224 pays.
        resolution_offset_ms: Correction by resolution; between two of them
            it is interpolated.
        kinds: Corrections by kind of block; others have none.
    """

    launch_ms: dict[Literal["block", "squeeze_excite", "hswish", "skip"], _NotNegative]
    work_ms: dict[Literal["pointwise_macs", "depthwise_macs", "activation_elements"], _NotNegative]
    exponent: Annotated[float, msgspec.Meta(ge=1.0, le=1e3)]
    offset_ms: _NotNegative
    offset_per_area_ms: _NotNegative
    resolution_offset_ms: dict[_Count, _Any] = {}
    kinds: dict[str, BlockKind] = {}

    def __post_init__(self) -> None:
        for field, wanted in (("launch_ms", _LAUNCH), ("work_ms", _WORK)):
            given: Mapping[str, float] = getattr(self, field)
            if set(given) != set(wanted):
                raise ValueError(f"{field} wanted {', '.join(wanted)}, got {', '.join(given)}")

    @classmethod
    def of_parameters(cls, parameters: NDArray[np.float64]) -> Self:
        """Coefficients without corrections, from `launch_and_work`'s parameters [10]."""
        values = np.exp(parameters).tolist()
        return cls(
            launch_ms=dict(zip(_LAUNCH, values[:4], strict=True)),
            work_ms=dict(zip(_WORK, values[4:7], strict=True)),
            offset_ms=values[7],
            offset_per_area_ms=values[8],
            exponent=1.0 + values[9],
        )

    def predict_op_ms(self, ops: Sequence[OpSpec]) -> NDArray[np.float64]:
        """Latencies of operators [len(ops)], in milliseconds for the whole batch."""
        features = op_features(ops)
        plain_ms, _ = launch_and_work(features, self._parameters())
        none = BlockKind(scale=1.0, offset_ms=0.0)
        kinds = [self.kinds.get(block_kind(op.key), none) for op in ops]
        scale = np.array([kind.scale for kind in kinds])
        offset_ms = np.array([kind.offset_ms for kind in kinds])
        block_ms = plain_ms * scale + offset_ms + self._stem_offset_ms(features)
        return np.maximum(block_ms, 0.0)

    def _parameters(self) -> NDArray[np.float64]:
        values = [
            *(self.launch_ms[name] for name in _LAUNCH),
            *(self.work_ms[name] for name in _WORK),
            self.offset_ms,
            self.offset_per_area_ms,
            self.exponent - 1.0,
        ]
        return np.log(np.maximum(values, 1e-300))

    def _stem_offset_ms(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        if not self.resolution_offset_ms:
            return np.zeros(len(features))
        known = sorted(self.resolution_offset_ms)
        side = _FULL_SIZE * np.sqrt(features[:, 8])
        offsets = np.interp(side, known, [self.resolution_offset_ms[r] for r in known])
        return offsets * features[:, 7]


class BlockModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A fitted launch-and-work model of one device at one batch size.

    Attributes:
        target: Name of the target.
        device: The device, as people call it.
        batch_size: Samples in one run.
        runtime: What ran the networks.
        space: Name of the space whose networks were measured.
        resolutions: Lowest and highest input resolution measured, in pixels.
        origin: Who measured: a public repository, or a user's file.
        licence: Licence of the measurements.
        num_samples: Networks measured.
        cv_mape_percent: Mean absolute percentage error, cross-validated.
        cv_spearman: Rank correlation with measurements, cross-validated.
        interval_percent: 95 % of whole networks within ``resolutions`` lie
            within this many percent of their prediction, as far as the
            measurements can tell.
        coefficients: The model itself.
    """

    schema_version: Literal[1] = 1
    kind: Literal["block_model"] = "block_model"
    target: _Text
    device: _Text
    batch_size: _Count
    runtime: _Text
    space: _Text
    resolutions: tuple[_Count, _Count]
    origin: str
    licence: str
    num_samples: _Count
    cv_mape_percent: _NotNegative
    cv_spearman: Annotated[float, msgspec.Meta(ge=-1.0, le=1.0)]
    interval_percent: _NotNegative
    coefficients: BlockCoefficients

    @property
    def source(self) -> Literal["fitted"]:
        """How the latencies came about."""
        return "fitted"

    def predict_op_ms(
        self, ops: Sequence[OpSpec], *, resolutions: Sequence[int] | None = None
    ) -> NDArray[np.float64]:
        """Latencies of operators [len(ops)], in milliseconds for the whole batch.

        The sum over a network's operators is its latency; a single operator's
        share is only as good as the fit could tell it apart.

        Args:
            ops: The operators.
            resolutions: Not needed: the operators tell their sizes.
        """
        return self.coefficients.predict_op_ms(ops)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a fitted model from JSON.

        Raises:
            ConfigError: The file cannot be opened.
            CorruptFileError: It is not such a model.
        """
        try:
            return msgspec.json.decode(read_limited(path, _MAX_FILE_BYTES), type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CorruptFileError(f"{path} is not a fitted latency model: {error}") from error

    def write(self, path: Path) -> None:
        """Write the model as JSON, whole or not at all.

        Raises:
            OutputError: The file cannot be written.
        """
        text = msgspec.json.format(msgspec.json.encode(self), indent=1)
        write_atomically(path, text + b"\n")
