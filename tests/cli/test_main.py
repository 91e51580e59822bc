"""The shell around every verb: start-up, errors, exit codes, streams, completion."""

import contextlib
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from effdl import errors
from effdl.cli import failures, names
from effdl.cli.main import VERBS, effdl

HEAVY = {"torch", "tvm", "triton", "onnx", "onnxruntime", "matplotlib", "numpy", "rich", "msgspec"}
EFFDL = [sys.executable, "-m", "effdl.cli"]


def invoke(*args: str) -> Result:
    return CliRunner().invoke(effdl, args, prog_name="effdl")


def run(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*EFFDL, *args],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
        check=False,
    )


def loaded_after(*args: str, **environment: str) -> set[str]:
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
        f"sys.argv = ['effdl', *{list(args)!r}]\n"
        "from effdl.cli.main import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
        check=True,
    )
    assert done.stdout
    return {name.partition(".")[0] for name in done.stderr.split()}


@pytest.mark.parametrize("args", [("--help",), ("--version",), ("completion", "zsh")])
def test_starting_loads_nothing_heavy(args: tuple[str, ...]) -> None:
    assert loaded_after(*args) & HEAVY == set()


@pytest.mark.parametrize(
    ("words", "expected"),
    [("effdl search --space ofa", "ofa-mbv3-w1.2"), ("effdl search --target mob", "mobile")],
)
def test_completion_of_names_is_light(words: str, expected: str) -> None:
    environment = {
        "_EFFDL_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    done = run(**environment)
    assert expected in done.stdout
    loaded = loaded_after(**environment)
    assert loaded & (HEAVY - {"msgspec"}) == set()


def test_completion_script_calls_back() -> None:
    for shell in ("bash", "zsh", "fish"):
        result = invoke("completion", shell)
        assert result.exit_code == 0
        assert "_EFFDL_COMPLETE" in result.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_exists_and_has_help(verb: str) -> None:
    result = invoke(verb, "--help")
    assert result.exit_code == 0, result.stderr
    assert "--help" in result.stdout
    assert result.stderr == ""


def test_names_are_those_the_packages_know() -> None:
    from effdl.models.spaces import DEFAULT_SPACE, SPACES
    from effdl.search.presets import ALGORITHMS, EFFORTS
    from effdl.workflows.runtimes import RUNTIMES

    assert set(names.SPACE_NAMES) == set(SPACES)
    assert names.DEFAULT_SPACE_NAME == DEFAULT_SPACE
    assert set(names.RUNTIME_NAMES) == {name for known in RUNTIMES.values() for name in known}
    assert set(names.EFFORT_NAMES) == set(EFFORTS)
    assert set(names.ALGORITHM_NAMES) == set(ALGORITHMS)


SEARCH = "search --target gpu --latency 20ms"
BAD_LINES = [
    ("serach", "search"),
    ("search --target gpu", "--latency"),
    ("search --latency 20ms", "--target"),
    ("search --target gpu --latency 20", "20ms"),
    ("search --target gpu --latency 0ms", "zero"),
    ("search --target gpu --latency -3ms", "zero"),
    ("search --target gpu --latency nanms", "nan"),
    ("search --target gpuu --latency 20ms", "gpu"),
    (f"{SEARCH} --macs 300", "300MMACs"),
    (f"{SEARCH} --params 5M", "5Mparams"),
    (f"{SEARCH} --peak-memory 64mib", "64MiB"),
    (f"{SEARCH} --confidence 0.95", "%"),
    (f"{SEARCH} --max-seconds 0", "zero"),
    (f"{SEARCH} --max-evaluations 0", "--max-evaluations"),
    (f"{SEARCH} --top-k 0", "--top-k"),
    (f"{SEARCH} --batch-size -1", "--batch-size"),
    (f"{SEARCH} --seed -1", "--seed"),
    (f"{SEARCH} --space ofa-mbv3-w12", "ofa-mbv3-w1.2"),
    (f"{SEARCH} --latencyy 1", "--latency"),
    (f"{SEARCH} --weights absent.safetensors", "absent"),
    (f"{SEARCH} --effort fast --algorithm random", "--algorithm"),
    ("predict --configs absent.jsonl", "absent.jsonl"),
]


@pytest.mark.parametrize(("line", "says"), BAD_LINES)
def test_usage_errors_exit_2_and_say_what_helps(line: str, says: str) -> None:
    result = invoke(*line.split())
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "error: " in result.stderr
    assert says in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(("line", "says"), BAD_LINES)
def test_usage_errors_as_json(line: str, says: str) -> None:
    result = invoke(*line.split(), "--format", "json")
    assert result.exit_code == 2
    value = json.loads(result.stdout)
    assert value["schema_version"] == 1
    assert set(value) == {"schema_version", "error"}
    assert {"type", "message", "hint"} <= set(value["error"])
    assert says in value["error"]["message"] + str(value["error"]["hint"])


def test_an_unknown_format_is_a_usage_error() -> None:
    result = invoke(*SEARCH.split(), "--format", "xml")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "json" in result.stderr


def test_debug_shows_the_traceback() -> None:
    bad = ("search", "--target", "gpu", "--latency", "20")
    assert "Traceback" in invoke(*bad, "--debug").stderr
    assert "Traceback" in invoke("--debug", *bad).stderr


def report_of(error: Exception, *args: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = failures.report(error, args)
    return code, out.getvalue(), err.getvalue()


def every_error() -> list[errors.EffdlError]:
    found = []
    for name in errors.__all__:
        kind = getattr(errors, name)
        if kind is errors.UnknownNameError:
            found.append(kind("space", "a", ["ab"], command="effdl targets list"))
        else:
            found.append(kind("what failed", hint="what helps"))
    return found


@pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__)
def test_every_error_has_its_code_message_and_hint(error: errors.EffdlError) -> None:
    code, out, err = report_of(error, "search", "--format=json")
    assert code == error.exit_code
    body = json.loads(out)["error"]
    assert body["type"] == type(error).__name__
    assert body["message"] == error.message
    assert err == f"error: {error.message}\n\nhint: {error.hint}\n"


def test_infeasible_names_the_fastest() -> None:
    error = errors.InfeasibleConstraintError("too fast", fastest_latency_ms=9.89)
    code, out, _ = report_of(error, "--format", "json")
    assert code == 3
    assert json.loads(out)["error"]["fastest_latency_ms"] == 9.89


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, 8), (errno.EROFS, 8), (errno.EACCES, 8), (errno.EDQUOT, 8), (errno.EIO, 1)],
)
def test_output_that_the_system_refuses(number: int, code: int) -> None:
    error = OSError(number, os.strerror(number), "runs/x")
    assert report_of(error)[0] == code


