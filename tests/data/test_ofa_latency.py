"""The reader of measured sub-networks."""

from pathlib import Path

import pytest

from effdl.data.ofa_latency import read_measured_networks, write_networks_to_measure
from effdl.errors import CorruptFileError
from effdl.search.space import SubnetConfig

TEXT = """\
index,kernel_size,expand_ratio,depth,resolution,a_ms,b_ms
0,7-5-3,6-4-3,2-3,204,15.5,1e1
1,3-3-3,3-3-3,4-4,128,0.25,7
"""


def test_reads_the_columns_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text(TEXT)
    first, second = read_measured_networks(path, latency_columns=("b_ms", "a_ms"))
    assert dict(first.config) == {
        "kernel_size": (7, 5, 3),
        "expand_ratio": (6, 4, 3),
        "depth": (2, 3),
        "resolution": 204,
    }
    assert (first.line, first.latencies_ms) == (2, (10.0, 15.5))
    assert (second.line, second.latencies_ms) == (3, (7.0, 0.25))
    # Spreadsheets write a byte order mark and carriage returns.
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())
    assert read_measured_networks(path, latency_columns=("b_ms", "a_ms")) == [first, second]


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text(TEXT)
    with pytest.raises(CorruptFileError, match="line 1: no column latency_ms") as error:
        read_measured_networks(path)
    assert "kernel_size, expand_ratio, depth, resolution, latency_ms" in (error.value.hint or "")


@pytest.mark.reference_data
def test_the_published_file(reference_data: Path) -> None:
    path = reference_data / "ofa" / "measured_gpu_latency.csv"
    networks = read_measured_networks(path, latency_columns=("titan_rtx_64_ms",))
    assert len(networks) == 4000
    assert networks[0].latencies_ms == (27.681561,)
    assert {network.config.ints("resolution")[0] for network in networks} == set(range(128, 225, 4))


def test_networks_to_measure_are_read_once_they_are_filled_in(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    configs = [
        SubnetConfig(
            {"kernel_size": (7, 5), "expand_ratio": (6, 0), "depth": (1,), "resolution": r}
        )
        for r in (160, 224)
    ]
    write_networks_to_measure(path, configs, files=["a, b.onnx", "2.onnx"])
    with pytest.raises(CorruptFileError, match="line 2, column latency_ms: still empty"):
        read_measured_networks(path)
    path.write_text(path.read_text().replace(",,", ",1.5,"))
    networks = read_measured_networks(path)
    assert [network.config["resolution"] for network in networks] == [160, 224]
    assert [dict(network.config) for network in networks] == [
        {"kernel_size": (7, 5), "expand_ratio": (6, 0), "depth": (1,), "resolution": r}
        for r in (160, 224)
    ]
    assert {network.latencies_ms for network in networks} == {(1.5,)}
