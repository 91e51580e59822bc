"""A kernel is one folder with everything that belongs to it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KERNELS = sorted(p.parent for p in (ROOT / "kernels").glob("*/__init__.py"))
COMPILERS = ("triton", "tvm")


@pytest.mark.parametrize("folder", KERNELS, ids=lambda p: p.name)
def test_kernel_is_whole(folder: Path) -> None:
    name = folder.name
    wanted = [
        folder / "README.md",
        folder / "reference.py",
        folder / "op.py",
        folder / "spec.py",
        ROOT / "bench" / "kernels" / f"test_{name}.py",
    ]
    assert [str(p.relative_to(ROOT)) for p in wanted if not p.is_file()] == []
    assert list((ROOT / "tests" / "kernels" / name).glob("test_*.py"))


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_compiler_is_imported_only_where_its_name_stands(compiler: str) -> None:
    strangers = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "kernels").rglob("*.py")
        if compiler in top_level_imports(path) and not path.stem.startswith(f"{compiler}_")
    ]
    assert strangers == []


def top_level_imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names.add(node.module.partition(".")[0])
    return names
