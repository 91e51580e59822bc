"""Does an exported file compute what the module computes?

Every export is compared with PyTorch on random, extreme and zero inputs at
several batch sizes, with ONNX Runtime's graph optimisations on and off: an error
without them is the exporter's, an error only with them is the runtime's.

Squeeze-excite multiplies activations by activations, so an untrained network
can amplify float32 rounding far beyond the tolerance, on inputs outside the
usual range most of all. Where a kind of input exceeds the tolerance, the
network in float64 is the arbiter: the file must then be as near to it as
PyTorch in float32 is, to a factor of ten.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from effdl.errors import ExportParityError
from effdl.export.runtime import (
    RUNTIME_ERRORS,
    ParityCase,
    make_cases,
    open_session,
    relative_error,
    run,
)

__all__ = ["BATCH_SIZES", "TOLERANCE", "Agreement", "Parity", "check_parity", "compare_outputs"]

BATCH_SIZES = (1, 2, 5)
# Of the largest output magnitude, in float32.
TOLERANCE = 1e-5
# Largest ratio seen between ONNX Runtime's and PyTorch's distance from float64, over 10
# untrained sub-networks with inputs up to +-3: 4.3, the worst of each over a kind of input.
_ROUNDING_FACTOR = 10.0
# A network that loses more than this to rounding cannot be verified.
_MAX_ROUNDING = 1e-2


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How closely outputs follow a module.

    Attributes:
        errors: Largest difference from PyTorch over the largest output
            magnitude, for each run and case [num_runs, num_cases].
        excess: Error over what is allowed [num_runs, num_cases]; all at most
            1 where the outputs agree.
        float32_error: Largest distance of PyTorch in float32 from float64 over
            the cases that float64 had to decide, or None.
    """

    errors: NDArray[np.float64]
    excess: NDArray[np.float64]
    float32_error: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """How closely a file follows its module.

    Attributes:
        max_relative_error: Largest difference from PyTorch over the largest
            output magnitude, over all cases, as ONNX Runtime runs the file.
        max_relative_error_unoptimized: The same with graph optimisations off.
        float32_error: PyTorch's own largest distance from float64, where that
            had to decide; None where all errors are within the tolerance.
        batch_sizes: Batch sizes that were run.
        num_cases: Inputs that were compared.
        worst_case: The input with the largest error.
    """

    max_relative_error: float
    max_relative_error_unoptimized: float
    float32_error: float | None
    batch_sizes: tuple[int, ...]
    num_cases: int
    worst_case: str

    def to_json(self) -> dict[str, object]:
        """The object of the contract."""
        return {
            "max_relative_error": self.max_relative_error,
            "max_relative_error_unoptimized": self.max_relative_error_unoptimized,
            "float32_error": self.float32_error,
            "batch_sizes": list(self.batch_sizes),
            "num_cases": self.num_cases,
            "worst_case": self.worst_case,
        }


def check_parity(
    module: nn.Module,
    path: Path,
    *,
    batch_sizes: tuple[int, ...] = BATCH_SIZES,
    seeds: int = 3,
) -> Parity:
    """Compare a file in ONNX Runtime with the module it came from.

    Args:
        module: In evaluation mode; [batch, ...] in, one tensor out.
        path: The ONNX file; only its first dimension may be free.
        batch_sizes: Batch sizes to run.
        seeds: Draws of random and extreme inputs at each batch size.

    Raises:
        ExportParityError: The file does not load or run, or an output is not
            finite or differs by more than `TOLERANCE` and more than rounding
            explains; the worst case is named, and whether exporter or runtime
            is at fault.
    """
    num_threads = torch.get_num_threads()
    cases = tuple(make_cases(batch_sizes, seeds))
    try:
        sessions = [open_session(path, optimize=o, num_threads=num_threads) for o in (True, False)]
        sample_shape = sessions[0].get_inputs()[0].shape[1:]
        runs = [[run(s, case.make(sample_shape)) for case in cases] for s in sessions]
    except RUNTIME_ERRORS as error:
        raise ExportParityError(f"ONNX Runtime cannot run the exported file: {error}") from error
    agreement = compare_outputs(module, cases, sample_shape, runs)
    if agreement.excess.max() > 1.0:
        raise ExportParityError(
            _complaint(cases, agreement),
            hint="check the weights for NaN; else report the network and what effdl doctor prints",
        )
    return Parity(
        max_relative_error=float(agreement.errors[0].max()),
        max_relative_error_unoptimized=float(agreement.errors[1].max()),
        float32_error=agreement.float32_error,
        batch_sizes=batch_sizes,
        num_cases=len(cases),
        worst_case=str(cases[int(agreement.errors.max(axis=0).argmax())]),
    )


def compare_outputs(
    module: nn.Module,
    cases: Sequence[ParityCase],
    sample_shape: Sequence[int],
    runs: Sequence[Sequence[NDArray[np.float32]]],
) -> Agreement:
    """Compare outputs of any runtime with a module.

    Args:
        module: In evaluation mode; [batch, ...] in, one tensor out.
        cases: The inputs.
        sample_shape: Their shape without the batch.
        runs: For each run, the output of every case.
    """
    wanted = [_run_module(module, case.make(sample_shape)) for case in cases]
    errors = np.array(
        [[relative_error(*pair) for pair in zip(r, wanted, strict=True)] for r in runs]
    )
    excess = errors / TOLERANCE
    roundings = []
    for kind in dict.fromkeys(case.kind for case in cases):
        members = [i for i, case in enumerate(cases) if case.kind == kind]
        if not TOLERANCE < errors[:, members].max() < np.inf:
            continue
        exact = _run_exactly(module, [cases[i].make(sample_shape) for i in members])
        rounding = max(relative_error(wanted[i], e) for i, e in zip(members, exact, strict=True))
        roundings.append(rounding)
        if rounding <= _MAX_ROUNDING:
            allowed = max(TOLERANCE, _ROUNDING_FACTOR * rounding)
            for i, e in zip(members, exact, strict=True):
                excess[:, i] = [relative_error(r[i], e) / allowed for r in runs]
    return Agreement(errors=errors, excess=excess, float32_error=max(roundings, default=None))


def _run_module(module: nn.Module, image: NDArray[np.floating]) -> NDArray[np.floating]:
    with torch.inference_mode():
        return module(torch.from_numpy(image)).numpy()


def _run_exactly(
    module: nn.Module, images: Sequence[NDArray[np.float32]]
) -> list[NDArray[np.floating]]:
    """Outputs of the module in float64."""
    exact = copy.deepcopy(module).double()
    return [_run_module(exact, image.astype(np.float64)) for image in images]


def _complaint(cases: Sequence[ParityCase], agreement: Agreement) -> str:
    worst = int(agreement.excess.max(axis=0).argmax())
    error, plain_error = agreement.errors[:, worst]
    at_fault = "the export" if agreement.excess[1].max() > 1.0 else "the runtime's optimisation"
    return (
        f"the exported file does not follow PyTorch ({cases[worst]}): wanted a relative error of "
        f"at most {TOLERANCE:g}, got {error:.3g}, and {plain_error:.3g} with graph optimisations "
        f"off, so {at_fault} is at fault"
    )
