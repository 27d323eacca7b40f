"""The inputs of a recurrent learner, step by step: (x_t, y_{t-1}), for tasks of either kind.

Letters: B meta-batch, N way, S support size, n queries, T time, I numbers of a step.
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
    """Convert episodes of one kind of tasks to the steps that a recurrent learner sees.

    Sequences are shown as they are: a stream contains the label of the step before in its own inputs. The support of
    a classification task becomes such a stream, in random order, and each query a step that follows it.

    Attributes:
        spec: the specification of the tasks.
        standardise: whether to subtract the mean of each example and divide it by its standard deviation. Labels are
            never standardised, nor are sequences that are not streams of examples.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> tasks = sample_tasks.LabelStream(way=3, length=8)
        >>> steps = Steps(tasks.spec)
        >>> steps.size, steps.target  # four numbers of an example and a one-hot label; three logits
        (7, (3,))
    """

    spec: TaskSpec
    standardise: bool = True

    @property
    def labels(self) -> int:
        """Return how many numbers of a step are a label: N if the learner adds one or a stream contains it, or 0.

        A label that is a string of L characters has L * N numbers.
        """
        streams = self.spec.kind == "classification" or "stream" in self.spec.provides
        return self.outputs if streams and isinstance(self.spec.way, int) else 0

    @property
    def size(self) -> int:
        """Return I, how many numbers are shown at a step."""
        return math.prod(self.spec.input_shape) + (self.labels if self.spec.kind == "classification" else 0)

    @property
    def target(self) -> tuple[int, ...]:
        """Return the shape of one answer: (N,) or (L, N) for the logits of labels, or the shape of the bits."""
        way = (self.spec.way,) if isinstance(self.spec.way, int) else ()
        return *self.spec.target_shape, *way

    @property
    def outputs(self) -> int:
        """Return how many numbers are answered at a step."""
        return math.prod(self.target)

    def of_sequence(self, x: Tensor) -> Tensor:
        """Convert sequences ``x`` [B, T, *input] to steps [B, T, I].

        Raises:
            DataError: the length is 0, or an input is not finite.
        """
        if x.shape[1] == 0:
            raise DataError(
                f"recurrent learner: got sequences of length 0 (inputs of shape {tuple(x.shape)}), expected at least "
                "one step; raise their length"
            )
        check_finite(x, "inputs of a sequence")
        shown = x.flatten(2)
        if not self.labels:
            return shown
        # The last N numbers of a stream's step are its label; they are not standardised.
        return self._step(shown[..., : -self.labels], shown[..., -self.labels :])

    def of_support(self, support: Support) -> tuple[Tensor, Tensor]:
        """Convert a support to a stream [B, S, I]; also return the label of its last example [B, N].

        That label is shown by no step of the stream, because labels arrive one step late. Supports are ordered by
        class, which would reveal the labels; the order of the stream is drawn from the key of the episode.
        """
        S = support.x.shape[1]
        orders = [torch.randperm(S, generator=generator(int(key), "order of the support")) for key in support.key]
        order = torch.stack(orders).to(support.y.device)  # [B, S]
        rows = torch.arange(len(order), device=order.device)[:, None]
        x = support.x[rows, order].flatten(2)
        labels = F.one_hot(support.y[rows, order], self.labels).to(x.dtype)
        # Delay the labels by one step: the first step sees zeros.
        return self._step(x, F.pad(labels, (0, 0, 1, 0))[:, :-1]), labels[:, -1]

    def of_queries(self, x: Tensor, label: Tensor) -> Tensor:
        """Convert queries ``x`` [B, n, *input] to steps [B, n, I], each with the support's last ``label`` [B, N]."""
        return self._step(x.flatten(2), label[:, None].expand(-1, x.shape[1], -1))

    def _step(self, example: Tensor, label: Tensor) -> Tensor:
        if self.standardise:
            example = F.layer_norm(example, example.shape[-1:])
        return torch.cat([example, label], -1)
