"""The store: nothing acknowledged is lost, nothing foreign is found."""

import os
import sqlite3
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effdl.errors import CorruptFileError, OutputError
from effdl.targets.store import MeasurementStore, Setting, default_store_path
from effdl.targets.timing import Round, Timing

SETTING = Setting(
    runtime="onnxruntime",
    runtime_version="1.32.0",
    runtime_build="0123",
    device="4567",
    num_threads=1,
    batch_size=1,
    protocol="table",
)
TIMING = Timing(
    p20_ms=1.25,
    median_ms=1.5,
    p95_ms=2.5,
    interval_percent=0.7,
    num_samples=59,
    num_dropped=1,
    num_rounds=6,
    reference_s=1e-4,
    unstable=False,
)
ROUND = Round(
    seconds=(0.1, 0.2, 0.30000000000000004), interrupted=(False, True, False), reference_s=1e-4
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "measurements.sqlite"


def test_timings_and_rounds_come_back_exactly(path: Path):
    once = replace(TIMING, interval_percent=None, unstable=True)
    with MeasurementStore(path) as store:
        store.write_timings(SETTING, {"a": TIMING, "b": once})
        store.add_round(SETTING, "c", ROUND)
        store.add_round(SETTING, "c", replace(ROUND, reference_s=2e-4))
    with MeasurementStore(path) as store:
        assert store.read_timings(SETTING) == {"a": TIMING, "b": once}
        later = replace(ROUND, reference_s=2e-4)
        assert store.read_rounds(SETTING, ["x", "c"]) == [[], [ROUND, later]]


@pytest.mark.parametrize("field", [field.name for field in fields(Setting)])
def test_a_setting_that_differs_in_anything_is_a_miss(path: Path, field: str):
    value = getattr(SETTING, field)
    other = replace(SETTING, **{field: value + 1 if isinstance(value, int) else value + "x"})
    with MeasurementStore(path) as store:
        store.write_timings(SETTING, {"a": TIMING})
        store.add_round(SETTING, "a", ROUND)
        store.write_calibration(SETTING, "s", b"{}")
        assert store.read_timings(other) == {}
        assert store.read_rounds(other, ["a"]) == [[]]
        assert store.read_calibrations(other) == {}


@st.composite
def _settings_that_differ_in_one_field(draw: st.DrawFn) -> tuple[Setting, Setting]:
    def value(name: str) -> st.SearchStrategy[object]:
        numbers = st.integers(1, 2**31)
        return numbers if isinstance(getattr(SETTING, name), int) else st.text(max_size=20)

    names = [field.name for field in fields(Setting)]
    one = replace(SETTING, **{name: draw(value(name)) for name in names})
    name = draw(st.sampled_from(names))
    other = draw(value(name).filter(lambda drawn: drawn != getattr(one, name)))
    return one, replace(one, **{name: other})


@given(pair=_settings_that_differ_in_one_field())
def test_any_field_of_any_setting_decides(
    pair: tuple[Setting, Setting], tmp_path_factory: pytest.TempPathFactory
):
    one, other = pair
    assert one.describe() != other.describe()
    path = tmp_path_factory.getbasetemp() / "any-field.sqlite"
    with MeasurementStore(path) as store:
        store._db.executescript("DELETE FROM timing; DELETE FROM round; DELETE FROM setting")
    with MeasurementStore(path) as store:
        store.write_timings(one, {"a": TIMING})
        store.add_round(one, "a", ROUND)
        assert store.read_timings(other) == {}
        assert store.read_rounds(other, ["a"]) == [[]]
        later = replace(TIMING, p20_ms=9.0)
        store.write_timings(other, {"a": later})
        assert store.read_timings(one) == {"a": TIMING}
        assert store.read_timings(replace(other)) == {"a": later}


def test_rounds_come_in_the_order_asked_for_and_measured(path: Path):
    with MeasurementStore(path) as store:
        for item in ("b", "a", "b"):
            number = sum(map(len, store.read_rounds(SETTING, ["a", "b"])))
            store.add_round(SETTING, item, replace(ROUND, reference_s=1.0 + number))
        found = store.read_rounds(SETTING, ["b", "none", "a", "b"])
        assert [[r.reference_s for r in rounds] for rounds in found] == [
            [1.0, 3.0], [], [2.0], [1.0, 3.0],
        ]  # fmt: skip
        assert store.read_rounds(SETTING, []) == []


def test_a_failed_write_of_several_timings_writes_none(path: Path):
    with MeasurementStore(path) as store:
        store.write_timings(SETTING, {"old": TIMING})
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(OutputError, match="full"):
            store.write_timings(SETTING, {f"item {i}": TIMING for i in range(10_000)})
        # The store goes on where there is room again.
        store._db.execute("PRAGMA max_page_count = 100000")
        assert store.read_timings(SETTING) == {"old": TIMING}
        store.write_timings(SETTING, {"new": TIMING})
    with MeasurementStore(path) as store:
        assert store.read_timings(SETTING) == {"old": TIMING, "new": TIMING}


def test_later_figures_replace_earlier_ones(path: Path):
    later = replace(TIMING, p20_ms=9.0)
    with MeasurementStore(path) as store:
        store.write_timings(SETTING, {"a": TIMING, "b": TIMING})
        store.write_timings(SETTING, {"a": later})
        assert store.read_timings(SETTING) == {"a": later, "b": TIMING}
        store.write_calibration(SETTING, "s", b"1")
        store.write_calibration(SETTING, "s", b"2")
        assert store.read_calibrations(SETTING) == {"s": b"2"}


def test_a_file_of_another_kind_is_refused_and_kept(path: Path):
    path.parent.mkdir()
    path.write_bytes(b"this is no database at all" * 100)
    before = path.read_bytes()
    with pytest.raises(CorruptFileError, match="is not a store of measurements") as caught:
        MeasurementStore(path)
    assert caught.value.hint is not None
    assert path.read_bytes() == before


def test_a_truncated_store_is_refused(path: Path):
    with MeasurementStore(path) as store:
        for i in range(200):
            store.add_round(SETTING, f"item {i}", ROUND)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 100])
    with pytest.raises(CorruptFileError), MeasurementStore(path) as store:
        store.read_rounds(SETTING, [f"item {i}" for i in range(200)])


