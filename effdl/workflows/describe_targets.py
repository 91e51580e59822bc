"""What is known of targets: devices, batch sizes, and how good their latencies are."""

from dataclasses import dataclass
from typing import Any

import msgspec

from effdl.errors import CorruptFileError
from effdl.targets.block_model import BlockModel
from effdl.targets.calibration import Calibration
from effdl.targets.host import describe_host
from effdl.targets.latency_model import load_latency_model, table_batch_sizes
from effdl.targets.latency_table import LatencyTable
from effdl.targets.store import MeasurementStore, default_store_path
from effdl.targets.target import Target, list_targets, load_target

__all__ = ["TargetSummary", "describe_latencies", "summarise_targets"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSummary:
    """One line about a target.

    Attributes:
        target: The target.
        latency_source: Where its latencies come from; None: it has none.
        batch_sizes: Batch sizes it has a table or model of; empty: any.
    """

    target: Target
    latency_source: str | None
    batch_sizes: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain members, ready for JSON."""
        target = self.target
        return {
            "name": target.name,
            "device": target.device,
            "kind": target.kind,
            "runtime": target.runtime,
            "is_local": target.is_local,
            "default_batch_size": target.default_batch_size,
            "batch_sizes": list(self.batch_sizes),
            "latency_source": self.latency_source,
        }


def summarise_targets() -> tuple[tuple[TargetSummary, ...], tuple[CorruptFileError, ...]]:
    """Every target by name, and what is wrong with descriptors that cannot be read."""
    summaries, broken = [], []
    for name in list_targets():
        try:
            target = load_target(name)
        except CorruptFileError as error:
            broken.append(error)
            continue
        tables = table_batch_sizes(target)
        if target.is_local:
            profiles = describe_profiles(target)
            source = "measured" if profiles else None
            tables = sorted({profile["batch_size"] for profile in profiles})
        elif any(path.suffix == ".jsonl" for path in tables.values()):
            source = "measured"
        else:
            source = "fitted" if tables else "estimated" if target.peak_flops_per_s else None
        summaries.append(
            TargetSummary(target=target, latency_source=source, batch_sizes=tuple(tables))
        )
    return tuple(summaries), tuple(broken)


def describe_latencies(target: Target) -> list[dict[str, Any]]:
    """For each batch size of a target, where its latencies come from and how good they are.

    Raises:
        CorruptFileError: A table or model is malformed.
    """
    if target.is_local:
        return describe_profiles(target)
    batch_sizes = list(table_batch_sizes(target))
    if not batch_sizes and target.peak_flops_per_s:
        batch_sizes = [target.default_batch_size]
    described = []
    for batch_size in batch_sizes:
        model = load_latency_model(target, batch_size=batch_size)
        facts: dict[str, Any] = {
            "batch_size": batch_size,
            "latency_source": model.source,
            "runtime": model.runtime,
            "interval_percent": model.interval_percent,
        }
        if isinstance(model, BlockModel):
            kept = ("space", "num_samples", "cv_mape_percent", "cv_spearman", "origin", "licence")
            facts |= {name: msgspec.to_builtins(getattr(model, name)) for name in kept}
        elif isinstance(model, LatencyTable):
            facts |= {
                "num_entries": len(model.entries),
                "resolutions": list(model.resolutions),
                "origin": model.header.origin,
                "licence": model.header.licence,
            }
        described.append(facts)
    return described


def describe_profiles(target: Target) -> list[dict[str, Any]]:
    """What the store has of a local target: one row a space, batch size, runtime, protocol.

    Raises:
        CorruptFileError: The store is damaged.
    """
    path = default_store_path()
    if not path.exists():
        return []
    fingerprint = describe_host().fingerprint
    with MeasurementStore(path) as store:
        found = store.read_every_calibration()
    rows = []
    for setting, name, fit in found:
        is_processor = setting.device == fingerprint
        if is_processor != (target.kind == "cpu") or (
            not is_processor and not setting.runtime.startswith("torch")
        ):
            continue
        calibration = msgspec.json.decode(fit, type=Calibration)
        space, _, resolutions = name.rpartition("@")
        rows.append(
            {
                "batch_size": setting.batch_size,
                "latency_source": "measured",
                "runtime": f"{setting.runtime} {setting.runtime_version}",
                "interval_percent": calibration.interval_percent + calibration.slow_percent,
                "space": space,
                "resolutions": resolutions,
                "dtype": setting.dtype,
                "protocol": setting.protocol,
                "num_samples": calibration.num_networks,
                "cv_mape_percent": calibration.mape_percent,
            }
        )
    return sorted(rows, key=lambda row: (row["space"], row["batch_size"], row["runtime"]))
