"""The inner loop: gradient descent on the support of one task, as a function (state, support) -> state.

``descend`` and ``take_steps`` are written for one task, without B, over an unmodified module that is called through
``torch.func``; ``Lift`` runs them for all tasks of a meta-batch. Nothing here depends on a learner: MAML, its
relatives, policies and context parameters differ in the loss that they descend and in their use of the result.
"""

from __future__ import annotations

import itertools
import math
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
"""(state, data of one task) -> loss []. It may write to ``state.buffers``, which are its own copies."""
Update = Callable[[Tensors, Tensors, Any], tuple[Tensors, Any]]
"""(parameters, their gradients, memory) -> (parameters after a step, memory). The memory is None before the first."""


@frozen(eq=False)
class State:
    """The parameters that adapt to a task, and the buffers that accompany them, by name.

    Attributes:
        parameters: the tensors that the inner loop changes: [*] for one task, [B, *] if ``tasks`` is B.
        buffers: all other tensors of the module: running statistics and frozen parameters.
        tasks: B if every tensor begins with B; None for one task, or for a state that all tasks share.

    Example:
        >>> state = State.of(nn.Linear(3, 2))
        >>> {name: tuple(p.shape) for name, p in state.parameters.items()}
        {'weight': (2, 3), 'bias': (2,)}
    """

    parameters: Tensors
    buffers: Tensors
    tasks: int | None = None

    @classmethod
    def of(cls, module: nn.Module) -> State:
        """Return the module's own state, shared by all tasks.

        Its trainable parameters keep their graph; frozen parameters are constants among the buffers.
        """
        parameters, buffers = named_tensors(module)
        frozen_ones = {n: p.detach() for n, p in parameters.items() if not p.requires_grad}
        return cls({n: p for n, p in parameters.items() if p.requires_grad}, frozen_ones | buffers)

    def call(self, module: nn.Module, *inputs: Any) -> Any:
        """Return ``module(*inputs)`` computed with this state; what the module writes goes to ``buffers``."""
        return functional_call(module, {**self.parameters, **self.buffers}, inputs)

    def detach(self) -> State:
        """Return a state of the same numbers without a graph."""
        parameters, buffers = ({n: t.detach() for n, t in named.items()} for named in (self.parameters, self.buffers))
        return State(parameters, buffers, self.tasks)

    def away_from(self, start: State) -> dict[str, Tensor]:
        """Return theta - theta' by name, where theta is ``start``: what a step of rate 1 subtracts from theta."""
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
    """Compute theta' = theta - lr * grad loss(theta), ``steps`` times on the same data, for one task.

    This is the inner loop of MAML (Finn, Abbeel & Levine 2017, 1703.03400, algorithm 1, line 6).

    Args:
        loss: the loss of a state on this task's ``data``, a scalar.
        state: the initial state; it is not changed.
        data: passed on to ``loss``.
        lr: one rate, or one for each parameter by name (a scalar or of the parameter's shape; it may be learned).
        steps: the number of steps, at least 0.
        second_order: whether autograd can differentiate through the inner gradients, as exact MAML needs. Without
            it the gradients are constants (first-order MAML), and no graph of them is kept in memory.

    Returns:
        The adapted state, and the loss before each step [steps], without a graph. See ``check_descent``.

    Raises:
        TrainingError: the loss is not a scalar.

    Example:
        The gradient of (theta - 3)^2 at 0 is -6:

        >>> start = State({"theta": torch.tensor(0.0)}, {})
        >>> end, losses = descend(lambda s, goal: (s.parameters["theta"] - goal) ** 2, start, 3.0, lr=0.1, steps=1)
        >>> end.parameters["theta"], losses
        (tensor(0.6000), tensor([9.]))
    """
    return take_steps(loss, state, itertools.repeat(data, steps), sgd(lr), second_order=second_order)


def sgd(lr: float | Tensor | Tensors) -> Update:
    """Return the rule theta - lr * gradient, without a memory.

    Args:
        lr: one rate for all parameters, or one for each parameter by name.

    Example:
        >>> sgd(0.1)({"theta": torch.tensor(1.0)}, {"theta": torch.tensor(5.0)}, None)
        ({'theta': tensor(0.5000)}, None)
    """
    return partial(_sgd_step, lr)


def _sgd_step(
    lr: float | Tensor | Tensors, parameters: Tensors, gradients: Tensors, memory: Any
) -> tuple[Tensors, Any]:
    """Take the step of ``sgd``. As a function of a module, it can be pickled with the learner that keeps the rule."""
    rates = lr if isinstance(lr, Mapping) else dict.fromkeys(gradients, lr)
    return {n: p - rates[n] * gradients[n] for n, p in parameters.items()}, memory


