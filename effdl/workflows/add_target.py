"""Make a phone or a board a target of the user's own."""

import msgspec

from effdl.errors import ConfigError
from effdl.targets.connection import Connection, PhoneConnection
from effdl.targets.target import (
    Target,
    check_own_target,
    list_targets,
    user_targets_folder,
    write_target,
)
from effdl.workflows.progress import Progress, no_progress
from effdl.workflows.runtimes import open_runtime

__all__ = ["add_target"]


def add_target(
    name: str,
    connection: Connection,
    *,
    device: str | None = None,
    progress: Progress = no_progress,
) -> Target:
    """Reach a device once, and keep how it was reached as a target.

    Args:
        name: What to call it.
        connection: How it is reached.
        device: The device, as people call it; None: as it calls itself.
        progress: Told how a phone cools down, or heats up.

    Raises:
        ConfigError: The name is taken or is no name, or the connection is of no use.
        TargetUnavailableError: The device cannot be reached.
        BackendUnavailableError: What reaches it is not installed.
        OutputError: The user's folder cannot be written.
    """
    target = Target(
        name=name,
        device=device or "",
        kind="phone" if isinstance(connection, PhoneConnection) else "embedded",
        runtime="unknown",
        description="Added by effdl targets add.",
        connection=connection,
    )
    check_own_target(msgspec.structs.replace(target, device=device or name))
    if name in list_targets():
        raise ConfigError(f"there is a target {name} already", hint="choose another name")
    with open_runtime(target, progress=progress) as runtime:
        reached = msgspec.structs.replace(target, device=runtime.device, runtime=str(runtime.build))
    write_target(user_targets_folder(), reached)
    return reached
