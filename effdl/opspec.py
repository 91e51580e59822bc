"""What a latency table and a cost model need to know of an operator.

An `OpSpec` is one operator at one size. A `Slot` is one position of a network
together with every operator that a search may put there. Sums over slots give
parameters, MACs and latencies of whole populations without building a network.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["OpSpec", "Slot"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpSpec:
    """One operator at one size.

    Attributes:
        key: Identity in a latency table. Two operators with equal keys are
            the same computation.
        num_params: Trainable parameters.
        macs: Multiply-accumulate operations for one sample.
        bytes_moved: Bytes read and written for one sample in float32, if
            every layer reads its inputs and weights from memory once.
        peak_memory_bytes: Largest float32 activation memory alive at once
            for one sample while the operator runs.
        features: What a fitted latency model reads, such as
            ``pointwise_macs``, ``depthwise_macs``, ``activation_elements``.
        build: Makes the operator as an ONNX model (serialised bytes) for a
            given batch size, with made weights.
    """

    key: str
    num_params: int
    macs: int
    bytes_moved: int
    peak_memory_bytes: int
    features: Mapping[str, float]
    build: Callable[[int], bytes]

    @property
    def flops(self) -> int:
        """Floating-point operations for one sample: two for each MAC."""
        return 2 * self.macs


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One position of a network and the operators that can stand there.

    Attributes:
        name: Where it is, such as ``"unit2.block3"``.
        dimensions: Indices of the search dimensions that choose the operator.
        ops: Every operator, in C order over the choices of ``dimensions``.
        gate: ``(dimension, minimum choice index)``: the slot is empty while
            that dimension's choice index is below the minimum. None: always
            present.
    """

    name: str
    dimensions: tuple[int, ...]
    ops: tuple[OpSpec, ...]
    gate: tuple[int, int] | None = None
