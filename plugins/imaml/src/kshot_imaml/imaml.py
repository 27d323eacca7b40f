"""Implicit MAML: Rajeswaran, Finn, Kakade & Levine, "Meta-learning with implicit gradients", 2019 (1909.04630).

The linear equations are in ``implicit.py``. Letters: B meta-batch, N way, n queries. theta are the parameters of the
network, phi those adapted to a task, and H the Hessian of the support loss at phi. Some functions are written for one
task, without the axis B; ``Lift`` runs them for all tasks of a meta-batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot import Episode, Lift, Metrics, Needs, Predictor, Support, TaskSpec, Training
from kshot.errors import OptionError
from kshot.functional import full_precision
from kshot.inner import State, Strategy, Tensors, check_descent, descend, keep_buffers
from kshot.nn import NetworkChoice, Normalisation, evaluating
from kshot.nn import network as build_network
from kshot.registry import Range
from kshot_imaml.implicit import implicit_gradient, paper_steps


class IMAML(nn.Module):
    """Learn initial parameters near which each task has a good minimum of its support loss.

    A task adapts by descending G(phi) = L_support(phi) + lambda / 2 ||phi - theta||^2 from theta. The meta-gradient is
    that at the minimum of G, by the implicit function theorem. It needs only the adapted parameters, so that memory
    does not grow with the number of inner steps. It is exact only at the minimum and with enough ``cg_steps``, and
    otherwise an approximation; it is never the derivative of the loss after a given number of steps.

    Args:
        spec: the specification of the tasks, which determines the inputs and outputs of the network.
        network: ``auto``, ``conv4``, ``strided-conv4``, ``mlp``, or a module from [n, *input] to logits [n, N] or to
            regression values [n, *target]; see ``kshot.nn.network``.
        width: channels of the convolutions.
        hidden: units of the hidden layers of ``mlp``.
        normalisation: the statistics by which batch norm normalises the queries, see ``kshot.nn.Network``.
        regularisation: lambda, which keeps phi near theta; the default is the paper's. If the support loss has a
            negative curvature, lambda must be greater than its size; otherwise G may have no minimum.
        inner_lr: the rate of the inner steps; None for 0.1 (the authors' code), or 0.005 for regression.
        inner_steps: the number of inner steps in training; None for the paper's: 16, or 25 if there are at least 20
            classes.
        test_steps: the number of inner steps at evaluation and prediction; None for the same as in training.
        cg_steps: the number of iterations of conjugate gradients. The default is the paper's; with 0 the meta-gradient
            is grad L_query(phi), as in first-order MAML.
        damping: a number that is added to lambda in the meta-gradient only. The paper's equation, which holds at the
            minimum, has none. The default is that of the authors' code: a few steps end far from the minimum, and
            without damping short trainings learned less.
        strategy: how the tasks of a meta-batch are computed, see ``kshot.Lift``; ``auto`` chooses by their sizes.
        chunk: the greatest number of tasks that are computed together; None for as many as a limit of memory allows.

    Raises:
        OptionError: lambda is not positive, another number is negative, or a choice is unknown.
        DataError: the network does not accept the inputs of the tasks, or the number of classes (way) varies.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> tasks = sample_tasks.Lines()
        >>> learner = IMAML(tasks.spec, hidden=(8,), inner_steps=4)
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
        regularisation: Annotated[float, Range(above=0)] = 2.0,
        inner_lr: Annotated[float, Range(0)] | None = None,
        inner_steps: Annotated[int, Range(0)] | None = None,
        test_steps: Annotated[int, Range(0)] | None = None,
        cg_steps: Annotated[int, Range(0)] = 5,
        damping: Annotated[float, Range(0)] = 10.0,
        strategy: Strategy = "auto",
        chunk: Annotated[int, Range(1)] | None = None,
    ) -> None:
        super().__init__()
        if not regularisation > 0 or min(inner_steps or 0, test_steps or 0, cg_steps, damping) < 0:
            raise OptionError(
                f"imaml: got regularisation {regularisation}, inner_steps {inner_steps}, test_steps {test_steps}, "
                f"cg_steps {cg_steps} and damping {damping}, expected a positive number for the first "
                "and at least 0 for the others; raise them"
            )
        self.kind = spec.kind
        self.net = build_network(network, spec, normalisation=normalisation, width=width, hidden=hidden)
        self.regularisation, self.damping, self.cg_steps = regularisation, damping, cg_steps
        self.inner_lr = (0.005 if spec.kind == "regression" else 0.1) if inner_lr is None else inner_lr
        self.inner_steps = paper_steps(spec) if inner_steps is None else inner_steps
        self.test_steps = self.inner_steps if test_steps is None else test_steps
        self.lift = Lift(strategy, chunk)
        self.needs = attrs.evolve(type(self).needs, queries=self.net.queries)
        regression = Training(lr=0.005, meta_batch=25, iterations=500)
        self.training_defaults = regression if spec.kind == "regression" else Training(meta_batch=16, iterations=500)

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Compute L of one task: the cross-entropy of logits [n, N], or the mean squared error of values."""
        outputs = full_precision(outputs)
        return F.cross_entropy(outputs, y) if self.kind == "classification" else F.mse_loss(outputs, y)

    def support_loss(self, state: State, support: Support) -> Tensor:
        """Compute L(f_phi) on the support of one task."""
        return self.loss(self.net.on_support(state, support.x), support.y)

    def minimum(self, theta: State, support: Support, steps: int) -> tuple[State, Tensor]:
        """Take ``steps`` gradient steps on G from theta (algorithm 2). The steps are not differentiated.

        Returns:
            phi, and G before each step [steps].
        """

        def objective(phi: State, support: Support) -> Tensor:
            """Compute G(phi) = L_support(phi) + lambda / 2 ||phi - theta||^2 (eq. 4)."""
            away = sum(gap.square().sum() for gap in phi.away_from(theta).values())
            return self.support_loss(phi, support) + self.regularisation / 2 * away

        return descend(objective, theta, support, lr=self.inner_lr, steps=steps, second_order=False)

    def task(self, theta: State, episode: Episode) -> tuple[dict[str, Tensor], State]:
        """Return the metrics of one task, with a loss whose gradient is the meta-gradient (algorithm 2), and phi."""
        with torch.no_grad():
            metrics, implicit, phi = self.solved(theta.detach(), episode)
        # Add the sum over the parameters of (theta - constant) g. Its value is 0, and its gradient is the constant g.
        zeros = [((p - p.detach()) * implicit[name]).sum() for name, p in theta.parameters.items()]
        return {**metrics, "loss": sum(zeros, metrics["loss"])}, phi

    def solved(self, theta: State, episode: Episode) -> tuple[dict[str, Tensor], dict[str, Tensor], State]:
        """Return the metrics of one task, its meta-gradient g by name, and phi."""
        support, query = episode.support, episode.query
        # phi, which is near the minimum of G.
        phi, losses = self.minimum(theta, support, self.inner_steps)

        def query_loss(parameters: Tensors, buffers: Tensors) -> tuple[Tensor, tuple[Tensor, Tensors]]:
            outputs = self.net.on_query(State(parameters, buffers), query.x, support.x)
            return self.loss(outputs, query.y), (outputs, buffers)

        # grad L_query(phi), then the solution of the linear equations.
        copies = {n: b.clone() for n, b in phi.buffers.items()}
        differentiate = torch.func.grad_and_value(query_loss, has_aux=True)
        gradient, (loss, (outputs, buffers)) = differentiate(dict(phi.parameters), copies)
        metrics = {"loss": loss, "inner": losses}
        if self.kind == "classification":
            metrics["accuracy"] = (outputs.argmax(-1) == query.y).float().mean()
        strength = self.regularisation + self.damping
        implicit = implicit_gradient(self.support_loss, phi, support, gradient, strength=strength, steps=self.cg_steps)
        return metrics, implicit, State(phi.parameters, buffers)

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """Add the mean over tasks of their meta-gradients to ``.grad`` (algorithm 1)."""
        metrics, end = self.lift.mean_gradient(self.task, self.net.state(), episodes)
        check_descent(metrics.pop("inner"), "imaml", episodes.origin)
        keep_buffers(self.net.net, end)  # running statistics: the mean over the tasks
        return {name: values.mean() for name, values in metrics.items()}

    def task_losses(self, episodes: Episode) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return losses on the queries [B], whose gradient is the meta-gradient, and theta - phi (``PerTask``)."""
        theta = self.net.state()
        metrics, phi = self.lift.map(self.task, theta, episodes)
        check_descent(metrics["inner"], "imaml", episodes.origin)
        keep_buffers(self.net.net, phi)
        return metrics["loss"], phi.away_from(theta.detach())

    def adapt(self, support: Support) -> Predictor:
        """Take ``test_steps`` inner steps on the support, and return the predictor with the adapted parameters phi.

        The predictor maps queries [B, n, *input] to logits [B, n, N] or values [B, n, *target].
        """

        def fitted(theta: State, support: Support) -> tuple[State, Tensor]:
            return self.minimum(theta, support, self.test_steps)

        with evaluating(self.net), torch.no_grad():
            phi, losses = self.lift.map(fitted, self.net.state().detach(), support)
        check_descent(losses, "imaml")

        def predict(x: Tensor) -> Tensor:
            outputs: Tensor = self.lift.map(self.net.predict, phi, x, support.x)
            return full_precision(outputs)

        return predict
