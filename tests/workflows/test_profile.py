"""Profiling a small space for real, and planning within a budget."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from effdl.distributed.executor import SerialExecutor
from effdl.distributed.local_processes import LocalProcessExecutor
from effdl.errors import ConfigError, TargetUnavailableError, UnstableMeasurementError
from effdl.models.mobilenet_v3.space import MobileNetV3Space, UnitSpec, ofa_mbv3_w12
from effdl.targets.measure.onnxruntime import OnnxRuntime
from effdl.targets.measure.torch_runtime import TorchRuntime
from effdl.targets.store import MeasurementStore, default_store_path
from effdl.targets.target import Target, load_target
from effdl.targets.timing import QUICK_PROTOCOL
from effdl.workflows.host_table import export_host_table
from effdl.workflows.profile import load_host_latency_model, profile_space
from effdl.workflows.profile_plan import distinct_ops, plan_profile

_TINY = MobileNetV3Space(
    name="tiny",
    resolutions=(32, 48, 64),
    units=(
        UnitSpec(out_channels=16, stride=2, squeeze_excite=False, activation="relu"),
        UnitSpec(out_channels=24, stride=2, squeeze_excite=True, activation="hswish"),
    ),
    depths=(1, 2),
    expand_ratios=(2, 4),
    kernel_sizes=(3, 5),
    stem_channels=8,
    final_expand_channels=48,
    feature_channels=64,
    num_classes=10,
)


@pytest.fixture(scope="module")
def profiled_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the tiny space, profiled once for all tests of this file."""
    home = tmp_path_factory.mktemp("profiled")
    seen: list[tuple[int, int]] = []
    done = profile_space(
        load_target("cpu"),
        _TINY,
        quick=True,
        budget_s=60.0,
        store_path=home / "measurements.sqlite",
        progress=lambda now, total, what: seen.append((now, total)),
    )
    assert done.num_entries == done.num_measured == len(distinct_ops(_TINY))
    assert done.num_cached == done.num_interpolated == 0
    assert done.calibration is not None
    assert done.calibration.num_networks == 16
    assert seen[-1][0] == seen[-1][1] >= 6 * (done.num_entries + 16)
    return home


