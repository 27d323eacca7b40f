"""Change the loss and the order of the gradients during the training (Antoniou et al. 2018, 1810.09502, section 4).

Letter: K inner steps in training.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from kshot import TaskSpec, Training
from kshot.errors import OptionError


class Annealing(nn.Module):
    """Count meta-batches, and choose the loss and the order of the gradients of the current one by its number.

    Args:
        loss_iterations: the number of meta-batches, from the first, in which the losses after all steps count.
        first_order_iterations: the number of meta-batches, from the first, with first-order gradients.
        second_order: whether the gradients of later meta-batches are of second order.

    Attributes:
        meta_batches: the number of meta-batches before the current one, int64 []. The engine treats this buffer like
            the counters of batch norm: it is in checkpoints, and a meta-batch counts once, whatever the number of
            chunks and processes.

    Example:
        >>> Annealing(loss_iterations=5, first_order_iterations=0, second_order=True).phase()
        (True, True)
    """

    meta_batches: Tensor

    def __init__(self, loss_iterations: int, first_order_iterations: int, *, second_order: bool) -> None:
        super().__init__()
        self.loss_iterations, self.first_order_iterations = loss_iterations, first_order_iterations
        self.second_order = second_order
        self.register_buffer("meta_batches", torch.zeros((), dtype=torch.int64))

    def phase(self) -> tuple[bool, bool]:
        """Return whether the losses after all steps count, and whether gradients are of second order."""
        done = int(self.meta_batches)
        return done < self.loss_iterations, self.second_order and done >= self.first_order_iterations

    def weights(self, losses: Sequence[Tensor]) -> Tensor:
        """Return the weights v [K] of ``losses``, which are K scalars, in their type."""
        return loss_weights(self.meta_batches.to(losses[-1].dtype), len(losses), self.loss_iterations)


def loss_weights(iteration: Tensor, steps: int, iterations: int) -> Tensor:
    """Return the weights v [K] of the losses after each step: equal at first, then all weight moves to the last step.

    They change linearly over ``iterations`` meta-batches. The authors' code changes them after every 500 and keeps 3 %
    of their initial value until the end, where it drops to 0.

    Args:
        iteration: the number of meta-batches before the current one [].
        steps: K.
        iterations: the number of meta-batches until the last step has all the weight.

    Example:
        >>> loss_weights(torch.tensor(0.0), 4, 10), loss_weights(torch.tensor(5.0), 4, 10)
        (tensor([0.2500, 0.2500, 0.2500, 0.2500]), tensor([0.1250, 0.1250, 0.1250, 0.6250]))
    """
    earlier = ((1 - iteration / iterations).clamp(min=0) / steps).expand(steps - 1)
    return torch.cat([earlier, (1 - earlier.sum())[None]])


def check_rates(rates: Tensor, steps: int, tensors: Collection[str]) -> None:
    """Check that there is a rate for each inner step and each parameter tensor that adapts.

    Raises:
        OptionError: ``rates`` has another shape than [``steps``, number of ``tensors``].

    Example:
        >>> check_rates(torch.zeros(5, 2), 5, ["weight", "bias"])
    """
    if tuple(rates.shape) != (steps, len(tensors)):
        raise OptionError(
            f"mamlpp: got rates of shape {tuple(rates.shape)}, expected {(steps, len(tensors))}: one for each inner "
            "step in training and each parameter tensor that adapts; set the attribute rates to this shape"
        )


def initial_rate(spec: TaskSpec) -> float:
    """Return the rate from which all rates start: the authors' 0.1 for Omniglot, and 0.01 for regression.

    Example:
        >>> initial_rate(TaskSpec(kind="regression", input_shape=(1,), target_shape=(1,), shot=5, query=5))
        0.01
    """
    return 0.01 if spec.kind == "regression" else 0.1


def default_training(spec: TaskSpec) -> Training:
    """Return the default training: the authors' for Omniglot, but 500 iterations instead of 50,000.

    The paper has no regression. For regression the learning rate of the outer optimizer is smaller: on sine waves,
    training with 0.001 diverged for some seeds, because the learned rates became too large.

    Example:
        >>> default_training(TaskSpec(kind="classification", input_shape=(4,), way=5, shot=1, query=5)).schedule
        'cosine'
    """
    if spec.kind == "regression":
        return Training(lr=5e-4, meta_batch=25, iterations=500, clip=1.0)
    return Training(schedule="cosine", meta_batch=8, iterations=500)
