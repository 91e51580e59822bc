"""What TVM compiles for, and what is said where a tool is missing."""

import importlib.metadata
import importlib.util
import platform
import shutil
import sys

import pytest

from effdl import compilers
from effdl.errors import BackendUnavailableError, UnknownNameError
from effdl.targets.measure import tvm_target
from effdl.targets.measure.tvm_target import TvmTarget, find_linker, find_tvm, host_triple


def test_target_as_tvm_takes_it() -> None:
    assert TvmTarget().to_tvm() == {
        "kind": "llvm",
        "mtriple": "aarch64-linux-gnu",
        "mattr": ["+neon"],
    }
    tuned = TvmTarget(processor="cortex-a76", features=("+dotprod",))
    assert tuned.to_tvm()["mcpu"] == "cortex-a76"
    assert tuned.to_tvm()["mattr"] == ["+dotprod", "+neon"]
    assert TvmTarget(triple="x86_64-linux-gnu").to_tvm() == {
        "kind": "llvm",
        "mtriple": "x86_64-linux-gnu",
    }
    assert TvmTarget().machine == "aarch64"


def test_unknown_triple() -> None:
    with pytest.raises(UnknownNameError, match="aarch64-linux-gnu") as error:
        TvmTarget(triple="aarch64-linux-gn")
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("system", "machine", "triple"),
    [
        ("linux", "x86_64", "x86_64-linux-gnu"),
        ("linux", "aarch64", "aarch64-linux-gnu"),
        ("linux", "riscv64", None),
        ("darwin", "x86_64", None),
    ],
)
def test_host_triple(
    monkeypatch: pytest.MonkeyPatch, system: str, machine: str, triple: str | None
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(sys, "platform", system)
    assert host_triple() == triple


class Tools:
    """Which compilers the machine seems to have; it is an x86-64 Linux."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths: dict[str, str] = {}
        self.ziglang = False
        monkeypatch.setattr(platform, "machine", lambda: "x86_64")
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setattr(shutil, "which", lambda name: self.paths.get(name))
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: self.ziglang or None)


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Tools:
    return Tools(monkeypatch)


ZIG_ARM = ("-m", "ziglang", "cc", "-target", "aarch64-linux-gnu.2.28")


def test_board_prefers_the_compiler_that_links_for_old_systems(tools: Tools) -> None:
    tools.paths = {"aarch64-linux-gnu-g++": "/usr/bin/arm-g++", "g++": "/usr/bin/g++"}
    assert find_linker("aarch64-linux-gnu") == ("/usr/bin/arm-g++",)
    tools.ziglang = True
    assert find_linker("aarch64-linux-gnu")[1:] == ZIG_ARM
    assert find_linker("aarch64-linux-gnu", cpp=True)[3] == "c++"


def test_this_machine_prefers_its_own_compiler(tools: Tools) -> None:
    tools.ziglang = True
    assert find_linker("x86_64-linux-gnu")[1:3] == ("-m", "ziglang")
    tools.paths = {"clang++": "/usr/bin/clang++"}
    assert find_linker("x86_64-linux-gnu") == ("/usr/bin/clang++",)


def test_no_linker_names_the_command(tools: Tools) -> None:
    tools.paths = {"g++": "/usr/bin/g++"}
    with pytest.raises(BackendUnavailableError, match="aarch64-linux-gnu-g\\+\\+") as error:
        find_linker("aarch64-linux-gnu")
    assert error.value.exit_code == 4
    assert error.value.hint == (
        "pip install ziglang (or, on Debian: apt-get install g++-aarch64-linux-gnu)"
    )
    tools.paths = {}
    with pytest.raises(BackendUnavailableError) as error:
        find_linker("x86_64-linux-gnu")
    assert error.value.hint == "pip install ziglang (or, on Debian: apt-get install g++)"


@pytest.mark.parametrize(
    ("versions", "said"),
    [
        ({}, "TVM is not installed"),
        ({"apache-tvm": "0.27.0.post1"}, "TVM is not installed"),
        (
            {"apache-tvm": "0.27.0.post1", "apache-tvm-ffi": "0.1.15.post2"},
            "wanted .*0.1.14.post1, got 0.27.0.post1 with 0.1.15.post2",
        ),
    ],
)
def test_wrong_tvm_names_the_command(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], said: str
) -> None:
    class Installed:
        def __init__(self, name: str) -> None:
            if name not in versions:
                raise importlib.metadata.PackageNotFoundError(name)
            self.version = versions[name]

        def read_text(self, _: str) -> str:
            return ""

    monkeypatch.setattr(importlib.metadata, "distribution", Installed)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: Installed(name).version)
    compilers.check_tvm.cache_clear()
    tvm_target.find_runtime.cache_clear()
    try:
        with pytest.raises(BackendUnavailableError, match=said) as error:
            find_tvm()
    finally:
        compilers.check_tvm.cache_clear()
        tvm_target.find_runtime.cache_clear()
    assert error.value.hint == ("pip install apache-tvm==0.27.0.post1 apache-tvm-ffi==0.1.14.post1")
