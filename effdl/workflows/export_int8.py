"""A sub-network as an ONNX file that runs on bytes where those are faster."""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from effdl.errors import ConfigError, UnknownNameError
from effdl.export.batch_norm_folding import fold_batch_norms
from effdl.export.int8_calibration import CalibrationOptions, calibrate
from effdl.export.int8_choice import OperatorChoice, choose_int8_operators, give_up_least_gain
from effdl.export.int8_operators import find_int8_operators
from effdl.export.int8_parity import Int8Parity, compare_int8
from effdl.export.int8_segments import with_batch_size
from effdl.export.metadata import GRAPH_SHA256_KEY, PRECISION_KEY
from effdl.export.onnx_proto import graph_sha256, replace_annotations
from effdl.export.qdq import write_qdq
from effdl.export.threads import one_thread
from effdl.files import require_writable, write_atomically
from effdl.models.mobilenet_v3.space import MobileNetV3Space
from effdl.search.space import SubnetConfig
from effdl.targets.measure.onnxruntime import OnnxRuntime
from effdl.targets.measure.runtime import MeasurementRuntime, measure_on
from effdl.targets.target import load_target
from effdl.targets.timing import QUICK_PROTOCOL, TABLE_PROTOCOL
from effdl.workflows.calibration_images import crop_randomly, find_images, read_centers
from effdl.workflows.export import ExportedSubnet, export_subnet
from effdl.workflows.progress import Progress, no_progress

__all__ = ["ExportedInt8", "Int8Model", "export_int8_subnet", "quantize_model"]

MAX_CALIBRATION_IMAGES = 64
_NUM_MADE = 16
_NUM_COMPARED = 128
_OPERATORS_BUDGET_S, _NETWORK_BUDGET_S = 60.0, 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationSamples:
    """Inputs to calibrate with, and others to compare with.

    Attributes:
        calibration: [N, ...].
        comparison: [M, ...].
        source: What the first are.
        comparison_source: What the second are.
    """

    calibration: NDArray[np.float32]
    comparison: NDArray[np.float32]
    source: str
    comparison_source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Model:
    """A network on bytes where they are faster.

    Attributes:
        model: The graph, with QuantizeLinear and DequantizeLinear.
        operators: What each operator runs on, and why.
        fp32_ms: The float graph's 20th percentile on this machine, in milliseconds.
        int8_ms: The same of this graph.
        parity: How closely it follows the float graph.
    """

    model: onnx.ModelProto
    operators: tuple[OperatorChoice, ...]
    fp32_ms: float
    int8_ms: float
    parity: Int8Parity

    @property
    def num_int8(self) -> int:
        """Operators on bytes."""
        return sum(choice.precision == "int8" for choice in self.operators)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedInt8:
    """An ONNX file on bytes.

    Attributes:
        fp32: The verified float file it was made from (which is gone).
        path: Where it is.
        num_bytes: Its size in bytes.
        num_nodes: Nodes of its graph.
        sha256: Of the file, in hexadecimal.
        int8: The graph, its operators and its figures.
        calibration: What it was calibrated with.
        batch_size: Samples in one run, for the latencies.
        measured_on: The machine whose clock chose the operators.
        is_target: Whether that is what the network was chosen for.
    """

    fp32: ExportedSubnet
    path: Path
    num_bytes: int
    num_nodes: int
    sha256: str
    int8: Int8Model
    calibration: str
    batch_size: int
    measured_on: str
    is_target: bool

    @property
    def weights(self) -> str:
        """``untrained seed=N``, or the weights file's digest."""
        return self.fp32.weights

    @property
    def config(self) -> SubnetConfig:
        """The sub-network, canonical."""
        return self.fp32.config

    def to_json(self) -> dict[str, object]:
        """The object of the contract, without ``schema_version``."""
        latency = {"fp32": self.int8.fp32_ms, "int8": self.int8.int8_ms}
        return {
            **self.fp32.to_json(),
            "path": str(self.path),
            "precision": "int8",
            "bytes": self.num_bytes,
            "num_nodes": self.num_nodes,
            "sha256": self.sha256,
            "parity": {"fp32": self.fp32.parity.to_json(), "int8": self.int8.parity.to_json()},
            "calibration": self.calibration,
            "batch_size": self.batch_size,
            "measured_on": self.measured_on,
            "latency_ms": latency if self.is_target else None,
            "num_int8": self.int8.num_int8,
            "operators": [choice.to_json() for choice in self.int8.operators],
        }


