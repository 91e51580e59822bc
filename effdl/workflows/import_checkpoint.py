"""Once-for-All's published checkpoints into effdl's own weights files."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from effdl.errors import CorruptFileError
from effdl.models.mobilenet_v3.network import MobileNetV3Supernet, save_supernet
from effdl.models.mobilenet_v3.space import MobileNetV3Space
from effdl.models.spaces import SPACES
from effdl.supernet.checkpoint import describe_mismatch, listed, non_finite
from effdl.supernet.ofa_checkpoint import match_names, read_tensors

__all__ = ["ImportedCheckpoint", "fit_supernet", "import_checkpoint"]

_MATRIX = "_matrix"
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedCheckpoint:
    """What came out of a checkpoint.

    Attributes:
        source: The file that was read.
        output: The weights file that was written.
        space: Name of the space that the weights are of.
        loaded: Tensors taken from the checkpoint.
        missing: Tensors that it does not have and need not have: the
            kernel-transformation matrices of a stage before elastic kernels
            (left at the identity) and counters of training batches (0).
        unexpected: Tensors of the checkpoint that were not used; always empty,
            because such a checkpoint is refused.
        notes: What a user should know of the result.
    """

    source: Path
    output: Path
    space: str
    loaded: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    notes: tuple[str, ...]


def import_checkpoint(
    source: Path,
    output: Path,
    *,
    spaces: Iterable[Callable[[], MobileNetV3Space]] = tuple(SPACES.values()),
) -> ImportedCheckpoint:
    """Read a checkpoint of Once-for-All's MobileNetV3 supernet, write it as safetensors.

    Every published naming and progressive-shrinking stage is understood, and
    the width follows from the tensors' shapes. All tensors are carried over,
    running statistics too.

    Args:
        source: A .pth file.
        output: The safetensors file to write.
        spaces: Makers of the spaces that it may be of.

    Raises:
        ConfigError: There is no such file.
        CorruptFileError: The file is truncated, holds pickled code, NaN or
            infinite values, or tensors that fit none of the spaces.
        OutputError: The output cannot be written.
    """
    supernet, missing = fit_supernet(read_tensors(source), source=source, spaces=spaces)
    notes = _notes(missing)
    save_supernet(
        supernet,
        output,
        notes={
            "source": source.name,
            "source_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
            "remarks": "; ".join(notes),
        },
    )
    return ImportedCheckpoint(
        source=source,
        output=output,
        space=supernet.space.name,
        loaded=len(supernet.state_dict()) - len(missing),
        missing=missing,
        unexpected=(),
        notes=notes,
    )


def fit_supernet(
    tensors: Mapping[str, Tensor],
    *,
    source: Path,
    spaces: Iterable[Callable[[], MobileNetV3Space]] = tuple(SPACES.values()),
) -> tuple[MobileNetV3Supernet, tuple[str, ...]]:
    """The supernet that a checkpoint's tensors fill, and what it went without.

    Args:
        tensors: Tensors by name, in any published naming.
        source: The file that they are from, for messages.
        spaces: Makers of the spaces that they may be of.

    Raises:
        CorruptFileError: The tensors fit none of the spaces, or are NaN,
            infinite or of a wrong number type.
    """
    supernet, tensors = _best_fit([make() for make in spaces], tensors)
    wanted = supernet.state_dict(keep_vars=True)
    missing = tuple(name for name in wanted if name not in tensors)
    dispensable = _dispensable(tensors, missing)
    mismatch = describe_mismatch(
        {name: tuple(t.shape) for name, t in wanted.items() if name not in dispensable},
        {name: tuple(t.shape) for name, t in tensors.items()},
    )
    if mismatch:
        raise CorruptFileError(
            f"{source} is no checkpoint of space {supernet.space.name}: {mismatch}",
            hint="wanted one of Once-for-All's MobileNetV3 supernets of width 1.0 or 1.2",
        )
    wrong = [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point() != wanted[name].is_floating_point()
    ]
    if wrong:
        raise CorruptFileError(f"{source} holds tensors of a wrong number type: {listed(wrong)}")
    if bad := non_finite(tensors):
        raise CorruptFileError(f"{source} holds NaN or infinite values: {listed(bad)}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            wanted[name].copy_(tensor)
    return supernet, missing


def _best_fit(
    spaces: Iterable[MobileNetV3Space], tensors: Mapping[str, Tensor]
) -> tuple[MobileNetV3Supernet, dict[str, Tensor]]:
    """The supernet whose shapes agree with most tensors, and these under its names."""
    fits: list[tuple[int, MobileNetV3Supernet, dict[str, Tensor]]] = []
    for space in spaces:
        supernet = MobileNetV3Supernet(space, seed=None)
        wanted = supernet.state_dict()
        matched = match_names(tensors, wanted)
        agreeing = sum(n in wanted and wanted[n].shape == t.shape for n, t in matched.items())
        fits.append((agreeing, supernet, matched))
    _, supernet, matched = max(fits, key=lambda fit: fit[0])
    return supernet, matched


def _dispensable(tensors: Mapping[str, Tensor], missing: Iterable[str]) -> set[str]:
    """The missing tensors that a whole checkpoint may be without."""
    has_matrices = any(name.endswith(_MATRIX) for name in tensors)
    return {
        name
        for name in missing
        if name.endswith(_COUNTER) or (name.endswith(_MATRIX) and not has_matrices)
    }


def _notes(missing: tuple[str, ...]) -> tuple[str, ...]:
    if any(name.endswith(_MATRIX) for name in missing):
        return (
            "the checkpoint is of a stage before elastic kernels: its kernel-transformation "
            "matrices are identities, and sub-networks with smaller kernels are untrained",
        )
    return ()
