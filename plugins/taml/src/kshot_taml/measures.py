"""Measure how unequal the losses of tasks are, and how uncertain predictions are.

The inequality measures are those that economists use for incomes; Jamal & Qi (2018, 1805.07722) use them for losses.
All are 0 for equal losses and more than 0 for others, and do not depend on the scale of the losses.

Letters: B tasks, written M in the paper; l_i the loss of task i, and m their mean; N way, n examples.

**Zero losses.** Logarithms and negative powers of 0 are infinite. So a loss counts as at least ``eps`` times the mean,
where eps is the precision of its type (1.2e-7 for float32). If all losses are 0, they are equal, and every measure is
0. Losses must not be negative (cross-entropies and squared errors never are); otherwise the measures mean nothing.
For a single task every measure is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor


def shares(losses: Tensor) -> Tensor:
    """Compute l_i / m, whose mean is 1.

    Args:
        losses: l_i [B], at least 0.

    Returns:
        The losses relative to their mean [B]: at least eps, and 1 for all tasks if every loss is 0.

    Example:
        >>> shares(torch.tensor([1.0, 3.0])), shares(torch.zeros(2))
        (tensor([0.5000, 1.5000]), tensor([1., 1.]))
    """
    mean = losses.mean()
    # Divide by 1 if the mean is 0, because autograd also differentiates the branch that ``where`` does not choose.
    relative = losses / torch.where(mean > 0, mean, 1)
    return torch.where(mean > 0, relative.clamp_min(torch.finfo(losses.dtype).eps), torch.ones_like(losses))


def gini(losses: Tensor) -> Tensor:
    """Compute the Gini coefficient sum_i sum_j |l_i - l_j| / (2 B sum_i l_i).

    Args:
        losses: l_i [B], at least 0.

    Returns:
        The coefficient [], from 0 to 1 - 1/B.

    Example:
        >>> gini(torch.tensor([1.0, 3.0])), gini(torch.tensor([0.0, 0.0, 0.0, 8.0]))
        (tensor(0.2500), tensor(0.7500))
    """
    r = shares(losses)
    return (r[:, None] - r[None]).abs().sum() / (2 * len(r) ** 2)


def theil(losses: Tensor) -> Tensor:
    """Compute the Theil index 1/B sum_i (l_i / m) ln(l_i / m).

    Args:
        losses: l_i [B], at least 0.

    Returns:
        The index [], from 0 to ln B.

    Example:
        1/2 (1/2 ln 1/2 + 3/2 ln 3/2) = 0.1308:

        >>> theil(torch.tensor([1.0, 3.0]))
        tensor(0.1308)
    """
    r = shares(losses)
    return (r * r.log()).mean()


def variance_of_logs(losses: Tensor) -> Tensor:
    """Compute the variance of logarithms 1/B sum_i (ln l_i - ln g)^2, where g is the geometric mean.

    Args:
        losses: l_i [B], at least 0.

    Returns:
        The variance [], at least 0.

    Example:
        The logarithms are 0 and 2, and their mean is 1:

        >>> round(float(variance_of_logs(torch.tensor([0.0, 2.0]).exp())), 4)
        1.0
    """
    logs = shares(losses).log()
    return (logs - logs.mean()).square().mean()


def atkinson(losses: Tensor, epsilon: float = 0.5) -> Tensor:
    """Compute the Atkinson index 1 - (1/B sum_i l_i^(1 - epsilon))^(1 / (1 - epsilon)) / m.

    For epsilon = 1 it is its limit, 1 - g / m, where g is the geometric mean.

    Args:
        losses: l_i [B], at least 0.
        epsilon: the aversion to inequality, at least 0; for 0 the index is 0. The greater it is, the more the smallest
            losses count.

    Returns:
        The index [], from 0 to 1.

    Example:
        >>> atkinson(torch.tensor([1.0, 4.0]), epsilon=1.0)  # 1 - 2 / 2.5
        tensor(0.2000)
        >>> atkinson(torch.tensor([1.0, 9.0]), epsilon=0.5)  # 1 - 2^2 / 5
        tensor(0.2000)
    """
    r = shares(losses)
    if epsilon == 1:
        return 1 - r.log().mean().exp()
    return 1 - r.pow(1 - epsilon).mean().pow(1 / (1 - epsilon))


def generalised_entropy(losses: Tensor, alpha: float = 2.0) -> Tensor:
    """Compute the generalised entropy index 1 / (B alpha (alpha - 1)) sum_i ((l_i / m)^alpha - 1).

    For alpha = 1 it is its limit, the Theil index; for alpha = 0 it is the mean logarithmic deviation,
    -1/B sum_i ln(l_i / m); for alpha = 2 it is half the squared coefficient of variation.

    Args:
        losses: l_i [B], at least 0.
        alpha: any number. The greater it is, the more the largest losses count.

    Returns:
        The index [], at least 0.

    Example:
        >>> generalised_entropy(torch.tensor([1.0, 3.0]))  # the mean is 2 and the deviation 1: 1/2 (1/2)^2
        tensor(0.1250)
    """
    r = shares(losses)
    if alpha == 1:
        return (r * r.log()).mean()
    if alpha == 0:
        return -r.log().mean()
    return (r.pow(alpha) - 1).mean() / (alpha * (alpha - 1))


def inequality(measure: str, losses: Tensor, *, epsilon: float = 0.5, alpha: float = 2.0) -> Tensor:
    """Compute an inequality by its name: gini, theil, variance-of-logs, atkinson or generalised-entropy.

    Args:
        measure: the name.
        losses: l_i [B], at least 0.
        epsilon: the option of ``atkinson``.
        alpha: the option of ``generalised-entropy``.

    Returns:
        The inequality [], a number without a unit.

    Raises:
        KeyError: there is no measure of this name.

    Example:
        >>> inequality("gini", torch.tensor([1.0, 3.0]))
        tensor(0.2500)
    """
    if measure == "atkinson":
        return atkinson(losses, epsilon)
    if measure == "generalised-entropy":
        return generalised_entropy(losses, alpha)
    return {"gini": gini, "theil": theil, "variance-of-logs": variance_of_logs}[measure](losses)


def prediction_entropy(logits: Tensor) -> Tensor:
    """Compute the mean entropy -sum_c p_c ln p_c of predicted distributions.

    Args:
        logits: [n, N].

    Returns:
        The entropy [] in nats, from 0 to ln N.

    Example:
        >>> prediction_entropy(torch.zeros(3, 5))  # ln 5
        tensor(1.6094)
    """
    logs = logits.log_softmax(-1)
    return -(logs.exp() * logs).sum(-1).mean()
