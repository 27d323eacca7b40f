"""CAVIA: Zintgraf, Shiarlis, Kurin, Hofmann & Whiteson, "Fast context adaptation via meta-learning", 2018 (1810.03642).

Letters: B meta-batch, N way, n queries. theta are the parameters of the network, which all tasks share, and phi
[context] those of a task. Some functions are written for one task, without the axis B; ``Lift`` runs them for all.
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
from kshot.inner import State, Strategy, check_descent, descend
from kshot.nn import NetworkChoice, Normalisation, evaluating
from kshot.registry import Range, check_values
from kshot_cavia.conditioning import Conditioning, conditioned_network, keep_statistics, start


class CAVIA(nn.Module):
    """Learn a network that all tasks share, and adapt to each task only a few context parameters, which are its inputs.

    Args:
        spec: the specification of the tasks, which determines the inputs and outputs of the network.
        network: ``auto``, ``conv4``, ``strided-conv4``, ``mlp`` or a module, see ``conditioning``.
        width: channels of the convolutions.
        hidden: units of the hidden layers of ``mlp``.
        context: the number of context parameters; None for the paper's: 5 for regression, 100 for classification.
            With 0 nothing adapts, and the network is trained on all tasks jointly.
        conditioning: how the network sees phi. ``input``: phi is appended to the flattened inputs, so a module takes
            [n, D + context]. ``film``: a linear map of phi scales and shifts each channel of the output of one layer.
            ``argument``: a module is called as ``network(x, phi)``. ``auto`` is film for both conv4 and for a module
            with ``film_after``, argument for a module whose forward takes two inputs, and input otherwise.
        film_after: the path of the layer for ``film``; None is the layer before the third ReLU of either conv4.
        normalisation: the statistics by which batch norm normalises the queries, see ``kshot.nn.Network``. The
            authors' code is ``transductive``.
        order: ``second`` differentiates through the inner steps; ``first`` treats the inner gradients as constants.
        inner_lr: alpha, the inner learning rate of phi; the paper has 1.
        inner_steps: the number of inner steps in training; None for the paper's: 1 for regression, 2 for
            classification.
        test_steps: the number of inner steps at evaluation and prediction; None for the same as in training.
        strategy: how the tasks of a meta-batch are computed, see ``kshot.Lift``; ``auto`` chooses by their sizes.
        chunk: the greatest number of tasks that are computed together; None for as many as a limit of memory allows.

    Raises:
        OptionError: a number is negative, a choice is unknown, or options do not fit each other.
        DataError: the network does not accept its inputs, or the number of classes (way) varies.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> tasks = sample_tasks.Lines()
        >>> learner = CAVIA(tasks.spec, hidden=(8,), context=3)
        >>> episode = tasks.sample("test", [0, 1])
        >>> tuple(learner.adapt(episode.support)(episode.query.x).shape)
        (2, 4, 1)
        >>> tuple(learner.trace(episode)["context"].shape)  # phi of each task before and after its inner step
        (2, 2, 3)
    """

    needs = Needs(kinds=("classification", "regression"), invariant={"order"})

    def __init__(
        self,
        spec: TaskSpec,
        *,
        network: NetworkChoice = "auto",
        width: Annotated[int, Range(1, 4096)] = 64,
        hidden: tuple[Annotated[int, Range(1, 65536)], ...] = (40, 40),
        context: Annotated[int, Range(0, 65536)] | None = None,
        conditioning: Conditioning = "auto",
        film_after: str | None = None,
        normalisation: Normalisation = "transductive",
        order: Literal["second", "first"] = "second",
        inner_lr: Annotated[float, Range(0)] = 1.0,
        inner_steps: Annotated[int, Range(0)] | None = None,
        test_steps: Annotated[int, Range(0)] | None = None,
        strategy: Strategy = "auto",
        chunk: Annotated[int, Range(1)] | None = None,
    ) -> None:
        super().__init__()
        check_values(CAVIA, locals())
        self.kind = spec.kind
        paper_context, paper_steps = (5, 1) if spec.kind == "regression" else (100, 2)
        context = paper_context if context is None else context
        self.inner_steps = paper_steps if inner_steps is None else inner_steps
        self.test_steps = self.inner_steps if test_steps is None else test_steps
        self.net = conditioned_network(
            network, spec, context=context, conditioning=conditioning, film_after=film_after,
            normalisation=normalisation, width=width, hidden=hidden,
        )  # fmt: skip
        self.inner_lr, self.second_order = inner_lr, order == "second"
        self.lift = Lift(strategy, chunk)
        # With ``support``, batch statistics of the support count as constants, so the gradient is not exact.
        exact = self.second_order and not self.net.constant_statistics
        self.needs = attrs.evolve(type(self).needs, queries=self.net.queries, exact_gradient=exact)
        self.training_defaults = paper_training(spec)

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Compute L of one task: the cross-entropy of logits [n, N], or the mean squared error of values."""
        outputs = full_precision(outputs)
        return F.cross_entropy(outputs, y) if self.kind == "classification" else F.mse_loss(outputs, y)

    def support_loss(self, phi: State, support: Support) -> Tensor:
        """Compute L(f_{phi, theta}) on the support of one task."""
        return self.loss(self.net.on_support(phi, support.x), support.y)

    def adapted(self, phi: State, support: Support, steps: int) -> tuple[State, Tensor]:
        """Compute phi' = phi - alpha grad_phi L(f_{phi, theta}), ``steps`` times (eq. 1).

        Returns:
            phi', and the loss before each step [steps].
        """
        return descend(self.support_loss, phi, support, lr=self.inner_lr, steps=steps, second_order=self.second_order)

    def task(self, phi: State, episode: Episode) -> tuple[Mapping[str, Tensor], State]:
        """Return the metrics of one task, with the query loss L(f_{phi', theta}), and phi' (algorithm 1)."""
        # phi' from the support (eq. 1).
        adapted, losses = self.adapted(phi, episode.support, self.inner_steps)
        # The loss on the queries. Its gradient with respect to theta also passes through phi' (eq. 2).
        outputs = self.net.on_query(adapted, episode.query.x, episode.support.x)
        metrics = {"loss": self.loss(outputs, episode.query.y), "inner": losses}
        if self.kind == "classification":
            metrics["accuracy"] = (outputs.argmax(-1) == episode.query.y).float().mean()
        return metrics, adapted

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """Add the mean over tasks of grad_theta L(f_{phi', theta}) to ``.grad``."""
        metrics, end = self.lift.mean_gradient(self.task, start(self.net), episodes)
        check_descent(metrics.pop("inner"), "cavia", episodes.origin)
        keep_statistics(self.net, end)
        return {name: values.mean() for name, values in metrics.items()}

    def task_losses(self, episodes: Episode) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the losses L(f_{phi', theta}) [B] with their graph, and -phi' of each task (ability ``PerTask``)."""
        phi = start(self.net)
        metrics, adapted = self.lift.map(self.task, phi, episodes)
        check_descent(metrics["inner"], "cavia", episodes.origin)
        keep_statistics(self.net, adapted)
        return metrics["loss"], adapted.away_from(phi)

    def adapt(self, support: Support) -> Predictor:
        """Take ``test_steps`` inner steps on the support, and return the predictor with the context phi'.

        The predictor maps queries [B, n, *input] to logits [B, n, N] or values [B, n, *target].
        """

        def fitted(phi: State, support: Support) -> tuple[State, Tensor]:
            return self.adapted(phi, support, self.test_steps)

        with torch.no_grad(), evaluating(self.net):
            adapted, losses = self.lift.map(fitted, start(self.net), support)
        check_descent(losses, "cavia")

        def predict(x: Tensor) -> Tensor:
            with torch.no_grad():
                outputs: Tensor = self.lift.map(self.net.predict, adapted, x, support.x)
            return full_precision(outputs)

        return predict

    def trace(self, episode: Episode) -> Mapping[str, Tensor]:
        """Return phi and the predictions after each inner step (ability ``Explains``).

        Returns:
            ``context`` [B, steps + 1, context] and ``outputs`` [B, steps + 1, n, ...] after 0 to ``test_steps`` inner
            steps, at ``inputs`` [B, n, *input]; ``targets``, ``support_inputs`` and ``support_targets``.
        """
        support, query, steps = episode.support, episode.query, range(self.test_steps + 1)

        def after(phi: State, support: Support, x: Tensor) -> tuple[Tensor, Tensor]:
            states = [self.adapted(phi, support, k)[0] for k in steps]
            outputs = torch.stack([self.net.predict(state, x, support.x) for state in states])
            return torch.stack([state.parameters["phi"] for state in states]), outputs

        with torch.no_grad(), evaluating(self.net):
            context, outputs = self.lift.map(after, start(self.net), support, query.x)
        seen = {"support_inputs": support.x, "support_targets": support.y}
        return {"context": context, "inputs": query.x, "outputs": outputs, "targets": query.y, **seen}


def paper_training(spec: TaskSpec) -> Training:
    """Return the default training: the authors' meta-batches and rate, but far fewer iterations than their 50,000.

    Example:
        >>> paper_training(TaskSpec(kind="regression", input_shape=(1,), target_shape=(1,), shot=5, query=5)).meta_batch
        25
    """
    if spec.kind == "regression":
        return Training(meta_batch=25, iterations=2000)
    return Training(meta_batch=16, iterations=500)
