"""The file of an accuracy predictor: safetensors, with a description in its metadata.

``net{m}.layer{l}.weight`` [units read, outputs] and ``net{m}.layer{l}.bias``
[outputs] are the layers of network m: the first reads the inputs, every later
one all hidden units before it, first layer first, and ReLU follows all but the
last; ``net{m}.linear`` [inputs] is a linear part added to its output. Inputs
stand in the order of `PredictorInfo.inputs`, then positions, then choices; the
anchors come last. The metadata's only member, ``effdl``, is a `PredictorInfo` in JSON.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from effdl.errors import ConfigError, CorruptFileError
from effdl.files import write_atomically

__all__ = [
    "SCHEMA_VERSION",
    "AccuracyCalibration",
    "Network",
    "PredictorInfo",
    "read_predictor",
    "write_predictor",
]

SCHEMA_VERSION = 1

Float32Array = NDArray[np.float32]

_METADATA_KEY = "effdl"
_HINT = "effdl train-predictor --published makes the shipped predictors anew"


class AccuracyCalibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Raw output to top-1: ``top1_percent = slope * raw_percent + intercept_percent``.

    Attributes:
        slope: Percent of top-1 for each percent of raw output.
        intercept_percent: Top-1 at raw output 0.
        rmse_pp: Error of the fit over its points, in percentage points.
        num_points: Published networks it was fitted to.
        source: Where they were published.
    """

    slope: float
    intercept_percent: float
    rmse_pp: float
    num_points: int
    source: str


class PredictorInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a predictor's file says about itself.

    Attributes:
        schema_version: Version of the file's layout.
        space: Name of the search space.
        inputs: ``(dimension name, number of positions, choices)`` of the
            one-hot codes, in order.
        anchors: Resolutions that were trained, in pixels, increasing.
        num_networks: Networks whose outputs are averaged.
        metric: What the predicted top-1 means.
        source: Where the training pairs come from.
        licence: Licence of the file.
        rmse_pp: Held-out error of the raw output in percentage points.
        spearman: Held-out rank correlation.
        num_pairs: Pairs it was trained from.
        held_out: How the pairs behind those two errors were held out.
        method: How the networks were trained.
        errors: Further measured errors by name; the name ends in the unit.
        seed: Seed of the training.
        made_from: SHA-256 of what the training read and how it was set.
        straight: Calibration for the supernet's weights as they are; None:
            the raw output is the top-1 already.
        fine_tuned: Calibration for fine-tuned sub-networks, if known.
    """

    schema_version: int
    space: str
    inputs: tuple[tuple[str, int, tuple[float, ...]], ...]
    anchors: tuple[int, ...]
    num_networks: int
    metric: str
    source: str
    licence: str
    rmse_pp: float
    spearman: float
    num_pairs: int
    held_out: str
    method: str = ""
    seed: int
    made_from: str = ""
    errors: dict[str, float] = {}
    straight: AccuracyCalibration | None = None
    fine_tuned: AccuracyCalibration | None = None

    @property
    def num_inputs(self) -> int:
        """Inputs of every network."""
        one_hot = sum(positions * len(choices) for _, positions, choices in self.inputs)
        return one_hot + len(self.anchors)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Network:
    """One network: densely connected ReLU layers and a linear part.

    The first layer reads the inputs, every later one all hidden units before it.

    Attributes:
        weights: Matrices [units read, outputs], at least two; the last one has
            one output.
        biases: Vectors [outputs].
        linear: Linear part [inputs].
    """

    weights: tuple[Float32Array, ...]
    biases: tuple[Float32Array, ...]
    linear: Float32Array

    def __call__(self, features: Float32Array) -> Float32Array:
        """Outputs [N] of features [N, inputs]."""
        units = np.empty((len(features), len(self.weights[-1])), dtype=np.float32)
        read, start = features, 0
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            end = start + weight.shape[1]
            layer = units[:, start:end]
            np.matmul(read, weight, out=layer)
            layer += bias
            np.maximum(layer, 0.0, out=layer)
            read, start = units[:, :end], end
        output = units @ self.weights[-1][:, 0]
        output += features @ self.linear
        output += self.biases[-1]
        return output


def write_predictor(path: Path, info: PredictorInfo, networks: Sequence[Network]) -> None:
    """Write a predictor's file in one step: it is there whole, or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    tensors: dict[str, NDArray[np.float32]] = {}
    for m, network in enumerate(networks):
        tensors[f"net{m}.linear"] = network.linear
        for i, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
            tensors[f"net{m}.layer{i}.weight"] = weight
            tensors[f"net{m}.layer{i}.bias"] = bias
    contiguous = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    payload = save(contiguous, {_METADATA_KEY: msgspec.json.encode(info).decode()})
    write_atomically(path, payload)


