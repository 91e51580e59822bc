"""What stands in an ONNX file beside the arithmetic: traces, paths, foreign files, digests.

No torch here: the child process that opens untrusted files imports this module.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import cast

import onnx
from google.protobuf.message import Message

__all__ = ["external_tensors", "find_local_path", "graph_sha256", "replace_annotations"]

# Folders that exist on one machine only, traces of Python, and Windows drives.
_LOCAL_PATH = re.compile(
    r"(?:file:/)?/(?:home|root|Users|tmp|var|opt|usr|mnt|srv|private|workspace)/[\w.\-/]+"
    r"|[A-Za-z]:\\\\?[\w.\-\\]+"
    r"|[\w.\-/]*site-packages[\w.\-/]*"
    r'|File "[^"]+", line \d+'
)
_TENSOR_DATA = frozenset({"raw_data", "string_data"})


def _walk(message: Message) -> Iterator[Message]:
    """The message and every message in it, outermost first."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in [value] if isinstance(value, Message) else value:
                yield from _walk(child)


def replace_annotations(model: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    """Clear every documentation string and metadata entry, in place; then put ``metadata`` in.

    PyTorch's exporter writes a stack trace with local paths at every node.
    """
    for message in _walk(model):
        for name in ("doc_string", "metadata_props"):
            if name in message.DESCRIPTOR.fields_by_name:
                message.ClearField(name)
    for key, value in sorted(metadata.items()):
        model.metadata_props.add(key=key, value=value)


def find_local_path(model: onnx.ModelProto) -> str | None:
    """The first text in the model, outside tensor data, that looks like a local path."""
    for message in _walk(model):
        for field, value in message.ListFields():
            if field.name in _TENSOR_DATA or field.cpp_type != field.CPPTYPE_STRING:
                continue
            for text in [value] if isinstance(value, str | bytes) else value:
                decoded = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
                found = _LOCAL_PATH.search(decoded)
                if found is not None:
                    return found.group()[:200]
    return None


def external_tensors(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the tensors whose data stand in another file."""
    external = onnx.TensorProto.EXTERNAL
    tensors = (cast(onnx.TensorProto, m) for m in _walk(model) if isinstance(m, onnx.TensorProto))
    return tuple(t.name for t in tensors if t.data_location == external or t.external_data)


def graph_sha256(model: onnx.ModelProto) -> str:
    """SHA-256 of the graph with its weights, in hexadecimal; metadata do not count."""
    return hashlib.sha256(model.graph.SerializeToString(deterministic=True)).hexdigest()
