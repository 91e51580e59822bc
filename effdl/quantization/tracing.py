"""A network as a graph of operations, with the shape of every tensor."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate, map_arg

from effdl.errors import ConfigError
from effdl.kernels.validation import format_shape

__all__ = ["shape_of", "trace"]


def trace(
    module: nn.Module, input_shape: Sequence[int], *, is_leaf: Callable[[nn.Module], bool]
) -> fx.GraphModule:
    """Follow one sample through a network.

    The network may look at shapes, which are those of this sample, but not at numbers.

    Args:
        module: Takes one floating-point tensor.
        input_shape: Of one sample, without the batch.
        is_leaf: Which modules stand in the graph as one operation.

    Raises:
        ConfigError: It does not take the shape, or its path depends on numbers.
    """
    reference = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    x = torch.zeros(1, *input_shape, dtype=reference.dtype, device=reference.device)
    name = type(module).__name__
    try:
        with torch.no_grad():
            module(x)
    except (RuntimeError, ConfigError, ValueError) as error:
        raise ConfigError(
            f"{name}: does not take an input of shape {format_shape(x.shape)}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    try:
        return fx.GraphModule(module, _Tracer(x, is_leaf).trace(module))
    except Exception as error:  # whatever the network's own code raises on stand-ins
        raise ConfigError(
            f"{name}: cannot be traced: {error}",
            hint="a bound needs a network of one tensor whose path does not depend on numbers",
        ) from error


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Of the tensor that an operation makes, with the batch."""
    value = node.meta["value"]
    if not isinstance(value, Tensor):
        raise ConfigError(f"{node.name}: wanted a tensor, got {type(value).__name__}")
    return tuple(value.shape)


class _ShapedProxy(fx.Proxy):
    """A stand-in for a tensor that knows its shape."""

    @property
    def value(self) -> Any:
        return self.node.meta["value"]

    def __getattr__(self, k: str) -> Any:
        if k in ("shape", "ndim", "dtype", "device"):
            return getattr(self.value, k)
        return super().__getattr__(k)

    # Without these Python takes `y += x` for `y = y + x`, and other names of y's tensor
    # would stand for what it was.
    def __iadd__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})

    def dim(self) -> int:
        return self.value.dim()

    def numel(self) -> int:
        return self.value.numel()

    def size(self, dim: int | None = None) -> Any:
        return self.value.size() if dim is None else self.value.size(dim)


class _Tracer(fx.Tracer):
    def __init__(self, x: Tensor, is_leaf: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self._x = x
        self._is_leaf = is_leaf
        self._is_running = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self._is_leaf(m) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _ShapedProxy(node, self)

    def create_node(
        self,
        kind: str,
        target: Any,
        args: Any,
        kwargs: Any,
        name: str | None = None,
        type_expr: Any = None,
    ) -> fx.Node:
        node = super().create_node(kind, target, args, kwargs, name, type_expr)
        if kind != "output":
            self._is_running = True
            try:
                with torch.no_grad():
                    node.meta["value"] = self._run(node)
            finally:
                self._is_running = False
        return node

    # While it traces, fx takes every call of a module and every look at a parameter for
    # one of the network's own.
    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._is_running:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        if self._is_running:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def _run(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self._x.clone()
        args, kwargs = map_arg((node.args, node.kwargs), lambda n: n.meta["value"])
        if node.op == "get_attr":
            value: Any = self.root
            for part in str(node.target).split("."):
                value = getattr(value, part)
            return value
        if node.op == "call_module":
            # In place would change what other operations have made.
            return self.root.get_submodule(str(node.target))(*_copies(args), **kwargs)
        if node.op == "call_method":
            first, *others = _copies(args)
            return getattr(first, str(node.target))(*others, **kwargs)
        assert callable(node.target)
        return node.target(*_copies(args), **kwargs)


def _copies(args: Any) -> Any:
    return map_aggregate(args, lambda a: a.clone() if isinstance(a, Tensor) else a)
