"""This machine's measurements as a table that can be shipped or sent to others."""

from collections.abc import Sequence
from pathlib import Path

from effdl.errors import TableMismatchError, TargetUnavailableError
from effdl.models.mobilenet_v3.space import MobileNetV3Space
from effdl.targets.host import describe_host
from effdl.targets.latency_table import LatencyEntry, LatencyTable, TableHeader
from effdl.targets.measure.runtime import MeasurementRuntime
from effdl.workflows.profile import load_host_latency_model

__all__ = ["STATISTIC", "export_host_table"]

STATISTIC = "median of whole networks, dealt out to operators"

# A table's entries are positive; the fit may give an operator no time of its own.
_LEAST_MS = 1e-6


def export_host_table(
    spaces: Sequence[MobileNetV3Space],
    target_name: str,
    *,
    runtime: MeasurementRuntime | None = None,
    batch_size: int = 1,
    device: str | None = None,
    origin: str = "effdl profile",
    licence: str = "Apache-2.0",
    store_path: Path | None = None,
) -> LatencyTable:
    """The table of this machine for several spaces, their corrections folded in.

    Args:
        spaces: Profiled here; equal operators must come out equal.
        target_name: Name of the target the table is for.
        runtime: What measured; None: ONNX Runtime on one thread.
        batch_size: Samples in one run.
        device: The machine, as people call it; None: as it calls itself.
        origin: Who measured, when and how.
        licence: Licence of the figures.
        store_path: The store; None: the user's own.

    Raises:
        TargetUnavailableError: A space was not profiled here.
        TableMismatchError: Two spaces share an operator but not its time.
    """
    entries: dict[str, LatencyEntry] = {}
    build = ""
    for space in spaces:
        model = load_host_latency_model(space, batch_size, runtime=runtime, store_path=store_path)
        if model is None:
            raise TargetUnavailableError(
                f"{space.name} was not profiled here at batch size {batch_size}",
                hint=f"effdl profile --target cpu --space {space.name} --batch-size {batch_size}",
            )
        build = model.runtime
        ops = list({op.key: op for slot in space.slots for op in slot.ops}.values())
        for op, milliseconds in zip(ops, model.predict_op_ms(ops).tolist(), strict=True):
            if op.key in entries:
                raise TableMismatchError(
                    f"{space.name} and another space both have {op.key}: "
                    "wanted spaces without common operators, whose corrections differ"
                )
            entries[op.key] = LatencyEntry(key=op.key, latency_ms=max(milliseconds, _LEAST_MS))
    header = TableHeader(
        target=target_name,
        device=device or describe_host().name,
        batch_size=batch_size,
        runtime=build,
        statistic=STATISTIC,
        num_threads=1 if runtime is None else runtime.num_threads,
        dtype="float32" if runtime is None else runtime.dtype,
        origin=origin,
        licence=licence,
    )
    return LatencyTable(header=header, entries=tuple(entries.values()))
