"""BOIL: Oh, Yoo, Kim & Yun, "BOIL: Towards representation change for few-shot learning", 2020 (2008.08882), section 3.

Letters: B meta-batch, N way, n queries. theta are the parameters of the network, its body and its head; body' is the
body adapted to a task. Functions for one task have no axis B; ``Lift`` runs them for B tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import attrs
import torch.nn.functional as F
from torch import Tensor, nn

from kshot import Episode, Lift, Metrics, Needs, Predictor, Support, TaskSpec, Training
from kshot.errors import OptionError
from kshot.functional import full_precision
from kshot.inner import State, Strategy, check_descent, descend_part, keep_buffers
from kshot.nn import NetworkChoice, Normalisation, evaluating, find_head
from kshot.nn import network as build_network
from kshot.registry import Range, check_values


class BOIL(nn.Module):
    """Learn a body that a few gradient steps on a support adapt to the task, and a last layer that does not adapt.

    The head is learned in the outer loop only. So the inner loop must change the features until they fit the head.

    Args:
        spec: the specification of the tasks, which determines the inputs and outputs of the network.
        network: ``auto``, ``conv4``, ``strided-conv4``, ``mlp``, or a module from [n, *input] to logits [n, N] or to
            regression values [n, *target]; see ``kshot.nn.network``.
        head: path of the module of the network that does not adapt, as in ``named_modules()``; None for the layer with
            trainable parameters that is called last. See ``kshot.nn.find_head``.
        width: channels of the convolutions.
        hidden: units of the hidden layers of ``mlp``.
        normalisation: the statistics by which batch norm normalises the queries, see ``kshot.nn.Network``.
        order: ``second`` differentiates through the inner steps; ``first`` treats the inner gradients as constants.
        inner_lr: alpha; None for 0.5, as in the authors' code, or 0.01 for regression, which the paper does not have.
        inner_steps: the number of inner steps in training.
        test_steps: the number of inner steps at evaluation and prediction; None for the same as in training.
        strategy: how the tasks of a meta-batch are computed, see ``kshot.Lift``; ``auto`` chooses by their sizes.
        chunk: the greatest number of tasks that are computed together; None for as many as a limit of memory allows.

    Raises:
        OptionError: a number of steps is negative, a choice is unknown, or the network has no head of this path, or no
            other trainable parameters.
        DataError: the network does not accept the inputs of the tasks, or the number of classes (way) varies.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> tasks = sample_tasks.Lines()
        >>> learner = BOIL(tasks.spec, hidden=(8,), inner_steps=2)
        >>> episode = tasks.sample("test", [0, 1])
        >>> tuple(learner.adapt(episode.support)(episode.query.x).shape)
        (2, 4, 1)
    """

    needs = Needs(kinds=("classification", "regression"), invariant={"order"})

    def __init__(
        self,
        spec: TaskSpec,
        *,
        network: NetworkChoice = "auto",
        head: str | None = None,
        width: Annotated[int, Range(1, 4096)] = 64,
        hidden: tuple[Annotated[int, Range(1, 65536)], ...] = (40, 40),
        normalisation: Normalisation = "transductive",
        order: Literal["second", "first"] = "second",
        inner_lr: Annotated[float, Range(0)] | None = None,
        inner_steps: Annotated[int, Range(0)] = 1,
        test_steps: Annotated[int, Range(0)] | None = None,
        strategy: Strategy = "auto",
        chunk: Annotated[int, Range(1)] | None = None,
    ) -> None:
        super().__init__()
        check_values(BOIL, locals())
        self.kind = spec.kind
        self.net = build_network(network, spec, normalisation=normalisation, width=width, hidden=hidden)
        self.head = find_head(self.net.net, spec.input_shape, head, "boil")
        if not self.body(self.net.state()).parameters:
            raise OptionError(
                f"boil: got a network whose head {self.head.path!r} has all of its trainable parameters, expected a "
                "body that can adapt; name a smaller head, or choose a network of several layers"
            )
        self.second_order = order == "second"
        self.inner_lr = paper_rate(spec) if inner_lr is None else inner_lr
        self.inner_steps, self.test_steps = inner_steps, inner_steps if test_steps is None else test_steps
        self.lift = Lift(strategy, chunk)
        # With ``support``, batch statistics of the support count as constants, so the gradient is not exact.
        exact = self.second_order and not self.net.constant_statistics
        self.needs = attrs.evolve(type(self).needs, queries=self.net.queries, exact_gradient=exact)
        self.training_defaults = paper_training(spec)

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Compute L of one task: the cross-entropy of logits [n, N], or the mean squared error."""
        outputs = full_precision(outputs)
        return F.cross_entropy(outputs, y) if self.kind == "classification" else F.mse_loss(outputs, y)

    def adapted(self, theta: State, support: Support, steps: int) -> tuple[State, Tensor]:
        """Compute body' = body - alpha grad_body L(f_(body, head)) on the support of one task, ``steps`` times.

        Returns:
            theta with body' in place of the body, and the loss before each step [steps].
        """
        return descend_part(
            self.support_loss,
            theta,
            support,
            self.body(theta).parameters,
            lr=self.inner_lr,
            steps=steps,
            second_order=self.second_order,
        )

    def body(self, theta: State) -> State:
        """Return the parameters that adapt (all except those of the head) with all buffers."""
        return State({n: p for n, p in theta.parameters.items() if n not in self.head}, theta.buffers, theta.tasks)

    def support_loss(self, theta: State, support: Support) -> Tensor:
        """Compute L of theta on the support of one task."""
        return self.loss(self.net.on_support(theta, support.x), support.y)

    def task(self, theta: State, episode: Episode) -> tuple[Mapping[str, Tensor], State]:
        """Return the metrics of one task, with the query loss L(f_(body', head)), and body' with the buffers."""
        # Inner loop: body' from the support.
        adapted, losses = self.adapted(theta, episode.support, self.inner_steps)
        # Outer loss: L of body' and the head on the queries.
        outputs = self.net.on_query(adapted, episode.query.x, episode.support.x)
        metrics = {"loss": self.loss(outputs, episode.query.y), "inner": losses}
        if self.kind == "classification":
            metrics["accuracy"] = (outputs.argmax(-1) == episode.query.y).float().mean()
        return metrics, self.body(adapted)

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """Add the mean over tasks of grad_theta L(f_(body', head)) to ``.grad``, for the body and the head."""
        metrics, end = self.lift.mean_gradient(self.task, self.net.state(), episodes)
        check_descent(metrics.pop("inner"), "boil", episodes.origin)
        keep_buffers(self.net.net, end)  # the new running statistics are the mean over the tasks
        return {name: values.mean() for name, values in metrics.items()}

    def task_losses(self, episodes: Episode) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the query losses [B] with their graph, and body - body' of each task (ability ``PerTask``)."""
        theta = self.net.state()
        metrics, adapted = self.lift.map(self.task, theta, episodes)
        check_descent(metrics["inner"], "boil", episodes.origin)
        keep_buffers(self.net.net, adapted)
        return metrics["loss"], adapted.away_from(theta)

    def adapt(self, support: Support) -> Predictor:
        """Take ``test_steps`` inner steps; return a predictor from [B, n, *input] to logits or values [B, n, ...]."""

        def fitted(theta: State, support: Support) -> tuple[State, Tensor]:
            adapted, losses = self.adapted(theta, support, self.test_steps)
            return adapted.detach(), losses

        with evaluating(self.net):
            adapted, losses = self.lift.map(fitted, self.net.state().detach(), support)
        check_descent(losses, "boil")

        def predict(x: Tensor) -> Tensor:
            return full_precision(self.lift.map(self.net.predict, adapted, x, support.x))

        return predict


def paper_rate(spec: TaskSpec) -> float:
    """Return alpha: 0.5 for classification, that of the authors' network of four convolutions; MAML's for regression.

    Example:
        >>> paper_rate(TaskSpec(kind="classification", input_shape=(4,), way=5, shot=1, query=5))
        0.5
    """
    return 0.01 if spec.kind == "regression" else 0.5


def paper_training(spec: TaskSpec) -> Training:
    """Return the default training: the authors' meta-batch of 4 (MAML's 25 for regression), but fewer iterations.

    Example:
        >>> paper_training(TaskSpec(kind="classification", input_shape=(4,), way=5, shot=1, query=5)).meta_batch
        4
    """
    if spec.kind == "regression":
        return Training(meta_batch=25, iterations=2000)
    return Training(meta_batch=4, iterations=2000)
