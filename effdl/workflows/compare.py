"""Compare two ONNX files on this machine: which is faster, and do they agree."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from effdl.errors import UnstableMeasurementError
from effdl.targets.host import Noise, describe_host, find_runtime, read_noise
from effdl.targets.measure.isolated import Difference, Ratio, time_files
from effdl.targets.measure.onnxruntime import NUM_THREADS
from effdl.targets.target import Target
from effdl.targets.timing import Timing
from effdl.workflows.profile_model import check_measurable, latency_json
from effdl.workflows.progress import Progress, no_progress

__all__ = ["Comparison", "compare_models"]

_BUDGET_S = 120.0
_STRICT_INTERVAL = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two files, timed in the same rounds.

    Attributes:
        paths: The files.
        device: This machine.
        runtime: What ran them.
        batch_size: Samples in one run.
        timings: Of the first and the second.
        ratio: Latency of the second over the first, with its 95 % interval.
        difference: Between their outputs on the same made inputs.
        noise: Of the machine before measuring.
    """

    paths: tuple[Path, Path]
    device: str
    runtime: str
    batch_size: int
    timings: tuple[Timing, Timing]
    ratio: Ratio
    difference: Difference
    noise: Noise

    @property
    def faster(self) -> Path | None:
        """The faster file, or None where the interval of the ratio contains 1."""
        if self.ratio.high < 1:
            return self.paths[1]
        return self.paths[0] if self.ratio.low > 1 else None

    def to_json(self) -> dict[str, Any]:
        """The object of the contract, without ``schema_version``."""
        return {
            "models": [
                {"path": str(path), "latency_ms": latency_json(timing)}
                for path, timing in zip(self.paths, self.timings, strict=True)
            ],
            "device": self.device,
            "runtime": self.runtime,
            "batch_size": self.batch_size,
            "ratio": msgspec.to_builtins(self.ratio),
            "faster": None if self.faster is None else str(self.faster),
            "output_difference": msgspec.to_builtins(self.difference),
            "noise": msgspec.to_builtins(self.noise),
        }


def compare_models(
    target: Target,
    first: Path,
    second: Path,
    *,
    batch_size: int | None = None,
    num_threads: int = NUM_THREADS,
    budget_s: float | None = None,
    strict: bool = False,
    progress: Progress = no_progress,
) -> Comparison:
    """Time two ONNX files against each other in a child process, on the same made inputs.

    Args:
        target: This machine.
        first: A file; it may be damaged or hostile.
        second: Another, whose inputs have the same shapes and types, in the same order.
        batch_size: Size of a first dimension that the files leave free; None: 1.
        num_threads: Threads inside an operator.
        budget_s: Seconds it may measure; None: 120.
        strict: A ratio that is not known within 2 % is an error.
        progress: Told that it has begun.

    Raises:
        TargetUnavailableError: The target cannot be measured from here.
        ConfigError: A file is missing, or their inputs or outputs differ in shape.
        CorruptFileError: A file is not ONNX, or cannot be run.
        UnstableMeasurementError: With ``strict``, the ratio did not settle.
    """
    check_measurable(target, batch_size)
    runtime, noise = str(find_runtime()), read_noise()
    progress(0, 0, f"measuring {first.name} and {second.name}")
    answer = time_files(
        (first, second),
        batch_size=batch_size,
        num_threads=num_threads,
        budget_s=_BUDGET_S if budget_s is None else budget_s,
    )
    ratio, difference = answer.ratio, answer.difference
    assert ratio is not None
    assert difference is not None
    if strict and ratio.high - ratio.low > 2 * _STRICT_INTERVAL * ratio.value:
        raise UnstableMeasurementError(
            f"the ratio did not settle: it lies between {ratio.low:.3f} and {ratio.high:.3f}",
            hint="close what else is running and run it again, or leave out --strict",
        )
    return Comparison(
        paths=(first, second),
        device=describe_host().name,
        runtime=runtime,
        batch_size=answer.batch_size,
        timings=(answer.timings[0], answer.timings[1]),
        ratio=ratio,
        difference=difference,
        noise=noise,
    )
