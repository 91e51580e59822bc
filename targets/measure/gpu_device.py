"""An NVIDIA GPU as a device: what it is, and what its clock does.

Nothing is ever set: clocks are read through NVML (package ``nvidia-ml-py``) where it
is there, and are unknown elsewhere.
"""

import hashlib
import importlib
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import msgspec

from effdl.errors import TargetUnavailableError

__all__ = ["GpuClock", "GpuDevice", "describe_gpu", "find_slowdowns", "parse_driver_version"]

# NVML's bit field of reasons why clocks are below what was asked for
# (nvmlClocksEventReasons in nvml.h); a power cap and idleness are everyday states.
_SLOWDOWNS = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
_LIMITED_BY_SETTINGS = 0x02
_DRIVER_FILE = Path("/proc/driver/nvidia/version")


def find_slowdowns(reasons: int) -> tuple[str, ...]:
    """Names of those reasons of NVML's bit field that make a timing worthless."""
    return tuple(name for bit, name in _SLOWDOWNS.items() if reasons & bit)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuDevice:
    """A GPU, as far as it decides how fast networks run.

    Attributes:
        name: As its driver calls it.
        compute_capability: Such as ``9.0``.
        num_multiprocessors: Streaming multiprocessors.
        memory_gib: Device memory, rounded to GiB.
        l2_cache_bytes: Size of the second-level cache.
        driver: Version of its driver, or ``"unknown"``.
    """

    name: str
    compute_capability: str
    num_multiprocessors: int
    memory_gib: int
    l2_cache_bytes: int
    driver: str

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits; two GPUs with the same one are taken for equal."""
        data = msgspec.json.encode(asdict(self), order="sorted")
        return hashlib.sha256(data).hexdigest()[:16]


class GpuClock:
    """Reads a GPU's clocks.

    Args:
        uuid: Of the GPU, as PyTorch writes it: without a prefix.
    """

    def __init__(self, uuid: str) -> None:
        self._nvml, self._handle = _find_gpu(uuid)

    def describe_policy(self) -> str:
        """What decides the frequency, the same at every call on a machine left alone.

        Call it while the GPU works: an idle one gives idleness as its only reason.
        """
        nvml = self._nvml
        if nvml is None:
            return "unknown"
        try:
            most_mhz = nvml.nvmlDeviceGetMaxClockInfo(self._handle, nvml.NVML_CLOCK_SM)
            if not self.read_reasons() & _LIMITED_BY_SETTINGS:
                return f"sm up to {most_mhz} MHz, unlocked"
            now_mhz = nvml.nvmlDeviceGetClockInfo(self._handle, nvml.NVML_CLOCK_SM)
        except nvml.NVMLError:
            return "unknown"
        return f"sm held to {now_mhz} of {most_mhz} MHz by settings"

    def read_reasons(self) -> int:
        """NVML's bit field of why the clock is below the highest; 0 where unknown."""
        nvml = self._nvml
        if nvml is None:
            return 0
        try:
            return int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle))
        except nvml.NVMLError:
            return 0

    def is_slowed(self) -> bool:
        """Whether heat or a failing power supply holds the GPU back now."""
        return bool(find_slowdowns(self.read_reasons()))

    def read_driver(self) -> str:
        """Version of the driver, or ``"unknown"``."""
        nvml = self._nvml
        if nvml is not None:
            try:
                return str(nvml.nvmlSystemGetDriverVersion())
            except nvml.NVMLError:
                return "unknown"
        return (
            parse_driver_version(_DRIVER_FILE.read_text()) if _DRIVER_FILE.is_file() else "unknown"
        )


def describe_gpu(index: int = 0) -> tuple[GpuDevice, GpuClock]:
    """GPU number ``index`` of those PyTorch sees, and its clock.

    Raises:
        TargetUnavailableError: PyTorch sees no such GPU.
    """
    import torch

    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        raise TargetUnavailableError(
            f"no CUDA device {index}: PyTorch {torch.__version__} sees {torch.cuda.device_count()}",
            hint="on a GPU machine install PyTorch for CUDA (pytorch.org/get-started); "
            "--target cpu measures this machine's processor",
        )
    found = torch.cuda.get_device_properties(index)
    clock = GpuClock(str(found.uuid))
    device = GpuDevice(
        name=found.name,
        compute_capability=f"{found.major}.{found.minor}",
        num_multiprocessors=found.multi_processor_count,
        memory_gib=round(found.total_memory / 2**30),
        l2_cache_bytes=found.L2_cache_size,
        driver=clock.read_driver(),
    )
    return device, clock


def _find_gpu(uuid: str) -> "tuple[ModuleType | None, object]":
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None, None
    try:
        nvml.nvmlInit()
        return nvml, nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except nvml.NVMLError:
        return None, None


def parse_driver_version(text: str) -> str:
    """The version in the first line of the driver's own file, or ``"unknown"``."""
    parts = text.partition("\n")[0].split()
    return next((p for p in parts if p[:1].isdigit() and "." in p), "unknown")
