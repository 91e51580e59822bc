"""Quantities as people write them: ``20ms``, ``64MiB``, ``300MMACs``, ``95%``.

A number without its unit is refused, so that no one has to guess. Parsing is
exact (the decimal text is scaled as a fraction, then rounded once), and
formatting is its inverse: ``parse(format(x)) == x`` for every positive finite
float.
"""

import math
import re
from collections.abc import Mapping
from fractions import Fraction

from effdl.errors import ConfigError

__all__ = [
    "format_bytes",
    "format_duration_s",
    "format_latency_ms",
    "format_macs",
    "format_params",
    "format_percent",
    "parse_bytes",
    "parse_duration_s",
    "parse_latency_ms",
    "parse_macs",
    "parse_params",
    "parse_percent",
]

_NUMBER_AND_UNIT = re.compile(
    r"(?P<number>[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*(?P<unit>[^\W\d]+|%)?",
    re.ASCII,
)
# Longer texts are no quantity; the bound also keeps exact fractions small.
_MAX_CHARACTERS = 48

_MILLISECONDS = {
    "ms": Fraction(1),
    "s": Fraction(1000),
    "us": Fraction(1, 1000),
    "ns": Fraction(1, 10**6),
}
_SECONDS = {
    "s": Fraction(1),
    "ms": Fraction(1, 1000),
    "m": Fraction(60),
    "min": Fraction(60),
    "h": Fraction(3600),
}
_BYTES = {
    "B": Fraction(1),
    "kB": Fraction(10**3),
    "KiB": Fraction(2**10),
    "MB": Fraction(10**6),
    "MiB": Fraction(2**20),
    "GB": Fraction(10**9),
    "GiB": Fraction(2**30),
}
_MACS = {
    "MACs": Fraction(1),
    "kMACs": Fraction(10**3),
    "MMACs": Fraction(10**6),
    "GMACs": Fraction(10**9),
}
_PARAMS = {
    "params": Fraction(1),
    "kparams": Fraction(10**3),
    "Mparams": Fraction(10**6),
    "Gparams": Fraction(10**9),
}
_PERCENT = {"%": Fraction(1)}


def parse_latency_ms(text: str, *, batch_size: int) -> float:
    """Milliseconds of one forward pass of the whole batch.

    ``20ms``, ``1.5s``, ``800us`` (or ``800µs``), ``30fps``. Frames per second
    count samples, so ``30fps`` is ``batch_size / 30`` seconds.

    Args:
        text: The quantity.
        batch_size: Samples in one forward pass.

    Raises:
        ConfigError: No unit, an unknown unit, or not a positive finite number.
    """
    if batch_size < 1:
        raise ConfigError(f"batch size must be at least 1, got {batch_size}")
    text = text.strip().replace("µ", "u").replace("μ", "u")
    if text.endswith("fps"):
        frames_per_s = _parse(text, {"fps": Fraction(1)}, what="frame rate", example="30fps")
        return _positive(text, Fraction(1000 * batch_size) / Fraction(frames_per_s), "latency")
    return _parse(text, _MILLISECONDS, what="latency", example="20ms")


def parse_duration_s(text: str) -> float:
    """Seconds of a time span: ``90s``, ``10m``, ``1.5h``, ``500ms``.

    Raises:
        ConfigError: No unit, an unknown unit, or not a positive finite number.
    """
    return _parse(text, _SECONDS, what="duration", example="10m")


def parse_bytes(text: str) -> float:
    """Bytes of a memory size: ``64MiB`` (binary) or ``64MB`` (decimal).

    Raises:
        ConfigError: No unit, an unknown unit, or not a positive finite number.
    """
    return _parse(text, _BYTES, what="memory size", example="64MiB")


def parse_macs(text: str) -> float:
    """Multiply-accumulate operations for one sample: ``300MMACs``, ``1.2GMACs``.

    Raises:
        ConfigError: No unit, an unknown unit, or not a positive finite number.
    """
    return _parse(text, _MACS, what="number of MACs", example="300MMACs")


def parse_params(text: str) -> float:
    """Trainable parameters: ``5Mparams``, ``800kparams``.

    Raises:
        ConfigError: No unit, an unknown unit, or not a positive finite number.
    """
    return _parse(text, _PARAMS, what="number of parameters", example="5Mparams")


