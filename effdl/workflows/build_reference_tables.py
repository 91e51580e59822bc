"""Makes the shipped tables and fitted models from the published measurements."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from effdl.data.ofa_latency import read_measured_networks
from effdl.models.mobilenet_v3.space import ofa_mbv3_w12
from effdl.targets.block_model import BlockModel
from effdl.targets.latency_model import table_path
from effdl.targets.latency_table import TableHeader
from effdl.targets.ofa_yaml import read_ofa_folder
from effdl.targets.target import load_target, shipped_tables_folder
from effdl.workflows.fit_target import fit_model

__all__ = ["GPU_COLUMNS", "ReferenceTables", "build_reference_tables"]

GPU_COLUMNS: Mapping[str, tuple[str, int]] = {
    "titan_rtx_1_ms": ("gpu-titan-rtx", 1),
    "titan_rtx_32_ms": ("gpu-titan-rtx", 32),
    "titan_rtx_64_ms": ("gpu-titan-rtx", 64),
    "v100_1_ms": ("gpu-v100", 1),
    "v100_64_ms": ("gpu-v100", 64),
    "2080ti_32_ms": ("gpu-2080ti", 32),
    "2080ti_64_ms": ("gpu-2080ti", 64),
    "titan_xp_1_ms": ("gpu-titan-xp", 1),
}
"""Target and batch size of each column of the published latencies."""

_PHONE = "mobile-note10"
_PHONE_ORIGIN = "github.com/gatech-sysml/CompOFA, tables of Once-for-All (width 1.2)"
_GPU_ORIGIN = "github.com/HayeonLee/HELP, data/ofa (width presumed 1.2)"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceTables:
    """What was made.

    Attributes:
        phone_table: The measured table's file.
        gpu_models: The fitted models by column of the published latencies.
    """

    phone_table: Path
    gpu_models: Mapping[str, BlockModel]


def build_reference_tables(
    published: Path, *, folder: Path | None = None, seed: int = 0
) -> ReferenceTables:
    """Write the shipped tables: the Note10's and a fitted model for each GPU column.

    Args:
        published: Folder with ``note10/*_lookup_table.yaml`` and
            ``measured_gpu_latency.csv``.
        folder: Where to write; None: where effdl's shipped tables lie.
        seed: Of the fits and their cross-validation.

    Raises:
        ConfigError: A file cannot be opened.
        CorruptFileError: A file is malformed.
        OutputError: A table cannot be written.
    """
    folder = shipped_tables_folder() if folder is None else folder
    phone = load_target(_PHONE)
    header = TableHeader(
        target=phone.name,
        device=phone.device,
        batch_size=1,
        runtime=phone.runtime,
        statistic="mean",
        origin=_PHONE_ORIGIN,
        licence="Apache-2.0",
    )
    phone_path = table_path(folder, phone.name, 1, fitted=False)
    read_ofa_folder(published / "note10", header).write(phone_path)

    csv_path = published / "measured_gpu_latency.csv"
    networks = read_measured_networks(csv_path, latency_columns=tuple(GPU_COLUMNS))
    models = {}
    for i, (column, (name, batch_size)) in enumerate(GPU_COLUMNS.items()):
        models[column] = fit_model(
            load_target(name),
            ofa_mbv3_w12(),
            networks,
            [network.latencies_ms[i] for network in networks],
            batch_size=batch_size,
            origin=_GPU_ORIGIN,
            licence="MIT",
            path=csv_path,
            seed=seed,
        )
        models[column].write(table_path(folder, name, batch_size, fitted=True))
    return ReferenceTables(phone_table=phone_path, gpu_models=models)
