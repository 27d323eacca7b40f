"""Reptile: Nichol, Achiam & Schulman, "On first-order meta-learning algorithms", 2018 (1803.02999).

The inner optimizer and the minibatches are in ``inner.py``. Letters: B meta-batch, N way, S support size, n queries,
k inner steps, b examples of an inner minibatch. Functions for one task have no axis B; ``Lift`` runs them for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot import Episode, Lift, Metrics, Needs, Predictor, Support, TaskSpec, Training
from kshot.errors import OptionError
from kshot.functional import full_precision
from kshot.inner import State, Strategy, Tensors, adam, check_descent, keep_buffers, sgd, take_steps
from kshot.nn import NetworkChoice, Normalisation, evaluating
from kshot.nn import network as build_network
from kshot.registry import check_values
from kshot_reptile.inner import Moments, authors_settings, minibatches


class Reptile(nn.Module):
    """Learn initial parameters by moving them towards the parameters that plain training on each task leads to.

    Training uses the support of a task, with more shots than in the test; queries are for logged metrics only. Serial
    Reptile (algorithm 1) is a meta-batch of 1, batched Reptile (algorithm 2) a larger one. The outer step theta + eps *
    mean(theta~ - theta) is SGD with the rate eps, which the paper decreases linearly to 0.

    Args:
        spec: the specification of the tasks, which determines the inputs and outputs of the network.
        network: ``auto``, ``conv4``, ``strided-conv4``, ``mlp``, or a module from [n, *input] to logits [n, N] or to
            regression values [n, *target]; see ``kshot.nn.network``.
        width: channels of the convolutions.
        hidden: units of the hidden layers of ``mlp``.
        normalisation: the statistics by which batch norm normalises the queries, see ``kshot.nn.Network``. The paper
            reports results with transduction (``transductive``) and without it, to which ``support`` is nearest.
        inner_optimizer: ``sgd`` or ``adam`` (with beta1 = 0). For this and the next five options, None is the authors'
            choice for such tasks, see ``authors_settings``; here it is adam, or sgd for regression.
        inner_lr: its rate; None for 1e-3, 5e-4 from 20 ways on, and 0.02 for regression.
        inner_batch: b in training; None for 10, or 20 from 20 ways on. A support of at most b examples is used whole.
        inner_steps: k in training; None for 5, 10 from 20 ways on, and 8 for images of three channels.
        test_batch: b at evaluation and prediction; None for 5, 10 from 20 ways on and for regression, and 15 for images
            of three channels.
        test_steps: k at evaluation and prediction; None for 50, or 32 for regression.
        moments: the second moments of ``adam`` at the first step of a task: ``reset`` to 0, or ``kept`` from the tasks
            of the last iteration, as in the authors' code, see ``kshot_reptile.inner.Moments``. Evaluation starts from
            the kept ones, and does not change them.
        strategy: how the tasks of a meta-batch are computed, see ``kshot.Lift``; ``auto`` chooses by their sizes.
        chunk: the greatest number of tasks that are computed together; None for as many as a limit of memory allows.

    Raises:
        OptionError: a number of examples or steps is too small, a choice is unknown, or ``sgd`` keeps ``moments``.
        DataError: the network does not accept the inputs of the tasks, or the number of classes (way) varies.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> tasks = sample_tasks.Lines()
        >>> learner = Reptile(tasks.spec, hidden=(8,), test_steps=3)
        >>> episode = tasks.sample("test", [0, 1])
        >>> tuple(learner.adapt(episode.support)(episode.query.x).shape)
        (2, 4, 1)
    """

    needs = Needs(kinds=("classification", "regression"))
    training_defaults = Training(
        optimizer="sgd", lr=1.0, schedule="linear", meta_batch=5, iterations=2000, tasks={"shot": 10, "query": 1}
    )

    def __init__(
        self,
        spec: TaskSpec,
        *,
        network: NetworkChoice = "auto",
        width: int = 64,
        hidden: tuple[int, ...] = (64, 64),
        normalisation: Normalisation = "support",
        inner_optimizer: Literal["sgd", "adam"] | None = None,
        inner_lr: float | None = None,
        inner_batch: int | None = None,
        inner_steps: int | None = None,
        test_batch: int | None = None,
        test_steps: int | None = None,
        moments: Literal["reset", "kept"] = "reset",
        strategy: Strategy = "auto",
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        check_values(Reptile, locals())
        chosen: dict[str, Any] = {"inner_optimizer": inner_optimizer, "inner_lr": inner_lr, "inner_batch": inner_batch}
        chosen |= {"inner_steps": inner_steps, "test_batch": test_batch, "test_steps": test_steps}
        own = attrs.evolve(authors_settings(spec), **{n: value for n, value in chosen.items() if value is not None})
        if min(own.inner_batch, own.inner_steps, own.test_batch) < 1 or own.test_steps < 0:
            raise OptionError(
                f"reptile: got inner_batch {own.inner_batch}, inner_steps {own.inner_steps}, test_batch "
                f"{own.test_batch} and test_steps {own.test_steps}, expected at least 1, 1, 1 and 0; raise them"
            )
        if moments not in ("reset", "kept") or (moments == "kept" and own.inner_optimizer == "sgd"):
            given = f"moments={moments!r} with inner_optimizer={own.inner_optimizer!r}"
            raise OptionError(f"reptile: got {given}, expected 'reset', or 'kept' with 'adam'; change one of them")
        self.kind = spec.kind
        self.net = build_network(network, spec, normalisation=normalisation, width=width, hidden=hidden)
        self.update = sgd(own.inner_lr) if own.inner_optimizer == "sgd" else adam(own.inner_lr, betas=(0.0, 0.999))
        self.moments = Moments(self.net.state().parameters) if moments == "kept" else None
        self.inner_batch, self.inner_steps = own.inner_batch, own.inner_steps
        self.test_batch, self.test_steps = own.test_batch, own.test_steps
        self.lift = Lift(strategy, chunk)
        self.needs = attrs.evolve(type(self).needs, queries=self.net.queries)

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Compute L of one task: the cross-entropy of logits [n, N], or the mean squared error of values."""
        outputs = full_precision(outputs)
        return F.cross_entropy(outputs, y) if self.kind == "classification" else F.mse_loss(outputs, y)

    def batch_loss(self, state: State, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Compute L(f_theta) on a minibatch x [b, *input], y [b, *] of one task's support."""
        x, y = batch
        return self.loss(self.net.on_support(state, x), y)

    def final_parameters(self, theta: State, support: Support, order: Tensor, memory: Any) -> tuple[State, Tensor, Any]:
        """Compute theta~ = U^k(theta), one step on each of the minibatches ``order`` [k, b] (algorithm 1, line 4).

        ``memory`` is the memory of the inner optimizer before the first step; () for none.

        Returns:
            theta~, without a graph to theta, the loss before each step [k], and the moments after the last, if kept.
        """

        def update(parameters: Tensors, gradients: Tensors, _: Any) -> tuple[Tensors, Any]:
            nonlocal memory
            parameters, memory = self.update(parameters, gradients, memory or None)
            return parameters, memory

        batches = ((support.x[chosen], support.y[chosen]) for chosen in order)
        final, losses = take_steps(self.batch_loss, theta, batches, update, second_order=False)
        return final, losses, memory[1] if self.moments else {}

    def task(self, theta: State, episode: Episode, order: Tensor, memory: Any) -> tuple[dict[str, Tensor], State, Any]:
        """Return metrics of theta~ on the queries of one task, theta~, and the moments after it, if kept."""
        final, losses, moments = self.final_parameters(theta, episode.support, order, memory)
        outputs = self.net.on_query(final, episode.query.x, episode.support.x)
        metrics = {"loss": self.loss(outputs, episode.query.y), "inner": losses}
        if self.kind == "classification":
            metrics["accuracy"] = (outputs.argmax(-1) == episode.query.y).float().mean()
        return metrics, final, moments

    def displacement(self, episodes: Episode) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return theta - theta~ of each task {name: [B, *]}, without a graph, and the metrics, each [B]."""
        theta = self.net.state().detach()
        order = minibatches(episodes.support, self.inner_batch, self.inner_steps)
        memory = self.moments.memory(theta.parameters, episodes.size) if self.moments else ()
        # If a network below makes the queries' inputs, the loss has a graph to them, in which theta~ is a constant.
        with torch.set_grad_enabled(episodes.query.x.requires_grad):
            metrics, final, v = self.lift.map(self.task, theta, episodes, order, memory)
        check_descent(metrics.pop("inner"), "reptile", episodes.origin)
        if self.moments:
            self.moments.keep(v, self.inner_steps)
        keep_buffers(self.net.net, final)  # running statistics: the mean over the tasks
        return final.away_from(theta), metrics

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """Add the mean over tasks of theta - theta~ to ``.grad`` (algorithm 2, line 6). No loss has this gradient."""
        away, metrics = self.displacement(episodes)
        if metrics["loss"].requires_grad:
            metrics["loss"].mean().backward()
        for name, p in self.net.state().parameters.items():
            mean = away[name].mean(0)
            p.grad = mean if p.grad is None else p.grad + mean
        return {name: values.detach().mean() for name, values in metrics.items()}

    def task_losses(self, episodes: Episode) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return losses on the queries [B], whose gradient is theta - theta~, and theta - theta~ (``PerTask``)."""
        away, metrics = self.displacement(episodes)
        losses = metrics["loss"]
        for name, p in self.net.state().parameters.items():
            # Adds 0 to the loss and theta - theta~ to its gradient.
            losses = losses + ((p - p.detach()) * away[name]).reshape(episodes.size, -1).sum(1)
        return losses, away

    def adapt(self, support: Support) -> Predictor:
        """Take ``test_steps`` steps on minibatches of the support; return the predictor under theta~.

        It maps queries [B, n, *input] to logits [B, n, N] or values [B, n, *target].
        """
        order = minibatches(support, self.test_batch, self.test_steps)
        theta = self.net.state().detach()
        memory = self.moments.memory(theta.parameters, len(support.key)) if self.moments else ()
        with evaluating(self.net), torch.no_grad():
            final, losses, _ = self.lift.map(self.final_parameters, theta, support, order, memory)
        check_descent(losses, "reptile")

        def predict(x: Tensor) -> Tensor:
            outputs: Tensor = self.lift.map(self.net.predict, final, x, support.x)
            return full_precision(outputs)

        return predict
