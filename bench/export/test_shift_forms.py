"""Temporal shifts as plain ONNX nodes, form against form, in ONNX Runtime on one thread.

Every form is the whole network, 8 frames, against the image network without shifts, all
interleaved in one run. The package exports the form "split streams"; the others are what
else was tried.
"""

import datetime
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnxscript import ir
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from effdl.export.graph_builder import GraphBuilder
from effdl.export.onnx_export import export_onnx
from effdl.export.shift_pattern import Shift, constant, find_shifts
from effdl.export.shift_streams import split_shifted_channels
from effdl.models.tsm.network import TSM, ShiftOptions, tsm_mobilenet_v2, tsm_resnet50
from effdl.targets.host import describe_host
from effdl.targets.measure.onnxruntime import OnnxRuntime, make_feeds, make_run, open_session
from effdl.targets.sampler import HostSampler, Opener
from effdl.targets.timing import Protocol, measure_interleaved

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "benchmarks"
T, SIZE = 8, 224
# A network takes a quarter of a second: few samples, many rounds.
PROTOCOL = Protocol(name="forms", min_rounds=6, max_rounds=8, samples_per_round=2)
BUDGET_S = 150.0
Form = Callable[[ir.Model], object]


def slices_and_zeros(x: Tensor, num_segments: int, fold: int) -> Tensor:
    """Copies into zeros, as the authors' code is written."""
    clips = x.unflatten(0, (-1, num_segments))
    y = torch.zeros_like(clips)
    y[:, :-1, :fold] = clips[:, 1:, :fold]
    y[:, 1:, fold : 2 * fold] = clips[:, :-1, fold : 2 * fold]
    y[:, :, 2 * fold :] = clips[:, :, 2 * fold :]
    return y.flatten(0, 1)


def concatenation(x: Tensor, num_segments: int, fold: int) -> Tensor:
    """Three concatenations, as mmaction2's is; its zeros are differences there."""
    clips = x.reshape(-1, num_segments, x.shape[1], x.shape[2] * x.shape[3])
    ahead, behind, still = clips.split([fold, fold, x.shape[1] - 2 * fold], dim=2)
    ahead = torch.cat([ahead[:, 1:], (ahead - ahead)[:, :1]], 1)
    behind = torch.cat([(behind - behind)[:, :1], behind[:, :-1]], 1)
    return torch.cat([ahead, behind, still], 2).reshape(x.shape)


