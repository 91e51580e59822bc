"""Profile a space on a target, wherever that is."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from effdl.distributed.executor import Executor
from effdl.errors import ConfigError
from effdl.models.mobilenet_v3.space import MobileNetV3Space
from effdl.targets.latency_model import table_path
from effdl.targets.latency_table import LatencyTable
from effdl.targets.measure.runtime import MeasurementRuntime
from effdl.targets.target import Target, user_targets_folder
from effdl.workflows.host_table import export_host_table
from effdl.workflows.profile import SpaceProfile, profile_space
from effdl.workflows.progress import Progress, no_progress
from effdl.workflows.runtimes import open_runtime

__all__ = ["profile_target"]


def profile_target(
    target: Target,
    space: MobileNetV3Space,
    *,
    runtime_name: str | None = None,
    executor: Executor | None = None,
    batch_size: int = 1,
    quick: bool = False,
    budget_s: float | None = None,
    progress: Progress = no_progress,
    dry_run: bool = False,
    strict: bool = False,
    store_path: Path | None = None,
    seed: int = 0,
) -> SpaceProfile:
    """Reach a target, profile it, and keep its table where a search finds it.

    The table of a device that is not this machine is written to the user's targets
    folder too, so that a search does not need the device. See `profile_space`.

    Args:
        target: A local target, or one with a connection.
        space: Whose operators are measured.
        runtime_name: One of a local target's runtimes; None: the usual one.
        executor: Has workers that share the work; None: this process does it.
        batch_size: Samples in one run.
        quick: Fewer rounds and fewer whole networks.
        budget_s: Seconds it may take.
        progress: Told how far it is.
        dry_run: Measure nothing; say what would be measured.
        strict: Unstable operators are an error.
        store_path: The store; None: the user's own.
        seed: Chooses the whole networks.
    """
    with open_runtime(target, runtime_name, progress=progress) as runtime:
        done = profile_space(
            target,
            space,
            runtime=runtime,
            executor=executor,
            batch_size=batch_size,
            quick=quick,
            budget_s=budget_s,
            progress=progress,
            dry_run=dry_run,
            strict=strict,
            store_path=store_path,
            seed=seed,
        )
        if target.connection is not None and not dry_run:
            _keep_table(target, space, runtime, batch_size, store_path)
    return done


def _keep_table(
    target: Target,
    space: MobileNetV3Space,
    runtime: MeasurementRuntime,
    batch_size: int,
    store_path: Path | None,
) -> None:
    """Write the target's table; entries of other spaces stay, if it is the same device."""
    table = export_host_table(
        [space],
        target.name,
        runtime=runtime,
        batch_size=batch_size,
        device=runtime.device,
        store_path=store_path,
    )
    path = table_path(user_targets_folder(), target.name, batch_size, fitted=False)
    with suppress(ConfigError):
        before = LatencyTable.read(path)
        if before.header.device == table.header.device and before.runtime == table.runtime:
            fresh = {entry.key for entry in table.entries}
            others = [entry for entry in before.entries if entry.key not in fresh]
            table = replace(table, entries=(*others, *table.entries))
    table.write(path)
