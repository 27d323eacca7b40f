"""Two classifiers to compare a result with: one knows how tasks are distributed, and one learns each task alone.

Letters: B tasks, S support examples, n queries, D dimensions of an input, M sampled normals.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from kshot import Support
from kshot.randomness import episode_keys
from kshot.registry import Range
from kshot_linear_classification.hyperplanes import LinearClassification

_EXCLUDED = -30.0
"""Log-likelihood of an example that contradicts a normal: finite, so that some of the sampled normals always remain."""


def bayes(
    tasks: LinearClassification, support: Support, x: Tensor, *, samples: Annotated[int, Range(1)] = 100_000
) -> Tensor:
    """Predict by Bayes' rule with the true distribution of tasks: no learner has a better expected accuracy.

    p(y | x, support) is proportional to the mean over normals w of p(x, y | w) prod_i p(x_i, y_i | w). The mean is
    over ``samples`` normals that are drawn from the distribution of tasks. Without noise, few of them agree with all S
    examples of a support: at worst one in 2^S, if the normals have S dimensions or more. So the result is precise for
    subspaces of a few dimensions, and for supports of up to about ten examples; other tasks need more samples.

    Args:
        tasks: the tasks, whose distribution is used.
        support: labelled examples: x [B, S, D], y [B, S].
        x: queries [B, n, D].
        samples: M, the number of normals.

    Returns:
        Log-probabilities of the labels [B, n, 2].

    Example:
        >>> tasks = LinearClassification(dimensions=4)
        >>> episode = tasks.sample("test", [0, 1])
        >>> bayes(tasks, episode.support, episode.query.x).shape
        torch.Size([2, 30, 2])
    """
    keys = episode_keys(0, "linear-classification/bayes", range(samples))
    normals = torch.from_numpy(tasks.normals(keys)).to(x)  # [M, D]
    right, wrong = (torch.tensor(p).log().clamp_min(_EXCLUDED).item() for p in (1 - tasks.noise, tasks.noise))
    predictions = []
    for task_x, task_y, queries in zip(support.x, support.y, x, strict=True):
        # The posterior of w, up to a constant: sum_i log p(x_i, y_i | w) [M].
        distance = task_x @ normals.mT  # [S, M]
        agrees = (distance > 0) == task_y[:, None].bool()
        posterior = (torch.where(agrees, right, wrong) + _input_likelihood(tasks, distance)).double().sum(0)
        # Leave out normals whose weight is negligible compared with the greatest weight.
        kept = (posterior > posterior.max() - 25).nonzero()[:, 0]
        # p(side of x, x | support), for the positive and the negative side [n].
        distance = queries @ normals[kept].mT
        joint = _input_likelihood(tasks, distance).double() + posterior[kept]
        positive, negative = (
            joint.masked_fill(~on_side, -torch.inf).logsumexp(-1) for on_side in (distance > 0, distance <= 0)
        )
        share = torch.sigmoid(positive - negative)
        p = (1 - tasks.noise) * share + tasks.noise * (1 - share)
        predictions.append(torch.stack([1 - p, p], -1).clamp_min(1e-12).log())
    return torch.stack(predictions).to(x)


def _input_likelihood(tasks: LinearClassification, distance: Tensor) -> Tensor:
    """Compute log p(x | w), up to terms that do not depend on w, from distances x . w of any shape.

    The density of d = x . w at |d| = margin + t is that of a normal at t. Relative to a standard normal at |d|, this is
    a factor exp(margin |d|), up to a constant; within the margin it is 0.
    """
    if not tasks.margin:
        return torch.zeros_like(distance)
    outside = distance.abs() >= tasks.margin - 1e-5  # the tolerance is for inputs rounded to float32
    return torch.where(outside, tasks.margin * distance.abs(), _EXCLUDED)


def logistic_regression(support: Support, x: Tensor, *, penalty: Annotated[float, Range(above=0)] = 1.0) -> Tensor:
    """Predict by a logistic regression on the support of each task alone, without a bias.

    It minimises sum_i log(1 + exp(-s_i w . x_i)) + penalty / 2 |w|^2, with s_i = 1 for label 1 and -1 for label 0, by
    Newton's method.

    Args:
        support: labelled examples: x [B, S, D], y [B, S].
        x: queries [B, n, D].
        penalty: the weight of the squared length of w.

    Returns:
        Logits of the labels [B, n, 2].

    Example:
        >>> episode = LinearClassification(dimensions=4).sample("test", [0, 1])
        >>> logistic_regression(episode.support, episode.query.x).shape
        torch.Size([2, 30, 2])
    """
    signed = (support.x * (2 * support.y - 1)[..., None]).double()  # s_i x_i [B, S, D]
    identity = torch.eye(signed.shape[-1], dtype=torch.float64, device=signed.device)
    w = signed.new_zeros(signed.shape[0], signed.shape[-1])
    for _ in range(20):
        p = torch.sigmoid(-torch.einsum("bsd,bd->bs", signed, w))
        gradient = penalty * w - torch.einsum("bs,bsd->bd", p, signed)
        hessian = penalty * identity + torch.einsum("bs,bsd,bse->bde", p * (1 - p), signed, signed)
        w = w - torch.linalg.solve(hessian, gradient)
    score = torch.einsum("bnd,bd->bn", x.double(), w)
    return F.pad(score[..., None], (1, 0)).to(x)
