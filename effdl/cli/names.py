"""Names on the command line become objects here, and only here.

The lists of names are plain text, so that shells complete them without loading
anything heavy; a test holds them equal to what the packages know.
"""

from typing import TYPE_CHECKING

import click

from effdl.errors import ConfigError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from effdl.distributed.executor import Executor
    from effdl.models.mobilenet_v3.space import MobileNetV3Space
    from effdl.targets.measure.runtime import MeasurementRuntime
    from effdl.targets.target import Target

__all__ = [
    "ALGORITHM_NAMES",
    "DEFAULT_SPACE_NAME",
    "EFFORT_NAMES",
    "OPS_NAMES",
    "RUNTIME_NAMES",
    "SPACE_NAMES",
    "TARGET_ALIASES",
    "resolve_cluster",
    "resolve_runtime",
    "resolve_space",
    "resolve_target",
    "target_names",
]

DEFAULT_SPACE_NAME = "ofa-mbv3-w1.2"
SPACE_NAMES = ("ofa-mbv3-w1.0", "ofa-mbv3-w1.2")
EFFORT_NAMES = ("fast", "standard", "thorough")
ALGORITHM_NAMES = ("evolution", "random", "local", "restarts", "pareto")
OPS_NAMES = ("kernels",)
RUNTIME_NAMES = ("onnxruntime", "openvino", "torch")
TARGET_ALIASES = ("gpu", "mobile")


def target_names() -> list[str]:
    """Every name that ``--target`` takes; reads folder names only."""
    from effdl.targets.target import list_targets

    return sorted({*list_targets(), *TARGET_ALIASES})


def resolve_target(name: str) -> "Target":
    """The target of a name; says on stderr what an alias stands for.

    Raises:
        UnknownNameError: No target has that name.
    """
    from effdl import load_target

    target = load_target(name)
    if target.name != name:
        click.echo(f"target {name}: {target.name} ({target.device})", err=True)
    return target


def resolve_space(name: str) -> "MobileNetV3Space":
    """The search space of a name.

    Raises:
        UnknownNameError: No space has that name.
    """
    from effdl import load_space

    return load_space(name)


def resolve_runtime(target: "Target", name: str | None) -> "MeasurementRuntime | None":
    """What runs networks on a target; None where none is named.

    Raises:
        ConfigError: The target has no such runtime.
        BackendUnavailableError: The runtime is not installed.
    """
    if name is None:
        return None
    if not target.is_local:
        raise ConfigError(
            f"--runtime has no effect on target {target.name}, which is not this machine",
            hint="leave out --runtime",
        )
    from effdl.workflows.runtimes import runtime_of

    return runtime_of(target, name)


def resolve_cluster(address: str | None) -> "AbstractContextManager[Executor | None]":
    """The Dask cluster of an address, to be let go of at the end; None: no cluster.

    Raises:
        BackendUnavailableError: Dask is not installed.
    """
    from contextlib import nullcontext

    if address is None:
        return nullcontext()
    from effdl.distributed.dask_cluster import DaskExecutor

    return DaskExecutor(address)
