"""What a search is asked for and what it comes to."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effdl.search.result import SearchResult
from effdl.targets.latency_model import LatencyModel
from effdl.targets.target import Target
from effdl.workflows.measured_search import Attempt
from effdl.workflows.subnets import SubnetReport

__all__ = ["Limits", "SearchOutcome"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a sub-network must keep.

    Attributes:
        latency_ms: One forward pass of the whole batch, in milliseconds.
        macs: Multiply-accumulate operations for one sample.
        params: Trainable parameters.
        peak_memory_bytes: Float32 activation memory for the whole batch.
    """

    latency_ms: float
    macs: float | None = None
    params: float | None = None
    peak_memory_bytes: float | None = None

    def to_json(self) -> dict[str, float]:
        """The limits that are set, latency first."""
        every = {
            "latency_ms": self.latency_ms,
            "macs": self.macs,
            "params": self.params,
            "peak_memory_bytes": self.peak_memory_bytes,
        }
        return {name: limit for name, limit in every.items() if limit is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOutcome:
    """The end of the job.

    Attributes:
        target: What was searched for.
        space: Name of the space.
        latency_model: Where its latencies came from.
        limits: What was asked for.
        latency_limit_ms: The limit that was searched with: the one asked for, less the
            margin that a confidence needs, moved to where the clock agrees.
        confidence: Asked probability that the true latency meets the limit.
        top: The best sub-networks, best first.
        pareto_front: Best accuracy at every latency up to the limit, fastest first.
        result: What the search itself said.
        attempts: Every search and what the clock said of it; none where nothing
            can be measured here.
        seed: Of everything random.
        out: The run folder.
    """

    target: Target
    space: str
    latency_model: LatencyModel
    limits: Limits
    latency_limit_ms: float
    confidence: float | None
    top: tuple[SubnetReport, ...]
    pareto_front: tuple[SubnetReport, ...]
    result: SearchResult
    seed: int
    attempts: tuple[Attempt, ...] = ()
    out: Path | None = None

    @property
    def best(self) -> SubnetReport:
        """The most accurate sub-network."""
        return self.top[0]

    def to_json(self) -> dict[str, Any]:
        """The object of the contract, without ``schema_version``."""
        model = self.latency_model
        return {
            "target": {
                "name": self.target.name,
                "device": model.device,
                "batch_size": model.batch_size,
                "runtime": model.runtime,
                "latency_source": model.source,
            },
            "space": self.space,
            "constraints": self.limits.to_json(),
            "confidence": self.confidence,
            "searched_latency_limit_ms": self.latency_limit_ms,
            "latency_margin_percent": 100 * (1 - self.latency_limit_ms / self.limits.latency_ms),
            "measured_searches": [attempt.to_json() for attempt in self.attempts],
            "best": self.best.to_json(),
            "top": [subnet.to_json() for subnet in self.top],
            "pareto_front": [subnet.to_json() for subnet in self.pareto_front],
            "num_evaluations": self.result.num_evaluations,
            "num_unique": self.result.num_unique,
            "search_cpu_seconds": self.result.cpu_seconds,
            "search_wall_seconds": self.result.wall_seconds,
            "seed": self.seed,
            "out": None if self.out is None else str(self.out),
        }
