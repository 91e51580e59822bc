"""This machine as a device: what it is, what runs on it, and how noisy it is now.

Nothing heavy is imported: versions come from package metadata.
"""

import hashlib
import importlib.metadata
import os
import platform
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import msgspec

from effdl.errors import BackendUnavailableError

__all__ = [
    "HostDevice",
    "Noise",
    "RuntimeBuild",
    "describe_host",
    "find_runtime",
    "idlest_core",
    "read_noise",
]

_ISA_PREFIXES = ("sse4", "avx", "fma", "f16c", "amx", "asimd", "sve", "i8mm", "bf16", "fphp", "sme")

# Share of the last 10 s in which some task waited for a core, in percent.
_QUIET_PRESSURE_PERCENT = 5.0
_BUSY_PRESSURE_PERCENT = 25.0

_IDLE_SPAN_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class HostDevice:
    """A machine, as far as it decides how fast networks run.

    Attributes:
        name: The processor, as people call it.
        architecture: Such as ``x86_64``.
        vendor: The processor's maker, as it says itself.
        family_model_stepping: The processor's own numbers, joined by dashes.
        isa: Vector and matrix instruction sets, sorted.
        num_cores: Cores this process may use.
        cache: Size of the last-level cache, as the system says it.
        clock_policy: The frequency governor, or ``"unknown"``.
    """

    name: str
    architecture: str
    vendor: str
    family_model_stepping: str
    isa: tuple[str, ...]
    num_cores: int
    cache: str
    clock_policy: str

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits; two machines with the same one are taken for equal."""
        return _digest(msgspec.json.encode(asdict(self), order="sorted"))


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeBuild:
    """What runs the networks.

    Attributes:
        name: Package name, such as ``onnxruntime``.
        version: Its version.
        build: Digest of its installed binaries: two builds of one version differ.
    """

    name: str
    version: str
    build: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """How much else is running here.

    Attributes:
        grade: A: quiet; B: some noise, intervals will be wider; C: busy, expect
            unstable timings.
        cpu_pressure_percent: Share of the last 10 s in which some task waited for
            a core; None where the kernel does not say.
        memory_pressure_percent: The same for memory.
        load_per_core: Load average of the last minute over cores.
    """

    grade: Literal["A", "B", "C"]
    cpu_pressure_percent: float | None
    memory_pressure_percent: float | None
    load_per_core: float


@cache
def describe_host() -> HostDevice:
    """This machine."""
    cpu = _first_processor(_read("/proc/cpuinfo"))
    flags = (cpu.get("flags") or cpu.get("Features") or "").split()
    numbers = [cpu.get(k, "?") for k in ("cpu family", "model", "stepping")]
    governor = _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip()
    return HostDevice(
        name=cpu.get("model name") or platform.processor() or platform.machine(),
        architecture=platform.machine(),
        vendor=cpu.get("vendor_id") or cpu.get("CPU implementer") or "unknown",
        family_model_stepping="-".join(numbers),
        isa=tuple(sorted({f for f in flags if f.startswith(_ISA_PREFIXES)})),
        num_cores=_num_cores(),
        cache=cpu.get("cache size", "unknown"),
        clock_policy=governor or "unknown",
    )


@cache
def find_runtime(name: str = "onnxruntime") -> RuntimeBuild:
    """The installed build of a runtime, without importing it.

    Raises:
        BackendUnavailableError: It is not installed.
    """
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise BackendUnavailableError(
            f"{name} is not installed", hint=f"pip install {name}"
        ) from None
    record = distribution.read_text("RECORD") or ""
    binaries = sorted(line for line in record.splitlines() if ".so" in line or ".dll" in line)
    return RuntimeBuild(
        name=name, version=distribution.version, build=_digest("\n".join(binaries).encode())
    )


def read_noise() -> Noise:
    """How noisy this machine is now."""
    load = os.getloadavg()[0] / _num_cores() if hasattr(os, "getloadavg") else 0.0
    cpu = _pressure_percent(_read("/proc/pressure/cpu"))
    memory = _pressure_percent(_read("/proc/pressure/memory"))
    return Noise(
        grade=grade_noise(cpu, memory, load),
        cpu_pressure_percent=cpu,
        memory_pressure_percent=memory,
        load_per_core=load,
    )


def idlest_core(cores: Collection[int]) -> int:
    """Of these cores the one that did least in the last tenth of a second.

    Of equals the one with the greatest number: the first takes most interrupts.
    """
    before = busy_ticks(_read("/proc/stat"))
    time.sleep(_IDLE_SPAN_S)
    return least_worked(cores, before, busy_ticks(_read("/proc/stat")))


def least_worked(
    cores: Collection[int], before: Mapping[int, int], after: Mapping[int, int]
) -> int:
    """The core that worked least between two readings of `busy_ticks`; of equals the last."""
    return max(cores, key=lambda core: (before.get(core, 0) - after.get(core, 0), core))


def busy_ticks(text: str) -> dict[int, int]:
    """Clock ticks that each core has worked, from the text of ``/proc/stat``."""
    ticks = {}
    for line in text.splitlines():
        name, _, counts = line.partition(" ")
        if name.startswith("cpu") and name != "cpu":
            numbers = [int(count) for count in counts.split()]
            # The fourth and fifth are idle and waiting for a disk.
            ticks[int(name.removeprefix("cpu"))] = sum(numbers[:8]) - sum(numbers[3:5])
    return ticks


def grade_noise(
    cpu_percent: float | None, memory_percent: float | None, load_per_core: float
) -> Literal["A", "B", "C"]:
    """The grade of a machine under these pressures (load counts only without them)."""
    if cpu_percent is None:
        worst = max(0.0, load_per_core - 0.5) * 100
    else:
        worst = max(cpu_percent, memory_percent or 0.0)
    if worst <= _QUIET_PRESSURE_PERCENT:
        return "A"
    return "B" if worst <= _BUSY_PRESSURE_PERCENT else "C"


def _pressure_percent(text: str) -> float | None:
    for line in text.splitlines():
        if line.startswith("some"):
            for part in line.split():
                if part.startswith("avg10="):
                    return float(part.removeprefix("avg10="))
    return None


def _first_processor(text: str) -> dict[str, str]:
    fields = {}
    for line in text.strip().split("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        fields[name.strip()] = value.strip()
    return fields


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
