"""Reptile: Nichol, Achiam & Schulman, "On first-order meta-learning algorithms", 2018 (1803.02999).

Letters: B meta-batch, N way, S support size, n queries, k inner steps, b examples of an inner minibatch. Functions of
one task carry no B; ``Lift`` runs them for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot import Episode, Lift, Metrics, Needs, Predictor, Support, TaskSpec, Training, generator
from kshot.errors import DataError, OptionError
from kshot.functional import full_precision
from kshot.inner import State, Tensors, Update, check_descent, keep_buffers, sgd, take_steps
from kshot.nn import NetworkChoice, Normalisation, evaluating
from kshot.nn import network as build_network


class Reptile(nn.Module):
    """Move an initialisation towards where k steps of plain training on each task end.

    Training takes a task's support, of more shots than the test has; its queries only measure. Serial Reptile
    (algorithm 1) is a meta-batch of 1, batched Reptile (algorithm 2) a larger one. The outer step theta + eps *
    mean(theta~ - theta) is SGD whose rate is eps, which the paper lets fall linearly to 0.

    Args:
        spec: the tasks'; fixes the net's inputs and outputs.
        network: ``auto``, ``conv4``, ``mlp`` or a module from [n, *input] to logits [n, N] or values [n, *target].
        width: channels of conv4.
        hidden: units of the mlp's hidden layers.
        normalisation: whose batch statistics normalise the queries, see ``kshot.nn.Network``. The paper reports
            its figures without transduction, nearest to ``support``, and with it, ``transductive``.
        inner_optimizer: ``sgd``, ``adam`` (with beta1 = 0), or None for the paper's: adam; sgd for regression.
        inner_lr: its rate; None is the paper's: 1e-3, from 20 ways on 5e-4, and 0.02 for regression.
        inner_batch: b, examples of a minibatch; where the support has no more, each step takes all of it.
        inner_steps: k while training.
        test_steps: k at evaluation and use.
        strategy: how the tasks of a meta-batch run: ``vmap`` at once, ``loop`` one after another, ``auto`` chooses.
        chunk: the most tasks of one vmap; None bounds its memory.

    Raises:
        OptionError: an empty minibatch, no inner step or an unknown choice.
        DataError: the net can't take the tasks' inputs, or their way varies.
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
        inner_batch: int = 10,
        inner_steps: int = 5,
        test_steps: int = 50,
        strategy: Literal["auto", "vmap", "loop"] = "auto",
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        if inner_batch < 1 or inner_steps < 1 or test_steps < 0:
            raise OptionError(
                f"reptile: inner_batch {inner_batch}, inner_steps {inner_steps}, test_steps {test_steps}; expected at "
                "least 1, 1 and 0"
            )
        own_optimizer, own_lr = paper_inner(spec)
        rule = sgd if (inner_optimizer or own_optimizer) == "sgd" else adam
        self.kind = spec.kind
        self.net = build_network(network, spec, normalisation=normalisation, width=width, hidden=hidden)
        self.update = rule(own_lr if inner_lr is None else inner_lr)
        self.inner_batch, self.inner_steps, self.test_steps = inner_batch, inner_steps, test_steps
        self.lift = Lift(strategy, chunk)
        self.needs = attrs.evolve(type(self).needs, queries=self.net.queries)

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """L of one task: cross-entropy of logits [n, N], or the mean squared error of values."""
        outputs = full_precision(outputs)
        return F.cross_entropy(outputs, y) if self.kind == "classification" else F.mse_loss(outputs, y)

    def batch_loss(self, state: State, batch: tuple[Tensor, Tensor]) -> Tensor:
        """L(f_theta) on a minibatch x [b, *input], y [b, *] of one task's support."""
        x, y = batch
        return self.loss(self.net.on_support(state, x), y)

    def trained(self, theta: State, support: Support, order: Tensor) -> tuple[State, Tensor]:
        """theta~ = U^k(theta), a step on each of the minibatches ``order`` [k, b] (algorithm 1, line 4); and losses."""
        batches = ((support.x[chosen], support.y[chosen]) for chosen in order)
        return take_steps(self.batch_loss, theta, batches, self.update, second_order=False)

    def task(self, theta: State, episode: Episode, order: Tensor) -> tuple[dict[str, Tensor], State]:
        """theta~ of one task, measured on its queries."""
        trained, losses = self.trained(theta, episode.support, order)
        outputs = self.net.on_query(trained, episode.query.x, episode.support.x)
        metrics = {"loss": self.loss(outputs, episode.query.y), "inner": losses}
        if self.kind == "classification":
            metrics["accuracy"] = (outputs.argmax(-1) == episode.query.y).float().mean()
        return metrics, trained

    def displacement(self, episodes: Episode) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """theta - theta~ of each task {name: [B, *]}, without a graph; and what was measured, each [B]."""
        theta = self.net.state().detach()
        order = minibatches(episodes.support, self.inner_batch, self.inner_steps)
        with torch.no_grad():
            metrics, trained = self.lift.map(self.task, theta, episodes, order)
        check_descent(metrics.pop("inner"), "reptile", episodes.origin)
        keep_buffers(self.net.net, trained)
        return trained.away_from(theta), metrics

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """Add the mean over tasks of theta - theta~ to ``.grad`` (algorithm 2, line 6); it is no loss's gradient."""
        away, metrics = self.displacement(episodes)
        for name, p in self.net.state().parameters.items():
            mean = away[name].mean(0)
            p.grad = mean if p.grad is None else p.grad + mean
        return {name: values.mean() for name, values in metrics.items()}

    def task_losses(self, episodes: Episode) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Losses on the queries [B], with theta - theta~ in place of their gradient (ability ``PerTask``)."""
        away, metrics = self.displacement(episodes)
        losses = metrics["loss"]
        for name, p in self.net.state().parameters.items():
            losses = losses + ((p - p.detach()) * away[name]).reshape(episodes.size, -1).sum(1)
        return losses, away

    def adapt(self, support: Support) -> Predictor:
        """``test_steps`` steps on minibatches of the support; logits [B, n, N] or values [B, n, *target]."""
        order = minibatches(support, self.inner_batch, self.test_steps)
        with evaluating(self.net), torch.no_grad():
            trained, losses = self.lift.map(self.trained, self.net.state().detach(), support, order)
        check_descent(losses, "reptile")

        def predict(x: Tensor) -> Tensor:
            outputs: Tensor = self.lift.map(self.net.predict, trained, x, support.x)
            return full_precision(outputs)

        return predict


def minibatches(support: Support, size: int, steps: int) -> Tensor:
    """Which examples of the support each step takes, by the episodes' own chance: int64 [B, steps, min(size, S)].

    Passes over the support, each in an order of its own, follow one another and are cut into minibatches, as the
    authors' code does. Where the support is no larger than a minibatch, every step takes all of it.

    Raises:
        DataError: the support is empty.
    """
    B, S = support.y.shape[:2]
    if S == 0:
        raise DataError("reptile: the support of these tasks is empty, expected at least one example: raise tasks.shot")
    if size >= S:
        return torch.arange(S, device=support.y.device).expand(B, steps, S)
    passes = 1 + steps * size // S
    chances = [generator(key, "reptile/minibatches") for key in support.key.tolist()]
    drawn = [torch.cat([torch.randperm(S, generator=chance) for _ in range(passes)]) for chance in chances]
    return torch.stack([order[: steps * size].view(steps, size) for order in drawn]).to(support.y.device)


def adam(lr: float, beta2: float = 0.999, eps: float = 1e-8) -> Update:
    """Adam (Kingma & Ba 2015, algorithm 1) with beta1 = 0, as the paper's inner loop has it: no momentum.

    It remembers the number of steps and the decaying mean of squared gradients.
    """

    def update(parameters: Tensors, gradients: Tensors, memory: Any) -> tuple[Tensors, Any]:
        t, before = memory or (0, {n: torch.zeros_like(g) for n, g in gradients.items()})
        v = {n: beta2 * before[n] + (1 - beta2) * g.square() for n, g in gradients.items()}
        root = {n: (s / (1 - beta2 ** (t + 1))).sqrt() for n, s in v.items()}
        return {n: p - lr * gradients[n] / (root[n] + eps) for n, p in parameters.items()}, (t + 1, v)

    return update


def paper_inner(spec: TaskSpec) -> tuple[Literal["sgd", "adam"], float]:
    """The inner optimizer and its rate: appendix A for Omniglot, the authors' code for sinusoids."""
    if spec.kind == "regression":
        return "sgd", 0.02
    return "adam", 5e-4 if isinstance(spec.way, int) and spec.way >= 20 else 1e-3
