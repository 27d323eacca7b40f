"""What a recurrent learner is shown of an episode, step by step: (x_t, y_{t-1}), whatever kind of task it is.

Letters: B meta-batch, N way, S support size, n queries, T time, F numbers of an input, I numbers shown at a step.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor

from kshot import Support, TaskSpec, generator
from kshot.episode import check_finite
from kshot.errors import DataError


@frozen
class Steps:
    """Turns episodes of one kind of tasks into steps.

    Sequences are shown as they are: a stream carries the label of the step before in its own inputs. Of
    classification tasks the support becomes such a stream, in random order, and each query a step that follows it.

    Attributes:
        spec: the tasks'.
        standardise: whether each example has its mean taken off and is divided by its standard deviation. Labels
            never are, nor sequences that are no streams of examples.
    """

    spec: TaskSpec
    standardise: bool = True

    @property
    def labels(self) -> int:
        """How many of the numbers of a step are a label: N where the learner adds one, or a stream carries it."""
        streams = self.spec.kind == "classification" or "stream" in self.spec.provides
        return self.spec.way if streams and isinstance(self.spec.way, int) else 0

    @property
    def size(self) -> int:
        """I, numbers shown at a step."""
        return math.prod(self.spec.input_shape) + (self.labels if self.spec.kind == "classification" else 0)

    @property
    def target(self) -> tuple[int, ...]:
        """The shape of one answer: (N,) logits of labels, or those of bits."""
        return (self.spec.way,) if isinstance(self.spec.way, int) else self.spec.target_shape

    @property
    def outputs(self) -> int:
        """Numbers answered at a step."""
        return math.prod(self.target)

    def of_sequence(self, x: Tensor) -> Tensor:
        """Sequences ``x`` [B, T, *input] -> steps [B, T, I].

        Raises:
            DataError: a length of 0, or inputs that are not finite.
        """
        if x.shape[1] == 0:
            raise DataError(f"the sequences have length 0 (inputs of shape {tuple(x.shape)}), expected a step")
        check_finite(x, "inputs of a sequence")
        shown = x.flatten(2)
        if not self.labels:
            return shown
        return self._step(shown[..., : -self.labels], shown[..., -self.labels :])

    def of_support(self, support: Support) -> tuple[Tensor, Tensor]:
        """The support as a stream [B, S, I], and the label that nothing has shown yet: the last one's [B, N].

        Supports are ordered by class, which would tell the labels; the order is drawn from the episode's key.
        """
        S = support.x.shape[1]
        order = [torch.randperm(S, generator=generator(int(key), "order of the support")) for key in support.key]
        drawn = torch.stack(order).to(support.y.device)
        rows = torch.arange(len(drawn), device=drawn.device)[:, None]
        x = support.x[rows, drawn].flatten(2)
        labels = F.one_hot(support.y[rows, drawn], self.labels).to(x.dtype)
        return self._step(x, F.pad(labels, (0, 0, 1, 0))[:, :-1]), labels[:, -1]

    def of_queries(self, x: Tensor, label: Tensor) -> Tensor:
        """Queries ``x`` [B, n, *input], each shown with the support's last ``label`` [B, N] -> [B, n, I]."""
        return self._step(x.flatten(2), label[:, None].expand(-1, x.shape[1], -1))

    def _step(self, example: Tensor, label: Tensor) -> Tensor:
        if self.standardise:
            example = F.layer_norm(example, example.shape[-1:])
        return torch.cat([example, label], -1)