def adam(lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> Update:
    """Return the rule of Adam (Kingma & Ba 2015, 1412.6980, algorithm 1).

    Its memory is the number of steps, and the decaying means of gradients and of squared gradients.

    Args:
        lr: the learning rate.
        betas: the factors by which the two means decay.
        eps: added to the denominator.

    Example:
        The first step is lr * sign(gradient):

        >>> parameters, memory = adam(0.1)({"theta": torch.tensor(1.0)}, {"theta": torch.tensor(-7.0)}, None)
        >>> parameters["theta"]
        tensor(1.1000)
    """
    return partial(_adam_step, lr, betas, eps)


def _adam_step(
    lr: float, betas: tuple[float, float], eps: float, parameters: Tensors, gradients: Tensors, memory: Any
) -> tuple[Tensors, Any]:
    """Take the step of ``adam``. As a function of a module, it can be pickled with the learner that keeps the rule."""
    zeros = {n: torch.zeros_like(g) for n, g in gradients.items()}
    t, v, m = (*(memory or (0, zeros)), zeros)[:3]
    # m_t = beta1 m_{t-1} + (1 - beta1) g, and v_t = beta2 v_{t-1} + (1 - beta2) g^2.
    m = {n: betas[0] * m[n] + (1 - betas[0]) * g for n, g in gradients.items()} if betas[0] else dict(gradients)
    v = {n: betas[1] * v[n] + (1 - betas[1]) * g.square() for n, g in gradients.items()}
    # theta_t = theta_{t-1} - lr m^ / (sqrt(v^) + eps), in which m^ and v^ are corrected for the start at 0.
    root = {n: (s / _one_minus_power(betas[1], t + 1, s)).sqrt() for n, s in v.items()}
    rate = {n: lr / _one_minus_power(betas[0], t + 1, s) if betas[0] else lr for n, s in v.items()}
    stepped = {n: p - rate[n] * m[n] / (root[n] + eps) for n, p in parameters.items()}
    return stepped, (t + 1, v, m) if betas[0] else (t + 1, v)


def _one_minus_power(beta: float, t: int | Tensor, like: Tensor) -> float | Tensor:
    """Compute 1 - beta^t; if t is a tensor [], in the type of ``like`` and without losing digits."""
    return 1 - beta**t if isinstance(t, int) else -torch.expm1(math.log(beta) * t.to(like))


def take_steps(
    loss: Loss, state: State, batches: Iterable[Any], update: Update, *, second_order: bool = True
) -> tuple[State, Tensor]:
    """Take one step of ``update`` on each of ``batches``, for one task: ``descend`` over minibatches, by any rule.

    Args:
        loss, state, second_order: as for ``descend``.
        batches: the data of each step.
        update: the rule; its memory starts as None for every task, so that nothing leaks from one task to the next.

    Returns:
        As for ``descend``.

    Raises:
        TrainingError: the loss is not a scalar.

    Example:
        >>> start = State({"theta": torch.tensor(0.0)}, {})
        >>> end, losses = take_steps(lambda s, x: (s.parameters["theta"] - x) ** 2, start, [1.0, 2.0], sgd(0.5))
        >>> end.parameters["theta"], losses
        (tensor(2.), tensor([1., 1.]))
    """

    losses, memory = [], None
    for data in batches:
        gradients, before, buffers = gradient_at(loss, state, data, second_order=second_order)
        # theta <- update(theta, gradients): the step itself is always differentiable.
        parameters, memory = update(state.parameters, gradients, memory)
        state = State({n: _laid_out_as(state.parameters[n], p) for n, p in parameters.items()}, buffers)
        losses.append(before.detach())
    return state, torch.stack(losses) if losses else torch.zeros(0)


def gradient_at(
    loss: Loss, state: State, data: Any, *, second_order: bool = True
) -> tuple[dict[str, Tensor], Tensor, Tensors]:
    """Compute the gradient of a loss at the parameters of one task, for rules that also need the loss itself.

    Args:
        loss, state, data, second_order: as for ``descend``. Without ``second_order`` the loss is a constant too.

    Returns:
        The gradients by name, the loss [], and the buffers after the loss was computed, which are copies.

    Raises:
        TrainingError: the loss is not a scalar.

    Example:
        >>> state = State({"theta": torch.tensor(1.0)}, {})
        >>> gradient_at(lambda s, x: (s.parameters["theta"] - x) ** 2, state, 3.0)
        ({'theta': tensor(-4.)}, tensor(4.), {})
    """

    def value(parameters: Tensors, buffers: Tensors) -> tuple[Tensor, tuple[Tensors, Tensor]]:
        """Compute the loss to differentiate; pass on the buffers that it wrote, and its number."""
        scalar = loss(State(parameters, buffers), data)
        if not isinstance(scalar, Tensor) or scalar.ndim:
            got = f"shape {tuple(scalar.shape)}" if isinstance(scalar, Tensor) else f"type {type(scalar).__name__}"
            raise TrainingError(f"inner loop: got an inner loss of {got}, expected a scalar; take its mean or sum")
        return scalar, (buffers, scalar)

    # Buffers are copied, because a module in training writes to them in place.
    copies = {n: b.clone() for n, b in state.buffers.items()}
    # Without second order the gradients are computed outside any graph, and count as constants afterwards.
    with nullcontext() if second_order else torch.no_grad():
        gradients, (buffers, number) = torch.func.grad(value, has_aux=True)(state.parameters, copies)
    return gradients, number, buffers


def _laid_out_as(before: Tensor, after: Tensor) -> Tensor:
    """Return ``after`` with channels innermost in memory if those of a one-channel convolution ``before`` were.

    Arithmetic loses the stride of a dimension of size 1, and with it the information that the net's images are
    channels-last. Under vmap, strides are not those that a convolution sees, and nothing is done.
    """
    one_channel = before.ndim == 4 and before.shape[1] == 1 and before.stride(1) == 1
    if not one_channel or after.stride(1) == 1 or torch._C._functorch.is_batchedtensor(after):
        return after
    return after.squeeze(1).unsqueeze(-1).permute(0, 3, 1, 2)


def named_tensors(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the parameters and the buffers of a module by name, as torch's ``named_parameters`` and ``named_buffers``.

    Those two take longer than a forward pass of a small network, because they look through all modules twice.

    Example:
        >>> parameters, buffers = named_tensors(nn.BatchNorm1d(2))
        >>> list(parameters), list(buffers)
        (['weight', 'bias'], ['running_mean', 'running_var', 'num_batches_tracked'])
    """
    parameters, buffers = dict[str, Tensor](), dict[str, Tensor]()
    seen = set[int]()

    def look(module: nn.Module, prefix: str) -> None:
        seen.add(id(module))
        for found, own in ((parameters, module._parameters), (buffers, module._buffers)):
            for name, tensor in own.items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    found[prefix + name] = tensor
        for name, child in module._modules.items():
            if child is not None and id(child) not in seen:
                look(child, f"{prefix}{name}.")

    look(module, "")
    return parameters, buffers


def check_descent(losses: Tensor, who: str, origin: Origin | None = None) -> None:
    """Check that all losses of an inner loop are finite.

    Args:
        losses: of every task before each step [B, steps].
        who: the learner, for the message.
        origin: the origin of the meta-batch, to name the episode by its number.

    Raises:
        TrainingError: a loss is NaN or infinite; the message gives the first task and step.

    Example:
        >>> check_descent(torch.tensor([[2.0, 1.0]]), "maml")
        >>> check_descent(torch.tensor([[2.0, float("inf")]]), "maml")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        kshot.errors.TrainingError: maml: got inner loss inf of task 0 before step 2 of 2, expected a finite number; ...
    """
    # One sum decides the usual case with a single synchronisation; the place is searched only on failure.
    if losses.numel() and not math.isfinite(losses.detach().sum().item()):
        bad = (~torch.isfinite(losses)).nonzero()
        if len(bad):
            task, step = bad[0].tolist()
            name = f"task {task}" if origin is None else f"episode {origin.indices[task]} of split {origin.split!r}"
            raise TrainingError(
                f"{who}: got inner loss {float(losses[task, step])} of {name} before step {step + 1} of "
                f"{losses.shape[1]}, expected a finite number; lower inner_lr or take fewer inner steps"
            )


def keep_buffers(module: nn.Module, state: State) -> None:
    """Set the module's floating-point buffers, such as running statistics, to the mean over the tasks.

    Other buffers, which are counters and flags, become those of the first task.

    Args:
        module: changed in place.
        state: with ``buffers`` [B, *] of the same names.

    Example:
        >>> norm = nn.BatchNorm1d(1)
        >>> means = torch.tensor([[1.0], [3.0]])
        >>> keep_buffers(norm, State({}, {"running_mean": means, "running_var": means}, tasks=2))
        >>> norm.running_mean
        tensor([2.])
    """
    if not state.buffers:  # no need to look for them
        return
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point():
            buffer.copy_(state.buffers[name].mean(0))
        elif name in state.buffers:
            buffer.copy_(state.buffers[name][0])
