"""Times ONNX models in PyTorch: on this machine's CPU, or on its NVIDIA GPU."""

import hashlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from effdl.errors import BackendUnavailableError, ConfigError, TargetUnavailableError
from effdl.targets.host import RuntimeBuild, describe_host, find_runtime
from effdl.targets.measure.gpu_device import GpuClock, describe_gpu
from effdl.targets.measure.gpu_timing import EventSampler, calls_per_graph, flush_bytes
from effdl.targets.measure.onnxruntime import NUM_THREADS, reference_model
from effdl.targets.sampler import HostSampler, Sampler, Samples
from effdl.targets.timing import Instruments

if TYPE_CHECKING:
    import torch

__all__ = ["CapturedCalls", "Mode", "Processor", "TorchRuntime", "TorchSession"]

Processor = Literal["cpu", "cuda"]
Mode = Literal["eager", "compiled"]

_DTYPES = ("float32", "tf32", "float16", "bfloat16")
_ALLOWED = {
    "cpu": {"mode": ("eager",), "dtype": ("float32", "float16", "bfloat16"), "regime": ("",)},
    "cuda": {"mode": ("eager", "compiled"), "dtype": _DTYPES, "regime": ("graph", "cold")},
}
# The first compute capability with units for tf32 and bfloat16.
_TENSOR_FLOATS_SINCE = 8.0
_NUM_WARM_UPS = 3
_IMAGE_DIMS = 4


class TorchSession:
    """A model as a module, with made inputs: standard normal numbers, the same every time.

    Args:
        model: A serialised ONNX model of fixed sizes.
        processor: Where it runs.
        dtype: Of weights and inputs; ``"tf32"`` is float32 here.
        channels_last: Whether images and filters lie in memory channels last.
        compiled: Whether `torch.compile` compiles it.

    Raises:
        CorruptFileError: It is no ONNX model.
        ConfigError: A node's kind is not known.
    """

    def __init__(
        self,
        model: bytes,
        *,
        processor: Processor = "cpu",
        dtype: str = "float32",
        channels_last: bool = False,
        compiled: bool = False,
    ) -> None:
        import torch

        from effdl.targets.measure.onnx_to_torch import load_onnx_module

        module, rng = load_onnx_module(model), np.random.default_rng(0)
        number = {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(dtype, torch.float32)

        def place(tensor: torch.Tensor) -> torch.Tensor:
            placed = tensor.to(processor, number)
            if channels_last and placed.ndim == _IMAGE_DIMS:
                return placed.contiguous(memory_format=torch.channels_last)
            return placed

        self.feeds = {
            spec.name: rng.standard_normal(spec.shape, dtype=np.float32) for spec in module.inputs
        }
        self._inputs = [place(torch.from_numpy(made)) for made in self.feeds.values()]
        for weight in module.parameters():
            weight.data = place(weight.data)
        self._function: Callable[..., tuple[torch.Tensor, ...]] = module
        if compiled:
            self._function = torch.compile(module.as_graph_module(), fullgraph=True, dynamic=False)

    def run(self) -> "tuple[torch.Tensor, ...]":
        """The outputs; on a GPU before they are computed."""
        return self._function(*self._inputs)


class CapturedCalls:
    """Calls recorded as a CUDA graph, with all that the graph reads and writes.

    As PyTorch's notes on CUDA graphs ask: inputs stay where they are, and the calls
    are warmed up on a stream of their own (pytorch.org/docs/stable/notes/cuda.html).

    Args:
        session: What to call, on a GPU.
        num_calls: How often one replay calls it.
    """

    def __init__(self, session: TorchSession, num_calls: int) -> None:
        import torch

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_NUM_WARM_UPS):
                session.run()
        torch.cuda.current_stream().wait_stream(stream)
        self._session = session
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            for _ in range(num_calls):
                self.outputs = session.run()

    def replay(self) -> None:
        """Launch all calls; ``outputs`` are written over."""
        self._graph.replay()