def test_a_store_of_another_version_is_refused(path: Path):
    with MeasurementStore(path):
        pass
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(CorruptFileError, match="wanted a store of version 1, got version 99"):
        MeasurementStore(path)


def test_damaged_figures_are_refused(path: Path):
    with MeasurementStore(path) as store:
        store.write_timings(SETTING, {"a": TIMING})
    with sqlite3.connect(path) as db:
        db.execute('UPDATE timing SET figures = \'{"p20_ms": "fast"}\'')
    db.close()
    with MeasurementStore(path) as store, pytest.raises(CorruptFileError):
        store.read_timings(SETTING)


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write the store") as caught:
        MeasurementStore(tmp_path / "file" / "measurements.sqlite")
    assert "EFFDL_HOME" in (caught.value.hint or "")


def test_a_folder_in_place_of_the_file_is_an_output_error(path: Path):
    path.mkdir(parents=True)
    with pytest.raises(OutputError):
        MeasurementStore(path)


def _fill(store: MeasurementStore) -> None:
    for i in range(10_000):
        store.add_round(SETTING, f"item {i}", ROUND)


def test_a_full_disk_is_an_output_error_and_loses_nothing(path: Path):
    with MeasurementStore(path) as store:
        store.add_round(SETTING, "a", ROUND)
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(OutputError, match="full"):
            _fill(store)
    with MeasurementStore(path) as store:
        assert store.read_rounds(SETTING, ["a"]) == [[ROUND]]


def test_the_users_folder_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("EFFDL_HOME", os.fspath(tmp_path))
    assert default_store_path() == tmp_path / "measurements.sqlite"
    monkeypatch.delenv("EFFDL_HOME")
    assert default_store_path().name == "measurements.sqlite"
    assert "effdl" in default_store_path().parts