class ShiftBefore(nn.Module):
    """A convolution after a shift that is written in PyTorch."""

    def __init__(self, convolution: nn.Module, shift: Callable[..., Tensor]) -> None:
        super().__init__()
        self.convolution, self.shift = convolution, shift

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(self.shift(x, T, x.shape[1] // 8))


def at_shifts(rewrite: Callable[[GraphBuilder, Shift], None]) -> Form:
    """A form that puts other nodes in the place of each shift's."""

    def form(model: ir.Model) -> None:
        builder = GraphBuilder(model.graph, "form")
        for shift in find_shifts(model.graph):
            rewrite(builder, shift)
        remove_unused(model.graph)

    return form


def remove_unused(graph: ir.Graph) -> None:
    outputs = set(graph.outputs)
    for node in reversed(list(graph)):
        if not any(value.uses() or value in outputs for value in node.outputs):
            graph.remove(node, safe=True)
    for name in [n for n, v in graph.initializers.items() if not v.uses()]:
        graph.initializers.pop(name)


def parts_of(builder: GraphBuilder, shift: Shift, sizes: tuple[int, ...]) -> list[ir.Value]:
    """Channels of frames by Slice: first sections, then what stays."""
    parts, begin = [], 0
    for size in sizes:
        bounds = [builder.integers([n], "bound") for n in (begin, begin + size, 1)]
        parts.append(
            builder.node(
                "Slice",
                [shift.source, *bounds],
                before=shift.node,
                like=shift.source,
                sizes=(size, *shift.sizes),
            )
        )
        begin += size
    return parts


def padded(builder: GraphBuilder, shift: Shift, x: ir.Value, fold: int, offset: int) -> ir.Value:
    """Frames moved by one Pad of their clips."""
    at, row = shift.node, fold * shift.sizes[0] * shift.sizes[1]
    shape = builder.integers((-1, T, row), "shape")
    y = builder.node("Reshape", [x, shape], before=at, like=x)
    pads = builder.integers((0, -offset, 0, 0, offset, 0), "pads")
    y = builder.node("Pad", [y, pads], before=at, like=y)
    shape = builder.integers((-1, fold, *shift.sizes), "shape")
    return builder.node("Reshape", [y, shape], before=at, like=x, sizes=(fold, *shift.sizes))


def only_user(value: ir.Value) -> ir.Node:
    (use,) = value.uses()
    return use.node


def gather_nd(builder: GraphBuilder, shift: Shift) -> None:
    """Rows of frames by GatherND, which has them on the first axis."""
    (_, fold, _), _ = shift.moves
    at, rows = shift.node, shift.channels // fold
    row = fold * shift.sizes[0] * shift.sizes[1]
    source = np.arange(T * rows).reshape(T, rows)
    picked = source.copy()
    picked[:, 0] = [*source[1:, 0], T * rows]
    picked[:, 1] = [T * rows, *source[:-1, 1]]
    shape = builder.integers((-1, T * rows, row), "shape")
    y = builder.node("Reshape", [shift.source, shape], before=at, like=shift.source)
    pads = builder.integers((0, 0, 0, 0, 1, 0), "pads")
    y = builder.node("Pad", [y, pads], before=at, like=y)
    y = builder.node("Transpose", [y], before=at, like=y, perm=[1, 0, 2])
    indices = builder.integers(picked.reshape(-1).tolist(), "rows")
    axis = builder.integers([1], "axis")
    indices = builder.node("Unsqueeze", [indices, axis], before=at, like=indices)
    y = builder.node("GatherND", [y, indices], before=at, like=y)
    y = builder.node("Transpose", [y], before=at, like=y, perm=[1, 0, 2])
    sizes = (shift.channels, *shift.sizes)
    shape = builder.integers((-1, *sizes), "shape")
    y = builder.node("Reshape", [y, shape], before=at, like=shift.source, sizes=sizes)
    ir.convenience.replace_all_uses_with(shift.result, y)


def k_split(builder: GraphBuilder, shift: Shift) -> None:
    """Three 1x1 convolutions of slices, summed."""
    (_, fold, first), (_, _, second) = shift.moves
    still = shift.channels - 2 * fold
    ahead, behind, rest = parts_of(builder, shift, (fold, fold, still))
    inputs = [
        rest,
        padded(builder, shift, ahead, fold, first),
        padded(builder, shift, behind, fold, second),
    ]
    conv = only_user(shift.result)
    weight = constant(conv.inputs[1])
    assert weight is not None
    cuts = [weight[:, 2 * fold :], weight[:, :fold], weight[:, fold : 2 * fold]]
    total = None
    for x, cut in zip(inputs, cuts, strict=True):
        operands = [x, builder.constant(np.ascontiguousarray(cut), "weight")]
        operands += [conv.inputs[2]] if total is None else []
        y = builder.node("Conv", operands, before=conv, like=conv.outputs[0], kernel_shape=[1, 1])
        total = y if total is None else builder.node("Add", [total, y], before=conv, like=y)
    assert total is not None
    ir.convenience.replace_all_uses_with(conv.outputs[0], total)


def dense_temporal(builder: GraphBuilder, shift: Shift) -> None:
    """One (3, 1) convolution over [N, C, T, H*W]: three times the arithmetic."""
    (_, fold, _), _ = shift.moves
    conv = only_user(shift.result)
    weight = constant(conv.inputs[1])
    assert weight is not None
    kernel = np.zeros((*weight.shape[:2], 3, 1), np.float32)
    kernel[:, :fold, 2], kernel[:, fold : 2 * fold, 0] = (
        weight[:, :fold, 0],
        weight[:, fold : 2 * fold, 0],
    )
    kernel[:, 2 * fold :, 1] = weight[:, 2 * fold :, 0]
    operands = [builder.constant(kernel, "weight"), conv.inputs[2]]
    y = over_time(builder, shift, shift.source, shift.channels, operands, len(weight), 1)
    ir.convenience.replace_all_uses_with(conv.outputs[0], y)


def depthwise_temporal(builder: GraphBuilder, shift: Shift) -> None:
    """A depthwise (3, 1) convolution of ones and zeros over the quarter that moves."""
    (_, fold, _), _ = shift.moves
    moving, still = parts_of(builder, shift, (2 * fold, shift.channels - 2 * fold))
    kernel = np.zeros((2 * fold, 1, 3, 1), np.float32)
    kernel[:fold, 0, 2], kernel[fold:, 0, 0] = 1, 1
    operands = [builder.constant(kernel, "weight")]
    y = over_time(builder, shift, moving, 2 * fold, operands, 2 * fold, 2 * fold)
    y = builder.node("Concat", [y, still], before=shift.node, like=shift.source, axis=1)
    ir.convenience.replace_all_uses_with(shift.result, y)


def over_time(
    builder: GraphBuilder,
    shift: Shift,
    x: ir.Value,
    channels: int,
    operands: Sequence[ir.Value | None],
    out_channels: int,
    group: int,
) -> ir.Value:
    at, pixels = shift.node, shift.sizes[0] * shift.sizes[1]
    shape = builder.integers((-1, T, channels, pixels), "shape")
    y = builder.node("Reshape", [x, shape], before=at, like=x)
    y = builder.node("Transpose", [y], before=at, like=y, perm=[0, 2, 1, 3])
    y = builder.node(
        "Conv", [y, *operands], before=at, like=y, group=group, pads=[1, 0, 1, 0],
        kernel_shape=[3, 1],
    )  # fmt: skip
    y = builder.node("Transpose", [y], before=at, like=y, perm=[0, 2, 1, 3])
    shape = builder.integers((-1, out_channels, *shift.sizes), "shape")
    return builder.node("Reshape", [y, shape], before=at, like=x)


FORMS: dict[str, Form] = {
    "split streams": split_shifted_channels,
    "gather": lambda model: split_shifted_channels(model, block=1 << 30),
    "pads and concat": lambda model: None,
    "gather nd": at_shifts(gather_nd),
    "k-split": at_shifts(k_split),
    "dense (3,1)": at_shifts(dense_temporal),
    "depthwise (3,1)": at_shifts(depthwise_temporal),
}
WRITTEN_IN_PYTORCH = {"naive": slices_and_zeros, "concatenation": concatenation}
NETWORKS = {"resnet50": tsm_resnet50, "mobilenet_v2": tsm_mobilenet_v2}


def network(name: str, form: str) -> TSM:
    torch.manual_seed(0)
    shift = WRITTEN_IN_PYTORCH.get(form)
    plain = form == "image network" or shift is not None
    options = ShiftOptions(num_segments=T, form="none" if plain else "separate")
    module = NETWORKS[name](options=options).eval()
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        # Without a bias the folded convolutions would be others than those of a trained network.
        nn.init.uniform_(norm.bias, -0.1, 0.1)
    if shift is None:
        return module
    for path in module.shifted_names:
        parent, _, attribute = path.rpartition(".")
        owner = module.backbone.get_submodule(parent)
        setattr(owner, attribute, ShiftBefore(getattr(owner, attribute), shift))
    return module


def export(name: str, form: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, int]:
    """A form's file, through the package's own exporter, and its nodes."""
    path = folder / f"{form.replace(' ', '-')}.onnx"
    rewrite = FORMS.get(form, lambda model: None)
    with monkeypatch.context() as patch:
        patch.setattr("effdl.export.onnx_export.split_shifted_channels", rewrite)
        example = torch.zeros(2, T, 3, SIZE, SIZE)
        file = export_onnx(network(name, form), path, example=example, metadata={})
    return path, file.num_nodes


def opener(path: Path) -> Opener:
    def call() -> HostSampler:
        session = open_session(path)
        return HostSampler(make_run(session, make_feeds(session)))

    return call


def output_of(path: Path, clips: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = open_session(path)
    return np.asarray(session.run(None, {"image": clips})[0])


@pytest.mark.parametrize("name", NETWORKS)
def test_shift_forms(
    benchmark: BenchmarkFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    forms = ["image network", *FORMS, *WRITTEN_IN_PYTORCH]
    files = {form: export(name, form, tmp_path, monkeypatch) for form in forms}
    clips = np.random.default_rng(0).standard_normal((2, T, 3, SIZE, SIZE), dtype=np.float32)
    with torch.inference_mode():
        wanted = network(name, "split streams")(torch.from_numpy(clips)).numpy()
    openers = [opener(path) for path, _ in files.values()]

    def measure() -> list[float]:
        timings = measure_interleaved(
            openers,
            instruments=OnnxRuntime().instruments(),
            protocol=PROTOCOL,
            budget_s=BUDGET_S,
        )
        return [t.p20_ms for t in timings]

    p20_ms = benchmark.pedantic(measure, rounds=1)
    rows = []
    print()
    for (form, (path, num_nodes)), ms in zip(files.items(), p20_ms, strict=True):
        overhead = 100 * (ms / p20_ms[0] - 1)
        error = np.abs(output_of(path, clips) - wanted).max() / np.abs(wanted).max()
        rows.append(
            {
                "network": name,
                "form": form,
                "num_nodes": num_nodes,
                "p20_ms": ms,
                "overhead_percent": overhead,
                "max_relative_error": None if form == "image network" else float(error),
            }
        )
        print(f"{name:13}{form:18}{num_nodes:5} nodes {ms:9.2f} ms {overhead:+7.1f} % {error:9.1e}")
    keep(name, rows)
    benchmark.extra_info["rows"] = rows
    assert all(r["max_relative_error"] < 1e-4 for r in rows[1:])


def keep(name: str, rows: list[dict[str, Any]]) -> None:
    """Put a network's rows into this machine's file of this month."""
    host = describe_host()
    machine = re.sub(r"[^a-z0-9]+", "-", host.name.lower()).strip("-")
    path = FOLDER / f"shift-forms-{machine}-{datetime.date.today():%Y-%m}.json"
    old = json.loads(path.read_text())["rows"] if path.is_file() else []
    document = {
        "schema_version": 1,
        "device": host.name,
        "runtime": str(OnnxRuntime().build),
        "num_threads": 1,
        "num_frames": T,
        "batch_size": 1,
        "rows": [r for r in old if r["network"] != name] + rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
