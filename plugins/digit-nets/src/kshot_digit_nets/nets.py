"""Small networks as functions of one vector of parameters, and episodes of objectives made from them.

Letters: P parameters, n images, C channels, H height, W width.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor

from kshot import Episode, Examples, Objective, Origin, Support, TaskSpec
from kshot.errors import OptionError
from kshot.randomness import as_tensor, normal

Activation = Literal["sigmoid", "relu", "tanh"]
ACTIVATIONS: dict[str, Any] = {"sigmoid": torch.sigmoid, "relu": torch.relu, "tanh": torch.tanh}


@frozen
class Net:
    """Describe a network: convolutions, each followed by pooling, then dense layers.

    Attributes:
        input_shape: of an image (C, H, W).
        classes: the number of outputs.
        channels: of each 3 x 3 convolution, which an activation and 2 x 2 max pooling follow.
        hidden: units of each dense layer before the outputs.
        activation: of all layers but the last: sigmoid, relu or tanh.

    Example:
        >>> net = Net((1, 8, 8), 10, hidden=(20,))
        >>> net.parameters, net.shapes
        (1510, [(20, 64), (20,), (10, 20), (10,)])
    """

    input_shape: tuple[int, int, int]
    classes: int
    channels: tuple[int, ...] = ()
    hidden: tuple[int, ...] = ()
    activation: Activation = "sigmoid"

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Return the shapes of weight and bias of each layer, in order."""
        shapes: list[tuple[int, ...]] = []
        C, H, W = self.input_shape
        for out in self.channels:
            shapes += [(out, C, 3, 3), (out,)]
            C, H, W = out, H // 2, W // 2
        units = C * H * W
        for out in (*self.hidden, self.classes):
            shapes += [(out, units), (out,)]
            units = out
        return shapes

    @property
    def parameters(self) -> int:
        """Return P, the number of parameters."""
        return sum(math.prod(shape) for shape in self.shapes)

    def check(self, who: str) -> None:
        """Raise OptionError if a size is not positive, the images are too small, or the activation is unknown."""
        small = min(self.input_shape[1:]) // 2 ** len(self.channels) < 1
        if any(size < 1 for size in (*self.channels, *self.hidden)) or small or self.activation not in ACTIVATIONS:
            raise OptionError(
                f"{who}: got channels {self.channels}, hidden {self.hidden} and activation {self.activation!r} for "
                f"images of shape {self.input_shape}, expected positive sizes, at most one convolution for each time "
                f"that the images can be halved, and one of {', '.join(ACTIVATIONS)}; change them"
            )

    def logits(self, point: Tensor, x: Tensor) -> Tensor:
        """Compute the outputs [n, classes] for images ``x`` [n, C, H, W] with the parameters ``point`` [P]."""
        pieces = [p.view(s) for p, s in zip(point.split([math.prod(s) for s in self.shapes]), self.shapes, strict=True)]
        layers, act = list(zip(pieces[::2], pieces[1::2], strict=True)), ACTIVATIONS[self.activation]
        for weight, bias in layers[: len(self.channels)]:
            x = F.max_pool2d(act(F.conv2d(x, weight, bias, padding=1)), 2)
        x = x.flatten(1)
        outputs: Tensor
        for weight, bias in layers[len(self.channels) : -1]:
            x = act(x @ weight.T + bias)
        weight, bias = layers[-1]
        outputs = x @ weight.T + bias
        return outputs

    def initial(self, keys: Any) -> Tensor:
        """Draw initial points [B, P]: weights are normal with variance 1 / fan-in, biases are 0."""
        deviations = [np.full(math.prod(s), 0.0 if len(s) == 1 else math.prod(s[1:]) ** -0.5) for s in self.shapes]
        return torch.from_numpy(normal(keys, "initial", self.parameters) * np.concatenate(deviations)).float()


def net_loss(point: Tensor, data: tuple[Tensor, Tensor], net: Net) -> Tensor:
    """Compute the mean cross-entropy [], in nats, of a network on one task.

    Args:
        point: the parameters [P].
        data: images [n, C, H, W] and labels [n].
        net: the network.

    Example:
        >>> net = Net((1, 2, 2), 2)
        >>> net_loss(torch.zeros(net.parameters), (torch.ones(3, 1, 2, 2), torch.tensor([0, 1, 1])), net)
        tensor(0.6931)
    """
    return F.cross_entropy(net.logits(point, data[0]), data[1])


def objectives(net: Net, x: Tensor, y: Tensor, keys: Any, spec: TaskSpec, origin: Origin, score_from: int) -> Episode:
    """Make episodes in which ``net`` is trained on the images ``x`` [B, n, C, H, W] with labels ``y`` [B, n].

    query.x are the steps 1..T [B, T], and query.y their weights in the score: 1 from ``score_from`` on, else 0.
    """
    objective = Objective(net.initial(keys), (x, y), functools.partial(net_loss, net=net))
    B, steps = len(x), torch.arange(1.0, int(str(spec.query)) + 1)
    empty = torch.zeros(B, 0)
    return Episode(
        support=Support(empty, empty, source=objective, key=as_tensor(keys)),
        query=Examples(steps.repeat(B, 1), (steps >= score_from).float().repeat(B, 1), source=objective),
        origin=origin,
    )


def objective_spec(who: str, net: Net, steps: int, score_from: int, splits: Sequence[str], split_by: str) -> TaskSpec:
    """Return the spec of these objectives.

    Raises:
        OptionError: the network is impossible, or not 1 <= score_from <= steps.
    """
    net.check(who)
    if not 1 <= score_from <= steps:
        raise OptionError(
            f"{who}: got steps {steps} and score_from {score_from}, expected 1 <= score_from <= steps: the number of "
            "an optimizer's updates, and the first update after which the loss counts in the score"
        )
    by: Any = split_by
    shape = (net.parameters,)
    return TaskSpec(
        kind="objective", input_shape=(), target_shape=shape, query=steps, splits=tuple(splits), split_by=by
    )
