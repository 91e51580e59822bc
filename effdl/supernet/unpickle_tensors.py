"""Child process that turns a .pth file into safetensors, and nothing else.

``python -m effdl.supernet.unpickle_tensors SOURCE DESTINATION`` writes the
tensors of SOURCE and exits with 0, or writes ``{"error": reason}`` to stdout
and exits with 1. It runs no pickled code (PyTorch's restricted unpickler,
without fallback) and limits its own memory, so that a hostile file can neither
act nor fill the machine. `effdl.supernet.ofa_checkpoint` starts it.
"""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import torch
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["limit_memory", "select_tensors"]

# What PyTorch's reader and allocator need beside the tensors themselves.
_SPARE_BYTES = 512 << 20
_TENSOR_COPIES = 4


def limit_memory(num_bytes: int) -> None:
    """Let this process grow by at most ``num_bytes`` of address space (Linux)."""
    statm = Path("/proc/self/statm")
    if sys.platform != "linux" or not statm.exists():
        return
    import resource

    in_use = int(statm.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + num_bytes, in_use + num_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def select_tensors(content: object) -> dict[str, Tensor]:
    """The state dict in a file's content: under ``state_dict``, or the content itself.

    Raises:
        ValueError: It is not a mapping from names to dense tensors.
    """
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not state:
        raise ValueError(f"wanted a mapping from names to tensors, got {type(state).__name__}")
    for name, tensor in state.items():
        dense = isinstance(tensor, Tensor) and tensor.layout == torch.strided
        if not isinstance(name, str) or not dense or tensor.is_quantized or tensor.is_meta:
            raise ValueError(
                f"wanted dense tensors by name, got {type(tensor).__name__} at {name!r}"
            )
    return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}


def _report(kind: type[BaseException], error: BaseException, _trace: TracebackType | None) -> None:
    text = str(error)
    refused = re.search(r"GLOBAL ([\w.]+)", text)
    if refused is not None:
        reason = f"it holds pickled code ({refused[1]}), which effdl never runs"
    elif kind.__name__ == "UnpicklingError":
        reason = "it is not a file of plain tensors"
    elif kind is EOFError:
        reason = "it ends too early"
    elif kind is MemoryError or "allocate memory" in text:
        reason = "it takes too much memory"
    else:
        first_sentence = text.partition("\n")[0].partition(". ")[0]
        reason = f"{kind.__name__}: {first_sentence or 'no reason given'}"
    json.dump({"error": reason[:300]}, sys.stdout)


def _main(source: Path, destination: Path) -> None:
    limit_memory(_SPARE_BYTES + _TENSOR_COPIES * source.stat().st_size)
    content = torch.load(source, map_location="cpu", weights_only=True)
    save_file(select_tensors(content), destination)


if __name__ == "__main__":
    sys.excepthook = _report
    _main(Path(sys.argv[1]), Path(sys.argv[2]))
