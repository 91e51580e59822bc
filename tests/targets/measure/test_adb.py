"""A phone over adb, played by fake_adb.py: what goes right, and all that goes wrong."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from effdl.errors import (
    BackendUnavailableError,
    ConfigError,
    CorruptFileError,
    EffdlError,
    OutputError,
    TargetUnavailableError,
)
from effdl.models.mobilenet_v3.space import ofa_mbv3_w10
from effdl.opspec import OpSpec
from effdl.targets.measure.adb import AdbRuntime, open_phone
from effdl.targets.measure.adb_heat import Heat
from effdl.targets.measure.adb_litert import measure_tflite
from effdl.targets.measure.adb_phone import affinity_mask, describe_phone, read_thermal_status
from effdl.targets.measure.adb_transport import Adb, connect
from effdl.targets.measure.onnxruntime import reference_model
from effdl.targets.measure.runtime import MeasurementRuntime
from effdl.targets.profiler import ProfiledItems, profile_items
from effdl.targets.store import MeasurementStore, Setting
from effdl.targets.timing import Protocol

_SERIAL = "R58M42ABCDE"
_PROTOCOL = Protocol(name="short", min_rounds=3, max_rounds=4, samples_per_round=4, min_span_s=0)


def _load_fake() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fake_adb", Path(__file__).parent / "fake_adb.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_FAKE = _load_fake()


class FakePhone:
    """A phone in a folder, and the programs for it on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder / "phone", folder / "bin"
        _FAKE.install(self.folder, self.path)
        self.program = folder / "onnxruntime_perf_test"
        self.program.write_bytes(elf(machine=183))
        self.library = folder / "libonnxruntime.so"
        self.library.write_bytes(elf(machine=183) + b"VERS_1.23.2\0")
        self.naps: list[float] = []
        self.told: list[tuple[int, int, str]] = []

    def set(self, **settings: Any) -> None:
        for name, value in settings.items():
            assert name in _FAKE.DEFAULTS
            (self.folder / "settings" / name).write_text(str(value))

    def set_statuses(self, *statuses: int) -> None:
        """What the next calls of dumpsys tell, one after another; the last one stays."""
        (self.folder / "statuses").write_text("".join(f"{s}\n" for s in statuses))
        (self.folder / "status.next").write_text("1\n")

    def plug_in(self) -> None:
        (self.folder / "lost").unlink()
        self.set(lost_at_run=-1)

    def calls(self, verb: str) -> list[list[str]]:
        return [call for call in self._logged("calls") if verb in call]

    def runs(self) -> list[list[str]]:
        """Mask, program and arguments of each start of a benchmark program."""
        return self._logged("runs")

    def _logged(self, name: str) -> list[list[str]]:
        path = self.folder / name
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [line.split("\x1f") for line in lines]

    def modes(self) -> list[str]:
        """What the fixed performance mode was set to, in order."""
        path = self.folder / "cmd.log"
        return [line.split()[-1] for line in path.read_text().splitlines()] if path.exists() else []

    def file(self, remote: str) -> Path:
        return Path(f"{self.folder}/root{remote}")

    def heat(self, **limits: float) -> Heat:
        def told(done: int, of: int, text: str) -> None:
            self.told.append((done, of, text))

        return Heat(**limits, sleep=self.naps.append, progress=told)

    def open(self, **arguments: Any) -> Any:
        return open_phone(self.program, **{"heat": self.heat(), **arguments})


def elf(*, machine: int) -> bytes:
    return b"\x7fELF\x02\x01\x01" + bytes(11) + machine.to_bytes(2, "little") + bytes(40)


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePhone:
    made = FakePhone(tmp_path)
    monkeypatch.setenv("PATH", f"{made.path}{os.pathsep}{os.environ['PATH']}")
    return made


def _expected_s(model: bytes, *, throttled: bool = False) -> float:
    seconds = len(model) * _FAKE.SECONDS_PER_BYTE
    return seconds * (_FAKE.THROTTLED_TIMES if throttled else 1.0)


