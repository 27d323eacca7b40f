"""TAML: Jamal & Qi, "Task-agnostic meta-learning for few-shot learning", 2018 (1805.07722).

Letters: B meta-batch, N way, n queries. theta are the parameters of the network, and theta' those adapted to a task.
Some functions are written for one task, without the axis B; ``Lift`` runs them for all tasks of a meta-batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import attrs
import torch.nn.functional as F
from torch import Tensor, nn

from kshot import Episode, Lift, Metrics, Needs, Predictor, Support, TaskSpec, Training
from kshot.errors import MisfitError, TrainingError
from kshot.functional import full_precision
from kshot.inner import State, Strategy, check_descent, descend, keep_buffers
from kshot.nn import NetworkChoice, Normalisation, evaluating
from kshot.nn import network as build_network
from kshot.registry import Range, check_values
from kshot_taml.measures import inequality, prediction_entropy

Measure = Literal["entropy", "gini", "theil", "variance-of-logs", "atkinson", "generalised-entropy"]


class TAML(nn.Module):
    """Learn initial parameters as MAML does, which do not favour some tasks over others.

    A term is added to the loss of MAML. With ``entropy`` it makes the initial predictions uncertain, and the adapted
    ones certain. The other measures say how unequal the losses of the tasks of a meta-batch are.

    Args:
        spec: the specification of the tasks, which determines the inputs and outputs of the network.
        measure: ``entropy`` (classification only), or an inequality, see ``kshot_taml.measures``: ``gini``, ``theil``,
            ``variance-of-logs``, ``atkinson`` or ``generalised-entropy``.
        weight: lambda, the weight of the term; with 0 this is MAML. The default is not the paper's.
        losses: whether an inequality is computed from the losses ``before`` adapting, as in the paper, or ``after``.
            Both are losses on the queries.
        epsilon: the aversion to inequality of ``atkinson``.
        alpha: the order of ``generalised-entropy``.
        network: ``auto``, ``conv4``, ``strided-conv4``, ``mlp``, or a module from [n, *input] to logits [n, N] or to
            regression values [n, *target]; see ``kshot.nn.network``.
        width: channels of the convolutions.
        hidden: units of the hidden layers of ``mlp``.
        normalisation: the statistics by which batch norm normalises the queries, see ``kshot.nn.Network``.
        order: ``second`` differentiates through the inner steps; ``first`` treats the inner gradients as constants.
        inner_lr: the size of an inner step; None for 0.4, or 0.1 for at least 20 classes; 0.01 for regression.
        inner_steps: the number of inner steps in training.
        test_steps: the number of inner steps at evaluation and prediction; None for the same as in training.
        strategy: how the tasks of a meta-batch are computed, see ``kshot.Lift``; ``auto`` chooses by their sizes.
        chunk: the greatest number of tasks that are computed together; None for as many as a limit of memory allows. An
            inequality needs the graphs of all tasks of a meta-batch at once.

    Raises:
        MisfitError: the measure is ``entropy``, and the tasks are not classification tasks.
        OptionError: a number of steps is negative, or a choice is unknown.
        DataError: the network does not accept the inputs of the tasks, or the number of classes (way) varies.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> tasks = sample_tasks.Lines()
        >>> learner = TAML(tasks.spec, hidden=(8,), measure="gini")
        >>> sorted(learner.meta_gradient(tasks.sample("train", range(4))))
        ['inequality', 'loss', 'query_loss']
    """

    # An inequality needs all tasks of a meta-batch; ``entropy`` does not, see ``__init__``.
    needs = Needs(kinds=("classification", "regression"), couples_tasks=True, invariant={"order"})

    def __init__(
        self,
        spec: TaskSpec,
        *,
        measure: Measure = "theil",
        weight: Annotated[float, Range(0)] = 0.1,
        losses: Literal["before", "after"] = "before",
        epsilon: Annotated[float, Range(0)] = 0.5,
        alpha: float = 2.0,
        network: NetworkChoice = "auto",
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
        check_values(TAML, locals())
        if measure == "entropy" and spec.kind != "classification":
            raise MisfitError(
                f"taml: got measure 'entropy' for {spec.kind} tasks, expected classification, whose predictions are "
                "distributions; choose an inequality, such as measure='theil'"
            )
        self.kind = spec.kind
        self.net = build_network(network, spec, normalisation=normalisation, width=width, hidden=hidden)
        self.measure, self.weight, self.before = measure, weight, losses == "before"
        self.epsilon, self.alpha = epsilon, alpha
        self.second_order = order == "second"
        regression, many = spec.kind == "regression", isinstance(spec.way, int) and spec.way >= 20
        self.inner_lr = (0.01 if regression else 0.1 if many else 0.4) if inner_lr is None else inner_lr
        self.inner_steps, self.test_steps = inner_steps, inner_steps if test_steps is None else test_steps
        self.lift = Lift(strategy, chunk)
        # With ``support``, batch statistics of the support count as constants, so the gradient is not exact.
        exact = self.second_order and not self.net.constant_statistics
        self.needs = attrs.evolve(type(self).needs, queries=self.net.queries, exact_gradient=exact)
        if measure == "entropy":
            self.needs = attrs.evolve(self.needs, kinds=("classification",), couples_tasks=False)
        # At least 16 tasks in a meta-batch, because the inequality of a few losses is mostly chance.
        self.training_defaults = Training(meta_batch=25 if regression else 16, iterations=2000 if regression else 500)

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Compute L of one task: the cross-entropy of logits [n, N], or the mean squared error."""
        outputs = full_precision(outputs)
        return F.cross_entropy(outputs, y) if self.kind == "classification" else F.mse_loss(outputs, y)

    def support_loss(self, state: State, support: Support) -> Tensor:
        """Compute L(f_theta) on the support of one task."""
        return self.loss(self.net.on_support(state, support.x), support.y)

    def adapted(self, theta: State, support: Support, steps: int) -> tuple[State, Tensor]:
        """Compute theta' = theta - alpha grad L(f_theta), ``steps`` times, and the loss before each step [steps]."""
        return descend(self.support_loss, theta, support, lr=self.inner_lr, steps=steps, second_order=self.second_order)

    def task(self, theta: State, episode: Episode) -> tuple[Mapping[str, Tensor], State]:
        """Return the metrics of one task, and theta'.

        The metric ``loss`` is the loss of the task: L(f_theta') + lambda (-H(f_theta) + H(f_theta')) with ``entropy``,
        else L(f_theta').
        """
        x, y = episode.query.x, episode.query.y
        # Adapt to the support, and compute the loss of theta' on the queries, as MAML does.
        adapted, inner = self.adapted(theta, episode.support, self.inner_steps)
        outputs = self.net.on_query(adapted, x, episode.support.x)
        loss = self.loss(outputs, y)
        metrics = {"loss": loss, "query_loss": loss, "inner": inner}
        if self.kind == "classification":
            metrics["accuracy"] = (outputs.argmax(-1) == y).float().mean()
        # The predictions of theta on the same queries. Changes of running statistics go to a copy and are dropped.
        if self.measure == "entropy" or self.before:
            copies = State(theta.parameters, {n: b.clone() for n, b in theta.buffers.items()}, theta.tasks)
            initial = self.net.on_query(copies, x, episode.support.x)
        if self.measure == "entropy":
            before, after = (prediction_entropy(full_precision(o)) for o in (initial, outputs))
            metrics["loss"] = loss + self.weight * (after - before)
            metrics |= {"entropy_before": before, "entropy_after": after}
        elif self.before:
            metrics["initial_loss"] = self.loss(initial, y)
        return metrics, adapted

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """Add the gradient of E[L(f_theta')] + lambda I({L(f_theta)}), or with the entropies of ``task``, to ``.grad``.

        The engine takes the outer step.
        """
        theta = self.net.state()
        extra: dict[str, Tensor] = {}
        if self.measure == "entropy":
            # The loss is a mean over tasks, so only the graph of one chunk is in memory at a time.
            metrics, end = self.lift.mean_gradient(self.task, theta, episodes)
        else:
            # The inequality depends on all tasks together, so their graphs are kept.
            metrics, end = self.lift.map(self.task, theta, episodes)
            losses = metrics.pop("initial_loss") if self.before else metrics["loss"]
            unequal = inequality(self.measure, losses, epsilon=self.epsilon, alpha=self.alpha)
            total = metrics["loss"].mean() + self.weight * unequal
            if not total.requires_grad:
                raise TrainingError("taml: got a network without trainable parameters, expected some; unfreeze them")
            total.backward()
            extra = {"loss": total.detach(), "inequality": unequal.detach()}
        check_descent(metrics.pop("inner"), "taml", episodes.origin)
        keep_buffers(self.net.net, end)  # the new running statistics are the mean over the tasks
        return {name: values.detach().mean() for name, values in metrics.items()} | extra

    def adapt(self, support: Support) -> Predictor:
        """Take ``test_steps`` inner steps on the support, and return the predictor with the adapted parameters theta'.

        The predictor maps queries [B, n, *input] to logits [B, n, N] or values [B, n, *target].
        """

        def fitted(theta: State, support: Support) -> tuple[State, Tensor]:
            adapted, losses = self.adapted(theta, support, self.test_steps)
            return adapted.detach(), losses

        with evaluating(self.net):
            adapted, losses = self.lift.map(fitted, self.net.state().detach(), support)
        check_descent(losses, "taml")

        def predict(x: Tensor) -> Tensor:
            outputs: Tensor = self.lift.map(self.net.predict, adapted, x, support.x)
            return full_precision(outputs)

        return predict
