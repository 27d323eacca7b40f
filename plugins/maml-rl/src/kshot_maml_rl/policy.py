"""Policies as functions of their parameters: a multilayer perceptron that says how actions are distributed.

Letters: B tasks, E trajectories a task, T steps, o an observation's numbers, a an action's, or the number of actions.
Parameters are of one task, or stacked: [B, *]; then observations begin with B too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor, nn

from kshot import TaskSpec, control
from kshot.inner import State

Parameters = Mapping[str, Tensor]
Activation = Literal["tanh", "relu"]

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": torch.relu}


@frozen(eq=False)
class Family:
    """A sort of policies: how parameters become a distribution of actions.

    Continuous actions are normal, with a standard deviation that is learned and does not depend on the observation. The
    net computes in units of half the ``target_range``, so that a standard deviation of 1 is as wide as what the
    environment takes. Discrete actions are categorical.

    Attributes:
        spec: the tasks'.
        activation: of the hidden layers.
        layers: of the net.
    """

    spec: TaskSpec
    activation: Activation
    layers: int

    def net(self, hidden: tuple[int, ...], std: float) -> nn.ParameterDict:
        """Parameters at the start: Glorot's uniform weights, no biases, ``std`` in the net's units."""
        sizes = [math.prod(self.spec.input_shape), *hidden, self.outputs]
        made = nn.ParameterDict()
        for i, (n, m) in enumerate(itertools.pairwise(sizes)):
            made[f"weight{i}"] = nn.Parameter(nn.init.xavier_uniform_(torch.empty(m, n)))
            made[f"bias{i}"] = nn.Parameter(torch.zeros(m))
        if not self.discrete:
            made["log_std"] = nn.Parameter(torch.full((self.outputs,), math.log(std)))
        return made

    @property
    def discrete(self) -> bool:
        return self.spec.way is not None

    @property
    def outputs(self) -> int:
        return int(self.spec.way) if isinstance(self.spec.way, int) else math.prod(self.spec.target_shape)

    @property
    def unit(self) -> tuple[float, float]:
        """The middle of the actions' range, and half its width."""
        low, high = self.spec.target_range or (-1.0, 1.0)
        return (low + high) / 2, (high - low) / 2

    def distribution(self, parameters: Parameters, x: Tensor) -> Tensor:
        """Observations [B, .., *o] -> means in the net's units, or logits [B, .., a]; never in a lower precision, in
        which the ratios of probabilities would be noise."""
        stacked = parameters["bias0"].ndim == 2
        x = x.to(parameters["bias0"].dtype)
        lead = x.shape[: x.ndim - len(self.spec.input_shape)]
        x = x.reshape(lead[0], -1, math.prod(self.spec.input_shape)) if stacked else x.reshape(*lead, -1)
        with torch.autocast(x.device.type, enabled=False):
            for i in range(self.layers):
                weight, bias = parameters[f"weight{i}"], parameters[f"bias{i}"]
                x = torch.baddbmm(bias[:, None], x, weight.mT) if stacked else F.linear(x, weight, bias)
                x = ACTIVATIONS[self.activation](x) if i < self.layers - 1 else x
        return x.reshape(*lead, self.outputs)

    def log_probability(self, theta: State, observations: Tensor, actions: Tensor) -> Tensor:
        """log pi(a | o) for one task: [E, T, *o] and [E, T, *a] -> [E, T]; densities are those in the net's units."""
        parameters = {**theta.parameters, **theta.buffers}
        found = self.distribution(parameters, observations)
        if self.discrete:
            return found.log_softmax(-1).gather(-1, actions[..., None])[..., 0]
        middle, half = self.unit
        z = (((actions.to(found) - middle) / half).reshape(found.shape) - found) / parameters["log_std"].exp()
        return (-0.5 * z.square() - parameters["log_std"] - 0.5 * math.log(2 * math.pi)).sum(-1)

    def divergence(self, old: Parameters, new: Parameters, observations: Tensor) -> Tensor:
        """KL(pi_old || pi_new) of one task at observations [E, T, *o]: [E, T], in nats."""
        p, q = self.distribution(old, observations), self.distribution(new, observations)
        if self.discrete:
            return (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1)
        narrower = old["log_std"] - new["log_std"]
        apart = (p - q) / new["log_std"].exp()
        return (0.5 * ((2 * narrower).exp() + apart.square() - 1) - narrower).sum(-1)

    def action(self, parameters: Parameters, x: Tensor, noise: Tensor | None) -> Tensor:
        """Observations [B, E, *o] -> actions [B, E, *a]: the most likely ones, or drawn by ``noise`` [B, E, a].

        The noise is standard normal for continuous actions, and uniform for discrete ones (Gumbel's trick).
        """
        found = self.distribution(parameters, x)
        if self.discrete:
            return (found if noise is None else found - (-noise.log()).log()).argmax(-1)
        middle, half = self.unit
        if noise is not None:
            found = found + parameters["log_std"].exp()[..., None, :] * noise
        return (middle + half * found).reshape(*x.shape[:2], *self.spec.target_shape)


@frozen(eq=False)
class Policy:
    """The policies of B tasks, with chance of their own: what a rollout plays.

    Attributes:
        family: how parameters become actions.
        parameters: stacked, [B, *].
    """

    family: Family
    parameters: Parameters

    def __call__(self, x: Tensor) -> Tensor:
        """The most likely actions [B, E, *a] at [B, E, *o]."""
        return self.family.action(self.parameters, x, None)

    def begin(self, key: Tensor, shape: tuple[int, int]) -> Callable[[Tensor], Tensor]:
        """Actions drawn for a rollout of ``shape`` (E, T) with keys [B]."""
        draw = control.uniforms if self.family.discrete else control.normals
        noise = draw(key, "actions", *shape, self.family.outputs).to(self.parameters["bias0"])
        steps = iter(noise.movedim(-2, 0).contiguous().unbind())
        return lambda x: self.family.action(self.parameters, x, next(steps))
