"""Meta-LSTM: Ravi & Larochelle, "Optimization as a model for few-shot learning", ICLR 2017.

Letters: B meta-batch, N way, n queries, P parameters of the network. theta are the parameters of the network, which are
the cell state c of the LSTM; c_0 are those from which every task starts. Some functions are written for one task,
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
from kshot.inner import State, Strategy, Tensors, check_descent, descend, gradient_at, keep_buffers
from kshot.nn import NetworkChoice, Normalisation, evaluating
from kshot.nn import network as build_network
from kshot.registry import Range, check_values
from kshot_meta_lstm.gates import Gates


class MetaLSTM(nn.Module):
    """Learn how to train a network on a support: an LSTM has its parameters as cell state, and gates for each of them.

    Args:
        spec: the specification of the tasks, which determines the inputs and outputs of the network.
        network: ``auto``, ``conv4``, ``mlp`` or a module from [n, *input] to logits [n, N] or values [n, *target].
        width: channels of ``conv4``; the paper has 32.
        hidden: units of the hidden layers of ``mlp``.
        normalisation: the statistics by which batch norm normalises the queries, see ``kshot.nn.Network``. With
            ``support`` all statistics are those of the episode, as in the paper at evaluation. In training, the paper
            normalises the queries by their own.
        lstm: units of the first layer of the LSTM, before the gates; 0 to leave it out.
        preprocessing: p of the representation of gradients and losses, see ``kshot.functional.log_and_sign``.
        forget_bias, input_bias: the ranges of the gates' initial biases, the paper's. The first steps are gradient
            descent with the rate sigmoid(input_bias), about 0.01; a short training should start from a greater one.
        gate_scale: by what factor an outer step of Adam changes the gates more than without, see ``Gates``; 1 in the
            paper. The gates have to move much further than the weights of the network.
        order: ``first`` treats gradients and losses of the network as constants in the meta-gradient, as the paper
            does; ``second`` differentiates through them.
        inner_steps: T, steps on the complete support, in training. None for the authors' numbers on mini-ImageNet: 12
            for one shot, else 8.
        test_steps: steps at evaluation; None for ``inner_steps``.
        test_rate: None to evaluate the learned gates. A number replaces them at evaluation by gradient descent with
            this rate from the same c_0, for a comparison.
        strategy: how the tasks of a meta-batch run, see ``kshot.Lift``.
        chunk: the greatest number of tasks that run in parallel; None for as many as a limit of memory allows.

    Raises:
        OptionError: a choice is unknown, or a range of biases is empty.
        DataError: the network does not accept the inputs of the tasks, or the number of classes (way) varies.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> tasks = sample_tasks.Lines()
        >>> learner = MetaLSTM(tasks.spec, hidden=(8,), lstm=4, inner_steps=2)
        >>> episode = tasks.sample("test", [0, 1])
        >>> tuple(learner.adapt(episode.support)(episode.query.x).shape)
        (2, 4, 1)
    """

    needs = Needs(kinds=("classification", "regression"), invariant={"order"})
    training_defaults = Training(lr=1e-3, meta_batch=1, iterations=2000, clip=0.25)

    def __init__(
        self,
        spec: TaskSpec,
        *,
        network: NetworkChoice = "auto",
        width: Annotated[int, Range(1, 4096)] = 32,
        hidden: tuple[Annotated[int, Range(1, 65536)], ...] = (40, 40),
        normalisation: Normalisation = "support",
        lstm: Annotated[int, Range(0, 4096)] = 20,
        preprocessing: Annotated[float, Range(1e-3, 80)] = 10.0,
        forget_bias: tuple[float, float] = (4.0, 5.0),
        input_bias: tuple[float, float] = (-5.0, -4.0),
        gate_scale: float = 1.0,
        order: Literal["first", "second"] = "first",
        inner_steps: Annotated[int, Range(0)] | None = None,
        test_steps: Annotated[int, Range(0)] | None = None,
        test_rate: Annotated[float, Range(0)] | None = None,
        strategy: Strategy = "auto",
        chunk: Annotated[int, Range(1)] | None = None,
    ) -> None:
        super().__init__()
        check_values(MetaLSTM, locals())
        self.kind = spec.kind
        # Algorithm 1, line 1: c_0 are the initial parameters of the network.
        self.net = build_network(network, spec, normalisation=normalisation, width=width, hidden=hidden)
        self.gates = Gates(lstm, preprocessing, forget_bias, input_bias, gate_scale)
        self.second_order, self.test_rate = order == "second", test_rate
        self.inner_steps = (12 if spec.shot == 1 else 8) if inner_steps is None else inner_steps
        self.test_steps = self.inner_steps if test_steps is None else test_steps
        self.lift = Lift(strategy, chunk)
        exact = self.second_order and not self.net.constant_statistics
        self.needs = attrs.evolve(type(self).needs, queries=self.net.queries, exact_gradient=exact)

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Compute L of one task: the cross-entropy of logits [n, N], or the mean squared error of values."""
        outputs = full_precision(outputs)
        return F.cross_entropy(outputs, y) if self.kind == "classification" else F.mse_loss(outputs, y)

    def support_loss(self, state: State, support: Support) -> Tensor:
        """Compute L(M(X; theta), Y) on the support of one task (algorithm 1, line 7)."""
        return self.loss(self.net.on_support(state, support.x), support.y)

    def adapted(self, theta: State, support: Support, steps: int) -> tuple[State, Tensor]:
        """Compute theta_1, ..., theta_T, the cell states of the LSTM (algorithm 1, lines 5 to 10).

        Returns:
            theta_T, and the loss before each step [steps].
        """
        memory, losses = None, []
        for _ in range(steps):
            # Line 7: the loss, and its gradient; both are constants unless ``order`` is ``second``.
            gradients, loss, buffers = gradient_at(self.support_loss, theta, support, second_order=self.second_order)
            # Line 8: c_t from the gates of every parameter.
            cells, memory = self.gates(flat(theta.parameters), flat(gradients), loss, memory)
            # Line 9: theta_t = c_t.
            theta = State(unflattened(cells, theta.parameters), buffers)
            losses.append(loss.detach())
        return theta, torch.stack(losses) if losses else torch.zeros(0)

    def task(self, theta: State, episode: Episode) -> tuple[Mapping[str, Tensor], State]:
        """Return the metrics of one task, with the query loss of theta_T, and theta_T (algorithm 1, lines 4 to 12)."""
        adapted, losses = self.adapted(theta, episode.support, self.inner_steps)
        # Line 12: the loss of theta_T on the queries.
        outputs = self.net.on_query(adapted, episode.query.x, episode.support.x)
        metrics = {"loss": self.loss(outputs, episode.query.y), "inner": losses}
        if self.kind == "classification":
            metrics["accuracy"] = (outputs.argmax(-1) == episode.query.y).float().mean()
        return metrics, adapted

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """Add the mean over tasks of the gradient of the query loss, by c_0 and the weights of the LSTM (line 13)."""
        metrics, end = self.lift.mean_gradient(self.task, self.net.state(), episodes)
        check_descent(metrics.pop("inner"), "meta-lstm", episodes.origin)
        keep_buffers(self.net.net, end)  # the new running statistics are the mean over the tasks
        return {name: values.mean() for name, values in metrics.items()}

    def task_losses(self, episodes: Episode) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the query losses [B] with their graph, and c_0 - theta_T of each task (ability ``PerTask``)."""
        start = self.net.state()
        metrics, adapted = self.lift.map(self.task, start, episodes)
        check_descent(metrics["inner"], "meta-lstm", episodes.origin)
        keep_buffers(self.net.net, adapted)
        return metrics["loss"], adapted.away_from(start)

    def tested(self, theta: State, support: Support) -> tuple[State, Tensor]:
        """Adapt one task as at evaluation: by the gates, or by gradient descent if ``test_rate`` is a number."""
        if self.test_rate is None:
            return self.adapted(theta, support, self.test_steps)
        return descend(self.support_loss, theta, support, lr=self.test_rate, steps=self.test_steps, second_order=False)

    def adapt(self, support: Support) -> Predictor:
        """Take ``test_steps`` steps on the support, and return the predictor with theta_T.

        The predictor maps queries [B, n, *input] to logits [B, n, N] or values [B, n, *target].
        """
        with torch.no_grad(), evaluating(self.net):
            adapted, losses = self.lift.map(self.tested, self.net.state().detach(), support)
        check_descent(losses, "meta-lstm")

        def predict(x: Tensor) -> Tensor:
            outputs: Tensor = self.lift.map(self.net.predict, adapted, x, support.x)
            return full_precision(outputs)

        return predict


def flat(tensors: Tensors) -> Tensor:
    """Return all numbers of some tensors as one vector [P], in the order of their names in the mapping.

    Example:
        >>> flat({"a": torch.zeros(2, 2), "b": torch.ones(1)})
        tensor([0., 0., 0., 0., 1.])
    """
    return torch.cat([t.reshape(-1) for t in tensors.values()])


def unflattened(vector: Tensor, like: Tensors) -> dict[str, Tensor]:
    """Divide a vector [P] into tensors with the names and shapes of ``like``.

    Example:
        >>> unflattened(torch.arange(3.0), {"a": torch.zeros(1, 2), "b": torch.ones(())})
        {'a': tensor([[0., 1.]]), 'b': tensor(2.)}
    """
    pieces = vector.split([t.numel() for t in like.values()])
    return {name: piece.view(t.shape) for (name, t), piece in zip(like.items(), pieces, strict=True)}
