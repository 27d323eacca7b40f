"""Asked steps: the whole numbers in a query's ``x``, checked, and the iterates picked by them."""

from __future__ import annotations

import torch
from torch import Tensor

from kshot.errors import DataError


def last_step(x: Tensor, who: str) -> int:
    """The last of the steps ``x`` [B, T], at least 0: so many updates have to be made.

    Raises:
        DataError: a step is negative or lies between two updates, or there is none.
    """
    if not x.numel() or bool((x < 0).any() | (x != x.round()).any()):
        raise DataError(
            f"{who}: asked for the steps {x.flatten()[:8].tolist()} of shape {list(x.shape)}, expected at least one, "
            "and whole numbers of updates from 0 on"
        )
    return int(x.max())


def at_steps(points: list[Tensor], x: Tensor) -> Tensor:
    """``points`` [B, P] after 0, 1, ... updates -> those at the steps ``x`` [B, T]: [B, T, P]."""
    rows = torch.arange(len(x), device=x.device)[:, None]
    return torch.stack(points, 1)[rows, x.long()]
