"""Reads what ``adb``, Android and the two benchmark programs print.

The formats are those of their public sources. What is missing, malformed or cut off is an
error that says what was wanted and what came, never a guess.
"""

import math
import re
from dataclasses import dataclass
from itertools import pairwise

from effdl.errors import CorruptFileError

__all__ = [
    "LiteRtSummary",
    "parse_cores",
    "parse_devices",
    "parse_litert_summary",
    "parse_perf_test_results",
    "parse_properties",
    "parse_thermal_status",
]

_DEVICES_HEAD = "List of devices attached"
# Longest first: a serial may hold blanks, its state decides where it ends.
_STATES = (
    "no permissions", "unauthorized", "authorizing", "connecting", "bootloader", "recovery",
    "sideload", "offline", "device", "rescue", "host",
)  # fmt: skip
_DEVICE = re.compile(rf"(\S+)\s+({'|'.join(_STATES)})(?=[\s;(]|$)")
_THERMAL = re.compile(r"^\s*Thermal Status: (\d+)\s*$", re.MULTILINE)
_HOTTEST_STATUS = 6
_PROPERTY = re.compile(r"^\[([^\]\n]+)\]: \[([^\]\n]*)\]\s*$", re.MULTILINE)
_CORE = re.compile(
    r"^/sys/devices/system/cpu/cpu(\d{1,3})/(?:(cpufreq/cpuinfo_max_freq)|cpu_capacity):(\d{1,9})$"
)
_SUMMARY = re.compile(r"\bcount=\d")
_PAIR = re.compile(r"\b(count|first|curr|min|max|avg|std|p5|median|p95)=(\S+)")
_END_OF_SUMMARY = "Inference timings in us:"
_SHOWN = 160


def parse_devices(text: str) -> dict[str, str]:
    """States by serial number, from ``adb devices -l``.

    Lines before the list, such as those of a server that starts, are passed over.

    Raises:
        CorruptFileError: The list is missing, or a line is not of it.
    """
    lines = text.splitlines()
    if _DEVICES_HEAD not in lines:
        raise _malformed("adb devices -l", f"the line {_DEVICES_HEAD!r}", text)
    found: dict[str, str] = {}
    for line in lines[lines.index(_DEVICES_HEAD) + 1 :]:
        if not line.strip() or line.startswith("* "):
            continue
        match = _DEVICE.match(line)
        if match is None:
            raise _malformed("adb devices -l", "a serial number and a state", line)
        found[match[1]] = match[2]
    return found


def parse_thermal_status(text: str) -> int:
    """Android's thermal status, from ``dumpsys thermalservice``.

    0: none; 1: light; 2: moderate; 3: severe; 4: critical; 5: emergency; 6: shutdown.

    Raises:
        CorruptFileError: There is no status, or none of these.
    """
    match = _THERMAL.search(text)
    if match is None or int(match[1]) > _HOTTEST_STATUS:
        wanted = f"'Thermal Status:' and 0 to {_HOTTEST_STATUS}"
        raise _malformed("dumpsys thermalservice", wanted, text)
    return int(match[1])


def parse_properties(text: str) -> dict[str, str]:
    """Android's system properties, from ``getprop``; those of several lines are left out.

    Raises:
        CorruptFileError: There is none.
    """
    found = {match[1]: match[2] for match in _PROPERTY.finditer(text)}
    if not found:
        raise _malformed("getprop", "lines such as [name]: [value]", text)
    return found


def parse_cores(text: str) -> tuple[dict[int, int], dict[int, int]]:
    """Highest frequencies in kHz, and capacities, by core.

    Args:
        text: Of ``grep -H``: one line ``PATH:NUMBER`` for each file; others are
            complaints of files that a kernel does not have.

    Raises:
        CorruptFileError: No core tells its frequency.
    """
    frequencies_khz: dict[int, int] = {}
    capacities: dict[int, int] = {}
    for line in text.splitlines():
        match = _CORE.match(line)
        if match is not None:
            (frequencies_khz if match[2] else capacities)[int(match[1])] = int(match[3])
    if not frequencies_khz:
        raise _malformed("the list of cores", "cpufreq/cpuinfo_max_freq of each", text)
    return frequencies_khz, capacities


