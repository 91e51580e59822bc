"""Two tables side by side, against figures worked out by hand."""

import json
import math

import pytest

from effdl.errors import ConfigError
from effdl.targets.latency_table import LatencyEntry, LatencyTable, TableHeader
from effdl.workflows.compare_tables import compare_tables


def table(device: str, **latencies_ms: float) -> LatencyTable:
    header = TableHeader(target="t", device=device, batch_size=1, runtime="r", statistic="p20")
    entries = (LatencyEntry(key=key, latency_ms=value) for key, value in latencies_ms.items())
    return LatencyTable(header=header, entries=tuple(entries))


A = table("old", a=1.0, b=2.0, c=4.0, d=8.0, gone=1.0)
B = table("new", a=1.0, b=2.1, c=2.0, d=12.0, come=1.0, more=2.0)


def test_rows_are_matched_and_ratios_summed_up():
    found = compare_tables(A, B, over_percent=5.0)
    assert found.only_in_a == (("gone", None),)
    assert found.only_in_b == (("come", None), ("more", None))
    assert [row.ratio for row in found.common] == [1.0, 1.05, 0.5, 1.5]
    # Sorted 0.5, 1, 1.05, 1.5: percentiles by linear interpolation over three gaps.
    assert found.ratio == pytest.approx(
        {"p5": 0.5 + 0.15 * 0.5, "median": 1.025, "p95": 1.5 - 0.15 * 0.45, "worst": 0.5}
    )


@pytest.mark.parametrize(
    ("over_percent", "keys"),
    [(0.0, ["c", "d", "b"]), (4.9, ["c", "d", "b"]), (5.1, ["c", "d"]), (50.1, [])],
)
def test_changed_rows_come_worst_first(over_percent: float, keys: list[str]):
    found = compare_tables(A, B, over_percent=over_percent)
    assert [row.key for row in found.changed] == keys


def test_the_json_is_whole_and_plain():
    facts = compare_tables(A, B).to_json()
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert facts["a"]["device"] == "old"
    assert facts["changed"][0] == {
        "key": "c", "resolution": None, "a_ms": 4.0, "b_ms": 2.0, "ratio": 0.5,
    }  # fmt: skip


def test_rows_of_different_resolutions_are_different_rows():
    def at(resolution: int, latency_ms: float) -> LatencyTable:
        entry = LatencyEntry(key="a", resolution=resolution, latency_ms=latency_ms)
        return LatencyTable(header=A.header, entries=(entry,))

    assert compare_tables(at(160, 1.0), at(160, 2.0)).common[0].ratio == 2.0
    apart = compare_tables(at(160, 1.0), at(224, 2.0))
    assert apart.ratio is None
    assert apart.only_in_a == (("a", 160),)
    assert apart.only_in_b == (("a", 224),)


def test_a_table_equals_itself():
    found = compare_tables(A, A, over_percent=0.0)
    assert found.changed == []
    assert found.ratio == {"p5": 1.0, "median": 1.0, "p95": 1.0, "worst": 1.0}


@pytest.mark.parametrize("over_percent", [-1.0, math.nan])
def test_a_percentage_that_is_none_is_refused(over_percent: float):
    with pytest.raises(ConfigError, match="percentage"):
        compare_tables(A, B, over_percent=over_percent)
