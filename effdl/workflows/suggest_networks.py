"""Chooses which sub-networks to measure, so that a few tell the most of a device."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from effdl.data.ofa_latency import write_networks_to_measure
from effdl.errors import ConfigError, OutputError
from effdl.files import write_atomically
from effdl.models.mobilenet_v3.space import MobileNetV3Space
from effdl.search.space import Population, SearchSpace, SubnetConfig
from effdl.targets.block_design import choose_networks
from effdl.workflows.progress import Progress, no_progress
from effdl.workflows.space_operators import SpaceOperators

__all__ = ["MAX_NETWORKS", "SuggestedNetwork", "SuggestedNetworks", "suggest_networks"]

MAX_NETWORKS = 10_000
"""Networks that can be suggested at once."""

_MIN_RESOLUTION, _MAX_RESOLUTION = 32, 2048
_MIN_CANDIDATES = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class SuggestedNetwork:
    """One sub-network to measure.

    Attributes:
        config: The sub-network.
        onnx: Its ONNX file, if files were asked for.
    """

    config: SubnetConfig
    onnx: Path | None

    def to_json(self) -> dict[str, Any]:
        """The member of ``networks``."""
        return {
            "config": self.config.to_json(),
            "onnx": None if self.onnx is None else str(self.onnx),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SuggestedNetworks:
    """Sub-networks to measure.

    Attributes:
        space: Name of their space.
        networks: They.
        path: The CSV to be filled in, if it was asked for.
        seed: Of the choice.
    """

    space: str
    networks: tuple[SuggestedNetwork, ...]
    path: Path | None
    seed: int

    def to_json(self) -> dict[str, Any]:
        """The object of the contract, without ``schema_version``."""
        return {
            "space": self.space,
            "networks": [network.to_json() for network in self.networks],
            "path": None if self.path is None else str(self.path),
            "seed": self.seed,
        }


def suggest_networks(
    space: MobileNetV3Space,
    num: int,
    *,
    resolutions: Sequence[int] | None = None,
    seed: int = 0,
    out: Path | None = None,
    onnx: Path | None = None,
    batch_size: int = 1,
    progress: Progress = no_progress,
) -> SuggestedNetworks:
    """Choose the networks that tell the most of a device's latencies.

    Those that spread best over what a fit reads of a network
    (`effdl.targets.block_design`), out of the smallest, the largest and thousands
    of random ones. `effdl.workflows.fit_target.fit_target` makes a target of their
    latencies.

    Args:
        space: The search space.
        num: How many networks, 2 to 10,000. A fit needs 10.
        resolutions: Only these inputs, in pixels; None: all of the space's.
        seed: Of the choice.
        out: CSV to write, with ``latency_ms`` to be filled in; it may not exist.
        onnx: Folder for the networks as ONNX files ``0001.onnx`` and so on by row,
            with made weights; it may hold nothing yet.
        batch_size: Samples in one run of the ONNX files.
        progress: Told what is going on.

    Raises:
        ConfigError: A number is out of range, or the space has too few networks.
        OutputError: A file cannot be written, or is there already.
    """
    if not 2 <= num <= MAX_NETWORKS:
        raise ConfigError(f"number of networks: wanted 2 to {MAX_NETWORKS}, got {num}")
    if resolutions is not None:
        space = _at_resolutions(space, resolutions)
    _require_free(out, onnx)
    rng = np.random.default_rng(seed)
    rows = _candidates(space.search_space, max(_MIN_CANDIDATES, 2 * num), rng)
    if len(rows) < num:
        raise ConfigError(
            f"{space.name} has too few networks at {_listed(space.resolutions)} px: "
            f"wanted {num}, found {len(rows)}"
        )
    operators = SpaceOperators(space=space)
    chosen = choose_networks(operators.ops, operators.codes(rows), num, rng)
    configs = [space.search_space.decode(rows[i]) for i in chosen]
    files = _write_onnx(space, configs, onnx, batch_size, progress) if onnx is not None else None
    if out is not None:
        names = None if files is None else list(map(str, files))
        write_networks_to_measure(out, configs, files=names)
    return SuggestedNetworks(
        space=space.name,
        networks=tuple(
            SuggestedNetwork(config=config, onnx=None if files is None else files[i])
            for i, config in enumerate(configs)
        ),
        path=out,
        seed=seed,
    )


def _at_resolutions(space: MobileNetV3Space, resolutions: Sequence[int]) -> MobileNetV3Space:
    for resolution in resolutions:
        if not _MIN_RESOLUTION <= resolution <= _MAX_RESOLUTION:
            raise ConfigError(
                f"resolution: wanted {_MIN_RESOLUTION} to {_MAX_RESOLUTION} pixels, "
                f"got {resolution}"
            )
    if not resolutions:
        raise ConfigError("resolutions: wanted at least one, got none")
    return space.with_resolutions(sorted(set(resolutions)))


def _require_free(out: Path | None, onnx: Path | None) -> None:
    """Refuse to write over latencies that somebody has filled in."""
    if out is not None and out.exists():
        raise OutputError(f"{out} exists already", hint="choose another name, or remove it")
    if onnx is not None and onnx.exists() and not (onnx.is_dir() and not any(onnx.iterdir())):
        raise OutputError(f"{onnx} is no empty folder", hint="choose another, or empty it")


def _candidates(space: SearchSpace, num: int, rng: np.random.Generator) -> Population:
    """The smallest and the largest network, then different random ones [at most num + 2]."""
    most = (space.num_choices - 1).astype(np.uint8)
    extremes = space.canonicalize(np.stack([np.zeros_like(most), most]))
    rows = np.concatenate([extremes, space.sample(num, rng)])
    _, first = np.unique(rows, axis=0, return_index=True)
    return rows[np.sort(first)]


def _write_onnx(
    space: MobileNetV3Space,
    configs: Sequence[SubnetConfig],
    folder: Path,
    batch_size: int,
    progress: Progress,
) -> list[Path]:
    # ONNX is slow to load, and most suggestions are made without it.
    from effdl.models.mobilenet_v3.onnx_graph import build_network

    paths = []
    for i, config in enumerate(configs):
        progress(i, len(configs), "writing ONNX files")
        path = folder / f"{i + 1:04d}.onnx"
        write_atomically(path, build_network(space, config, batch_size))
        paths.append(path)
    return paths


def _listed(resolutions: Sequence[int]) -> str:
    return ", ".join(map(str, resolutions))
