"""Meta-SGD for policies: Li, Zhou, Chen & Li, "Meta-SGD: learning to learn quickly for few-shot learning", 2017
(1707.09835), algorithm 2.

It is MAML for policies with a step size for every parameter, which is learned with the policy. Letters are those of
``maml_rl``; ``o`` is the product of elements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from kshot import TaskSpec
from kshot.errors import OptionError
from kshot.inner import State, Strategy
from kshot.registry import Range
from kshot_maml_rl.maml_rl import MamlRL
from kshot_maml_rl.options import Estimator, Order, Outer
from kshot_maml_rl.policy import ALPHA, Activation


class MetaSGDRL(MamlRL):
    """A learner of a policy and of step sizes with which a policy gradient step on a few trajectories leads to a good
    policy.

    Args:
        spec: the specification of the tasks.
        rates: ``element`` for one step size per element of theta, as in the paper; ``tensor`` for one per tensor.
        initial_alpha: the range (least, greatest) of the uniform distribution of the initial step sizes. By default
            all start at the rate of ``maml-rl``; the paper draws them between 0.005 and 0.1. Training may make a step
            size negative.
        later_share: the factor of alpha from the second update on. The paper has one update; a half is what MAML's
            appendix A.2 has.
        hidden, activation, initial_std, adapt_std, inner_steps, test_steps, greedy, outer, epochs, clip, radius,
            estimator, order, discount, gae, normalise, strategy: as for ``MamlRL``. With ``order="first"`` alpha is
            still learned. With ``outer="trpo"`` the trust region is one of theta and alpha.

    Raises:
        OptionError: as for ``MamlRL``, or the range of alpha is empty or not finite.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> tasks = sample_tasks.Points()
        >>> learner = MetaSGDRL(tasks.spec, hidden=(8,), greedy=True)
        >>> tuple(learner.adapt(tasks.sample("test", [0, 1]).support)(torch.zeros(2, 4, 2)).shape)
        (2, 4, 2)
        >>> tuple(learner.net["alpha_weight0"].shape)
        (8, 2)
    """

    name = "metasgd-rl"

    def __init__(
        self,
        spec: TaskSpec,
        *,
        hidden: tuple[int, ...] = (100, 100),
        activation: Activation = "tanh",
        initial_std: float = 0.5,
        adapt_std: bool = True,
        rates: Literal["element", "tensor"] = "element",
        initial_alpha: tuple[float, float] = (0.1, 0.1),
        later_share: Annotated[float, Range(0)] = 0.5,
        inner_steps: int = 1,
        test_steps: int | None = None,
        greedy: bool = False,
        outer: Outer = "ppo",
        epochs: int = 4,
        clip: float = 0.2,
        radius: float = 0.01,
        estimator: Estimator = "lvc",
        order: Order = "second",
        discount: float = 0.99,
        gae: float = 1.0,
        normalise: bool = True,
        strategy: Strategy = "auto",
    ) -> None:
        super().__init__(
            spec,
            hidden=hidden,
            activation=activation,
            initial_std=initial_std,
            adapt_std=adapt_std,
            inner_steps=inner_steps,
            test_steps=test_steps,
            greedy=greedy,
            outer=outer,
            epochs=epochs,
            clip=clip,
            radius=radius,
            estimator=estimator,
            order=order,
            discount=discount,
            gae=gae,
            normalise=normalise,
            strategy=strategy,
        )
        self.later_share = later_share
        if rates not in ("element", "tensor"):
            raise OptionError(f"metasgd-rl: got rates {rates!r}, expected 'element' or 'tensor'; choose one of them")
        # Line 1: initialise alpha. Like theta, it is drawn from the seed of the learner.
        for name, p in self.theta().parameters.items():
            self.net[ALPHA + name] = initial_step_size(p, initial_alpha, per_element=rates == "element")

    def alpha(self, theta: State, k: int) -> Mapping[str, Tensor]:
        """Return the step sizes of update k, theta' = theta - alpha o grad L(theta) (line 6), by name of parameter."""
        share = self.later_share if k else 1.0
        return {name: share * theta.buffers[ALPHA + name] for name in theta.parameters}


def initial_step_size(parameter: Tensor, bounds: tuple[float, float], *, per_element: bool) -> nn.Parameter:
    """Draw the initial step sizes of one parameter from torch's random generator.

    Args:
        parameter: the tensor that they belong to.
        bounds: the range (least, greatest) of the uniform distribution.
        per_element: whether each element has its own step size, or all have the same.

    Raises:
        OptionError: the range is empty or not finite.

    Example:
        >>> initial_step_size(torch.zeros(3), (0.25, 0.25), per_element=True).tolist()
        [0.25, 0.25, 0.25]
    """
    least, greatest = bounds
    if not (math.isfinite(least) and math.isfinite(greatest) and least <= greatest):
        raise OptionError(
            f"metasgd-rl: got initial_alpha {tuple(bounds)}, expected two finite numbers (least, greatest); give the "
            "smaller one first"
        )
    size = torch.empty_like(parameter) if per_element else parameter.new_empty(())
    return nn.Parameter(nn.init.uniform_(size.detach(), least, greatest))
