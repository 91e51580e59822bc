"""Weights in a safetensors file, with what they are beside them.

The file's metadata holds one JSON object under ``effdl``: ``schema_version``,
``kind``, ``space``, ``sha256`` (over names, types, shapes and bytes of all
tensors in the order of their names), ``created_by`` and ``notes``.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

import effdl
from effdl.errors import ConfigError, CorruptFileError
from effdl.files import write_atomically

__all__ = ["describe_mismatch", "listed", "load_weights", "non_finite", "save_weights"]

_SCHEMA_VERSION = 1
_KEY = "effdl"
_NAMES_SHOWN = 5


def save_weights(
    module: nn.Module,
    path: Path,
    *,
    kind: str,
    space: str,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write a module's parameters and buffers, whole or not at all.

    Args:
        module: The module.
        path: The file to write; an existing one is replaced.
        kind: What the module is, such as ``"supernet"``.
        space: Name of its space.
        notes: Further facts, such as ``source`` and ``licence``.

    Raises:
        CorruptFileError: A tensor holds NaN or infinite values.
        OutputError: The file cannot be written.
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in module.state_dict().items()}
    if bad := non_finite(tensors):
        raise CorruptFileError(f"weights for {path} hold NaN or infinite values: {listed(bad)}")
    about = {
        "schema_version": _SCHEMA_VERSION,
        "kind": kind,
        "space": space,
        "sha256": _digest(tensors),
        "created_by": f"effdl {effdl.__version__}",
        "notes": dict(notes or {}),
    }
    # One member only: safetensors writes several in no fixed order.
    write_atomically(path, save(tensors, {_KEY: json.dumps(about)}))


def load_weights(module: nn.Module, path: Path, *, kind: str, space: str) -> Mapping[str, Any]:
    """Fill a module with the weights of a file that `save_weights` wrote.

    Args:
        module: The module; it is left as it was when an error is raised.
        path: The file.
        kind: What the file must hold.
        space: Name of the space that it must be of.

    Returns:
        The file's JSON metadata.

    Raises:
        ConfigError: There is no such file.
        CorruptFileError: The file is truncated or altered, of another kind,
            version or space, or holds NaN or infinite values.
    """
    about, tensors = _read(path)
    version = about.get("schema_version")
    if version != _SCHEMA_VERSION:
        raise CorruptFileError(
            f"{path} has schema version {version!r}: wanted {_SCHEMA_VERSION}",
            hint="write it again with this version of effdl, or install the version that wrote it",
        )
    wanted = module.state_dict(keep_vars=True)
    mismatch = describe_mismatch(
        {name: tuple(t.shape) for name, t in wanted.items()},
        {name: tuple(t.shape) for name, t in tensors.items()},
    )
    got = about.get("kind"), about.get("space")
    if got != (kind, space) or mismatch:
        raise CorruptFileError(
            f"{path} does not fit: wanted a {kind} of space {space}, got a {got[0]} of space "
            f"{got[1]}" + (f" ({mismatch})" if mismatch else ""),
            hint="name the space that the weights are of with --space",
        )
    if about.get("sha256") != _digest(tensors):
        raise CorruptFileError(f"{path} is corrupt: its weights do not have the SHA-256 it states")
    if bad := non_finite(tensors):
        raise CorruptFileError(f"{path} holds NaN or infinite values: {listed(bad)}")
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(tensors[name])
    return about


def describe_mismatch(
    wanted: Mapping[str, tuple[int, ...]], got: Mapping[str, tuple[int, ...]]
) -> str:
    """Which tensors are missing, unexpected or of another shape; empty if none.

    Args:
        wanted: Shape of each tensor that is needed.
        got: Shape of each tensor that is there.
    """
    misshaped = [
        f"{name} wanted {list(shape)}, got {list(got[name])}"
        for name, shape in wanted.items()
        if name in got and got[name] != shape
    ]
    parts = (
        ("missing", sorted(wanted.keys() - got.keys())),
        ("unexpected", sorted(got.keys() - wanted.keys())),
        ("of another shape", misshaped),
    )
    return "; ".join(f"{len(names)} {what}: {listed(names)}" for what, names in parts if names)


def listed(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    every = list(names)
    more = len(every) - _NAMES_SHOWN
    return ", ".join(every[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def non_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinite values."""
    return [name for name, t in tensors.items() if not torch.isfinite(t).all()]


def _read(path: Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(_KEY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise ConfigError(f"no such file: {path}") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptFileError(f"{path} cannot be read as safetensors: {error}") from error
    if not isinstance(about, dict):
        raise CorruptFileError(
            f"{path} was not written by effdl: wanted the metadata member {_KEY!r}, got none",
            hint="effdl import-checkpoint FILE.pth -o FILE.safetensors reads Once-for-All's files",
        )
    return about, tensors


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
