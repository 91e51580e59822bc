"""Exported shifts: few plain nodes, equal to PyTorch, alive at every batch size."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnxscript import ir
from torch import Tensor, nn

from effdl.export.onnx_export import export_onnx
from effdl.export.shift_pattern import find_shifts
from effdl.export.shift_streams import split_shifted_channels
from effdl.kernels.backend import Backend
from effdl.kernels.temporal_shift.op import temporal_shift
from effdl.models.resnet.network import Bottleneck, ResNet
from effdl.models.tsm.network import TSM, ShiftOptions

T = 4
SIZE = 16


class Shifted(nn.Module):
    """What a test's function makes of frames, with convolutions around it."""

    def __init__(self, channels: int, function: Callable[["Shifted", Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before = nn.Conv2d(3, channels, 3, padding=1)
        self.other = nn.Conv2d(3, channels, 1)
        self.after = nn.Conv2d(channels, 24, 1)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.function = function

    def shift(self, x: Tensor, fold_div: int = 8, **options: Any) -> Tensor:
        shifted = temporal_shift(
            x,
            num_segments=T,
            fold_div=fold_div,
            backend=Backend.REFERENCE,
            **options,
        )
        assert isinstance(shifted, Tensor)
        return shifted

    def forward(self, clips: Tensor) -> Tensor:
        return self.function(self, clips.flatten(0, 1)).unflatten(0, (-1, T))


def small_tsm(**options: Any) -> TSM:
    """Shapes of which some fill blocks of 16 channels and some do not."""
    torch.manual_seed(0)
    backbone = ResNet(Bottleneck, (2, 2, 1, 1), num_classes=5)
    for norm in (m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)):
        assert norm.running_mean is not None
        nn.init.uniform_(norm.running_mean, -0.2, 0.2)
        nn.init.uniform_(norm.bias, -0.2, 0.2)
    form = ShiftOptions(num_segments=T, backend=Backend.REFERENCE, **options)
    return TSM(backbone, form).eval()


def export(module: nn.Module, folder: Path) -> onnx.ModelProto:
    path = folder / "shifted.onnx"
    export_onnx(
        module.eval(), path, example=torch.zeros(2, T, 3, SIZE, SIZE), metadata={"effdl.note": "a"}
    )
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(
    model: onnx.ModelProto, clips: NDArray[np.float32], *, optimize: bool = True
) -> NDArray[np.float32]:
    levels, options = onnxruntime.GraphOptimizationLevel, onnxruntime.SessionOptions()
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return np.asarray(session.run(None, {"image": clips})[0])


def made_clips(num: int, seed: int = 0) -> NDArray[np.float32]:
    shape = (num, T, 3, SIZE, SIZE)
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def assert_follows(module: nn.Module, model: onnx.ModelProto) -> None:
    """At several batch sizes, with the runtime's optimisations and without."""
    for num in (1, 2, 5):
        clips = made_clips(num, seed=num)
        with torch.inference_mode():
            wanted = module(torch.from_numpy(clips)).numpy()
        for optimize in (True, False):
            got = run(model, clips, optimize=optimize)
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@pytest.fixture(scope="module")
def tsm_file(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    return export(small_tsm(), tmp_path_factory.mktemp("tsm"))


def test_tsm_follows_pytorch(tsm_file: onnx.ModelProto) -> None:
    assert_follows(small_tsm(), tsm_file)


def test_tsm_has_few_plain_nodes(tsm_file: onnx.ModelProto) -> None:
    """Six shifts, all of whole blocks of channels."""
    assert [(o.domain, o.version) for o in tsm_file.opset_import] == [("", 20)]
    count = kinds(tsm_file)
    # Beside clips to frames and back (2) and the flattening of features (1): two a shift.
    assert count["Reshape"] == 3 + 2 * 6
    assert count["Pad"] == count["Gather"] == count["AveragePool"] == 6
    # The image network has 1 stem, 3 * 6 and 4 projections. Cut in two is what a shift
    # reads: the stem, and the third convolutions and projections but those of the last stage.
    assert count["Conv"] == (1 + 3 * 6 + 4) + (1 + 5 + 3)
    # One a shift, and one for each stage's projection.
    assert count["Concat"] == 6 + 4
    assert not {"Split", "ScatterND", "Transpose", "Slice"} & set(count)


def test_forms_of_the_shift_export_to_the_same_bytes(
    tsm_file: onnx.ModelProto, tmp_path: Path
) -> None:
    other = export(small_tsm(form="separate"), tmp_path)
    files = [m.SerializeToString(deterministic=True) for m in (other, tsm_file)]
    assert files[0] == files[1]


def test_sizes_are_known_and_the_batch_is_free(tsm_file: onnx.ModelProto) -> None:
    image, logits = tsm_file.graph.input[0], tsm_file.graph.output[0]
    dims = [
        [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (image, logits)
    ]
    assert dims == [["N", T, 3, SIZE, SIZE], ["N", 5]]
    known = {v.name for v in tsm_file.graph.value_info} | {"logits"}
    assert {o for node in tsm_file.graph.node for o in node.output} <= known


def test_output_changes_with_a_neighbouring_frame(tsm_file: onnx.ModelProto) -> None:
    """Older exporters froze the shift to what it was in the example."""
    clips = made_clips(2)
    before = run(tsm_file, clips)
    for frame in range(T):
        changed = clips.copy()
        changed[1, frame] += 0.5
        after = run(tsm_file, changed)
        np.testing.assert_array_equal(after[0], before[0])
        assert np.abs(after[1] - before[1]).max() > 1e-4


def test_shift_of_frames_alone_depends_on_their_neighbours(tmp_path: Path) -> None:
    """The frame that does not change sees the one that does, whichever side it is on."""
    module = Shifted(64, lambda m, x: m.after(m.shift(m.before(x).relu())))
    model = export(module, tmp_path)
    clips = made_clips(1)
    changed = clips.copy()
    changed[0, 1] += 1.0
    differs = np.abs(run(model, changed) - run(model, clips))[0].max((1, 2, 3)) > 1e-4
    assert differs.tolist() == [True, True, True, False]


OPTIONS = [{}, {"direction": "paddle"}, {"causal": True}, {"fold_div": 4}, {"fold_div": 2}]


@pytest.mark.parametrize(
    ("channels", "options"),
    [
        *((64, o) for o in OPTIONS),
        (24, {}),
        (19, {}),
        (19, {"fold_div": 2}),
        (128, {"causal": True}),
    ],
    ids=str,
)
def test_options_and_numbers_of_channels(
    tmp_path: Path, channels: int, options: dict[str, Any]
) -> None:
    module = Shifted(channels, lambda m, x: m.after(m.shift(m.before(x).relu(), **options)))
    model = export(module, tmp_path)
    assert_follows(module, model)
    fold = channels // options.get("fold_div", 8)
    moving = fold if options.get("causal") else 2 * fold
    count = kinds(model)
    assert count["Pad"] == count["Gather"] == 1
    assert count["AveragePool"] == (moving % 16 == 0 and moving < channels)


MADE = {
    "of an image": lambda m, x: m.shift(x, fold_div=3),
    "twice": lambda m, x: m.after(m.shift(m.shift(m.before(x)).relu())),
    "of a sum": lambda m, x: m.after(m.shift((m.before(x) + m.other(x)).relu())),
    "of a clip to six": lambda m, x: m.after(m.shift(nn.functional.relu6(m.before(x)))),
    "of a pooled map": lambda m, x: m.after(m.shift(nn.functional.max_pool2d(m.before(x), 2))),
    "with other users": lambda m, x: (
        lambda h: m.after(m.shift(h)) + m.after(h) + m.depthwise(h).mean(1, keepdim=True)
    )(m.before(x).relu()),
    "with an identity": lambda m, x: (lambda h: h + m.before(m.shift(h)[:, :3]))(m.other(x)),
    "of two folds": lambda m, x: (
        lambda h: m.after(m.shift(h, fold_div=8)) + m.after(m.shift(h, fold_div=4))
    )(m.before(x)),
    "before depthwise": lambda m, x: m.depthwise(m.shift(m.before(x))),
    "after depthwise": lambda m, x: m.after(m.shift(m.depthwise(m.before(x)))),
    "as the output": lambda m, x: m.shift(m.before(x)),
    "of the output": lambda m, x: (lambda h: torch.cat([h, m.after(m.shift(h))], 1))(m.before(x)),
    "plus a number": lambda m, x: m.after(m.shift(m.before(x) + 1.5)),
}


@pytest.mark.parametrize("name", MADE)
def test_shifts_anywhere_in_a_network(tmp_path: Path, name: str) -> None:
    module = Shifted(64, MADE[name])
    model = export(module, tmp_path)
    assert_follows(module, model)
    assert {o for n in model.graph.node for o in n.output} >= {"logits"}


class Frames(nn.Module):
    """A shift that is the whole network, of frames that already are features."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        # The signs keep the exporter from merging the shift's Reshapes with these.
        shifted = temporal_shift(-x.flatten(0, 1), num_segments=T, **self.options)
        return (-shifted).unflatten(0, (-1, T))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_alone_a_shift_is_four_nodes_and_keeps_every_bit(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    module, path = Frames(**options), tmp_path / "frames.onnx"
    export_onnx(module.eval(), path, example=torch.zeros(2, T, 16, 3, 5), metadata={})
    model = onnx.load(path)
    # Clips to frames and back are two further Reshapes.
    assert kinds(model) == {"Neg": 2, "Reshape": 4, "Pad": 1, "Gather": 1}
    x = made_clips(3)[:, :, :1, :15, :16].reshape(3, T, 16, 3, 5)
    x[0, 1, 3], x[1, 2], x[2, 0, 5] = np.nan, np.inf, -0.0
    with torch.inference_mode():
        wanted = module(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(run(model, x).view(np.int32), wanted.view(np.int32))


def test_nan_and_infinity_stay_where_they_belong(tmp_path: Path) -> None:
    """Features go through one convolution in, so that the moving channels stand apart."""
    module = Shifted(64, lambda m, x: m.after(m.shift(m.before(x))))
    with torch.no_grad():
        module.before.weight.zero_()
        module.before.weight[:, :, 1, 1] = 1.0
        assert module.before.bias is not None
        assert module.after.bias is not None
        module.before.bias.zero_()
        # Output o sees channel o alone: 0 to 7 come from the next frame, 8 to 15 from the last.
        module.after.weight.copy_(torch.eye(24, 64)[:, :, None, None])
        module.after.bias.zero_()
    model = export(module, tmp_path)
    assert kinds(model)["AveragePool"] == 1
    for bad in (np.nan, np.inf):
        clips = np.ones((2, T, 3, SIZE, SIZE), np.float32)
        clips[1, 2, 0, 4, 5] = bad
        with torch.inference_mode():
            # PyTorch multiplies by the zeros of the identity, too: where it is finite, we are.
            wanted = torch.isfinite(module(torch.from_numpy(clips))).numpy()
        np.testing.assert_array_equal(np.isfinite(run(model, clips)), wanted)
        assert not wanted.all()


def test_graphs_without_shifts_are_left_alone(tmp_path: Path) -> None:
    module = Shifted(16, lambda m, x: m.after(m.before(x)))
    model = ir.from_proto(export(module, tmp_path))
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert split_shifted_channels(model) == 0
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def exported_as_is(module: nn.Module) -> ir.Model:
    """Before the rewrite: what PyTorch's exporter makes of the operator."""
    program = torch.onnx.export(
        module.eval(),
        (torch.zeros(2, T, 3, SIZE, SIZE),),
        dynamo=True,
        opset_version=20,
        dynamic_shapes=({0: torch.export.Dim("N")},),
        verbose=False,
    )
    assert program is not None
    return program.model


@pytest.mark.filterwarnings("ignore")
def test_pattern_of_the_exporter_is_found() -> None:
    module = Shifted(64, lambda m, x: m.after(m.shift(m.before(x), fold_div=5)))
    (shift,) = find_shifts(exported_as_is(module).graph)
    assert (shift.num_segments, shift.channels, shift.sizes) == (T, 64, (SIZE, SIZE))
    assert shift.moves == ((0, 12, 1), (12, 12, -1))


@pytest.mark.filterwarnings("ignore")
def test_what_is_not_quite_a_shift_is_not_found() -> None:
    def two_frames_on(_: Shifted, x: Tensor) -> Tensor:
        frames = x.unflatten(0, (-1, T))
        a, b = frames.split([1, 2], dim=2)
        moved = nn.functional.pad(a, (0, 0, 0, 0, 0, 0, -2, 2))
        return torch.cat([moved, b], 2).flatten(0, 1)

    def with_ones(_: Shifted, x: Tensor) -> Tensor:
        frames = x.unflatten(0, (-1, T))
        a, b = frames.split([1, 2], dim=2)
        moved = nn.functional.pad(a, (0, 0, 0, 0, 0, 0, -1, 1))
        return torch.cat([b, moved], 2).flatten(0, 1)

    for function in (two_frames_on, with_ones):
        assert find_shifts(exported_as_is(Shifted(8, function)).graph) == []
