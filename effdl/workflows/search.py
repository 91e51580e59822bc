"""The main job: the most accurate sub-network that meets a latency, exported and verified."""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from effdl.errors import ConfigError, InfeasibleConstraintError
from effdl.models.mobilenet_v3.pretrained import load_accuracy_predictor
from effdl.models.mobilenet_v3.space import MobileNetV3Space
from effdl.search.accuracy_predictor import AccuracyPredictor
from effdl.search.candidate import Candidate
from effdl.search.constraint import Constraint
from effdl.search.loop import SearchBudget, run_search
from effdl.search.minimum import minimize_cost
from effdl.search.presets import make_algorithm
from effdl.search.problem import SearchProblem
from effdl.search.result import SearchResult
from effdl.targets.latency_model import LatencyModel
from effdl.targets.target import Target
from effdl.workflows.costs import SpaceCosts
from effdl.workflows.latencies import latency_model_of
from effdl.workflows.progress import Progress, no_progress
from effdl.workflows.report import write_report
from effdl.workflows.run_folder import run_folder
from effdl.workflows.subnets import SubnetReport, accuracy_of

__all__ = ["Limits", "SearchOutcome", "search_subnet"]


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
        latency_limit_ms: The limit that was searched with: the one asked
            for, less the margin that a confidence needs.
        confidence: Asked probability that the true latency meets the limit.
        top: The best sub-networks, best first.
        pareto_front: Best accuracy at every latency up to the limit, fastest first.
        result: What the search itself said.
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


def search_subnet(
    *,
    target: Target,
    space: MobileNetV3Space,
    limits: Limits,
    batch_size: int | None = None,
    effort: str = "standard",
    algorithm: str | None = None,
    max_evaluations: int | None = None,
    max_seconds: float | None = None,
    top_k: int = 1,
    weights: Path | None = None,
    fine_tuned: bool = False,
    confidence: float | None = None,
    export: bool = True,
    profile: bool = True,
    seed: int = 0,
    out: Path | None = None,
    settings: Mapping[str, object] | None = None,
    progress: Progress = no_progress,
) -> SearchOutcome:
    """Find the most accurate sub-network that keeps the limits, and export it.

    Args:
        target: The device and runtime.
        space: The search space.
        limits: What the sub-network must keep.
        batch_size: Samples in one forward pass; None: the target's default.
        effort: ``"fast"``, ``"standard"`` or ``"thorough"``.
        algorithm: One algorithm instead of the effort's mixture.
        max_evaluations: Different networks evaluated at most.
        max_seconds: Seconds of search at most; makes the result depend on
            the machine's speed.
        top_k: How many of the best are exported and reported.
        weights: A trained supernet (safetensors); None: untrained, and marked so.
        fine_tuned: Report the accuracy expected after fine-tuning.
        confidence: Probability, above 0.5, that the true latency meets the
            limit, from the latency model's interval.
        export: Write, verify and, where the target is this machine, measure
            ONNX files in a run folder.
        profile: Profile this machine first if it has no table yet.
        seed: Of everything random.
        out: The run folder; None: a new one below ``runs``, if exporting.
        settings: What the caller was asked for, kept in the run folder.
        progress: Told what is going on.

    Raises:
        ConfigError: An option is out of range or would have no effect.
        InfeasibleConstraintError: No sub-network keeps the limits.
        TargetUnavailableError: The target has no latencies here.
        LatencyTableError: The target's latencies do not fit the space.
        ExportParityError: An exported file differs from the network.
        CorruptFileError: The weights are damaged or of another space.
        OutputError: The run folder cannot be written.
    """
    if top_k < 1:
        raise ConfigError(f"top_k: wanted at least 1, got {top_k}")
    if weights is not None and not export:
        raise ConfigError(
            "weights have no effect without an export", hint="leave out --no-export or --weights"
        )
    predictor = _predictor_of(space)
    if fine_tuned and not predictor.has_fine_tuned:
        raise ConfigError(
            f"the predictor of {space.name} knows no accuracy after fine-tuning",
            hint="leave out --fine-tuned, or use --space ofa-mbv3-w1.2",
        )
    space = _predictable(space, predictor)
    predictor = _predictor_of(space)
    model = latency_model_of(target, space, batch_size, profile=profile, progress=progress)
    latency_limit_ms = _with_margin(limits.latency_ms, model, confidence)
    costs = SpaceCosts(space=space, batch_size=model.batch_size, latency_model=model)
    problem = SearchProblem(
        space=space.search_space,
        objective=predictor.predict_raw,
        constraints=_constraints(costs, limits, latency_limit_ms),
        costs=costs.statics(),
    )
    _require_reachable(problem, target, limits.latency_ms)
    with ExitStack() as stack:
        folder = None
        if export or out is not None:
            asked = dict(settings or {})
            folder = stack.enter_context(run_folder("search", out, asked))
        result = run_search(
            problem,
            make_algorithm(effort=effort, algorithm=algorithm),
            rng=np.random.default_rng(seed),
            budget=SearchBudget(max_evaluations=max_evaluations, max_seconds=max_seconds),
            num_best=top_k,
            progress=lambda num, best: progress(num, max_evaluations or 0, "searching"),
        )

        def report(candidate: Candidate) -> SubnetReport:
            return SubnetReport(
                config=candidate.config,
                predicted_latency_ms=candidate.costs["latency_ms"],
                accuracy=accuracy_of(predictor, candidate.objective, fine_tuned=fine_tuned),
                params=int(candidate.costs["params"]),
                macs=int(candidate.costs["macs"]),
            )

        top = tuple(map(report, result.best))
        if export and folder is not None:
            top = _export(top, folder, target, space, model, weights, seed, progress)
        outcome = SearchOutcome(
            target=target,
            space=space.name,
            latency_model=model,
            limits=limits,
            latency_limit_ms=latency_limit_ms,
            confidence=confidence,
            top=top,
            pareto_front=tuple(map(report, result.pareto_front)),
            result=result,
            seed=seed,
            out=folder,
        )
        if folder is not None:
            progress(0, 0, "writing the report")
            write_report(folder, outcome.to_json())
    return outcome


