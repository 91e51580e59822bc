"""A verified ONNX model as a shared library that TVM's runtime loads on a board.

The board's code cannot run here where its processor is another; then the same module
is compiled for this machine as well, and that is what is compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from effdl.errors import BackendUnavailableError, ExportParityError
from effdl.export.parity import TOLERANCE, compare_outputs
from effdl.export.runtime import ParityCase, make_cases
from effdl.targets.measure.tvm_target import TRIPLES, TvmTarget, find_linker, host_triple
from effdl.targets.measure.tvm_worker import Load, TvmWorker

__all__ = ["BATCH_SIZE", "TvmLibrary", "TvmParity", "export_tvm"]

BATCH_SIZE = 1
_NUM_SEEDS = 3
_RUN_LIMIT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TvmParity:
    """How closely TVM's code follows its module.

    Attributes:
        max_relative_error: Largest difference from PyTorch over the largest output
            magnitude, over all cases.
        float32_error: PyTorch's own largest distance from float64, where that had to
            decide; None where all errors are within the tolerance.
        batch_sizes: Batch sizes that were run.
        num_cases: Inputs that were compared.
        worst_case: The input with the largest error.
        checked: What ran: the library itself, or the same module compiled for this
            machine.
    """

    max_relative_error: float
    float32_error: float | None
    batch_sizes: tuple[int, ...]
    num_cases: int
    worst_case: str
    checked: str

    def to_json(self) -> dict[str, object]:
        """The object of the contract."""
        return {
            "max_relative_error": self.max_relative_error,
            "float32_error": self.float32_error,
            "batch_sizes": list(self.batch_sizes),
            "num_cases": self.num_cases,
            "worst_case": self.worst_case,
            "checked": self.checked,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TvmLibrary:
    """A shared library with the function ``main`` for TVM's relax virtual machine.

    Attributes:
        data: The library.
        target: What it was compiled for.
        parity: How closely it follows PyTorch.
    """

    data: bytes
    target: TvmTarget
    parity: TvmParity


def export_tvm(
    model: bytes, module: nn.Module, *, target: TvmTarget, sample_shape: Sequence[int]
) -> TvmLibrary:
    """Compile an exported model with TVM, untuned, for a batch of one, and verify it.

    Args:
        model: The serialised ONNX model of the module.
        module: In evaluation mode; [batch, ...] in, one tensor out.
        target: The board's processor.
        sample_shape: The input's shape without the batch.

    Raises:
        BackendUnavailableError: TVM is not installed, there is nothing to link with, or
            no code of TVM's runs on this machine.
        CorruptFileError: TVM cannot compile the model.
        ExportParityError: The code does not compute what the module computes.
    """
    here = host_triple()
    if here is None:
        raise BackendUnavailableError(
            "TVM's code is verified by running it: wanted this machine to be one of "
            f"{', '.join(TRIPLES)}",
            hint="export on Linux",
        )
    for triple in (target.triple, here):
        find_linker(triple)
    cases = tuple(make_cases((BATCH_SIZE,), _NUM_SEEDS))
    itself = target == TvmTarget(triple=here)
    with TvmWorker() as worker:
        library = worker.compile(model, target, batch_size=BATCH_SIZE)
        runnable = library
        if not itself:
            runnable = worker.compile(model, TvmTarget(triple=here), batch_size=BATCH_SIZE)
        who = "TVM's code"
        load = Load(library=str(runnable))
        handle = worker.ask(load, who=who, limit_s=_RUN_LIMIT_S, error=ExportParityError).handle
        outputs: list[NDArray[np.float32]] = [
            worker.run(handle, [case.make(sample_shape)], who=who, limit_s=_RUN_LIMIT_S)[0]
            for case in cases
        ]
        data = library.read_bytes()
    checked = (
        "the library itself, on this machine"
        if itself
        else f"the same module, compiled for {here}, on this machine"
    )
    parity = _compare(module, cases, sample_shape, outputs, checked)
    return TvmLibrary(data=data, target=target, parity=parity)


def _compare(
    module: nn.Module,
    cases: Sequence[ParityCase],
    sample_shape: Sequence[int],
    outputs: Sequence[NDArray[np.float32]],
    checked: str,
) -> TvmParity:
    agreement = compare_outputs(module, cases, sample_shape, [outputs])
    worst = int(agreement.errors[0].argmax())
    if agreement.excess.max() > 1.0:
        at = int(agreement.excess[0].argmax())
        raise ExportParityError(
            f"TVM's code does not follow PyTorch ({cases[at]}): wanted a relative error of at "
            f"most {TOLERANCE:g}, got {agreement.errors[0, at]:.3g}",
            hint="check the weights for NaN; else export to onnx, which other runtimes run",
        )
    return TvmParity(
        max_relative_error=float(agreement.errors[0, worst]),
        float32_error=agreement.float32_error,
        batch_sizes=(BATCH_SIZE,),
        num_cases=len(cases),
        worst_case=str(cases[worst]),
        checked=checked,
    )
