"""PyTorch to one clean ONNX file.

PyTorch's exporter as it stands writes weights into a second file, local paths
into every node, and another opset than the one asked for when its conversion
fails; each of the three is undone or refused here.
"""

import contextlib
import hashlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

import effdl
from effdl.errors import ConfigError, ExportParityError
from effdl.export.metadata import EXPORTER_KEY, GRAPH_SHA256_KEY
from effdl.export.onnx_proto import (
    external_tensors,
    find_local_path,
    graph_sha256,
    replace_annotations,
)
from effdl.export.shift_streams import split_shifted_channels
from effdl.files import write_atomically

__all__ = ["INPUT_NAME", "OPSET_VERSION", "OUTPUT_NAME", "OnnxFile", "export_onnx"]

INPUT_NAME = "image"
OUTPUT_NAME = "logits"
OPSET_VERSION = 20
# A protobuf message holds 2 GiB; beyond this, weights would need a second file.
_MAX_BYTES = 1_500_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxFile:
    """An ONNX file that was written.

    Attributes:
        path: Where it is.
        opset: Version of the operator set it uses.
        num_bytes: Its size in bytes.
        sha256: Of the whole file, in hexadecimal.
        num_nodes: Nodes of its graph.
    """

    path: Path
    opset: int
    num_bytes: int
    sha256: str
    num_nodes: int


def export_onnx(
    module: nn.Module,
    path: Path,
    *,
    example: Tensor,
    metadata: Mapping[str, str],
    opset_version: int = OPSET_VERSION,
) -> OnnxFile:
    """Write a module as one ONNX file, the same bytes each time.

    The input is ``image``, the output ``logits``, and their first dimension is
    free and called ``N``. The file appears at ``path`` complete or not at all.

    Args:
        module: In evaluation mode; one tensor in, one tensor out.
        path: Where to write; an existing file is replaced.
        example: An input of the right type and shape [batch, ...], with a batch
            of at least 2, because PyTorch takes a 1 for a constant.
        metadata: Entries for the file's ``metadata_props``; ``effdl.exporter``
            and ``effdl.graph_sha256`` are added.
        opset_version: The operator set to write.

    Raises:
        ConfigError: The module is in training mode, the example has a batch of
            1, or the weights exceed 1.5 GB.
        ExportParityError: The exporter wrote another opset, foreign operators,
            external data, or a local path.
        OutputError: The file cannot be written.
    """
    if module.training:
        raise ConfigError("module is in training mode: wanted evaluation mode", hint="call .eval()")
    if example.shape[0] < 2:
        raise ConfigError(f"example wanted a batch of 2 or more, got {example.shape[0]}")
    num_bytes = sum(t.numel() * t.element_size() for t in module.state_dict().values())
    if num_bytes > _MAX_BYTES:
        raise ConfigError(f"weights wanted at most {_MAX_BYTES} bytes, got {num_bytes}")

    model = _convert(module, example, opset_version)
    _require_plain(model, opset_version)
    replace_annotations(model, {})
    exporter = {
        EXPORTER_KEY: f"torch {torch.__version__}",
        GRAPH_SHA256_KEY: graph_sha256(model),
    }
    replace_annotations(model, {**metadata, **exporter})
    model.producer_name, model.producer_version = "effdl", effdl.__version__
    _require_no_local_path(model)

    data = model.SerializeToString(deterministic=True)
    write_atomically(path, data)
    return OnnxFile(
        path=path,
        opset=opset_version,
        num_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        num_nodes=len(model.graph.node),
    )


def _convert(module: nn.Module, example: Tensor, opset_version: int) -> onnx.ModelProto:
    with _silence(), torch.no_grad():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            opset_version=opset_version,
            dynamic_shapes=({0: torch.export.Dim("N")},),
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            external_data=False,
            optimize=True,
            verify=False,
            report=False,
            verbose=False,
        )
    assert program is not None
    split_shifted_channels(program.model)
    return program.model_proto


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the exporter's prints, warnings and log lines off the terminal."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _require_plain(model: onnx.ModelProto, opset_version: int) -> None:
    opsets = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    if opsets != {"ai.onnx": opset_version} or model.functions:
        got = ", ".join(f"{domain} {version}" for domain, version in sorted(opsets.items()))
        raise ExportParityError(
            f"PyTorch's exporter wrote operator sets {got} and {len(model.functions)} functions: "
            f"wanted ai.onnx {opset_version} alone",
            hint="export at opset 20",
        )
    external = external_tensors(model)
    if external:
        raise ExportParityError(f"{len(external)} tensors stand outside the file: wanted one file")


def _require_no_local_path(model: onnx.ModelProto) -> None:
    found = find_local_path(model)
    if found is not None:
        raise ExportParityError(f"the exported file would contain the local path {found!r}")