class _SettledSampler:
    """A sampler that runs inside a context: settings of the process that the call needs."""

    def __init__(
        self, sampler: Sampler, settings: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._sampler, self._settings = sampler, settings

    def sample(self, num: int, min_sample_s: float) -> Samples:
        """`Sampler.sample`."""
        with self._settings():
            return self._sampler.sample(num, min_sample_s)


class TorchRuntime:
    """PyTorch, as a `MeasurementRuntime`.

    On a GPU two regimes are told apart. ``"graph"``: calls are captured in a CUDA
    graph and replayed back to back, so caches are warm and launches cost nothing.
    ``"cold"``: the second-level cache is flushed before every call, and each call is
    timed by itself: eager calls with the time the host needs to launch their kernels,
    compiled ones as one replay. Times are the device's own, between events.

    Args:
        processor: ``"cpu"``, or ``"cuda"`` for the first NVIDIA GPU.
        mode: ``"eager"``: node for node; ``"compiled"``: through `torch.compile`, on a
            GPU only.
        dtype: ``"float32"``; ``"tf32"``: float32 in memory, matrix units allowed to
            round, on a GPU only; ``"float16"`` or ``"bfloat16"`` throughout.
        regime: ``"graph"`` or ``"cold"`` on a GPU; empty on a CPU; None: the first.
        channels_last: Whether images and filters lie in memory channels last.
        num_threads: Threads inside an operator, on a CPU.

    Attributes:
        build: PyTorch's, the mode and layout in its name, since they decide the time.

    Raises:
        ConfigError: A setting that the processor does not have.
        TargetUnavailableError: There is no GPU, or it lacks the number format.
        BackendUnavailableError: Triton is missing, which compiles for the GPU.
    """

    def __init__(
        self,
        *,
        processor: Processor = "cpu",
        mode: Mode = "eager",
        dtype: str = "float32",
        regime: str | None = None,
        channels_last: bool = False,
        num_threads: int = NUM_THREADS,
    ) -> None:
        if processor not in _ALLOWED:
            raise ConfigError(f"PyTorch's processor wants one of cpu, cuda: got {processor!r}")
        allowed = _ALLOWED[processor]
        self.regime = allowed["regime"][0] if regime is None else regime
        for name, value in (("mode", mode), ("dtype", dtype), ("regime", self.regime)):
            if value not in allowed[name]:
                wanted = ", ".join(map(repr, allowed[name]))
                raise ConfigError(
                    f"PyTorch on {processor} wants as {name} one of {wanted}: got {value!r}"
                )
        self.processor: Processor = processor
        self.mode: Mode = mode
        self.dtype = dtype
        self.channels_last, self.num_threads = channels_last, num_threads
        self._gpu_clock: GpuClock | None = None
        self._flushed: torch.Tensor | None = None
        if processor == "cuda":
            self._open_gpu()
        else:
            host = describe_host()
            self.device, self.device_fingerprint = host.name, host.fingerprint
            self.clock_policy = host.clock_policy
        self.build = _find_build(processor, mode, channels_last=channels_last)

    def open_model(self, model: bytes) -> Sampler:
        """`MeasurementRuntime.open_model`.

        Raises:
            ConfigError: The model has a node that is not known.
        """
        with self._settings():
            session = TorchSession(
                model,
                processor=self.processor,
                dtype=self.dtype,
                channels_last=self.channels_last,
                compiled=self.mode == "compiled",
            )
            if self.processor == "cpu":
                return _SettledSampler(HostSampler(session.run), self._settings)
            return _SettledSampler(self._open_on_gpu(session), self._settings)

    def instruments(self) -> Instruments:
        """`MeasurementRuntime.instruments`."""
        if self.processor == "cpu":
            return Instruments(reference=lambda: self.open_model(reference_model()))
        # 15 GFLOP: long enough to feel the clock, on the largest of GPUs too.
        model = reference_model(batch_size=16, channels=256, size=28)
        return Instruments(reference=lambda: self.open_model(model))

    def _open_gpu(self) -> None:
        import torch

        device, self._gpu_clock = describe_gpu()
        if self.dtype in ("tf32", "bfloat16") and (
            float(device.compute_capability) < _TENSOR_FLOATS_SINCE
        ):
            raise TargetUnavailableError(
                f"{device.name} has no units for {self.dtype}: wanted compute capability "
                f"{_TENSOR_FLOATS_SINCE} or newer, got {device.compute_capability}",
                hint="measure in float32 or float16",
            )
        self.device, self.device_fingerprint = device.name, device.fingerprint
        with self._settings():
            if self.regime == "cold":
                num_bytes = flush_bytes(device.l2_cache_bytes)
                self._flushed = torch.empty(num_bytes, dtype=torch.uint8, device="cuda")
            # What holds the clock back shows only while the GPU works.
            work = torch.ones(4096, 4096, device="cuda")
            for _ in range(20):
                torch.mm(work, work)
            self.clock_policy = self._gpu_clock.describe_policy()
            torch.cuda.synchronize()

    def _open_on_gpu(self, session: TorchSession) -> EventSampler:
        import torch

        buffer = self._flushed
        if buffer is None:
            once = CapturedCalls(session, 1)
            num_calls = calls_per_graph(min(self._event_sampler(once.replay).sample(3, 0).seconds))
            row = once if num_calls == 1 else CapturedCalls(session, num_calls)
            return self._event_sampler(row.replay, calls_per_launch=num_calls)
        if self.mode == "compiled":
            return self._event_sampler(CapturedCalls(session, 1).replay, flush=buffer.zero_)

        def flush_and_wait() -> None:
            # Else the host would launch kernels while the flush runs, and some would look free.
            buffer.zero_()
            torch.cuda.synchronize()

        return self._event_sampler(session.run, flush=flush_and_wait)

    def _event_sampler(
        self,
        launch: Callable[[], object],
        *,
        calls_per_launch: int = 1,
        flush: Callable[[], object] | None = None,
    ) -> EventSampler:
        import torch

        assert self._gpu_clock is not None
        return EventSampler(
            launch,
            new_event=partial(torch.cuda.Event, enable_timing=True),
            synchronize=torch.cuda.synchronize,
            calls_per_launch=calls_per_launch,
            flush=flush,
            slowed=self._gpu_clock.is_slowed,
        )

    @contextmanager
    def _settings(self) -> Iterator[None]:
        """The process-wide settings a call needs, put back at the end; errors become ours."""
        import torch

        threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
        convolutions, searches = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
        try:
            torch.set_num_threads(self.num_threads)
            # The older pair of switches: torch.compile reads these, and refuses a mixture.
            torch.set_float32_matmul_precision("high" if self.dtype == "tf32" else "highest")
            torch.backends.cudnn.allow_tf32 = self.dtype == "tf32"
            torch.backends.cudnn.benchmark = False
            with torch.no_grad():
                yield
        except torch.OutOfMemoryError as error:
            raise TargetUnavailableError(
                f"the GPU's memory does not hold the model: {_first_line(error)}",
                hint="measure a smaller batch, or end other programs on the GPU",
            ) from None
        except torch.AcceleratorError as error:
            raise TargetUnavailableError(
                f"the GPU stopped working: {_first_line(error)}", hint="nvidia-smi may say more"
            ) from None
        finally:
            torch.set_num_threads(threads)
            torch.set_float32_matmul_precision(precision)
            torch.backends.cudnn.allow_tf32 = convolutions
            torch.backends.cudnn.benchmark = searches


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]


def _find_build(processor: Processor, mode: Mode, *, channels_last: bool) -> RuntimeBuild:
    """PyTorch's build, with the libraries that come apart from it on a GPU."""
    found = find_runtime("torch")
    name = f"torch-{mode}" + ("-nhwc" if channels_last else "")
    if processor == "cpu":
        return RuntimeBuild(name=name, version=found.version, build=found.build)
    import torch

    parts = [found.build, torch.version.cuda or "", str(torch.backends.cudnn.version())]
    if mode == "compiled":
        if importlib.util.find_spec("triton") is None:
            raise BackendUnavailableError(
                "torch.compile needs Triton to compile for a GPU, and it is not installed",
                hint="pip install triton; or measure eager calls",
            )
        parts.append(find_runtime("triton").build)
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return RuntimeBuild(name=name, version=found.version, build=digest)
