"""How fast 100,000 rows load: from the user's own store, and from a table's file."""

from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from effdl.targets.latency_table import LatencyEntry, LatencyTable, TableHeader
from effdl.targets.store import MeasurementStore, Setting
from effdl.targets.timing import Round, Timing

NUM_ROWS = 100_000
LIMIT_S = 0.3
SETTING = Setting(
    runtime="onnxruntime",
    runtime_version="1.32.0",
    runtime_build="0123456789abcdef",
    device="0123456789abcdef",
    num_threads=1,
    batch_size=1,
    protocol="table",
)


def key(row: int) -> str:
    """As long as the key of a block of MobileNetV3."""
    return (
        f"expanded_conv-input:{row}x112x24-output:56x56x32-expand:144-kernel:7-stride:2"
        "-idskip:0-se:1-hs:1"
    )


def timing(row: int) -> Timing:
    p20_ms = 0.1 + row * 1.2345678e-5
    return Timing(
        p20_ms=p20_ms,
        median_ms=p20_ms * 1.0123456,
        p95_ms=p20_ms * 1.1234567,
        interval_percent=0.7654321,
        num_samples=58,
        num_dropped=2,
        num_rounds=6,
        reference_s=2.3456789e-4,
        unstable=row % 50 == 0,
    )


def check_median(benchmark: BenchmarkFixture, limit_s: float) -> None:
    if benchmark.stats is not None:
        assert benchmark.stats["median"] <= limit_s


@pytest.fixture(scope="module")
def store_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "measurements.sqlite"
    with MeasurementStore(path) as store:
        store.write_timings(SETTING, {key(row): timing(row) for row in range(NUM_ROWS)})
    return path


def test_store(benchmark: BenchmarkFixture, store_path: Path) -> None:
    """Opening the store is part of it."""

    def read() -> dict[str, Timing]:
        with MeasurementStore(store_path) as store:
            return store.read_timings(SETTING)

    timings = benchmark.pedantic(read, rounds=7, warmup_rounds=1)
    assert timings == {key(row): timing(row) for row in range(NUM_ROWS)}
    check_median(benchmark, LIMIT_S)


def test_table_file(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    header = TableHeader(target="t", device="d", batch_size=1, runtime="r", statistic="p20")
    entries = tuple(
        LatencyEntry(key=key(row), latency_ms=timing(row).p20_ms, std_ms=0.0123456, count=58)
        for row in range(NUM_ROWS)
    )
    table, path = LatencyTable(header=header, entries=entries), tmp_path / "table.jsonl"
    table.write(path)
    read = benchmark.pedantic(LatencyTable.read, args=[path], rounds=7, warmup_rounds=1)
    assert read == table
    check_median(benchmark, LIMIT_S)


def test_rounds_a_second(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """Committing one round of ten samples, as a profile does after each measurement."""
    measured = Round(seconds=(1e-4,) * 10, interrupted=(False,) * 10, reference_s=1e-4)
    with MeasurementStore(tmp_path / "measurements.sqlite") as store:
        benchmark.pedantic(store.add_round, args=[SETTING, "item", measured], rounds=2000)
    check_median(benchmark, 1e-3)