def parse_perf_test_results(text: str, *, num_runs: int) -> tuple[float, ...]:
    """Seconds of single runs, in order, from the result file of ``onnxruntime_perf_test``.

    A line is ``NAME,SECONDS,PEAK_BYTES,CPU_PERCENT,RUN``; statistics may follow after an
    empty line.

    Args:
        text: The file.
        num_runs: How many runs were asked for.

    Raises:
        CorruptFileError: Runs are missing, out of order, or not positive numbers.
    """
    seconds: list[float] = []
    for line in text.splitlines():
        if not line.strip():
            break
        fields = line.rsplit(",", 4)
        if len(fields) != 5 or fields[4].strip() != str(len(seconds)):
            wanted = f"NAME,SECONDS,PEAK_BYTES,CPU_PERCENT,{len(seconds)}"
            raise _malformed("the result of onnxruntime_perf_test", wanted, line)
        seconds.append(_positive(fields[1], "the result of onnxruntime_perf_test", line))
    if len(seconds) != num_runs:
        raise CorruptFileError(
            f"the result of onnxruntime_perf_test: wanted {num_runs} runs, got {len(seconds)}"
        )
    return tuple(seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class LiteRtSummary:
    """What LiteRT's ``benchmark_model`` says of the runs after its warm-up.

    Attributes:
        num_runs: How many.
        mean_s: Mean of a run in seconds.
        min_s: Fastest run in seconds.
        max_s: Slowest run in seconds.
        std_s: Standard deviation in seconds.
        median_s: Median in seconds; None where an old build does not say.
    """

    num_runs: int
    mean_s: float
    min_s: float
    max_s: float
    std_s: float
    median_s: float | None


def parse_litert_summary(text: str, *, num_runs: int) -> LiteRtSummary:
    """The last summary in the output of ``benchmark_model``, which counts microseconds.

    Args:
        text: The output, with or without a log's prefixes.
        num_runs: At least so many were asked for.

    Raises:
        CorruptFileError: The summary or the line that ends it is missing, a figure is
            missing or not a number, figures contradict each other, or runs are missing.
    """
    what = "the output of benchmark_model"
    body, mark, _ = text.rpartition(_END_OF_SUMMARY)
    if not mark:
        raise _malformed(what, f"the line {_END_OF_SUMMARY!r}", text)
    lines = [line for line in body.splitlines() if _SUMMARY.search(line)]
    if not lines:
        raise _malformed(what, "a line with count=", text)
    line = lines[-1]
    figures: dict[str, str] = {m[1]: m[2] for m in _PAIR.finditer(line)}
    count = figures.pop("count")
    same = figures.get("curr", "").removesuffix("(all")
    if "avg" not in figures:
        # A single run, or runs that all took the same whole number of microseconds.
        figures |= dict.fromkeys(("avg", "min", "max"), same) | {"std": "0"}
    if not count.isdecimal() or len(count) > 9:
        raise _malformed(what, "count= and a whole number", line)
    if int(count) < num_runs:
        raise CorruptFileError(f"{what}: wanted {num_runs} runs or more, got {int(count)}")
    values = {
        name: _positive(figures.get(name, ""), what, line) * 1e-6 for name in ("min", "avg", "max")
    }
    # Means are printed with six digits, extremes with all.
    if any(a > b * (1 + 1e-5) for a, b in pairwise(values.values())):
        raise _malformed(what, "min <= avg <= max", line)
    median = figures.get("median")
    return LiteRtSummary(
        num_runs=int(count),
        mean_s=values["avg"],
        min_s=values["min"],
        max_s=values["max"],
        std_s=_number(figures.get("std", ""), what, line) * 1e-6,
        median_s=None if median is None else _positive(median, what, line) * 1e-6,
    )


def _number(text: str, what: str, line: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise _malformed(what, "finite numbers of at least 0", line)
    return value


def _positive(text: str, what: str, line: str) -> float:
    value = _number(text, what, line)
    if value == 0:
        raise _malformed(what, "times above 0", line)
    return value


def _malformed(what: str, wanted: str, got: str) -> CorruptFileError:
    shown = got if len(got) <= _SHOWN else f"{got[:_SHOWN]}..."
    return CorruptFileError(f"{what}: wanted {wanted}, got {shown!r}")
