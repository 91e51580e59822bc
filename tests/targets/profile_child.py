"""Profiles made items into the store named on the command line; to be killed at any time.

Each line of stdout is one fact: ``open`` once the store is open, ``taken I`` when a
measurement of item I begins, and ``kept I`` after the store has taken its round.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from effdl.targets.profiler import profile_items
from effdl.targets.sampler import HostSampler, Samples
from effdl.targets.store import MeasurementStore, Setting
from effdl.targets.timing import Instruments, Protocol, Round

NUM_ITEMS, NUM_ROUNDS = 40, 6
SETTING = Setting(
    runtime="r", runtime_version="1", runtime_build="b", device="d",
    num_threads=1, batch_size=1, protocol="short",
)  # fmt: skip
PROTOCOL = Protocol(
    name="short",
    min_rounds=NUM_ROUNDS,
    max_rounds=NUM_ROUNDS,
    samples_per_round=2,
    min_sample_s=0.0,
    min_span_s=0.0,
)


def say(line: str) -> None:
    # Straight to the pipe: what is written there outlives this process.
    os.write(sys.stdout.fileno(), f"{line}\n".encode())


class TellingSampler:
    """Really runs, and says when it begins."""

    def __init__(self, item: int) -> None:
        self._item = item
        self._sampler = HostSampler(lambda: time.sleep(0.0002))

    def sample(self, num: int, min_sample_s: float) -> Samples:
        say(f"taken {self._item}")
        return self._sampler.sample(num, min_sample_s)


class TellingStore(MeasurementStore):
    """Says when a round is committed."""

    def add_round(self, setting: Setting, item: str, measured: Round) -> None:
        super().add_round(setting, item, measured)
        say(f"kept {item}")


def opener(item: int) -> Callable[[], TellingSampler]:
    return lambda: TellingSampler(item)


if __name__ == "__main__":
    with TellingStore(Path(sys.argv[1])) as store:
        say("open")
        profile_items(
            {str(item): opener(item) for item in range(NUM_ITEMS)},
            store=store,
            setting=SETTING,
            protocol=PROTOCOL,
            instruments=Instruments(reference=lambda: HostSampler(lambda: None)),
            budget_s=1e9,
        )
    say("done")
