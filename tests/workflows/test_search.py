"""The main job without its export, against oracles of its parts."""

import json
from pathlib import Path

import numpy as np
import pytest

from effdl import load_space, load_target
from effdl.errors import ConfigError, InfeasibleConstraintError, OutputError
from effdl.workflows.costs import SpaceCosts
from effdl.workflows.predict import predict_subnets
from effdl.workflows.search import search_subnet
from effdl.workflows.search_outcome import Limits, SearchOutcome

W12 = load_space("ofa-mbv3-w1.2")


def search(latency_ms: float, target: str = "mobile", **options: object) -> SearchOutcome:
    return search_subnet(
        target=load_target(target),
        space=W12,
        limits=Limits(latency_ms=latency_ms),
        export=False,
        **{"effort": "fast", "max_evaluations": 3000, **options},  # type: ignore[arg-type]
    )


def test_best_keeps_the_limit_and_is_what_predict_says() -> None:
    best = search(25.0).best
    row = W12.search_space.encode(best.config)[None]
    said = predict_subnets(space=W12, population=row, target=load_target("mobile")).predictions[0]
    assert best.predicted_latency_ms is not None
    assert best.predicted_latency_ms <= 25.0
    assert said.subnet.predicted_latency_ms == pytest.approx(best.predicted_latency_ms, rel=1e-12)
    assert (said.subnet.params, said.subnet.macs) == (best.params, best.macs)
    assert said.subnet.accuracy is not None
    assert best.accuracy is not None
    assert said.subnet.accuracy.raw == pytest.approx(best.accuracy.raw, abs=1e-6)


def test_best_beats_ten_thousand_random_networks() -> None:
    best = search(25.0, max_evaluations=8000).best
    rows = W12.search_space.sample(10_000, np.random.default_rng(1))
    random = predict_subnets(space=W12, population=rows, target=load_target("mobile"))
    feasible = [
        p.subnet.accuracy.raw
        for p in random.predictions
        if p.subnet.accuracy is not None
        and p.subnet.predicted_latency_ms is not None
        and p.subnet.predicted_latency_ms <= 25.0
    ]
    assert len(feasible) > 20
    assert best.accuracy is not None
    assert best.accuracy.raw > max(feasible)


def test_pareto_front_rises() -> None:
    front = search(25.0).pareto_front
    latencies = [subnet.predicted_latency_ms or np.nan for subnet in front]
    accuracies = [subnet.accuracy.raw for subnet in front if subnet.accuracy is not None]
    assert len(front) > 5
    assert (np.diff(latencies) > 0).all()
    assert (np.diff(accuracies) > 0).all()


def test_every_limit_is_kept() -> None:
    limits = Limits(latency_ms=30.0, macs=250e6, params=5e6, peak_memory_bytes=6e6)
    outcome = search_subnet(
        target=load_target("mobile"),
        space=W12,
        limits=limits,
        export=False,
        effort="fast",
        max_evaluations=3000,
    )
    row = W12.search_space.encode(outcome.best.config)[None]
    costs = SpaceCosts(space=W12, batch_size=1)
    assert costs.macs(row)[0] <= 250e6
    assert costs.params(row)[0] <= 5e6
    assert costs.peak_memory_bytes(row)[0] <= 6e6


def test_limit_at_the_minimum_returns_it_and_below_names_it() -> None:
    with pytest.raises(InfeasibleConstraintError) as caught:
        search(9.0)
    fastest = caught.value.fastest_latency_ms
    assert fastest == pytest.approx(9.89, abs=0.005)
    assert fastest is not None
    outcome = search(fastest)
    assert outcome.best.predicted_latency_ms == pytest.approx(fastest, rel=1e-12)
    with pytest.raises(InfeasibleConstraintError):
        search(fastest * (1 - 1e-9))


def test_same_seed_same_result_and_another_seed_another() -> None:
    def without_times(seed: int) -> dict[str, object]:
        said = search(22.0, seed=seed).to_json()
        del said["search_cpu_seconds"], said["search_wall_seconds"]
        return said

    assert json.dumps(without_times(3)) == json.dumps(without_times(3))
    assert without_times(3)["pareto_front"] != without_times(4)["pareto_front"]


def test_confidence_tightens_the_limit_by_the_stated_interval() -> None:
    """One-sided 97.5 % is the upper end of the two-sided 95 % interval."""
    outcome = search(20.0, target="gpu-titan-rtx", confidence=0.975)
    interval = outcome.latency_model.interval_percent
    assert interval is not None
    assert outcome.latency_limit_ms == pytest.approx(20.0 / (1 + interval / 100))
    assert outcome.best.predicted_latency_ms is not None
    assert outcome.best.predicted_latency_ms <= outcome.latency_limit_ms


def test_options_without_effect_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no effect"):
        search(25.0, confidence=0.95)
    with pytest.raises(ConfigError, match="no effect"):
        search(25.0, weights=tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match="confidence"):
        search(20.0, target="gpu-titan-rtx", confidence=0.5)
    with pytest.raises(ConfigError, match="top_k"):
        search(25.0, top_k=0)


def test_run_folder_holds_the_whole_run(tmp_path: Path) -> None:
    outcome = search(20.0, out=tmp_path / "run", top_k=3)
    folder = outcome.out
    assert folder is not None
    assert folder == tmp_path / "run"
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *("config.json", "versions.json", "result.json"),
        *("pareto.csv", "pareto.png", "report.html"),
    }
    result = json.loads((folder / "result.json").read_text())
    assert result["best"] == json.loads(json.dumps(outcome.best.to_json()))
    assert len(result["top"]) == 3
    assert (folder / "pareto.png").read_bytes().startswith(b"\x89PNG")


def test_a_taken_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(OutputError):
        search(20.0, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_a_failed_search_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InfeasibleConstraintError):
        search(1.0, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
