"""A sub-network as one ONNX file that has been verified before it appears."""

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from effdl.errors import ConfigError, OutputError
from effdl.export.metadata import ModelMetadata, WeightsNote, file_sha256
from effdl.export.onnx_export import export_onnx
from effdl.export.parity import Parity, check_parity
from effdl.export.threads import one_thread
from effdl.files import require_writable
from effdl.models.mobilenet_v3.network import MobileNetV3, build_subnet, load_supernet
from effdl.models.mobilenet_v3.space import MobileNetV3Space
from effdl.search.space import SubnetConfig

__all__ = ["ExportedSubnet", "build_network", "export_subnet", "require_supported"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedSubnet:
    """A verified ONNX file.

    Attributes:
        path: Where it is.
        space: Name of the space.
        config: The sub-network, canonical.
        opset: Version of its operator set.
        num_bytes: Its size in bytes.
        num_nodes: Nodes of its graph.
        sha256: Of the file, in hexadecimal.
        weights: ``untrained seed=N``, or ``sha256:`` and the weights file's digest.
        parity: How closely it follows PyTorch.
    """

    path: Path
    space: str
    config: SubnetConfig
    opset: int
    num_bytes: int
    num_nodes: int
    sha256: str
    weights: str
    parity: Parity

    def to_json(self) -> dict[str, object]:
        """The object of the contract, without ``schema_version``."""
        return {
            "path": str(self.path),
            "space": self.space,
            "config": self.config.to_json(),
            "precision": "fp32",
            "opset": self.opset,
            "bytes": self.num_bytes,
            "num_nodes": self.num_nodes,
            "sha256": self.sha256,
            "weights": self.weights,
            "parity": self.parity.to_json(),
        }


@one_thread()
def export_subnet(
    *,
    space: MobileNetV3Space,
    config: Mapping[str, object],
    out: Path,
    weights: Path | None = None,
    seed: int = 0,
    target_info: Mapping[str, str] | None = None,
) -> ExportedSubnet:
    """Build a sub-network, write it as ONNX, and verify it at three batch sizes.

    The file appears at ``out`` only once it is verified; what stood there
    before stays until then.

    Args:
        space: The family of networks.
        config: The sub-network; its resolution is the file's input size.
        out: The file to write.
        weights: A supernet's weights (safetensors). None: untrained weights,
            and the file and the result say so.
        seed: Of the untrained weights.
        target_info: What the network was chosen for, such as ``target`` and
            ``predicted_latency_ms``, for the file's metadata.

    Raises:
        ConfigError: The configuration is not of the space, or there is no
            such weights file.
        CorruptFileError: The weights are damaged or of another space.
        ExportParityError: The file does not compute what the network computes;
            it is deleted.
        OutputError: The file cannot be written.
    """
    require_writable(out)
    if seed < 0:
        raise ConfigError(f"seed wanted 0 or more, got {seed}")
    search_space = space.search_space
    subnet = search_space.decode(search_space.encode(config))
    note = WeightsNote(seed=seed) if weights is None else WeightsNote(sha256=file_sha256(weights))
    network = build_network(space, subnet, weights=weights, seed=seed)
    metadata = ModelMetadata(
        space=space.name, config=subnet, weights=note, target=dict(target_info or {})
    )
    (resolution,) = subnet.ints("resolution")
    example = torch.zeros(2, space.in_channels, resolution, resolution)
    unverified = out.with_name(f".{out.name}.{os.getpid()}.unverified")
    try:
        file = export_onnx(network, unverified, example=example, metadata=metadata.to_props())
        parity = check_parity(network, unverified)
        _move(unverified, out)
    finally:
        with contextlib.suppress(OSError):
            unverified.unlink(missing_ok=True)
    return ExportedSubnet(
        path=out,
        space=space.name,
        config=subnet,
        opset=file.opset,
        num_bytes=file.num_bytes,
        num_nodes=file.num_nodes,
        sha256=file.sha256,
        weights=str(note),
        parity=parity,
    )


def build_network(
    space: MobileNetV3Space, config: SubnetConfig, *, weights: Path | None, seed: int
) -> MobileNetV3:
    """A sub-network in evaluation mode: cut from a supernet's weights, or untrained.

    Raises:
        ConfigError: There is no such weights file.
        CorruptFileError: The weights are damaged or of another space.
    """
    if weights is None:
        return build_subnet(space, config, seed=seed)
    return load_supernet(weights, space).extract(config)


def require_supported(*, precision: str, container: str) -> None:
    """Refuse what cannot be exported yet, instead of exporting something else.

    Raises:
        ConfigError: The precision is neither ``fp32`` nor ``int8``, the container neither
            ``onnx`` nor ``tvm``, or they do not go together.
    """
    known = (("precision", ("fp32", "int8"), precision), ("format", ("onnx", "tvm"), container))
    for what, wanted, got in known:
        if got not in wanted:
            raise ConfigError(
                f"export to {what} {got!r} is not available in this version: wanted "
                f"{' or '.join(map(repr, wanted))}",
                hint=f"leave the option out to export {wanted[0]}",
            )
    if (precision, container) == ("int8", "tvm"):
        raise ConfigError(
            "export to precision 'int8' in format 'tvm' is not available in this version",
            hint="--precision int8 with --to onnx, or --to tvm in fp32",
        )


def _move(source: Path, destination: Path) -> None:
    try:
        source.replace(destination)
    except OSError as error:
        raise OutputError(
            f"cannot write {destination}: {error.strerror or error}",
            hint="choose a folder that is writable and has space left",
        ) from error
