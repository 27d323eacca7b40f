"""Surrogate objectives, whose gradients are policy gradients, and the advantages that they weigh.

The surrogates are functions of one task, the advantages of B tasks. Every surrogate is a mean over the E T steps of a
rollout, as in the paper's code: an estimate of the return divided by T, which is to be maximised. ``running`` is 1 for
a step that was taken and 0 after the end. Letters: B tasks, E trajectories, T steps, F features.
"""

from __future__ import annotations

import attrs
import torch
from attrs import frozen
from torch import Tensor

from kshot.episode import register_value


@frozen(eq=False)
class Batch:
    """Store the data that a task learns from: E trajectories per task, each field [B, E, T, ...].

    Attributes:
        observations, actions: as the rollout has them.
        advantages: A_t [B, E, T].
        running: whether the step was taken [B, E, T].
        log_probability: log pi(a_t | o_t) of the policy that played [B, E, T].

    Example:
        >>> zeros = torch.zeros(2, 3, 4)
        >>> batch = Batch(zeros[..., None], zeros, zeros, zeros == 0, zeros)
        >>> tuple(batch.advantages.shape)
        (2, 3, 4)
    """

    observations: Tensor
    actions: Tensor
    advantages: Tensor
    running: Tensor
    log_probability: Tensor


register_value(Batch, *(f.name for f in attrs.fields(Batch)))


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


def lvc(log_ratio: Tensor, advantage: Tensor) -> Tensor:
    """Compute the mean of r A with r = pi / pi_old, the low-variance curvature estimator of ProMP (1810.06784).

    Its gradient at pi_old is that of REINFORCE. Its second derivative treats each step separately and omits how earlier
    actions lead to later states; it therefore has little variance, and is exact only if they do not.

    Args:
        log_ratio: log r [E, T].
        advantage: A [E, T].

    Example:
        >>> lvc(torch.zeros(1, 2), torch.tensor([[1.0, 3.0]]))
        tensor(2.)
    """
    return (log_ratio.exp() * advantage).mean()


def dice(log_ratio: Tensor, advantage: Tensor) -> Tensor:
    """Compute the mean of (prod_{t' <= t} r_t' - prod_{t' < t} r_t') A with r = pi / pi_old: Loaded DiCE.

    Farquhar, Whiteson & Foerster 2019 (1909.10549). All its derivatives at pi_old equal in expectation those of the
    return, for any baseline of the advantage; the second one is noisy, and more so for longer trajectories.

    Args:
        log_ratio: log r [E, T].
        advantage: A [E, T].

    Example:
        At pi_old the value is 0; only the derivatives matter:

        >>> dice(torch.zeros(1, 2), torch.tensor([[1.0, 3.0]]))
        tensor(0.)
    """
    past = log_ratio.cumsum(-1)
    return ((past.exp() - (past - log_ratio).exp()) * advantage).mean()


def clipped(log_ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """Compute the mean of min(r A, clip(r, 1 - clip, 1 + clip) A): PPO (Schulman et al. 2017, 1707.06347, eq. 7).

    Args:
        log_ratio: log r [E, T].
        advantage: A [E, T].

    Example:
        >>> clipped(torch.tensor([[0.5]]), torch.tensor([[1.0]]), clip=0.2)
        tensor(1.2000)
    """
    r = log_ratio.exp()
    return torch.minimum(r * advantage, r.clamp(1 - clip, 1 + clip) * advantage).mean()
