"""Meta-SGD: Li, Zhou, Chen & Li, "Meta-SGD: learning to learn quickly for few-shot learning", 2017 (1707.09835).

Letters: B meta-batch, N way, n queries. theta are the parameters of the network, theta' those adapted to a task, and
alpha the step sizes, which are learned with theta. ``o`` is the elementwise product. Some functions are written for one
task, without the axis B; ``Lift`` runs them for all tasks of a meta-batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot import Episode, Lift, Metrics, Needs, Predictor, Support, TaskSpec, Training
from kshot.functional import full_precision
from kshot.inner import State, Strategy, check_descent, descend, keep_buffers
from kshot.nn import NetworkChoice, Normalisation, evaluating
from kshot.nn import network as build_network
from kshot.registry import Range, check_values
from kshot_metasgd.step_sizes import initial_step_sizes, step_sizes_of


class MetaSGD(nn.Module):
    """Learn initial parameters and a step size for each of them, so that one gradient step adapts to a task.

    Args:
        spec: the specification of the tasks, which determines the inputs and outputs of the network.
        network: ``auto``, ``conv4``, ``strided-conv4``, ``mlp``, or a module from [n, *input] to logits [n, N] or to
            regression values [n, *target]; see ``kshot.nn.network``.
        width: channels of the convolutions.
        hidden: units of the hidden layers of ``mlp``.
        normalisation: the statistics by which batch norm normalises the queries, see ``kshot.nn.Network``.
        order: ``second`` differentiates through the inner steps; ``first`` treats the inner gradients as constants.
            Both learn alpha.
        rates: ``element`` (the paper's) for a step size per element of theta, ``tensor`` for one per parameter tensor.
        initial_alpha: the range (least, greatest) of the uniform distribution of the initial step sizes; the default
            is the paper's. With two equal numbers all step sizes start from this number. Training may make a step size
            negative.
        inner_steps: the number of inner steps in training; the paper has one.
        test_steps: the number of inner steps at evaluation and prediction; None for the same as in training.
        strategy: how the tasks of a meta-batch are computed, see ``kshot.Lift``; ``auto`` chooses by their sizes.
        chunk: the greatest number of tasks that are computed together; None for as many as a limit of memory allows.

    Attributes:
        alpha: the step sizes, one tensor for each trainable parameter tensor of the network, in the same order.

    Raises:
        OptionError: a number of steps is negative, the range of alpha is empty, or a choice is unknown.
        DataError: the network does not accept the inputs of the tasks, or the number of classes (way) varies.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> tasks = sample_tasks.Lines()
        >>> learner = MetaSGD(tasks.spec, hidden=(8,))
        >>> episode = tasks.sample("test", [0, 1])
        >>> tuple(learner.adapt(episode.support)(episode.query.x).shape)
        (2, 4, 1)
        >>> [tuple(rate.shape) for rate in learner.alpha]
        [(8, 2), (8,), (1, 8), (1,)]
    """

    needs = Needs(kinds=("classification", "regression"), invariant={"order"})

    def __init__(
        self,
        spec: TaskSpec,
        *,
        network: NetworkChoice = "auto",
        width: Annotated[int, Range(1, 4096)] = 64,
        hidden: tuple[Annotated[int, Range(1, 65536)], ...] = (40, 40),
        normalisation: Normalisation = "transductive",
        order: Literal["second", "first"] = "second",
        rates: Literal["element", "tensor"] = "element",
        initial_alpha: tuple[float, float] = (0.005, 0.1),
        inner_steps: Annotated[int, Range(0)] = 1,
        test_steps: Annotated[int, Range(0)] | None = None,
        strategy: Strategy = "auto",
        chunk: Annotated[int, Range(1)] | None = None,
    ) -> None:
        super().__init__()
        check_values(MetaSGD, locals())
        self.kind = spec.kind
        self.net = build_network(network, spec, normalisation=normalisation, width=width, hidden=hidden)
        self.second_order, self.per_element = order == "second", rates == "element"
        # Line 1: initialise alpha. Like theta, it is drawn from the seed of the learner.
        theta = self.net.state().parameters
        sizes = initial_step_sizes(theta, initial_alpha, per_element=self.per_element)
        self.alpha, self._names = nn.ParameterList(sizes), tuple(theta)
        self.inner_steps, self.test_steps = inner_steps, inner_steps if test_steps is None else test_steps
        self.lift = Lift(strategy, chunk)
        # With ``support``, batch statistics of the support count as constants, so the gradient is not exact.
        exact = self.second_order and not self.net.constant_statistics
        self.needs = attrs.evolve(type(self).needs, queries=self.net.queries, exact_gradient=exact)
        self.training_defaults = paper_training(spec)

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Compute L of one task: the cross-entropy of logits [n, N], or the mean squared error of values."""
        outputs = full_precision(outputs)
        return F.cross_entropy(outputs, y) if self.kind == "classification" else F.mse_loss(outputs, y)

    def support_loss(self, state: State, support: Support) -> Tensor:
        """Compute L(f_theta) on the support of one task (algorithm 1, line 5)."""
        return self.loss(self.net.on_support(state, support.x), support.y)

    def adapted(self, theta: State, support: Support, steps: int) -> tuple[State, Tensor]:
        """Compute theta' = theta - alpha o grad L(f_theta), ``steps`` times (algorithm 1, line 6).

        Returns:
            theta', and the loss before each step [steps].
        """
        alpha = step_sizes_of(theta.parameters, self._names, list(self.alpha), per_element=self.per_element)
        return descend(self.support_loss, theta, support, lr=alpha, steps=steps, second_order=self.second_order)

    def task(self, theta: State, episode: Episode) -> tuple[Mapping[str, Tensor], State]:
        """Return the metrics of one task, with the query loss L(f_theta'), and theta' (algorithm 1, lines 5 to 7)."""
        # Lines 5 and 6: theta' from the support.
        adapted, losses = self.adapted(theta, episode.support, self.inner_steps)
        # Line 7: the loss of theta' on the queries.
        outputs = self.net.on_query(adapted, episode.query.x, episode.support.x)
        metrics = {"loss": self.loss(outputs, episode.query.y), "inner": losses}
        if self.kind == "classification":
            metrics["accuracy"] = (outputs.argmax(-1) == episode.query.y).float().mean()
        return metrics, adapted

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """Add the mean over tasks of the gradient of L(f_theta') with respect to theta and alpha to ``.grad``.

        The engine takes the outer step (line 9). After one inner step, the gradient of alpha is
        -grad L_query(theta') o grad L_support(theta).
        """
        metrics, end = self.lift.mean_gradient(self.task, self.net.state(), episodes)
        check_descent(metrics.pop("inner"), "metasgd", episodes.origin)
        keep_buffers(self.net.net, end)  # the new running statistics are the mean over the tasks
        return {name: values.mean() for name, values in metrics.items()}

    def task_losses(self, episodes: Episode) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the losses L(f_theta') [B] with their graph, and theta - theta' of each task (ability ``PerTask``)."""
        theta = self.net.state()
        metrics, adapted = self.lift.map(self.task, theta, episodes)
        check_descent(metrics["inner"], "metasgd", episodes.origin)
        keep_buffers(self.net.net, adapted)
        return metrics["loss"], adapted.away_from(theta)

    def adapt(self, support: Support) -> Predictor:
        """Take ``test_steps`` inner steps on the support, and return the predictor with the adapted parameters theta'.

        The predictor maps queries [B, n, *input] to logits [B, n, N] or values [B, n, *target].
        """

        def fitted(theta: State, support: Support) -> tuple[State, Tensor]:
            return self.adapted(theta, support, self.test_steps)

        with torch.no_grad(), evaluating(self.net):
            adapted, losses = self.lift.map(fitted, self.net.state(), support)
        check_descent(losses, "metasgd")

        def predict(x: Tensor) -> Tensor:
            outputs: Tensor = self.lift.map(self.net.predict, adapted, x, support.x)
            return full_precision(outputs)

        return predict

    def trace(self, episode: Episode) -> Mapping[str, Tensor]:
        """Return the predictions after each inner step (ability ``Explains``).

        Returns:
            ``outputs`` [B, steps + 1, n, ...] after 0 to ``test_steps`` inner steps at ``inputs`` [B, n, *input];
            ``targets``, ``support_inputs`` and ``support_targets``.
        """
        support, query, steps = episode.support, episode.query, range(self.test_steps + 1)

        def after(theta: State, support: Support, x: Tensor) -> Tensor:
            states = (self.adapted(theta, support, k)[0] for k in steps)
            return torch.stack([self.net.predict(state, x, support.x) for state in states])

        with torch.no_grad(), evaluating(self.net):
            outputs = self.lift.map(after, self.net.state(), support, query.x)
        seen = {"support_inputs": support.x, "support_targets": support.y}
        return {"inputs": query.x, "outputs": outputs, "targets": query.y, **seen}


def paper_training(spec: TaskSpec) -> Training:
    """Return the default training: MAML's iterations (far fewer than in the paper), of 16 tasks (regression: 25).

    Example:
        >>> paper_training(TaskSpec(kind="regression", input_shape=(1,), target_shape=(1,), shot=5, query=5)).meta_batch
        25
    """
    if spec.kind == "regression":
        return Training(meta_batch=25, iterations=2000)
    return Training(meta_batch=16, iterations=500)
