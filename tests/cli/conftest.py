"""What the tests of the command line share: running it, and a made target."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from effdl.cli.main import effdl
from effdl.models.mobilenet_v3.space import ofa_mbv3_w10

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "cli.md"

Invoke = Callable[..., Result]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def invoke() -> Invoke:
    """Runs the program in this process; arguments may be anything with a text form."""

    def call(*args: object) -> Result:
        return CliRunner().invoke(effdl, [str(arg) for arg in args], prog_name="effdl")

    return call


@pytest.fixture
def invoke_json(invoke: Invoke) -> Callable[..., dict[str, Any]]:
    """Runs a verb that succeeds, and reads the one JSON object of its stdout."""

    def call(*args: object) -> dict[str, Any]:
        result = invoke(*args, "--format", "json")
        assert result.exit_code == 0, result.stderr
        value = json.loads(result.stdout)
        assert value["schema_version"] == 1
        return value

    return call


@pytest.fixture(scope="session")
def run() -> Run:
    """Runs the program as a process of its own."""

    def call(*args: object, cwd: Path | None = None, **environment: str) -> Any:
        return subprocess.run(
            [sys.executable, "-m", "effdl.cli", *map(str, args)],
            capture_output=True,
            text=True,
            timeout=300,
            cwd=cwd,
            env={**os.environ, **environment},
            check=False,
        )

    return call


@pytest.fixture(scope="session")
def ofa_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one OFA table: every operator of width 1.0 at 224 px, times by MACs."""
    folder = tmp_path_factory.mktemp("made-phone")
    space = ofa_mbv3_w10().with_resolutions([224])
    rows = {
        op.key: {"count": 10, "mean": 0.01 + op.macs * 1e-7, "std": 0.001}
        for slot in space.slots
        for op in slot.ops
    }
    (folder / "224_lookup_table.yaml").write_text(yaml.safe_dump(rows))
    return folder


@pytest.fixture
def made_target(ofa_tables: Path, invoke: Invoke) -> str:
    """The name of a target of the user's own that knows space ofa-mbv3-w1.0."""
    result = invoke("table", "import", ofa_tables, "--name", "made-phone", "--kind", "phone")
    assert result.exit_code == 0, result.stderr
    return "made-phone"


@pytest.fixture(scope="session")
def documented_keys() -> Callable[..., set[str]]:
    """The JSON keys that the reference page gives a verb, after some words."""

    def keys(verb: str, words: str = "JSON: ") -> set[str]:
        section = PAGE.read_text().partition(f"## `{verb}`\n")[2].partition("\n## ")[0]
        paragraph = section.partition(words)[2].partition("\n\n")[0]
        # What stands in parentheses or after the first full stop describes a member.
        listed = re.sub(r"\(.*?\)", "", paragraph, flags=re.DOTALL).partition(".")[0]
        return set(re.findall(r"`(\w+)`", listed))

    return keys