@one_thread()
def export_int8_subnet(
    *,
    space: MobileNetV3Space,
    config: Mapping[str, object],
    out: Path,
    images: Path | None = None,
    weights: Path | None = None,
    seed: int = 0,
    target_info: Mapping[str, str] | None = None,
    progress: Progress = no_progress,
) -> ExportedInt8:
    """Export a sub-network in floats, verify it, and put on bytes what is faster there.

    Every operator is measured both ways on this machine, with the conversions that its
    neighbours need; those slower on bytes stay in floats, and so does more if the whole
    graph is still slower. Then ranges, weights and biases are calibrated.

    Args:
        space: The family of networks.
        config: The sub-network.
        out: The file to write.
        images: Folder of photos to calibrate with; None: made inputs.
        weights: A supernet's weights (safetensors). None: untrained weights.
        seed: Of untrained weights, made inputs and the photos' random parts.
        target_info: What the network was chosen for, for the metadata.
        progress: Told how far it is.

    Raises:
        ConfigError: The configuration is not of the space, there is no such weights file,
            or no photo in the folder.
        CorruptFileError: The weights are damaged or of another space, or a photo is.
        ExportParityError: The float file does not compute what the network computes.
        OutputError: The file cannot be written.
    """
    require_writable(out)
    info = dict(target_info or {})
    search_space = space.search_space
    (resolution,) = search_space.decode(search_space.encode(config)).ints("resolution")
    samples = make_samples(images, (space.in_channels, resolution, resolution), seed=seed)
    with tempfile.TemporaryDirectory(prefix="effdl-export-") as folder:
        exported = export_subnet(
            space=space,
            config=config,
            out=Path(folder) / "model.onnx",
            weights=weights,
            seed=seed,
            target_info=info,
        )
        model = onnx.load(exported.path)
    runtime, batch_size = OnnxRuntime(), int(info.get("batch_size", 1))
    done = quantize_model(
        model, samples, runtime=runtime, batch_size=batch_size, seed=seed, progress=progress
    )
    props = {entry.key: entry.value for entry in model.metadata_props}
    replace_annotations(done.model, {})
    props |= {PRECISION_KEY: "int8", GRAPH_SHA256_KEY: graph_sha256(done.model)}
    replace_annotations(done.model, props)
    data = done.model.SerializeToString(deterministic=True)
    write_atomically(out, data)
    return ExportedInt8(
        fp32=exported,
        path=out,
        num_bytes=len(data),
        num_nodes=len(done.model.graph.node),
        sha256=hashlib.sha256(data).hexdigest(),
        int8=done,
        calibration=samples.source,
        batch_size=batch_size,
        measured_on=runtime.device,
        is_target=_is_this_machine(info.get("target")),
    )


def make_samples(
    images: Path | None, sample_shape: tuple[int, int, int], *, seed: int
) -> CalibrationSamples:
    """Photos to calibrate with and random parts of them to compare with; else made inputs.

    Args:
        images: Folder of photos, or None.
        sample_shape: Channels, height and width of an input.
        seed: Of what is random.

    Raises:
        ConfigError: There is no photo in the folder, or the network takes no photos.
        CorruptFileError: A photo cannot be read.
    """
    rng = np.random.default_rng(seed)
    if images is None:
        made = rng.standard_normal((_NUM_MADE + _NUM_COMPARED, *sample_shape), dtype=np.float32)
        return CalibrationSamples(
            calibration=made[:_NUM_MADE],
            comparison=made[_NUM_MADE:],
            source=f"{_NUM_MADE} made inputs",
            comparison_source="made inputs",
        )
    channels, height, width = sample_shape
    if channels != 3 or height != width:
        raise ConfigError(f"photos have 3 channels and are cut square, got inputs {sample_shape}")
    found = find_images(images, max_num=MAX_CALIBRATION_IMAGES)
    return CalibrationSamples(
        calibration=read_centers(found, height),
        comparison=crop_randomly(found, height, num=_NUM_COMPARED, rng=rng),
        source=f"{len(found)} images",
        comparison_source=f"random parts of the {len(found)} images",
    )


def quantize_model(
    model: onnx.ModelProto,
    samples: CalibrationSamples,
    *,
    runtime: MeasurementRuntime,
    batch_size: int = 1,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Int8Model:
    """Put on bytes what is faster there, and confirm that the whole graph is.

    Args:
        model: The float graph with one input and one output.
        samples: To calibrate and compare with.
        runtime: Runs and times graphs on this machine.
        batch_size: For the clock, where the graph leaves it free.
        seed: Of the places whose inputs are looked at.
        progress: Told how far it is.
    """
    model = fold_batch_norms(model)
    fixed = with_batch_size(model, batch_size)
    operators = find_int8_operators(model)

    def milliseconds(models: Sequence[bytes]) -> list[float]:
        timings = measure_on(
            runtime,
            models,
            protocol=QUICK_PROTOCOL,
            budget_s=_OPERATORS_BUDGET_S,
            progress=progress,
        )
        return [timing.p20_ms for timing in timings]

    choices = choose_int8_operators(fixed, operators, milliseconds)
    plain = fixed.SerializeToString()
    while True:
        names = {choice.name for choice in choices if choice.precision == "int8"}
        on_bytes = [op for op in operators if op.name in names]
        progress(0, 0, "calibrating")
        options = CalibrationOptions(seed=seed)
        parameters = calibrate(model, on_bytes, samples.calibration, options)
        written = write_qdq(model, on_bytes, parameters)
        fp32, int8 = measure_on(
            runtime,
            [plain, with_batch_size(written, batch_size).SerializeToString()],
            protocol=TABLE_PROTOCOL,
            budget_s=_NETWORK_BUDGET_S,
            progress=progress,
        )
        if not names or int8.p20_ms <= fp32.p20_ms:
            break
        choices = give_up_least_gain(choices)
    onnx.checker.check_model(written)
    return Int8Model(
        model=written,
        operators=choices,
        fp32_ms=fp32.p20_ms,
        int8_ms=int8.p20_ms,
        parity=compare_int8(
            model, written, samples.comparison, description=samples.comparison_source
        ),
    )


def _is_this_machine(target: str | None) -> bool:
    """Whether a run's target is this machine's processor; a mere configuration has none."""
    if target is None:
        return True
    try:
        found = load_target(target)
    except UnknownNameError:
        return False
    return found.is_local and found.kind == "cpu"
