"""ADML: Yin, Tang, Xu & Wang, "Adversarial meta-learning", 2018 (1806.03316).

Letters: B meta-batch, N way, S support size, n queries. theta are the parameters of the network. They adapt twice: to
the clean support (theta'_clean) and to the adversarial support (theta'_adv). Some functions are written for one task,
without the axis B; ``Lift`` runs them for all tasks of a meta-batch.
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
from kshot_adml.perturbation import Perturbation, buffers_apart

Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(0)]


class ADML(nn.Module):
    """Learn initial parameters that adapt well to clean and to adversarial examples.

    In training, the parameters adapt to the clean support, and separately to the adversarial support, by gradient
    descent as in MAML; each result is tested on queries of the other type. Evaluation adapts to the given support.

    Args:
        spec: the specification of the tasks, which determines the inputs and outputs of the network.
        attack: ``fgsm``, one step, or ``pgd``, several steps, see ``kshot.functional``.
        epsilon: the greatest change of a number of an input, in the unit of the inputs; the default is for inputs in
            [0, 1]. Adversarial inputs are clipped to the spec's ``input_range``, if it has one.
        steps: the number of steps of ``pgd``.
        step_size: the change of a number in one step of ``pgd``; None for 2.5 epsilon / steps.
        random_start: whether ``pgd`` starts at a random change, which depends on the episode's key alone.
        against: whether the adversarial queries increase the loss of ``adapted``, which is theta'_clean and predicts
            them, or of ``theta``, as the paper seems to do. The adversarial support increases the loss of theta.
        clean_weight: beta_1, the weight of the loss of theta'_adv on the clean queries.
        adversarial_weight: beta_2, the weight of the loss of theta'_clean on the adversarial queries.
        network: ``auto``, ``conv4``, ``strided-conv4``, ``mlp`` or a module from [n, *input] to logits [n, N].
        width: channels of the convolutions.
        hidden: units of the hidden layers of ``mlp``.
        normalisation: of the queries, see ``kshot.nn.Network``. Clean queries alone change the running statistics.
        order: ``second`` differentiates through the inner steps; ``first`` treats the inner gradients as constants.
        inner_lr: alpha, for both supports; None for 0.4, or 0.1 for at least 20 classes.
        inner_steps: the number of inner steps in training.
        test_steps: the number of inner steps at evaluation and prediction; None for the same as in training.
        strategy: how the tasks of a meta-batch are computed, see ``kshot.Lift``; ``auto`` chooses by their sizes.
        chunk: the greatest number of tasks that are computed together; None for as many as a limit of memory allows.

    Raises:
        OptionError: a number of steps is negative, or a choice is unknown.
        DataError: the network does not accept the inputs of the tasks, or the number of classes (way) varies.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> tasks = sample_tasks.classification()
        >>> learner = ADML(tasks.spec, hidden=(8,), epsilon=0.05)
        >>> sorted(learner.meta_gradient(tasks.sample("train", range(4))))
        ['accuracy', 'adversarial_accuracy', 'adversarial_loss', 'clean_loss', 'loss']
    """

    needs = Needs(kinds=("classification",), invariant={"order"})

    def __init__(
        self,
        spec: TaskSpec,
        *,
        attack: Literal["fgsm", "pgd"] = "fgsm",
        epsilon: NotNegative = 0.1,
        steps: Annotated[int, Range(0)] = 5,
        step_size: Positive | None = None,
        random_start: bool = True,
        against: Literal["adapted", "theta"] = "adapted",
        clean_weight: NotNegative = 1.0,
        adversarial_weight: NotNegative = 1.0,
        network: NetworkChoice = "auto",
        width: Annotated[int, Range(1, 4096)] = 64,
        hidden: tuple[Annotated[int, Range(1, 65536)], ...] = (40, 40),
        normalisation: Normalisation = "transductive",
        order: Literal["second", "first"] = "second",
        inner_lr: NotNegative | None = None,
        inner_steps: Annotated[int, Range(0)] = 1,
        test_steps: Annotated[int, Range(0)] | None = None,
        strategy: Strategy = "auto",
        chunk: Annotated[int, Range(1)] | None = None,
    ) -> None:
        super().__init__()
        check_values(ADML, locals())
        self.net = build_network(network, spec, normalisation=normalisation, width=width, hidden=hidden)
        self.perturbation = Perturbation(attack, epsilon, spec.input_range, steps, step_size, random_start)
        self.against, self.clean_weight, self.adversarial_weight = against, clean_weight, adversarial_weight
        self.second_order = order == "second"
        many = isinstance(spec.way, int) and spec.way >= 20
        self.inner_lr = (0.1 if many else 0.4) if inner_lr is None else inner_lr
        self.inner_steps, self.test_steps = inner_steps, inner_steps if test_steps is None else test_steps
        self.lift = Lift(strategy, chunk)
        # Not exact: statistics of ``support`` count as constants, and the signs in an attack on theta' may jump.
        exact = self.second_order and not self.net.constant_statistics and (against == "theta" or epsilon == 0)
        self.needs = attrs.evolve(type(self).needs, queries=self.net.queries, exact_gradient=exact)
        self.training_defaults = Training(meta_batch=16, iterations=500)

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Compute L of one task: the cross-entropy of logits [n, N]."""
        return F.cross_entropy(full_precision(outputs), y)

    def support_loss(self, state: State, support: Support) -> Tensor:
        """Compute L(f_theta) on the support of one task."""
        return self.loss(self.net.on_support(state, support.x), support.y)

    def adapted(self, theta: State, support: Support, steps: int) -> tuple[State, Tensor]:
        """Compute theta' = theta - alpha grad L(f_theta), ``steps`` times, and the loss before each step [steps]."""
        return descend(self.support_loss, theta, support, lr=self.inner_lr, steps=steps, second_order=self.second_order)

    def adversarial(self, state: State, x: Tensor, y: Tensor, start: Tensor | None, support_x: Tensor | None) -> Tensor:
        """Return x + delta [n, *input] that increases the loss of ``state``, for one task; delta is a constant.

        Args:
            state, x, y: the parameters under attack, the examples [n, *input] and their labels [n].
            start: the delta from which ``pgd`` starts; None for 0.
            support_x: the inputs of the support [S, *input] if ``x`` are queries; None if they are the support.
        """

        def value(x: Tensor, buffers: Mapping[str, Tensor]) -> Tensor:
            at = State(state.parameters, buffers)
            outputs = self.net.on_support(at, x) if support_x is None else self.net.on_query(at, x, support_x)
            return self.loss(outputs, y)

        def gradient(x: Tensor) -> Tensor:
            # Buffers are copied, so that an attack does not move running statistics.
            gradients: Tensor = torch.func.grad(value)(x, buffers_apart(state).buffers)
            return gradients

        return self.perturbation(gradient, x, start)

    def task(self, theta: State, episode: Episode, starts: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], State]:
        """Return the metrics of one task, and a state with the running statistics after it (algorithm 1).

        ``starts`` has the deltas of ``support`` and ``query`` from which the attack starts; it is empty for 0.
        """
        support, query = episode.support, episode.query
        # The adversarial support, against the current parameters theta.
        x = self.adversarial(theta, support.x, support.y, starts.get("support"), None)
        adversarial = attrs.evolve(support, x=x)
        # theta'_adv from the adversarial support, and theta'_clean from the clean one.
        by_adversarial, losses = self.adapted(theta, adversarial, self.inner_steps)
        by_clean, clean_losses = self.adapted(theta, support, self.inner_steps)
        # The adversarial queries.
        victim = theta if self.against == "theta" else by_clean
        query_x = self.adversarial(victim, query.x, query.y, starts.get("query"), support.x)
        # L(theta'_adv) on the clean queries, and L(theta'_clean) on the adversarial ones.
        on_clean = self.net.on_query(by_adversarial, query.x, adversarial.x)
        on_adversarial = self.net.on_query(buffers_apart(by_clean), query_x, support.x)
        clean_loss, adversarial_loss = self.loss(on_clean, query.y), self.loss(on_adversarial, query.y)
        loss = self.clean_weight * clean_loss + self.adversarial_weight * adversarial_loss
        metrics = {"loss": loss, "clean_loss": clean_loss, "adversarial_loss": adversarial_loss}
        for name, outputs in (("accuracy", on_clean), ("adversarial_accuracy", on_adversarial)):
            metrics[name] = (outputs.argmax(-1) == query.y).float().mean()
        return {**metrics, "inner": torch.maximum(losses, clean_losses)}, by_adversarial

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """Add the mean over tasks of the gradient of both weighted losses to ``.grad``."""
        starts = self.perturbation.starts(episodes)
        metrics, end = self.lift.mean_gradient(self.task, self.net.state(), episodes, starts)
        check_descent(metrics.pop("inner"), "adml", episodes.origin)
        keep_buffers(self.net.net, end)  # the new running statistics are the mean over the tasks
        return {name: values.detach().mean() for name, values in metrics.items()}

    def adapt(self, support: Support) -> Predictor:
        """Take ``test_steps`` inner steps on the support, and return the predictor with the adapted parameters theta'.

        The predictor maps queries [B, n, *input] to logits [B, n, N].
        """

        def fitted(theta: State, support: Support) -> tuple[State, Tensor]:
            adapted, losses = self.adapted(theta, support, self.test_steps)
            return adapted.detach(), losses

        with evaluating(self.net):
            adapted, losses = self.lift.map(fitted, self.net.state().detach(), support)
        check_descent(losses, "adml")

        def predict(x: Tensor) -> Tensor:
            outputs: Tensor = self.lift.map(self.net.predict, adapted, x, support.x)
            return full_precision(outputs)

        return predict
