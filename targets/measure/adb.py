"""Times ONNX models on an Android phone with ONNX Runtime's own benchmark program.

The phone's own clock times the runs, one by one; nothing of the cable is in them. A phone
slows down when it is warm, so there are two regimes, stored apart: ``burst``, measured
cold, with a rest whenever Android says that it holds back; and ``sustained``, measured
after minutes of work and without rests.
"""

import hashlib
import math
import secrets
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from effdl.errors import ConfigError
from effdl.targets.host import RuntimeBuild
from effdl.targets.measure.adb_heat import Heat, Watched, rest, run_cold, run_watched
from effdl.targets.measure.adb_output import parse_perf_test_results
from effdl.targets.measure.adb_phone import (
    Phone,
    affinity_mask,
    describe_phone,
    fixed_performance,
)
from effdl.targets.measure.adb_program import PhoneProgram, explain_failure, read_program
from effdl.targets.measure.adb_transport import PHONE_FOLDER, Adb, connect
from effdl.targets.measure.onnxruntime import reference_model
from effdl.targets.sampler import Samples
from effdl.targets.timing import Instruments

__all__ = ["AdbRuntime", "PhoneSampler", "Regime", "open_phone"]

Regime = Literal["burst", "sustained"]

# Before the runs that count: a new process has cold caches, and clocks take a while to rise.
_WARM_UP_S = 0.03
_MIN_WARM_UPS, _MAX_WARM_UPS = 2, 1000
_PROBE_RUNS = 5
_HEATING_STEP_S = 30
# Of one call: starting, loading and optimising the model; and patience beyond the estimate.
_START_S, _PATIENCE, _PROBE_LIMIT_S = 120.0, 5.0, 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AdbRuntime:
    """ONNX Runtime on a phone, as a `MeasurementRuntime`; `open_phone` makes it.

    Attributes:
        adb: The connection.
        phone: The phone.
        program: What runs there.
        cores: Numbers of the cores it may use.
        clock_policy: ``"fixed-performance"``, or the governor.
        num_threads: Threads inside an operator.
        regime: ``"burst"`` or ``"sustained"``.
        heat: How warmth is dealt with.
        dtype: Number format.
    """

    adb: Adb
    phone: Phone
    program: PhoneProgram
    cores: tuple[int, ...]
    clock_policy: str
    num_threads: int
    regime: Regime
    heat: Heat
    dtype: str = "float32"
    _result: str = field(default_factory=lambda: f"{PHONE_FOLDER}/run-{secrets.token_hex(8)}.csv")
    _fastest_s: dict[str, float] = field(default_factory=dict)

    @property
    def build(self) -> RuntimeBuild:
        """`MeasurementRuntime.build`: the digest is of the program and its libraries."""
        return self.program.build

    @property
    def device(self) -> str:
        """`MeasurementRuntime.device`."""
        return f"{self.phone.name} ({self.phone.soc}), cores {', '.join(map(str, self.cores))}"

    @property
    def device_fingerprint(self) -> str:
        """`MeasurementRuntime.device_fingerprint`: of the phone and of the cores used."""
        return self.phone.fingerprint(self.cores)

    def open_model(self, model: bytes) -> "PhoneSampler":
        """`MeasurementRuntime.open_model`: brings the model to the phone, once.

        How fast it is, and whether the program takes it, is found out here by a few runs.

        Raises:
            TargetUnavailableError: The phone is lost, or too slow.
            OutputError: The phone has no space left.
            BackendUnavailableError: The program does not run on the phone.
            CorruptFileError: It refuses the model.
        """
        path = f"{PHONE_FOLDER}/models/{hashlib.sha256(model).hexdigest()}.onnx"
        if path not in self._fastest_s:
            self.adb.push(model, path)
            probe = self._run(path, _PROBE_RUNS, _PROBE_LIMIT_S)
            seconds = parse_perf_test_results(probe.result, num_runs=_PROBE_RUNS)
            self._fastest_s[path] = min(seconds)
        return PhoneSampler(runtime=self, path=path)

    def instruments(self) -> Instruments:
        """`MeasurementRuntime.instruments`: the reference kernel runs on the phone, too."""
        return Instruments(reference=lambda: self.open_model(reference_model()))

    def sample(self, path: str, num: int, min_sample_s: float) -> Samples:
        """Run a model that `open_model` brought, and time it.

        Runs shorter than ``min_sample_s`` are averaged in groups that last as long.

        Args:
            path: The model on the phone.
            num: How many samples.
            min_sample_s: How long the runs of one sample last at least.

        Returns:
            Seconds of one run, ``num`` of them. In the burst regime ``interrupted`` says
            whether the phone held back for heat, even after rests.

        Raises:
            TargetUnavailableError: The phone is lost, or does not cool down.
            CorruptFileError: The output is cut off.
        """
        fastest_s = self._fastest_s[path]
        wanted = math.ceil(_WARM_UP_S / fastest_s)
        num_warm_ups = min(max(wanted, _MIN_WARM_UPS), _MAX_WARM_UPS)
        num_repeats = max(1, math.ceil(min_sample_s / fastest_s))
        num_runs = num_warm_ups + num * num_repeats
        limit_s = _START_S + math.ceil(_PATIENCE * num_runs * fastest_s)
        run = partial(self._run, path, num_runs, limit_s)
        is_burst = self.regime == "burst"
        watched = run_cold(self.adb, self.heat, run, name=self.phone.name) if is_burst else run()
        seconds = parse_perf_test_results(watched.result, num_runs=num_runs)
        self._fastest_s[path] = min(fastest_s, *seconds)
        counted = seconds[num_warm_ups:]
        groups = [counted[i * num_repeats : (i + 1) * num_repeats] for i in range(num)]
        return Samples(
            tuple(math.fsum(group) / num_repeats for group in groups),
            (is_burst and watched.was_throttled,) * num,
        )

    def heat_up(self) -> None:
        """Work until the phone is as warm as lasting work makes it.

        Raises:
            TargetUnavailableError: The phone is lost.
            BackendUnavailableError: The program does not run on the phone.
        """
        if self.heat.heat_up_s <= 0:
            return
        path = self.open_model(reference_model()).path
        command = self._command(path, ["-m", "duration", "-t", str(_HEATING_STEP_S)])
        for step in range(math.ceil(self.heat.heat_up_s / _HEATING_STEP_S)):
            self.heat.tell(step * _HEATING_STEP_S, self.heat.heat_up_s, "the phone heats up")
            limit_s = _HEATING_STEP_S + _START_S
            watched = run_watched(self.adb, command, result=self._result, limit_s=limit_s)
            if watched.answer.exit_code != 0:
                raise explain_failure(self.program, watched.answer, "the reference kernel")

    def _command(self, path: str, how_long: Sequence[str]) -> str:
        """A line of the phone's shell that runs a model and writes the result file."""
        options = ["-e", "cpu", "-I", "-S", "1", "-o", "99", "-x", str(self.num_threads)]
        pinned = ["taskset", affinity_mask(self.cores), *self.program.command]
        return shlex.join([*pinned, *options, *how_long, path, self._result])

    def _run(self, path: str, num_runs: int, limit_s: float) -> Watched:
        """One start of the program; what it has written holds the seconds of single runs."""
        command = self._command(path, ["-m", "times", "-r", str(num_runs)])
        watched = run_watched(self.adb, command, result=self._result, limit_s=limit_s)
        if watched.answer.exit_code != 0:
            raise explain_failure(self.program, watched.answer, path.rpartition("/")[2])
        return watched


