"""Predicts the accuracy of whole populations with small networks, in numpy.

The inputs are OFA's: a one-hot code of every block's kernel size and expansion,
zeros for a block that the unit's depth leaves out (so depth needs no input of
its own), and a one-hot code of the resolution. Only some resolutions were
trained, the anchors; between two of them the outputs are interpolated.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from effdl.errors import ConfigError, CorruptFileError
from effdl.search.predictor_file import (
    AccuracyCalibration,
    Network,
    PredictorInfo,
    read_predictor,
)
from effdl.search.space import Population, SearchSpace

__all__ = ["AccuracyCalibration", "AccuracyPredictor", "PredictorInfo"]

# Larger populations are worked off in pieces that stay in the cache.
_CHUNK_ROWS = 512


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AccuracyPredictor:
    """Accuracy of sub-networks from their choices; made by `load`.

    Attributes:
        space: The space whose populations it takes.
        info: What its file says: metric, source, licence, errors.
    """

    space: SearchSpace
    info: PredictorInfo
    _networks: tuple[Network, ...]
    _num_indicators: int
    _resolution_column: int
    _lower_anchor: NDArray[np.intp]
    _toward_upper: NDArray[np.float64]
    _predictable: NDArray[np.bool_]

    @property
    def anchors(self) -> tuple[int, ...]:
        """Resolutions that were trained, in pixels, increasing."""
        return self.info.anchors

    @property
    def metric(self) -> str:
        """What `predict_top1` means."""
        return self.info.metric

    @property
    def source(self) -> str:
        """Where the training pairs come from."""
        return self.info.source

    @property
    def licence(self) -> str:
        """Licence of the file."""
        return self.info.licence

    @property
    def rmse_pp(self) -> float:
        """Held-out error of the raw output in percentage points."""
        return self.info.rmse_pp

    @property
    def spearman(self) -> float:
        """Held-out rank correlation."""
        return self.info.spearman

    @property
    def has_fine_tuned(self) -> bool:
        """Whether `predict_top1` knows fine-tuned sub-networks."""
        return self.info.fine_tuned is not None

    @classmethod
    def load(cls, path: Path, space: SearchSpace) -> "AccuracyPredictor":
        """Read a predictor for a space, whichever resolutions the space has.

        Raises:
            ConfigError: There is no such file.
            CorruptFileError: It is truncated, not a predictor, of another space
                or version, or holds wrong shapes or values that are not finite.
        """
        info, networks = read_predictor(path)
        if info.space != space.name:
            raise CorruptFileError(
                f"{path} is of another space: wanted {space.name}, got {info.space}"
            )
        matrix, offset = _input_map(path, info, space)
        (column,) = space.columns("resolution")
        resolutions = np.array(space.dimensions[column].choices, dtype=np.float64)
        anchors = np.array(info.anchors, dtype=np.float64)
        inside = (resolutions >= anchors[0]) & (resolutions <= anchors[-1])
        lower = np.clip(np.searchsorted(anchors, resolutions, side="right") - 1, 0, None)
        upper = np.minimum(lower + 1, len(anchors) - 1)
        gap = np.maximum(anchors[upper] - anchors[lower], 1.0)
        return cls(
            space=space,
            info=info,
            _networks=tuple(_rewrite(network, matrix, offset) for network in networks),
            _num_indicators=len(matrix) - len(anchors),
            _resolution_column=column,
            _lower_anchor=lower,
            _toward_upper=np.where(inside, (resolutions - anchors[lower]) / gap, 0.0),
            _predictable=inside,
        )

    def predictable(self, population: Population) -> NDArray[np.bool_]:
        """Which rows [N] of a population have a resolution within the anchors' range."""
        return self._predictable[population[:, self._resolution_column]]

    def predict_raw(self, population: Population) -> NDArray[np.float64]:
        """The networks' mean output [N], a fraction, for a population [N, num_dimensions].

        Choices at inactive positions are ignored.

        Raises:
            ConfigError: A row's resolution is outside the anchors' range.
        """
        inside = self.predictable(population)
        if not inside.all():
            choices = self.space.dimensions[self._resolution_column].choices
            first = population[int(np.argmin(inside)), self._resolution_column]
            known = " to ".join(str(r) for r in sorted({self.anchors[0], self.anchors[-1]}))
            raise ConfigError(
                f"the accuracy of {self.space.name} is known at resolution {known} only, "
                f"got {choices[first]}",
                hint=f"use resolution {known}",
            )
        if len(population) <= _CHUNK_ROWS:
            return self._predict_chunk(population)
        starts = range(0, len(population), _CHUNK_ROWS)
        return np.concatenate(
            [self._predict_chunk(population[i : i + _CHUNK_ROWS]) for i in starts]
        )

    def predict_top1(
        self, raw: NDArray[np.float64], *, fine_tuned: bool = False
    ) -> NDArray[np.float64]:
        """Top-1 in percent [N] from raw outputs [N]; what it means is `metric`.

        Args:
            raw: Outputs of `predict_raw`.
            fine_tuned: After fine-tuning the sub-network, instead of with the
                supernet's weights as they are.

        Raises:
            ConfigError: Nothing is known of fine-tuned sub-networks of the space.
        """
        calibration = self.info.fine_tuned if fine_tuned else self.info.straight
        if calibration is None:
            if fine_tuned:
                raise ConfigError(
                    f"the accuracy of fine-tuned sub-networks of {self.space.name} is not known",
                    hint="leave out --fine-tuned",
                )
            return 100.0 * raw
        return calibration.slope * 100.0 * raw + calibration.intercept_percent

    def _predict_chunk(self, population: Population) -> NDArray[np.float64]:
        num, first_anchor = len(population), self._num_indicators
        resolution = population[:, self._resolution_column]
        lower, toward = self._lower_anchor[resolution], self._toward_upper[resolution]
        (between,) = toward.nonzero()
        features = np.empty(
            (num + len(between), first_anchor + len(self.anchors)), dtype=np.float32
        )
        self._write_features(features[:num], population, lower)
        if len(between):
            features[num:] = features[between]
            rows = np.arange(num, len(features))
            features[rows, first_anchor + lower[between]] = 0.0
            features[rows, first_anchor + lower[between] + 1] = 1.0
        outputs = self._networks[0](features).astype(np.float64)
        for network in self._networks[1:]:
            outputs += network(features)
        outputs /= len(self._networks)
        raw = outputs[:num]
        if len(between):
            raw[between] += toward[between] * (outputs[num:] - raw[between])
        return raw

    def _write_features(
        self, features: NDArray[np.float32], population: Population, lower: NDArray[np.intp]
    ) -> None:
        """Indicators [N, inputs of the rewritten networks]: see `_input_map`."""
        canonical = self.space.canonicalize(population.copy())
        width = canonical.shape[1]
        for block, start in enumerate(range(0, self._num_indicators, width)):
            np.equal(canonical, block + 1, out=features[:, start : start + width])
        anchors = np.arange(len(self.anchors))
        np.equal(lower[:, None], anchors, out=features[:, self._num_indicators :])