def test_a_model_is_timed_on_the_phone(phone: FakePhone):
    with phone.open() as opened:
        runtime: MeasurementRuntime = opened
        sampler = runtime.open_model(reference_model())
        samples = sampler.sample(6, 0.0)
    # Slow first runs are not among them.
    assert samples.seconds == pytest.approx([_expected_s(reference_model())] * 6, rel=1e-5)
    assert samples.interrupted == (False,) * 6
    assert runtime.regime == "burst"
    assert runtime.dtype == "float32"
    assert runtime.clock_policy == "fixed-performance"
    assert runtime.device == "samsung SM-N970U (QTI SM8150 msmnile), cores 7"
    assert runtime.build.name == "onnxruntime"
    assert len(runtime.build.build) == len(runtime.device_fingerprint) == 16
    mask, program, *options = phone.runs()[-1]
    assert mask == "80"
    assert program.endswith(f"/bin/{runtime.build.build}/onnxruntime_perf_test")
    text = " ".join(options)
    assert "-e cpu -I -S 1 -o 99 -x 1 -m times -r 16 " in text
    assert not list(phone.file("/data/local/tmp/effdl").glob("*.csv"))


def test_short_runs_are_averaged_over_a_sample(phone: FakePhone):
    model = b"\x08" + bytes(999)
    with phone.open() as runtime:
        samples = runtime.open_model(model).sample(4, 50e-6)
    assert samples.seconds == pytest.approx([1e-5] * 4)
    # Five runs make a sample of 50 us, after as many as take 30 ms; but at most 1000.
    assert phone.runs()[-1][phone.runs()[-1].index("-r") + 1] == str(1000 + 4 * 5)


def test_files_are_pushed_once(phone: FakePhone):
    for _ in range(2):
        with phone.open(libraries=[phone.library]) as runtime:
            for model in (reference_model(), reference_model(), b"\x08other"):
                runtime.open_model(model)
    pushed = [call[-1].rpartition("/")[2] for call in phone.calls("push")]
    assert sorted(pushed) == sorted(
        [
            "libonnxruntime.so.part",
            "onnxruntime_perf_test.part",
            *(
                f"{hashlib.sha256(m).hexdigest()}.onnx.part"
                for m in (reference_model(), b"\x08other")
            ),
        ]
    )
    assert not list(phone.file("/data/local/tmp/effdl").rglob("*.part"))


def test_a_file_that_changed_on_the_phone_is_pushed_again(phone: FakePhone):
    with phone.open() as runtime:
        path = runtime.open_model(reference_model()).path
    phone.file(path).write_bytes(b"\x08not what it was")
    with phone.open() as runtime:
        runtime.open_model(reference_model())
    assert phone.file(path).read_bytes() == reference_model()


def test_a_library_is_found_and_tells_the_version(phone: FakePhone):
    with phone.open(libraries=[phone.library]) as runtime:
        runtime.open_model(reference_model())
        assert str(runtime.build) == "onnxruntime 1.23.2"
    call = phone.calls("shell")[-2][-1]
    assert f"env LD_LIBRARY_PATH=/data/local/tmp/effdl/bin/{runtime.build.build} " in call
    with phone.open() as other:
        assert other.build.build != runtime.build.build
        assert other.build.version == "unknown"


def test_runs_are_pinned_to_the_cores_that_were_chosen(phone: FakePhone):
    with phone.open(num_threads=2, cores=[5, 1, 3]) as runtime:
        runtime.open_model(reference_model())
    assert runtime.cores == (1, 3, 5)
    assert phone.runs()[-1][0] == "2a"
    assert "-x 2 " in " ".join(phone.runs()[-1])


def test_the_big_cores_are_chosen(phone: FakePhone):
    described = describe_phone(connect())
    assert described.choose_cores(1, None) == (7,)
    assert described.choose_cores(2, None) == (4, 5, 6, 7)
    assert described.choose_cores(4, None) == (4, 5, 6, 7)
    assert described.choose_cores(5, None) == tuple(range(8))
    assert described.choose_cores(2, [6, 0, 6]) == (0, 6)
    wrong: list[tuple[int, list[int] | None]] = [
        (0, None), (9, None), (1, [8]), (1, []), (2, [3, 3]), (1, [-1]),
    ]  # fmt: skip
    for num_threads, cores in wrong:
        with pytest.raises(ConfigError, match="wanted"):
            described.choose_cores(num_threads, cores)


def test_masks():
    assert affinity_mask([0]) == "1"
    assert affinity_mask([4, 5, 6, 7]) == "f0"
    assert affinity_mask([7, 7, 0]) == "81"


