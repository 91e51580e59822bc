"""Profile one ONNX file on this machine: latency, time of each node, memory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from effdl.errors import ConfigError, TargetUnavailableError, UnstableMeasurementError
from effdl.targets.host import Noise, describe_host, find_runtime, read_noise
from effdl.targets.measure.isolated import NodeTime, time_files
from effdl.targets.measure.onnxruntime import NUM_THREADS
from effdl.targets.target import Target
from effdl.targets.timing import Timing
from effdl.workflows.progress import Progress, no_progress

__all__ = ["ModelProfile", "check_measurable", "profile_model"]

_BUDGET_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProfile:
    """What one file takes on this machine.

    Attributes:
        path: The file.
        device: This machine.
        runtime: What ran it.
        batch_size: Samples in one run.
        num_threads: Threads inside an operator.
        timing: Of one forward pass of the whole batch.
        nodes: Time of each node after the runtime's optimisations, slowest first;
            the runtime's own clock adds a little to each.
        peak_memory_bytes: Resident memory that loading and running it took.
        noise: Of the machine before measuring.
    """

    path: Path
    device: str
    runtime: str
    batch_size: int
    num_threads: int
    timing: Timing
    nodes: tuple[NodeTime, ...]
    peak_memory_bytes: int
    noise: Noise

    def to_json(self) -> dict[str, Any]:
        """The object of the contract, without ``schema_version``."""
        return {
            "path": str(self.path),
            "device": self.device,
            "runtime": self.runtime,
            "batch_size": self.batch_size,
            "num_threads": self.num_threads,
            "latency_ms": latency_json(self.timing),
            "nodes": msgspec.to_builtins(self.nodes),
            "peak_memory_bytes": self.peak_memory_bytes,
            "noise": msgspec.to_builtins(self.noise),
        }


def latency_json(timing: Timing) -> dict[str, Any]:
    """A timing as the contract has it, in milliseconds."""
    return {
        "p20": timing.p20_ms,
        "p50": timing.median_ms,
        "p95": timing.p95_ms,
        "interval_percent": timing.interval_percent,
        "num_samples": timing.num_samples,
        "unstable": timing.unstable,
    }


def check_measurable(target: Target, batch_size: int | None) -> None:
    """Refuse a target that cannot be measured from here, or no batch at all.

    Raises:
        TargetUnavailableError: The target is not this machine's processor.
        ConfigError: The batch size is below 1.
    """
    if not target.is_local or target.kind != "cpu":
        raise TargetUnavailableError(
            f"target {target.name} cannot be measured from here: wanted this machine's processor",
            hint="use --target cpu",
        )
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"wanted a batch size of at least 1, got {batch_size}")


def profile_model(
    target: Target,
    path: Path,
    *,
    batch_size: int | None = None,
    num_threads: int = NUM_THREADS,
    budget_s: float | None = None,
    strict: bool = False,
    progress: Progress = no_progress,
) -> ModelProfile:
    """Time an ONNX file in a child process, on made inputs.

    Args:
        target: This machine.
        path: The file; it may be damaged or hostile.
        batch_size: Size of a first dimension that the file leaves free; None: 1.
        num_threads: Threads inside an operator.
        budget_s: Seconds it may measure; None: 60.
        strict: An unstable timing is an error.
        progress: Told that it has begun.

    Raises:
        TargetUnavailableError: The target cannot be measured from here.
        ConfigError: There is no such file, or a number is out of range.
        CorruptFileError: The file is not ONNX, leaves other sizes than the batch
            open, or cannot be run.
        UnstableMeasurementError: With ``strict``, the timing did not settle.
    """
    check_measurable(target, batch_size)
    runtime, noise = str(find_runtime()), read_noise()
    progress(0, 0, f"measuring {path.name}")
    answer = time_files(
        (path,),
        batch_size=batch_size,
        num_threads=num_threads,
        budget_s=_BUDGET_S if budget_s is None else budget_s,
    )
    (timing,) = answer.timings
    if strict and timing.unstable:
        raise UnstableMeasurementError(
            f"{path}: the latency did not settle: its interval is "
            f"{timing.interval_percent or 0:.2f} % after {timing.num_rounds} rounds",
            hint="close what else is running and run it again, or leave out --strict",
        )
    return ModelProfile(
        path=path,
        device=describe_host().name,
        runtime=runtime,
        batch_size=answer.batch_size,
        num_threads=num_threads,
        timing=timing,
        nodes=answer.nodes,
        peak_memory_bytes=answer.peak_memory_bytes,
        noise=noise,
    )
