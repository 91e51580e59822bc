"""Adding nodes to an exported graph, with names that repeat from run to run."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxscript import ir

__all__ = ["GraphBuilder"]

_SMALL = 4096


class GraphBuilder:
    """Makes nodes and constants in a graph.

    Args:
        graph: The graph.
        prefix: What all new names begin with.
    """

    def __init__(self, graph: ir.Graph, prefix: str) -> None:
        self._graph, self._prefix, self._num_made = graph, prefix, 0
        self._small: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    def constant(self, array: NDArray[Any], what: str) -> ir.Value:
        """An initializer; small equal ones are one."""
        key = (array.dtype.str, array.shape, array.tobytes()) if array.nbytes <= _SMALL else None
        if key is not None and key in self._small:
            return self._small[key]
        name = self._name(what)
        tensor = ir.tensor(np.ascontiguousarray(array), name=name)
        value = ir.Value(
            name=name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(array.shape),
            const_value=tensor,
        )
        self._graph.register_initializer(value)
        if key is not None:
            self._small[key] = value
        return value

    def integers(self, numbers: Sequence[int], what: str) -> ir.Value:
        """An initializer of 64-bit integers."""
        return self.constant(np.array(numbers, np.int64), what)

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        *,
        before: ir.Node,
        like: ir.Value,
        sizes: Sequence[int] | None = None,
        first: int | ir.SymbolicDim | None = None,
        attributes: Sequence[ir.Attr] = (),
        **more: Any,
    ) -> ir.Value:
        """A node with one output.

        Args:
            op_type: Its operator.
            inputs: Its inputs.
            before: The node that it is put before.
            like: Gives the number format, and the first size of the output.
            sizes: All sizes of the output but the first; None: not known.
            first: First size of the output in place of that of ``like``.
            attributes: Attributes taken over from another node.
            **more: Further attributes.

        Returns:
            The output.
        """
        made = ir.node(op_type, inputs, more, name=self._name(op_type.lower()))
        for attribute in attributes:
            made.attributes.add(attribute)
        (output,) = made.outputs
        output.name = made.name
        output.type = like.type
        if sizes is not None and like.shape is not None:
            output.shape = ir.Shape([first or like.shape[0], *sizes])
        self._graph.insert_before(before, made)
        return output

    def _name(self, what: str) -> str:
        self._num_made += 1
        return f"{self._prefix}_{what}_{self._num_made}"
