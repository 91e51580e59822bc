"""What to export: a network of a search's run folder, or a configuration file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from effdl.errors import ConfigError, CorruptFileError
from effdl.files import read_limited

__all__ = ["ExportSource", "read_export_source"]

_MAX_JSON_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSource:
    """What a run folder or a configuration file says of the network to export.

    Attributes:
        config: The configuration as it was written.
        space: Name of its space, where the file says so.
        target_info: What it was chosen for, for the metadata.
    """

    config: Mapping[str, object]
    space: str | None
    target_info: Mapping[str, str]


def read_export_source(path: Path, *, rank: int = 1) -> ExportSource:
    """Read a run folder of ``effdl search``, its result.json, or a configuration file.

    Args:
        path: The folder or JSON file.
        rank: Which network of a run: 1 is the best. Ranks beyond the run's
            ``top`` go on through its Pareto front by falling accuracy.

    Raises:
        ConfigError: There is no such file, the run has no network of that
            rank, or a configuration file was given a rank.
        CorruptFileError: The JSON is malformed or of another kind.
    """
    file = path / "result.json" if path.is_dir() else path
    try:
        content = msgspec.json.decode(read_limited(file, _MAX_JSON_BYTES))
    except (msgspec.DecodeError, RecursionError) as error:
        raise CorruptFileError(f"{file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CorruptFileError(f"{file} wanted a JSON object, got {type(content).__name__}")
    if path.is_dir() or "best" in content:
        return _from_run(file, content, rank)
    if rank != 1:
        raise ConfigError(f"rank {rank} has no effect: {file} holds one configuration")
    config = content.get("config", content)
    if not isinstance(config, dict):
        raise CorruptFileError(f"{file} wanted a configuration, got {type(config).__name__}")
    return ExportSource(config=config, space=_text_or_none(content.get("space")), target_info={})


class _Accuracy(msgspec.Struct):
    value: float


class _Network(msgspec.Struct):
    config: dict[str, int | float | list[int | float]]
    predicted_latency_ms: float | None = None
    measured_latency_ms: float | None = None
    accuracy: _Accuracy | None = None

    def accuracy_percent(self) -> float:
        return float("-inf") if self.accuracy is None else self.accuracy.value


class _Target(msgspec.Struct):
    name: str
    device: str
    batch_size: int
    latency_source: str
    runtime: str | None = None


class _Run(msgspec.Struct):
    schema_version: int
    target: _Target
    best: _Network
    pareto_front: list[_Network]
    space: str | None = None
    top: list[_Network] = []


def _from_run(file: Path, content: dict[str, Any], rank: int) -> ExportSource:
    try:
        run = msgspec.convert(content, type=_Run)
    except msgspec.ValidationError as error:
        raise CorruptFileError(f"{file} is not the result of a search: {error}") from error
    if run.schema_version != 1:
        raise CorruptFileError(f"{file} wanted schema version 1, got {run.schema_version}")
    networks = run.top or [run.best]
    front = sorted(run.pareto_front, key=_Network.accuracy_percent, reverse=True)
    taken = [network.config for network in networks]
    networks += [network for network in front if network.config not in taken]
    if not 1 <= rank <= len(networks):
        raise ConfigError(f"rank wanted 1 to {len(networks)} for {file}, got {rank}")
    network = networks[rank - 1]
    facts = {
        "target": run.target.name,
        "device": run.target.device,
        "runtime": run.target.runtime,
        "batch_size": run.target.batch_size,
        "latency_source": run.target.latency_source,
        "predicted_latency_ms": network.predicted_latency_ms,
        "measured_latency_ms": network.measured_latency_ms,
    }
    info = {
        name: f"{value:.6g}" if isinstance(value, float) else str(value)
        for name, value in facts.items()
        if value is not None
    }
    return ExportSource(config=network.config, space=run.space, target_info=info)


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) else None
