"""Compute the derivative of a regularised minimum by conjugate gradients. Letter: P, the number of all parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kshot import TaskSpec
from kshot.functional import conjugate_gradient
from kshot.inner import Loss, State, Tensors


def implicit_gradient(
    loss: Loss, phi: State, support: Any, gradient: Tensors, *, strength: float, steps: int
) -> dict[str, Tensor]:
    """Solve (I + H / lambda) g = grad L_query(phi) by conjugate gradients (algorithm 2).

    Args:
        loss: the support loss of a state, whose Hessian at phi is H.
        phi: the adapted parameters of one task, ideally the minimum.
        support: passed on to ``loss``.
        gradient: grad L_query(phi), by name.
        strength: lambda; the learner adds its damping.
        steps: the number of iterations; with 0, or without parameters, the result is ``gradient``.

    Returns:
        g, by name, in the shapes of ``gradient``.

    Example:
        For the loss theta^2, H is 2:

        >>> phi = State({"theta": torch.tensor([1.0])}, {})
        >>> square = lambda state, _: state.parameters["theta"].square().sum()
        >>> implicit_gradient(square, phi, None, {"theta": torch.tensor([3.0])}, strength=1.0, steps=1)
        {'theta': tensor([1.])}
    """
    if steps == 0 or not gradient:
        return dict(gradient)

    def slope(parameters: Tensors) -> Any:
        """Compute grad L_support."""
        copies = {n: b.clone() for n, b in phi.buffers.items()}
        return torch.func.grad(lambda named: loss(State(named, copies), support))(parameters)

    # H v is the derivative of grad L_support in the direction v. H is symmetric, so H v = v^T H: one backward pass
    # through the gradient, whose graph is computed once.
    pull: Any = torch.func.vjp(slope, dict(phi.parameters))[1]

    def product(v: Tensor) -> Tensor:
        """Compute (I + H / lambda) v."""
        return v + flat(pull(unflat(v, gradient))[0]) / strength

    return unflat(conjugate_gradient(product, flat(gradient), steps, enough=0.0), gradient)


def flat(named: Tensors) -> Tensor:
    """Join tensors to one vector [P].

    Example:
        >>> flat({"a": torch.zeros(2, 2), "b": torch.ones(1)})
        tensor([0., 0., 0., 0., 1.])
    """
    return torch.cat([t.flatten() for t in named.values()])


def unflat(vector: Tensor, like: Tensors) -> dict[str, Tensor]:
    """Divide a vector [P] into tensors of the names and shapes of ``like``.

    Example:
        >>> unflat(torch.arange(3.0), {"a": torch.zeros(2), "b": torch.zeros(1)})
        {'a': tensor([0., 1.]), 'b': tensor([2.])}
    """
    parts = vector.split([t.numel() for t in like.values()])
    return {n: part.view(t.shape) for (n, t), part in zip(like.items(), parts, strict=True)}


def paper_steps(spec: TaskSpec) -> int:
    """Return the number of inner steps: 16, or 25 from 20 ways on, as in the paper's experiments with Omniglot.

    Example:
        >>> paper_steps(TaskSpec(kind="classification", input_shape=(4,), way=5, shot=1, query=5))
        16
    """
    return 25 if isinstance(spec.way, int) and spec.way >= 20 else 16
