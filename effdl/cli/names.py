"""Names on the command line become objects here, and only here.

The lists of names are plain text, so that shells complete them without loading
anything heavy; a test holds them equal to what the packages know.
"""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from effdl.models.mobilenet_v3.space import MobileNetV3Space
    from effdl.targets.target import Target

__all__ = [
    "ALGORITHM_NAMES",
    "DEFAULT_SPACE_NAME",
    "EFFORT_NAMES",
    "SPACE_NAMES",
    "TARGET_ALIASES",
    "resolve_space",
    "resolve_target",
    "target_names",
]

DEFAULT_SPACE_NAME = "ofa-mbv3-w1.2"
SPACE_NAMES = ("ofa-mbv3-w1.0", "ofa-mbv3-w1.2")
EFFORT_NAMES = ("fast", "standard", "thorough")
ALGORITHM_NAMES = ("evolution", "random", "local", "restarts", "pareto")
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
