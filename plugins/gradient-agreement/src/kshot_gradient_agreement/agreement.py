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
    """Weigh the tasks of a meta-batch: a task counts by how far its inner loop goes the way of all of them together.

    It takes a learner and is one: inner loop, losses, adaptation and training defaults are those of ``inner``.

    Args:
        spec: the tasks'.
        inner: a learner with the ability ``PerTask``, such as maml or reptile; by name with options of its own:
            ``--learner.inner=maml --learner.inner.inner_lr=0.01``.

    Raises:
        MisfitError: ``inner`` can't be taken apart by task.
    """

    # Those of any learner it may be around; an instance needs what its inner one needs.
    needs = Needs(kinds=KIND_NAMES, couples_tasks=True, variable_way=True, zero_shot=True, rollouts=0)

    def __init__(self, spec: TaskSpec, *, inner: Learner) -> None:
        super().__init__()
        if not isinstance(inner, PerTask):
            raise MisfitError(
                f"gradient-agreement: inner is a {type(inner).__name__} without task_losses(episodes), so its "
                "meta-gradient can't be taken apart by task (kshot.protocols.PerTask); expected one that can, such as "
                "maml or reptile"
            )
        self.inner = inner
        self.needs = attrs.evolve(inner.needs, couples_tasks=True, exact_gradient=False)
        self.training_defaults: Training = getattr(inner, "training_defaults", Training())

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """The gradient of sum_i w_i L_i (algorithm 1); the weights count as constants."""
        losses, away = self.inner.task_losses(episodes)
        gradients = torch.cat(
            [d.detach().reshape(episodes.size, -1) for d in away.values()], 1
        )  # g_i = theta - theta_i' [B, P]
        weights = agreement(gradients)
        (weights * losses).sum().backward()
        return {"loss": losses.detach().mean(), "least_weight": weights.min(), "greatest_weight": weights.max()}

    def adapt(self, support: Support) -> Predictor:
        """As the inner learner does."""
        return self.inner.adapt(support)


def agreement(gradients: Tensor) -> Tensor:
    """g_i [B, P] -> w_i = sum_j g_i.g_j / sum_k |sum_j g_k.g_j| [B], which may be negative; sum_i |w_i| = 1.

    The scale of g does not matter. Where nothing is left of the sums but rounding, as between two opposite tasks,
    no weight is better than another: then all are 1/B.
    """
    g = gradients / gradients.abs().max().clamp_min(torch.finfo(gradients.dtype).tiny)
    together = (g * g.sum(0)).sum(1)
    total = together.abs().sum()
    rounding = torch.finfo(g.dtype).eps * g.norm(dim=1).sum().square()
    return torch.where(total > rounding, together / total, 1 / len(g))
