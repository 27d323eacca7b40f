"""The steps that a query requests in its ``x``, the points at these steps, and the check of the losses on the way."""

from __future__ import annotations

import torch
from torch import Tensor

from kshot import Episode
from kshot.errors import DataError, TrainingError


def last_step(x: Tensor, who: str) -> int:
    """Return the last of the steps ``x`` [B, T], which is the number of updates to make.

    Args:
        who: the learner, for the message.

    Raises:
        DataError: a step is negative or not a whole number, or there is no step.

    Example:
        >>> last_step(torch.tensor([[1.0, 5.0]]), "l2l")
        5
    """
    if not x.numel() or bool((x < 0).any() | (x != x.round()).any()):
        raise DataError(
            f"{who}: got the steps {x.flatten()[:8].tolist()} of shape {list(x.shape)}, expected at least one, and "
            "whole numbers of updates from 0 on; change the query"
        )
    return int(x.max())


def at_steps(points: list[Tensor], x: Tensor) -> Tensor:
    """Select from ``points`` [B, P] after 0, 1, ... updates those at the steps ``x`` [B, T]: [B, T, P].

    Example:
        >>> at_steps([torch.tensor([[0.0]]), torch.tensor([[7.0]])], torch.tensor([[1.0, 0.0]]))
        tensor([[[7.],
                 [0.]]])
    """
    rows = torch.arange(len(x), device=x.device)[:, None]
    return torch.stack(points, 1)[rows, x.long()]


def check_losses(curve: Tensor, first: int, episodes: Episode) -> None:
    """Check that all losses of an unroll are finite.

    Args:
        curve: the losses [B, T].
        first: the number of the first step.
        episodes: the meta-batch, to name the episode by its number.

    Raises:
        TrainingError: a loss is NaN or infinite; the message gives the first task and step.
    """
    curve = curve.detach()
    bad = (~curve.isfinite()).nonzero()
    if len(bad):
        b, t = bad[0].tolist()
        episode = "" if episodes.origin is None else f", episode {episodes.origin.indices[b]}"
        raise TrainingError(
            f"l2l: got loss {float(curve[b, t])} of task {b}{episode} at step {first + t}, expected a finite number; "
            "lower the outer rate or output_scale, or look at this task"
        )
