"""Parity: what passes, what must not, and who is blamed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from effdl.errors import ExportParityError
from effdl.export.onnx_export import OnnxFile
from effdl.export.parity import TOLERANCE, check_parity, compare_outputs
from effdl.export.runtime import ParityCase, make_cases, relative_error

Export = Callable[..., Path]


def test_faithful_export_passes(network: nn.Module, exported: OnnxFile) -> None:
    parity = check_parity(network, exported.path)
    assert parity.max_relative_error < 1e-6
    assert parity.max_relative_error_unoptimized < 1e-6
    assert parity.float32_error is None
    assert parity.batch_sizes == (1, 2, 5)
    # At each of three batch sizes: three random, three extreme, one of zeros.
    assert parity.num_cases == 21
    assert parity.to_json()["batch_sizes"] == [1, 2, 5]


def test_slightly_different_weight_fails(network: nn.Module, exported: OnnxFile) -> None:
    with torch.no_grad():
        network.get_parameter("classifier.weight")[0, 0] += 1e-3
    with pytest.raises(ExportParityError, match=r"batch size \d.*so the export is at fault"):
        check_parity(network, exported.path)


def test_nan_weight_fails_though_both_agree(network: nn.Module, export: Export) -> None:
    with torch.no_grad():
        network.get_parameter("gate.weight")[0] = torch.nan
    with pytest.raises(ExportParityError, match="got inf"):
        check_parity(network, export(network))


def test_overflow_fails_though_both_agree(network: nn.Module, export: Export) -> None:
    with torch.no_grad():
        network.get_parameter("classifier.weight").fill_(3e38)
    with pytest.raises(ExportParityError, match="got inf"):
        check_parity(network, export(network))


def test_denormal_outputs_are_compared_without_alarm(
    make_scaled: Callable[[float], nn.Module], export: Export
) -> None:
    network = make_scaled(1e-40)
    parity = check_parity(network, export(network), batch_sizes=(1,), seeds=1)
    assert parity.max_relative_error < TOLERANCE


def test_file_that_is_not_onnx(network: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(ExportParityError, match="ONNX Runtime cannot run"):
        check_parity(network, path)


class Cancelling(nn.Module):
    """(1000 x + 0.1) - 1000 x: 0.1, and float32 rounding of the order of 1e-4 of it or more."""

    def forward(self, x: Tensor) -> Tensor:
        return ((x * 1000.0 + 0.1) - x * 1000.0).flatten(1)


def cancelling_runs(factor: float) -> tuple[list[ParityCase], list[np.ndarray]]:
    """Outputs that are ``factor`` times as far from the truth as PyTorch is at worst."""
    cases = [c for c in make_cases((1, 2), 2) if c.kind == "random"]
    images = [case.make((3, 8, 8)) for case in cases]
    outputs = [Cancelling()(torch.from_numpy(image)).numpy() for image in images]
    rounding = max(np.abs(y - 0.1).max() for y in outputs)
    assert 10 * TOLERANCE < rounding / 0.1 < 1e-2
    return cases, [np.full_like(y, 0.1 + factor * rounding) for y in outputs]


@pytest.mark.parametrize(("factor", "agrees"), [(0.0, True), (8.0, True), (13.0, False)])
def test_float64_decides_where_rounding_is_large(factor: float, agrees: bool) -> None:
    cases, outputs = cancelling_runs(factor)
    agreement = compare_outputs(Cancelling(), cases, (3, 8, 8), [outputs])
    assert (agreement.excess.max() <= 1.0) is np.bool_(agrees)
    assert agreement.float32_error is not None
    assert agreement.float32_error > 10 * TOLERANCE


def test_extreme_inputs_are_at_both_ends() -> None:
    image = ParityCase(kind="extreme", seed=0, batch_size=2).make((3, 8, 8))
    assert set(np.unique(image)) == {-2.0, 2.0}
    assert image.dtype == np.float32


def test_cases_differ_by_seed_and_not_by_call() -> None:
    first, second = (ParityCase(kind="random", seed=s, batch_size=2) for s in (0, 1))
    assert (first.make((4,)) == first.make((4,))).all()
    assert (first.make((4,)) != second.make((4,))).all()


@pytest.mark.parametrize(
    ("got", "wanted", "error"),
    [
        ([1.0, 2.0], [1.0, 4.0], 0.5),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([1.0], [np.nan], np.inf),
        ([np.nan], [np.nan], np.inf),
        ([np.inf], [np.inf], np.inf),
        ([1.0, 1.0], [1.0], np.inf),
        ([1e-42], [0.0], 1e-12),
        ([], [], 0.0),
    ],
)
def test_relative_error(got: list[float], wanted: list[float], error: float) -> None:
    found = relative_error(np.array(got, np.float32), np.array(wanted, np.float32))
    assert found == pytest.approx(error, rel=1e-2)