def test_a_defect_writes_a_crash_report(effdl_home: Path) -> None:
    try:
        raise ZeroDivisionError("a defect")
    except ZeroDivisionError as error:
        code, out, err = report_of(error, "search", "--format", "json")
    assert code == 1
    body = json.loads(out)["error"]
    path = Path(body["crash_report"])
    assert path.is_relative_to(effdl_home)
    assert str(path) in err
    text = path.read_text()
    assert "ZeroDivisionError: a defect" in text
    assert "test_a_defect_writes_a_crash_report" in text
    assert "'search', '--format', 'json'" in text


def test_a_crash_report_finds_another_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EFFDL_HOME", str(tmp_path / "file"))
    code, out, _ = report_of(ValueError("x"), "--format", "json")
    path = Path(json.loads(out)["error"]["crash_report"])
    assert code == 1
    assert path.is_file()
    path.unlink()


@pytest.mark.parametrize(
    ("cause", "code"), [(KeyboardInterrupt(), 130), (failures.Terminated(), 143)]
)
def test_interrupts(cause: BaseException, code: int) -> None:
    error = click.Abort()
    error.__cause__ = cause
    assert report_of(error)[0] == code


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_running_verb(tmp_path: Path, number: signal.Signals, code: int) -> None:
    # A named pipe that nobody writes to holds the verb where it reads its input.
    pipe = tmp_path / "configs.jsonl"
    os.mkfifo(pipe)
    command = [*EFFDL, "predict", "--configs", str(pipe), "--format", "json"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background may ignore SIGINT, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as running:
        try:
            time.sleep(2)
            assert running.poll() is None
            running.send_signal(number)
            out, err = running.communicate(timeout=30)
        finally:
            running.kill()
    assert running.returncode == code
    assert json.loads(out)["error"]["type"] == "InterruptedError"
    assert "Traceback" not in err


def test_no_escape_codes_off_a_terminal() -> None:
    for args in (("--help",), ("search", "--help"), ("search", "--target", "x", "--latency", "1")):
        done = run(*args, FORCE_COLOR="", TERM="xterm-256color")
        assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs pseudo-terminals")
@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_colours_on_a_terminal(environment: dict[str, str], coloured: bool) -> None:
    master, slave = os.openpty()
    kept = {k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "TERM", "FORCE_COLOR"}}
    done = subprocess.run(
        [*EFFDL, "nothing"],
        stdout=subprocess.DEVNULL,
        stderr=slave,
        timeout=60,
        env={**kept, "TERM": "xterm", **environment},
        check=False,
    )
    os.close(slave)
    text = os.read(master, 10_000).decode()
    os.close(master)
    assert done.returncode == 2
    assert ("\x1b[" in text) is coloured


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs pseudo-terminals")
@pytest.mark.parametrize("plain", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_tables_on_a_terminal_say_what_they_say_elsewhere(plain: dict[str, str]) -> None:
    command = [*EFFDL, "targets", "show", "gpu-titan-rtx"]
    kept = {k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "TERM", "FORCE_COLOR"}}
    elsewhere = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    master, slave = os.openpty()
    environment = {**kept, "TERM": "xterm", "COLUMNS": "200", **plain}
    subprocess.run(command, stdout=slave, timeout=60, env=environment, check=True)
    os.close(slave)
    text = os.read(master, 100_000).decode()
    os.close(master)
    assert ("\x1b[" in text) is not bool(plain)
    figures = re.findall(r"\d+\.\d+", elsewhere.stdout)
    assert figures
    assert re.findall(r"\d+\.\d+", text) == figures


def test_a_closed_pipe_is_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        done = subprocess.run(
            [*EFFDL, "nothing", "--format", "json"],
            stdout=pipe,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert done.returncode == 141
    assert b"Traceback" not in done.stderr
    assert b"BrokenPipe" not in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_terminal_encoding_works(encoding: str) -> None:
    line = ("search", "--target", "ü→", "--latency", "1ms", "--format", "json")
    done = subprocess.run(
        [*EFFDL, *line],
        capture_output=True,
        timeout=60,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        check=False,
    )
    assert done.returncode == 2
    assert "ü→" in json.loads(done.stdout)["error"]["message"]
