"""How long the command line takes to start: `effdl --help` within 150 ms, process and all."""

import subprocess
import sys

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

LIMIT_S = 0.150


@pytest.mark.parametrize("line", ["--help", "--version", "search --help"])
def test_startup(benchmark: BenchmarkFixture, line: str) -> None:
    command = [sys.executable, "-m", "effdl.cli", *line.split()]

    def start() -> None:
        subprocess.run(command, stdout=subprocess.DEVNULL, timeout=30, check=True)

    benchmark.pedantic(start, rounds=15, warmup_rounds=2)
    if benchmark.stats is not None:
        assert benchmark.stats["median"] <= LIMIT_S
