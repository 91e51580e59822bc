"""The shipped tables are what the published measurements give."""

from pathlib import Path

import numpy as np
import pytest

from effdl.models.mobilenet_v3.space import ofa_mbv3_w12
from effdl.targets.block_model import BlockModel
from effdl.targets.target import shipped_tables_folder
from effdl.workflows.build_reference_tables import build_reference_tables


@pytest.mark.proof
@pytest.mark.reference_data
def test_building_them_again_gives_the_shipped_files(reference_data: Path, tmp_path: Path) -> None:
    made = build_reference_tables(reference_data / "ofa", folder=tmp_path)
    shipped = shipped_tables_folder()
    # Tables measured on machines of our own are not made from published data.
    published = {path.name for path in shipped.iterdir() if not path.name.startswith("cpu-")}
    assert {path.name for path in tmp_path.iterdir()} == published
    assert made.phone_table.read_bytes() == (shipped / made.phone_table.name).read_bytes()
    ops = [op for slot in ofa_mbv3_w12().slots for op in slot.ops]
    for path in shipped.glob("*.json"):
        old, new = BlockModel.read(path), BlockModel.read(tmp_path / path.name)
        assert new.cv_mape_percent == pytest.approx(old.cv_mape_percent, rel=0.02)
        np.testing.assert_allclose(new.predict_op_ms(ops), old.predict_op_ms(ops), atol=0.02)
