"""The inner loop of learners that adapt only a part of the parameters."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor

from kshot.inner.descent import Loss, State, Tensors, descend


def descend_part(
    loss: Loss,
    state: State,
    data: Any,
    names: Collection[str],
    *,
    lr: float | Tensor | Tensors,
    steps: int,
    second_order: bool = True,
) -> tuple[State, Tensor]:
    """Compute ``descend`` for the parameters ``names``, while all others stay as they are, for one task.

    No inner gradient of the other parameters is computed. The meta-gradient reaches them through the loss that follows
    and, with ``second_order``, through the inner gradients.

    Args:
        loss, state, data, lr, steps, second_order: as for ``descend``. The loss is given the complete state.
        names: of the parameters that adapt.

    Returns:
        The complete state, in which only ``names`` differ from the start, and the loss before each step [steps].

    Raises:
        TrainingError: the loss is not a scalar.

    Example:
        The loss (w + b - 3)^2 has the gradient -4 at w + b = 1, but only b takes the step:

        >>> import torch
        >>> start = State({"w": torch.tensor(1.0), "b": torch.tensor(0.0)}, {})
        >>> square = lambda s, goal: (s.parameters["w"] + s.parameters["b"] - goal) ** 2
        >>> end, losses = descend_part(square, start, 3.0, ["b"], lr=0.25, steps=1)
        >>> end.parameters
        {'w': tensor(1.), 'b': tensor(1.)}
    """

    def of_part(part: State, data: Any) -> Tensor:
        return loss(State({**state.parameters, **part.parameters}, part.buffers), data)

    part = State({n: p for n, p in state.parameters.items() if n in names}, state.buffers)
    adapted, losses = descend(of_part, part, data, lr=lr, steps=steps, second_order=second_order)
    return State({**state.parameters, **adapted.parameters}, adapted.buffers), losses
