"""Reptile's inner loop: minibatches of the support, the moments of Adam, and the authors' settings.

Letters: B meta-batch, S support size, k inner steps, b examples of a minibatch.
"""

from __future__ import annotations

from typing import Literal

import torch
from attrs import frozen
from torch import Tensor, nn

from kshot import Support, TaskSpec, generator
from kshot.errors import DataError, OptionError
from kshot.inner import Tensors


def minibatches(support: Support, size: int, steps: int) -> Tensor:
    """Draw the indices of the support examples that each step uses: int64 [B, k, min(b, S)].

    As in the authors' code, passes over the support in random order follow one another and are cut into minibatches.
    If the support is not larger than a minibatch, every step uses all of it. The order of each task is drawn from the
    key of its episode.

    Args:
        support: the supports of B tasks.
        size: b.
        steps: k.

    Raises:
        DataError: the support is empty.

    Example:
        >>> support = Support(torch.zeros(1, 4, 2), torch.zeros(1, 4), key=torch.tensor([0]))
        >>> tuple(minibatches(support, size=3, steps=5).shape)
        (1, 5, 3)
    """
    B, S = support.y.shape[:2]
    if S == 0:
        raise DataError("reptile: got an empty support, expected at least one example; raise tasks.shot")
    if size >= S:
        return torch.arange(S, device=support.y.device).expand(B, steps, S)
    passes = 1 + steps * size // S
    generators = [generator(key, "reptile/minibatches") for key in support.key.tolist()]
    orders = [torch.cat([torch.randperm(S, generator=g) for _ in range(passes)]) for g in generators]
    return torch.stack([order[: steps * size].view(steps, size) for order in orders]).to(support.y.device)


class Moments(nn.Module):
    """Keep the second moments of Adam from task to task, as the authors' code does, instead of starting from 0 in each.

    They are buffers, so a checkpoint has them. Every task of a meta-batch starts with the same moments, and afterwards
    these are the mean over its tasks. So the numbers of chunks and processes make no difference. With a meta-batch of 1
    this is what the authors do; in a larger one, they pass the moments from one task to the next.

    Args:
        parameters: the parameters that adapt, by name.

    Attributes:
        v: the decaying means of the squared gradients [P], for all P parameters; 0 before the first task.
        steps: the number of inner steps of all meta-batches so far, int64 [].

    Example:
        >>> moments = Moments({"theta": torch.tensor([1.0, 2.0])})
        >>> moments.keep({"theta": torch.tensor([[4.0, 0.0], [2.0, 2.0]])}, steps=5)
        >>> moments.memory({"theta": torch.zeros(2)}, tasks=1)
        (tensor([5]), {'theta': tensor([[3., 1.]])})
    """

    v: Tensor
    steps: Tensor

    def __init__(self, parameters: Tensors) -> None:
        super().__init__()
        self.register_buffer("v", torch.cat([torch.zeros_like(p).flatten() for p in parameters.values()]))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def memory(self, parameters: Tensors, tasks: int) -> tuple[Tensor, Tensors]:
        """Return the memory of ``adam`` with which each of B tasks starts: the steps [B], and v by name [B, *].

        Args:
            parameters: tensors by name, whose names and shapes the result has.
            tasks: B.

        Raises:
            OptionError: other parameters adapt than when the learner was built.
        """
        sizes = [p.numel() for p in parameters.values()]
        if sum(sizes) != len(self.v):
            raise OptionError(
                f"reptile: got moments of {len(self.v)} numbers for parameters of {sum(sizes)}, expected one for each "
                "number that adapts; freeze parameters before the learner is built, or choose moments='reset'"
            )
        parts = self.v.split(sizes)
        each = zip(parameters.items(), parts, strict=True)
        v = {name: part.view(p.shape).expand(tasks, *p.shape) for (name, p), part in each}
        return self.steps.expand(tasks), v

    @torch.no_grad()
    def keep(self, v: Tensors, steps: int) -> None:
        """Store the mean over tasks of the moments ``v``, by name [B, *], after ``steps`` more steps."""
        self.v.copy_(torch.cat([each.mean(0).flatten() for each in v.values()]))
        self.steps += steps


@frozen
class Settings:
    """Store the authors' settings for one type of tasks; the names are those of the options of ``Reptile``."""

    inner_optimizer: Literal["sgd", "adam"]
    inner_lr: float
    inner_batch: int
    inner_steps: int
    test_batch: int
    test_steps: int


def authors_settings(spec: TaskSpec) -> Settings:
    """Return the settings of the authors' code (openai/supervised-reptile; for sine waves, the demo of their article).

    They are those of appendix A for Omniglot and mini-ImageNet, which stand here for all classification and for images
    of three channels. On mini-ImageNet the authors evaluate 1-shot by minibatches of 5, which is the whole support, and
    5-shot by 15, so 15 is right for both.

    Example:
        >>> authors_settings(TaskSpec(kind="classification", input_shape=(1, 28, 28), way=20, shot=1, query=5))
        Settings(inner_optimizer='adam', inner_lr=0.0005, inner_batch=20, inner_steps=10, test_batch=10, test_steps=50)
    """
    if spec.kind == "regression":
        return Settings("sgd", 0.02, inner_batch=10, inner_steps=5, test_batch=10, test_steps=32)
    if len(spec.input_shape) == 3 and spec.input_shape[0] == 3:
        return Settings("adam", 1e-3, inner_batch=10, inner_steps=8, test_batch=15, test_steps=50)
    if isinstance(spec.way, int) and spec.way >= 20:
        return Settings("adam", 5e-4, inner_batch=20, inner_steps=10, test_batch=10, test_steps=50)
    return Settings("adam", 1e-3, inner_batch=10, inner_steps=5, test_batch=5, test_steps=50)