def _predictor_of(space: MobileNetV3Space) -> AccuracyPredictor:
    predictor = load_accuracy_predictor(space)
    if predictor is None:
        raise ConfigError(
            f"space {space.name} has no accuracy predictor",
            hint="effdl train-predictor --published",
        )
    return predictor


def _predictable(space: MobileNetV3Space, predictor: AccuracyPredictor) -> MobileNetV3Space:
    """The space at those of its resolutions whose accuracy can be predicted."""
    low, high = min(predictor.anchors), max(predictor.anchors)
    return space.with_resolutions(r for r in space.resolutions if low <= r <= high)


def _with_margin(latency_ms: float, model: LatencyModel, confidence: float | None) -> float:
    """The limit to search with, so that the true latency meets the asked one."""
    if confidence is None:
        return latency_ms
    if not 0.5 < confidence < 1.0:
        raise ConfigError(f"confidence: wanted above 50% and below 100%, got {confidence:.6%}")
    if model.interval_percent is None:
        raise ConfigError(
            f"confidence has no effect: the latencies of {model.device} state no interval",
            hint="leave out --confidence",
        )
    normal = NormalDist()
    quantile = normal.inv_cdf(confidence) / normal.inv_cdf(0.975)
    return latency_ms / (1.0 + model.interval_percent / 100.0 * quantile)


def _require_reachable(problem: SearchProblem, target: Target, asked_ms: float) -> None:
    """Refuse a latency below the fastest network's, before anything is written."""
    latency = problem.constraints[0]
    _, fastest_ms = minimize_cost(problem.space, latency.cost)
    if fastest_ms <= latency.limit:
        return
    margin = asked_ms / latency.limit
    reachable_ms = math.ceil(fastest_ms * margin * 100) / 100
    wanted = f"{asked_ms:g} ms"
    if margin > 1.0:
        wanted += f" with that confidence ({latency.limit:.4g} ms predicted)"
    raise InfeasibleConstraintError(
        f"no sub-network of {problem.space.name} meets {wanted} on {target.name}: "
        f"the fastest takes {fastest_ms:.4g} ms",
        fastest_latency_ms=fastest_ms,
        hint=f"--latency {reachable_ms:g}ms can be met",
    )


def _constraints(
    costs: SpaceCosts, limits: Limits, latency_limit_ms: float
) -> tuple[Constraint, ...]:
    constraints = [Constraint(name="latency", limit=latency_limit_ms, cost=costs.latency_ms)]
    for name, limit in (
        ("macs", limits.macs),
        ("params", limits.params),
        ("peak_memory_bytes", limits.peak_memory_bytes),
    ):
        if limit is not None:
            said = name.removesuffix("_bytes").replace("_", " ")
            constraints.append(Constraint(name=said, limit=limit, cost=getattr(costs, name)))
    return tuple(constraints)


def _export(
    top: Sequence[SubnetReport],
    folder: Path,
    target: Target,
    space: MobileNetV3Space,
    model: LatencyModel,
    weights: Path | None,
    seed: int,
    progress: Progress,
) -> tuple[SubnetReport, ...]:
    """Write, verify and, where the target is this machine, measure the networks."""
    # PyTorch takes seconds to load, and a search without export needs none of it.
    from effdl.workflows.export import export_subnet

    exported = []
    for rank, subnet in enumerate(top, start=1):
        progress(rank - 1, len(top), "exporting")
        done = export_subnet(
            space=space,
            config=subnet.config,
            weights=weights,
            seed=seed,
            out=folder / ("model.onnx" if rank == 1 else f"model-{rank}.onnx"),
            target_info={
                "target": target.name,
                "batch_size": str(model.batch_size),
                "predicted_latency_ms": f"{subnet.predicted_latency_ms:.6g}",
            },
        )
        exported.append(
            replace(subnet, onnx=done.path, weights=done.weights, parity=done.parity.to_json())
        )
    if target.is_local:
        from effdl.targets.measure.onnxruntime import measure_models

        progress(0, 0, "measuring the exported networks")
        timings = measure_models(
            [subnet.onnx for subnet in exported if subnet.onnx], batch_size=model.batch_size
        )
        exported = [
            replace(subnet, measured_latency_ms=timing.median_ms)
            for subnet, timing in zip(exported, timings, strict=True)
        ]
    return tuple(exported)
