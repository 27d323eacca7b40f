"""The inner loop: gradient descent on one task's support, as a function (state, support) -> state.

``descend`` and ``take_steps`` are written for one task, without B, over an unmodified module called through
``torch.func``; ``Lift`` runs them for all tasks of a meta-batch. Nothing here knows a learner: MAML, its relatives,
policies and context parameters differ in the loss they descend and in what they do with the state.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from kshot.episode import Origin
from kshot.errors import TrainingError

Tensors = Mapping[str, Tensor]
Loss = Callable[["State", Any], Tensor]
"""(state, data of one task) -> loss []; may write to ``state.buffers``, which are a copy of its own."""
Update = Callable[[Tensors, Tensors, Any], tuple[Tensors, Any]]
"""(parameters, their gradients, memory) -> (parameters after a step, memory); the memory is None before the first."""


@frozen(eq=False)
class State:
    """What adapts: parameters, and the buffers that go with them, by name.

    Attributes:
        parameters: what the inner loop changes: [*] for one task, [B, *] where ``tasks`` is B.
        buffers: whatever else the module holds: running statistics, frozen parameters.
        tasks: B where every tensor begins with B; None for one task, or for a state that all tasks share.
    """

    parameters: Tensors
    buffers: Tensors
    tasks: int | None = None

    @classmethod
    def of(cls, module: nn.Module) -> State:
        """The module's own, shared by all tasks: its trainable parameters, with their graph; the rest as buffers."""
        own = dict(module.named_parameters())
        held = {n: p.detach() for n, p in own.items() if not p.requires_grad} | dict(module.named_buffers())
        return cls({n: p for n, p in own.items() if p.requires_grad}, held)

    def call(self, module: nn.Module, *inputs: Any) -> Any:
        """``module(*inputs)`` with this state in place of its own; what the module writes lands in ``buffers``."""
        return functional_call(module, {**self.parameters, **self.buffers}, inputs)

    def detach(self) -> State:
        """The same numbers without a graph."""
        parameters, buffers = ({n: t.detach() for n, t in held.items()} for held in (self.parameters, self.buffers))
        return State(parameters, buffers, self.tasks)

    def away_from(self, start: State) -> dict[str, Tensor]:
        """theta - theta' by name, the way that a descent went from ``start``: what a step of rate 1 subtracts."""
        return {n: start.parameters[n] - p for n, p in self.parameters.items()}


def _flatten(state: State) -> tuple[list[Any], int | None]:
    return [dict(state.parameters), dict(state.buffers)], state.tasks


def _unflatten(values: Any, tasks: int | None) -> State:
    parameters, buffers = values
    return State(parameters, buffers, tasks)


pytree.register_pytree_node(State, _flatten, _unflatten, serialized_type_name="kshot.State")


def descend(
    loss: Loss,
    state: State,
    data: Any,
    *,
    lr: float | Tensor | Tensors,
    steps: int,
    second_order: bool = True,
) -> tuple[State, Tensor]:
    """theta' = theta - lr * grad loss(theta), ``steps`` times on the same data, for one task.

    Args:
        loss: of a state on this task's ``data``.
        state: where to begin; not changed.
        lr: one rate, or one for each parameter by name (a scalar or of its shape; it may be learned).
        second_order: whether theta' carries the graph of its own gradients, as MAML's exact meta-gradient needs;
            without, they count as constants (first-order MAML) and cost no memory.

    Returns:
        The adapted state, and the losses before each step [steps]. See ``check_descent``.

    Raises:
        TrainingError: the loss is no scalar.
    """
    return take_steps(loss, state, itertools.repeat(data, steps), sgd(lr), second_order=second_order)


def sgd(lr: float | Tensor | Tensors) -> Update:
    """theta - lr * gradient, with one rate for all or one for each parameter by name; remembers nothing."""

    def update(parameters: Tensors, gradients: Tensors, memory: Any) -> tuple[Tensors, Any]:
        rates = lr if isinstance(lr, Mapping) else dict.fromkeys(gradients, lr)
        return {n: p - rates[n] * gradients[n] for n, p in parameters.items()}, memory

    return update


def take_steps(
    loss: Loss, state: State, batches: Iterable[Any], update: Update, *, second_order: bool = True
) -> tuple[State, Tensor]:
    """One step of ``update`` on each of ``batches``, for one task: ``descend`` over minibatches, by any rule.

    Args:
        batches: what ``loss`` is given at each step.
        update: its memory begins as None for every task, so that nothing leaks from one to the next.
        loss, state, second_order: as for ``descend``, as are the returns.
    """

    def value(data: Any, parameters: Tensors, buffers: Tensors) -> tuple[Tensor, tuple[Tensors, Tensor]]:
        found = loss(State(parameters, buffers), data)
        if not isinstance(found, Tensor) or found.ndim:
            shape = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise TrainingError(f"the inner loss of a task is of {shape}, expected a scalar: take its mean or sum")
        return found, (buffers, found.detach())

    losses, memory = [], None
    for data in batches:
        copies = {n: b.clone() for n, b in state.buffers.items()}
        with nullcontext() if second_order else torch.no_grad():
            slope = torch.func.grad(partial(value, data), has_aux=True)
            gradients, (buffers, before) = slope(state.parameters, copies)
        parameters, memory = update(state.parameters, gradients, memory)
        state = State({n: _laid_out_as(state.parameters[n], p) for n, p in parameters.items()}, buffers)
        losses.append(before)
    return state, torch.stack(losses) if losses else torch.zeros(0)


def _laid_out_as(before: Tensor, after: Tensor) -> Tensor:
    """``after``, with its channels innermost again where those of a one-channel convolution ``before`` were.

    Arithmetic forgets the stride of a dimension of size 1, and with it that the net's images are channels-last. Under
    vmap strides are not what a convolution sees, and nothing is done.
    """
    one_channel = before.ndim == 4 and before.shape[1] == 1 and before.stride(1) == 1
    if not one_channel or after.stride(1) == 1 or torch._C._functorch.is_batchedtensor(after):
        return after
    return after.squeeze(1).unsqueeze(-1).permute(0, 3, 1, 2)


def check_descent(losses: Tensor, who: str, origin: Origin | None = None) -> None:
    """Raises TrainingError where a loss of an inner loop, ``losses`` [B, steps], is NaN or infinite.

    Args:
        who: the learner, for the message.
        origin: of the meta-batch, to name the episode by its number.
    """
    if losses.numel() and not bool(torch.isfinite(losses.detach().sum())):
        bad = (~torch.isfinite(losses)).nonzero()
        if len(bad):
            task, step = bad[0].tolist()
            name = f"task {task}" if origin is None else f"episode {origin.indices[task]} of split {origin.split!r}"
            raise TrainingError(
                f"{who}: the inner loss of {name} is {float(losses[task, step])} before step {step + 1} of "
                f"{losses.shape[1]}; lower inner_lr or take fewer inner steps"
            )


def keep_buffers(module: nn.Module, state: State) -> None:
    """The module's running statistics become the mean of the tasks' own, ``state.buffers`` [B, *]."""
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point():
            buffer.copy_(state.buffers[name].mean(0))
