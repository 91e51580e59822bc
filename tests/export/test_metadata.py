"""What a file says of itself, written and read back."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from effdl.errors import ConfigError, CorruptFileError
from effdl.export.metadata import ModelMetadata, WeightsNote, file_sha256
from effdl.models.mobilenet_v3.space import ofa_mbv3_w10
from effdl.search.space import SubnetConfig

SPACE = ofa_mbv3_w10().search_space
CONFIG = SubnetConfig({"kernel_size": [3, 0], "depth": [1], "resolution": 32})


def props_of(**changes: str) -> dict[str, str]:
    metadata = ModelMetadata(space="small", config=CONFIG, weights=WeightsNote(seed=7))
    return {**metadata.to_props(), **{f"effdl.{k}": v for k, v in changes.items()}}


def test_entries_are_plain_text() -> None:
    props = props_of()
    assert props["effdl.schema_version"] == "1"
    assert props["effdl.config"] == '{"depth":[1],"kernel_size":[3,0],"resolution":32}'
    assert props["effdl.weights"] == "untrained seed=7"
    assert props["effdl.precision"] == "fp32"


@given(
    seed=st.integers(0, 1000),
    sha256=st.none() | st.binary().map(lambda b: hashlib.sha256(b).hexdigest()),
    target=st.dictionaries(st.sampled_from(["target", "latency_ms", "device"]), st.text()),
)
def test_reading_gives_back_what_was_written(
    seed: int, sha256: str | None, target: dict[str, str]
) -> None:
    config = SPACE.decode(SPACE.sample(1, np.random.default_rng(seed))[0])
    note = WeightsNote(seed=seed) if sha256 is None else WeightsNote(sha256=sha256)
    metadata = ModelMetadata(space="s", config=config, weights=note, target=target)
    props = {**metadata.to_props(), "effdl.graph_sha256": "0", "effdl.exporter": "t", "other": "x"}
    assert ModelMetadata.from_props(props) == metadata


def test_foreign_entries_are_not_ours() -> None:
    assert ModelMetadata.from_props({"author": "someone"}) is None


@pytest.mark.parametrize("key", ["schema_version", "space", "config", "weights", "precision"])
def test_missing_entry(key: str) -> None:
    props = props_of()
    del props[f"effdl.{key}"]
    with pytest.raises(CorruptFileError, match=f"no effdl.{key}"):
        ModelMetadata.from_props(props)


@pytest.mark.parametrize(
    "changes",
    [
        {"schema_version": "2"},
        {"config": "{"},
        {"config": "[1]"},
        {"config": '{"depth": ["2"]}'},
        {"config": '{"depth": NaN}'},
        {"config": '{"depth":' + "[" * 100_000},
        {"weights": "trained"},
        {"weights": "untrained seed=-1"},
        {"weights": "sha256:abc"},
        {"weights": "untrained seed=1 or so"},
    ],
)
def test_malformed_entry(changes: dict[str, str]) -> None:
    with pytest.raises(CorruptFileError):
        ModelMetadata.from_props(props_of(**changes))


@pytest.mark.parametrize("key", ["space", "weights", "graph_sha256", "Upper", "a b", ""])
def test_target_may_not_take_another_entry(key: str) -> None:
    metadata = ModelMetadata(
        space="s", config=CONFIG, weights=WeightsNote(), target={key: "anything"}
    )
    with pytest.raises(ValueError, match="free lower-case names"):
        metadata.to_props()


def test_file_sha256(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    # FIPS 180-4's own example.
    assert file_sha256(path).startswith("ba7816bf8f01cfea414140de5dae2223")
    with pytest.raises(ConfigError, match="cannot read"):
        file_sha256(tmp_path / "absent")
