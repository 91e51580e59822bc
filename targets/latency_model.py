"""Where the latency of an operator comes from, whatever the target."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from effdl.errors import ConfigError, TableMismatchError, TargetUnavailableError
from effdl.opspec import OpSpec
from effdl.targets.block_model import BlockModel
from effdl.targets.latency_table import LatencyTable
from effdl.targets.roofline import RooflineModel
from effdl.targets.target import Target, shipped_tables_folder, user_targets_folder

__all__ = ["LatencyModel", "LatencySource", "load_latency_model", "table_batch_sizes", "table_path"]

LatencySource = Literal["measured", "fitted", "interpolated", "estimated"]

_SUFFIX = re.compile(r"-b(\d{1,5})\.jsonl?")


class LatencyModel(Protocol):
    """Gives milliseconds for operators; sums of them are a network's latency."""

    @property
    def source(self) -> LatencySource: ...
    @property
    def device(self) -> str: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def runtime(self) -> str: ...
    @property
    def interval_percent(self) -> float | None:
        """Half-width of the 95 % prediction interval of a whole network, if it is known."""
        ...

    def predict_op_ms(
        self, ops: Sequence[OpSpec], *, resolutions: Sequence[int] | None = None
    ) -> NDArray[np.float64]:
        """Latencies of operators [len(ops)], in milliseconds for the whole batch."""
        ...


def table_path(folder: Path, name: str, batch_size: int, *, fitted: bool) -> Path:
    """File of a target's measured table or fitted model at one batch size."""
    return folder / f"{name}-b{batch_size}.{'json' if fitted else 'jsonl'}"


def table_batch_sizes(target: Target) -> dict[int, Path]:
    """The target's tables and fitted models by batch size; empty for a mere descriptor."""
    found = {}
    for folder in (user_targets_folder(), shipped_tables_folder()):
        for path in folder.glob(f"{target.name}-b*.json*"):
            match = _SUFFIX.fullmatch(path.name.removeprefix(target.name))
            if match:
                found[int(match[1])] = path
    return dict(sorted(found.items()))


def load_latency_model(target: Target, *, batch_size: int | None = None) -> LatencyModel:
    """The latency model of a target: its table, its fitted model, or an estimate.

    Args:
        target: The target. This machine itself has no file here: its table
            lies in the user's store.
        batch_size: Samples in one run; None: the target's default.

    Raises:
        TableMismatchError: There is no table for that batch size.
        TargetUnavailableError: The target is this machine, or was not profiled yet.
        ConfigError: The descriptor has neither table nor figures to estimate from.
        CorruptFileError: A file is malformed.
    """
    if target.is_local:
        raise TargetUnavailableError(
            f"target {target.name} is this machine and has no table yet",
            hint=f"effdl profile --target {target.name}",
        )
    wanted = target.default_batch_size if batch_size is None else batch_size
    if wanted < 1:
        raise ConfigError(f"wanted a batch size of at least 1, got {wanted}")
    tables = table_batch_sizes(target)
    if wanted in tables:
        return _read(tables[wanted], target, wanted)
    if tables:
        nearest = min(tables, key=lambda size: abs(size - wanted))
        raise TableMismatchError(
            f"target {target.name} has no latencies at batch size {wanted}: "
            f"wanted one of {', '.join(map(str, tables))}",
            hint=f"--batch-size {nearest}",
        )
    if target.connection is not None:
        raise TargetUnavailableError(
            f"target {target.name} has no table yet",
            hint=f"effdl profile --target {target.name}",
        )
    return RooflineModel.of_target(target, batch_size=wanted)


def _read(path: Path, target: Target, batch_size: int) -> LatencyModel:
    if path.suffix == ".jsonl":
        table = LatencyTable.read(path)
        named, size = table.header.target, table.batch_size
    else:
        table = BlockModel.read(path)
        named, size = table.target, table.batch_size
    if (named, size) != (target.name, batch_size):
        raise TableMismatchError(
            f"{path}: wanted the latencies of {target.name} at batch size {batch_size}, "
            f"got those of {named} at {size}"
        )
    return table
