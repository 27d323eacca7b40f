"""Perturb the examples of a task, for training: the attack and its settings. Letters: B meta-batch, n examples."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen
from torch import Tensor

from kshot import Episode
from kshot.functional import fgsm, pgd
from kshot.functional.attacks import Gradient
from kshot.inner import State
from kshot.randomness import uniform_as


@frozen
class Perturbation:
    """Store how examples are perturbed; see the options of ``ADML``.

    Attributes:
        attack: ``fgsm`` or ``pgd``.
        epsilon: the greatest change of a number of an input.
        input_range: the least and the greatest value of an input; None for any value.
        steps, step_size, random_start: options of ``pgd``.

    Example:
        >>> import torch
        >>> Perturbation("fgsm", epsilon=0.5)(torch.func.grad(torch.sum), torch.tensor([1.0]), None)
        tensor([1.5000])
    """

    attack: str
    epsilon: float
    input_range: tuple[float, float] | None = None
    steps: int = 5
    step_size: float | None = None
    random_start: bool = True

    def __call__(self, gradient: Gradient, x: Tensor, start: Tensor | None) -> Tensor:
        """Return x + delta [n, *input], without a graph, for one task.

        Args:
            gradient: returns the gradient, with respect to the inputs, of the loss that the attack increases.
            x: inputs [n, *input].
            start: the delta from which ``pgd`` starts; None for 0.
        """
        if self.attack == "fgsm":
            return fgsm(gradient, x, epsilon=self.epsilon, input_range=self.input_range)
        size = 2.5 * self.epsilon / max(1, self.steps) if self.step_size is None else self.step_size
        bounds = {"epsilon": self.epsilon, "step_size": size}
        return pgd(gradient, x, steps=self.steps, start=start, input_range=self.input_range, **bounds)

    def starts(self, episodes: Episode) -> Mapping[str, Tensor]:
        """Draw the random deltas of ``support`` and ``query`` [B, n, *input], which depend on the episodes' keys alone.

        The mapping is empty if the attack starts at 0.
        """
        if self.attack == "fgsm" or not self.random_start:
            return {}
        parts, keys = {"support": episodes.support.x, "query": episodes.query.x}, episodes.support.key
        return {part: self.epsilon * uniform_as(x, keys, f"adml {part}") for part, x in parts.items()}


def buffers_apart(state: State) -> State:
    """Return a state with copies of its buffers, so that a network that writes to them does not change ``state``.

    Example:
        >>> import torch
        >>> state = State({}, {"mean": torch.zeros(1)})
        >>> _ = buffers_apart(state).buffers["mean"].add_(1)
        >>> state.buffers["mean"]
        tensor([0.])
    """
    return State(state.parameters, {name: b.clone() for name, b in state.buffers.items()}, state.tasks)
