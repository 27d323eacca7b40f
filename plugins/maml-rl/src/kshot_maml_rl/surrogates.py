"""What policy gradients are the gradients of, and the baseline, as functions of one task (surrogates) or of B.

Letters: B tasks, E trajectories, T steps, F features. ``running`` is 1 where a step was taken. Every surrogate is a
mean over the E T steps of the rollout, as in the paper's code: the return divided by T, to be maximised.
"""

from __future__ import annotations

import attrs
import torch
from attrs import frozen
from torch import Tensor

from kshot.episode import register_value


@frozen(eq=False)
class Batch:
    """What is learned from: of E trajectories a task, [B, E, T, ...], with the log-probabilities that they had."""

    observations: Tensor
    actions: Tensor
    advantages: Tensor
    running: Tensor
    log_probability: Tensor


register_value(Batch, *(f.name for f in attrs.fields(Batch)))


def rewards_to_go(rewards: Tensor, discount: float) -> Tensor:
    """G_t = sum over t' >= t of discount^(t' - t) r_t' [.., T]."""
    steps = torch.arange(rewards.shape[-1], device=rewards.device)
    ahead = steps[:, None] - steps  # [t', t]
    return rewards @ (torch.pow(discount, ahead.clamp_min(0).to(rewards)) * (ahead >= 0))


def features(observations: Tensor) -> Tensor:
    """Of Duan et al. 2016 (1604.06778, appendix 2): o, o^2, t, t^2, t^3 and 1, with t in hundreds: [.., T, F]."""
    flat = observations.reshape(*observations.shape[:3], -1).clamp(-10, 10)
    t = (torch.arange(flat.shape[2], device=flat.device) / 100).to(flat)[:, None].expand(*flat.shape[:3], 1)
    return torch.cat([flat, flat.square(), t, t.square(), t**3, torch.ones_like(t)], -1)


def linear_baseline(observations: Tensor, targets: Tensor, running: Tensor, ridge: float = 1e-5) -> Tensor:
    """Each task's least-squares fit of ``targets`` [B, E, T] by ``features``: its values [B, E, T]; float64 within."""
    x = features(observations).double().flatten(1, 2)
    x = x * running.double().flatten(1)[..., None]
    y = (targets * running).double().flatten(1)[..., None]
    gram = x.mT @ x + ridge * torch.eye(x.shape[-1], dtype=torch.float64, device=x.device)
    weights: Tensor = torch.linalg.solve(gram, x.mT @ y)
    return (x @ weights)[..., 0].reshape(targets.shape).to(targets)


def advantages(
    observations: Tensor, rewards: Tensor, running: Tensor, *, discount: float, gae: float, normalise: bool
) -> Tensor:
    """A_t [B, E, T]: rewards to go less the linear baseline V, by generalised advantage estimation (1506.02438).

    Args:
        gae: lambda; 1 is the whole sum of rewards, G_t - V(o_t).
        normalise: to mean 0 and standard deviation 1 over the steps of each task.
    """
    mask = running.to(rewards)
    values = linear_baseline(observations, rewards_to_go(rewards, discount), running) * mask
    after = torch.cat([values[..., 1:], torch.zeros_like(values[..., :1])], -1)
    found = rewards_to_go(rewards + discount * after - values, discount * gae) * mask
    if not normalise:
        return found
    count = mask.sum((1, 2), keepdim=True)
    found = (found - found.sum((1, 2), keepdim=True) / count) * mask
    return found / ((found.square().sum((1, 2), keepdim=True) / count).sqrt() + 1e-8)


def lvc(log_ratio: Tensor, advantage: Tensor) -> Tensor:
    """Mean of r A, r = pi / pi_old = exp ``log_ratio`` [E, T]: the low-variance curvature estimator of ProMP (Rothfuss
    et al. 2019, 1810.06784).

    Its gradient at pi_old is that of REINFORCE. Its second derivative takes each step by itself: it leaves out how
    earlier actions lead to later states, which makes it quiet, and exact only where they do not.
    """
    return (log_ratio.exp() * advantage).mean()


def dice(log_ratio: Tensor, advantage: Tensor) -> Tensor:
    """Mean of (prod_{t' <= t} r_t' - prod_{t' < t} r_t') A, r = pi / pi_old = exp ``log_ratio`` [E, T]: Loaded DiCE
    (Farquhar, Whiteson & Foerster 2019, 1909.10549).

    All its derivatives at pi_old are, on average, those of the return, whatever baseline the advantage has; the second
    one is noisy, the more so the longer the trajectories.
    """
    past = log_ratio.cumsum(-1)
    return ((past.exp() - (past - log_ratio).exp()) * advantage).mean()


def clipped(log_ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """Mean of min(r A, clip(r, 1 - clip, 1 + clip) A): PPO (Schulman et al. 2017, 1707.06347, eq. 7)."""
    r = log_ratio.exp()
    return torch.minimum(r * advantage, r.clamp(1 - clip, 1 + clip) * advantage).mean()
