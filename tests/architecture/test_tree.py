"""The rules of the house that a tool can check."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE_FOLDERS = ("effdl", "kernels", "targets", "search")
HEAVY = ("torch", "tvm", "triton", "onnx", "onnxruntime", "matplotlib")
JUNK_DRAWERS = {"utils", "helpers", "common", "base", "manager", "handler", "misc"}


def source_files() -> list[Path]:
    files = {
        path.resolve()
        for folder in SOURCE_FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        if "__pycache__" not in path.parts
    }
    return sorted(files)


def package_relative(path: Path) -> Path:
    relative = path.relative_to(ROOT)
    return relative if relative.parts[0] == "effdl" else Path("effdl") / relative


@pytest.mark.parametrize("name", ["kernels", "targets", "search"])
def test_package_links_lead_to_the_top_folders(name: str) -> None:
    link = ROOT / "effdl" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..") / name
    assert (link / "__init__.py").is_file()


def test_no_module_is_long() -> None:
    long = {
        str(path.relative_to(ROOT)): num_lines
        for path in source_files()
        if (num_lines := len(path.read_text().splitlines())) > 500
    }
    assert long == {}


def test_no_module_is_a_junk_drawer() -> None:
    assert [p for p in source_files() if JUNK_DRAWERS & set(p.with_suffix("").parts)] == []


def test_every_module_has_a_docstring() -> None:
    bare = [
        str(path.relative_to(ROOT))
        for path in source_files()
        if path.read_text().strip() and ast.get_docstring(ast.parse(path.read_text())) is None
    ]
    assert bare == []


def test_every_model_folder_has_a_readme() -> None:
    folders = [p for p in (ROOT / "effdl" / "models").iterdir() if (p / "__init__.py").is_file()]
    assert folders
    assert [p.name for p in folders if not (p / "README.md").is_file()] == []


def test_every_verb_is_a_workflow_or_data_file() -> None:
    """Nothing but data, and the board's daemon in C++, is shipped beside the code."""
    allowed = {".py", ".toml", ".jsonl", ".json", ".safetensors", ".md", ".typed", ".cpp"}
    files = [
        path
        for folder in SOURCE_FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    assert {p.suffix or p.name for p in files} <= allowed


def loaded_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return {name.partition(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize(
    "module",
    [
        "effdl",
        "effdl.cli.main",
        "effdl.errors",
        "effdl.units",
        "effdl.search.space",
        "effdl.search.accuracy_predictor",
        "effdl.targets.latency_table",
        "effdl.targets.target",
        "effdl.models.mobilenet_v3.space",
    ],
)
def test_import_is_light(module: str) -> None:
    assert loaded_by(f"import {module}") & set(HEAVY) == set()


def test_no_unsafe_loading() -> None:
    """No pickle, no eval, no unsafe YAML, no shell, no torch.load without weights_only."""
    found = []
    for path in source_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            call = ast.unparse(node.func)
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if (
                call in {"eval", "exec", "yaml.load_all", "yaml.unsafe_load", "os.system"}
                or call.startswith(("pickle.", "marshal."))
                or (call == "torch.load" and keywords.get("weights_only") != "True")
                or (call == "yaml.load" and "Safe" not in ast.unparse(node))
                or keywords.get("shell") == "True"
                or keywords.get("allow_pickle") == "True"
            ):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} {call}")
    assert found == []
