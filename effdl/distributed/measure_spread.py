"""Timing many models on the workers of an executor."""

from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np

from effdl.distributed.executor import Executor, Progress
from effdl.distributed.measure_tasks import (
    ModelFile,
    ModelsMeasured,
    ModelsToMeasure,
    Place,
    measure_models_on_worker,
)
from effdl.distributed.task import Task
from effdl.errors import ConfigError, TableMismatchError
from effdl.targets.timing import FINAL_PROTOCOL, Protocol, Round, Timing, summarise

__all__ = ["Measured", "measure_spread"]


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What many workers measured.

    Attributes:
        timings: By the models' keys.
        place: Where; the same for all.
    """

    timings: Mapping[str, Timing]
    place: Place


def measure_spread(
    executor: Executor,
    models: Mapping[str, bytes | ModelFile],
    *,
    device: str,
    place: Place | None = None,
    runtime: str = "onnxruntime",
    settings: Mapping[str, str | int | bool] | None = None,
    protocol: Protocol = FINAL_PROTOCOL,
    budget_s: float = 120.0,
    models_per_task: int = 16,
    earlier: Mapping[str, Sequence[Round]] | None = None,
    record: Callable[[str, Round], None] | None = None,
    progress: Progress | None = None,
    seed: int = 0,
) -> Measured:
    """Time models on the workers of an executor, some of them at a time.

    Models of one task are measured in the same interleaved rounds. Which ones come
    together is random, so that a slow minute is no kind of model's; between tasks,
    the reference kernel beside every round makes figures comparable.

    Args:
        executor: Has the workers.
        models: Serialised ONNX models of fixed sizes, or where they lie, by key.
        device: Name of the device that a task needs for itself alone. Workers on one
            machine share its processor, ``"cpu"``: their timings would disturb each
            other.
        place: Where it must be measured; None: the same anywhere.
        runtime: Way to measure.
        settings: What its class is made with.
        protocol: How carefully.
        budget_s: Seconds that all tasks together may measure, on one device.
        models_per_task: Models measured together.
        earlier: Rounds by key that an interrupted measurement left.
        record: Keeps a round; called when the task is done that it is of.
        progress: Told how many tasks are done.
        seed: Of which models come together.

    Raises:
        ConfigError: ``models_per_task`` is less than 1.
        TableMismatchError: Workers measured on another device, or with another build.
        EffdlError: What a worker could not do.
    """
    if models_per_task < 1:
        raise ConfigError(f"wanted at least 1 model per task, got {models_per_task}")
    if not models:
        raise ConfigError("wanted at least 1 model to measure, got none")
    names = list(models)
    order = np.random.default_rng(seed).permutation(len(names)).tolist()
    chunks = [
        [names[i] for i in order[start : start + models_per_task]]
        for start in range(0, len(order), models_per_task)
    ]
    earlier = earlier or {}
    rounds = {key: list(earlier.get(key, ())) for key in names}
    tasks = [
        Task.of(
            measure_models_on_worker,
            ModelsToMeasure(
                models=tuple(models[key] for key in chunk),
                runtime=runtime,
                settings=dict(settings or {}),
                protocol=protocol,
                budget_s=budget_s * len(chunk) / len(names),
                earlier=tuple(tuple(rounds[key]) for key in chunk),
            ),
            resources={device},
        )
        for chunk in chunks
    ]
    chunks_of: dict[str, list[list[str]]] = {}
    for task, chunk in zip(tasks, chunks, strict=True):
        chunks_of.setdefault(task.key, []).append(chunk)
    seen, keep_round = place, record or (lambda key, measured: None)

    def keep(task: Task, result: bytes) -> None:
        nonlocal seen
        answer = msgspec.json.decode(result, type=ModelsMeasured)
        seen = seen or answer.place
        if answer.place != seen:
            raise TableMismatchError(
                f"a worker measured elsewhere: wanted {_text(seen)}, got {_text(answer.place)}",
                hint="spread one profile over equal devices with equal packages only",
            )
        for chunk in chunks_of[task.key]:
            for key, measured in zip(chunk, answer.rounds, strict=True):
                rounds[key] += measured
                for one in measured:
                    keep_round(key, one)

    executor.run(tasks, record=keep, progress=progress)
    assert seen is not None
    reference_s = float(np.median([r.reference_s for key in names for r in rounds[key]]))
    limit = protocol.interval_percent
    timings = {
        key: summarise(rounds[key], reference_s=reference_s, limit_percent=limit) for key in names
    }
    return Measured(timings=timings, place=seen)


def _text(place: Place) -> str:
    build = f"{place.build} ({place.build.build})"
    return f"{place.device} [{place.device_fingerprint}], {build}, clock {place.clock_policy}"
