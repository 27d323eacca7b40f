"""Convert a trace to a function of TorchScript, whose interpreter calls operations without Python.

The graph of TorchScript is built directly. Its compiler would build it from the text of a function, and takes about a
millisecond for each operation: twenty seconds for fifty steps of a network of four convolutions.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx

_FORMATS = (torch.contiguous_format, torch.preserve_format, torch.channels_last, torch.channels_last_3d)
"""In the order of their numbers in C++, by which TorchScript knows them."""


def scripted(module: fx.GraphModule) -> Callable[..., Sequence[Tensor]]:
    """Return a function that runs the graph operation by operation, as it was recorded.

    Args:
        module: a graph of tensors and of operators of torch, with one output, a list of tensors.

    Raises:
        ValueError: TorchScript does not know an operator, or would call another overload.
        TypeError: it does not know the type of an argument.

    Example:
        >>> from kshot.inner.tracing import trace
        >>> run = scripted(trace(lambda a: [2 * a], [torch.ones(2)]))
        >>> run(torch.tensor([1.0, 2.0]))
        [tensor([2., 4.])]
    """
    script = _Script(module)
    run: Any = torch._C._create_function_from_graph("trace", script.graph)
    constants = script.constants
    enabled, enable = torch._C._get_graph_executor_optimize, torch._C._set_graph_executor_optimize

    def plain(*tensors: Tensor) -> Sequence[Tensor]:
        # Its optimisation takes long, saves no time in a trace, and rounds differently: it computes a sum of matrix
        # products, such as the gradient of a weight that every step of a recurrent net uses, as one larger product.
        before = enabled()  # of this thread
        enable(False)
        try:
            outputs: Sequence[Tensor] = run(*tensors, *constants)
        finally:
            enable(before)
        return outputs

    return plain


class _Script:
    """Build the graph of TorchScript.

    Attributes:
        graph: the result. Its inputs are those of the module and then ``constants``.
        constants: the tensors that the module keeps.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.graph: Any = torch._C.Graph()
        self.constants: list[Tensor] = []
        self._values: dict[fx.Node, Any] = {}
        self._literals: dict[tuple[type, str], Any] = {}
        nodes = list(module.graph.nodes)
        for kind in ("placeholder", "get_attr"):
            for node in nodes:
                if node.op == kind:
                    self._values[node] = self.graph.addInput(node.name)
                    if kind == "get_attr":
                        self.constants.append(getattr(module, node.target))
        for node in nodes:
            if node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                self.graph.registerOutput(self._list(node.args[0], torch._C.ListType.ofTensors()))

    def _call(self, node: fx.Node) -> None:
        if node.target is operator.getitem:
            source, i = cast(tuple[fx.Node, int], node.args)
            results = self._values[source]
            self._values[node] = results[i] if isinstance(results, list) else self._item(results, i)
            return
        target: Any = node.target
        schema, numbers = target._schema, False
        arguments = []
        for i, argument in enumerate(schema.arguments):
            value = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name, argument.default_value)
            numbers |= isinstance(argument.type, torch._C.TensorType) and isinstance(value, int | float)
            arguments.append(self._value(value, argument.type))
        made = self._append(schema.name, arguments, len(schema.returns))
        outputs = list(made.outputs())
        for output, returned in zip(outputs, schema.returns, strict=True):
            output.setType(returned.type)
        # TorchScript finds the overload by the types of the arguments. Python writes x + 1 as a sum of tensors, which
        # TorchScript knows as that of a tensor and a number.
        expected = target.overloadpacket.Scalar._schema if numbers else schema
        if made.schema() != str(expected):
            raise ValueError(f"TorchScript runs {made.schema()} in the place of {expected}")
        self._values[node] = outputs[0] if len(outputs) == 1 else outputs

    def _value(self, value: Any, kind: Any) -> Any:
        """Return the value of an argument whose type is ``kind``."""
        while isinstance(kind, torch._C.OptionalType):
            kind = kind.getElementType()
        if isinstance(value, fx.Node):
            return self._values[value]
        if isinstance(value, list | tuple):
            return self._list(value, kind)
        if isinstance(kind, torch._C.FloatType) and type(value) is int:
            value = float(value)
        if isinstance(value, torch.memory_format):
            value = _FORMATS.index(value)
        elif isinstance(value, torch.layout):
            value = (torch.strided,).index(value)
        key = type(value), str(value)
        if key not in self._literals:
            self._literals[key] = self.graph.insertConstant(value)
        return self._literals[key]

    def _list(self, values: Sequence[Any], kind: Any) -> Any:
        items = [self._value(value, kind.getElementType()) for value in values]
        made = self._append("prim::ListConstruct", items, 1).output()
        made.setType(kind)
        return made

    def _item(self, values: Any, i: Any) -> Any:
        """Return an item of a value that is a list, such as the result of ``unbind``."""
        return self._append("aten::__getitem__", [values, self._value(i, None)], 1).output()

    def _append(self, kind: str, arguments: list[Any], outputs: int) -> Any:
        made = self.graph.create(kind, arguments, outputs)
        self.graph.appendNode(made)
        return made
