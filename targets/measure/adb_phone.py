"""An Android phone as a device: what it is, its fast cores, how warm it is, its clock."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

import msgspec

from effdl.errors import ConfigError, EffdlError, TargetUnavailableError
from effdl.targets.measure.adb_output import (
    parse_cores,
    parse_properties,
    parse_thermal_status,
)
from effdl.targets.measure.adb_transport import Adb

__all__ = [
    "Core",
    "Phone",
    "affinity_mask",
    "describe_phone",
    "fixed_performance",
    "read_thermal_status",
]

# dumpsys thermalservice came with Android 10, the fixed performance mode with 11.
_MIN_SDK = 29
_CORES = "/sys/devices/system/cpu/cpu[0-9]*"
_PERFORMANCE_MODE = ("cmd", "power", "set-fixed-performance-mode-enabled")
_EMULATED_HARDWARE = ("goldfish", "ranchu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """One core.

    Attributes:
        number: The system's number of it.
        max_frequency_khz: Its highest clock in kHz.
        capacity: What the kernel says it gets done, the fastest being 1024; 0: not said.
    """

    number: int
    max_frequency_khz: int
    capacity: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Phone:
    """A phone, as far as it decides how fast networks run.

    Attributes:
        name: Maker and model.
        soc: The chip, as far as the phone says.
        abis: Instruction sets of programs it runs, the best first.
        sdk: Level of Android's interface: 30 is Android 11.
        system: Android's build fingerprint: an update of the system changes it.
        cores: All cores that are on.
    """

    name: str
    soc: str
    abis: tuple[str, ...]
    sdk: int
    system: str
    cores: tuple[Core, ...]

    def choose_cores(self, num_threads: int, wanted: Sequence[int] | None) -> tuple[int, ...]:
        """Numbers of the cores to use, sorted.

        Args:
            num_threads: There is a core for each at the least.
            wanted: The user's choice; None: the fastest clusters that have so many cores.

        Raises:
            ConfigError: The phone has no such core, or too few.
        """
        known = [core.number for core in self.cores]
        if not 1 <= num_threads <= len(known):
            raise ConfigError(
                f"wanted 1 to {len(known)} threads, as {self.name} has so many cores, got "
                f"{num_threads}"
            )
        if wanted is not None:
            if len(set(wanted)) < num_threads or not set(wanted) <= set(known):
                raise ConfigError(
                    f"wanted {num_threads} or more of the cores {', '.join(map(str, known))}, "
                    f"got {', '.join(map(str, wanted)) or 'none'}"
                )
            return tuple(sorted(set(wanted)))
        clusters: dict[tuple[int, int], list[int]] = {}
        for core in self.cores:
            clusters.setdefault((core.capacity, core.max_frequency_khz), []).append(core.number)
        chosen: list[int] = []
        for kind in sorted(clusters, reverse=True):
            if len(chosen) < num_threads:
                chosen += clusters[kind]
        return tuple(sorted(chosen))

    def fingerprint(self, cores: Sequence[int]) -> str:
        """16 hexadecimal digits of the phone and the cores that are used on it."""
        described = {**asdict(self), "used": sorted(cores)}
        data = msgspec.json.encode(described, order="sorted")
        return hashlib.sha256(data).hexdigest()[:16]


def affinity_mask(cores: Sequence[int]) -> str:
    """Cores as ``taskset`` takes them: a bit each, in hexadecimal digits."""
    return f"{sum(1 << core for core in set(cores)):x}"


def describe_phone(adb: Adb) -> Phone:
    """What the phone says of itself.

    Raises:
        TargetUnavailableError: It is an emulator, runs Android 9 or older, or is lost.
        CorruptFileError: What it says cannot be read.
    """
    properties = parse_properties(adb.run(["getprop"]).text)
    _check_real(adb.serial, properties)
    sdk = _sdk(properties)
    listed = adb.script(f"grep -H . {_CORES}/cpufreq/cpuinfo_max_freq {_CORES}/cpu_capacity")
    frequencies_khz, capacities = parse_cores(listed.text)
    names = ("ro.product.manufacturer", "ro.product.model")
    chips = ("ro.soc.manufacturer", "ro.soc.model", "ro.board.platform")
    abis = properties.get("ro.product.cpu.abilist") or properties.get("ro.product.cpu.abi", "")
    return Phone(
        name=_joined(properties, names),
        soc=_joined(properties, chips),
        abis=tuple(abi for abi in abis.split(",") if abi),
        sdk=sdk,
        system=properties.get("ro.build.fingerprint", "unknown"),
        cores=tuple(
            Core(number=n, max_frequency_khz=khz, capacity=capacities.get(n, 0))
            for n, khz in sorted(frequencies_khz.items())
        ),
    )


def read_thermal_status(adb: Adb) -> int:
    """How much the phone slows itself down for heat: 0, not at all, to 6.

    Raises:
        TargetUnavailableError: The phone is lost.
        CorruptFileError: It does not say.
    """
    return parse_thermal_status(adb.run(["dumpsys", "thermalservice"]).text)


@contextmanager
def fixed_performance(adb: Adb, core: int) -> Iterator[str]:
    """Hold the phone's clocks at a level that it can keep up, as long as this is entered.

    Yields:
        The clock policy: ``"fixed-performance"``, or where the phone does not support it
        (older than Android 11, or its maker left it out) the governor of ``core``.

    Raises:
        TargetUnavailableError: The phone is lost; its mode is then not set back.
    """
    if adb.run([*_PERFORMANCE_MODE, "true"]).exit_code != 0:
        governor = f"/sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor"
        read = adb.run(["cat", governor])
        yield read.text.strip() if read.exit_code == 0 else "unknown"
        return
    try:
        yield "fixed-performance"
    except BaseException:
        with suppress(EffdlError):
            adb.run([*_PERFORMANCE_MODE, "false"])
        raise
    if adb.run([*_PERFORMANCE_MODE, "false"]).exit_code != 0:
        raise TargetUnavailableError(
            f"the phone {adb.serial} refuses to leave its fixed performance mode",
            hint=f"adb -s {adb.serial} shell {' '.join(_PERFORMANCE_MODE)} false, or restart it",
        )


def _check_real(serial: str, properties: Mapping[str, str]) -> None:
    emulated = (
        "1" in (properties.get("ro.kernel.qemu"), properties.get("ro.boot.qemu"))
        or properties.get("ro.hardware") in _EMULATED_HARDWARE
    )
    if emulated:
        raise TargetUnavailableError(
            f"{serial} is an emulator: an emulated phone's times say nothing of a real one's",
            hint="plug in a phone",
        )


def _sdk(properties: Mapping[str, str]) -> int:
    sdk = properties.get("ro.build.version.sdk", "")
    if not sdk.isdecimal() or int(sdk) < _MIN_SDK:
        release = properties.get("ro.build.version.release", "unknown")
        raise TargetUnavailableError(
            "wanted Android 10 or newer, which says how warm the phone is, "
            f"got Android {release} (SDK {sdk or 'unknown'})",
            hint="measure on another phone",
        )
    return int(sdk)


def _joined(properties: Mapping[str, str], names: Sequence[str]) -> str:
    return " ".join(properties[n] for n in names if properties.get(n)) or "unknown"
