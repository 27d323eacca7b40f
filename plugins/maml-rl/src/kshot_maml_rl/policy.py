"""Policies as functions of their parameters: a multilayer perceptron gives the distribution of actions.

Letters: B tasks, E trajectories per task, T steps, o the shape of an observation, a the shape of an action or the
number of actions. Parameters are those of one task, or stacked, [B, *]; then observations begin with B too.
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

ALPHA = "alpha_"
"""The names of learned step sizes begin so, followed by the name of the parameter that they belong to."""

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": torch.relu}


@frozen(eq=False)
class Family:
    """A family of policies: the map from parameters and observations to a distribution of actions.

    Continuous actions are normally distributed, with a learned standard deviation that does not depend on the
    observation. The net computes in units of half the ``target_range``, so that a standard deviation of 1 is half the
    width of the range that the environment accepts. Discrete actions are categorical.

    Attributes:
        spec: the specification of the tasks.
        activation: of the hidden layers.
        layers: the number of linear layers.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> family = Family(sample_tasks.Points().spec, "tanh", layers=2)
        >>> tuple(family.distribution(family.net((8,), std=0.5), torch.zeros(4, 5, 2)).shape)
        (4, 5, 2)
    """

    spec: TaskSpec
    activation: Activation
    layers: int

    def net(self, hidden: tuple[int, ...], std: float) -> nn.ParameterDict:
        """Create initial parameters: Glorot's uniform weights, zero biases, and ``std`` in the net's units."""
        sizes = [math.prod(self.spec.input_shape), *hidden, self.outputs]
        parameters = nn.ParameterDict()
        for i, (n, m) in enumerate(itertools.pairwise(sizes)):
            parameters[f"weight{i}"] = nn.Parameter(nn.init.xavier_uniform_(torch.empty(m, n)))
            parameters[f"bias{i}"] = nn.Parameter(torch.zeros(m))
        if not self.discrete:
            parameters["log_std"] = nn.Parameter(torch.full((self.outputs,), math.log(std)))
        return parameters

    def state(self, parameters: Parameters, adapt_std: bool) -> State:
        """Return the state that adapts. What does not adapt is a buffer: step sizes, and the deviation if so asked."""
        fixed = {n: p for n, p in parameters.items() if n.startswith(ALPHA) or (n == "log_std" and not adapt_std)}
        return State({n: p for n, p in parameters.items() if n not in fixed}, fixed)

    @property
    def discrete(self) -> bool:
        """Return whether actions are discrete."""
        return self.spec.way is not None

    @property
    def outputs(self) -> int:
        """Return how many numbers the net computes: logits of actions, or means."""
        return int(self.spec.way) if isinstance(self.spec.way, int) else math.prod(self.spec.target_shape)

    @property
    def unit(self) -> tuple[float, float]:
        """Return the middle of the actions' range, and half its width."""
        low, high = self.spec.target_range or (-1.0, 1.0)
        return (low + high) / 2, (high - low) / 2

    def distribution(self, parameters: Parameters, x: Tensor) -> Tensor:
        """Map observations [B, .., *o] to means in the net's units, or to logits, [B, .., a].

        Autocast is disabled, because ratios of probabilities would be noise in a lower precision.
        """
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
        """Compute log pi(a | o) of one task: [E, T, *o] and [E, T, *a] -> [E, T].

        Densities of continuous actions are those in the net's units.
        """
        parameters = {**theta.parameters, **theta.buffers}
        outputs = self.distribution(parameters, observations)
        if self.discrete:
            return outputs.log_softmax(-1).gather(-1, actions[..., None])[..., 0]
        # The log density of a normal distribution, at the action in the net's units.
        middle, half = self.unit
        z = (((actions.to(outputs) - middle) / half).reshape(outputs.shape) - outputs) / parameters["log_std"].exp()
        return (-0.5 * z.square() - parameters["log_std"] - 0.5 * math.log(2 * math.pi)).sum(-1)

    def divergence(self, old: Parameters, new: Parameters, observations: Tensor) -> Tensor:
        """Compute KL(pi_old || pi_new) of one task at observations [E, T, *o] -> [E, T], in nats."""
        p, q = self.distribution(old, observations), self.distribution(new, observations)
        if self.discrete:
            return (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1)
        # Of normals: log(s_new / s_old) + (s_old^2 + (m_old - m_new)^2) / (2 s_new^2) - 1/2, summed over a.
        narrower = old["log_std"] - new["log_std"]
        apart = (p - q) / new["log_std"].exp()
        return (0.5 * ((2 * narrower).exp() + apart.square() - 1) - narrower).sum(-1)

    def action(self, parameters: Parameters, x: Tensor, noise: Tensor | None) -> Tensor:
        """Map observations [B, E, *o] to actions [B, E, *a].

        Args:
            noise: from which actions are drawn [B, E, a], standard normal for continuous actions and uniform for
                discrete ones (Gumbel's trick); None takes the most likely actions.
        """
        outputs = self.distribution(parameters, x)
        if self.discrete:
            return (outputs if noise is None else outputs - (-noise.log()).log()).argmax(-1)
        middle, half = self.unit
        if noise is not None:
            outputs = outputs + parameters["log_std"].exp()[..., None, :] * noise
        return (middle + half * outputs).reshape(*x.shape[:2], *self.spec.target_shape)


def repeated(state: State, B: int) -> State:
    """Return the state of one policy as that of B tasks [B, *], without copying.

    Example:
        >>> tuple(repeated(State({"bias0": torch.zeros(4)}, {}), 3).parameters["bias0"].shape)
        (3, 4)
    """
    stacked = [{n: t.expand(B, *t.shape) for n, t in named.items()} for named in (state.parameters, state.buffers)]
    return State(stacked[0], stacked[1], B)


@frozen(eq=False)
class Policy:
    """The policies of B tasks, as an environment plays them.

    Attributes:
        family: the map from parameters to actions.
        parameters: stacked, [B, *].

    Example:
        >>> from kshot.testing import sample_tasks
        >>> family = Family(sample_tasks.Points().spec, "tanh", layers=2)
        >>> stacked = {n: p[None].expand(3, *p.shape) for n, p in family.net((8,), std=0.5).items()}
        >>> tuple(Policy(family, stacked)(torch.zeros(3, 4, 2)).shape)
        (3, 4, 2)
    """

    family: Family
    parameters: Parameters

    def __call__(self, x: Tensor) -> Tensor:
        """Return the most likely actions [B, E, *a] at observations [B, E, *o]."""
        return self.family.action(self.parameters, x, None)

    def begin(self, key: Tensor, shape: tuple[int, int]) -> Callable[[Tensor], Tensor]:
        """Return the function that draws the actions of a rollout of ``shape`` (E, T) with keys [B], step by step."""
        # All noise is drawn at once from each task's own key, and used step by step.
        draw = control.uniforms if self.family.discrete else control.normals
        noise = draw(key, "actions", *shape, self.family.outputs).to(self.parameters["bias0"])
        steps = iter(noise.movedim(-2, 0).contiguous().unbind())
        return lambda x: self.family.action(self.parameters, x, next(steps))
