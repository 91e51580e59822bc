"""Published weights of image networks, by path: reading files, filling modules.

Weights are never shipped with effdl and never downloaded by it.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from effdl.errors import ConfigError, CorruptFileError
from effdl.supernet.checkpoint import describe_mismatch, listed, non_finite
from effdl.supernet.ofa_checkpoint import read_tensors

__all__ = ["fill_module", "load_torchvision_weights", "read_weights"]

# As torch.hub writes it: resnet50-0676ba61.pth holds the first digits of its own SHA-256.
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.(?:pth|pt)$")
_COUNTER = "num_batches_tracked"


def load_torchvision_weights(module: nn.Module, path: Path) -> None:
    """Fill a network with torchvision's weights for it.

    Args:
        module: A network of `effdl.models.resnet` or `effdl.models.mobilenet_v2`; it is
            left as it was when an error is raised.
        path: torchvision's .pth file, or its tensors as .safetensors. Where the name
            carries a part of the SHA-256, as torchvision's do, it is checked.

    Raises:
        ConfigError: There is no such file.
        CorruptFileError: The file is truncated or altered, holds pickled code, NaN or
            infinite values, or other tensors than the network's: all that are missing,
            unexpected or of another shape are counted.
    """
    fill_module(module, read_weights(path), source=path)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Names and tensors of a .pth or .safetensors file; no pickled code is run.

    Raises:
        ConfigError: There is no such file.
        CorruptFileError: The file cannot be read, or is not the one its name says.
    """
    if not path.is_file():
        raise ConfigError(f"no such file: {path}")
    _check_hash(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise CorruptFileError(f"{path} cannot be read as safetensors: {error}") from error
    try:
        return read_tensors(path)
    except CorruptFileError as error:
        raise CorruptFileError(
            error.message, hint="wanted a state dict: names and tensors, as torch.save writes it"
        ) from error


def _check_hash(path: Path) -> None:
    named = _HASH_IN_NAME.search(path.name)
    if named is None:
        return
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(named[1]):
        raise CorruptFileError(
            f"{path} is not the file its name says: wanted a SHA-256 that begins with "
            f"{named[1]}, got {digest[: len(named[1])]}",
            hint="fetch it again; or, if it was changed on purpose, give it another name",
        )


def fill_module(module: nn.Module, tensors: Mapping[str, Tensor], *, source: Path) -> None:
    """Copy tensors into a module's parameters and buffers of the same names.

    Args:
        module: It is left as it was when an error is raised.
        tensors: By name. Counters of training batches may be absent: old files have none.
        source: Where they are from, for messages.

    Raises:
        CorruptFileError: Tensors are missing, unexpected, of another shape or number
            type, or hold NaN or infinite values.
    """
    wanted = module.state_dict(keep_vars=True)
    mismatch = describe_mismatch(
        {n: tuple(t.shape) for n, t in wanted.items() if n in tensors or _COUNTER not in n},
        {n: tuple(t.shape) for n, t in tensors.items()},
    )
    if mismatch:
        raise CorruptFileError(
            f"{source} does not fit a {type(module).__name__} of this shape: {mismatch}"
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