def parse_percent(text: str) -> float:
    """Percent, more than 0 and at most 100: ``95%`` is 95.0.

    Raises:
        ConfigError: No percent sign, or not within (0, 100].
    """
    value = _parse(text, _PERCENT, what="percentage", example="95%")
    if value > 100:
        raise ConfigError(f"percentage must be at most 100%, got {text!r}", hint="try 95%")
    return value


def format_latency_ms(latency_ms: float) -> str:
    """``20.0`` is ``20ms``, ``1500.0`` is ``1.5s``; `parse_latency_ms` reads it back exactly."""
    return _format(latency_ms, _MILLISECONDS, ("s", "ms", "us"), base="ms")


def format_duration_s(duration_s: float) -> str:
    """``600.0`` is ``10m``; `parse_duration_s` reads it back exactly."""
    return _format(duration_s, _SECONDS, ("h", "m", "s", "ms"), base="s")


def format_bytes(num_bytes: float) -> str:
    """``67108864`` is ``64MiB``; `parse_bytes` reads it back exactly."""
    return _format(num_bytes, _BYTES, ("GiB", "MiB", "KiB", "B"), base="B")


def format_macs(num_macs: float) -> str:
    """``3e8`` is ``300MMACs``; `parse_macs` reads it back exactly."""
    return _format(num_macs, _MACS, ("GMACs", "MMACs", "kMACs", "MACs"), base="MACs")


def format_params(num_params: float) -> str:
    """``5e6`` is ``5Mparams``; `parse_params` reads it back exactly."""
    return _format(num_params, _PARAMS, ("Gparams", "Mparams", "kparams", "params"), base="params")


def format_percent(percent: float) -> str:
    """``95.0`` is ``95%``; `parse_percent` reads it back exactly."""
    return _format(percent, _PERCENT, ("%",), base="%")


def _parse(text: str, units: Mapping[str, Fraction], *, what: str, example: str) -> float:
    text = text.strip()
    match = _NUMBER_AND_UNIT.fullmatch(text) if len(text) <= _MAX_CHARACTERS else None
    if match is None:
        shown = text if len(text) <= _MAX_CHARACTERS else text[:_MAX_CHARACTERS] + "..."
        raise ConfigError(
            f"cannot read {shown!r} as a {what}: wanted a number and a unit such as {example}",
            hint=f"units are {', '.join(units)}",
        )
    number, unit = match["number"], match["unit"]
    if unit is None:
        usual = example.lstrip("0123456789.")
        raise ConfigError(
            f"{text!r} is a {what} without a unit: wanted a number and a unit such as {example}",
            hint=f"did you mean {number}{usual}?",
        )
    if unit not in units:
        near = next((known for known in units if known.lower() == unit.lower()), None)
        raise ConfigError(
            f"unknown unit {unit!r} in {text!r}: a {what} has one of {', '.join(units)}",
            hint=f"did you mean {number}{near}?" if near else f"try {example}",
        )
    # An exponent that float() cannot hold would make a fraction of gigabytes.
    approximate = float(number)
    if not (math.isfinite(approximate) and approximate > 0):
        raise ConfigError(
            f"a {what} must be more than zero and finite, got {text!r}", hint=f"try {example}"
        )
    return _positive(text, Fraction(number) * units[unit], what)


def _positive(text: str, value: Fraction, what: str) -> float:
    result = _rounded(value)
    if not (math.isfinite(result) and result > 0):
        raise ConfigError(f"{text!r} is out of range for a {what}")
    return result


def _rounded(value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _format(value: float, units: Mapping[str, Fraction], order: tuple[str, ...], base: str) -> str:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"wanted a positive finite number, got {value}")
    exact = Fraction(value)
    for unit in order:
        if exact >= units[unit]:
            number = _shortest(_rounded(exact / units[unit]))
            if number != "inf" and _rounded(Fraction(number) * units[unit]) == value:
                return number + unit
    return _shortest(float(value)) + base


def _shortest(value: float) -> str:
    return repr(int(value)) if value < 1e15 and value.is_integer() else repr(value)
