"""Drift of a stored table, on a made machine whose speed and moods are set by hand."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from effdl.errors import ConfigError, TargetUnavailableError
from effdl.models.mobilenet_v3.space import MobileNetV3Space
from effdl.targets.host import RuntimeBuild
from effdl.targets.profiler import profile_items
from effdl.targets.sampler import HostSampler
from effdl.targets.store import MeasurementStore, Setting
from effdl.targets.target import load_target
from effdl.targets.timing import QUICK_PROTOCOL, TABLE_PROTOCOL, Instruments, Protocol
from effdl.workflows.profile_plan import distinct_ops
from effdl.workflows.verify_table import TableCheck, verify_table

_BUILD = RuntimeBuild(name="made", version="1", build="0")


@dataclass(kw_only=True)
class MadeMachine:
    """A `MeasurementRuntime` whose time stands still but for the work it does.

    Attributes:
        slowness: Multiplies the time of everything.
        moods: Multiplies the time of single models, by their digest.
    """

    slowness: float = 1.0
    moods: dict[str, float] = field(default_factory=dict)
    build: RuntimeBuild = _BUILD
    device: str = "made"
    device_fingerprint: str = "0123456789abcdef"
    clock_policy: str = "unknown"
    num_threads: int = 1
    dtype: str = "float32"
    regime: str = ""
    now_s: float = 0.0

    def _work(self, seconds: float) -> HostSampler:
        def run() -> None:
            self.now_s += seconds * self.slowness

        return HostSampler(run, clock=lambda: self.now_s, switches=lambda: 0)

    def open_model(self, model: bytes) -> HostSampler:
        digest = hashlib.sha256(model).hexdigest()
        return self._work((1 + int(digest[:4], 16)) * 1e-5 * self.moods.get(digest, 1.0))

    def instruments(self) -> Instruments:
        return Instruments(reference=lambda: self._work(2e-3), clock=lambda: self.now_s)


@pytest.fixture
def profile(
    small_space: MobileNetV3Space, tmp_path: Path
) -> Callable[[MadeMachine, Protocol], Path]:
    """Stores the small space's operators, and says where."""

    def stored(machine: MadeMachine, protocol: Protocol) -> Path:
        with MeasurementStore(tmp_path / "measurements.sqlite") as store:
            profile_items(
                {
                    key: partial(machine.open_model, op.build(1))
                    for key, op in distinct_ops(small_space).items()
                },
                store=store,
                setting=Setting.of(machine, protocol, batch_size=1),
                protocol=protocol,
                instruments=machine.instruments(),
                budget_s=1e9,
            )
        return store.path

    return stored


def check(
    space: MobileNetV3Space, machine: MadeMachine, path: Path, share_percent: float = 100.0,
    seed: int = 0,
) -> TableCheck:  # fmt: skip
    return verify_table(
        load_target("cpu"),
        space,
        runtime=machine,
        share_percent=share_percent,
        store_path=path,
        seed=seed,
    )


def digest_of(space: MobileNetV3Space, key: str) -> str:
    return hashlib.sha256(distinct_ops(space)[key].build(1)).hexdigest()


def test_nothing_drifts_where_nothing_changed(
    small_space: MobileNetV3Space, profile: Callable[..., Path]
):
    path = profile(MadeMachine(), TABLE_PROTOCOL)
    before = path.read_bytes()
    found = check(small_space, MadeMachine(), path)
    assert found.num_stored == len(found.entries) == len(distinct_ops(small_space))
    assert found.median_ratio == pytest.approx(1.0)
    assert found.reference_ratio == pytest.approx(1.0)
    assert found.spread_percent == pytest.approx(0.0, abs=1e-9)
    assert (found.num_outside, found.num_drifted, found.has_drifted) == (0, 0, False)
    assert path.read_bytes() == before
    facts = found.to_json()
    assert json.loads(json.dumps(facts, allow_nan=False))["num_checked"] == len(found.entries)


