"""Once-for-All's YAML tables: exact round trips, and every way to be malformed."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from effdl.errors import ConfigError, CorruptFileError, LatencyTableError, MissingEntryError
from effdl.models.mobilenet_v3.space import MobileNetV3Space, ofa_mbv3_w12
from effdl.search.space import SubnetConfig
from effdl.targets.latency_model import load_latency_model
from effdl.targets.latency_table import LatencyEntry, LatencyTable, TableHeader
from effdl.targets.ofa_yaml import (
    read_ofa_folder,
    read_ofa_yaml,
    write_ofa_folder,
    write_ofa_yaml,
)
from effdl.targets.target import load_target

HEADER = TableHeader(target="toy", device="Toy", batch_size=1, runtime="r", statistic="mean")
TEXT = """\
Conv-input:160x160x3-output:80x80x24:
  count: 498
  mean: 0.495562248995984
  std: 0.010239557348882489
Logits-input:1x1x1536-output:1000:
  count: 499
  mean: 0.656440881763527
  std: 1.0e-07
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_reads_and_writes_the_same_bytes(tmp_path: Path) -> None:
    entries = read_ofa_yaml(write(tmp_path / "160_lookup_table.yaml", TEXT), resolution=160)
    assert entries[0] == LatencyEntry(
        key="Conv-input:160x160x3-output:80x80x24",
        resolution=160,
        latency_ms=0.495562248995984,
        std_ms=0.010239557348882489,
        count=498,
    )
    write_ofa_yaml(tmp_path / "out.yaml", reversed(entries))
    assert (tmp_path / "out.yaml").read_text() == TEXT


@settings(max_examples=60)
@given(
    rows=st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1),
        st.tuples(
            st.floats(1e-9, 1e9), st.none() | st.floats(0, 1e9), st.none() | st.integers(1, 10**6)
        ),
        min_size=1,
        max_size=6,
    )
)
def test_any_table_survives(
    tmp_path_factory: pytest.TempPathFactory,
    rows: dict[str, tuple[float, float | None, int | None]],
) -> None:
    entries = [
        LatencyEntry(key=key, latency_ms=mean, std_ms=std, count=count)
        for key, (mean, std, count) in rows.items()
        if len(key) <= 512
    ]
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    write_ofa_yaml(path, entries)
    assert sorted(read_ofa_yaml(path), key=lambda e: e.key) == sorted(entries, key=lambda e: e.key)


def test_variance_stands_for_its_root_and_all_but_the_mean_may_be_absent(tmp_path: Path) -> None:
    text = "a:\n  mean: 2.0\n  var: 0.25\nb:\n  mean: 1e-1\n"
    first, second = read_ofa_yaml(write(tmp_path / "t.yaml", text))
    assert (first.std_ms, first.count) == (0.5, None)
    assert second == LatencyEntry(key="b", latency_ms=0.1)


def test_proxyless_tables_are_read_and_then_lack_the_keys(tmp_path: Path) -> None:
    key = "expanded_conv-input:112x112x32-output:112x112x16-expand:1-kernel:3-stride:1-idskip:0"
    text = f"{key}:\n  count: 9\n  mean: 3.0\n  var: 0.04\n"
    table = LatencyTable(
        header=HEADER, entries=read_ofa_yaml(write(tmp_path / "mobile_trim.yaml", text))
    )
    assert key in table
    with pytest.raises(MissingEntryError, match="Conv-input"):
        table.predict_op_ms([ofa_mbv3_w12().slots[0].ops[0]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:\n  mean: 1.0\na:\n  mean: 2.0\n", "line 3: second entry for a"),
        ("a:\n  mean: .nan\n", "line 2"),
        ("a:\n  mean: nan\n", "line 1: a: .*latency_ms"),
        ("a:\n  mean: -1.0\n", "line 1: a: .*latency_ms"),
        ("a:\n  mean: 0.0\n", "line 1: a: .*latency_ms"),
        ("a:\n  mean: 1.0\n  std: -0.1\n", "line 1: a: .*std_ms"),
        ("a:\n  mean: inf\n", "line 1: a: .*latency_ms"),
        ("a:\n  mean: fast\n", "line 2: wanted a number as mean, got 'fast'"),
        ("a:\n  count: 1.5\n  mean: 1\n", "line 2: wanted a number as count"),
        ("a:\n  std: 1.0\n", "line 1: a: .*latency_ms"),
        ("a:\n  mean: 1.0\n  mean: 2.0\n", "line 3"),
        ("a:\n  median: 1.0\n", "line 2: .*'median'"),
        ("a: 1.0\n", "line 1"),
        ("a:\n", "line 1"),
        ("- a\n- b\n", "line 1"),
        ("a:\n  mean: [1.0]\n", "line 2"),
        ("a:\n  mean: {b: 1.0}\n", "line 2"),
        ("a: &x\n  mean: 1.0\nb: *x\n", "line 3"),
        ("? {b: 1}\n: {mean: 1}\n", "line 1"),
        ("just text\n", "line 1"),
        ("a:\n  mean: 1.0\n b:\n", "not YAML"),
        ("a: !!python/object/apply:os.system [ls]\n", "line 1"),
        ("", "no entries"),
        ("{}\n", "no entries"),
        ("\x00", "not YAML"),
    ],
)
def test_malformed_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(CorruptFileError, match=message):
        read_ofa_yaml(write(tmp_path / "t.yaml", text))


