"""Does a table in the user's store still hold? A part of it is measured again."""

import math
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from effdl.errors import ConfigError, TargetUnavailableError
from effdl.models.mobilenet_v3.space import MobileNetV3Space
from effdl.targets.host import Noise, read_noise
from effdl.targets.measure.runtime import MeasurementRuntime
from effdl.targets.profiler import finished_timings
from effdl.targets.sampler import Sampler
from effdl.targets.store import MeasurementStore, Setting, default_store_path
from effdl.targets.target import Target
from effdl.targets.timing import (
    QUICK_PROTOCOL,
    TABLE_PROTOCOL,
    Protocol,
    Timing,
    measure_interleaved,
)
from effdl.workflows.profile_plan import distinct_ops
from effdl.workflows.progress import Progress, no_progress
from effdl.workflows.runtimes import runtime_of

__all__ = [
    "ENTRY_DRIFT_PERCENT",
    "MEDIAN_DRIFT_PERCENT",
    "EntryCheck",
    "TableCheck",
    "verify_table",
]

# Twice the worst of 11 checks of one table on a two-core virtual machine, 4 of them
# beside two processes that kept both cores busy: 1.6 % in the median, 6.1 % of 495 entries.
MEDIAN_DRIFT_PERCENT = 4.0
"""A table whose entries changed by more, in the median, has drifted."""

ENTRY_DRIFT_PERCENT = 12.0
"""An entry that changed by more, and by more than its interval, has drifted."""

_MIN_ENTRIES = 10
_MAX_OPEN = 16
_BUDGET_S = 840.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryCheck:
    """One entry, as stored and as measured now.

    Attributes:
        key: The operator.
        stored_ms: 20th percentile in the store, in milliseconds.
        measured_ms: 20th percentile now.
        ratio: Now over then, as the clock says.
        corrected_ratio: The same in units of the reference kernel's time: what is
            left when the whole machine got faster or slower.
        interval_percent: Half the 95 % interval of the ratio, from those of both
            figures; None where one of them has none.
        is_outside: Whether ``corrected_ratio`` is further from 1 than that.
        has_drifted: Whether it is so, and by more than `ENTRY_DRIFT_PERCENT`.
    """

    key: str
    stored_ms: float
    measured_ms: float
    ratio: float
    corrected_ratio: float
    interval_percent: float | None
    is_outside: bool
    has_drifted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TableCheck:
    """What measuring again came to.

    Attributes:
        space: Whose operators were measured.
        device: What ran them, as people call it.
        runtime: The same of the program.
        batch_size: Samples in one run.
        protocol: Of the stored and of the new measurements.
        num_stored: Entries of the space in the store.
        entries: Those measured again, by key.
        reference_ratio: Time of the reference kernel, now over then: above 1 the
            machine is slower now.
        noise: Of the machine before measuring.
        seconds: How long it took.
        store: The file the table is in.
    """

    space: str
    device: str
    runtime: str
    batch_size: int
    protocol: str
    num_stored: int
    entries: tuple[EntryCheck, ...]
    reference_ratio: float
    noise: Noise
    seconds: float
    store: Path

    @property
    def median_ratio(self) -> float:
        """Now over then, as the clock says."""
        return float(np.median([entry.ratio for entry in self.entries]))

    @property
    def median_corrected_ratio(self) -> float:
        """Now over then, in units of the reference kernel's time."""
        return float(np.median([entry.corrected_ratio for entry in self.entries]))

    @property
    def spread_percent(self) -> float:
        """Half the way from the 5th to the 95th percentile of corrected ratios."""
        low, high = np.percentile([entry.corrected_ratio for entry in self.entries], [5, 95])
        return float(50 * (high - low))

    @property
    def num_outside(self) -> int:
        """Entries outside their interval; noise alone puts about one in twenty there."""
        return sum(entry.is_outside for entry in self.entries)

    @property
    def num_drifted(self) -> int:
        """Entries that drifted."""
        return sum(entry.has_drifted for entry in self.entries)

    @property
    def has_drifted(self) -> bool:
        """Whether the table no longer holds, the machine's speed apart."""
        off_percent = 100 * abs(self.median_corrected_ratio - 1)
        return off_percent > MEDIAN_DRIFT_PERCENT or self.num_drifted > 0

    def to_json(self) -> dict[str, Any]:
        """The object of the contract, without ``schema_version``."""
        return {
            "space": self.space,
            "device": self.device,
            "runtime": self.runtime,
            "batch_size": self.batch_size,
            "protocol": self.protocol,
            "num_stored": self.num_stored,
            "num_checked": len(self.entries),
            "num_outside": self.num_outside,
            "num_drifted": self.num_drifted,
            "drifted": self.has_drifted,
            "reference_ratio": self.reference_ratio,
            "median_ratio": self.median_ratio,
            "median_corrected_ratio": self.median_corrected_ratio,
            "spread_percent": self.spread_percent,
            "entries": [asdict(entry) for entry in self.entries],
            "noise": asdict(self.noise),
            "seconds": self.seconds,
            "store": str(self.store),
        }