@pytest.fixture
def profiled(profiled_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EFFDL_HOME", str(profiled_home))
    return profiled_home / "measurements.sqlite"


def test_nothing_is_known_before_a_profile():
    assert load_host_latency_model(_TINY) is None
    assert not default_store_path().exists()


def test_a_dry_run_measures_nothing_and_writes_nothing():
    plan = profile_space(load_target("cpu"), ofa_mbv3_w12(), dry_run=True)
    assert plan.num_entries == plan.num_measured == 870
    assert plan.calibration is None
    assert plan.seconds > 1
    assert not default_store_path().exists()


def test_a_repeat_is_answered_from_the_store(profiled: Path):
    again = profile_space(load_target("cpu"), _TINY, quick=True)
    assert again.num_cached == again.num_entries
    assert again.num_measured == 0
    assert again.seconds < 1.0
    assert again.calibration is not None
    facts = again.to_json()
    assert json.loads(json.dumps(facts, allow_nan=False))["space"] == "tiny"
    assert set(facts["calibration"]) >= {"mape_percent", "num_networks"}


def test_the_model_predicts_whole_networks(profiled: Path):
    model = load_host_latency_model(_TINY)
    assert model is not None
    assert model.source == "measured"
    ops = list(distinct_ops(_TINY).values())
    predicted = model.predict_op_ms(ops)
    assert np.isfinite(predicted).all()
    assert (predicted >= 0).all()
    search_space = _TINY.search_space
    small, large = (
        search_space.decode(search_space.canonicalize(np.array([row], dtype=np.uint8))[0])
        for row in (np.zeros(len(search_space.dimensions)), search_space.num_choices - 1)
    )
    sums = [
        model.predict_op_ms([shape.spec() for _, shape in _TINY.shapes(config)]).sum()
        for config in (small, large)
    ]
    assert 0 < sums[0] < sums[1]


def test_a_part_of_a_profiled_space_is_profiled(profiled: Path):
    part = _TINY.with_resolutions([48])
    model = load_host_latency_model(part)
    assert model is not None
    assert load_host_latency_model(_TINY.with_resolutions([48, 96])) is None
    assert load_host_latency_model(replace(_TINY, name="another")) is None
    assert load_host_latency_model(_TINY, batch_size=2) is None


def test_operators_between_measured_ones_are_interpolated(profiled: Path, tmp_path: Path):
    """A store from which everything of the middle resolution is taken away."""
    only_middle = distinct_ops(_TINY.with_resolutions([48])).keys() - (
        distinct_ops(_TINY.with_resolutions([32, 64])).keys()
    )
    copy = tmp_path / "copy.sqlite"
    with MeasurementStore(profiled) as store:
        store._db.execute("VACUUM INTO ?", [str(copy)])
    with MeasurementStore(copy) as store:
        for key in only_middle:
            store._db.execute("DELETE FROM timing WHERE item = ?", [key])
    model, whole = load_host_latency_model(_TINY, store_path=copy), load_host_latency_model(_TINY)
    assert model is not None
    assert whole is not None
    assert model.source == "interpolated"
    kept = [op for key, op in distinct_ops(_TINY).items() if key not in only_middle]
    np.testing.assert_array_equal(model.predict_op_ms(kept), whole.predict_op_ms(kept))
    filled = model.predict_op_ms([distinct_ops(_TINY)[key] for key in only_middle])
    assert (filled > 0).all()


def test_the_table_holds_every_operator(profiled: Path):
    table = export_host_table([_TINY], "cpu-of-a-test", origin="a test")
    model = load_host_latency_model(_TINY)
    assert model is not None
    ops = list(distinct_ops(_TINY).values())
    assert len(table.entries) == len(ops)
    np.testing.assert_allclose(table.predict_op_ms(ops), model.predict_op_ms(ops), atol=1e-6)
    with pytest.raises(TargetUnavailableError, match="was not profiled here"):
        export_host_table([ofa_mbv3_w12()], "cpu-of-a-test")


def test_strict_refuses_what_did_not_settle(profiled: Path, tmp_path: Path):
    copy = tmp_path / "copy.sqlite"
    with MeasurementStore(profiled) as store:
        store._db.execute("VACUUM INTO ?", [str(copy)])
    with MeasurementStore(copy) as store:
        store._db.execute(
            "UPDATE timing SET figures = json_set(figures, '$.unstable', json('true'))"
        )
    done = profile_space(load_target("cpu"), _TINY, quick=True, store_path=copy)
    assert done.num_unstable == done.num_entries
    with pytest.raises(UnstableMeasurementError, match="did not settle"):
        profile_space(load_target("cpu"), _TINY, quick=True, store_path=copy, strict=True)


def test_a_small_budget_plans_fewer_resolutions():
    space = ofa_mbv3_w12()

    def plan(budget_s: float):
        return plan_profile(
            space,
            runtime=OnnxRuntime(),
            batch_size=1,
            protocol=QUICK_PROTOCOL,
            budget_s=budget_s,
            num_networks=16,
            done={},
            rounds={},
            seed=0,
        )

    large, small = plan(1e6), plan(1e-3)
    assert large.ops.keys() == distinct_ops(space).keys()
    assert len(large.networks) == 16
    ends = distinct_ops(space.with_resolutions([160, 224]))
    assert small.ops.keys() == ends.keys()
    assert len(small.networks) == 8
    assert {c.ints("resolution")[0] for c in small.networks.values()} == {160, 224}
    assert small.networks.keys().isdisjoint(small.ops.keys())


def test_only_this_machine_can_be_profiled():
    phone = Target(
        name="phone", device="a phone", kind="phone", runtime="TF-Lite", description="A phone."
    )
    with pytest.raises(TargetUnavailableError, match="cannot be measured from here"):
        profile_space(phone, _TINY)


@pytest.mark.parametrize(("batch_size", "budget_s"), [(0, 1.0), (1, 0.0), (1, -5.0)])
def test_numbers_out_of_range(batch_size: int, budget_s: float):
    with pytest.raises(ConfigError, match="batch size of at least 1"):
        profile_space(load_target("cpu"), _TINY, batch_size=batch_size, budget_s=budget_s)


def test_workers_fill_the_same_store(tmp_path: Path):
    store_path = tmp_path / "measurements.sqlite"
    with LocalProcessExecutor(1, timeout_s=120) as executor:
        done = profile_space(
            load_target("cpu"),
            _TINY,
            executor=executor,
            quick=True,
            budget_s=20.0,
            store_path=store_path,
        )
    assert done.num_measured == done.num_entries == len(distinct_ops(_TINY))
    assert done.calibration is not None
    # What workers measured is found by a search of this machine: same device, same build.
    model = load_host_latency_model(_TINY, store_path=store_path)
    assert model is not None
    assert (np.array(list(model.op_ms.values())) > 0).all()
    again = profile_space(load_target("cpu"), _TINY, quick=True, store_path=store_path)
    assert again.num_measured == 0


def test_workers_measure_with_one_runtime_only(tmp_path: Path):
    runtime = TorchRuntime()
    with SerialExecutor() as executor, pytest.raises(ConfigError, match="workers measure with"):
        profile_space(
            load_target("cpu"),
            _TINY,
            runtime=runtime,
            executor=executor,
            quick=True,
            budget_s=5.0,
            store_path=tmp_path / "measurements.sqlite",
        )


def test_a_profile_cut_short_says_so(tmp_path: Path):
    path, target = tmp_path / "measurements.sqlite", load_target("cpu")
    cut = profile_space(target, _TINY, quick=True, budget_s=0.3, store_path=path)
    assert cut.num_partial > 0
    whole = profile_space(target, _TINY, quick=True, budget_s=60.0, store_path=path)
    assert whole.num_partial == 0
    assert profile_space(target, _TINY, quick=True, store_path=path).num_partial == 0
