"""Targets: what a network is compiled for, read from TOML descriptors.

A descriptor names a device and a runtime and may carry figures for an
estimate, each with its source. Shipped descriptors lie beside this module, the
user's own in the user's targets folder.
"""

import ctypes
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import platformdirs

from effdl.errors import ConfigError, CorruptFileError, UnknownNameError
from effdl.files import read_limited, write_atomically
from effdl.targets.connection import Connection
from effdl.targets.host import describe_host

__all__ = [
    "Figure",
    "Target",
    "check_own_target",
    "find_cuda_device",
    "is_shipped_target",
    "list_targets",
    "load_target",
    "read_target",
    "shipped_tables_folder",
    "user_targets_folder",
    "write_target",
]

_MAX_FILE_BYTES = 1 << 20
_SHIPPED = Path(__file__).parent / "descriptors"
_REFERENCE_PHONE = "mobile-note10"
_REFERENCE_GPU = "gpu-titan-rtx"
_ALIASES = ("gpu", "mobile")

_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=2000)]
_Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
_BatchSize = Annotated[int, msgspec.Meta(ge=1, le=65536)]
_DataType = Literal["float32", "tf32", "float16", "bfloat16", "int8"]


class Figure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A published or stated figure and where it comes from.

    Attributes:
        value: The figure, positive, in the unit its field names.
        source: The document that states it, or ``"assumption: ..."``.
    """

    value: float
    source: _Text

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.value > 0):
            raise ValueError(f"wanted a positive finite value, got {self.value}")


class Target(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """A device and a runtime that a network is compiled for.

    Attributes:
        name: Its name on the command line.
        device: The device, as people call it.
        kind: What sort of device.
        runtime: What runs networks there.
        description: One or two sentences for people.
        default_batch_size: Batch size when none is asked for.
        is_local: Whether it is in this very machine, to be profiled here.
        connection: How it is reached from here to be profiled; None: it is not.
        peak_flops_per_s: Peak arithmetic by number format, for an estimate.
        memory_bandwidth_bytes_per_s: Peak memory bandwidth, for an estimate.
        launch_overhead_us: Time an operator takes however small it is.
        flops_efficiency: Share of the arithmetic peak that networks reach.
        bandwidth_efficiency: Share of the bandwidth that they reach.
        memory_bytes: Memory of the device.
    """

    name: _Name
    device: _Text
    kind: Literal["cpu", "gpu", "phone", "embedded"]
    runtime: _Text
    description: _Text
    default_batch_size: _BatchSize = 1
    is_local: bool = False
    connection: Connection | None = None
    peak_flops_per_s: dict[_DataType, Figure] = {}
    memory_bandwidth_bytes_per_s: Figure | None = None
    launch_overhead_us: Figure | None = None
    flops_efficiency: Figure | None = None
    bandwidth_efficiency: Figure | None = None
    memory_bytes: Figure | None = None


def user_targets_folder() -> Path:
    """Where the user's own descriptors and fitted models lie.

    ``$EFFDL_HOME/targets`` where that variable is set, else the platform's
    folder for user data. The folder may not exist yet.
    """
    home = os.environ.get("EFFDL_HOME")
    return (Path(home) if home else Path(platformdirs.user_data_dir("effdl"))) / "targets"


def shipped_tables_folder() -> Path:
    """Where the tables and fitted models that come with effdl lie."""
    return Path(__file__).parent / "tables"


def read_target(path: Path) -> Target:
    """Read one descriptor.

    Raises:
        ConfigError: The file cannot be opened.
        CorruptFileError: It is not TOML, has unknown, missing or mistyped
            fields, or a name other than the file's.
    """
    data = read_limited(path, _MAX_FILE_BYTES)
    try:
        target = msgspec.toml.decode(data, type=Target)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptFileError(f"{path} is not a target descriptor: {error}") from error
    if target.name != path.stem:
        raise CorruptFileError(
            f"{path} is not a target descriptor: wanted name {path.stem!r}, got {target.name!r}"
        )
    return target


def check_own_target(target: Target) -> None:
    """Refuse a target that cannot be the user's own.

    Raises:
        ConfigError: A field is out of range, or the name stands for another target.
    """
    try:
        msgspec.convert(msgspec.to_builtins(target), type=Target)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{target.name!r} cannot be a target: {error}") from error
    if is_shipped_target(target.name):
        raise ConfigError(
            f"{target.name!r} is the name of a target that comes with effdl",
            hint="choose another name",
        )


def write_target(folder: Path, target: Target) -> Path:
    """Write the descriptor of a target without figures; the file written.

    Args:
        folder: Where, such as `user_targets_folder()`.
        target: A target whose latencies lie in a table or fitted model.

    Raises:
        ConfigError: The target cannot be the user's own.
        OutputError: The file cannot be written.
    """
    check_own_target(target)
    fields = {name: value for name, value in msgspec.to_builtins(target).items() if value}
    connection = fields.pop("connection", {})
    lines = [*map(_toml_line, fields.items())]
    if connection:
        lines += ["\n[connection]\n", *map(_toml_line, connection.items())]
    path = folder / f"{target.name}.toml"
    write_atomically(path, "".join(lines).encode())
    return path


def _toml_line(field: tuple[str, object]) -> str:
    # A JSON string, number, truth value or list of them means the same in TOML, but for a
    # bare DEL.
    name, value = field
    return f"{name} = {msgspec.json.encode(value).decode()}\n".replace("\x7f", "\\u007f")


def list_targets() -> list[str]:
    """Names of all targets, shipped and the user's own, sorted; aliases are left out."""
    return sorted(_descriptors())


def is_shipped_target(name: str) -> bool:
    """Whether a name, or alias, belongs to effdl itself."""
    return name in {*_ALIASES, *(path.stem for path in _SHIPPED.glob("*.toml"))}


def load_target(name: str) -> Target:
    """The target of a name or alias.

    ``mobile`` is the reference phone. ``gpu`` is this machine's CUDA device, if there
    is one: the user's own target of that device, else ``cuda``. Without one it is the
    reference GPU; compare the result's ``name`` to see which.

    Raises:
        UnknownNameError: No descriptor has that name.
        CorruptFileError: Its descriptor is malformed.
    """
    if name == "mobile":
        name = _REFERENCE_PHONE
    elif name == "gpu":
        device = find_cuda_device()
        if device is None:
            return load_target(_REFERENCE_GPU)
        return _own_target_of(device) or load_target("cuda")
    descriptors = _descriptors()
    if name not in descriptors:
        raise UnknownNameError(
            "target", name, [*descriptors, *_ALIASES], command="effdl targets list"
        )
    target = read_target(descriptors[name])
    if target.is_local:
        device = find_cuda_device() if target.kind == "gpu" else describe_host().name
        return msgspec.structs.replace(target, device=device or target.device)
    return target


def find_cuda_device() -> str | None:
    """Name of this machine's first CUDA device, or None; asks the driver, not torch."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        name = ctypes.create_string_buffer(256)
        device = ctypes.c_int()
        if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
            return None
        if driver.cuDeviceGetName(name, len(name), device):
            return None
    except (OSError, AttributeError):
        return None
    return name.value.decode(errors="replace")


def _descriptors() -> Mapping[str, Path]:
    """Descriptor files by name; a shipped one is never shadowed."""
    files = [*user_targets_folder().glob("*.toml"), *_SHIPPED.glob("*.toml")]
    return {path.stem: path for path in files}


def _own_target_of(device: str) -> Target | None:
    for path in sorted(user_targets_folder().glob("*.toml")):
        target = read_target(path)
        if target.kind == "gpu" and target.device == device:
            return target
    return None
