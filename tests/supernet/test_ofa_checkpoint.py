"""Reading .pth files without running what is in them, and their names."""

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from effdl.errors import ConfigError, CorruptFileError
from effdl.supernet.ofa_checkpoint import match_names, plain_name, read_tensors

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "a.count": torch.tensor(3)}


class Trap:
    """Creates a file when it is unpickled as plain pickle would do it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(("zipped", "wrap"), [(True, True), (False, False)])
def test_plain_checkpoints(tmp_path: Path, zipped: bool, wrap: bool) -> None:
    path = tmp_path / "plain.pth"
    content = {"epoch": 3, "state_dict": TENSORS} if wrap else TENSORS
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    tensors = read_tensors(path)
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize(("zipped", "place"), [(True, "whole"), (False, "beside")])
def test_pickled_code_is_refused_and_not_run(tmp_path: Path, zipped: bool, place: str) -> None:
    path, sprung = tmp_path / "trap.pth", tmp_path / "sprung"
    trap = Trap(sprung)
    content = trap if place == "whole" else {"state_dict": TENSORS, "optimizer": trap}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CorruptFileError, match=r"pickled code \(posix\.mkdir\)"):
        read_tensors(path)
    assert not sprung.exists()


def contents() -> dict[str, tuple[bytes, str]]:
    zipped, legacy, numbers = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save(TENSORS, zipped)
    torch.save(TENSORS, legacy, _use_new_zipfile_serialization=False)
    torch.save({"a": 1.0}, numbers)
    return {
        "empty": (b"", "ends too early"),
        "noise": (bytes(range(7, 200)), "cannot be read as a checkpoint"),
        "half a zip": (zipped.getvalue()[: len(zipped.getvalue()) // 2], "zip archive"),
        "half a legacy file": (legacy.getvalue()[:-5], "EOF|ends too early"),
        "numbers": (numbers.getvalue(), "wanted dense tensors by name, got float at 'a'"),
    }


@pytest.mark.parametrize("name", list(contents()))
def test_malformed_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / "file.pth"
    content, message = contents()[name]
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match=message):
        read_tensors(path)


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux only")
def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    # 8 TB in a file of a kilobyte: one stored number, expanded when it is copied.
    torch.save({"a": torch.zeros(1).expand(2_000_000_000_000)}, path)
    assert path.stat().st_size < 10_000
    with pytest.raises(CorruptFileError, match="memory"):
        read_tensors(path)
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as out:
        for entry in source.infolist():
            out.writestr(entry.filename, source.read(entry.filename))
    with pytest.raises(CorruptFileError):
        read_tensors(packed)


def test_a_file_that_takes_too_long_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plain.pth"
    torch.save(TENSORS, path)
    with pytest.raises(CorruptFileError, match=r"more than 0\.01 s"):
        read_tensors(path, timeout_s=0.01)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_tensors(tmp_path / "none.pth")


def test_child_says_why_on_stdout(tmp_path: Path) -> None:
    path = tmp_path / "list.pth"
    torch.save([1], path)
    command = [sys.executable, "-m", "effdl.supernet.unpickle_tensors", str(path), "/dev/null"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert "got list" in done.stdout


@pytest.mark.parametrize(
    "variant",
    [
        "blocks.3.conv.depth_conv.conv.conv.weight",
        "blocks.3.mobile_inverted_conv.depth_conv.conv.conv.weight",
        "blocks.3.mobile_inverted_conv.depth_conv.conv.weight",
        "module.blocks.3.conv.depth_conv.conv.weight",
    ],
)
def test_variants_of_a_name_agree(variant: str) -> None:
    assert plain_name(variant) == "blocks.3.conv.depth_conv.conv.weight"


def test_plain_name_keeps_different_tensors_apart() -> None:
    assert plain_name("classifier.linear.linear.bias") == "classifier.linear.bias"
    names = ["b.conv.7to5_matrix", "b.conv.5to3_matrix", "b.conv.weight", "b.bn.weight"]
    assert len({plain_name(name) for name in names}) == 4


def test_match_names() -> None:
    one, two = torch.ones(1), torch.zeros(1)
    wanted = ["a.bn.bn.weight", "c"]
    matched = match_names({"module.a.bn.weight": one, "x": two}, wanted)
    assert matched == {"a.bn.bn.weight": one, "x": two}
    with pytest.raises(CorruptFileError, match=r"two tensors are called a\.bn\.bn\.weight"):
        match_names({"a.bn.weight": one, "a.bn.bn.weight": two}, wanted)
