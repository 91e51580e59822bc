"""The main job: the most accurate sub-network that meets a latency, exported and verified."""

import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import NormalDist

import numpy as np

from effdl.errors import ConfigError, InfeasibleConstraintError, UnstableMeasurementError
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
from effdl.targets.host_model import HostLatencyModel
from effdl.targets.latency_model import LatencyModel
from effdl.targets.measure.runtime import MeasurementRuntime
from effdl.targets.target import Target
from effdl.targets.timing import Timing
from effdl.workflows.costs import SpaceCosts
from effdl.workflows.exported_search import ExportPlan, export_networks
from effdl.workflows.latencies import latency_model_of
from effdl.workflows.measured_search import (
    MIN_MEASURED,
    Attempt,
    Clock,
    search_by_the_clock,
)
from effdl.workflows.progress import Progress, no_progress
from effdl.workflows.report import write_report
from effdl.workflows.run_folder import run_folder
from effdl.workflows.runtimes import runtime_of
from effdl.workflows.search_outcome import Limits, SearchOutcome
from effdl.workflows.subnets import SubnetReport, accuracy_of

__all__ = ["Limits", "SearchOutcome", "search_subnet"]

_MAX_EXPORT_RETRIES = 2
_NEXT_TRY_RATIO = 0.95


def search_subnet(
    *,
    target: Target,
    space: MobileNetV3Space,
    limits: Limits,
    runtime: MeasurementRuntime | None = None,
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

    Where the target is this machine, what was found is measured, and the search is
    repeated with another limit until the measured median meets the one asked for.

    Args:
        target: The device.
        space: The search space.
        limits: What the sub-network must keep.
        runtime: What runs networks on this machine; None: the target's own.
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
        export: Write and verify ONNX files in a run folder.
        profile: Profile this machine first if it has no table yet.
        seed: Of everything random.
        out: The run folder; None: a new one below ``runs``, if exporting.
        settings: What the caller was asked for, kept in the run folder.
        progress: Told what is going on.

    Raises:
        ConfigError: An option is out of range or would have no effect.
        InfeasibleConstraintError: No sub-network keeps the limits, by the table or
            by the clock.
        UnstableMeasurementError: By the clock no network meets the limit that the
            table says can be met.
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
    whole, space = space, _predictable(space, predictor)
    if len(space.resolutions) < len(whole.resolutions):
        progress(0, 0, f"searching at {_pixels(space)}, where accuracy can be predicted")
    predictor = _predictor_of(space)
    if target.is_local:
        runtime = runtime or runtime_of(target)
    elif runtime is not None:
        raise ConfigError(
            f"--runtime has no effect on target {target.name}, which is not this machine",
            hint="leave out --runtime",
        )
    model = latency_model_of(
        target, space, batch_size, runtime=runtime, profile=profile, progress=progress
    )
    latency_limit_ms = confident_limit_ms = _with_margin(limits.latency_ms, model, confidence)
    costs = SpaceCosts(space=space, batch_size=model.batch_size, latency_model=model)

    def problem_at(latency_ms: float) -> SearchProblem:
        return SearchProblem(
            space=space.search_space,
            objective=predictor.predict_raw,
            constraints=_constraints(costs, limits, latency_ms),
            costs=costs.statics(),
        )

    def search(latency_ms: float) -> SearchResult:
        return run_search(
            problem_at(latency_ms),
            make_algorithm(effort=effort, algorithm=algorithm),
            rng=np.random.default_rng(seed),
            budget=SearchBudget(max_evaluations=max_evaluations, max_seconds=max_seconds),
            num_best=max(top_k, MIN_MEASURED),
            progress=lambda num, best: progress(num, max_evaluations or 0, "searching"),
        )

    def report(candidate: Candidate, timing: Timing | None = None) -> SubnetReport:
        return SubnetReport(
            config=candidate.config,
            predicted_latency_ms=candidate.costs["latency_ms"],
            measured_latency_ms=None if timing is None else timing.median_ms,
            accuracy=accuracy_of(predictor, candidate.objective, fine_tuned=fine_tuned),
            params=int(candidate.costs["params"]),
            macs=int(candidate.costs["macs"]),
        )

    _require_reachable(problem_at(latency_limit_ms), space, target, limits.latency_ms, model)
    with ExitStack() as stack:
        folder = None
        if export or out is not None:
            asked = dict(settings or {})
            folder = stack.enter_context(run_folder("search", out, asked))
        plan = None
        if export and folder is not None:
            plan = ExportPlan(
                target=target,
                space=space,
                batch_size=model.batch_size,
                weights=weights,
                seed=seed,
                folder=folder,
            )

        def exported(found: tuple[SubnetReport, ...]) -> tuple[SubnetReport, ...]:
            if plan is None:
                return found[:top_k]
            return export_networks(
                found,
                plan,
                num_wanted=top_k,
                runtime=runtime,
                limit_ms=limits.latency_ms,
                progress=progress,
            )

        attempts: list[Attempt] = []

        def search_here(
            here: MeasurementRuntime, first_limit_ms: float, tries_left: int
        ) -> tuple[SearchResult, float, tuple[SubnetReport, ...]]:
            done = search_by_the_clock(
                search,
                Clock(
                    space=space,
                    runtime=here,
                    batch_size=model.batch_size,
                    reference_s=_usual_reference_s(model),
                ),
                problem_at(first_limit_ms),
                # Less the margin that a confidence needs: the median must leave room for it.
                limit_ms=confident_limit_ms,
                num_wanted=top_k,
                progress=progress,
            )
            attempts.extend(done.attempts)
            try:
                top = exported(tuple(report(met.candidate, met.timing) for met in done.met))
            except UnstableMeasurementError:
                # The machine slowed down after the search: what is left must be faster.
                if not tries_left:
                    raise
                return search_here(here, done.limit_ms * _NEXT_TRY_RATIO, tries_left - 1)
            return done.result, done.limit_ms, top

        if runtime is None:
            result = search(latency_limit_ms)
            top = exported(tuple(map(report, result.best[:top_k])))
        else:
            result, latency_limit_ms, top = search_here(
                runtime, latency_limit_ms, _MAX_EXPORT_RETRIES
            )
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
            attempts=tuple(attempts),
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
        raise ConfigError(f"confidence: wanted above 50% and below 100%, got {100 * confidence:g}%")
    if model.interval_percent is None:
        raise ConfigError(
            f"confidence has no effect: the latencies of {model.device} state no interval",
            hint="leave out --confidence",
        )
    normal = NormalDist()
    quantile = normal.inv_cdf(confidence) / normal.inv_cdf(0.975)
    return latency_ms / (1.0 + model.interval_percent / 100.0 * quantile)


def _usual_reference_s(model: LatencyModel) -> float | None:
    return model.calibration.reference_s if isinstance(model, HostLatencyModel) else None


def _require_reachable(
    problem: SearchProblem,
    space: MobileNetV3Space,
    target: Target,
    asked_ms: float,
    model: LatencyModel,
) -> None:
    """Refuse a latency below the fastest network's, before anything is written."""
    latency = problem.constraints[0]
    _, fastest_ms = minimize_cost(problem.space, latency.cost)
    if fastest_ms <= latency.limit:
        return
    margin = asked_ms / latency.limit
    if target.is_local and margin == 1.0:
        # What is returned must also meet the limit by the clock.
        margin += (model.interval_percent or 0.0) / 100
    reachable_ms = math.ceil(fastest_ms * margin * 100) / 100
    wanted = f"{asked_ms:g} ms"
    if asked_ms > latency.limit:
        wanted += f" with that confidence ({latency.limit:.4g} ms predicted)"
    raise InfeasibleConstraintError(
        f"no sub-network of {problem.space.name} at {_pixels(space)} meets {wanted} on "
        f"{target.name}: the fastest takes {fastest_ms:.4g} ms",
        fastest_latency_ms=fastest_ms,
        hint=f"--latency {reachable_ms:g}ms can be met",
    )


def _pixels(space: MobileNetV3Space) -> str:
    low, high = min(space.resolutions), max(space.resolutions)
    return f"{low} px" if low == high else f"{low} to {high} px"


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
