"""Trace a function of tensors to a flat list of operations, and run that list without the function.

A function of one task that is vmapped and differentiated passes every operation through several layers of Python:
the module, ``vmap``, ``grad`` and autograd. For small networks these layers take most of the time. A trace records the
operations below all of them, so replaying it computes the very same numbers. The list is run by TorchScript's
interpreter, which calls the operations without Python; where that can't run it, Python does.
"""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from kshot.inner.guards import Untraceable

aten = torch.ops.aten
_UNCHANGED = (aten.alias.default, aten.view.default, aten._unsafe_view.default, aten.expand.default)
Flat = Callable[..., Sequence[Tensor]]


def trace(function: Flat, inputs: Sequence[Tensor], outer: Sequence[Tensor] = ()) -> fx.GraphModule:
    """Return a graph of the operations that the function does on these inputs.

    Args:
        function: a function of tensors that returns a sequence of tensors. What it does may not depend on their
            numbers, and it may have no effect beside its result.
        inputs: the tensors that it is called with.
        outer: other tensors that it may use, whose numbers change between calls.

    Returns:
        A graph whose inputs are ``inputs`` and then ``outer``, and whose outputs are those of the function.

    Raises:
        Untraceable: the function decides by the numbers in a tensor, or does an operation whose result has a shape
            that depends on numbers.

    Example:
        >>> graph = trace(lambda a, b: [a + b, a * b], [torch.ones(2), torch.ones(2)])
        >>> graph(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
        [tensor([4., 6.]), tensor([3., 8.])]
    """
    try:
        graph = make_fx(lambda *tensors: list(function(*tensors)))(*inputs)
    except Untraceable:
        raise
    except Exception as error:
        raise Untraceable(_first_line(error)) from error
    _take_in(graph, outer)
    for node in graph.graph.nodes:
        tags = getattr(node.target, "tags", ())
        if torch.Tag.data_dependent_output in tags or torch.Tag.dynamic_output_shape in tags:
            raise Untraceable(f"{node.target} decides by the numbers in a tensor")
    _simplify(graph)
    return graph


def interpreter(graph: fx.GraphModule) -> Callable[..., Sequence[Tensor]]:
    """Return a function that runs the graph: by TorchScript if that is possible, otherwise by Python.

    Example:
        >>> run = interpreter(trace(lambda a: [2 * a], [torch.ones(2)]))
        >>> run(torch.tensor([1.0, 2.0]))
        [tensor([2., 4.])]
    """
    scripted = fx.GraphModule(graph, copy.deepcopy(graph.graph))
    for node in scripted.graph.nodes:
        # TorchScript knows operators by their name and finds the overload by the arguments.
        if isinstance(node.target, torch._ops.OpOverload):
            node.target = node.target.overloadpacket
        node.kwargs = {k: str(v) if isinstance(v, torch.device) else v for k, v in node.kwargs.items()}
    try:
        scripted.recompile()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that TorchScript is no longer developed
            return torch.jit.script(scripted)
    except Exception:  # an operator or a type of argument that it does not know
        return graph


def _take_in(graph: fx.GraphModule, outer: Sequence[Tensor]) -> None:
    """Turn the constants of the graph that are ``outer`` tensors into inputs, which follow the other inputs."""
    nodes = graph.graph.nodes
    last = [node for node in nodes if node.op == "placeholder"][-1]
    places = {}
    for i, tensor in enumerate(outer):
        with graph.graph.inserting_after(last):
            last = places[id(tensor)] = graph.graph.placeholder(f"outer_{i}")
    for node in list(nodes):
        if node.op == "get_attr":
            constant = operator.attrgetter(node.target)(graph)
            if (place := places.get(id(constant))) is not None:
                node.replace_all_uses_with(place)
                graph.graph.erase_node(node)
            elif isinstance(constant, Tensor) and constant.requires_grad:
                raise Untraceable("it uses a parameter that belongs neither to its state nor to its object")
    graph.recompile()


def _simplify(graph: fx.GraphModule) -> None:
    """Remove operations whose result nobody uses, and those that return their argument unchanged."""
    graph.graph.eliminate_dead_code()
    for node in list(graph.graph.nodes):
        if node.target in _UNCHANGED:
            before, after = (n.meta.get("tensor_meta") for n in (node.args[0], node))
            if before is not None and after is not None and _alike(before, after):
                node.replace_all_uses_with(node.args[0])
                graph.graph.erase_node(node)
    for node in graph.graph.nodes:
        node.meta.clear()
    graph.recompile()


def _alike(a: Any, b: Any) -> bool:
    return bool(a.shape == b.shape and a.stride == b.stride and a.dtype == b.dtype)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