@dataclass(frozen=True, slots=True, kw_only=True)
class PhoneSampler:
    """A `Sampler` over a model that is on the phone.

    Attributes:
        runtime: What runs it.
        path: The model on the phone.
    """

    runtime: AdbRuntime
    path: str

    def sample(self, num: int, min_sample_s: float) -> Samples:
        """`Sampler.sample`: one start of the program for all ``num``."""
        return self.runtime.sample(self.path, num, min_sample_s)


@contextmanager
def open_phone(
    program: Path,
    *,
    libraries: Sequence[Path] = (),
    serial: str | None = None,
    num_threads: int = 1,
    cores: Sequence[int] | None = None,
    regime: Regime = "burst",
    heat: Heat | None = None,
) -> Iterator[AdbRuntime]:
    """Prepare a phone for measuring; at the end, also after an error, its clock is set back.

    In the burst regime this waits for a warm phone to cool; in the sustained regime it
    heats it up.

    Args:
        program: ``onnxruntime_perf_test``, built for the phone.
        libraries: Shared libraries it needs, such as ``libonnxruntime.so``.
        serial: The phone's serial number; None: the only one.
        num_threads: Threads inside an operator.
        cores: Cores it may use; None: the fastest clusters that have a core a thread.
        regime: ``"burst"`` or ``"sustained"``.
        heat: How warmth is dealt with.

    Raises:
        BackendUnavailableError: ``adb`` or the program is not here, or does not run.
        TargetUnavailableError: There is no phone, more than one, or it cannot be used.
        ConfigError: An argument is wrong, or the program is for another instruction set.
        CorruptFileError: The program is none, or the phone's answers cannot be read.
        OutputError: The phone has no space left.
    """
    if regime not in ("burst", "sustained"):
        raise ConfigError(f"wanted the regime burst or sustained, got {regime!r}")
    read, heat = read_program("onnxruntime", program, libraries), heat or Heat()
    adb = connect(serial)
    phone = describe_phone(adb)
    used = phone.choose_cores(num_threads, cores)
    read.push(adb, phone)
    with fixed_performance(adb, used[0]) as clock_policy:
        runtime = AdbRuntime(
            adb=adb,
            phone=phone,
            program=read,
            cores=used,
            clock_policy=clock_policy,
            num_threads=num_threads,
            regime=regime,
            heat=heat,
        )
        if regime == "burst":
            rest(adb, heat, name=phone.name)
        else:
            runtime.heat_up()
        yield runtime
