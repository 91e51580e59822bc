"""Checkpoints that Once-for-All published: reading them safely, and their names.

A file holds ``{"state_dict": ...}`` or the state dict itself. Over the years
its tensors were named ``blocks.1.mobile_inverted_conv.depth_conv.bn.bn.weight``
or ``blocks.1.conv.depth_conv.bn.weight``, from several processes with
``module.`` in front. Source: github.com/mit-han-lab/once-for-all (MIT).
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from effdl.errors import ConfigError, CorruptFileError

__all__ = ["match_names", "plain_name", "read_tensors"]

_CHILD = "effdl.supernet.unpickle_tensors"


def read_tensors(source: Path, *, timeout_s: float = 120.0) -> dict[str, Tensor]:
    """Names and tensors of a .pth file, read in a process of its own.

    That process runs no pickled code and limits its own memory.

    Args:
        source: The file.
        timeout_s: Seconds after which it is given up.

    Raises:
        ConfigError: There is no such file.
        CorruptFileError: The file is truncated, is no checkpoint, holds
            pickled code, or takes too long or too much memory.
    """
    if not source.is_file():
        raise ConfigError(f"no such file: {source}")
    with tempfile.TemporaryDirectory(prefix="effdl-import-") as folder:
        plain = Path(folder) / "tensors.safetensors"
        command = [sys.executable, "-m", _CHILD, str(source.resolve()), str(plain)]
        try:
            done = subprocess.run(  # noqa: S603
                command, capture_output=True, text=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            raise CorruptFileError(f"{source} took more than {timeout_s:g} s to read") from None
        if done.returncode != 0:
            raise CorruptFileError(
                f"{source} cannot be read as a checkpoint: {_reason(done)}",
                hint="wanted one of Once-for-All's files, such as ofa_mbv3_d234_e346_k357_w1.2",
            )
        return load_file(plain)


def _reason(done: "subprocess.CompletedProcess[str]") -> str:
    try:
        return str(json.loads(done.stdout)["error"])
    except (ValueError, KeyError, TypeError):
        last = done.stderr.strip().rpartition("\n")[2]
        return f"its reader stopped with status {done.returncode}" + (f": {last}" if last else "")


def plain_name(name: str) -> str:
    """The one form of a tensor's name that all published variants share."""
    parts = name.removeprefix("module.").replace(".mobile_inverted_conv.", ".conv.").split(".")
    return ".".join(part for part, _ in groupby(parts))


def match_names(tensors: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """The tensors under the names that are wanted, where a variant of the name is.

    Tensors that nothing wants keep their own name.

    Raises:
        CorruptFileError: Two tensors have variants of the same name.
    """
    full_names = {plain_name(name): name for name in wanted}
    matched: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full_name = full_names.get(plain_name(name), name)
        if full_name in matched:
            raise CorruptFileError(f"two tensors are called {full_name}, one of them {name}")
        matched[full_name] = tensor
    return matched