def test_keys_tell_phones_cores_and_systems_apart(phone: FakePhone):
    def fingerprint(**arguments: Any) -> str:
        with phone.open(**arguments) as runtime:
            return runtime.device_fingerprint

    first = fingerprint()
    assert fingerprint() == first
    assert fingerprint(cores=[6]) != first
    properties = phone.folder / "getprop.txt"
    properties.write_text(properties.read_text().replace("SP1A.210812.016", "TP1A.220624.014"))
    assert fingerprint() != first


def test_the_mode_is_set_back(phone: FakePhone):
    with phone.open():
        assert phone.modes() == ["true"]
    assert phone.modes() == ["true", "false"]
    with pytest.raises(KeyboardInterrupt), phone.open():
        raise KeyboardInterrupt
    assert phone.modes() == ["true", "false"] * 2


def test_a_phone_without_the_mode_tells_its_governor(phone: FakePhone):
    (phone.folder / "cmd.exit").write_text("255\n")
    with phone.open() as runtime:
        assert runtime.clock_policy == "schedutil"
    assert phone.modes() == ["true"]


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({"devices": "devices_none.txt"}, "wanted one phone, got none", "USB debugging"),
        ({"devices": "devices_two.txt"}, r"got 2: R58M42ABCDE.*192\.168", "serial number"),
        ({"devices": "devices_unauthorized.txt"}, "got unauthorized", "allow USB debugging"),
        ({"devices": "devices_offline.txt"}, "got offline", "adb reconnect"),
        ({"devices": "devices_no_permissions.txt"}, "got no permissions", "apt-get install"),
        ({"devices": "devices_emulator.txt"}, "is an emulator", "plug in a phone"),
    ],
)
def test_phones_that_cannot_be_used(
    phone: FakePhone, settings: dict[str, Any], message: str, hint: str
):
    phone.set(**settings)
    with pytest.raises(TargetUnavailableError, match=message) as raised:
        connect()
    assert hint in (raised.value.hint or "")


def test_one_of_two_phones_is_chosen_by_its_serial_number(phone: FakePhone):
    phone.set(devices="devices_two.txt", serial="192.168.1.20:5555")
    with phone.open(serial="192.168.1.20:5555") as runtime:
        assert runtime.adb.serial == "192.168.1.20:5555"
    with pytest.raises(TargetUnavailableError, match="wanted the phone OTHER, got: R58M42ABCDE"):
        connect("OTHER")


def test_serial_numbers_that_are_none(phone: FakePhone):
    for serial in ("", "-s", "a b", "x;reboot", "$(id)", "a\n", "ä"):
        with pytest.raises(ConfigError, match="wanted a serial number"):
            connect(serial)
    assert not (phone.folder / "calls").exists()


def test_the_servers_start_may_be_noisy(phone: FakePhone):
    phone.set(noise="* daemon not running; starting now at tcp:5037\n* daemon started\n")
    assert connect().serial == _SERIAL


def test_adb_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendUnavailableError, match="adb is not installed") as raised:
        connect()
    assert "apt-get install adb" in (raised.value.hint or "")


def test_an_adb_that_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "adb").write_bytes(elf(machine=0))
    (tmp_path / "adb").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendUnavailableError, match="does not run"):
        connect()


def test_an_adb_that_hangs(phone: FakePhone):
    phone.set(devices_delay_s=20)
    with pytest.raises(TargetUnavailableError, match=r"adb devices took longer than 0\.5 s"):
        connect(limit_s=0.5)


def test_a_slow_push(phone: FakePhone):
    phone.set(push_delay_s=0.7)
    slow = Adb(path=connect().path, serial=_SERIAL, limit_s=0.4)
    with pytest.raises(TargetUnavailableError, match=r"pushing .* took longer"):
        slow.push(b"content", "/data/local/tmp/effdl/models/a.onnx")
    patient = Adb(path=slow.path, serial=_SERIAL, limit_s=20)
    assert patient.push(b"content", "/data/local/tmp/effdl/models/a.onnx")
    assert not patient.push(b"content", "/data/local/tmp/effdl/models/a.onnx")


