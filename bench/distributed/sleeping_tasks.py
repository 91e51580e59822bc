"""A task function for the benchmark; a worker finds it through PYTHONPATH."""

import time

import msgspec


class Nap(msgspec.Struct, frozen=True, kw_only=True):
    """How long a task sleeps."""

    number: int = 0
    seconds: float = 0.0


def sleep(nap: Nap) -> int:
    """Wait, as for a device that measures by itself."""
    time.sleep(nap.seconds)
    return nap.number
