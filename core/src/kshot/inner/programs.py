"""Express the work on one chunk of tasks as a function of flat tensors, which can be traced.

``Gradient`` is the work of ``Lift.mean_gradient``, and ``Results`` that of ``Lift.map``.

Letters: B meta-batch, n the tasks of one chunk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from kshot.errors import TrainingError
from kshot.inner.chunks import Chunk
from kshot.inner.guards import Untraceable


class Gradient:
    """Compute the gradients, metrics and buffers of a chunk.

    Args:
        chunk: how to run the tasks; forgotten after tracing.
        spec: the structure of the inputs: parameters, buffers and values.
        inputs: their tensors; a gradient is computed for those that require one.
        share: the weight of the mean loss of this chunk, n / B.

    Attributes:
        learned: parameters that are not inputs, whose gradients are computed too.
    """

    def __init__(self, chunk: Chunk, spec: pytree.TreeSpec, inputs: Sequence[Tensor], share: float) -> None:
        self.share, self.learned = share, list[Tensor]()
        self._chunk: Chunk | None = chunk
        self._spec: pytree.TreeSpec | None = spec
        self._of_input = [i for i, t in enumerate(inputs) if t.requires_grad]
        self._present: list[int] = []  # which of the gradients exist
        self._names: tuple[list[str], list[str]] = [], []

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """Return the gradients that exist, then the metrics [n, ...], then the final buffers [n, ...].

        Raises:
            TrainingError: the loss of a task is not a scalar that depends on the parameters.
            Untraceable: a metric or a buffer is not a tensor.
        """
        assert self._chunk is not None
        assert self._spec is not None
        own = [t.detach().requires_grad_(i in self._of_input) for i, t in enumerate(tensors)]
        with torch.enable_grad():
            metrics, end = self._chunk.run(*pytree.tree_unflatten(own, self._spec))
            total = mean_loss(metrics) * self.share
            wanted = [*(own[i] for i in self._of_input), *self.learned]
            gradients = torch.autograd.grad(total, wanted, allow_unused=True)
        self._present = [i for i, g in enumerate(gradients) if g is not None]
        self._names = list(metrics), list(end.buffers)
        results = [*metrics.values(), *end.buffers.values()]
        if not all(isinstance(t, Tensor) for t in results):
            raise Untraceable("a metric or a buffer is not a tensor")
        return [*(g for g in gradients if g is not None), *(t.detach() for t in results)]

    def forget(self) -> None:
        """Drop the references to the function and its object."""
        self._chunk = self._spec = None

    def finish(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor]
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """Add the gradients to ``.grad``; differentiate further where an input was computed from other tensors.

        Args:
            outputs: those of this program; they are kept, not copied.
            inputs: the tensors that it was called with.

        Returns:
            The metrics and the final buffers.
        """
        wanted = [*(inputs[i] for i in self._of_input), *self.learned]
        further: list[tuple[Tensor, Tensor]] = []
        for i, gradient in zip(self._present, outputs, strict=False):
            target = wanted[i]
            if not target.is_leaf:
                further.append((target, gradient))
            elif target.grad is not None:
                target.grad.add_(gradient)
            elif gradient.stride() == target.stride():
                target.grad = gradient
            else:  # in the layout of the parameter, as autograd does
                target.grad = torch.empty_like(target).copy_(gradient)
        if further:
            torch.autograd.backward([t for t, _ in further], [g for _, g in further])
        (metrics, buffers), first = self._names, len(self._present)
        second = first + len(metrics)
        return dict(zip(metrics, outputs[first:second], strict=True)), dict(zip(buffers, outputs[second:], strict=True))


class Results:
    """Compute the results of a chunk, a pytree of tensors without a graph.

    Args:
        chunk, spec: as for ``Gradient``.
        grad: whether torch computes graphs when the function runs.
    """

    def __init__(self, chunk: Chunk, spec: pytree.TreeSpec, grad: bool) -> None:
        self.learned, self._grad = list[Tensor](), grad
        self._chunk: Chunk | None = chunk
        self._spec: pytree.TreeSpec | None = spec
        self._structure: pytree.TreeSpec | None = None  # of the results

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """Return the leaves of the results, each [n, ...].

        Raises:
            Untraceable: a result is not a tensor, or has a graph.
        """
        assert self._chunk is not None
        assert self._spec is not None
        with torch.set_grad_enabled(self._grad):
            results = self._chunk.run(*pytree.tree_unflatten(list(tensors), self._spec))
        leaves, self._structure = pytree.tree_flatten(results)
        if not all(isinstance(t, Tensor) for t in leaves):
            raise Untraceable("a result is not a tensor")
        if any(t.requires_grad for t in leaves):
            raise Untraceable("a result has a graph")
        return leaves

    def forget(self) -> None:
        """Drop the references to the function and its object."""
        self._chunk = self._spec = None

    def finish(self, outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> Any:
        """Return the results of the chunk, in the structure of the function."""
        assert self._structure is not None
        return pytree.tree_unflatten(outputs, self._structure)


Program = Gradient | Results


def mean_loss(metrics: Mapping[str, Tensor]) -> Tensor:
    """Return the mean of the losses [n] of the tasks.

    Raises:
        TrainingError: the loss of a task is not a scalar that depends on the parameters.

    Example:
        >>> mean_loss({"loss": torch.tensor([1.0, 3.0], requires_grad=True)}).item()
        2.0
    """
    loss = metrics["loss"]
    if loss.ndim != 1 or not loss.requires_grad:
        raise TrainingError(
            f"Lift.mean_gradient: got a loss of shape {tuple(loss.shape[1:])} for each task, expected a "
            "scalar that depends on the parameters; return its mean or sum, and do not detach it"
        )
    return loss.mean()