def test_a_push_that_does_not_arrive_whole(phone: FakePhone):
    phone.set(arriving_bytes=3)
    with pytest.raises(TargetUnavailableError, match="did not arrive whole"):
        connect().push(b"content", "/data/local/tmp/effdl/a")
    assert not list(phone.file("/data/local/tmp/effdl").iterdir())


def test_nothing_is_written_elsewhere(phone: FakePhone):
    adb = connect()
    for path in ("/sdcard/a", "/data/local/tmp/effdl/../b", "/data/local/tmp/x", "a; reboot"):
        with pytest.raises(ConfigError, match="wanted a path below"):
            adb.push(b"content", path)


def test_no_space_left_on_the_phone(phone: FakePhone):
    phone.set(free_bytes=100_000)
    with (
        pytest.raises(OutputError, match="no space left on the phone") as raised,
        phone.open() as runtime,
    ):
        runtime.open_model(reference_model())
    assert f"adb -s {_SERIAL} shell rm -rf /data/local/tmp/effdl" in (raised.value.hint or "")
    assert phone.modes() == ["true", "false"]


def test_a_program_that_is_not_here(phone: FakePhone, tmp_path: Path):
    with (
        pytest.raises(BackendUnavailableError, match="no such file") as raised,
        open_phone(tmp_path / "none"),
    ):
        pass
    assert "docs/guides/phone.md" in (raised.value.hint or "")


def test_programs_of_another_kind(phone: FakePhone):
    phone.program.write_bytes(elf(machine=62))
    with pytest.raises(ConfigError, match=r"wanted one of arm64-v8a.*, got x86_64") as raised:
        phone.open().__enter__()
    assert raised.value.hint == "build it with --android_abi arm64-v8a"
    phone.program.write_bytes(b"MZ\x90\0" + bytes(100))
    with pytest.raises(CorruptFileError, match="no program of Android"):
        phone.open().__enter__()
    phone.program.write_bytes(elf(machine=40))
    with pytest.raises(CorruptFileError, match="one instruction set, got armeabi-v7a, arm64-v8a"):
        phone.open(libraries=[phone.library]).__enter__()


def test_a_program_that_vanished_or_may_not_run(phone: FakePhone):
    with phone.open() as runtime:
        program = phone.file(f"{runtime.program.folder}/onnxruntime_perf_test")
        program.chmod(0o644)
        with pytest.raises(BackendUnavailableError, match=r"cannot execute .*Permission denied"):
            runtime.open_model(reference_model())
        program.unlink()
        with pytest.raises(BackendUnavailableError, match="is not on the phone any more"):
            runtime.open_model(reference_model())


def test_a_program_that_lacks_a_library(phone: FakePhone):
    phone.set(missing_library="libonnxruntime.so")
    with (
        phone.open() as runtime,
        pytest.raises(BackendUnavailableError, match=r"lacks a library.*libonnxruntime"),
    ):
        runtime.open_model(reference_model())


def test_a_model_that_is_none(phone: FakePhone):
    with (
        phone.open() as runtime,
        pytest.raises(CorruptFileError, match=r"cannot run .*Protobuf parsing failed"),
    ):
        runtime.open_model(b"no model")


def test_output_that_is_cut_off(phone: FakePhone):
    with phone.open() as runtime:
        sampler = runtime.open_model(reference_model())
        for kept in (0, 10, 500, 1200, 1400):
            phone.set(kept_characters=kept)
            with pytest.raises(CorruptFileError, match="was cut off: wanted it to end with"):
                sampler.sample(4, 0.0)
        phone.set(kept_characters=1 << 40)
        assert len(sampler.sample(4, 0.0).seconds) == 4


def test_an_old_android(phone: FakePhone):
    properties = phone.folder / "getprop.txt"
    properties.write_text(properties.read_text().replace("[31]", "[28]").replace("[12]", "[9]"))
    with pytest.raises(TargetUnavailableError, match=r"Android 10 or newer.*got Android 9"):
        describe_phone(connect())


def test_an_emulator_that_hides(phone: FakePhone):
    properties = phone.folder / "getprop.txt"
    properties.write_text(properties.read_text() + "[ro.boot.qemu]: [1]\n")
    with pytest.raises(TargetUnavailableError, match="is an emulator"):
        describe_phone(connect())