def _input_map(
    path: Path, info: PredictorInfo, space: SearchSpace
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """How a predictor's inputs follow from a canonical row, as an affine map.

    The row's indicators are, for each choice index from 1 on, one number for
    each dimension that says whether it took that choice, and then one for each
    anchor. Index 0 needs none: it is what remains, and where a position is
    inactive its gating dimension says so.

    Returns:
        Matrix [indicators, inputs] and offset [inputs].
    """
    num_dimensions = len(space.dimensions)
    elastic = [d for d in space.dimensions if d.name != "resolution"]
    num_blocks = max(len(d.choices) for d in elastic) - 1
    num_indicators = num_blocks * num_dimensions
    matrix = np.zeros((num_indicators + len(info.anchors), info.num_inputs), dtype=np.float32)
    offset = np.zeros(info.num_inputs, dtype=np.float32)
    start = 0
    for name, positions, choices in info.inputs:
        columns = space.columns(name) if any(d.name == name for d in elastic) else []
        if len(columns) != positions:
            raise CorruptFileError(
                f"{path} does not fit space {space.name}: wanted {len(columns)} positions of "
                f"{name}, got {positions}"
            )
        for column in columns:
            dimension = space.dimensions[column]
            unknown = [c for c in dimension.choices if c not in choices]
            if unknown:
                raise CorruptFileError(
                    f"{path} does not fit space {space.name}: {name} wanted "
                    f"{list(dimension.choices)}, got {list(choices)}"
                )
            inputs = [start + choices.index(c) for c in dimension.choices]
            for index in range(1, len(inputs)):
                matrix[(index - 1) * num_dimensions + column, inputs[index]] += 1.0
                matrix[(index - 1) * num_dimensions + column, inputs[0]] -= 1.0
            gate = dimension.gate
            if gate is None or gate.minimum == 0:
                offset[inputs[0]] += 1.0
            else:
                for index in range(gate.minimum, len(space.dimensions[gate.dimension].choices)):
                    row = (index - 1) * num_dimensions + gate.dimension
                    matrix[row, inputs[0]] += 1.0
            start += len(choices)
    matrix[num_indicators:, start:] = np.eye(len(info.anchors), dtype=np.float32)
    return matrix, offset


def _rewrite(network: Network, matrix: NDArray[np.float32], offset: NDArray[np.float32]) -> Network:
    """The same network as a function of the indicators of `_input_map`."""
    first = (matrix.astype(np.float64) @ network.weights[0]).astype(np.float32)
    bias = (network.biases[0] + offset.astype(np.float64) @ network.weights[0]).astype(np.float32)
    linear = (matrix.astype(np.float64) @ network.linear).astype(np.float32)
    last = (network.biases[-1] + offset.astype(np.float64) @ network.linear).astype(np.float32)
    return Network(
        weights=(first, *network.weights[1:]),
        biases=(bias, *network.biases[1:-1], last),
        linear=linear,
    )
