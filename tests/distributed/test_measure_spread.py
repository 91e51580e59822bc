"""Timing models on workers: the right files, the right place, every round kept."""

import base64
import hashlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from effdl.distributed.executor import SerialExecutor
from effdl.distributed.local_processes import LocalProcessExecutor
from effdl.distributed.measure_spread import measure_spread
from effdl.distributed.measure_tasks import (
    ModelFile,
    ModelsMeasured,
    ModelsToMeasure,
    Place,
    keep_model,
    measure_models_on_worker,
)
from effdl.distributed.task import Task
from effdl.errors import ConfigError, CorruptFileError, TableMismatchError, UnknownNameError
from effdl.targets.measure.onnxruntime import OnnxRuntime
from effdl.targets.timing import Protocol, Round

SHORT = Protocol(
    name="short", min_rounds=2, max_rounds=2, samples_per_round=3, min_sample_s=1e-5, min_span_s=0
)


def _model(channels: int, repeats: int = 1) -> bytes:
    """A row of pointwise convolutions on 24 by 24 pixels."""
    weight = np.eye(channels, dtype=np.float32).reshape(channels, channels, 1, 1)
    names = ["input", *(f"value{i}" for i in range(repeats - 1)), "output"]
    shape = [1, channels, 24, 24]
    graph = helper.make_graph(
        [helper.make_node("Conv", [a, "w"], [b]) for a, b in pairwise(names)],
        "test",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, "w")],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, ir_version=8, opset_imports=opsets).SerializeToString()


MODELS = {"small": _model(4), "large": _model(64, 40), "middle": _model(32, 4)}


class Watching(SerialExecutor):
    """A serial executor that tells which tasks it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks: list[Task] = []

    def run(self, tasks: Sequence[Task], **settings) -> list[bytes]:
        self.tasks += tasks
        return super().run(tasks, **settings)


def test_models_are_timed_on_workers(tmp_path: Path) -> None:
    kept: dict[str, list[Round]] = {}
    files = {key: keep_model(tmp_path, model) for key, model in MODELS.items()}
    with LocalProcessExecutor(2) as executor:
        measured = measure_spread(
            executor,
            {**MODELS, "small": files["small"], "large": files["large"]},
            device="cpu",
            protocol=SHORT,
            models_per_task=2,
            record=lambda key, one: kept.setdefault(key, []).append(one),
        )
    assert list(measured.timings) == list(MODELS)
    assert {key: len(rounds) for key, rounds in kept.items()} == dict.fromkeys(MODELS, 2)
    assert all(t.num_rounds == 2 for t in measured.timings.values())
    assert measured.timings["large"].p20_ms > 3 * measured.timings["small"].p20_ms
    # A worker keeps to one core, and is the same machine for all that.
    assert measured.place == Place.of(OnnxRuntime())


def test_tasks_are_exclusive_and_share_the_budget() -> None:
    executor = Watching()
    measure_spread(executor, MODELS, device="cpu", protocol=SHORT, models_per_task=2, budget_s=30.0)
    asked = [msgspec.json.decode(t.argument, type=ModelsToMeasure) for t in executor.tasks]
    assert [t.resources for t in executor.tasks] == [frozenset({"cpu"})] * 2
    assert [len(a.models) for a in asked] == [2, 1]
    assert [a.budget_s for a in asked] == [20.0, 10.0]
    assert {m for a in asked for m in a.models} == set(MODELS.values())
    again = Watching()
    measure_spread(again, MODELS, device="cpu", protocol=SHORT, models_per_task=2, budget_s=30.0)
    assert [t.key for t in again.tasks] == [t.key for t in executor.tasks]


def test_earlier_rounds_count() -> None:
    first = Round(seconds=(1.0, 1.0, 1.0), interrupted=(False,) * 3, reference_s=1e-3)
    kept: list[tuple[str, Round]] = []
    measured = measure_spread(
        SerialExecutor(),
        MODELS,
        device="cpu",
        protocol=SHORT,
        earlier={"small": [first, first], "large": [first]},
        record=lambda key, one: kept.append((key, one)),
    )
    assert sorted(key for key, _ in kept) == ["large", "middle", "middle"]
    assert {key: t.num_rounds for key, t in measured.timings.items()} == dict.fromkeys(MODELS, 2)
    assert measured.timings["small"].num_samples == 6


def test_equal_models_share_one_measurement() -> None:
    executor = Watching()
    measured = measure_spread(
        executor,
        {"a": MODELS["small"], "b": MODELS["small"]},
        device="cpu",
        protocol=SHORT,
        models_per_task=1,
    )
    assert measured.timings["a"] == measured.timings["b"]
    assert measured.timings["a"].num_rounds == 2


def test_another_device_is_refused() -> None:
    elsewhere = msgspec.structs.replace(Place.of(OnnxRuntime()), device_fingerprint="0" * 16)
    kept: list[Round] = []
    with pytest.raises(TableMismatchError, match=r"wanted .*\[0000000000000000\].*, got"):
        measure_spread(
            SerialExecutor(),
            MODELS,
            device="cpu",
            place=elsewhere,
            protocol=SHORT,
            record=lambda key, one: kept.append(one),
        )
    assert kept == []


def test_a_file_that_changed_is_refused(tmp_path: Path) -> None:
    kept = keep_model(tmp_path, MODELS["small"])
    assert kept.sha256 == hashlib.sha256(MODELS["small"]).hexdigest()
    assert keep_model(tmp_path, MODELS["small"]) == kept
    Path(kept.path).write_bytes(MODELS["large"])
    with pytest.raises(CorruptFileError, match=f"wanted SHA-256 {kept.sha256}"):
        measure_models_on_worker(ModelsToMeasure(models=(kept,), protocol=SHORT))
    gone = ModelFile(path=str(tmp_path / "gone.onnx"), sha256=kept.sha256)
    with pytest.raises(ConfigError, match=r"cannot read .*gone\.onnx"):
        measure_models_on_worker(ModelsToMeasure(models=(gone,), protocol=SHORT))


def test_requests_survive_the_way() -> None:
    asked = ModelsToMeasure(
        models=(b"\x00\xff", ModelFile(path="/p", sha256="0" * 64)),
        protocol=SHORT,
        earlier=((Round(seconds=(0.1,), interrupted=(True,), reference_s=0.3),), ()),
    )
    text = Task.of(measure_models_on_worker, asked).argument
    assert base64.b64encode(b"\x00\xff") in text
    assert msgspec.json.decode(text, type=ModelsToMeasure) == asked


def test_what_cannot_be_asked() -> None:
    with pytest.raises(UnknownNameError, match="unknown way to measure 'onnxrumtime'"):
        measure_models_on_worker(ModelsToMeasure(models=(), runtime="onnxrumtime"))
    with pytest.raises(ConfigError, match="at least 1 model per task, got 0"):
        measure_spread(SerialExecutor(), MODELS, device="cpu", models_per_task=0)
    with pytest.raises(ConfigError, match="at least 1 model to measure"):
        measure_spread(SerialExecutor(), {}, device="cpu")


def test_a_model_that_crashes_nothing_but_its_task() -> None:
    with (
        LocalProcessExecutor(1) as executor,
        pytest.raises(CorruptFileError, match="cannot run a model given as bytes"),
    ):
        measure_spread(executor, {"a": b"not a model"}, device="cpu", protocol=SHORT)


def test_an_answer_is_json() -> None:
    answer = measure_models_on_worker(ModelsToMeasure(models=(MODELS["small"],), protocol=SHORT))
    text = msgspec.json.encode(answer, order="sorted")
    assert msgspec.json.decode(text, type=ModelsMeasured) == answer
