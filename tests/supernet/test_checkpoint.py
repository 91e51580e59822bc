"""Weights files: what is written comes back, and nothing else is accepted."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from effdl.errors import ConfigError, CorruptFileError, OutputError
from effdl.supernet.checkpoint import describe_mismatch, load_weights, save_weights


def module(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    save_weights(module(), path, kind="supernet", space="tiny", notes={"source": "nowhere"})
    return path


def header_of(path: Path) -> dict[str, dict[str, str]]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length])


def test_round_trip(saved: Path) -> None:
    expected, loaded = module(0), module(1)
    about = load_weights(loaded, saved, kind="supernet", space="tiny")
    assert (about["schema_version"], about["kind"], about["space"]) == (1, "supernet", "tiny")
    assert about["notes"] == {"source": "nowhere"}
    assert len(about["sha256"]) == 64
    assert json.loads(header_of(saved)["__metadata__"]["effdl"]) == about
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])


def test_same_weights_same_bytes(saved: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.safetensors"
    save_weights(module(), again, kind="supernet", space="tiny", notes={"source": "nowhere"})
    assert again.read_bytes() == saved.read_bytes()


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 40, -1])
def test_truncated_file(saved: Path, kept: int) -> None:
    saved.write_bytes(saved.read_bytes()[:kept])
    with pytest.raises(CorruptFileError, match="cannot be read as safetensors"):
        load_weights(module(), saved, kind="supernet", space="tiny")


def test_altered_weight(saved: Path) -> None:
    content = bytearray(saved.read_bytes())
    content[-2] ^= 1
    saved.write_bytes(bytes(content))
    with pytest.raises(CorruptFileError, match="SHA-256"):
        load_weights(module(), saved, kind="supernet", space="tiny")


@pytest.mark.parametrize(("kind", "space"), [("supernet", "other"), ("predictor", "tiny")])
def test_another_kind_or_space(saved: Path, kind: str, space: str) -> None:
    with pytest.raises(CorruptFileError, match=f"wanted a {kind} of space {space}, got a supernet"):
        load_weights(module(), saved, kind=kind, space=space)


def test_other_tensors_are_named(saved: Path) -> None:
    other = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Identity(), nn.Linear(2, 2, bias=False))
    before = {name: t.clone() for name, t in other.state_dict().items()}
    with pytest.raises(CorruptFileError) as caught:
        load_weights(other, saved, kind="supernet", space="tiny")
    message = caught.value.message
    assert "1 missing: 2.weight" in message
    assert "5 unexpected: 1.bias, 1.num_batches_tracked" in message
    assert "2 of another shape: 0.weight wanted [5, 3, 1, 1], got [4, 3, 1, 1]" in message
    assert all(torch.equal(before[name], t) for name, t in other.state_dict().items())


def test_another_schema_version(saved: Path) -> None:
    about = json.loads(header_of(saved)["__metadata__"]["effdl"])
    save_file(load_file(saved), saved, {"effdl": json.dumps({**about, "schema_version": 2})})
    with pytest.raises(CorruptFileError, match="schema version 2: wanted 1"):
        load_weights(module(), saved, kind="supernet", space="tiny")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"effdl": "[1]"}, {"effdl": "{"}])
def test_foreign_safetensors(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file(module().state_dict(), path, metadata)
    with pytest.raises(CorruptFileError):
        load_weights(module(), path, kind="supernet", space="tiny")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_weights_are_not_written(tmp_path: Path, value: float) -> None:
    network, path = module(), tmp_path / "weights.safetensors"
    with torch.no_grad():
        network.state_dict()["0.weight"][1, 2] = value
    with pytest.raises(CorruptFileError, match=r"NaN or infinite values: 0\.weight"):
        save_weights(network, path, kind="supernet", space="tiny")
    assert list(tmp_path.iterdir()) == []


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_weights(module(), tmp_path / "none", kind="supernet", space="tiny")


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError):
        load_weights(module(), tmp_path, kind="supernet", space="tiny")


def test_unwritable_output_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "inside").touch()
    for path in (tmp_path / "taken" / "inside" / "weights.safetensors", tmp_path / "taken"):
        with pytest.raises(OutputError, match="cannot write"):
            save_weights(module(), path, kind="supernet", space="tiny")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_failed_write_keeps_the_old_file(saved: Path) -> None:
    before, broken = saved.read_bytes(), module()
    with torch.no_grad():
        broken.state_dict()["0.bias"][0] = float("nan")
    with pytest.raises(CorruptFileError):
        save_weights(broken, saved, kind="supernet", space="tiny")
    assert saved.read_bytes() == before


def test_describe_mismatch() -> None:
    assert describe_mismatch({"a": (1,)}, {"a": (1,)}) == ""
    many = {f"t{i}": (1,) for i in range(7)}
    assert describe_mismatch(many, {}) == "7 missing: t0, t1, t2, t3, t4 and 2 more"
