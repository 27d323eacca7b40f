"""The weights of the losses after each inner step: "multi-step loss optimization", in section 4 of the paper.

Letter: K inner steps in training.
"""

from __future__ import annotations

import torch
from torch import Tensor


def loss_weights(iteration: Tensor, steps: int, iterations: int) -> Tensor:
    """Return the weights v [K] of the losses after each step: equal at first, then all weight moves to the last step.

    They change linearly over ``iterations`` meta-batches. The authors' code changes them after every 500 and keeps 3 %
    of their initial value until the end, where it drops to 0.

    Args:
        iteration: the number of meta-batches before the present one [].

    Example:
        >>> loss_weights(torch.tensor(0.0), 4, 10), loss_weights(torch.tensor(5.0), 4, 10)
        (tensor([0.2500, 0.2500, 0.2500, 0.2500]), tensor([0.1250, 0.1250, 0.1250, 0.6250]))
    """
    earlier = ((1 - iteration / iterations).clamp(min=0) / steps).expand(steps - 1)
    return torch.cat([earlier, (1 - earlier.sum())[None]])
