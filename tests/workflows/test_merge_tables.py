"""Merging parts of a table: the order, the grouping and repetition do not matter."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effdl.errors import ConfigError, TableMismatchError
from effdl.targets.latency_table import LatencyEntry, LatencyTable, TableHeader
from effdl.workflows.merge_tables import merge_tables

HEADER = TableHeader(
    target="t", device="d", batch_size=1, runtime="r 1", statistic="p20", num_threads=1
)


def table(*entries: LatencyEntry, **header: object) -> LatencyTable:
    return LatencyTable(header=msgspec.structs.replace(HEADER, **header), entries=entries)


def entry(key: str, latency_ms: float, resolution: int | None = None) -> LatencyEntry:
    return LatencyEntry(key=key, latency_ms=latency_ms, resolution=resolution)


# Few keys and values, so that tables share rows, equal ones and different ones.
rows = st.builds(
    LatencyEntry,
    key=st.sampled_from("abc"),
    resolution=st.sampled_from([None, 160, 224]),
    latency_ms=st.sampled_from([1.0, 2.0, 3.0]),
    std_ms=st.sampled_from([None, 0.5]),
    count=st.sampled_from([None, 10]),
)
tables = st.builds(
    lambda entries, origin: table(*entries, origin=origin),
    st.lists(rows, max_size=6, unique_by=lambda e: (e.key, e.resolution)),
    st.sampled_from(["", "a", "b", "b; a", "c; a"]),
)


def merged(*parts: LatencyTable) -> LatencyTable:
    return merge_tables(parts, prefer="lowest")


@settings(max_examples=300)
@given(tables, tables)
def test_commutative(a: LatencyTable, b: LatencyTable):
    assert merged(a, b) == merged(b, a)


@settings(max_examples=300)
@given(tables, tables, tables)
def test_associative(a: LatencyTable, b: LatencyTable, c: LatencyTable):
    assert merged(merged(a, b), c) == merged(a, merged(b, c)) == merged(a, b, c)


@settings(max_examples=300)
@given(tables, tables)
def test_idempotent(a: LatencyTable, b: LatencyTable):
    once = merged(a, b)
    assert merged(once, once) == merged(once, a) == merged(once, b) == once
    # A table by itself keeps its rows and its header.
    alone = merge_tables([a, a])
    assert set(alone.entries) == set(a.entries)
    assert alone.header == a.header


@given(tables, tables)
def test_rows_are_those_of_the_parts(a: LatencyTable, b: LatencyTable):
    def by_identity(of: LatencyTable) -> dict[tuple[str, int | None], LatencyEntry]:
        return {(e.key, e.resolution): e for e in of.entries}

    first, second, both = by_identity(a), by_identity(b), by_identity(merged(a, b))
    assert both.keys() == first.keys() | second.keys()
    for identity, found in both.items():
        given = [part[identity] for part in (first, second) if identity in part]
        assert found in given
        assert found.latency_ms == min(e.latency_ms for e in given)
    if all(first[i] == second[i] for i in first.keys() & second.keys()):
        assert by_identity(merge_tables([b, a])) == both
    else:
        with pytest.raises(TableMismatchError, match="differ in"):
            merge_tables([a, b])


def test_a_clash_names_the_operator_unless_told_what_to_keep():
    a, b = table(entry("x", 2.0), entry("y", 5.0, 160)), table(entry("y", 4.0, 160))
    with pytest.raises(TableMismatchError, match="1 of the operators they share, such as y") as no:
        merge_tables([a, b])
    assert "--prefer" in (no.value.hint or "")
    assert merge_tables([a, b], prefer="first").entries[1] == entry("y", 5.0, 160)
    assert merge_tables([b, a], prefer="first").entries[1] == entry("y", 4.0, 160)
    assert merge_tables([a, b], prefer="lowest").entries[1] == entry("y", 4.0, 160)
    # The same operator at another resolution is another row.
    other = table(entry("y", 4.0, 224))
    assert [e.resolution for e in merge_tables([a, other]).entries] == [None, 160, 224]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("target", "t2"),
        ("device", "another"),
        ("batch_size", 2),
        ("runtime", "r 2"),
        ("statistic", "mean"),
        ("dtype", "float16"),
        ("num_threads", 4),
        ("num_threads", None),
        ("licence", "CC0"),
    ],
)
def test_tables_of_different_things_are_refused_by_field(field: str, value: object):
    with pytest.raises(TableMismatchError, match=rf"differ in {field}: .*{value!r}"):
        merge_tables([table(), table(), table(**{field: value})], prefer="lowest")


def test_no_field_of_the_header_is_overlooked():
    checked = {"target", "device", "batch_size", "runtime", "statistic", "dtype", "num_threads"}
    assert set(TableHeader.__struct_fields__) == checked | {"licence", "origin"}


def test_origins_are_joined_and_the_file_reads_back(tmp_path: Path):
    done = merge_tables([table(origin="b"), table(origin="a; b"), table(origin="")])
    assert done.header.origin == "a; b"
    done.write(tmp_path / "t.jsonl")
    assert LatencyTable.read(tmp_path / "t.jsonl") == done
    with pytest.raises(ConfigError, match="at least one"):
        merge_tables([])
