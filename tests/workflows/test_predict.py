"""Predictions against the pieces they are made of, and malformed files."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from effdl import load_space, load_target
from effdl.errors import CorruptFileError, MissingEntryError
from effdl.targets.latency_model import load_latency_model, table_path
from effdl.targets.latency_table import LatencyTable
from effdl.targets.target import Target, user_targets_folder, write_target
from effdl.workflows.predict import predict_subnets, read_configs

SMALLEST = {"kernel_size": [3] * 20, "expand_ratio": [3] * 20, "depth": [2] * 5, "resolution": 160}


def test_figures_of_the_fastest_network_on_the_note10() -> None:
    """The space's published minimum there is 9.89 ms."""
    space = load_space("ofa-mbv3-w1.2")
    population = space.search_space.encode(SMALLEST)[None]
    prediction = predict_subnets(
        space=space, population=population, target=load_target("mobile")
    ).predictions[0]
    assert prediction.subnet.predicted_latency_ms == pytest.approx(9.89, abs=0.005)
    assert prediction.latency_source == "measured"
    assert prediction.reason is None
    accuracy = prediction.subnet.accuracy
    assert accuracy is not None
    assert accuracy.percent == pytest.approx(1.0988 * 100 * accuracy.raw - 12.537, abs=1e-3)


def test_accuracy_outside_the_predictor_is_null_with_a_reason() -> None:
    space = load_space("ofa-mbv3-w1.0")
    rows = space.search_space.encode(SMALLEST)[None].repeat(2, axis=0)
    rows[1, -1] = space.resolutions.index(224)
    outside, inside = predict_subnets(space=space, population=rows).predictions
    assert outside.subnet.accuracy is None
    assert outside.reason is not None
    assert "224" in outside.reason
    assert inside.subnet.accuracy is not None
    assert 65 < inside.subnet.accuracy.percent < 75
    assert inside.to_json()["predicted_latency_ms"] is None


def test_population_and_single_predictions_agree() -> None:
    space = load_space("ofa-mbv3-w1.2")
    target = load_target("gpu-titan-rtx")
    rows = space.search_space.sample(30, np.random.default_rng(2))
    together = predict_subnets(space=space, population=rows, target=target).predictions
    for i, one in enumerate(together):
        alone = predict_subnets(space=space, population=rows[i : i + 1], target=target)
        assert alone.predictions[0].subnet.predicted_latency_ms == pytest.approx(
            one.subnet.predicted_latency_ms, rel=1e-12
        )
        assert alone.predictions[0].subnet.accuracy is not None
        assert one.subnet.accuracy is not None
        assert alone.predictions[0].subnet.accuracy.raw == pytest.approx(
            one.subnet.accuracy.raw, abs=1e-6
        )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "line 1"),
        ("", "got none"),
        ("[1]", "line 1"),
        (json.dumps(SMALLEST) + "\n" + json.dumps({**SMALLEST, "resolution": 161}), "line 2"),
        (json.dumps({**SMALLEST, "depth": [2] * 4}), "wanted 5 values of depth"),
        ("\xff\xfe", "line 1"),
    ],
)
def test_malformed_files_are_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "configs.jsonl"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(CorruptFileError) as caught:
        read_configs(path, load_space("ofa-mbv3-w1.2"))
    assert said in str(caught.value)


def test_a_table_need_not_cover_resolutions_that_are_not_asked_for() -> None:
    """The note10's shipped rows at 224 pixels alone, as another target's table."""
    space, note10 = load_space("ofa-mbv3-w1.2"), load_latency_model(load_target("mobile"))
    assert isinstance(note10, LatencyTable)
    rows = tuple(e for e in note10.entries if e.resolution in (None, 224))
    header = msgspec.structs.replace(note10.header, target="part")
    part = Target(
        name="part", device="a phone", kind="phone", runtime="TF-Lite", description="Part of one."
    )
    folder = user_targets_folder()
    LatencyTable(header=header, entries=rows).write(
        table_path(folder, "part", note10.batch_size, fitted=False)
    )
    write_target(folder, part)
    asked = space.search_space.encode({**SMALLEST, "resolution": 224})[None]
    (found,) = predict_subnets(space=space, population=asked, target=part).predictions
    (wanted,) = predict_subnets(
        space=space, population=asked, target=load_target("mobile")
    ).predictions
    assert found.subnet.predicted_latency_ms == wanted.subnet.predicted_latency_ms
    with pytest.raises(MissingEntryError):
        predict_subnets(
            space=space, population=space.search_space.encode(SMALLEST)[None], target=part
        )
