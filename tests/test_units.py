"""The unit parser: hand-worked values, refusals, and the exact round trip."""

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effdl import units
from effdl.errors import ConfigError


def latency(text: str) -> float:
    return units.parse_latency_ms(text, batch_size=1)


PARSERS: dict[str, Callable[[str], float]] = {
    "latency": latency,
    "duration": units.parse_duration_s,
    "bytes": units.parse_bytes,
    "macs": units.parse_macs,
    "params": units.parse_params,
    "percent": units.parse_percent,
}
FORMATTERS: dict[str, Callable[[float], str]] = {
    "latency": units.format_latency_ms,
    "duration": units.format_duration_s,
    "bytes": units.format_bytes,
    "macs": units.format_macs,
    "params": units.format_params,
    "percent": units.format_percent,
}


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("latency", "20ms", 20.0),
        ("latency", "20 ms", 20.0),
        ("latency", "1.5s", 1500.0),
        ("latency", "800us", 0.8),
        ("latency", "800µs", 0.8),
        ("latency", "800μs", 0.8),
        ("latency", "33.3ms", 33.3),
        ("latency", "2e1ms", 20.0),
        ("latency", "50fps", 20.0),
        ("duration", "10m", 600.0),
        ("duration", "90s", 90.0),
        ("duration", "1.5h", 5400.0),
        ("bytes", "64MiB", 67_108_864.0),
        ("bytes", "64MB", 64_000_000.0),
        ("bytes", "1B", 1.0),
        ("macs", "300MMACs", 3e8),
        ("macs", "1.2GMACs", 1.2e9),
        ("params", "5Mparams", 5e6),
        ("percent", "95%", 95.0),
        ("percent", "99.9 %", 99.9),
        ("percent", "100%", 100.0),
    ],
)
def test_reads_value(kind: str, text: str, value: float) -> None:
    assert PARSERS[kind](text) == value


def test_frames_per_second_count_every_sample_of_the_batch() -> None:
    assert units.parse_latency_ms("64fps", batch_size=64) == 1000.0
    assert units.parse_latency_ms("30fps", batch_size=1) == pytest.approx(1000 / 30, rel=1e-15)


@pytest.mark.parametrize("kind", PARSERS)
@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "ms", "20", "20.5", "nan", "nanms", "inf", "infms", "1e3", "20 furlongs"),
        *("1,5s", "0x1ms", "20ms20ms", "--5ms", "1e999ms", "٢٠ms", "1e99999999999ms"),
        *("9" * 400 + "ms", "\x00ms", "20\n", "20ms\n1ms"),
    ],
)
def test_refuses(kind: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        PARSERS[kind](text)
    assert caught.value.exit_code == 2
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("number", ["0", "-5", "0.0", "1e-400", "1e400", "-0"])
@pytest.mark.parametrize(
    ("kind", "unit"),
    [
        ("latency", "ms"),
        ("latency", "fps"),
        ("duration", "s"),
        ("bytes", "MiB"),
        ("macs", "MMACs"),
        ("params", "Mparams"),
        ("percent", "%"),
    ],
)
def test_refuses_what_is_not_positive_and_finite(kind: str, unit: str, number: str) -> None:
    with pytest.raises(ConfigError):
        PARSERS[kind](number + unit)


@pytest.mark.parametrize("text", ["1e308s", "1e-322us", "1e-320fps"])
def test_refuses_overflow_by_the_unit(text: str) -> None:
    with pytest.raises(ConfigError, match=r"out of range|more than zero"):
        latency(text)


def test_percent_above_100_is_refused() -> None:
    with pytest.raises(ConfigError, match="at most 100%"):
        units.parse_percent("100.5%")


def test_a_bare_number_is_answered_with_the_likely_text() -> None:
    with pytest.raises(ConfigError) as caught:
        latency("20")
    assert caught.value.hint == "did you mean 20ms?"
    with pytest.raises(ConfigError) as caught:
        units.parse_bytes("64")
    assert caught.value.hint == "did you mean 64MiB?"


def test_wrong_case_is_answered_with_the_right_one() -> None:
    with pytest.raises(ConfigError) as caught:
        units.parse_bytes("64mib")
    assert caught.value.hint == "did you mean 64MiB?"


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("latency", 20.0, "20ms"),
        ("latency", 1500.0, "1.5s"),
        ("latency", 0.8, "800us"),
        ("duration", 600.0, "10m"),
        ("duration", 5.0, "5s"),
        ("bytes", 67108864.0, "64MiB"),
        ("macs", 3e8, "300MMACs"),
        ("params", 5e6, "5Mparams"),
        ("percent", 95.0, "95%"),
    ],
)
def test_formats(kind: str, value: float, text: str) -> None:
    assert FORMATTERS[kind](value) == text


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_formatting_what_no_parser_reads_is_an_error(value: float) -> None:
    with pytest.raises(ValueError, match="positive finite"):
        units.format_latency_ms(value)


POSITIVE = st.floats(
    min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False, allow_subnormal=True
)


@pytest.mark.parametrize("kind", sorted(set(PARSERS) - {"percent"}))
@given(value=POSITIVE)
def test_parse_undoes_format(kind: str, value: float) -> None:
    assert PARSERS[kind](FORMATTERS[kind](value)) == value


@given(value=st.floats(min_value=0, exclude_min=True, max_value=100))
def test_parse_undoes_format_for_percent(value: float) -> None:
    assert units.parse_percent(units.format_percent(value)) == value


@pytest.mark.parametrize("kind", PARSERS)
@given(text=st.text(max_size=60))
def test_any_text_is_a_positive_number_or_a_config_error(kind: str, text: str) -> None:
    value = 1.0
    with contextlib.suppress(ConfigError):
        value = PARSERS[kind](text)
    assert 0 < value < float("inf")
