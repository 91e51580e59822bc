"""What adb, Android and the benchmark programs print: real texts, cut ones, and any."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effdl.errors import CorruptFileError
from effdl.targets.measure.adb_output import (
    parse_cores,
    parse_devices,
    parse_litert_summary,
    parse_perf_test_results,
    parse_properties,
    parse_thermal_status,
)

_TRANSCRIPTS = Path(__file__).parent / "transcripts"
_NOISE = "* daemon not running; starting now at tcp:5037\n* daemon started successfully\n"


def _read(name: str) -> str:
    return (_TRANSCRIPTS / name).read_text()


@pytest.mark.parametrize(
    ("name", "states"),
    [
        ("devices_none.txt", {}),
        ("devices_one.txt", {"R58M42ABCDE": "device"}),
        ("devices_two.txt", {"R58M42ABCDE": "device", "192.168.1.20:5555": "device"}),
        ("devices_unauthorized.txt", {"R58M42ABCDE": "unauthorized"}),
        ("devices_offline.txt", {"R58M42ABCDE": "offline"}),
        ("devices_no_permissions.txt", {"R58M42ABCDE": "no permissions"}),
    ],
)
@pytest.mark.parametrize("noise", ["", _NOISE])
def test_devices(name: str, states: dict[str, str], noise: str):
    assert parse_devices(noise + _read(name)) == states


def test_devices_with_windows_line_ends():
    assert parse_devices(_read("devices_one.txt").replace("\n", "\r\n")) == {
        "R58M42ABCDE": "device"
    }


@pytest.mark.parametrize(
    "text", ["", _NOISE, "List of devices", "List of devices attached\nR58M42ABCDE devi\n"]
)
def test_lists_of_devices_that_are_cut_off(text: str):
    with pytest.raises(CorruptFileError, match=r"adb devices -l: wanted .*, got"):
        parse_devices(text)


@pytest.mark.parametrize("status", range(7))
def test_thermal_status(status: int):
    text = _read("thermalservice.txt").replace("@STATUS@", str(status))
    assert parse_thermal_status(text) == status


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Can't find service: thermalservice\n",
        "Thermal Status: 7\n",
        "Thermal Status: \n",
        "Temperature{mValue=25.6, mType=0, mName=AP, mStatus=0}\n",
    ],
)
def test_no_thermal_status(text: str):
    with pytest.raises(CorruptFileError, match="'Thermal Status:' and 0 to 6"):
        parse_thermal_status(text)


def test_properties():
    properties = parse_properties(_read("getprop.txt"))
    assert properties["ro.soc.model"] == "SM8150"
    assert len(properties) == 11
    # The value of the second goes on in a new line: left out, not cut.
    assert parse_properties("[a]: [b]\n[c]: [d\ne]\n") == {"a": "b"}
    with pytest.raises(CorruptFileError, match="getprop"):
        parse_properties("sh: getprop: inaccessible or not found\n")


def test_cores_that_say_their_frequency_and_capacity():
    folder = "/sys/devices/system/cpu"
    text = (
        f"{folder}/cpu0/cpufreq/cpuinfo_max_freq:1785600\n"
        f"{folder}/cpu10/cpufreq/cpuinfo_max_freq:2841600\n"
        f"{folder}/cpu0/cpu_capacity:286\n"
        f"grep: {folder}/cpu10/cpu_capacity: No such file or directory\n"
    )
    assert parse_cores(text) == ({0: 1785600, 10: 2841600}, {0: 286})
    with pytest.raises(CorruptFileError, match="cpuinfo_max_freq"):
        parse_cores(f"grep: {folder}/cpu0/cpufreq/cpuinfo_max_freq: Permission denied\n")


_RESULTS = "m,1,0.00120125,27112243,11,0\nm,1,1.2e-05,27112243,11,1\n"


def test_results_of_perf_test():
    # The model's name may hold commas; seconds are printed with six digits or an exponent.
    assert parse_perf_test_results(_RESULTS, num_runs=2) == (0.00120125, 1.2e-05)
    with_statistics = _RESULTS + "\nMin Latency: 1.2e-05 s\nP50 Latency: 0.00120125 s\n"
    assert parse_perf_test_results(with_statistics, num_runs=2) == (0.00120125, 1.2e-05)


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("", "wanted 2 runs, got 0"),
        (_RESULTS[:29], "wanted 2 runs, got 1"),
        (_RESULTS[:40], r"wanted NAME,SECONDS,PEAK_BYTES,CPU_PERCENT,1, got"),
        (_RESULTS + "m,0.1,1,1,2\n", "wanted 2 runs, got 3"),
        (_RESULTS.replace("11,1\n", "11,2\n"), "CPU_PERCENT,1, got"),
        (_RESULTS.replace("1.2e-05", "nan"), "finite numbers"),
        (_RESULTS.replace("1.2e-05", "-1"), "at least 0"),
        (_RESULTS.replace("1.2e-05", "0"), "above 0"),
        ("cat: run.csv: No such file or directory\n", "wanted NAME"),
    ],
)
def test_results_that_are_cut_off_or_wrong(text: str, got: str):
    with pytest.raises(CorruptFileError, match=got):
        parse_perf_test_results(text, num_runs=2)


def test_summary_of_litert():
    summary = parse_litert_summary(_read("benchmark_model.txt"), num_runs=20)
    # The second summary, not the warm-up's; microseconds become seconds.
    assert summary.num_runs == 20
    assert summary.mean_s == pytest.approx(0.0276402)
    assert summary.min_s == pytest.approx(0.027210)
    assert summary.max_s == pytest.approx(0.029801)
    assert summary.std_s == pytest.approx(510e-6)
    assert summary.median_s == pytest.approx(0.027512)


def test_summaries_of_older_programs():
    end = "\nInference timings in us: Init: 1, First inference: 2, Warmup (avg): 3\n"
    old = "count=50 first=2990275 curr=2913402 min=2727568 max=3189954 avg=2.95034e+06 std=109798"
    summary = parse_litert_summary(old + end, num_runs=50)
    assert summary.mean_s == pytest.approx(2.95034)
    assert summary.median_s is None
    same = parse_litert_summary("count=3 curr=1500(all same)" + end, num_runs=3)
    assert (same.mean_s, same.min_s, same.max_s) == pytest.approx((0.0015, 0.0015, 0.0015))
    assert same.std_s == 0.0
    one = parse_litert_summary("count=1 curr=3512391 p5=1 median=3512391" + end, num_runs=1)
    assert (one.mean_s, one.median_s) == pytest.approx((3.512391, 3.512391))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: text.index("Inference timings")], "Inference timings in us:"),
        (lambda text: text.replace("count=", "cnt="), "a line with count="),
        (lambda text: text.replace("count=20", "count=19"), "wanted 20 runs or more, got 19"),
        (lambda text: text.replace("min=27210", "min=27900"), "min <= avg <= max"),
        (lambda text: text.replace("max=29801", ""), "finite numbers"),
        (lambda text: text.replace("median=27512", "median=inf"), "finite numbers"),
    ],
)
def test_summaries_that_are_cut_off_or_wrong(change: Callable[[str], str], message: str):
    with pytest.raises(CorruptFileError, match=message):
        parse_litert_summary(change(_read("benchmark_model.txt")), num_runs=20)


_PARSERS: dict[str, Callable[[str], object]] = {
    "devices_no_permissions.txt": parse_devices,
    "getprop.txt": parse_properties,
    "thermalservice.txt": parse_thermal_status,
    "benchmark_model.txt": lambda text: parse_litert_summary(text, num_runs=20),
    "perf_test": lambda text: parse_perf_test_results(text, num_runs=2),
    "cores": parse_cores,
}
_WHOLE = {
    "perf_test": _RESULTS,
    "cores": "/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq:1\n",
    **{name: _read(name).replace("@STATUS@", "0") for name in _PARSERS if name.endswith(".txt")},
}


@pytest.mark.parametrize("name", _PARSERS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_text_crashes_a_parser(name: str, data: st.DataObject):
    whole = _WHOLE[name]
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    put = data.draw(st.text(max_size=12) | st.sampled_from(["\n", ",", "=", "count=", "9" * 40]))
    for text in (whole[:start] + put + whole[end:], whole[start:end], put):
        with suppress(CorruptFileError):
            _PARSERS[name](text)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(1e-7, 1e3), min_size=1, max_size=120), st.data())
def test_a_result_that_lost_its_end_is_never_taken(seconds: list[float], data: st.DataObject):
    lines = [f"models,{s:.6g},27112243,11,{i}\n" for i, s in enumerate(seconds)]
    text = "".join(lines)
    got = parse_perf_test_results(text, num_runs=len(seconds))
    assert got == pytest.approx(seconds, rel=1e-5)
    # But for its last line end, which says nothing.
    cut = text[: data.draw(st.integers(0, len(text) - 2))]
    with pytest.raises(CorruptFileError):
        parse_perf_test_results(cut, num_runs=len(seconds))
