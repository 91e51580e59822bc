"""README's table of kernels, written from the benchmarks' JSON.

``python bench/kernels/readme_table.py`` puts it into README; a test holds the two equal.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
FOLDER = ROOT / "docs" / "benchmarks"
BEGIN, END = "<!-- kernels: begin -->", "<!-- kernels: end -->"
COMMAND = "pytest bench/kernels --benchmark-only"
SCHEMA_VERSION = 1
# They only move the bytes: the floor, not a peer.
COPIES = ("copy of the same bytes", "copy_", "clone")
# Variants that are effdl's own; all others are peers.
OWN = ("tvm", "triton", "reference")
COLUMNS = (
    "Kernel",
    "Case",
    "Threads",
    "Time",
    "Throughput",
    "Share of the floor",
    "Fastest peer, its time over ours",
)
_NAME = re.compile(r"(kernels-.+)-(\d{4}-\d{2})\.json")


def newest_files(folder: Path) -> list[Path]:
    """The latest month's file of every machine, by machine."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("kernels-*.json")):
        match = _NAME.fullmatch(path.name)
        if match:
            found[match[1]] = path
    return list(found.values())


def render(folder: Path = FOLDER) -> str:
    """The tables of all machines, without the marks around them."""
    return "\n\n".join(_machine(path) for path in newest_files(folder))


def insert(text: str, tables: str) -> str:
    """The text with the tables between its two marks.

    Raises:
        ValueError: It has not exactly one pair of marks.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"wanted {BEGIN} and {END} once each")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{tables}\n{END}{rest.partition(END)[2]}"


def _machine(path: Path) -> str:
    document = json.loads(path.read_text())
    if document["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"{path} wanted schema version {SCHEMA_VERSION}")
    month = path.stem[-len("2026-01") :]
    lines = [
        f"{document['device']}, {month}, `{COMMAND}`: one run a row, 20th percentiles.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---|---|--:|--:|--:|--:|---|",
        *(_row(row) for row in document["rows"]),
    ]
    return "\n".join(lines)


def _row(row: Mapping[str, Any]) -> str:
    ours = row["p20_ms"][row["ours"]]
    work = row["giga_operations_per_s"]
    throughput = f"{work:.0f} GOP/s" if work else f"{row['gigabytes_per_s']:.1f} GB/s"
    cells = (
        f"{row['kernel']} ({row['ours']})",
        f"{row['case']}, {row['dtype']}",
        str(row["num_threads"]),
        f"{1000 * ours:.0f} us" if ours < 1 else f"{ours:.2f} ms",
        throughput,
        f"{100 * row['floor_ratio']:.0f} %",
        _peer(row, ours),
    )
    return f"| {' | '.join(cells)} |"


def _peer(row: Mapping[str, Any], ours_ms: float) -> str:
    peers = {
        name: ms
        for name, ms in row["p20_ms"].items()
        if name not in (row["ours"], *COPIES) and not name.startswith(OWN)
    }
    if not peers:
        return "none"
    name = min(peers, key=lambda peer: peers[peer])
    return f"{name}: {peers[name] / ours_ms:.2f}"


if __name__ == "__main__":
    README.write_text(insert(README.read_text(), render()))