def test_a_warm_phone_rests_first(phone: FakePhone):
    phone.set_statuses(2, 1, 0)
    with phone.open(heat=phone.heat(poll_s=5, rest_limit_s=60)):
        assert phone.naps == [5, 5]
    assert phone.told == [
        (0, 60, "the phone cools down (status 2)"),
        (5, 60, "the phone cools down (status 1)"),
    ]


def test_a_phone_that_stays_warm(phone: FakePhone):
    phone.set_statuses(3)
    with (
        pytest.raises(TargetUnavailableError, match=r"does not cool down.*got 3 after 60 s"),
        phone.open(heat=phone.heat(poll_s=20, rest_limit_s=60)),
    ):
        pass
    assert phone.naps == [20, 20, 20]
    assert phone.modes() == ["true", "false"]


def test_samples_that_were_taken_warm_are_taken_again(phone: FakePhone):
    with phone.open() as runtime:
        sampler = runtime.open_model(reference_model())
        # Warm before the run and after it; cools in two looks; the second run is cold.
        phone.set_statuses(1, 1, 1, 0, 0)
        samples = sampler.sample(4, 0.0)
    assert samples.interrupted == (False,) * 4
    assert samples.seconds == pytest.approx([_expected_s(reference_model())] * 4, rel=1e-5)
    assert phone.naps == [5]


def test_samples_whose_phone_cooled_meanwhile_are_taken_again(phone: FakePhone):
    with phone.open() as runtime:
        sampler = runtime.open_model(reference_model())
        # Warm before the run, but not after it any more; the second run is cold.
        phone.set_statuses(1, 0)
        samples = sampler.sample(4, 0.0)
    assert samples.interrupted == (False,) * 4
    assert samples.seconds == pytest.approx([_expected_s(reference_model())] * 4, rel=1e-5)
    assert len(phone.runs()) == 1 + 2


def test_samples_that_warm_the_phone_each_time_are_marked(phone: FakePhone):
    with phone.open() as runtime:
        sampler = runtime.open_model(reference_model())
        # Before and after each of three runs, with a look between them.
        phone.set_statuses(0, 1, 0, 0, 1, 0, 0, 1)
        samples = sampler.sample(4, 0.0)
    assert samples.interrupted == (True,) * 4
    assert len(phone.runs()) == 1 + 3


def test_the_sustained_regime_is_measured_warm(phone: FakePhone):
    with phone.open(regime="sustained", heat=phone.heat(heat_up_s=70)) as runtime:
        phone.set_statuses(1)
        samples = runtime.open_model(reference_model()).sample(4, 0.0)
        sustained = Setting.of(runtime, _PROTOCOL, batch_size=1)
    expected = _expected_s(reference_model(), throttled=True)
    assert samples.seconds == pytest.approx([expected] * 4, rel=1e-5)
    assert samples.interrupted == (False,) * 4
    assert phone.naps == []
    heating = [run for run in phone.runs() if "duration" in run]
    assert [run[run.index("-t") + 1] for run in heating] == ["30"] * 3
    assert [done for done, of, text in phone.told if of == 70] == [0, 30, 60]
    phone.set_statuses(0)
    with phone.open() as runtime:
        burst = Setting.of(runtime, _PROTOCOL, batch_size=1)
    assert (burst.regime, sustained.regime) == ("burst", "sustained")
    assert burst.describe() == sustained.describe().replace("sustained", "burst")
    with pytest.raises(ConfigError, match="regime"):
        phone.open(regime="hot").__enter__()


def test_a_phone_that_is_lost(phone: FakePhone):
    phone.set(lost_at_run=1)
    with (
        pytest.raises(TargetUnavailableError, match=f"phone {_SERIAL} was lost") as raised,
        phone.open() as runtime,
    ):
        runtime.open_model(reference_model()).sample(4, 0.0)
    assert "goes on where it stopped" in (raised.value.hint or "")
    # Its mode could not be set back: the error is the first one, not this.
    assert phone.modes() == ["true"]
    with pytest.raises(TargetUnavailableError, match="was lost"):
        read_thermal_status(Adb(path=str(phone.path / "adb"), serial=_SERIAL))


def _blocks() -> dict[str, OpSpec]:
    ops = [slot.ops[0] for slot in ofa_mbv3_w10().slots]
    return {f"{i} {op.key}": op for i, op in enumerate(ops[2:12:2])}


