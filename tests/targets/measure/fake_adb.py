"""Stands in for ``adb`` and for a phone behind it, replaying transcripts.

A test puts a program named adb on PATH that runs this file. The phone is a folder: what is
pushed lies below its ``root``, and a line for the phone's shell is run by this machine's
``sh``, with the paths of the phone turned into paths below ``root`` and the phone's own
programs (``dumpsys``, ``taskset``, ...) in front on PATH. So quoting and syntax of those
lines are put to the test, too. its folder ``settings`` says what goes wrong, and when.

Nothing here takes the time it tells: a run of a model "takes" 10 ns a byte of its file.
A test starts it hundreds of times, so it imports little, and stores plain text.
"""

import os
import sys
import time
from pathlib import Path

SECONDS_PER_BYTE = 1e-8
THROTTLED_TIMES = 1.7
_HERE = Path(__file__).resolve().parent
_FOLDERS = ("/data/local/tmp", "/sys/devices")
_LOST = "error: device '{}' not found"

DEFAULTS: dict[str, str | int | float] = {
    "serial": "R58M42ABCDE",
    "devices": "devices_one.txt",
    "devices_delay_s": 0.0,
    "noise": "",
    "push_delay_s": 0.0,
    "free_bytes": 1 << 40,
    "arriving_bytes": 1 << 40,
    "kept_characters": 1 << 40,
    "missing_library": "",
    "lost_at_run": -1,
}
"""What a phone does unless its folder ``settings`` holds a file of that name."""


