"""Is an ONNX file sound, and does it compute what its metadata say?"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from effdl.errors import ConfigError, CorruptFileError, EffdlError, UnknownNameError
from effdl.export.inspection import Facts, Inspection, inspect_onnx
from effdl.export.metadata import GRAPH_SHA256_KEY, PRECISION_KEY, ModelMetadata, file_sha256
from effdl.export.onnx_export import INPUT_NAME, OPSET_VERSION, OUTPUT_NAME
from effdl.export.parity import BATCH_SIZES, compare_outputs
from effdl.export.threads import one_thread
from effdl.models.mobilenet_v3.space import MobileNetV3Space
from effdl.models.spaces import load_space
from effdl.workflows.export import build_network

__all__ = ["Check", "Verification", "verify_model"]

# Graph optimisations reorder sums; more than this is no rounding.
_OPTIMIZER_TOLERANCE = 1e-4
# On bytes a sum that falls on the other side of a step moves all after it.
_INT8_OPTIMIZER_TOLERANCE = 0.1
_PRECISIONS = ("fp32", "int8")

Status = Literal["passed", "failed", "not applicable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One question asked of a file.

    Attributes:
        name: What was looked at.
        status: How it ended; ``not applicable`` says why in the detail.
        detail: What was found.
    """

    name: str
    status: Status
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The outcome for one file.

    Attributes:
        path: The file.
        checks: Every check, in the order they were made.
    """

    path: Path
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(check.status != "failed" for check in self.checks)

    def to_json(self) -> dict[str, object]:
        """The object of the contract, without ``schema_version``."""
        checks = [{"name": c.name, "status": c.status, "detail": c.detail} for c in self.checks]
        return {"path": str(self.path), "ok": self.ok, "checks": checks}


def verify_model(
    path: Path,
    *,
    weights: Path | None = None,
    timeout_s: float = 120.0,
    find_space: Callable[[str], MobileNetV3Space] = load_space,
) -> Verification:
    """Check an ONNX file; one that effdl wrote is also compared with its network.

    The file is opened in a child process with limits on time and memory. A
    file that effdl did not write gets the checks that make sense for any file.

    Args:
        path: The ONNX file; it is never changed.
        weights: The supernet's weights (safetensors) the file was cut from.
        timeout_s: Seconds after which opening and running the file is given up.
        find_space: Makes a search space of the name in the metadata.

    Raises:
        ConfigError: There is no such file, or weights were given for a file
            that was made without them.
        CorruptFileError: The file is not ONNX, or opening it crashed, took too
            long or too much memory; or the weights are damaged.
    """
    inspection = inspect_onnx(path, batch_sizes=BATCH_SIZES, timeout_s=timeout_s)
    facts = inspection.facts
    metadata: ModelMetadata | None = None
    broken: EffdlError | None = None
    try:
        metadata = ModelMetadata.from_props(facts.metadata)
    except CorruptFileError as error:
        broken = error
    if weights is not None and (metadata is None or not metadata.weights.trained):
        raise ConfigError(
            f"weights have no effect: {path} was not made from a weights file",
            hint="leave out --weights",
        )
    checks = [*_generic_checks(facts)]
    if broken is not None:
        checks.append(_check("metadata", False, broken.message))
    elif metadata is None:
        checks.extend(_foreign_checks(facts))
    else:
        checks.extend(_own_checks(inspection, metadata, weights, find_space))
    return Verification(path=path, checks=tuple(checks))


def _check(name: str, passed: bool, detail: str) -> Check:
    return Check(name=name, status="passed" if passed else "failed", detail=detail)


def _generic_checks(facts: Facts) -> Iterator[Check]:
    external = facts.external_tensors
    where = "all weights stand in the file"
    if external:
        where = f"weights stand in other files: {', '.join(external)}"
    yield _check("one file", not external, where)
    if external:
        return
    yield _check("onnx checker", facts.checker_error is None, facts.checker_error or "valid")
    loads = f"opset {facts.opsets.get('ai.onnx', '?')}, {facts.num_nodes} nodes"
    yield _check("runtime", facts.runtime_error is None, facts.runtime_error or loads)
    if facts.optimizer_gap is None:
        if facts.runtime_error is None:
            why = facts.why_not_run or "nothing ran"
            yield Check(name="optimized as plain", status="not applicable", detail=why)
    else:
        detail = f"graph optimisations change outputs by at most {facts.optimizer_gap:.2g}"
        is_int8 = facts.metadata.get(PRECISION_KEY) == "int8"
        limit = _INT8_OPTIMIZER_TOLERANCE if is_int8 else _OPTIMIZER_TOLERANCE
        passed = facts.optimizer_gap <= limit
        yield _check("optimized as plain", passed, detail)


def _foreign_checks(facts: Facts) -> Iterator[Check]:
    why = "the file carries no effdl metadata"
    for name in ("metadata", "unchanged", "opset", "interface", "outputs"):
        yield Check(name=name, status="not applicable", detail=why)
    found = "none found" if facts.local_path is None else f"found {facts.local_path}"
    yield Check(name="local paths", status="not applicable", detail=f"{why}; {found}")


def _own_checks(
    inspection: Inspection,
    metadata: ModelMetadata,
    weights: Path | None,
    find_space: Callable[[str], MobileNetV3Space],
) -> Iterator[Check]:
    facts = inspection.facts
    try:
        space = find_space(metadata.space)
        config = space.search_space.decode(space.search_space.encode(metadata.config))
    except (UnknownNameError, ConfigError) as error:
        yield _check("metadata", False, error.message)
        return
    said = f"{metadata.space}, {metadata.weights}, {metadata.precision}"
    canonical = config == metadata.config
    fits = canonical and metadata.precision in _PRECISIONS
    yield _check("metadata", fits, said if fits else f"{said}: not canonical, or of no known kind")
    unchanged = facts.metadata.get(GRAPH_SHA256_KEY) == facts.graph_sha256
    detail = "the graph is the one that was written"
    yield _check("unchanged", unchanged, detail if unchanged else "the graph was changed since")
    opsets = ", ".join(f"{domain} {version}" for domain, version in sorted(facts.opsets.items()))
    yield _check("opset", facts.opsets == {"ai.onnx": OPSET_VERSION}, opsets)
    (resolution,) = config.ints("resolution")
    problem = _interface_problem(facts, space, resolution)
    yield _check("interface", problem is None, problem or "image [N, ...] to logits [N, classes]")
    found = facts.local_path
    yield _check("local paths", found is None, "none" if found is None else f"found {found}")
    if metadata.precision == "int8":
        why = "int8 follows its network as closely as effdl export said, not to rounding"
        yield Check(name="outputs", status="not applicable", detail=why)
        return
    if not facts.cases or problem is not None:
        yield _check("outputs", False, "the file could not be run on images of its space")
        return
    yield _outputs_check(inspection, metadata, space, weights)


def _interface_problem(facts: Facts, space: MobileNetV3Space, resolution: int) -> str | None:
    wanted = {
        INPUT_NAME: ("FLOAT", (space.in_channels, resolution, resolution)),
        OUTPUT_NAME: ("FLOAT", (space.num_classes,)),
    }
    values = (*facts.inputs, *facts.outputs)
    got = {v.name: (v.dtype, v.shape[1:]) for v in values}
    batches = {v.shape[0] if v.shape else "none" for v in values}
    if len(values) != 2 or got != wanted:
        return f"wanted {wanted}, got {got}"
    if len(batches) != 1 or not all(isinstance(batch, str) for batch in batches):
        return f"wanted one free batch dimension, got {', '.join(map(str, batches))}"
    return None


@one_thread()
def _outputs_check(
    inspection: Inspection,
    metadata: ModelMetadata,
    space: MobileNetV3Space,
    weights: Path | None,
) -> Check:
    recorded = metadata.weights.sha256
    if recorded is not None:
        if weights is None:
            why = f"the weights were not given: --weights F of SHA-256 {recorded}"
            return Check(name="outputs", status="not applicable", detail=why)
        sha256 = file_sha256(weights)
        if sha256 != recorded:
            detail = f"other weights: wanted SHA-256 {recorded}, got {sha256}"
            return _check("outputs", False, detail)
    network = build_network(space, metadata.config, weights=weights, seed=metadata.weights.seed)
    facts = inspection.facts
    sample_shape = [int(d) for d in facts.inputs[0].shape[1:]]
    agreement = compare_outputs(network, facts.cases, sample_shape, [inspection.outputs])
    batch_sizes = sorted({case.batch_size for case in facts.cases})
    detail = (
        f"differ from PyTorch by at most {agreement.errors.max():.2g} at batch sizes "
        f"{', '.join(map(str, batch_sizes))}"
    )
    return _check("outputs", bool(agreement.excess.max() <= 1.0), detail)
