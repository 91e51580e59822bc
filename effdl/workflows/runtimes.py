"""What runs and times networks on a target."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from effdl.errors import ConfigError, TargetUnavailableError
from effdl.files import read_limited
from effdl.targets.connection import BoardConnection, PhoneConnection
from effdl.targets.measure.runtime import MeasurementRuntime
from effdl.targets.target import Target
from effdl.workflows.progress import Progress, no_progress

__all__ = ["RUNTIMES", "open_runtime", "runtime_of"]

RUNTIMES = {"cpu": ("onnxruntime", "openvino", "torch"), "gpu": ("torch",)}
"""Names of the runtimes of a local target, by its kind; the first is the usual one."""

_MAX_TOKEN_BYTES = 1024


def runtime_of(target: Target, name: str | None = None) -> MeasurementRuntime:
    """A way to measure on this machine.

    Args:
        target: A local target.
        name: One of its runtimes; None: the usual one.

    Raises:
        TargetUnavailableError: The target is not in this machine.
        ConfigError: The target has no such runtime.
        BackendUnavailableError: The runtime is not installed.
    """
    known = RUNTIMES.get(target.kind, ()) if target.is_local else ()
    if not known:
        raise TargetUnavailableError(
            f"target {target.name} cannot be measured from here: wanted a device of this "
            "machine, or one that a connection is known of",
            hint="effdl profile --target cpu, or effdl targets add",
        )
    name = name or known[0]
    if name not in known:
        raise ConfigError(
            f"target {target.name} has no runtime {name!r}: wanted one of {', '.join(known)}",
            hint=f"--runtime {known[0]}",
        )
    if name == "onnxruntime":
        from effdl.targets.measure.onnxruntime import OnnxRuntime

        return OnnxRuntime()
    if name == "openvino":
        from effdl.targets.measure.openvino import OpenVinoRuntime

        return OpenVinoRuntime()
    from effdl.targets.measure.torch_runtime import TorchRuntime

    return TorchRuntime(processor="cuda" if target.kind == "gpu" else "cpu")


@contextmanager
def open_runtime(
    target: Target, name: str | None = None, *, progress: Progress = no_progress
) -> Iterator[MeasurementRuntime]:
    """A way to measure on a target, here or where its descriptor says.

    Args:
        target: A local target, or one with a connection.
        name: One of a local target's runtimes; None: the usual one.
        progress: Told how a phone cools down, or heats up.

    Raises:
        TargetUnavailableError: The target cannot be measured from here, or is not there.
        ConfigError: The target has no such runtime, or its connection is of no use.
        BackendUnavailableError: The runtime, or what reaches the target, is not installed.
    """
    connection = target.connection
    if connection is not None and name is not None:
        raise ConfigError(
            f"target {target.name} has the one runtime of its connection: got {name!r}",
            hint="leave out --runtime",
        )
    match connection:
        case None:
            yield runtime_of(target, name)
        case PhoneConnection():
            from effdl.targets.measure.adb import open_phone
            from effdl.targets.measure.adb_heat import Heat

            with open_phone(
                Path(connection.program),
                libraries=[Path(library) for library in connection.libraries],
                serial=connection.serial,
                regime=connection.regime,
                heat=Heat(progress=progress),
            ) as phone:
                yield phone
        case BoardConnection():
            from effdl.targets.measure.rpc_board import DAEMON_KEY, Board
            from effdl.targets.measure.tvm_rpc import TvmRpcRuntime
            from effdl.targets.measure.tvm_target import TvmTarget

            token = ""
            if connection.token_file is not None:
                read = read_limited(Path(connection.token_file), _MAX_TOKEN_BYTES)
                token = read.decode(errors="replace").strip()
            board = Board(
                address=connection.address,
                token=token,
                key=connection.key or DAEMON_KEY,
                tracker=connection.tracker,
                device=target.device,
            )
            triple = connection.triple
            compiled_for = None if triple is None else TvmTarget(triple=triple)
            with TvmRpcRuntime(board, target=compiled_for) as runtime:
                yield runtime