def test_a_slower_machine_is_told_from_entries_that_drifted(
    small_space: MobileNetV3Space, profile: Callable[..., Path]
):
    found = check(small_space, MadeMachine(slowness=1.25), profile(MadeMachine(), TABLE_PROTOCOL))
    assert found.median_ratio == pytest.approx(1.25)
    assert found.reference_ratio == pytest.approx(1.25)
    assert found.median_corrected_ratio == pytest.approx(1.0)
    assert not found.has_drifted


def test_a_single_entry_that_drifted_is_found(
    small_space: MobileNetV3Space, profile: Callable[..., Path]
):
    path = profile(MadeMachine(), TABLE_PROTOCOL)
    key = sorted(distinct_ops(small_space))[3]
    for factor, drifted in ((1.3, True), (0.8, True), (1.1, False)):
        machine = MadeMachine(slowness=0.5, moods={digest_of(small_space, key): factor})
        found = check(small_space, machine, path)
        off = {e.key: e.corrected_ratio for e in found.entries if e.is_outside}
        assert off == pytest.approx({key: factor})
        assert [e.key for e in found.entries if e.has_drifted] == ([key] if drifted else [])
        assert found.has_drifted is drifted
        assert found.median_corrected_ratio == pytest.approx(1.0)


def test_a_table_that_drifted_as_a_whole_is_found(
    small_space: MobileNetV3Space, profile: Callable[..., Path]
):
    path = profile(MadeMachine(), TABLE_PROTOCOL)
    keys = distinct_ops(small_space)
    for factor, drifted in ((1.05, True), (1.03, False), (0.95, True)):
        moods = {digest_of(small_space, key): factor for key in keys}
        found = check(small_space, MadeMachine(moods=moods), path)
        assert found.median_corrected_ratio == pytest.approx(factor)
        assert found.num_drifted == 0
        assert found.has_drifted is drifted


def test_the_part_is_random_and_no_smaller_than_ten(
    small_space: MobileNetV3Space, profile: Callable[..., Path]
):
    path = profile(MadeMachine(), TABLE_PROTOCOL)

    def keys(share_percent: float, seed: int) -> list[str]:
        found = check(small_space, MadeMachine(), path, share_percent, seed)
        return [entry.key for entry in found.entries]

    assert len(keys(1.0, 0)) == 10
    assert len(keys(75.0, 0)) == -(-3 * len(distinct_ops(small_space)) // 4)
    assert keys(1.0, 0) == keys(1.0, 0)
    assert len({tuple(keys(1.0, seed)) for seed in range(5)}) > 1


def test_the_careful_table_is_checked_before_the_quick_one(
    small_space: MobileNetV3Space, profile: Callable[..., Path]
):
    path = profile(MadeMachine(), QUICK_PROTOCOL)
    assert check(small_space, MadeMachine(), path).protocol == "quick"
    profile(MadeMachine(), TABLE_PROTOCOL)
    assert check(small_space, MadeMachine(), path).protocol == "table"


def test_what_was_not_stored_cannot_be_checked(
    small_space: MobileNetV3Space, profile: Callable[..., Path], tmp_path: Path
):
    with pytest.raises(TargetUnavailableError, match="was not profiled here") as error:
        check(small_space, MadeMachine(), tmp_path / "absent.sqlite")
    assert "effdl profile --target cpu --space small" in (error.value.hint or "")
    assert not (tmp_path / "absent.sqlite").exists()
    path = profile(MadeMachine(), TABLE_PROTOCOL)
    newer = MadeMachine(build=RuntimeBuild(name="made", version="2", build="0"))
    with pytest.raises(TargetUnavailableError, match="with made 2"):
        check(small_space, newer, path)
    for share_percent in (0.0, 100.5):
        with pytest.raises(ConfigError, match="share"):
            check(small_space, MadeMachine(), path, share_percent)
