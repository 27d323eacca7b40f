"""Proto-MAML: Triantafillou et al., "Meta-Dataset: a dataset of datasets for learning to learn from few examples", 2019
(1903.03096), section 3.

Letters: B meta-batch, N way, S support size, n queries, D embedding. theta are the parameters of the encoder f_theta;
W [N, D] and b [N] are those of a linear head that is built for each task. Functions for one task have no axis B;
``Lift`` runs them for B tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot import Episode, Lift, Metrics, Needs, Predictor, Support, TaskSpec, Training
from kshot.functional import class_means, full_precision
from kshot.inner import State, Strategy, check_descent, descend, keep_buffers
from kshot.nn import EncoderChoice, Network, Normalisation, evaluating
from kshot.nn import encoder as build_encoder
from kshot.registry import Range, check_values


class ProtoMAML(nn.Module):
    """Learn an encoder that a few gradient steps on a support adapt together with a head built from its prototypes.

    The head starts as the linear form of prototypical networks, so without inner steps the predictions are those of a
    prototypical network. Any number of classes works, because no parameter of the head is learned.

    Args:
        spec: the specification of the tasks, which determines the inputs of the encoder.
        encoder: ``auto`` (by the input shape), ``conv4``, ``strided-conv4``, ``mlp``, ``linear``, or a module from
            [n, *input] to [n, D].
        width: number of channels of the convolutions, of units of ``mlp``, or of outputs of ``linear``.
        normalisation: the statistics by which batch norm normalises the queries, see ``kshot.nn.Network``.
        order: ``first`` treats the inner gradients as constants, as in the paper's experiments (fo-Proto-MAML);
            ``second`` differentiates through them. Both differentiate through the initial head.
        inner_lr: alpha, the size of an inner step.
        inner_steps: the number of inner steps in training.
        test_steps: the number of inner steps at evaluation and prediction; None for the same as in training.
        strategy: how the tasks of a meta-batch are computed, see ``kshot.Lift``; ``auto`` chooses by their sizes.
        chunk: the greatest number of tasks that are computed together; None for as many as a limit of memory allows.

    Raises:
        OptionError: a number of steps is negative, or a choice is unknown.
        DataError: the encoder does not accept inputs of this shape.

    Example:
        >>> spec = TaskSpec(kind="classification", input_shape=(2,), way=2, shot=1, query=1)
        >>> learner = ProtoMAML(spec, encoder=nn.Flatten(), inner_steps=0)  # the inputs themselves are the embeddings
        >>> predict = learner.adapt(Support.of([[0.0, 0.0], [2.0, 0.0], [3.0, 4.0]], [0, 0, 1]))
        >>> predict(torch.tensor([[[1.0, 1.0]]])).tolist()  # 2 p_c x - |p_c|^2
        [[[1.0, -11.0]]]
    """

    needs = Needs(kinds=("classification",), variable_way=True, invariant={"labels", "order"})

    def __init__(
        self,
        spec: TaskSpec,
        *,
        encoder: EncoderChoice = "auto",
        width: Annotated[int, Range(1, 4096)] = 64,
        normalisation: Normalisation = "transductive",
        order: Literal["first", "second"] = "first",
        inner_lr: Annotated[float, Range(0)] = 0.01,
        inner_steps: Annotated[int, Range(0)] = 6,
        test_steps: Annotated[int, Range(0)] | None = None,
        strategy: Strategy = "auto",
        chunk: Annotated[int, Range(1)] | None = None,
    ) -> None:
        super().__init__()
        check_values(ProtoMAML, locals())
        built = build_encoder(encoder, spec.input_shape, normalisation, width)
        self.net = Network(built.net, built.normalisation, spec.input_shape)
        self.second_order, self.inner_lr = order == "second", inner_lr
        self.inner_steps, self.test_steps = inner_steps, inner_steps if test_steps is None else test_steps
        self.lift = Lift(strategy, chunk)
        # Without inner steps there are no inner gradients, and both orders are exact. With ``support``, batch
        # statistics of the support count as constants, so the gradient is not exact.
        exact = (self.second_order or not inner_steps) and not self.net.constant_statistics
        self.needs = attrs.evolve(type(self).needs, queries=self.net.queries, exact_gradient=exact)
        self.training_defaults = Training(meta_batch=16, iterations=500)

    def start(self, theta: State, support: Support) -> State:
        """Return the state from which the inner loop of one task starts: theta, and the head from its prototypes.

        Returns:
            The parameters of the encoder under ``net.``, and those of the head under ``head.``.
        """
        z = full_precision(self.net.on_support(theta, support.x))
        weight, bias = prototypical_head(class_means(z, support.y, support.way or 0))
        head = {"head.weight": weight, "head.bias": bias}
        return State({f"net.{n}": p for n, p in theta.parameters.items()} | head, theta.buffers)

    def support_loss(self, state: State, support: Support) -> Tensor:
        """Compute L, the cross-entropy of W f_theta(x) + b, on the support of one task."""
        z = self.net.on_support(encoder_state(state), support.x)
        return F.cross_entropy(head_logits(state, z), support.y)

    def adapted(self, theta: State, support: Support, steps: int) -> tuple[State, Tensor]:
        """Build the head, then compute (theta, W, b)' = (theta, W, b) - alpha grad L, ``steps`` times, for one task.

        An inner gradient treats theta, W and b as separate variables, although the initial W and b depend on theta.

        Returns:
            The adapted parameters of encoder and head, and the loss before each step [steps].
        """
        return descend(
            self.support_loss,
            self.start(theta, support),
            support,
            lr=self.inner_lr,
            steps=steps,
            second_order=self.second_order,
        )

    def task(self, theta: State, episode: Episode) -> tuple[Mapping[str, Tensor], State]:
        """Return the metrics of one task, with the query loss of the adapted encoder and head, and these."""
        # Inner loop: the head from the prototypes, then all parameters from the support.
        adapted, losses = self.adapted(theta, episode.support, self.inner_steps)
        # Outer loss, whose gradient reaches theta as the start of the encoder and through the prototypes.
        z = self.net.on_query(encoder_state(adapted), episode.query.x, episode.support.x)
        logits = head_logits(adapted, z)
        accuracy = (logits.argmax(-1) == episode.query.y).float().mean()
        return {"loss": F.cross_entropy(logits, episode.query.y), "inner": losses, "accuracy": accuracy}, adapted

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """Add the mean over tasks of the gradient of the query loss with respect to theta to ``.grad``."""
        metrics, end = self.lift.mean_gradient(self.task, self.net.state(), episodes)
        check_descent(metrics.pop("inner"), "protomaml", episodes.origin)
        keep_buffers(self.net.net, end)  # the new running statistics are the mean over the tasks
        return {name: values.mean() for name, values in metrics.items()}

    def task_losses(self, episodes: Episode) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the query losses [B] with their graph, and theta - theta' of each task (ability ``PerTask``)."""
        theta = self.net.state()
        metrics, adapted = self.lift.map(self.task, theta, episodes)
        check_descent(metrics["inner"], "protomaml", episodes.origin)
        keep_buffers(self.net.net, adapted)
        return metrics["loss"], encoder_state(adapted).away_from(theta)

    def adapt(self, support: Support) -> Predictor:
        """Take ``test_steps`` inner steps, and return a function from queries [B, n, *input] to logits [B, n, N]."""

        def fitted(theta: State, support: Support) -> tuple[State, Tensor]:
            adapted, losses = self.adapted(theta, support, self.test_steps)
            return adapted.detach(), losses

        def logits(state: State, x: Tensor, support_x: Tensor) -> Tensor:
            return head_logits(state, self.net.predict(encoder_state(state), x, support_x))

        with evaluating(self.net):
            adapted, losses = self.lift.map(fitted, self.net.state().detach(), support)
        check_descent(losses, "protomaml")

        def predict(x: Tensor) -> Tensor:
            outputs: Tensor = self.lift.map(logits, adapted, x, support.x)
            return outputs

        return predict


def prototypical_head(prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the linear layer whose logits are -||z - p_c||^2 up to ||z||^2, which is the same for all classes.

    Args:
        prototypes: p_c [N, D].

    Returns:
        The weights w_c = 2 p_c [N, D] and the biases b_c = -||p_c||^2 [N]. Gradients flow through both.

    Example:
        >>> prototypical_head(torch.tensor([[1.0, 0.0], [3.0, 4.0]]))
        (tensor([[2., 0.],
                [6., 8.]]), tensor([ -1., -25.]))
    """
    return 2 * prototypes, -prototypes.square().sum(-1)


def encoder_state(state: State) -> State:
    """Return the state of the encoder alone, from that of encoder and head."""
    own = {n.removeprefix("net."): p for n, p in state.parameters.items() if n.startswith("net.")}
    return State(own, state.buffers, state.tasks)


def head_logits(state: State, z: Tensor) -> Tensor:
    """Compute W z + b [n, N] for z [n, D], in full precision, because 2 p_c z and ||p_c||^2 nearly cancel."""
    with torch.autocast(z.device.type, enabled=False):
        return F.linear(full_precision(z), state.parameters["head.weight"], state.parameters["head.bias"])