class _Phone:
    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "root"

    @property
    def is_lost(self) -> bool:
        return (self.folder / "lost").exists()

    def text(self, name: str) -> str:
        path = self.folder / "settings" / name
        return path.read_text() if path.exists() else str(DEFAULTS[name])

    def number(self, name: str) -> float:
        return float(self.text(name))

    def log(self, name: str, words: list[str]) -> None:
        """Append a line; in it, a control character stands between words."""
        with (self.folder / name).open("a") as file:
            file.write("\x1f".join(words).replace("\n", "\x1e") + "\n")

    def count(self, name: str) -> int:
        """How often this was called before."""
        path = self.folder / f"{name}.count"
        num = int(path.read_text()) if path.exists() else 0
        path.write_text(str(num + 1))
        return num

    def adb(self, arguments: list[str]) -> int:
        self.log("calls", arguments)
        if arguments == ["devices", "-l"]:
            time.sleep(self.number("devices_delay_s"))
            sys.stdout.write(self.text("noise"))
            sys.stdout.write((_HERE / "transcripts" / self.text("devices")).read_text())
            return 0
        option, serial, verb, *rest = arguments
        if option != "-s" or serial != self.text("serial"):
            return _say(_LOST.format(serial))
        if self.is_lost:
            return _say(_LOST.format(serial))
        if verb == "get-state":
            sys.stdout.write("device\n")
            return 0
        if verb == "push":
            return self.push(*rest)
        if verb == "shell":
            return self.shell(*rest)
        return _say(f"adb: unknown command {verb}")

    def push(self, source: str, target: str) -> int:
        self.count("push")
        time.sleep(self.number("push_delay_s"))
        data = Path(source).read_bytes()
        if len(data) > self.number("free_bytes"):
            why = "remote write failed: No space left on device"
            return _say(f"adb: error: failed to copy '{source}' to '{target}': {why}")
        remote = Path(f"{self.root}{target}")
        remote.write_bytes(data[: int(self.number("arriving_bytes"))])
        remote.chmod(0o644)
        sys.stdout.write(f"{source}: 1 file pushed, 0 skipped. 30.1 MB/s ({len(data)} bytes)\n")
        return 0

    def shell(self, text: str) -> int:
        for folder in _FOLDERS:
            text = text.replace(folder, f"{self.root}{folder}")
        out_path = self.folder / "shell.out"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        child = os.posix_spawn(
            "/bin/sh",
            ["sh", "-c", text],
            {"PATH": f"{self.folder}/programs:/usr/bin:/bin", "PHONE": str(self.folder)},
            file_actions=[(os.POSIX_SPAWN_OPEN, 1, str(out_path), flags, 0o600)],
        )
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out = out_path.read_text().replace(str(self.root), "")
        if "taskset" in text:
            out = out[: int(self.number("kept_characters"))]
        if self.is_lost:
            sys.stdout.write(out[: len(out) // 2])
            return 255
        sys.stdout.write(out)
        return code

    def taskset(self, mask: str, *command: str) -> int:
        if not 0 < int(mask, 16) < 256:
            return _say(f"taskset: bad mask '{mask}'")
        arguments = list(command)
        if arguments[0] == "env":
            arguments = arguments[2:]
        program = Path(arguments[0])
        if not program.exists():
            return _say(f"taskset: exec {program}: No such file or directory", code=127)
        if not os.access(program, os.X_OK):
            return _say(f"taskset: exec {program}: Permission denied", code=126)
        if self.text("missing_library"):
            name = self.text("missing_library")
            return _say(
                f'CANNOT LINK EXECUTABLE "{program}": library "{name}" not found: needed by main '
                "executable",
                code=1,
            )
        self.log("runs", [mask, *arguments])
        if self.count("run") == self.number("lost_at_run"):
            (self.folder / "lost").touch()
        if program.name == "benchmark_model":
            return self.benchmark_model(arguments[1:])
        return self.perf_test(arguments[1:])

    def perf_test(self, arguments: list[str]) -> int:
        options: dict[str, str] = {}
        while arguments and arguments[0].startswith("-"):
            name = arguments.pop(0)
            options[name] = "" if name == "-I" else arguments.pop(0)
        model, result = map(Path, arguments)
        data = model.read_bytes()
        if not data.startswith(b"\x08"):
            return _say(f"Load model from {model} failed:Protobuf parsing failed.")
        if options["-m"] == "duration":
            options["-r"] = "3"
        status = (self.folder / "status").read_text().strip()
        one_s = len(data) * SECONDS_PER_BYTE * (THROTTLED_TIMES if int(status) else 1.0)
        with result.open("a") as file:
            for run in range(int(options["-r"])):
                # The first runs are slow, as they are on a phone.
                seconds = one_s * (4.0 if run < 2 else 1.0)
                file.write(f"models,{seconds:.6g},27112243,11,{run}\n")
        sys.stdout.write((_HERE / "transcripts" / "perf_test_stdout.txt").read_text())
        return 0

    def benchmark_model(self, arguments: list[str]) -> int:
        given = dict(argument.split("=") for argument in arguments)
        if not Path(given["--graph"]).exists():
            return _say("ERROR: Could not open model")
        sys.stderr.write((_HERE / "transcripts" / "benchmark_model.txt").read_text())
        return 0


def _say(text: str, *, code: int = 1) -> int:
    sys.stderr.write(text + "\n")
    return code


_PROGRAMS = {
    "getprop": 'cat "$PHONE/getprop.txt"',
    # Each call tells the next status of the list; the last one stays.
    "dumpsys": """
        n=$(cat "$PHONE/status.next"); echo $((n + 1)) > "$PHONE/status.next"
        status=$(sed -n "${n}p" "$PHONE/statuses")
        [ -n "$status" ] || status=$(tail -n 1 "$PHONE/statuses")
        echo "$status" > "$PHONE/status"
        sed "s/@STATUS@/$status/" "$PHONE/thermalservice.txt" """,
    "cmd": """
        echo "$@" >> "$PHONE/cmd.log"
        exit "$(cat "$PHONE/cmd.exit")" """,
}


def install(folder: Path, path: Path) -> None:
    """Make a phone in ``folder``, and a program ``adb`` in the folder ``path``."""
    programs = folder / "programs"
    programs.mkdir(parents=True)
    (folder / "root/data/local/tmp").mkdir(parents=True)
    for name in ("getprop.txt", "thermalservice.txt"):
        (folder / name).write_text((_HERE / "transcripts" / name).read_text())
    for name, text in (("statuses", "0"), ("status", "0"), ("status.next", "1"), ("cmd.exit", "0")):
        (folder / name).write_text(f"{text}\n")
    (folder / "settings").mkdir()
    # A Snapdragon 855: four small cores, three big ones, and a faster one.
    for core in range(8):
        khz, capacity = ((1785600, 286), (2419200, 871), (2841600, 1024))[(core > 3) + (core > 6)]
        files = folder / f"root/sys/devices/system/cpu/cpu{core}"
        (files / "cpufreq").mkdir(parents=True)
        (files / "cpufreq/cpuinfo_max_freq").write_text(f"{khz}\n")
        (files / "cpufreq/scaling_governor").write_text("schedutil\n")
        (files / "cpu_capacity").write_text(f"{capacity}\n")
    me = f"'{sys.executable}' -I -S '{Path(__file__).resolve()}' '{folder}'"
    for name, text in {**_PROGRAMS, "taskset": f'exec {me} taskset "$@"'}.items():
        _write_program(programs / name, text)
    path.mkdir(parents=True, exist_ok=True)
    _write_program(path / "adb", f'exec {me} adb "$@"')


def _write_program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


if __name__ == "__main__":
    _phone = _Phone(Path(sys.argv[1]))
    if sys.argv[2] == "adb":
        sys.exit(_phone.adb(sys.argv[3:]))
    sys.exit(_phone.taskset(*sys.argv[3:]))
