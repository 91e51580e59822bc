"""A sub-network as the shared library that a board with TVM's runtime needs."""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from effdl.compilers import TVM_VERSION
from effdl.export.threads import one_thread
from effdl.export.tvm_export import BATCH_SIZE, TvmParity, export_tvm
from effdl.files import require_writable, write_atomically
from effdl.models.mobilenet_v3.space import MobileNetV3Space
from effdl.search.space import SubnetConfig
from effdl.targets.measure.tvm_target import TvmTarget, find_linker, find_tvm
from effdl.workflows.export import ExportedSubnet, build_network, export_subnet

__all__ = ["ExportedLibrary", "export_tvm_subnet"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedLibrary:
    """A verified library for a board.

    Attributes:
        path: Where it is; beside it, with ``.json`` at the end, what it is.
        space: Name of the space.
        config: The sub-network, canonical.
        num_bytes: Its size in bytes.
        sha256: Of the library, in hexadecimal.
        weights: ``untrained seed=N``, or ``sha256:`` and the weights file's digest.
        target: What it was compiled for.
        parity: How closely it follows PyTorch.
    """

    path: Path
    space: str
    config: SubnetConfig
    num_bytes: int
    sha256: str
    weights: str
    target: TvmTarget
    parity: TvmParity

    @property
    def metadata_path(self) -> Path:
        """The file that says what the library is."""
        return self.path.with_name(self.path.name + ".json")

    def to_json(self) -> dict[str, object]:
        """The object of the contract, without ``schema_version``."""
        return {
            "path": str(self.path),
            "metadata_path": str(self.metadata_path),
            "space": self.space,
            "config": self.config.to_json(),
            "precision": "fp32",
            "bytes": self.num_bytes,
            "sha256": self.sha256,
            "weights": self.weights,
            "triple": self.target.triple,
            "batch_size": BATCH_SIZE,
            "runtime": f"tvm {TVM_VERSION} (untuned)",
            "parity": self.parity.to_json(),
        }


@one_thread()
def export_tvm_subnet(
    *,
    space: MobileNetV3Space,
    config: Mapping[str, object],
    out: Path,
    target: TvmTarget,
    weights: Path | None = None,
    seed: int = 0,
    target_info: Mapping[str, str] | None = None,
) -> ExportedLibrary:
    """Export a sub-network to ONNX, compile that with TVM, and verify both.

    Nothing appears at ``out`` but a verified library, with a file of metadata beside it.

    Args:
        space: The family of networks.
        config: The sub-network; its resolution is the library's input size.
        out: The library to write.
        target: The board's processor.
        weights: A supernet's weights (safetensors). None: untrained weights.
        seed: Of the untrained weights.
        target_info: What the network was chosen for, for the metadata.

    Raises:
        BackendUnavailableError: TVM is not installed, or there is nothing to link with.
        ConfigError: The configuration is not of the space, or there is no such weights
            file.
        CorruptFileError: The weights are damaged or of another space.
        ExportParityError: The library does not compute what the network computes.
        OutputError: A file cannot be written.
    """
    space.search_space.encode(config)
    find_tvm()
    find_linker(target.triple)
    require_writable(out)
    with tempfile.TemporaryDirectory(prefix="effdl-export-") as folder:
        onnx_path = Path(folder) / "model.onnx"
        exported = export_subnet(
            space=space,
            config=config,
            out=onnx_path,
            weights=weights,
            seed=seed,
            target_info=target_info,
        )
        model = onnx_path.read_bytes()
    network = build_network(space, exported.config, weights=weights, seed=seed)
    (resolution,) = exported.config.ints("resolution")
    shape = (space.in_channels, resolution, resolution)
    library = export_tvm(model, network, target=target, sample_shape=shape)
    done = ExportedLibrary(
        path=out,
        space=space.name,
        config=exported.config,
        num_bytes=len(library.data),
        sha256=hashlib.sha256(library.data).hexdigest(),
        weights=exported.weights,
        target=target,
        parity=library.parity,
    )
    note = _metadata(done, exported, space.in_channels, target_info or {})
    write_atomically(done.metadata_path, note)
    write_atomically(out, library.data)
    return done


def _metadata(
    done: ExportedLibrary,
    exported: ExportedSubnet,
    in_channels: int,
    target_info: Mapping[str, str],
) -> bytes:
    """What the library is, for whoever finds it: no paths of this machine."""
    facts = {k: v for k, v in done.to_json().items() if k not in ("path", "metadata_path")}
    (resolution,) = exported.config.ints("resolution")
    more = {
        "schema_version": 1,
        "function": "main",
        "input_shape": [BATCH_SIZE, in_channels, resolution, resolution],
        "onnx_sha256": exported.sha256,
        "target": dict(target_info),
    }
    return (json.dumps({**more, **facts}, indent=2, sort_keys=True) + "\n").encode()
