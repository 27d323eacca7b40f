"""Gradient agreement: Eshratifar, Eigen & Pedram, "Gradient agreement as an optimization objective for meta-learning",
2018 (1810.08178).

Letters: B meta-batch, P parameters that adapt.
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor, nn

from kshot import Episode, Learner, Metrics, Needs, Predictor, Support, TaskSpec, Training
from kshot.errors import MisfitError
from kshot.protocols import PerTask
from kshot.spec import KIND_NAMES


class GradientAgreement(nn.Module):
    """Wrap a learner, and weight each task by how well its gradient agrees with the gradients of all tasks.

    The inner loop, the losses, the adaptation and the training defaults are those of ``inner``.

    Args:
        spec: the specification of the tasks.
        inner: a learner with the ability ``PerTask``, such as maml or reptile. The command line takes its name and its
            options: ``--learner.inner=maml --learner.inner.inner_lr=0.01``.

    Raises:
        MisfitError: ``inner`` has no ``task_losses``.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> class Mean(nn.Module):  # predicts a constant theta; an inner step would end at the mean target
        ...     needs = Needs(kinds=("regression",))
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.theta = nn.Parameter(torch.tensor(0.0))
        ...     def task_losses(self, episodes):
        ...         goals = episodes.query.y.mean(1)
        ...         return (self.theta - goals).square(), {"theta": (self.theta - goals).detach()[:, None]}
        ...     def meta_gradient(self, episodes): ...
        ...     def adapt(self, support): ...
        >>> tasks = sample_tasks.Lines()
        >>> learner = GradientAgreement(tasks.spec, inner=Mean())
        >>> sorted(learner.meta_gradient(tasks.sample("train", range(4))))
        ['greatest_weight', 'least_weight', 'loss']
    """

    # All that an inner learner may need; an instance has the needs of its inner learner.
    needs = Needs(kinds=KIND_NAMES, couples_tasks=True, variable_way=True, zero_shot=True, rollouts=0)

    def __init__(self, spec: TaskSpec, *, inner: Learner) -> None:
        super().__init__()
        if not isinstance(inner, PerTask):
            raise MisfitError(
                f"gradient-agreement: got an inner {type(inner).__name__} without task_losses(episodes), expected a "
                "learner whose meta-gradient is a mean over tasks (kshot.protocols.PerTask); choose such a learner, "
                "for example maml or reptile"
            )
        self.inner = inner
        self.needs = attrs.evolve(inner.needs, couples_tasks=True, exact_gradient=False)
        self.training_defaults: Training = getattr(inner, "training_defaults", Training())

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """Add the gradient of sum_i w_i L_i to ``.grad`` (algorithm 1); the weights are constants."""
        # The inner loops: L_i(theta_i') and g_i = theta - theta_i' of each task, as rows [B, P].
        losses, away = self.inner.task_losses(episodes)
        gradients = torch.cat([d.detach().reshape(episodes.size, -1) for d in away.values()], 1)
        # The weights w_i, then the gradient of the weighted sum.
        weights = agreement(gradients)
        (weights * losses).sum().backward()
        return {"loss": losses.detach().mean(), "least_weight": weights.min(), "greatest_weight": weights.max()}

    def adapt(self, support: Support) -> Predictor:
        """Adapt as the inner learner does; return its predictor from queries [B, n, *input] to [B, n, ...]."""
        return self.inner.adapt(support)


def agreement(gradients: Tensor) -> Tensor:
    """Compute the weights w_i = sum_j g_i.g_j / sum_k |sum_j g_k.g_j| of the tasks (algorithm 1).

    Args:
        gradients: g_i [B, P]; their common scale does not matter.

    Returns:
        The weights [B], which may be negative; their absolute values sum to 1. If the sums are only rounding errors, as
        for two opposite tasks, all weights are 1/B.

    Example:
        Two tasks agree and one disagrees:

        >>> agreement(torch.tensor([[1.0, 2.0], [1.0, 2.0], [-1.0, -2.0]]))
        tensor([ 0.3333,  0.3333, -0.3333])
    """
    # Scale g to at most 1, so that squares neither overflow nor vanish.
    g = gradients / gradients.abs().max().clamp_min(torch.finfo(gradients.dtype).tiny)
    # sum_j g_i.g_j = g_i . (sum_j g_j): no B x B matrix is needed.
    together = (g * g.sum(0)).sum(1)
    total = together.abs().sum()
    # A total below the rounding error of its terms is treated as zero.
    rounding = torch.finfo(g.dtype).eps * g.norm(dim=1).sum().square()
    return torch.where(total > rounding, together / total, 1 / len(g))
