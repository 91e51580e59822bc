"""What is looked for, and that nothing heavy is imported for it."""

import subprocess
import sys
from pathlib import Path

import msgspec

from effdl.targets.store import default_store_path
from effdl.workflows.doctor import examine


def test_what_is_here_and_what_is_not():
    checks = {check.name: check for check in examine()}
    assert checks["python"].ok
    assert checks["onnxruntime"].ok
    assert checks["onnxruntime providers"].found.startswith("cpu")
    assert checks["store of measurements"].ok
    assert not default_store_path().exists()
    for check in checks.values():
        assert check.found
        assert check.ok == (check.command is None)
        facts = check.to_json()
        assert msgspec.json.decode(msgspec.json.encode(facts)) == facts


def test_names_are_unique_and_the_main_ones_are_there():
    names = [check.name for check in examine()]
    assert len(set(names)) == len(names)
    assert {"torch", "onnx", "onnxruntime", "cuda device", "noise"} <= set(names)


def test_a_store_that_cannot_be_used_is_reported(tmp_path: Path):
    broken = tmp_path / "measurements.sqlite"
    broken.write_bytes(b"no store" * 1000)
    check = next(c for c in examine(store_path=broken) if c.name == "store of measurements")
    assert not check.ok
    assert "is not a store" in check.found
    assert check.command is not None
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    path = in_the_way / "measurements.sqlite"
    check = next(c for c in examine(store_path=path) if c.name == "store of measurements")
    assert not check.ok


def test_nothing_heavy_is_imported():
    code = (
        "import sys; from effdl.workflows.doctor import examine; examine(); "
        "heavy = {'torch', 'onnx', 'onnxruntime', 'tvm', 'triton', 'matplotlib'}; "
        "sys.exit(','.join(sorted(heavy & set(sys.modules))) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
