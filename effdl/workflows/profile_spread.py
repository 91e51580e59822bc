"""A profile whose measurements are spread over the workers of an executor."""

from collections.abc import Mapping

from effdl.distributed.executor import Executor
from effdl.distributed.measure_spread import measure_spread
from effdl.distributed.measure_tasks import Place
from effdl.errors import ConfigError
from effdl.targets.profiler import finished_timings
from effdl.targets.store import MeasurementStore, Setting
from effdl.targets.timing import Protocol, Timing
from effdl.workflows.profile_plan import ProfilePlan
from effdl.workflows.progress import Progress

__all__ = ["profile_on_workers"]

_RUNTIME = "onnxruntime"
# A network is some 20 MB, and a task's models travel together.
_MODELS_PER_TASK = 8


def profile_on_workers(
    plan: ProfilePlan,
    executor: Executor,
    *,
    store: MeasurementStore,
    setting: Setting,
    protocol: Protocol,
    budget_s: float,
    progress: Progress,
) -> Mapping[str, Timing]:
    """Measure what the store lacks on workers, and keep it in the store of this machine.

    A task's rounds are committed when it is done: what a killed worker had measured
    of one task is measured again.

    Args:
        plan: What to measure.
        executor: Has the workers, on machines equal to this one.
        store: Where rounds are kept.
        setting: What the figures hold for.
        protocol: How carefully.
        budget_s: Seconds that one device may measure.
        progress: Told how many tasks are done.

    Raises:
        ConfigError: The runtime is not one that workers have.
        TableMismatchError: A worker runs on another device, or another build.
        WorkerLostError: A task ended its worker each time it was tried.
    """
    if plan.runtime.build.name != _RUNTIME:
        raise ConfigError(
            f"workers measure with {_RUNTIME}: got {plan.runtime.build.name}",
            hint=f"--runtime {_RUNTIME}",
        )
    known = finished_timings(store, setting, protocol)
    models = {key: build for key, build in plan.models().items() if key not in known}
    if not models:
        return known
    measured = measure_spread(
        executor,
        {key: build() for key, build in models.items()},
        device="cpu",
        place=Place.of(plan.runtime),
        runtime=_RUNTIME,
        protocol=protocol,
        budget_s=budget_s,
        models_per_task=_MODELS_PER_TASK,
        earlier=dict(zip(models, store.read_rounds(setting, list(models)), strict=True)),
        record=lambda key, one: store.add_round(setting, key, one),
        progress=progress,
    )
    store.write_timings(setting, measured.timings)
    return {**known, **measured.timings}
