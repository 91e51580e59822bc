"""Hardware-aware efficient deep learning.

The most accurate sub-network that meets a latency on a described target, as a
verified ONNX file. The command line is ``effdl``; every verb is a function of
`effdl.workflows` that takes objects, which `load_target` and `load_space` make.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from effdl.models.spaces import load_space
    from effdl.targets.target import load_target

__all__ = ["__version__", "load_space", "load_target"]

__version__ = "0.1.0"

# Found on first use: `import effdl` and `effdl --help` stay light.
_HOMES = {"load_space": "effdl.models.spaces", "load_target": "effdl.targets.target"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