def verify_table(
    target: Target,
    space: MobileNetV3Space,
    *,
    runtime: MeasurementRuntime | None = None,
    batch_size: int = 1,
    share_percent: float = 5.0,
    seed: int = 0,
    budget_s: float = _BUDGET_S,
    progress: Progress = no_progress,
    store_path: Path | None = None,
) -> TableCheck:
    """Measure a random part of a stored table again, with the table's own protocol.

    Nothing is written: what the store has stays as it is.

    Args:
        target: This machine, or what ``runtime`` is connected to.
        space: Whose operators.
        runtime: What measured them; None: this machine's own.
        batch_size: Samples in one run.
        share_percent: How much of the table; at least 10 entries are measured.
        seed: Chooses the entries.
        budget_s: Seconds after which every entry has one round and no more.
        progress: Told how far it is.
        store_path: The store; None: the user's own.

    Raises:
        TargetUnavailableError: The target cannot be measured from here, or the store
            has no entries of it, of this runtime's build and at this batch size.
        ConfigError: The batch size or the share is out of range.
        OutputError: The store cannot be opened where it lies.
        CorruptFileError: The store is damaged.
    """
    if batch_size < 1 or not 0 < share_percent <= 100:
        raise ConfigError(
            f"wanted a batch size of at least 1 and a share above 0 and up to 100 %, "
            f"got {batch_size} and {share_percent:g} %"
        )
    start, noise, runtime = time.perf_counter(), read_noise(), runtime or runtime_of(target)
    path, ops = store_path or default_store_path(), distinct_ops(space)
    protocol, stored = _stored_entries(path, runtime, batch_size)
    known = sorted(ops.keys() & stored.keys())
    if not known:
        raise TargetUnavailableError(
            f"{space.name} was not profiled here at batch size {batch_size} "
            f"with {runtime.build} as it is installed",
            hint=f"effdl profile --target {target.name} --space {space.name}",
        )
    num = min(len(known), max(_MIN_ENTRIES, math.ceil(share_percent / 100 * len(known))))
    picks = np.random.default_rng(seed).choice(len(known), size=num, replace=False)
    keys = [known[i] for i in sorted(picks.tolist())]

    def opened(key: str) -> Sampler:
        return runtime.open_model(ops[key].build(batch_size))

    measured = measure_interleaved(
        [partial(opened, key) for key in keys],
        instruments=runtime.instruments(),
        protocol=protocol,
        budget_s=budget_s,
        max_open=_MAX_OPEN,
        progress=progress,
        seed=seed,
    )
    pairs = [(stored[key], now) for key, now in zip(keys, measured, strict=True)]
    return TableCheck(
        space=space.name,
        device=runtime.device,
        runtime=str(runtime.build),
        batch_size=batch_size,
        protocol=protocol.name,
        num_stored=len(known),
        entries=tuple(_check(key, *pair) for key, pair in zip(keys, pairs, strict=True)),
        reference_ratio=float(np.median([b.reference_s / a.reference_s for a, b in pairs])),
        noise=noise,
        seconds=time.perf_counter() - start,
        store=path,
    )


def _stored_entries(
    path: Path, runtime: MeasurementRuntime, batch_size: int
) -> tuple[Protocol, dict[str, Timing]]:
    """The careful protocol's entries, or else the quick one's."""
    if path.exists():
        with MeasurementStore(path) as store:
            for protocol in (TABLE_PROTOCOL, QUICK_PROTOCOL):
                setting = Setting.of(runtime, protocol, batch_size=batch_size)
                found = finished_timings(store, setting, protocol)
                if found:
                    return protocol, found
    return TABLE_PROTOCOL, {}


def _check(key: str, stored: Timing, measured: Timing) -> EntryCheck:
    ratio = measured.p20_ms / stored.p20_ms
    corrected = ratio * stored.reference_s / measured.reference_s
    interval = None
    if stored.interval_percent is not None and measured.interval_percent is not None:
        interval = math.hypot(stored.interval_percent, measured.interval_percent)
    off_percent = 100 * abs(corrected - 1)
    is_outside = interval is not None and off_percent > interval
    return EntryCheck(
        key=key,
        stored_ms=stored.p20_ms,
        measured_ms=measured.p20_ms,
        ratio=ratio,
        corrected_ratio=corrected,
        interval_percent=interval,
        is_outside=is_outside,
        has_drifted=is_outside and off_percent > ENTRY_DRIFT_PERCENT,
    )
