"""README's table of kernels is what the benchmarks' files say."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

PATH = Path(__file__).resolve().parents[2] / "bench" / "kernels" / "readme_table.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme_table", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(path: Path, **more: object) -> None:
    row = {
        "kernel": "temporal_shift",
        "case": "256@56",
        "dtype": "float32",
        "num_threads": 1,
        "gigabytes_per_s": 12.34,
        "giga_operations_per_s": 0.0,
        "floor_ratio": 0.805,
        "ours": "tvm in place",
        "p20_ms": {
            "tvm in place": 0.2,
            "tvm": 0.9,
            "naive": 2.0,
            "clone": 1.0,
            "copy of the same bytes": 0.1,
        },
        **more,
    }
    path.write_text(json.dumps({"schema_version": 1, "device": "Made", "rows": [row]}))


def test_readme_is_up_to_date(tool: ModuleType) -> None:
    text = tool.README.read_text()
    assert tool.insert(text, tool.render()) == text, f"run python {PATH.name}"


def test_a_row_by_hand(tool: ModuleType, tmp_path: Path) -> None:
    write(tmp_path / "kernels-made-2026-01.json")
    assert tool.render(tmp_path).splitlines()[-1] == (
        "| temporal_shift (tvm in place) | 256@56, float32 | 1 | 200 us | 12.3 GB/s | 80 % "
        "| naive: 10.00 |"
    )


def test_work_without_a_peer(tool: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "kernels-made-2026-01.json"
    write(path, giga_operations_per_s=512.4, p20_ms={"tvm": 3.14159}, ours="tvm")
    assert tool.render(tmp_path).endswith("| 3.14 ms | 512 GOP/s | 80 % | none |")


def test_the_newest_file_of_each_machine(tool: ModuleType, tmp_path: Path) -> None:
    for name in ("a-2025-12", "a-2026-02", "b-c-2026-01"):
        write(tmp_path / f"kernels-{name}.json")
    (tmp_path / "other-2026-01.json").write_text("{}")
    found = [path.stem for path in tool.newest_files(tmp_path)]
    assert found == ["kernels-a-2026-02", "kernels-b-c-2026-01"]


def test_the_rest_of_the_text_stays(tool: ModuleType) -> None:
    text = f"before\n{tool.BEGIN}\nold\n{tool.END}\nafter\n"
    assert tool.insert(text, "new") == text.replace("old", "new")
    with pytest.raises(ValueError, match="once each"):
        tool.insert("no marks", "new")
