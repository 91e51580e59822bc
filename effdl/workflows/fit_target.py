"""Makes a target of a device from a few measured sub-networks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from effdl.data.ofa_latency import MeasuredNetwork, read_measured_networks
from effdl.errors import ConfigError, CorruptFileError
from effdl.models.mobilenet_v3.space import MobileNetV3Space
from effdl.targets.block_fit import Measurements, check_measurements
from effdl.targets.block_model import BlockModel
from effdl.targets.block_validation import fit_best
from effdl.targets.latency_model import table_path
from effdl.targets.target import (
    Target,
    check_own_target,
    read_target,
    user_targets_folder,
    write_target,
)
from effdl.workflows.space_operators import SpaceOperators

__all__ = ["FittedTarget", "fit_model", "fit_target", "measurements_of"]

# Shuffled latencies give about 0, the noisiest of real devices 0.6.
_LEAST_SPEARMAN = 0.2
_MIN_RESOLUTION, _MAX_RESOLUTION = 32, 2048
_NUM_UNSEEN = 500
_MAX_INTERVAL_PERCENT = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedTarget:
    """A target made from measurements.

    Attributes:
        name: Its name.
        num_samples: Different networks it was fitted to.
        resolutions: Their input resolutions in pixels, increasing; others are
            extrapolated.
        cv_mape_percent: Mean absolute percentage error, cross-validated.
        cv_spearman: Rank correlation, cross-validated.
        interval_percent: 95 % of networks within these resolutions lie within
            this many percent of their prediction.
        path: The fitted model's file; the descriptor lies beside it.
    """

    name: str
    num_samples: int
    resolutions: tuple[int, ...]
    cv_mape_percent: float
    cv_spearman: float
    interval_percent: float
    path: Path


def fit_target(
    name: str,
    measurements: Path,
    space: MobileNetV3Space,
    *,
    batch_size: int = 1,
    num_samples: int | None = None,
    device: str | None = None,
    seed: int = 0,
) -> FittedTarget:
    """Fit a latency model to measured sub-networks and store it as the user's target.

    A target of the user's own with that name gains this batch size, or has it
    replaced.

    Args:
        name: Name of the target.
        measurements: CSV with columns ``kernel_size``, ``expand_ratio``,
            ``depth``, ``resolution``, ``latency_ms``. Rows of equal networks
            count once, at their median.
        space: The space the sub-networks are of, at whatever resolutions.
        batch_size: Samples in one run of the measurements.
        num_samples: Use only the first so many rows.
        device: The device's name, for people; None: the target's name.
            ``effdl.targets.target.find_cuda_device()`` makes it this machine's GPU.
        seed: Of the fit and its cross-validation.

    Raises:
        ConfigError: The name is taken by a shipped target or is no name, or
            there are too few measurements, or they do not follow from the
            networks.
        CorruptFileError: The CSV is malformed, or a latency is still empty.
        OutputError: The user's folder cannot be written.
    """
    folder = user_targets_folder()
    target = _own_target(folder, name, device or name, batch_size)
    networks = read_measured_networks(measurements)
    if num_samples is not None and not 0 < num_samples <= len(networks):
        raise ConfigError(
            f"wanted between 1 and {len(networks)} samples of {measurements}, got {num_samples}"
        )
    networks = networks[:num_samples]
    model = fit_model(
        target,
        space,
        networks,
        [network.latencies_ms[0] for network in networks],
        batch_size=batch_size,
        origin=f"measurements given by the user ({measurements.name})",
        licence="",
        path=measurements,
        seed=seed,
    )
    if model.cv_spearman < _LEAST_SPEARMAN:
        raise ConfigError(
            f"the latencies in {measurements} do not follow the networks: wanted predicted and "
            f"measured to correlate in rank by at least {_LEAST_SPEARMAN}, got "
            f"{model.cv_spearman:.2f}",
            hint="are the rows in the order they were measured in? measure them again",
        )
    path = table_path(folder, name, batch_size, fitted=True)
    model.write(path)
    write_target(folder, target)
    return FittedTarget(
        name=name,
        num_samples=model.num_samples,
        resolutions=_resolutions(networks),
        cv_mape_percent=model.cv_mape_percent,
        cv_spearman=model.cv_spearman,
        interval_percent=model.interval_percent,
        path=path,
    )


def fit_model(
    target: Target,
    space: MobileNetV3Space,
    networks: Sequence[MeasuredNetwork],
    latencies_ms: Sequence[float],
    *,
    batch_size: int,
    origin: str,
    licence: str,
    path: Path,
    seed: int = 0,
) -> BlockModel:
    """Fit and cross-validate the model of one device at one batch size.

    Args:
        target: Whose model it will be.
        space: The space of the networks, at whatever resolutions.
        networks: The networks [N].
        latencies_ms: Their latencies in milliseconds [N].
        batch_size: Samples in one run.
        origin: Who measured.
        licence: Licence of the measurements.
        path: The networks' file, for messages.
        seed: Of the fit and its cross-validation.

    Raises:
        ConfigError: There are too few networks, or their latencies do not follow
            from them.
        CorruptFileError: A network is not of the space.
    """
    measured, operators = _measured(space, networks, latencies_ms, path)
    check_measurements(measured)
    measured = measured.merge_repeats()
    rows = operators.space.search_space.sample(_NUM_UNSEEN, np.random.default_rng(seed))
    coefficients, validation = fit_best(measured, operators.codes(rows), seed=seed)
    if not validation.interval_percent <= _MAX_INTERVAL_PERCENT:
        raise ConfigError(
            f"the latencies in {path} do not follow from the networks: wanted an uncertainty of "
            f"at most {_MAX_INTERVAL_PERCENT:g} %, got {validation.interval_percent:.3g} %",
            hint="measure more networks; check that every latency stands in its network's row",
        )
    resolutions = _resolutions(networks)
    return BlockModel(
        target=target.name,
        device=target.device,
        batch_size=batch_size,
        runtime=target.runtime,
        space=space.name,
        resolutions=(resolutions[0], resolutions[-1]),
        origin=origin,
        licence=licence,
        num_samples=len(measured),
        cv_mape_percent=validation.mape_percent,
        cv_spearman=validation.spearman,
        interval_percent=validation.interval_percent,
        coefficients=coefficients,
    )


def measurements_of(
    space: MobileNetV3Space,
    networks: Sequence[MeasuredNetwork],
    latencies_ms: Sequence[float],
    path: Path,
) -> Measurements:
    """Measured networks as codes of their operators.

    Args:
        space: The space of the networks, at whatever resolutions.
        networks: The networks [N].
        latencies_ms: Their latencies in milliseconds [N].
        path: The networks' file, for messages.

    Raises:
        CorruptFileError: A network is not of the space.
    """
    return _measured(space, networks, latencies_ms, path)[0]


def _measured(
    space: MobileNetV3Space,
    networks: Sequence[MeasuredNetwork],
    latencies_ms: Sequence[float],
    path: Path,
) -> tuple[Measurements, SpaceOperators]:
    for network in networks:
        (resolution,) = network.config.ints("resolution")
        if not _MIN_RESOLUTION <= resolution <= _MAX_RESOLUTION:
            raise CorruptFileError(
                f"{path}, line {network.line}, column resolution: wanted {_MIN_RESOLUTION} to "
                f"{_MAX_RESOLUTION} pixels, got {resolution}"
            )
    wide = space.with_resolutions(_resolutions(networks))
    rows = []
    for network in networks:
        try:
            rows.append(wide.search_space.encode(network.config))
        except ConfigError as error:
            raise CorruptFileError(f"{path}, line {network.line}: {error.message}") from error
    operators = SpaceOperators(space=wide)
    measured = Measurements(
        ops=operators.ops,
        codes=operators.codes(np.stack(rows)),
        latency_ms=np.array(latencies_ms, dtype=np.float64),
    )
    return measured, operators


def _resolutions(networks: Sequence[MeasuredNetwork]) -> tuple[int, ...]:
    return tuple(sorted({network.config.ints("resolution")[0] for network in networks}))


def _own_target(folder: Path, name: str, device: str, batch_size: int) -> Target:
    """The user's target of that name, or a new one."""
    target = Target(
        name=name,
        device=device,
        kind="gpu",
        runtime="as measured by the user",
        description="Fitted to the user's own measurements.",
        default_batch_size=batch_size,
    )
    check_own_target(target)
    path = folder / f"{name}.toml"
    return read_target(path) if path.exists() else target
