"""A sub-network on bytes, from photos and from made inputs, chosen by the real clock."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from effdl.errors import ConfigError, CorruptFileError
from effdl.models.mobilenet_v3.space import MobileNetV3Space
from effdl.search.space import SubnetConfig
from effdl.workflows.calibration_images import crop_randomly, find_images, read_centers
from effdl.workflows.export_int8 import ExportedInt8, export_int8_subnet, make_samples
from effdl.workflows.verify import verify_model

RESOLUTION = 32


def write_photos(folder: Path, num: int) -> Path:
    """Smooth made photos of different shapes."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(num):
        coarse = rng.integers(0, 256, (4, 5, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((60 + i, 90 - i)).save(folder / f"{i:03}.png")
    return folder


@pytest.fixture(scope="module")
def exported(
    tmp_path_factory: pytest.TempPathFactory,
    small_space: MobileNetV3Space,
    small_config: SubnetConfig,
) -> ExportedInt8:
    """The small configuration on bytes, calibrated with photos."""
    folder = tmp_path_factory.mktemp("int8")
    return export_int8_subnet(
        space=small_space,
        config=small_config,
        out=folder / "int8.onnx",
        images=write_photos(folder / "photos", 6),
        seed=3,
    )


def test_the_file_is_what_the_result_says(exported: ExportedInt8) -> None:
    data, facts = exported.path.read_bytes(), exported.to_json()
    model = onnx.load_model_from_string(data)
    assert facts["bytes"] == len(data)
    assert facts["num_nodes"] == len(model.graph.node)
    assert facts["calibration"] == "6 images"
    props = onnxruntime.InferenceSession(data).get_modelmeta().custom_metadata_map
    assert props["effdl.precision"] == "int8"
    assert props["effdl.weights"] == "untrained seed=3"
    num_quantized = sum(n.op_type == "QuantizeLinear" for n in model.graph.node)
    assert (num_quantized > 0) == (exported.int8.num_int8 > 0)


def test_no_operator_on_bytes_measured_slower(exported: ExportedInt8) -> None:
    assert len(exported.int8.operators) > 5
    for choice in exported.int8.operators:
        if choice.precision == "int8":
            assert choice.int8_ms <= choice.fp32_ms
        else:
            assert choice.reason
    if exported.int8.num_int8:
        assert exported.int8.int8_ms <= exported.int8.fp32_ms


def test_it_follows_the_float_network(exported: ExportedInt8) -> None:
    assert exported.int8.parity.sqnr_db > 20
    assert exported.int8.parity.num_samples >= 64


def test_verify_knows_it(
    exported: ExportedInt8, find_small_space: Callable[[str], MobileNetV3Space]
) -> None:
    found = verify_model(exported.path, find_space=find_small_space)
    by_name = {check.name: check.status for check in found.checks}
    assert found.ok, found
    assert by_name["outputs"] == "not applicable"
    assert by_name["unchanged"] == by_name["metadata"] == "passed"


def test_latencies_are_only_of_the_target(exported: ExportedInt8) -> None:
    here, there = exported.to_json(), replace(exported, is_target=False).to_json()
    assert here["latency_ms"] == {"fp32": exported.int8.fp32_ms, "int8": exported.int8.int8_ms}
    assert there["latency_ms"] is None
    assert here["measured_on"]


def test_photos_are_found_in_order_and_spread(tmp_path: Path) -> None:
    write_photos(tmp_path / "below", 9)
    (tmp_path / "notes.txt").write_text("no photo")
    found = find_images(tmp_path, max_num=100)
    assert [p.stem for p in found] == [f"{i:03}" for i in range(9)]
    assert [p.stem for p in find_images(tmp_path, max_num=3)] == ["000", "004", "008"]


def test_photos_are_cut_and_normalised(tmp_path: Path) -> None:
    Image.new("RGB", (64, 128), (255, 0, 51)).save(tmp_path / "red.png")
    (image,) = read_centers(find_images(tmp_path, max_num=1), RESOLUTION)
    assert image.shape == (3, RESOLUTION, RESOLUTION)
    wanted = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    np.testing.assert_allclose(image[:, 5, 7], wanted, rtol=1e-5)
    assert np.ptp(image, axis=(1, 2)).max() < 1e-6
    gray = Image.fromarray(np.arange(100, dtype=np.uint8)[None].repeat(50, 0))
    gray.save(tmp_path / "ramp.png")
    (ramp,) = read_centers([tmp_path / "ramp.png"], RESOLUTION)
    assert (np.diff(ramp[0], axis=1) > 0).all()


def test_random_parts_are_the_same_again(tmp_path: Path) -> None:
    paths = find_images(write_photos(tmp_path, 3), max_num=3)
    first, second, other = (
        crop_randomly(paths, 16, num=7, rng=np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    assert first.shape == (7, 3, 16, 16)
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - other).max() > 0.1


def test_what_is_no_photo(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="got none"):
        make_samples(tmp_path, (3, 16, 16), seed=0)
    with pytest.raises(ConfigError, match="no such folder"):
        make_samples(tmp_path / "absent", (3, 16, 16), seed=0)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG, but not really")
    with pytest.raises(CorruptFileError, match="broken"):
        make_samples(tmp_path, (3, 16, 16), seed=0)
    with pytest.raises(ConfigError, match="3 channels"):
        make_samples(write_photos(tmp_path / "p", 1), (1, 16, 16), seed=0)


def test_made_inputs_are_not_compared_with_themselves() -> None:
    made = make_samples(None, (3, 8, 8), seed=0)
    assert "made" in made.source
    assert not (made.calibration[:, None] == made.comparison[None]).all(axis=(2, 3, 4)).any()


def test_a_refused_output_writes_nothing(
    small_space: MobileNetV3Space, small_config: SubnetConfig, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError):
        export_int8_subnet(
            space=small_space, config=small_config, out=tmp_path / "m.onnx", images=tmp_path
        )
    assert list(tmp_path.iterdir()) == []
