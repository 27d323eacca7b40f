"""Tensors for the results of all tasks, filled by one chunk of tasks after another."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree


class Rows:
    """Collect the results of the chunks in tensors that are allocated once for all tasks; row b is that of task b.

    The alternative is to keep the results of each chunk and to join them at the end. It fragments the heap, because
    many small tensors would lie between the large blocks of memory that each chunk allocates and frees. With 64 tasks
    the process needed five times as much memory.

    Args:
        tasks: the number of all tasks. ``done`` of them have been added to ``joined``, a pytree of [tasks, ...].

    Example:
        >>> import torch
        >>> rows = Rows(3)
        >>> rows.add({"loss": torch.tensor([1.0, 2.0])}, 2)
        >>> rows.add({"loss": torch.tensor([3.0])}, 1)
        >>> rows.joined
        {'loss': tensor([1., 2., 3.])}
    """

    def __init__(self, tasks: int) -> None:
        self.tasks, self.done = tasks, 0
        self.joined: Any = None

    def add(self, chunk: Any, count: int, graph: bool = True) -> None:
        """Add the results of the next chunk without their graph.

        Args:
            chunk: a pytree of tensors that begin with ``count``.
            count: the number of tasks of the chunk.
            graph: whether the tensors may have a graph.
        """
        if graph:
            chunk = pytree.tree_map_only(Tensor, Tensor.detach, chunk)
        if count == self.tasks:  # there is only one chunk, whose results need not be copied
            self.joined = chunk
            return
        if self.joined is None:  # the first chunk shows which shapes to allocate
            self.joined = pytree.tree_map_only(Tensor, lambda t: t.new_empty(self.tasks, *t.shape[1:]), chunk)
        for all_rows, new_rows in zip(pytree.tree_leaves(self.joined), pytree.tree_leaves(chunk), strict=True):
            all_rows[self.done : self.done + count] = new_rows
        self.done += count
