"""MAML++: Antoniou, Edwards & Storkey, "How to train your MAML", 2018 (1810.09502), section 4.

The weights of the losses are in ``annealing.py``, and what batch norm has for each step is in ``step_norms.py``.
Letters: B meta-batch, N way, n queries, K inner steps in training; theta are the parameters of the network, theta_k
those after k inner steps on a task. Some functions are of one task, without B; ``Lift`` runs them for a meta-batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot import Episode, Lift, Metrics, Needs, Predictor, Support, TaskSpec, Training
from kshot.errors import OptionError
from kshot.functional import full_precision
from kshot.inner import State, check_descent, descend, keep_buffers
from kshot.nn import NetworkChoice, Normalisation, evaluating
from kshot.nn import network as build_network
from kshot.registry import Range
from kshot_mamlpp.annealing import loss_weights
from kshot_mamlpp.step_norms import StepNorms


class MAMLPP(nn.Module):
    """Learn initial parameters and rates with which a few gradient steps on a support give good predictions.

    It is MAML with the changes of the paper, each of which is an option. The last change, a rate of the outer optimizer
    that falls along a cosine, is in ``training_defaults`` for classification.

    Args:
        spec: the specification of the tasks, which determines the inputs and outputs of the network.
        network: ``auto``, ``conv4``, ``mlp`` or a module from [n, *input] to logits [n, N] or values [n, *target].
        width: channels of ``conv4``.
        hidden: units of the hidden layers of ``mlp``.
        normalisation: the statistics by which batch norm normalises the queries, see ``kshot.nn.Network``. The
            published results are ``transductive``.
        order: ``second`` differentiates through the inner steps; ``first`` treats the inner gradients as constants.
        first_order_iterations: the number of meta-batches at the start of training with the order ``first`` (annealing
            of the derivative order). The default is that of the authors' settings; the paper describes a third of the
            training.
        inner_lr: the initial rates; None for 0.1 (the authors' for Omniglot), or 0.01 for regression.
        learn_rates: whether the rates are learned, one for each parameter tensor and inner step.
        inner_steps: K, the number of inner steps in training.
        test_steps: the number of inner steps at evaluation and prediction; None for the same as in training. Steps
            after the K-th have the rates, weights, biases and statistics of the K-th. Learned rates are right for K
            steps only; with more, the loss may rise or diverge.
        loss_iterations: the number of meta-batches at the start of training with a loss after every step, see
            ``loss_weights``. The default is a tenth of the default training, as in the authors' settings; 0 for the
            loss after the last step only.
        step_affine: whether batch norm has its own weights and biases for each step. They are learned, but do not adapt
            to a task, as in the authors' settings. If not, they adapt, as in MAML.
        step_statistics: whether batch norm has its own running statistics for each step, for ``inductive``. If not,
            they are those of the queries after the last step.
        strategy: how the tasks of a meta-batch run: in parallel (``vmap``), one after another (``loop``), or ``auto``.
        chunk: the greatest number of tasks that run in parallel; None for as many as a limit of memory allows.

    Attributes:
        rates: [K, number of parameter tensors that adapt], in the order of the network's parameters.
        meta_batches: a counter [] of the meta-batches that were trained on.

    Raises:
        OptionError: a number is negative, there is no inner step, or a choice is unknown.
        DataError: the network does not accept the inputs of the tasks, or the number of classes (way) varies.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> tasks = sample_tasks.Lines()
        >>> learner = MAMLPP(tasks.spec, hidden=(8,), inner_steps=2)
        >>> tuple(learner.rates.shape)
        (2, 4)
        >>> episode = tasks.sample("test", [0, 1])
        >>> tuple(learner.adapt(episode.support)(episode.query.x).shape)
        (2, 4, 1)
    """

    needs = Needs(kinds=("classification", "regression"), invariant={"order"})
    meta_batches: Tensor

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
        strategy: Literal["auto", "vmap", "loop"] = "auto",
        chunk: Annotated[int, Range(1)] | None = None,
    ) -> None:
        super().__init__()
        if inner_steps < 1 or min(test_steps or 0, loss_iterations, first_order_iterations) < 0:
            raise OptionError(
                f"mamlpp: got inner_steps {inner_steps}, test_steps {test_steps}, loss_iterations {loss_iterations} "
                f"and first_order_iterations {first_order_iterations}, expected at least 1, 0, 0 and 0; raise them"
            )
        self.kind = spec.kind
        self.net = build_network(network, spec, normalisation=normalisation, width=width, hidden=hidden)
        self.norms = StepNorms(self.net, inner_steps, affine=step_affine, statistics=step_statistics)
        # The rates of every parameter tensor that adapts, also of those that are frozen at present.
        named = dict(self.net.net.named_parameters())
        self.columns = {n: i for i, n in enumerate(n for n in named if n not in self.norms.not_adapted)}
        start = (0.01 if spec.kind == "regression" else 0.1) if inner_lr is None else inner_lr
        rates = torch.full((inner_steps, len(self.columns)), start)
        self.rates = nn.Parameter(rates, requires_grad=learn_rates)
        # The engine keeps this counter as it keeps those of batch norm: in checkpoints, and once per meta-batch, into
        # however many chunks and processes it is divided.
        self.register_buffer("meta_batches", torch.zeros((), dtype=torch.int64))
        self.second_order, self.first_order_iterations = order == "second", first_order_iterations
        self.loss_iterations = loss_iterations
        self.inner_steps, self.test_steps = inner_steps, inner_steps if test_steps is None else test_steps
        # A ``Lift`` chooses once how to run a function. Each phase of the training is another function, so it has its
        # own, and a resumed training chooses as an unbroken one.
        self.lifts = {phase: Lift(strategy, chunk) for phase in itertools.product((False, True), repeat=2)}
        # With ``support``, batch statistics of the support count as constants, so the gradient is not exact.
        constants = self.net.has_batch_norm and self.net.normalisation == "support"
        exact = self.second_order and first_order_iterations == 0 and not constants
        self.needs = attrs.evolve(type(self).needs, queries=self.net.queries, exact_gradient=exact)
        # The authors' for Omniglot. On sine waves, learned rates diverged with larger steps of the outer optimizer.
        classifies, fits = Training(schedule="cosine", meta_batch=8), Training(lr=5e-4, meta_batch=25, clip=1.0)
        training = fits if spec.kind == "regression" else classifies
        self.training_defaults = attrs.evolve(training, iterations=500)

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Compute L of one task: the cross-entropy of logits [n, N], or the mean squared error of values."""
        outputs = full_precision(outputs)
        return F.cross_entropy(outputs, y) if self.kind == "classification" else F.mse_loss(outputs, y)

    def start(self) -> State:
        """Return theta: the parameters that adapt, and the buffers."""
        state = self.net.state()
        return State({n: p for n, p in state.parameters.items() if n in self.columns}, state.buffers)

    def at(self, step: int, state: State, statistics: dict[str, Tensor]) -> State:
        """Return the state in which the network computes at a step, with what batch norm has for it."""
        return self.norms.at(step, state, statistics, self.net.net)

    def inner_step(
        self, step: int, state: State, support: Support, statistics: dict[str, Tensor], second_order: bool
    ) -> tuple[State, Tensor]:
        """Compute theta_{k+1} = theta_k - alpha_k grad L_support(theta_k), with a rate for each tensor (eq. 4).

        Args:
            step: k; steps after the last have its rates.

        Returns:
            The state with theta_{k+1}, and the loss before the step [1].
        """

        def support_loss(state: State, support: Support) -> Tensor:
            return self.loss(self.net.on_support(self.at(step, state, statistics), support.x), support.y)

        alpha = self.rates[min(step, self.inner_steps - 1)]
        rates = {n: alpha[self.columns[n]] for n in state.parameters}
        return descend(support_loss, state, support, lr=rates, steps=1, second_order=second_order)

    def task(
        self, theta: State, episode: Episode, statistics: dict[str, Tensor], *, every_step: bool, second_order: bool
    ) -> tuple[dict[str, Any], State]:
        """Return the metrics of one task, with the loss that is differentiated, and its adapted state.

        Args:
            every_step: whether the loss is that after every step, or only that after the last.
        """
        state, befores, losses, judged = theta, [], [], []
        for k in range(self.inner_steps):
            state, before = self.inner_step(k, state, episode.support, statistics, second_order)
            befores.append(before)
            if every_step or k == self.inner_steps - 1:
                # The loss of theta_{k+1} on the queries.
                judged.append(self.at(k, state, statistics))
                outputs = self.net.on_query(judged[-1], episode.query.x, episode.support.x)
                losses.append(self.loss(outputs, episode.query.y))
        metrics: dict[str, Any] = {"loss": losses[-1], "inner": torch.cat(befores)}
        if every_step:
            # The multi-step loss sum_k v_k L_query(theta_k) (eq. 3).
            weights = loss_weights(self.meta_batches.to(losses[-1].dtype), self.inner_steps, self.loss_iterations)
            metrics["loss"] = (weights * torch.stack(losses)).sum()
            earlier = [state.buffers for state in judged[:-1]]
            metrics["statistics"] = {n: torch.stack([b[n] for b in earlier]) for n in self.norms.running}
        if self.kind == "classification":
            metrics["accuracy"] = (outputs.argmax(-1) == episode.query.y).float().mean()
        return metrics, State(state.parameters, judged[-1].buffers)

    def phase(self) -> tuple[Callable[..., Any], Lift]:
        """Return ``task`` as the present meta-batch needs it, by the counter, and the ``Lift`` of this phase."""
        done = int(self.meta_batches)
        every, second = done < self.loss_iterations, self.second_order and done >= self.first_order_iterations
        return partial(self.task, every_step=every, second_order=second), self.lifts[every, second]

    def finish(self, metrics: dict[str, Any], end: State, episodes: Episode) -> dict[str, Tensor]:
        """Keep the running statistics, count the meta-batch, and return the metrics to be logged, each [B]."""
        check_descent(metrics.pop("inner"), "mamlpp", episodes.origin)
        keep_buffers(self.net.net, end)  # running statistics: the mean over the tasks
        if "statistics" in metrics:
            self.norms.keep(metrics.pop("statistics"))
        self.meta_batches += 1
        return metrics

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """Add the mean over tasks of the gradient of their losses to ``.grad``, for theta, rates and batch norm."""
        (task, lift), statistics = self.phase(), self.norms.statistics(episodes.size)
        metrics, end = lift.mean_gradient(task, self.start(), episodes, statistics)
        return {name: values.mean() for name, values in self.finish(dict(metrics), end, episodes).items()}

    def task_losses(self, episodes: Episode) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the losses [B] with their graph, and theta - theta_K of each task (ability ``PerTask``)."""
        (task, lift), theta = self.phase(), self.start()
        metrics, end = lift.map(task, theta, episodes, self.norms.statistics(episodes.size))
        return self.finish(metrics, end, episodes)["loss"], end.away_from(theta)

    def adapt(self, support: Support) -> Predictor:
        """Take ``test_steps`` inner steps on the support, and return the predictor with the adapted parameters.

        The predictor maps queries [B, n, *input] to logits [B, n, N] or values [B, n, *target].
        """

        def fitted(state: State, support: Support, statistics: dict[str, Tensor]) -> tuple[State, list[Tensor]]:
            befores = []
            for k in range(self.test_steps):
                state, before = self.inner_step(k, state, support, statistics, second_order=False)
                befores.append(before)
            return self.at(max(0, self.test_steps - 1), state, statistics), befores

        statistics = self.norms.statistics(len(support.key))
        with evaluating(self.net), torch.no_grad():
            adapted, befores = self.lifts[False, False].map(fitted, self.start().detach(), support, statistics)
        if befores:
            check_descent(torch.cat(befores, 1), "mamlpp")

        def predict(x: Tensor) -> Tensor:
            outputs: Tensor = self.lifts[False, False].map(self.net.predict, adapted, x, support.x)
            return full_precision(outputs)

        return predict
