"""The child of `effdl.export.inspection`: started as a module, never imported by others."""

import contextlib
import resource
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from effdl.export.inspection import (
    OUT_OF_MEMORY,
    UNREADABLE,
    Facts,
    InspectionRequest,
    TensorFacts,
)
from effdl.export.onnx_proto import external_tensors, find_local_path, graph_sha256
from effdl.export.runtime import (
    RUNTIME_ERRORS,
    ParityCase,
    make_cases,
    open_session,
    relative_error,
    run,
)

_MAX_OUTPUT_BYTES = 256 << 20
_MAX_NAMES = 5
_MAX_TEXT = 500


def main() -> int:
    """Answer the request in the first argument; returns the exit status."""
    request = msgspec.json.decode(sys.argv[1], type=InspectionRequest)
    for limit, value in (
        (resource.RLIMIT_AS, request.memory_bytes),
        (resource.RLIMIT_CPU, request.cpu_seconds),
        (resource.RLIMIT_FSIZE, _MAX_OUTPUT_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):
            # The hard limit lies above: at the soft one, the signal still says which it was.
            resource.setrlimit(limit, (value, value + 5))
    try:
        data = Path(request.path).read_bytes()
        model = onnx.ModelProto.FromString(data)
        if not model.HasField("graph") or not model.ir_version or not model.opset_import:
            return _refuse("it has no graph or no version")
        facts, outputs = _inspect(model, data, request)
    except MemoryError:
        return OUT_OF_MEMORY
    except (DecodeError, OSError) as error:
        return _refuse(str(error))
    folder = Path(request.folder)
    np.savez(folder / "outputs.npz", *outputs)
    (folder / "facts.msgpack").write_bytes(msgspec.msgpack.encode(facts))
    return 0


def _refuse(reason: str) -> int:
    sys.stderr.write(" ".join(reason.split())[:_MAX_TEXT])
    return UNREADABLE


def _inspect(
    model: onnx.ModelProto, data: bytes, request: InspectionRequest
) -> tuple[Facts, list[NDArray[np.float32]]]:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(_tensor_facts(v) for v in model.graph.input if v.name not in weights)
    outputs = tuple(_tensor_facts(v) for v in model.graph.output)
    external = external_tensors(model)
    why_not_run = "its weights stand in other files" if external else _why_not_run(inputs, outputs)
    facts = Facts(
        opsets={entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        metadata={entry.key: entry.value for entry in model.metadata_props},
        inputs=inputs,
        outputs=outputs,
        num_nodes=len(model.graph.node),
        graph_sha256=graph_sha256(model),
        external_tensors=external[:_MAX_NAMES],
        local_path=find_local_path(model),
        checker_error=None if external else _checker_error(model),
        runtime_error=None,
        why_not_run=why_not_run,
        optimizer_gap=None,
        cases=(),
    )
    if external:
        return facts, []
    try:
        sessions = [open_session(data, optimize=o, num_threads=1) for o in (True, False)]
        if why_not_run is not None:
            return facts, []
        cases = _cases(inputs[0], request)
        images = [case.make([int(d) for d in inputs[0].shape[1:]]) for case in cases]
        optimized, plain = ([run(s, image) for image in images] for s in sessions)
    except RUNTIME_ERRORS as error:
        said = " ".join(str(error).split())[:_MAX_TEXT]
        return msgspec.structs.replace(facts, runtime_error=said or type(error).__name__), []
    gaps = [
        relative_error(y, z)
        for case, y, z in zip(cases, optimized, plain, strict=True)
        if case.kind != "extreme"
    ]
    return msgspec.structs.replace(facts, optimizer_gap=max(gaps), cases=cases), optimized


def _tensor_facts(value: onnx.ValueInfoProto) -> TensorFacts:
    tensor = value.type.tensor_type
    known = tensor.elem_type in onnx.TensorProto.DataType.values()
    dims = tuple(
        d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim
    )
    dtype = onnx.TensorProto.DataType.Name(tensor.elem_type) if known else "UNDEFINED"
    return TensorFacts(name=value.name, dtype=dtype, shape=dims)


def _why_not_run(inputs: tuple[TensorFacts, ...], outputs: tuple[TensorFacts, ...]) -> str | None:
    if len(inputs) != 1 or not outputs:
        return f"wanted one input and an output to run it, got {len(inputs)} and {len(outputs)}"
    (image,) = inputs
    if image.dtype != "FLOAT" or outputs[0].dtype != "FLOAT":
        return f"wanted float32 to run it, got {image.dtype} in and {outputs[0].dtype} out"
    if not image.shape or not all(isinstance(d, int) and d > 0 for d in image.shape[1:]):
        return f"wanted fixed sizes beside the batch to run it, got {list(image.shape)}"
    return None


def _cases(image: TensorFacts, request: InspectionRequest) -> tuple[ParityCase, ...]:
    batch = image.shape[0]
    sizes = (batch,) if isinstance(batch, int) and batch > 0 else request.batch_sizes
    return tuple(make_cases(sizes, request.seeds))


def _checker_error(model: onnx.ModelProto) -> str | None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        return " ".join(str(error).split())[:_MAX_TEXT]
    return None


if __name__ == "__main__":
    sys.exit(main())
