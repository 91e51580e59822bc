"""Which operators run on bytes, by a made clock; and what is timed, by the real runtime."""

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from effdl.export.int8_choice import choose_int8_operators, give_up_least_gain
from effdl.export.int8_operators import find_int8_operators
from effdl.export.int8_segments import Segments, with_batch_size
from effdl.export.onnx_export import export_onnx
from effdl.export.runtime import open_session


class Chain(nn.Module):
    """Three convolutions in a row; the first two alike."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 5, 1)
        )
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).mean((2, 3)))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("chain") / "model.onnx"
    export_onnx(Chain().eval(), path, example=torch.zeros(2, 3, 8, 8), metadata={})
    return with_batch_size(onnx.load(path), 1)


class Clock:
    """A made clock: nodes cost what they are said to, convolutions on bytes something else."""

    def __init__(self, costs: dict[str, float], *, int8_costs: dict[str, float]) -> None:
        self.costs, self.int8_costs, self.num_timed = costs, int8_costs, 0

    def __call__(self, models: Sequence[bytes]) -> list[float]:
        self.num_timed += len(models)
        return [self._milliseconds(onnx.load_model_from_string(m)) for m in models]

    def _milliseconds(self, model: onnx.ModelProto) -> float:
        total, from_int8 = 0.0, set()
        for node in model.graph.node:
            kind = node.op_type
            if kind == "Conv" and node.input[1].endswith("dequantized"):
                total += self.int8_costs[kind]
                from_int8.update(node.output)
            elif kind == "QuantizeLinear":
                # Behind an int8 operator it is fused.
                total += 0.0 if node.input[0] in from_int8 else self.costs.get(kind, 0.0)
            elif kind != "DequantizeLinear":
                total += self.costs.get(kind, 0.5)
        return total


def precisions(model: onnx.ModelProto, clock: Clock) -> list[str]:
    choices = choose_int8_operators(model, find_int8_operators(model), clock)
    assert all(c.int8_ms <= c.fp32_ms for c in choices if c.precision == "int8")
    assert all(c.int8_ms > c.fp32_ms for c in choices if c.precision == "fp32")
    return [c.precision for c in choices]


def test_bytes_that_are_faster_stay(model: onnx.ModelProto) -> None:
    clock = Clock({"Conv": 2.0, "Gemm": 1.0}, int8_costs={"Conv": 1.0})
    assert precisions(model, clock) == ["int8"] * 4


def test_bytes_that_are_slower_fall_back(model: onnx.ModelProto) -> None:
    clock = Clock({"Conv": 1.0, "Gemm": 1.0, "QuantizeLinear": 0.1}, int8_costs={"Conv": 5.0})
    assert precisions(model, clock) == ["fp32"] * 4


def test_conversions_count(model: onnx.ModelProto) -> None:
    """Saving 1 is not worth a conversion of 3 to and fro; in a row they share it."""
    clock = Clock({"Conv": 2.0, "QuantizeLinear": 3.0}, int8_costs={"Conv": 1.0})
    assert precisions(model, clock) == ["int8", "int8", "int8", "fp32"]


def test_equal_segments_are_timed_once(model: onnx.ModelProto) -> None:
    clock = Clock({"Conv": 2.0}, int8_costs={"Conv": 1.0})
    precisions(model, clock)
    num_first = clock.num_timed
    assert num_first <= 8
    segments = Segments(model, find_int8_operators(model))
    names = [op.name for op in find_int8_operators(model)]
    signatures = {segments.signature(name, names) for name in names}
    assert len(signatures) == 4
    assert segments.signature(names[0], names) != segments.signature(names[0], names[1:])


def test_segments_run_in_both_forms(model: onnx.ModelProto) -> None:
    operators = find_int8_operators(model)
    segments, names = Segments(model, operators), {op.name for op in operators}
    for operator in operators:
        forms = [segments.cut(operator.name, chosen) for chosen in (names, names - {operator.name})]
        runs = []
        for form in forms:
            session = open_session(form, optimize=True, num_threads=1)
            rng = np.random.default_rng(0)
            feeds = {
                v.name: rng.standard_normal(v.shape, dtype=np.float32) for v in session.get_inputs()
            }
            runs.append(session.run(None, feeds)[0])
        assert runs[0].shape == runs[1].shape
        # Made ranges are coarse, but it is the same computation.
        assert np.abs(runs[0] - runs[1]).max() < 0.2 * np.abs(runs[1]).max()
        num_quantized = [
            sum(n.op_type == "DequantizeLinear" for n in onnx.load_model_from_string(f).graph.node)
            for f in forms
        ]
        assert num_quantized[0] > num_quantized[1]


def test_giving_up_ends(model: onnx.ModelProto) -> None:
    clock = Clock({"Conv": 2.0, "Gemm": 1.0}, int8_costs={"Conv": 1.0})
    choices = choose_int8_operators(model, find_int8_operators(model), clock)
    numbers = []
    for _ in range(4):
        choices = give_up_least_gain(choices)
        numbers.append(sum(c.precision == "int8" for c in choices))
    assert numbers == [2, 1, 0, 0]
    assert all("whole graph" in c.reason for c in choices)
