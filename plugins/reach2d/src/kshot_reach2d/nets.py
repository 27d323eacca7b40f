"""A network for ``reach2d`` that looks at every object with the same weights.

Letters: n observations, K objects.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kshot import TaskSpec
from kshot.nn.encoders import mlp
from kshot_reach2d.environment import FEATURES, MOVES, STEP


class Looking(nn.Module):
    """Score each object by its look, attend to the softmax of the scores, and act on the way to that point.

    This is to a list of objects what the paper's network, convolutions and a spatial softmax, is to an image: the same
    weights see every object, and what they attend to becomes a point. It starts with prior knowledge: before any
    training it moves to the point that it attends to, the mean of all objects.

    Args:
        objects: K.
        outputs: the length of an action, or the number of actions.
        hidden: units of each of the two hidden layers of the score.
        sharpness: factor of the scores in the softmax. One inner learning rate is for all layers. At a rate that suits
            the last layer, only a large factor lets a few steps change the attention.

    Example:
        >>> Looking(objects=3, outputs=2)(torch.zeros(5, 18)).shape
        torch.Size([5, 2])
    """

    def __init__(self, objects: int, outputs: int, hidden: int = 40, sharpness: float = 20.0) -> None:
        super().__init__()
        self.objects, self.sharpness = objects, sharpness
        self.score = mlp((FEATURES - 2,), (hidden, hidden), 1)
        nn.init.zeros_([*self.score.parameters()][-2])  # at first all objects are attended to alike
        self.act = nn.Linear(2, outputs)
        if outputs in (2, len(MOVES)):  # at first it goes to the point that it attends to
            nn.init.zeros_(self.act.bias)
            self.act.weight.data.copy_(torch.eye(2) if outputs == 2 else MOVES)

    def forward(self, x: Tensor) -> Tensor:
        """Return actions or logits [n, outputs] for observations ``x`` [n, 6K]."""
        objects = x.reshape(-1, FEATURES)
        scores = self.score(objects[:, 2:]).reshape(-1, self.objects)
        attention = (self.sharpness * scores).softmax(-1)
        point = (attention[..., None] * objects[:, :2].reshape(-1, self.objects, 2)).sum(1)
        # The direction of the point, shorter where it is near.
        direction = point / (point.square().sum(-1, keepdim=True) + STEP**2).sqrt()
        actions: Tensor = self.act(direction)
        return actions


def looking(spec: TaskSpec) -> nn.Module:
    """Build ``Looking`` for tasks, as in ``--learner.network=kshot_reach2d.nets:looking``.

    Example:
        >>> from kshot_reach2d import Reach2D
        >>> looking(Reach2D().spec)(torch.zeros(5, 18)).shape
        torch.Size([5, 2])
    """
    outputs = spec.way if isinstance(spec.way, int) else math.prod(spec.target_shape)
    return Looking(spec.input_shape[0] // FEATURES, outputs)
