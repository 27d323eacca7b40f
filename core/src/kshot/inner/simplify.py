"""Remove the operations of a trace that repeat an earlier one. The numbers stay the same to the bit.

Second derivatives contain the same product or sum many times, and matrices that are transposed twice. An operation is
removed only if no operation writes to its inputs or its result.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten
_TRANSPOSED = (aten.t.default, aten.transpose.int)
# Arithmetic operations and views, whose only effect is their result.
_PURE = {
    *_TRANSPOSED, aten.view.default, aten.expand.default, aten.unsqueeze.default, aten.select.int, aten.permute.default,
    aten.mul.Tensor, aten.mul.Scalar, aten.add.Tensor, aten.sub.Tensor, aten.div.Tensor, aten.div.Scalar,
    aten.neg.default, aten.exp.default, aten.sum.dim_IntList, aten.mean.default, aten.mean.dim,
    aten.mm.default, aten.bmm.default, aten.threshold_backward.default,
}  # fmt: skip
_VIEW = aten._unsafe_view.default  # its schema does not say that the result shares memory
_NORMS = ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm")  # no schema says that they write there


def simplify(module: fx.GraphModule) -> None:
    """Remove repeated operations from a trace.

    Example:
        >>> from kshot.inner.tracing import trace
        >>> traced = trace(lambda a: [(2 * a).sum(0) + (2 * a).exp(), a.t().t() + 1], [torch.ones(2, 2)])
        >>> before = len(traced.graph.nodes)
        >>> simplify(traced)
        >>> before - len(traced.graph.nodes)
        3
    """
    graph = module.graph
    written = _written(graph)
    first: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.target not in _PURE or written & {node, *node.all_input_nodes}:
            continue
        source = node.args[0]
        if node.target in _TRANSPOSED and source.target is node.target and source.args[1:] == node.args[1:]:
            same = source.args[0]
            if same in written:
                continue
        else:
            key = node.target, str(node.args), str(node.kwargs)  # nodes have unique names
            same = first.setdefault(key, node)
        if same is not node:
            node.replace_all_uses_with(same)
            graph.erase_node(node)
    graph.eliminate_dead_code()
    module.recompile()


def _written(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes to whose memory an operation may write, and the nodes that share this memory."""
    roots: dict[fx.Node, set[fx.Node]] = {}  # for each node, the nodes whose memory it may share
    written: set[fx.Node] = set()
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        shows = schema is None or node.target is _VIEW or any(r.alias_info is not None for r in schema.returns)
        inputs = set().union(*(roots[n] for n in node.all_input_nodes)) if shows else set()
        roots[node] = {node, *inputs}
        if node.op == "call_function" and schema is not None:
            norm = any(name in str(node.target) for name in _NORMS)
            for argument, value in zip(schema.arguments, node.args, strict=False):
                writes = argument.alias_info is not None and argument.alias_info.is_write
                if isinstance(value, fx.Node) and (writes or (norm and argument.name.startswith("running"))):
                    written |= roots[value]
            if schema.is_mutable and node.kwargs:  # such as ``out``
                written |= set().union(*(roots[n] for n in node.all_input_nodes))
    return {node for node, shown in roots.items() if shown & written}
