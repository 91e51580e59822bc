"""Made checkpoints of every published kind, read into weights files."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from effdl.errors import CorruptFileError, OutputError
from effdl.models.mobilenet_v3.network import MobileNetV3Supernet, load_supernet
from effdl.models.mobilenet_v3.space import MobileNetV3Space, UnitSpec, ofa_mbv3_w10, ofa_mbv3_w12
from effdl.supernet.checkpoint import load_weights
from effdl.workflows.import_checkpoint import fit_supernet, import_checkpoint

NARROW = MobileNetV3Space(
    name="narrow",
    resolutions=(32,),
    units=(
        UnitSpec(out_channels=8, stride=2, squeeze_excite=False, activation="relu"),
        UnitSpec(out_channels=16, stride=2, squeeze_excite=True, activation="hswish"),
    ),
    depths=(1, 2),
    stem_channels=8,
    final_expand_channels=24,
    feature_channels=32,
    num_classes=5,
)
WIDE = replace(NARROW, name="wide", width_mult=2.0)
SPACES = (lambda: NARROW, lambda: WIDE)
run = partial(import_checkpoint, spaces=SPACES)
fit = partial(fit_supernet, source=Path("ofa.pth"), spaces=SPACES)

State = dict[str, Tensor]


def state_of(space: MobileNetV3Space, seed: int = 0) -> State:
    """A state dict in which no two tensors are alike, counters included."""
    torch.manual_seed(seed)
    return {
        name: torch.rand(t.shape) if t.is_floating_point() else torch.randint(1, 999, ())
        for name, t in MobileNetV3Supernet(space, seed=None).state_dict().items()
    }


def undoubled(name: str) -> str:
    return name.replace(".conv.conv.weight", ".conv.weight").replace(".bn.bn.", ".bn.")


def old(name: str) -> str:
    in_block = name.startswith("blocks.")
    return name.replace(".conv.", ".mobile_inverted_conv.", 1) if in_block else name


NAMINGS: dict[str, Callable[[str], str]] = {
    "new": lambda name: name,
    "old": old,
    "undoubled": undoubled,
    "old, undoubled": lambda name: old(undoubled(name)),
    "doubled": lambda name: name.replace("classifier.linear", "classifier.linear.linear"),
    "several processes": lambda name: f"module.{name}",
}


@pytest.mark.parametrize("naming", list(NAMINGS))
def test_every_naming(naming: str) -> None:
    state = state_of(WIDE)
    renamed = {NAMINGS[naming](name): t for name, t in state.items()}
    assert len(renamed) == len(state)
    assert (renamed.keys() == state.keys()) == (naming == "new")
    supernet, missing = fit(renamed)
    assert (supernet.space.name, missing) == ("wide", ())
    assert all(torch.equal(t, state[name]) for name, t in supernet.state_dict().items())


def test_every_tensor_goes_through_the_files(tmp_path: Path) -> None:
    state = state_of(WIDE)
    source, output = tmp_path / "ofa.pth", tmp_path / "ofa.safetensors"
    torch.save({"epoch": 4, "state_dict": {old(name): t for name, t in state.items()}}, source)
    done = run(source, output)
    assert (done.space, done.loaded, done.missing, done.unexpected) == ("wide", len(state), (), ())
    loaded = load_supernet(output, WIDE).state_dict()
    assert all(torch.equal(loaded[name], t) for name, t in state.items())


def test_stage_before_elastic_kernels(tmp_path: Path) -> None:
    state = {name: t for name, t in state_of(NARROW).items() if not name.endswith("_matrix")}
    source, output = tmp_path / "ofa.pth", tmp_path / "ofa.safetensors"
    torch.save({"state_dict": state}, source)
    done = run(source, output)
    assert done.space == "narrow"
    assert len(done.missing) == 8  # two matrices in each of four blocks
    assert all(name.endswith("_matrix") for name in done.missing)
    assert "identities" in done.notes[0]
    supernet = MobileNetV3Supernet(NARROW, seed=None)
    about = load_weights(supernet, output, kind="supernet", space="narrow")
    assert about["notes"]["source"] == "ofa.pth"
    assert "identities" in about["notes"]["remarks"]
    assert torch.equal(supernet.state_dict()[done.missing[0]].diagonal(), torch.ones(25))


def test_without_counters() -> None:
    state = {n: t for n, t in state_of(NARROW).items() if "num_batches" not in n}
    supernet, missing = fit(state)
    assert missing
    assert all(name.endswith("num_batches_tracked") for name in missing)
    assert all(int(supernet.state_dict()[name]) == 0 for name in missing)


def test_half_precision_is_widened() -> None:
    state = {n: t.half() if t.is_floating_point() else t for n, t in state_of(NARROW).items()}
    loaded = fit(state)[0].state_dict()
    assert all(torch.equal(loaded[n], t.to(loaded[n].dtype)) for n, t in state.items())


def without_one_matrix(state: State) -> str:
    del state["blocks.2.conv.depth_conv.conv.7to5_matrix"]
    return r"1 missing: blocks\.2\.conv\.depth_conv\.conv\.7to5_matrix"


def without_statistics(state: State) -> str:
    del state["blocks.1.conv.point_linear.bn.bn.running_var"]
    return r"1 missing: blocks\.1\.conv\.point_linear\.bn\.bn\.running_var"


def with_another(state: State) -> str:
    state["blocks.9.conv.weight"] = torch.zeros(3)
    return r"1 unexpected: blocks\.9\.conv\.weight"


def with_another_shape(state: State) -> str:
    state["classifier.linear.bias"] = torch.zeros(6)
    return r"1 of another shape: classifier\.linear\.bias wanted \[5\], got \[6\]"


def with_nan(state: State) -> str:
    state["first_conv.conv.weight"][0, 0, 0, 0] = float("nan")
    return r"NaN or infinite values: first_conv\.conv\.weight"


def with_infinity(state: State) -> str:
    state["first_conv.bn.running_var"][2] = float("inf")
    return r"NaN or infinite values: first_conv\.bn\.running_var"


def with_integers(state: State) -> str:
    state["first_conv.bn.bias"] = torch.zeros(8, dtype=torch.int32)
    return r"wrong number type: first_conv\.bn\.bias"


def of_something_else(state: State) -> str:
    state.clear()
    state["conv1.weight"] = torch.zeros(64, 3, 7, 7)
    return "is no checkpoint of space narrow.*1 unexpected: conv1.weight"


@pytest.mark.parametrize(
    "spoil",
    [
        without_one_matrix,
        without_statistics,
        with_another,
        with_another_shape,
        with_nan,
        with_infinity,
        with_integers,
        of_something_else,
    ],
)
def test_spoilt_checkpoints(spoil: Callable[[State], str]) -> None:
    state = state_of(NARROW)
    message = spoil(state)
    with pytest.raises(CorruptFileError, match=message):
        fit(state)


def test_refused_checkpoint_leaves_no_output(tmp_path: Path) -> None:
    state = state_of(NARROW)
    message = with_nan(state)
    source = tmp_path / "ofa.pth"
    torch.save({"state_dict": state}, source)
    with pytest.raises(CorruptFileError, match=message):
        run(source, tmp_path / "out.safetensors")
    assert list(tmp_path.iterdir()) == [source]


def test_unwritable_output(tmp_path: Path) -> None:
    torch.save(state_of(NARROW), tmp_path / "ofa.pth")
    with pytest.raises(OutputError):
        run(tmp_path / "ofa.pth", tmp_path / "ofa.pth" / "out.safetensors")


@pytest.mark.parametrize("make", [ofa_mbv3_w10, ofa_mbv3_w12])
def test_published_widths_are_told_apart(make: Callable[[], MobileNetV3Space]) -> None:
    supernet, missing = fit_supernet(state_of(make()), source=Path("ofa.pth"))
    assert (supernet.space.name, missing) == (make().name, ())
