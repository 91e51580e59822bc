"""Which latencies a target has at which batch size."""

from pathlib import Path

import pytest

from effdl.errors import (
    ConfigError,
    CorruptFileError,
    TableMismatchError,
    TargetUnavailableError,
)
from effdl.targets.latency_model import load_latency_model, table_batch_sizes, table_path
from effdl.targets.latency_table import LatencyEntry, LatencyTable, TableHeader
from effdl.targets.target import Target, load_target


def test_shipped_batch_sizes() -> None:
    sizes = {
        name: tuple(table_batch_sizes(load_target(name)))
        for name in ("mobile", "gpu-titan-rtx", "gpu-v100", "gpu-2080ti", "gpu-titan-xp")
    }
    assert sizes == {
        "mobile": (1,),
        "gpu-titan-rtx": (1, 32, 64),
        "gpu-v100": (1, 64),
        "gpu-2080ti": (32, 64),
        "gpu-titan-xp": (1,),
    }
    assert table_batch_sizes(load_target("gpu-h100")) == {}


def test_each_source_says_what_it_is() -> None:
    phone = load_latency_model(load_target("mobile"))
    assert (phone.source, phone.batch_size) == ("measured", 1)
    assert phone.device == "Samsung Galaxy Note10"
    gpu = load_latency_model(load_target("gpu-titan-rtx"))
    assert (gpu.source, gpu.batch_size) == ("fitted", 64)
    assert gpu.interval_percent is not None
    assert gpu.interval_percent < 1.0
    assert load_latency_model(load_target("gpu-titan-rtx"), batch_size=1).batch_size == 1
    assert load_latency_model(load_target("gpu-h100"), batch_size=7).source == "estimated"


def test_a_batch_size_nobody_measured() -> None:
    with pytest.raises(TableMismatchError, match="wanted one of 1, 32, 64") as error:
        load_latency_model(load_target("gpu-titan-rtx"), batch_size=40)
    assert error.value.hint == "--batch-size 32"
    with pytest.raises(ConfigError, match="at least 1"):
        load_latency_model(load_target("gpu-titan-rtx"), batch_size=0)


def test_this_machine_has_its_table_elsewhere() -> None:
    with pytest.raises(TargetUnavailableError) as error:
        load_latency_model(load_target("cpu"))
    assert error.value.hint == "effdl profile --target cpu"


def test_files_of_other_targets_and_broken_ones(effdl_home: Path) -> None:
    mine = Target(name="mine", device="d", kind="gpu", runtime="r", description="d")
    header = TableHeader(target="other", device="d", batch_size=1, runtime="r", statistic="mean")
    path = table_path(effdl_home / "targets", "mine", 1, fitted=False)
    LatencyTable(header=header, entries=(LatencyEntry(key="a", latency_ms=1.0),)).write(path)
    with pytest.raises(TableMismatchError, match="got those of other at 1"):
        load_latency_model(mine)
    path.write_text("{")
    with pytest.raises(CorruptFileError):
        load_latency_model(mine)
    # A target whose name begins with another's is not that one.
    longer = table_path(effdl_home / "targets", "mine-too", 8, fitted=True)
    longer.write_text("{}")
    assert tuple(table_batch_sizes(mine)) == (1,)
