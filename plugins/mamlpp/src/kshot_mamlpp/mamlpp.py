"""MAML++: Antoniou, Edwards & Storkey, "How to train your MAML", 2018 (1810.09502), section 4.

What changes during the training is in ``annealing.py``, and what batch norm has for each step in ``step_norms.py``.
Letters: B meta-batch, N way, n queries, K inner steps in training; theta are the parameters of the network, theta_k
those after k inner steps on a task. Functions for one task have no axis B; ``Lift`` runs them for a meta-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot import Episode, Lift, Metrics, Needs, Predictor, Support, TaskSpec
from kshot.functional import full_precision
from kshot.inner import State, Strategy, check_descent, descend, keep_buffers
from kshot.nn import NetworkChoice, Normalisation, evaluating
from kshot.nn import network as build_network
from kshot.registry import Range, check_values
from kshot_mamlpp.annealing import Annealing, check_rates, default_training, initial_rate
from kshot_mamlpp.step_norms import StepNorms


class MAMLPP(nn.Module):
    """Learn initial parameters and rates with which a few gradient steps on a support give good predictions.

    Args:
        spec: the specification of the tasks, which determines the inputs and outputs of the network.
        network: ``auto``, ``conv4``, ``strided-conv4``, ``mlp``, or a module from [n, *input] to logits [n, N] or to
            regression values [n, *target]; see ``kshot.nn.network``.
        width: channels of the convolutions.
        hidden: units of the hidden layers of ``mlp``.
        normalisation: the statistics by which batch norm normalises the queries, see ``kshot.nn.Network``. The
            published results are ``transductive``.
        order: ``second`` differentiates through the inner steps; ``first`` treats the inner gradients as constants.
        first_order_iterations: the number of meta-batches at the start of training with the order ``first``. The
            default is that of the authors' settings; the paper describes a third of the training.
        inner_lr: the initial inner rates; None for 0.1 (the authors' for Omniglot), or 0.01 for regression.
        learn_rates: whether the rates are learned; see the attribute ``rates``.
        inner_steps: K, the number of inner steps in training.
        test_steps: the number of inner steps at evaluation and prediction; None for K. Steps after the K-th use its
            rates and batch norm. The rates are learned for K steps; with more, the loss may rise or diverge.
        loss_iterations: the number of meta-batches at the start of training with a loss after every step; later there
            is only the loss after the last step. The default is a tenth of the default training, as the authors have.
        step_affine: whether batch norm has weights and biases for each step, which are learned but do not adapt to a
            task, as in the authors' settings. Otherwise they adapt, as in MAML.
        step_statistics: whether batch norm has running statistics for each step. Only ``inductive`` uses them.
        strategy: how the tasks of a meta-batch are computed, see ``kshot.Lift``; ``auto`` chooses by their sizes.
        chunk: the greatest number of tasks that are computed together; None for as many as a limit of memory allows.

    Attributes:
        rates: the inner rates alpha [K, number of parameter tensors that adapt].

    Raises:
        OptionError: a number is negative, there is no inner step, or a choice is unknown. ``meta_gradient`` and
            ``adapt`` raise it if ``rates`` was set to a tensor of another shape.
        DataError: the network does not accept the inputs of the tasks, or the number of classes (way) varies.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> tasks = sample_tasks.Lines()
        >>> learner = MAMLPP(tasks.spec, hidden=(8,), inner_steps=2)
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
        width: Annotated[int, Range(1, 4096)] = 64,
        hidden: tuple[Annotated[int, Range(1, 65536)], ...] = (40, 40),
        normalisation: Normalisation = "transductive",
        order: Literal["second", "first"] = "second",
        first_order_iterations: Annotated[int, Range(0)] = 0,
        inner_lr: Annotated[float, Range(0)] | None = None,
        learn_rates: bool = True,
        inner_steps: Annotated[int, Range(1)] = 5,
        test_steps: Annotated[int, Range(0)] | None = None,
        loss_iterations: Annotated[int, Range(0)] = 50,
        step_affine: bool = True,
        step_statistics: bool = True,
        strategy: Strategy = "auto",
        chunk: Annotated[int, Range(1)] | None = None,
    ) -> None:
        super().__init__()
        check_values(MAMLPP, locals())
        self.kind = spec.kind
        self.net = build_network(network, spec, normalisation=normalisation, width=width, hidden=hidden)
        self.norms = StepNorms(self.net, inner_steps, affine=step_affine, statistics=step_statistics)
        # The rates of every parameter tensor that adapts, also of those that are frozen at present.
        named = [n for n, _ in self.net.net.named_parameters() if n not in self.norms.not_adapted]
        self.columns = {n: i for i, n in enumerate(named)}
        rates = torch.full((inner_steps, len(self.columns)), initial_rate(spec) if inner_lr is None else inner_lr)
        self.rates = nn.Parameter(rates, requires_grad=learn_rates)
        self.annealing = Annealing(loss_iterations, first_order_iterations, second_order=order == "second")
        self.inner_steps, self.test_steps = inner_steps, inner_steps if test_steps is None else test_steps
        self.lift = Lift(strategy, chunk)
        # With ``support``, batch statistics of the support count as constants, so the gradient is not exact.
        exact = order == "second" and first_order_iterations == 0 and not self.net.constant_statistics
        self.needs = attrs.evolve(type(self).needs, queries=self.net.queries, exact_gradient=exact)
        self.training_defaults = default_training(spec)

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Compute L of one task: the cross-entropy of logits [n, N], or the mean squared error of values."""
        outputs = full_precision(outputs)
        return F.cross_entropy(outputs, y) if self.kind == "classification" else F.mse_loss(outputs, y)

    def inner_step(
        self, step: int, state: State, support: Support, statistics: dict[str, Tensor], second_order: bool
    ) -> tuple[State, Tensor]:
        """Compute theta_{k+1} = theta_k - alpha_k grad L_support(theta_k), and the loss before the step k [1]."""

        def support_loss(state: State, support: Support) -> Tensor:
            return self.loss(
                self.net.on_support(self.norms.at(step, state, statistics, self.net), support.x), support.y
            )

        check_rates(self.rates, self.inner_steps, self.columns)
        alpha = self.rates[min(step, self.inner_steps - 1)]
        rates = {n: alpha[self.columns[n]] for n in state.parameters}
        return descend(support_loss, state, support, lr=rates, steps=1, second_order=second_order)

    def task(
        self, theta: State, episode: Episode, statistics: dict[str, Tensor], *, every_step: bool, second_order: bool
    ) -> tuple[dict[str, Tensor], State]:
        """Return the metrics of one task, with the loss after every step or after the last one, and theta_K."""
        state, befores, losses, judged = theta, [], [], []
        for k in range(self.inner_steps):
            state, before = self.inner_step(k, state, episode.support, statistics, second_order)
            befores.append(before)
            if every_step or k == self.inner_steps - 1:
                # The loss of theta_{k+1} on the queries.
                judged.append(self.norms.at(k, state, statistics, self.net))
                outputs = self.net.on_query(judged[-1], episode.query.x, episode.support.x)
                losses.append(self.loss(outputs, episode.query.y))
        metrics = {"loss": losses[-1], "inner": torch.cat(befores)}
        if every_step:
            # The multi-step loss sum_k v_k L_query(theta_k). The weights are computed from a tensor, the counter, which
            # a trace of this function reads in each run.
            metrics["loss"] = (self.annealing.weights(losses) * torch.stack(losses)).sum()
        if self.kind == "classification":
            metrics["accuracy"] = (outputs.argmax(-1) == episode.query.y).float().mean()
        return metrics, State(state.parameters, self.norms.moved(judged))

    def present_task(self) -> Callable[..., Any]:
        """Return ``task`` with the loss and the order of the gradients that the counter of meta-batches determines."""
        every_step, second_order = self.annealing.phase()
        return partial(self.task, every_step=every_step, second_order=second_order)

    def finish(self, metrics: dict[str, Tensor], end: State, episodes: Episode) -> dict[str, Tensor]:
        """Keep the running statistics, count the meta-batch, and return the metrics to be logged, each [B]."""
        check_descent(metrics.pop("inner"), "mamlpp", episodes.origin)
        keep_buffers(self.net.net, end)  # running statistics: the mean over the tasks
        self.norms.keep(end)
        self.annealing.meta_batches += 1
        return metrics

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """Add the mean over tasks of the gradient of their losses to ``.grad``, for theta, rates and batch norm."""
        theta, statistics = self.norms.start(self.net), self.norms.statistics(episodes.size)
        metrics, end = self.lift.mean_gradient(self.present_task(), theta, episodes, statistics)
        return {name: values.mean() for name, values in self.finish(dict(metrics), end, episodes).items()}

    def task_losses(self, episodes: Episode) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the losses [B] with their graph, and theta - theta_K of each task (ability ``PerTask``)."""
        theta, statistics = self.norms.start(self.net), self.norms.statistics(episodes.size)
        metrics, end = self.lift.map(self.present_task(), theta, episodes, statistics)
        return self.finish(metrics, end, episodes)["loss"], end.away_from(theta)

    def adapt(self, support: Support) -> Predictor:
        """Take ``test_steps`` steps; return a predictor from queries [B, n, *input] to logits or values [B, n, ...]."""

        def fitted(state: State, support: Support, statistics: dict[str, Tensor]) -> tuple[State, list[Tensor]]:
            befores = []
            for k in range(self.test_steps):
                state, before = self.inner_step(k, state, support, statistics, second_order=False)
                befores.append(before)
            return self.norms.at(max(0, self.test_steps - 1), state, statistics, self.net), befores

        statistics = self.norms.statistics(len(support.key))
        with evaluating(self.net), torch.no_grad():
            adapted, befores = self.lift.map(fitted, self.norms.start(self.net).detach(), support, statistics)
        if befores:
            check_descent(torch.cat(befores, 1), "mamlpp")

        def predict(x: Tensor) -> Tensor:
            outputs: Tensor = self.lift.map(self.net.predict, adapted, x, support.x)
            return full_precision(outputs)

        return predict
