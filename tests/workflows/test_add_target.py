"""A phone becomes a target, is profiled, and is searched for without being there."""

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from effdl.errors import BackendUnavailableError, ConfigError, TargetUnavailableError
from effdl.models.mobilenet_v3.onnx_graph import build_network
from effdl.models.mobilenet_v3.space import MobileNetV3Space, UnitSpec
from effdl.targets.connection import BoardConnection, PhoneConnection
from effdl.targets.latency_model import load_latency_model
from effdl.targets.target import list_targets, load_target
from effdl.workflows.add_target import add_target
from effdl.workflows.profile_target import profile_target

_TINY = MobileNetV3Space(
    name="tiny",
    resolutions=(32, 64),
    units=(UnitSpec(out_channels=16, stride=2, squeeze_excite=True, activation="relu"),),
    depths=(1,),
    expand_ratios=(2, 4),
    kernel_sizes=(3,),
    stem_channels=8,
    final_expand_channels=48,
    feature_channels=64,
    num_classes=10,
)


def _load_fake() -> ModuleType:
    path = Path(__file__).parents[1] / "targets" / "measure" / "fake_adb.py"
    spec = importlib.util.spec_from_file_location("fake_adb", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_FAKE = _load_fake()


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PhoneConnection:
    folder = tmp_path / "phone"
    _FAKE.install(folder, tmp_path / "bin")
    program = tmp_path / "onnxruntime_perf_test"
    program.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(11) + b"\xb7\x00" + bytes(40))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return PhoneConnection(program=str(program))


def test_a_phone_is_profiled_once_and_needed_no_more(
    phone: PhoneConnection, monkeypatch: pytest.MonkeyPatch
):
    target = add_target("my-phone", phone)
    assert target == load_target("my-phone")
    assert target.kind == "phone"
    assert target.device != "my-phone"
    with pytest.raises(TargetUnavailableError, match="has no table yet"):
        load_latency_model(target)
    done = profile_target(target, _TINY, quick=True, budget_s=5.0)
    assert done.device == target.device
    assert done.num_measured == done.num_entries
    monkeypatch.setenv("PATH", "/nowhere")
    model = load_latency_model(load_target("my-phone"))
    assert (model.source, model.batch_size) == ("measured", 1)
    assert model.device == target.device
    # The made phone takes so many seconds a byte of the model.
    search_space = _TINY.search_space
    for row in search_space.sample(4, np.random.default_rng(1)):
        config = search_space.decode(row)
        ops = [shape.spec() for _, shape in _TINY.shapes(config)]
        predicted_ms = model.predict_op_ms(ops, resolutions=[64] * len(ops)).sum()
        wanted_ms = 1000 * len(build_network(_TINY, config, 1)) * _FAKE.SECONDS_PER_BYTE
        assert predicted_ms == pytest.approx(wanted_ms, rel=0.03)


def test_what_cannot_be_reached_becomes_no_target(
    phone: PhoneConnection, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", "/nowhere")
    before = list_targets()
    with pytest.raises(BackendUnavailableError, match="adb is not installed"):
        add_target("my-phone", phone)
    with pytest.raises(ConfigError, match="through a tunnel only"):
        add_target("my-board", BoardConnection(address="192.0.2.1:9090"))
    assert list_targets() == before


def test_names_are_taken_once(phone: PhoneConnection):
    add_target("my-phone", phone, device="A phone")
    assert load_target("my-phone").connection == phone
    with pytest.raises(ConfigError, match="there is a target my-phone already"):
        add_target("my-phone", phone)
    with pytest.raises(ConfigError, match="comes with effdl"):
        add_target("cpu", phone)