def read_predictor(path: Path) -> tuple[PredictorInfo, tuple[Network, ...]]:
    """Read a predictor's file and check it whole.

    Raises:
        ConfigError: There is no such file.
        CorruptFileError: It is truncated, not a predictor, of another version,
            or holds wrong shapes or values that are not finite.
    """
    if not path.is_file():
        raise ConfigError(f"no accuracy predictor at {path}", hint=_HINT)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CorruptFileError(
            f"{path} is not a whole safetensors file: {error}", hint=_HINT
        ) from error
    try:
        info = msgspec.json.decode(metadata.get(_METADATA_KEY, ""), type=PredictorInfo)
    except msgspec.MsgspecError as error:
        raise CorruptFileError(
            f"{path} does not describe an accuracy predictor: {error}", hint=_HINT
        ) from error
    _check_info(path, info)
    networks = tuple(_network(path, info, tensors, m) for m in range(info.num_networks))
    num_known = sum(2 * len(network.weights) + 1 for network in networks)
    if num_known != len(tensors):
        raise CorruptFileError(
            f"{path} holds other tensors: wanted {num_known}, got {len(tensors)}", hint=_HINT
        )
    return info, networks


def _check_info(path: Path, info: PredictorInfo) -> None:
    anchors = info.anchors
    wrong = None
    if info.schema_version != SCHEMA_VERSION:
        wrong = f"wanted schema_version {SCHEMA_VERSION}, got {info.schema_version}"
    elif not anchors or list(anchors) != sorted(set(anchors)):
        wrong = f"wanted increasing anchor resolutions, got {list(anchors)}"
    elif not 1 <= info.num_networks <= 64:
        wrong = f"wanted 1 to 64 networks, got {info.num_networks}"
    elif any(n < 1 or not choices for _, n, choices in info.inputs):
        wrong = "wanted at least one position and choice of every input"
    if wrong:
        raise CorruptFileError(f"{path} cannot be used: {wrong}", hint=_HINT)


def _network(
    path: Path, info: PredictorInfo, tensors: Mapping[str, NDArray[np.generic]], m: int
) -> Network:
    def tensor(name: str, *shape: int | None) -> Float32Array:
        value = tensors.get(f"net{m}.{name}")
        if value is None:
            raise CorruptFileError(f"{path} lacks the tensor net{m}.{name}", hint=_HINT)
        fits = value.ndim == len(shape) and all(
            want in (None, got) for want, got in zip(shape, value.shape, strict=True)
        )
        if value.dtype != np.float32 or not fits:
            wanted = " x ".join("any" if n is None else str(n) for n in shape)
            raise CorruptFileError(
                f"{path}: net{m}.{name} has another shape or type: wanted float32 {wanted}, got "
                f"{value.dtype} {' x '.join(map(str, value.shape))}",
                hint=_HINT,
            )
        if not np.isfinite(value).all():
            raise CorruptFileError(
                f"{path}: net{m}.{name} holds values that are not finite", hint=_HINT
            )
        return value.astype(np.float32)

    num_layers = sum(
        name.startswith(f"net{m}.layer") and name.endswith(".weight") for name in tensors
    )
    weights: list[Float32Array] = []
    biases: list[Float32Array] = []
    num_read = info.num_inputs
    for i in range(max(num_layers, 2)):
        outputs = 1 if i + 1 >= num_layers else None
        weights.append(tensor(f"layer{i}.weight", num_read, outputs))
        num_outputs = weights[-1].shape[1]
        biases.append(tensor(f"layer{i}.bias", num_outputs))
        num_read = num_outputs + (num_read if i else 0)
    return Network(
        weights=tuple(weights), biases=tuple(biases), linear=tensor("linear", info.num_inputs)
    )
