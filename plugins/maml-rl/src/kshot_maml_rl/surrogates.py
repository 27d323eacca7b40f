"""Surrogate objectives, whose gradients are policy gradients, and the advantages that they weigh.

The surrogates are functions of one task, the advantages of B tasks. Every surrogate is a mean over the steps that were
taken, as in the paper's code: if all trajectories take T steps, an estimate of the return divided by T, which is to be
maximised. ``running`` is true for a step that was taken and false after the end of its trajectory. Nothing depends on
the steps after the end. Letters: B tasks, E trajectories, T steps, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from kshot_maml_rl.steps import Batch as Batch
from kshot_maml_rl.steps import mean_over_steps


def rewards_to_go(rewards: Tensor, discount: float) -> Tensor:
    """Compute G_t = sum over t' >= t of discount^(t' - t) r_t', [.., T] -> [.., T].

    Example:
        >>> rewards_to_go(torch.tensor([1.0, 1.0, 1.0]), 0.5)
        tensor([1.7500, 1.5000, 1.0000])
    """
    # One product with the triangular matrix of the discounts.
    steps = torch.arange(rewards.shape[-1], device=rewards.device)
    ahead = steps[:, None] - steps  # [t', t]
    return rewards @ (torch.pow(discount, ahead.clamp_min(0).to(rewards)) * (ahead >= 0))


def features(observations: Tensor) -> Tensor:
    """Compute the features o, o^2, t, t^2, t^3 and 1 of Duan et al. 2016 (1604.06778, appendix 2).

    Args:
        observations: [B, E, T, *o].

    Returns:
        [B, E, T, F], with observations clamped to [-10, 10] and t in hundreds of steps.

    Example:
        >>> features(torch.full((1, 1, 1, 1), 2.0))
        tensor([[[[2., 4., 0., 0., 0., 1.]]]])
    """
    flat = observations.reshape(*observations.shape[:3], -1).clamp(-10, 10)
    t = (torch.arange(flat.shape[2], device=flat.device) / 100).to(flat)[:, None].expand(*flat.shape[:3], 1)
    return torch.cat([flat, flat.square(), t, t.square(), t**3, torch.ones_like(t)], -1)


def linear_baseline(observations: Tensor, targets: Tensor, running: Tensor, ridge: float = 1e-5) -> Tensor:
    """Fit ``targets`` [B, E, T] of each task linearly by ``features``; return the fitted values [B, E, T].

    Args:
        observations: [B, E, T, *o].
        running: steps that were taken [B, E, T]; the others do not count.
        ridge: added to the diagonal of the normal equations, which are solved in float64.

    Example:
        >>> values = linear_baseline(torch.zeros(1, 4, 3, 1), torch.ones(1, 4, 3), torch.ones(1, 4, 3))
        >>> torch.allclose(values, torch.ones(1, 4, 3), atol=1e-4)
        True
    """
    # Normal equations: (X^T X + ridge I) w = X^T y, with the rows of untaken steps set to 0.
    x = features(observations).double().flatten(1, 2)
    x = x * running.double().flatten(1)[..., None]
    y = (targets * running).double().flatten(1)[..., None]
    gram = x.mT @ x + ridge * torch.eye(x.shape[-1], dtype=torch.float64, device=x.device)
    weights: Tensor = torch.linalg.solve(gram, x.mT @ y)
    return (x @ weights)[..., 0].reshape(targets.shape).to(targets)


def advantages(
    observations: Tensor, rewards: Tensor, running: Tensor, *, discount: float, gae: float, normalise: bool
) -> Tensor:
    """Compute A_t [B, E, T] over a linear baseline V, by generalised advantage estimation (1506.02438, eq. 16).

    Args:
        observations: [B, E, T, *o].
        rewards, running: [B, E, T].
        discount: gamma.
        gae: lambda; with 1, A_t = G_t - V(o_t).
        normalise: whether to normalise to mean 0 and standard deviation 1 over the taken steps of each task.

    Example:
        >>> rewards = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
        >>> options = {"discount": 1.0, "gae": 1.0, "normalise": True}
        >>> A = advantages(torch.zeros(1, 2, 2, 1), rewards, torch.ones(1, 2, 2), **options)
        >>> float(A.mean().abs()) < 1e-6
        True
    """
    mask = running.to(rewards)
    values = linear_baseline(observations, rewards_to_go(rewards, discount), running) * mask
    # delta_t = r_t + gamma V(o_{t+1}) - V(o_t), and A_t = sum over l of (gamma lambda)^l delta_{t+l}.
    after = torch.cat([values[..., 1:], torch.zeros_like(values[..., :1])], -1)
    estimates = rewards_to_go(rewards + discount * after - values, discount * gae) * mask
    if not normalise:
        return estimates
    # Moments over the taken steps alone; the others stay 0.
    count = mask.sum((1, 2), keepdim=True)
    centred = (estimates - estimates.sum((1, 2), keepdim=True) / count) * mask
    return centred / ((centred.square().sum((1, 2), keepdim=True) / count).sqrt() + 1e-8)


def lvc(log_ratio: Tensor, advantage: Tensor, running: Tensor | None = None) -> Tensor:
    """Compute the mean of r A with r = pi / pi_old, the low-variance curvature estimator of ProMP (1810.06784).

    Its gradient at pi_old is that of REINFORCE. Its second derivative treats each step separately and omits how earlier
    actions lead to later states; it therefore has little variance, and is exact only if they do not.

    Args:
        log_ratio: log r [E, T].
        advantage: A [E, T].
        running: whether the step was taken, or its weight [E, T]; None if all steps were taken.

    Example:
        >>> lvc(torch.zeros(1, 2), torch.tensor([[1.0, 3.0]]))
        tensor(2.)
    """
    return mean_over_steps(log_ratio.exp() * advantage, running)


def dice(log_ratio: Tensor, advantage: Tensor, running: Tensor | None = None) -> Tensor:
    """Compute the mean of (prod_{t' <= t} r_t' - prod_{t' < t} r_t') A with r = pi / pi_old: Loaded DiCE.

    Farquhar, Whiteson & Foerster 2019 (1909.10549). All its derivatives at pi_old equal in expectation those of the
    return, for any baseline of the advantage; the second one is noisy, and more so for longer trajectories.

    Args:
        log_ratio: log r [E, T], 0 after the end.
        advantage: A [E, T].
        running: whether the step was taken, or its weight [E, T]; None if all steps were taken.

    Example:
        At pi_old the value is 0; only the derivatives matter:

        >>> dice(torch.zeros(1, 2), torch.tensor([[1.0, 3.0]]))
        tensor(0.)
    """
    past = log_ratio.cumsum(-1)
    return mean_over_steps((past.exp() - (past - log_ratio).exp()) * advantage, running)


def log_likelihood(log_ratio: Tensor, advantage: Tensor, running: Tensor | None = None) -> Tensor:
    """Compute the mean of log(pi / pi_old) A, the estimator of MAML's own code (1703.03400, eq. 4).

    It differs from the mean of log pi A by a constant. Its gradient is that of REINFORCE. Its second derivative lacks
    the product of grad log pi with itself, and is therefore not that of the return, even in expectation.

    Args:
        log_ratio: log r [E, T].
        advantage: A [E, T].
        running: whether the step was taken, or its weight [E, T]; None if all steps were taken.

    Example:
        >>> log_likelihood(torch.tensor([[0.5, 0.0]]), torch.tensor([[1.0, 3.0]]))
        tensor(0.2500)
    """
    return mean_over_steps(log_ratio * advantage, running)


ESTIMATORS: Mapping[str, Callable[..., Tensor]] = {"lvc": lvc, "dice": dice, "log_likelihood": log_likelihood}
"""The surrogates of the inner steps by name. Their gradients are equal, their second derivatives differ."""


def clipped(log_ratio: Tensor, advantage: Tensor, clip: float, running: Tensor | None = None) -> Tensor:
    """Compute the mean of min(r A, clip(r, 1 - clip, 1 + clip) A): PPO (Schulman et al. 2017, 1707.06347, eq. 7).

    Args:
        log_ratio: log r [E, T].
        advantage: A [E, T].
        clip: how far r may move from 1 to gain.
        running: whether the step was taken, or its weight [E, T]; None if all steps were taken.

    Example:
        >>> clipped(torch.tensor([[0.5]]), torch.tensor([[1.0]]), clip=0.2)
        tensor(1.2000)
    """
    r = log_ratio.exp()
    return mean_over_steps(torch.minimum(r * advantage, r.clamp(1 - clip, 1 + clip) * advantage), running)
