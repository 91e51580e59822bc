"""``export --to tvm``: the library, the metadata beside it, and nothing where it fails."""

import hashlib
import json
from pathlib import Path

import pytest

from effdl.errors import BackendUnavailableError, ConfigError, OutputError
from effdl.models.mobilenet_v3.space import MobileNetV3Space
from effdl.search.space import SubnetConfig
from effdl.targets.measure.tvm_target import TvmTarget, find_linker
from effdl.workflows import export_tvm as workflow
from effdl.workflows.export_tvm import export_tvm_subnet

ARM = TvmTarget(triple="aarch64-linux-gnu")


@pytest.fixture
def arm_linker(native_triple: str) -> None:
    try:
        find_linker(ARM.triple)
    except BackendUnavailableError as error:
        pytest.skip(f"{error.message}: {error.hint}")


@pytest.mark.usefixtures("arm_linker")
def test_library_for_an_arm_board(
    small_space: MobileNetV3Space,
    small_config: SubnetConfig,
    small_weights: Path,
    native_triple: str,
    tmp_path: Path,
) -> None:
    out = tmp_path / "deep" / "m.so"
    done = export_tvm_subnet(
        space=small_space,
        config=small_config,
        out=out,
        target=ARM,
        weights=small_weights,
        target_info={"target": "phone"},
    )
    data = out.read_bytes()
    assert int.from_bytes(data[18:20], "little") == 183
    facts = done.to_json()
    assert facts["bytes"] == len(data)
    assert facts["sha256"] == hashlib.sha256(data).hexdigest()
    assert facts["triple"] == "aarch64-linux-gnu"
    assert facts["runtime"] == "tvm 0.27.0.post1 (untuned)"
    assert done.parity.max_relative_error <= 1e-5
    if native_triple != ARM.triple:
        assert done.parity.checked == (
            f"the same module, compiled for {native_triple}, on this machine"
        )
    note = json.loads((out.parent / "m.so.json").read_text())
    assert note["schema_version"] == 1
    assert note["sha256"] == facts["sha256"]
    assert note["input_shape"] == [1, 3, 32, 32]
    assert note["config"] == small_config.to_json()
    assert note["weights"] == "sha256:" + hashlib.sha256(small_weights.read_bytes()).hexdigest()
    assert note["target"] == {"target": "phone"}
    assert str(tmp_path) not in json.dumps(note)
    assert sorted(p.name for p in out.parent.iterdir()) == ["m.so", "m.so.json"]


@pytest.mark.usefixtures("native_triple")
def test_folder_is_no_file(
    small_space: MobileNetV3Space, small_config: SubnetConfig, tmp_path: Path, native_triple: str
) -> None:
    target = TvmTarget(triple=native_triple)
    with pytest.raises(OutputError, match="folder"):
        export_tvm_subnet(space=small_space, config=small_config, out=tmp_path, target=target)
    wrong = {**small_config.to_json(), "depth": [9]}
    with pytest.raises(ConfigError):
        export_tvm_subnet(space=small_space, config=wrong, out=tmp_path / "m.so", target=target)
    assert list(tmp_path.iterdir()) == []


def test_without_tvm_nothing_is_done(
    small_space: MobileNetV3Space,
    small_config: SubnetConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing() -> None:
        raise BackendUnavailableError("TVM is not installed", hint="pip install it")

    monkeypatch.setattr(workflow, "find_tvm", missing)
    with pytest.raises(BackendUnavailableError):
        export_tvm_subnet(space=small_space, config=small_config, out=tmp_path / "m.so", target=ARM)
    assert list(tmp_path.iterdir()) == []
