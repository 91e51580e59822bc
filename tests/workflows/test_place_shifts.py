"""A search that chooses kernels: measured here, and against every placement there is."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from effdl.errors import MissingEntryError
from effdl.kernels.temporal_shift.spec import default_specs
from effdl.models.tsm.space import (
    ShiftPlacementSpace,
    tsm_mobilenet_v2_space,
    tsm_resnet50_space,
)
from effdl.search.space import Population
from effdl.targets.implementations import FastestLatencyModel
from effdl.targets.target import load_target
from effdl.workflows.kernel_implementations import PLAIN
from effdl.workflows.place_shifts import place_shifts, shift_latency
from effdl.workflows.profile_kernels import load_kernel_latency_model, profile_kernels

OURS = "temporal_shift.tvm"


def every_placement(space: ShiftPlacementSpace) -> Population:
    num = len(space.shapes)
    return ((np.arange(2**num)[:, None] >> np.arange(num)) & 1).astype(np.uint8)


def made_model(space: ShiftPlacementSpace, *, ours_ms: dict[int, float]) -> FastestLatencyModel:
    """ONNX Runtime's time by bytes; ours as given by size of a frame."""
    times = {}
    for slot, (_, size) in zip(space.slots, space.shapes, strict=True):
        op = slot.ops[1]
        times[op.key] = {PLAIN: op.bytes_moved * 1e-7}
        if size in ours_ms:
            times[op.key][OURS] = ours_ms[size]
    return FastestLatencyModel(implementations_ms=times, device="made", batch_size=1)


@pytest.mark.parametrize("limit_ms", [0.5, 2.0, 5.0])
@pytest.mark.parametrize("ours_ms", [{}, {56: 0.9, 28: 0.4, 14: 0.6, 7: 0.01}])
def test_no_placement_within_the_limit_sees_more(
    limit_ms: float, ours_ms: dict[int, float]
) -> None:
    space = tsm_resnet50_space()
    model = made_model(space, ours_ms=ours_ms)
    found = place_shifts(space, model, latency_ms=limit_ms)
    rows = every_placement(space)
    fits = shift_latency(space, model)(rows) <= limit_ms
    assert found.receptive_frames == space.receptive_frames(rows[fits]).max()
    assert found.latency_ms <= limit_ms
    assert found.latency_ms == pytest.approx(
        sum(model.predict_op_ms([space.slots[i].ops[1]])[0] for i in found.places)
    )


def test_each_place_has_its_own_fastest() -> None:
    space = tsm_resnet50_space()
    found = place_shifts(space, made_model(space, ours_ms={56: 1e-3, 14: 1e6}), latency_ms=1e9)
    assert found.receptive_frames == 33
    by_size = {space.shapes[i][1]: name for i, name in found.implementations.items()}
    assert by_size == {56: OURS, 28: PLAIN, 14: PLAIN, 7: PLAIN}


def test_an_unmeasured_shift_is_said() -> None:
    space = tsm_mobilenet_v2_space()
    model = made_model(replace(space, shapes=space.shapes[:1]), ours_ms={})
    with pytest.raises(MissingEntryError, match="32"):
        place_shifts(space, model, latency_ms=1.0)


def test_from_the_clock_to_the_placement(tmp_path: Path) -> None:
    """Measured, stored, read again and searched: kernels never make a placement worse."""
    space = tsm_mobilenet_v2_space()
    wanted = {slot.ops[1].key for slot in space.slots}
    specs = [spec for spec in default_specs() if spec.op.key in wanted]
    assert {spec.op.key for spec in specs} == wanted
    path = tmp_path / "s.sqlite"
    done = profile_kernels(
        load_target("cpu"), specs=specs, quick=True, budget_s=20.0, store_path=path
    )
    model = load_kernel_latency_model(specs, store_path=path)
    assert model is not None
    assert {operator.key: operator.fastest.name for operator in done.operators} == {
        key: model.fastest(key) for key in wanted
    }
    plain_only = replace(
        model,
        implementations_ms={k: {PLAIN: v[PLAIN]} for k, v in model.implementations_ms.items()},
    )
    all_ms = shift_latency(space, plain_only)(np.ones((1, len(space.shapes)), dtype=np.uint8))[0]
    limit_ms = 0.5 * float(all_ms)
    with_kernels = place_shifts(space, model, latency_ms=limit_ms)
    without = place_shifts(space, plain_only, latency_ms=limit_ms)
    assert with_kernels.receptive_frames >= without.receptive_frames
    assert set(without.implementations.values()) == {PLAIN}
    for i, name in with_kernels.implementations.items():
        times = model.implementations_ms[space.slots[i].ops[1].key]
        assert times[name] == min(times.values())