def _profile(runtime: AdbRuntime, path: Path) -> ProfiledItems:
    with MeasurementStore(path) as store:
        return profile_items(
            {key: partial(_open, runtime, op) for key, op in _blocks().items()},
            store=store,
            setting=Setting.of(runtime, _PROTOCOL, batch_size=1),
            protocol=_PROTOCOL,
            instruments=runtime.instruments(),
            budget_s=1e9,
        )


def _open(runtime: AdbRuntime, op: OpSpec) -> Any:
    return runtime.open_model(op.build(1))


def test_a_profile_outlives_the_loss_of_the_phone(phone: FakePhone, tmp_path: Path):
    store = tmp_path / "store.sqlite"
    # A probe of each of six models, then two rounds of runs, and some of the third.
    phone.set(lost_at_run=30)
    with (
        pytest.raises(TargetUnavailableError, match="was lost"),
        phone.open() as runtime,
    ):
        _profile(runtime, store)
    num_runs, num_pushes = len(phone.runs()), len(phone.calls("push"))
    setting = Setting.of(runtime, _PROTOCOL, batch_size=1)
    with MeasurementStore(store) as opened:
        kept = list(map(len, opened.read_rounds(setting, list(_blocks()))))
    assert 10 <= sum(kept) < 15
    assert num_pushes == 1 + 6

    phone.plug_in()
    with phone.open() as runtime:
        result = _profile(runtime, store)
    assert len(phone.calls("push")) == num_pushes
    assert {key: timing.num_rounds for key, timing in result.timings.items()} == dict.fromkeys(
        _blocks(), 3
    )
    for key, op in _blocks().items():
        expected_ms = 1000 * _expected_s(op.build(1))
        assert result.timings[key].p20_ms == pytest.approx(expected_ms, rel=1e-4)
        assert result.timings[key].median_ms == pytest.approx(expected_ms, rel=1e-4)
        assert not result.timings[key].unstable
    # The rounds that were kept are not run again: a run of the model and one of the
    # reference for each that was missing, a first one of it, and probes.
    missing = 15 - sum(kept)
    probes = 1 + sum(num < 3 for num in kept)
    assert len(phone.runs()) - num_runs == 2 * missing + 1 + probes
    with phone.open() as runtime:
        again = _profile(runtime, store)
    assert again.num_cached == 5
    assert again.timings == result.timings


def test_a_tflite_file(phone: FakePhone, tmp_path: Path):
    program, model = tmp_path / "benchmark_model", tmp_path / "net.tflite"
    program.write_bytes(elf(machine=183))
    model.write_bytes(b"\x1c\0\0\0TFL3" + bytes(100))
    result = measure_tflite(model, program=program, num_threads=2, heat=phone.heat())
    assert result.timing.median_ms == pytest.approx(27.512)
    assert result.timing.num_rounds == 8
    assert not result.timing.unstable
    assert result.runtime.startswith("litert unknown ")
    mask, _, *options = phone.runs()[-1]
    assert mask == "f0"
    assert "--num_threads=2" in options
    assert "--num_runs=20" in options
    assert phone.modes() == ["true", "false"]


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("a.onnx", b"\x08\x08", ConfigError),
        ("a.tflite", b"\x08\x08", CorruptFileError),
        ("none.tflite", None, ConfigError),
    ],
)
def test_files_that_are_no_tflite(
    phone: FakePhone, tmp_path: Path, name: str, content: bytes | None, error: type[EffdlError]
):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error):
        measure_tflite(tmp_path / name, program=phone.program)
    assert not (phone.folder / "calls").exists()


@pytest.mark.proof
def test_the_real_adb_says_what_the_fake_one_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unused_port: int
):
    adb = shutil.which("adb")
    if adb is None:
        pytest.skip("adb is not installed: apt-get install adb")
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(unused_port))
    monkeypatch.setenv("HOME", str(tmp_path))
    try:
        with pytest.raises(TargetUnavailableError, match="wanted the phone no-such-phone, got"):
            connect("no-such-phone")
        gone = Adb(path=adb, serial="no-such-phone")
        with pytest.raises(TargetUnavailableError, match=r"lost: .*no-such-phone.* not found"):
            gone.run(["getprop"])
    finally:
        subprocess.run([adb, "kill-server"], check=False, timeout=30, capture_output=True)


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])