def test_hostile_files_end_in_an_error(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text("a: " + "[" * 200_000)
    with pytest.raises(CorruptFileError):
        read_ofa_yaml(path)
    path.write_bytes(b"a:\n  mean: \xff\xff\n")
    with pytest.raises(CorruptFileError, match="not YAML"):
        read_ofa_yaml(path)
    path.write_bytes(b"#" * (9 << 20))
    with pytest.raises(CorruptFileError, match="too large"):
        read_ofa_yaml(path)


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no latency table"):
        read_ofa_folder(tmp_path, HEADER)
    with pytest.raises(ConfigError, match="cannot read"):
        read_ofa_folder(tmp_path / "absent", HEADER)
    write(tmp_path / "224_lookup_table.yaml", TEXT)
    write(tmp_path / "160_lookup_table.yaml", TEXT)
    write(tmp_path / "notes.txt", "not a table")
    table = read_ofa_folder(tmp_path, HEADER)
    assert table.resolutions == (160, 224)
    files = write_ofa_folder(tmp_path / "out", table)
    assert [path.name for path in files] == ["160_lookup_table.yaml", "224_lookup_table.yaml"]
    assert all(path.read_text() == TEXT for path in files)
    free = LatencyTable(header=HEADER, entries=(LatencyEntry(key="a", latency_ms=1.0),))
    with pytest.raises(LatencyTableError, match="got none for a"):
        write_ofa_folder(tmp_path / "out2", free)
    assert not (tmp_path / "out2").exists()


def straightforward_sum_ms(tree: dict[str, dict[str, float]], keys: list[str]) -> float:
    total = 0.0
    for key in keys:
        total += tree[key]["mean"]
    return total


def keys_of(space: MobileNetV3Space, config: SubnetConfig) -> list[str]:
    return [shape.spec().key for _, shape in space.shapes(config)]


@pytest.mark.reference_data
def test_published_tables_round_trip_and_equal_the_shipped_one(
    reference_data: Path, tmp_path: Path
) -> None:
    published = reference_data / "ofa" / "note10"
    table = read_ofa_folder(published, HEADER)
    files = write_ofa_folder(tmp_path, table)
    assert len(files) == 17
    for path in files:
        assert path.read_bytes() == (published / path.name).read_bytes()
    shipped = load_latency_model(load_target("mobile"))
    assert isinstance(shipped, LatencyTable)
    assert shipped.entries == table.entries


@pytest.mark.reference_data
def test_sums_equal_straightforward_sums_of_the_published_files(reference_data: Path) -> None:
    space, model = ofa_mbv3_w12(), load_latency_model(load_target("mobile"))
    rows = space.search_space.sample(300, np.random.default_rng(0))
    for row in rows:
        config = space.search_space.decode(row)
        (resolution,) = config.ints("resolution")
        path = reference_data / "ofa" / "note10" / f"{resolution}_lookup_table.yaml"
        tree = yaml.load(path.read_text(), yaml.CSafeLoader)
        ops = [shape.spec() for _, shape in space.shapes(config)]
        latencies = model.predict_op_ms(ops, resolutions=[resolution] * len(ops))
        expected = straightforward_sum_ms(tree, keys_of(space, config))
        assert latencies.sum() == pytest.approx(expected, abs=1e-12, rel=1e-14)


def test_the_shipped_table_knows_the_whole_space() -> None:
    space, model = ofa_mbv3_w12(), load_latency_model(load_target("mobile"))
    smallest, fastest_ms = space.resolutions[0], 0.0
    for slot in space.slots:
        if slot.gate is None:
            repeats = len(slot.ops) // len(space.resolutions)
            ops = slot.ops[:repeats]
            fastest_ms += model.predict_op_ms(ops, resolutions=[smallest] * repeats).min()
    # The space's published minimum on the Note10: two blocks a unit, 160 pixels.
    assert fastest_ms == pytest.approx(9.89, abs=0.005)
