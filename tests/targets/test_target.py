"""Descriptors: what ships, what a user adds, and what is refused."""

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effdl.errors import ConfigError, CorruptFileError, OutputError, UnknownNameError
from effdl.targets.target import (
    Target,
    find_cuda_device,
    is_shipped_target,
    list_targets,
    load_target,
    read_target,
    user_targets_folder,
    write_target,
)

MINIMAL = """
name = "mine"
device = "My board"
kind = "embedded"
runtime = "something"
description = "A board."
"""
ESTIMATED = (
    "gpu-h100",
    "gpu-a100",
    "mobile-snapdragon-8-gen-3",
    "raspberry-pi-5",
    "cpu-x86-server",
)


def write_descriptor(folder: Path, text: str, name: str = "mine") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


def test_the_documented_targets_ship() -> None:
    measured = {"mobile-note10", "gpu-titan-rtx", "gpu-v100", "gpu-2080ti", "gpu-titan-xp"}
    measured |= {"cpu", "cuda", "cpu-xeon-amx"}
    assert set(list_targets()) == measured | set(ESTIMATED)
    for name in list_targets():
        assert load_target(name).name == name
        assert is_shipped_target(name)


@pytest.mark.parametrize("name", ESTIMATED)
def test_every_figure_of_an_estimated_target_has_its_source(name: str) -> None:
    target = load_target(name)
    figures = [
        *target.peak_flops_per_s.values(),
        target.memory_bandwidth_bytes_per_s,
        target.launch_overhead_us,
        target.flops_efficiency,
        target.bandwidth_efficiency,
    ]
    assert "float32" in target.peak_flops_per_s
    for figure in figures:
        assert figure is not None
        assert math.isfinite(figure.value)
        assert len(figure.source) >= len("assumption")


def test_derived_figures_follow_from_clock_width_and_bus() -> None:
    board = load_target("raspberry-pi-5")
    # Two 128-bit pipes of four floats, a multiply-add counted twice; 4 bytes a transfer.
    assert board.peak_flops_per_s["float32"].value == pytest.approx(2.4e9 * 2 * 4 * 2)
    bandwidth = board.memory_bandwidth_bytes_per_s
    assert bandwidth is not None
    assert bandwidth.value == pytest.approx(4267e6 * 4, rel=5e-3)


def test_aliases_and_this_machine() -> None:
    assert load_target("mobile").name == "mobile-note10"
    assert load_target("gpu").name == "gpu-titan-rtx"
    assert load_target("gpu").default_batch_size == 64
    cpu = load_target("cpu")
    assert cpu.is_local
    assert cpu.device != "this machine"
    assert not load_target("mobile").is_local


def test_gpu_is_the_users_own_target_only_on_its_device() -> None:
    device = find_cuda_device() or "a GPU that is not here"
    mine = Target(name="mine", device=device, kind="gpu", runtime="r", description="d")
    write_target(user_targets_folder(), mine)
    expected = "gpu-titan-rtx" if find_cuda_device() is None else "mine"
    assert load_target("gpu").name == expected


def test_a_user_adds_a_target_and_cannot_shadow_a_shipped_one(effdl_home: Path) -> None:
    write_descriptor(effdl_home / "targets", MINIMAL)
    write_descriptor(effdl_home / "targets", MINIMAL.replace("mine", "gpu-v100"), "gpu-v100")
    assert "mine" in list_targets()
    assert load_target("mine").device == "My board"
    assert load_target("gpu-v100").device == "NVIDIA Tesla V100"


def test_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="gpu-titan-rtx") as error:
        load_target("gpu-titan-rtz")
    assert "did you mean 'gpu-titan-rtx'" in (error.value.hint or "")
    with pytest.raises(UnknownNameError):
        load_target("../descriptors/cpu")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL + "colour = 'red'\n", "colour"),
        (MINIMAL + "default_batch_size = 'many'\n", "default_batch_size"),
        (MINIMAL + "default_batch_size = 0\n", "default_batch_size"),
        (MINIMAL.replace("embedded", "toaster"), "toaster"),
        (MINIMAL.replace('device = "My board"', ""), "device"),
        (MINIMAL.replace('"mine"', '"other"'), "other"),
        (MINIMAL + "[launch_overhead_us]\nvalue = -1.0\nsource = 'x'\n", "launch_overhead_us"),
        (MINIMAL + "[launch_overhead_us]\nvalue = nan\nsource = 'x'\n", "launch_overhead_us"),
        (MINIMAL + "[launch_overhead_us]\nvalue = inf\nsource = 'x'\n", "launch_overhead_us"),
        (MINIMAL + "[launch_overhead_us]\nvalue = 5.0\n", "source"),
        (MINIMAL + "[peak_flops_per_s.float33]\nvalue = 5.0\nsource = 'x'\n", "float33"),
        ("name = \n", "mine.toml"),
        ("", "mine.toml"),
    ],
)
def test_malformed_descriptors(tmp_path: Path, text: str, message: str) -> None:
    path = write_descriptor(tmp_path, text)
    with pytest.raises(CorruptFileError, match=message):
        read_target(path)


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"name = '\xff\xfe'")
    with pytest.raises(CorruptFileError):
        read_target(path)
    path.write_bytes(b"#" * (2 << 20))
    with pytest.raises(CorruptFileError, match="too large"):
        read_target(path)
    with pytest.raises(ConfigError, match="cannot read"):
        read_target(tmp_path / "absent.toml")


@settings(max_examples=50)
@given(
    device=st.text(st.characters(codec="utf-8"), min_size=1, max_size=40),
    batch_size=st.integers(1, 65536),
)
def test_written_descriptors_read_back(
    tmp_path_factory: pytest.TempPathFactory, device: str, batch_size: int
) -> None:
    target = Target(
        name="mine",
        device=device,
        kind="gpu",
        runtime="r",
        description="d",
        default_batch_size=batch_size,
    )
    path = write_target(tmp_path_factory.getbasetemp() / "written", target)
    assert read_target(path) == target


def test_own_targets_are_checked_before_anything_is_written(tmp_path: Path) -> None:
    target = Target(name="cpu", device="d", kind="gpu", runtime="r", description="d")
    with pytest.raises(ConfigError, match="comes with effdl"):
        write_target(tmp_path, target)
    bad = Target(name="../up", device="d", kind="gpu", runtime="r", description="d")
    with pytest.raises(ConfigError, match="cannot be a target"):
        write_target(tmp_path, bad)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    mine = Target(name="mine", device="d", kind="gpu", runtime="r", description="d")
    with pytest.raises(OutputError, match="cannot write"):
        write_target(tmp_path / "file" / "targets", mine)
