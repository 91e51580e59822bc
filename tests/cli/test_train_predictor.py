"""``effdl train-predictor``: what is refused before any training begins."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

Invoke = Callable[..., Result]


def test_it_must_say_from_what_to_learn(invoke: Invoke) -> None:
    result = invoke("train-predictor")
    assert result.exit_code == 2
    assert "--published" in result.stderr


def test_figures_that_are_not_there(tmp_path: Path, invoke: Invoke) -> None:
    out = tmp_path / "out"
    line = ("train-predictor", "--published", "--out", out, "--data")
    assert invoke(*line, tmp_path / "absent").exit_code == 2
    result = invoke(*line, tmp_path)
    assert result.exit_code == 2
    assert "ofa/" in result.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    "data", [b"", b"PK\x03\x04 half an archive", b"cos\nsystem\n(S'true'\ntR."]
)
def test_malformed_figures(data: bytes, tmp_path: Path, invoke: Invoke) -> None:
    (tmp_path / "ofa").mkdir()
    (tmp_path / "ofa" / "acc_predictor_mbv3_w1.2.pth").write_bytes(data)
    (tmp_path / "ofa" / "imagenet_top1_w1.0.csv").write_text("")
    out = tmp_path / "out"
    result = invoke("train-predictor", "--published", "--data", tmp_path, "--out", out)
    assert result.exit_code == 7
    assert not out.exists()
