"""Which latencies a target has: a shipped table, a fitted model, or this machine's own."""

from effdl.errors import TargetUnavailableError
from effdl.models.mobilenet_v3.space import MobileNetV3Space
from effdl.targets.latency_model import LatencyModel, load_latency_model
from effdl.targets.measure.runtime import MeasurementRuntime
from effdl.targets.target import Target
from effdl.workflows.progress import Progress, no_progress

__all__ = ["latency_model_of"]


def latency_model_of(
    target: Target,
    space: MobileNetV3Space,
    batch_size: int | None = None,
    *,
    runtime: MeasurementRuntime | None = None,
    profile: bool = True,
    progress: Progress = no_progress,
) -> LatencyModel:
    """The latency model of a target for a space.

    Args:
        target: The target; this machine is measured first if it must be.
        space: Whose operators it must know.
        batch_size: Samples in one forward pass; None: the target's default.
        runtime: What runs networks on this machine; None: the target's own.
        profile: Measure this machine with the quick protocol if it has no
            table of the space yet.
        progress: Told how far that is.

    Raises:
        TargetUnavailableError: This machine has no table, and ``profile`` is off.
        LatencyTableError: The target has no latencies at that batch size.
    """
    if not target.is_local:
        return load_latency_model(target, batch_size=batch_size)
    # ONNX Runtime and the store are only needed where something is measured here.
    from effdl.workflows.profile import load_host_latency_model, profile_space
    from effdl.workflows.runtimes import runtime_of

    # PyTorch's builds are named by their mode, too: torch-eager.
    asked = "" if runtime is None else f" --runtime {runtime.build.name.partition('-')[0]}"
    runtime = runtime or runtime_of(target)
    batch_size = batch_size or target.default_batch_size
    model = load_host_latency_model(space, batch_size, runtime=runtime)
    if model is None and not profile:
        raise TargetUnavailableError(
            f"target {target.name} has no table of {space.name} at batch size {batch_size}",
            hint=f"effdl profile --target {target.name} --space {space.name} "
            f"--batch-size {batch_size}{asked}",
        )
    if model is None:
        progress(0, 0, f"measuring this machine for {space.name} first, at most 3 minutes")
        profile_space(
            target, space, runtime=runtime, batch_size=batch_size, quick=True, progress=progress
        )
        model = load_host_latency_model(space, batch_size, runtime=runtime)
    if model is None:
        raise TargetUnavailableError(
            f"target {target.name} could not be profiled", hint="effdl doctor"
        )
    return model
