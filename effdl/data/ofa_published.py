"""Readers of what others published about the accuracy of Once-for-All's sub-networks.

Neither file is shipped. The official accuracy predictor of width 1.2 comes from
mit-han-lab/once-for-all (copy: gatech-sysml/CompOFA, Apache-2.0): 128 inputs,
three hidden ReLU layers of 400, one output, the fraction of 10,000 held-out
training images. The true ImageNet validation accuracies of 1,730 sub-networks of
width 1.0 come from IntelLabs/DyNAS-T (Apache-2.0).
"""

import csv
import io
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from effdl.errors import ConfigError, CorruptFileError
from effdl.search.space import Population, SearchSpace

__all__ = ["OFFICIAL_BINS", "read_imagenet_top1", "read_official_predictor"]

Layers = tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]

# The official predictor's resolution inputs are bins of 16 pixels from 112 on.
OFFICIAL_BINS = tuple(range(112, 225, 16))

_OFFICIAL_SHAPES = ((128, 400), (400, 400), (400, 400), (400, 1))
_LISTS = ("kernel_size", "expand_ratio", "depth")
_TOP1 = "imagenet_top1_percent"
_MAX_FILE_BYTES = 64 << 20


def read_official_predictor(path: Path) -> Layers:
    """The official predictor's layers: ``(weight [inputs, outputs], bias [outputs])``.

    Raises:
        ConfigError: There is no such file.
        CorruptFileError: It is truncated, holds pickled code, other tensors,
            or values that are not finite.
    """
    from effdl.supernet.ofa_checkpoint import read_tensors

    tensors = {name: tensor.float().numpy() for name, tensor in read_tensors(path).items()}
    names = [f"{2 * i}.{kind}" for i in range(len(_OFFICIAL_SHAPES)) for kind in ("weight", "bias")]
    if sorted(tensors) != sorted(names):
        raise CorruptFileError(
            f"{path} is not the official accuracy predictor: wanted tensors {', '.join(names)}, "
            f"got {', '.join(sorted(tensors)[:10])}"
        )
    layers = []
    for i, (num_inputs, num_outputs) in enumerate(_OFFICIAL_SHAPES):
        weight, bias = tensors[f"{2 * i}.weight"], tensors[f"{2 * i}.bias"]
        if weight.shape != (num_outputs, num_inputs) or bias.shape != (num_outputs,):
            raise CorruptFileError(
                f"{path}: layer {i} wanted {num_outputs} x {num_inputs}, got "
                f"{' x '.join(map(str, weight.shape))} and {' x '.join(map(str, bias.shape))}"
            )
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise CorruptFileError(f"{path}: layer {i} holds values that are not finite")
        layers.append((np.ascontiguousarray(weight.T), bias))
    return tuple(layers)


def read_imagenet_top1(path: Path, space: SearchSpace) -> tuple[Population, NDArray[np.float64]]:
    """Sub-networks and their true ImageNet validation top-1, from CSV.

    Columns ``kernel_size``, ``expand_ratio`` and ``depth`` are lists joined by
    hyphens, unit-major; ``resolution`` is in pixels; ``imagenet_top1_percent``.

    Returns:
        Canonical rows [N, num_dimensions] of ``space``, and top-1 in percent [N].

    Raises:
        ConfigError: The file cannot be opened.
        CorruptFileError: A column is missing, or a row is malformed or not of
            the space; the message names the line.
    """
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise CorruptFileError(f"{path} is too large: wanted at most {_MAX_FILE_BYTES} bytes")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise CorruptFileError(f"{path} is not UTF-8 text: {error}") from error
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows, top1_percent = [], []
    try:
        missing = [c for c in (*_LISTS, "resolution", _TOP1) if c not in (reader.fieldnames or ())]
        if missing:
            raise CorruptFileError(f"{path}, line 1: no column {', '.join(missing)}")
        for row in reader:
            if None in row or None in row.values():
                raise CorruptFileError(f"{path}, line {reader.line_num}: wrong number of values")
            rows.append(_encode(path, reader.line_num, row, space))
            top1_percent.append(_percent(path, reader.line_num, row[_TOP1]))
    except csv.Error as error:
        raise CorruptFileError(f"{path} is not CSV: {error}") from error
    if not rows:
        raise CorruptFileError(f"{path} has no rows")
    return np.stack(rows), np.array(top1_percent)


def _encode(path: Path, line: int, row: dict[str, str], space: SearchSpace) -> NDArray[np.uint8]:
    try:
        config: dict[str, object] = {n: [int(v) for v in row[n].split("-")] for n in _LISTS}
        return space.encode({**config, "resolution": int(row["resolution"])})
    except (ValueError, ConfigError) as error:
        raise CorruptFileError(f"{path}, line {line}: {error}") from error


def _percent(path: Path, line: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value <= 100.0:
        raise CorruptFileError(
            f"{path}, line {line}, column {_TOP1}: wanted a percentage, got {text[:60]!r}"
        )
    return value
