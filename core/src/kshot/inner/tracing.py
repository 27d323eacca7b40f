"""Trace a function of tensors to a flat list of operations, and run that list without the function.

A function of one task that is vmapped and differentiated passes every operation through several layers of Python:
the module, ``vmap``, ``grad`` and autograd. For small networks these layers take most of the time. A trace records the
operations below all of them, so replaying it computes the very same numbers. The list is run by TorchScript's
interpreter, which calls the operations without Python; where that can't run it, Python does.
"""

from __future__ import annotations

import contextlib
import copy
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from kshot.inner.guards import Untraceable
from kshot.inner.scripts import scripted

aten = torch.ops.aten
_VIEWS = (aten.alias.default, aten.view.default, aten._unsafe_view.default, aten.expand.default, aten.detach.default)
_DECIDING = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
_READING = (Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__)
"""Methods that give the numbers of a tensor to Python by no operation."""
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
    # Each input is a new tensor object, so that two inputs that are one object remain two.
    inputs = [t.detach() for t in inputs]
    with _Reading(), _Recorder(inputs, outer) as recorder:
        outputs = function(*inputs)
        graph: fx.GraphModule = recorder.finish(outputs)
    return graph


def interpreter(graph: fx.GraphModule) -> Callable[..., Sequence[Tensor]]:
    """Return a function that runs the graph: by TorchScript if that is possible, otherwise by Python.

    Example:
        >>> run = interpreter(trace(lambda a: [2 * a], [torch.ones(2)]))
        >>> run(torch.tensor([1.0, 2.0]))
        [tensor([2., 4.])]
    """
    try:
        return scripted(graph)
    except Exception:  # an operator or a type of argument that it does not know
        return graph


def compiler(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """Return a function that runs the graph compiled by torch's inductor, which needs a C++ compiler.

    ``torch.compile`` would analyse the graph again, and check at every call what ``kshot.inner.guards`` has checked.
    A wrapper in C++ halves the time of a small network; some operations have none, and get one in Python.

    Args:
        graph: of ``trace``.
        inputs: tensors of the shapes that it is called with. It runs on them once, without gradients.
    """
    from torch._inductor import compile as inductor

    own: list[Any] = [t.detach() for t in inputs]
    run: Callable[..., Sequence[Tensor]]
    with contextlib.suppress(Exception):
        run = inductor(copy.deepcopy(graph), own, options={"cpp_wrapper": True, "size_asserts": False})
        run(*own)
        return run
    run = inductor(graph, own, options={"size_asserts": False})
    run(*own)
    return run


def draws(graph: fx.GraphModule) -> bool:
    """Return whether the graph draws from torch's global random generator.

    Example:
        >>> draws(trace(lambda a: [a + torch.rand(2)], [torch.ones(2)]))
        True
    """
    tag = torch.Tag.nondeterministic_seeded
    return any(tag in getattr(node.target, "tags", ()) for node in graph.graph.nodes)


class _Reading(TorchFunctionMode):
    """Refuse methods that take numbers out of tensors, where a trace can't follow them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READING:
            raise Untraceable(f"Tensor.{func.__name__} takes the numbers out of a tensor")
        return func(*args, **(kwargs or {}))


class _Recorder(TorchDispatchMode):
    """Record the operations inside as the nodes of a graph."""

    def __init__(self, inputs: Sequence[Tensor], outer: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.root, self.graph = torch.nn.Module(), fx.Graph()
        # The node that computes a tensor, by the identity of the tensor, which may be freed in the meantime.
        self.nodes: Any = WeakIdKeyDictionary()
        for i, t in enumerate([*inputs, *outer]):
            self.nodes[t] = self.graph.placeholder(f"input_{i}")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(tag in func.tags for tag in _DECIDING) and not _by_numbers(func, args):
            raise Untraceable(f"{func} decides by the numbers in a tensor")
        kwargs = kwargs or {}
        if func is aten.lift_fresh.default:
            # A Python number becomes a tensor, to which the function may write. Every run starts from a new copy.
            result = func(*args)
            self.nodes[result] = self.graph.call_function(aten.clone.default, (self._constant(result.clone()),))
            return result
        # The arguments are looked up before the operation, which may write to them.
        arguments, named = pytree.tree_map_only(Tensor, self._node, (args, kwargs))
        results = func(*args, **kwargs)
        if func is aten.native_batch_norm.default and args[5] and args[3] is not None:
            # In training it also writes to the running statistics. Only the schema of the operation below says so.
            func = aten._native_batch_norm_legit.default
        node = self.graph.call_function(func, arguments, named)
        if isinstance(results, Tensor):
            same = func in _VIEWS and _alike(results, args[0])
            self.nodes[results] = arguments[0] if same else node
        elif isinstance(results, tuple | list):
            for i, result in enumerate(results):
                if isinstance(result, Tensor):
                    self.nodes[result] = self.graph.call_function(operator.getitem, (node, i))
        return results

    def _node(self, tensor: Tensor) -> fx.Node:
        node: fx.Node | None = self.nodes.get(tensor)
        if node is None:  # a tensor from outside, which is kept by reference
            if tensor.requires_grad:
                raise Untraceable("it uses a parameter that belongs neither to its state nor to its object")
            node = self.nodes[tensor] = self._constant(tensor)
        return node

    def _constant(self, tensor: Tensor) -> fx.Node:
        name = f"constant_{len(self.root._buffers)}"
        self.root.register_buffer(name, tensor)
        return self.graph.get_attr(name)

    def finish(self, outputs: Sequence[Tensor]) -> fx.GraphModule:
        """Return the graph that computes these outputs, without the operations whose result nobody uses."""
        self.graph.output([self._node(t) for t in outputs])
        self.graph.eliminate_dead_code()
        return fx.GraphModule(self.root, self.graph)


def _by_numbers(func: Any, args: Any) -> bool:
    """Return whether the operation selects examples by their numbers: then the shape of its result is known."""
    masks = (torch.bool, torch.uint8)
    return func is aten.index.Tensor and not any(i is not None and i.dtype in masks for i in args[1])


def _alike(a: Tensor, b: Any) -> bool:
    """Return whether a view has the shape of what it shows."""
    return isinstance(b, Tensor) and a.shape == b.shape and a.stride() == b.stride() and a.dtype == b.dtype
