"""MIL: Finn, Yu, Zhang, Abbeel & Levine, "One-shot visual imitation learning via meta-learning", 2017 (1709.04905).

Letters: B meta-batch, S steps of the demonstrations in the support, n observations, N number of discrete actions.
theta are all parameters, and theta' those adapted to a task. Functions of one task, without B, run by ``Lift``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot import Episode, Lift, Metrics, Needs, Predictor, Support, TaskSpec, Training
from kshot.errors import DataError
from kshot.functional import full_precision
from kshot.inner import State, Strategy, check_descent, descend, keep_buffers
from kshot.nn import Network, NetworkChoice, Normalisation, evaluating
from kshot.nn import network as build_network
from kshot.registry import Range, check_values
from kshot_mil.explain import rollouts_by_step
from kshot_mil.policy import Policy


class MIL(nn.Module):
    """Learn a policy that gradient steps on a demonstration adapt to a task: MAML on behaviour cloning.

    Support and query are demonstrations: their inputs are observations, and their targets are actions. They are
    numbers (regression) or classes (classification). Without the options ``two_heads``, ``bias`` and
    ``demonstrations``, this is MAML.

    Args:
        spec: the specification of the tasks, which determines the observations and actions.
        network: ``auto``, ``conv4``, ``mlp`` or a module from [n, *input] to logits [n, N] or actions [n, *target].
        width: channels of ``conv4``.
        hidden: units of the hidden layers of ``mlp``.
        normalisation: the statistics by which batch norm normalises the queries, see ``kshot.nn.Network``.
        two_heads: whether the inner loss uses a separate last layer.
        bias: length of the vector of the bias transformation, which is added to the first linear layer; 0 for none.
        demonstrations: ``actions`` adapts to observations and actions. ``observations`` adapts to observations alone,
            by a learned loss, which implies two heads; actions are then needed in training only.
        order: ``second`` differentiates through the inner steps; ``first`` treats the inner gradients as constants.
        inner_lr: alpha. The paper's losses are sums over the steps of a demonstration, and its rates are for these.
        inner_steps: inner steps in training. The paper takes 1 in simulation.
        test_steps: inner steps at evaluation; None for ``inner_steps``.
        strategy: how the tasks of a meta-batch run, see ``kshot.Lift``: ``auto`` chooses what is fast and exact.
        chunk: the greatest number of tasks that run in parallel; None for as many as a limit of memory allows.

    Raises:
        OptionError: a number of steps is negative, a choice is unknown, or the network does not fit the options.
        DataError: the network does not accept the observations of the tasks, or their number of actions varies.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> tasks = sample_tasks.Demonstrations()
        >>> learner = MIL(tasks.spec, hidden=(8,), two_heads=True, bias=4)
        >>> episode = tasks.sample("test", [0, 1])
        >>> tuple(learner.adapt(episode.support)(episode.query.x).shape)
        (2, 3, 2)
    """

    needs = Needs(kinds=("regression", "classification"), invariant={"order"}, absent_labels=True)

    def __init__(
        self,
        spec: TaskSpec,
        *,
        network: NetworkChoice = "auto",
        width: Annotated[int, Range(1, 4096)] = 64,
        hidden: tuple[Annotated[int, Range(1, 65536)], ...] = (100, 100),
        normalisation: Normalisation = "transductive",
        two_heads: bool = False,
        bias: Annotated[int, Range(0, 65536)] = 0,
        demonstrations: Literal["actions", "observations"] = "actions",
        order: Literal["second", "first"] = "second",
        inner_lr: Annotated[float, Range(0)] = 0.1,
        inner_steps: Annotated[int, Range(0)] = 1,
        test_steps: Annotated[int, Range(0)] | None = None,
        strategy: Strategy = "auto",
        chunk: Annotated[int, Range(1)] | None = None,
    ) -> None:
        super().__init__()
        check_values(MIL, locals())
        self.kind, self.observed = spec.kind, demonstrations == "observations"
        whole = build_network(network, spec, normalisation=normalisation, width=width, hidden=hidden)
        self.policy = Policy(whole.net, spec.input_shape, two_heads=two_heads or self.observed, bias=bias)
        self.net = Network(self.policy, whole.normalisation, spec.input_shape)
        self.second_order = order == "second"
        self.inner_lr = inner_lr
        self.inner_steps, self.test_steps = inner_steps, inner_steps if test_steps is None else test_steps
        self.lift = Lift(strategy, chunk)
        # With ``support``, batch statistics of the support count as constants, so the gradient is not exact.
        exact = self.second_order and not self.net.constant_statistics
        unlabelled: Literal["optional", "no"] = "optional" if self.observed else "no"
        needs = type(self).needs
        self.needs = attrs.evolve(needs, queries=self.net.queries, exact_gradient=exact, unlabelled=unlabelled)
        self.training_defaults = Training(meta_batch=25, iterations=2000)

    def loss(self, actions: Tensor, y: Tensor) -> Tensor:
        """Compute the behaviour cloning loss of one task: the cross-entropy of logits, or the mean squared error.

        Raises:
            DataError: the demonstrated actions have another shape than those of the policy.
        """
        actions = full_precision(actions)
        if y.shape != (actions.shape[:1] if self.kind == "classification" else actions.shape):
            raise DataError(
                f"mil: got demonstrated actions of shape {tuple(y.shape)} beside the policy's, of shape "
                f"{tuple(actions.shape)}, expected as many, and for numbers the same shape; give demonstrations of "
                "the tasks for which the policy was built"
            )
        return F.cross_entropy(actions, y) if self.kind == "classification" else F.mse_loss(actions, y)

    def demonstrated(self, support: Support) -> Support:
        """Return the observations to which the policy adapts, also unlabelled ones, and the actions if it uses them."""
        x, y, more = support.x, support.y, support.unlabelled
        if self.observed:
            x, y = x if more is None else torch.cat([x, more], 1), y[:, :0]
        if not x.shape[1]:
            raise DataError(
                f"mil: got a support without {'observations' if self.observed else 'actions'}, expected at least one "
                "step of a demonstration; adapt to observations alone by demonstrations='observations'"
            )
        return attrs.evolve(support, x=x, y=y, unlabelled=None)

    def inner_loss(self, theta: State, support: Support) -> Tensor:
        """Compute the loss that adapts the policy to the demonstrations of one task."""
        actions = self.net.on_support(self.policy.judging(theta), support.x)
        if self.observed:
            # The learned loss: the mean of |W y_t + b|^2 over features y_t. W and b are the inner head.
            return full_precision(actions).square().mean()
        return self.loss(actions, support.y)

    def adapted(self, theta: State, support: Support, steps: int) -> tuple[State, Tensor]:
        """Compute theta' = theta - alpha grad L(theta) on the demonstrations, ``steps`` times (algorithm 1).

        Returns:
            theta', and the loss before each step [steps].
        """
        return descend(self.inner_loss, theta, support, lr=self.inner_lr, steps=steps, second_order=self.second_order)

    def task(self, theta: State, episode: Episode) -> tuple[Mapping[str, Tensor], State]:
        """Return the metrics of one task, with the loss of theta' on other demonstrations, and theta'."""
        # The inner loop: theta' from one demonstration.
        adapted, losses = self.adapted(theta, episode.support, self.inner_steps)
        # The outer loss: that of theta' on another one, by the head that acts.
        actions = self.net.on_query(self.policy.acting(adapted), episode.query.x, episode.support.x)
        metrics = {"loss": self.loss(actions, episode.query.y), "inner": losses}
        if self.kind == "classification":
            metrics["accuracy"] = (actions.argmax(-1) == episode.query.y).float().mean()
        return metrics, adapted

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """Add the mean over tasks of grad_theta L(theta') to ``.grad``. The engine takes the outer step."""
        episodes = attrs.evolve(episodes, support=self.demonstrated(episodes.support))
        metrics, end = self.lift.mean_gradient(self.task, self.net.state(), episodes)
        check_descent(metrics.pop("inner"), "mil", episodes.origin)
        keep_buffers(self.net.net, end)  # the new running statistics are the mean over the tasks
        return {name: values.mean() for name, values in metrics.items()}

    def task_losses(self, episodes: Episode) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the losses L(theta') [B] with their graph, and theta - theta' of each task (ability ``PerTask``)."""
        theta = self.net.state()
        episodes = attrs.evolve(episodes, support=self.demonstrated(episodes.support))
        metrics, adapted = self.lift.map(self.task, theta, episodes)
        check_descent(metrics["inner"], "mil", episodes.origin)
        keep_buffers(self.net.net, adapted)
        return metrics["loss"], adapted.away_from(theta)

    def adapt(self, support: Support, steps: int | None = None) -> Predictor:
        """Take ``steps`` inner steps (None for ``test_steps``) on the demonstrations; return the policy with theta'.

        The policy maps observations [B, n, *input] to actions [B, n, *target], or to logits [B, n, N] of actions.
        """
        support, steps = self.demonstrated(support), self.test_steps if steps is None else steps

        def fitted(theta: State, support: Support) -> tuple[State, Tensor]:
            adapted, losses = self.adapted(theta, support, steps)
            return self.policy.acting(adapted).detach(), losses

        with evaluating(self.net):
            adapted, losses = self.lift.map(fitted, self.net.state().detach(), support)
        check_descent(losses, "mil")

        def act(x: Tensor) -> Tensor:
            return full_precision(self.lift.map(self.net.predict, adapted, x, support.x))

        return act

    def trace(self, episode: Episode) -> Mapping[str, Any]:
        """Return the rollouts after 0 to ``test_steps`` inner steps (ability ``Explains``)."""
        return rollouts_by_step(self, episode)
