"""Networks for learners that adapt parameters: encoder and head in one module, with a task's own parameters.

Letters: N way, S support size, n examples; an image is [C, H, W].
"""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import Tensor, nn

from kshot.errors import DataError, OptionError
from kshot.inner import State
from kshot.nn.encoders import conv4, mlp, strided_conv4
from kshot.nn.examination import examine, expect_outputs
from kshot.nn.normalisation import Normalisation, check_policy, evaluating, own_statistics
from kshot.spec import TaskSpec, bounds

NetworkChoice = Literal["auto", "conv4", "strided-conv4", "mlp"] | nn.Module


class Network(nn.Module):
    """Apply a net [n, *input] -> [n, *output] to one task, with the task's own state and a stated normalisation.

    The support is always normalised by its own statistics, in training and at evaluation, because a learner is given
    all of it at once. The normalisation of the queries is an option:

    - ``transductive``: by the statistics of the queries, as in the published results of MAML. The prediction for a
      query depends on the other queries.
    - ``support``: by the statistics of the support under the adapted parameters. They count as constants in gradients.
    - ``inductive``: in training by the statistics of the queries, which move the running statistics; at evaluation by
      the running statistics.

    Args:
        net: any module, without changes.
        normalisation: of the queries, if the net has batch norm layers.
        input_shape: shape of one input. If it is given, inputs of another shape raise a DataError.

    Attributes:
        has_batch_norm: whether examples that are computed together normalise each other, at least in training.

    Raises:
        OptionError: the policy of normalisation is unknown, or the net can't follow it.
        DataError: the net has lazily initialised layers that can't be initialised.

    Example:
        >>> import torch
        >>> network = Network(nn.Linear(3, 2), input_shape=(3,))
        >>> state = network.state()  # an inner loop would change its parameters here
        >>> network.predict(state, torch.zeros(5, 3), support_x=torch.zeros(4, 3)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self, net: nn.Module, normalisation: Normalisation = "transductive", input_shape: tuple[int, ...] | None = None
    ) -> None:
        super().__init__()
        check_policy("Network", normalisation)
        self.net = net
        self.normalisation = normalisation
        self.input_shape = input_shape
        self.has_batch_norm = examine("Network", net, normalisation, input_shape).of_batch

    @property
    def constant_statistics(self) -> bool:
        """Whether batch statistics count as constants, so that a gradient through this network is not exact.

        The policy ``support`` normalises the queries by statistics of the support that are not differentiated.
        """
        return self.has_batch_norm and self.normalisation == "support"

    @property
    def queries(self) -> Literal["independent", "joint"]:
        """Return ``Needs.queries`` of a learner with this network: ``joint`` if queries normalise each other."""
        return "joint" if self.has_batch_norm and self.normalisation == "transductive" else "independent"

    def state(self) -> State:
        """Return the parameters and buffers from which every task starts. Gradients reach the parameters."""
        return State.of(self.net)

    def on_support(self, state: State, x: Tensor) -> Tensor:
        """Compute the outputs [S, *output] for the support while adapting. The running statistics do not change.

        Args:
            state: of the task, at this step of its inner loop.
            x: inputs of the support [S, *input].

        Raises:
            DataError: the inputs have another shape than ``input_shape``.
            MisfitError: the net returns something else than outputs for each input.
        """
        self._check(x)
        with own_statistics(self.net, momentum=0.0):
            return expect_outputs("Network", self._leaving_buffers(state).call(self.net, x), len(x))

    def on_query(self, state: State, x: Tensor, support_x: Tensor) -> Tensor:
        """Compute the outputs [n, *output] for queries after adapting, by the policy of normalisation.

        Args:
            state: of the task, after its inner loop.
            x: inputs of the queries [n, *input].
            support_x: inputs of the support that the task has adapted to [S, *input].

        Raises:
            DataError: the inputs have another shape than ``input_shape``.
            MisfitError: the net returns something else than outputs for each input.
        """
        self._check(x)
        outputs: Any
        if not self.has_batch_norm:
            outputs = state.call(self.net, x)
        elif self.normalisation == "support":
            # First the support, which replaces (momentum 1) a copy of the running statistics by its own.
            by_support = self._leaving_buffers(state)
            with own_statistics(self.net, momentum=1.0):
                by_support.call(self.net, support_x)
            # Then the queries, normalised by that copy.
            with evaluating(self.net):
                outputs = by_support.call(self.net, x)
        elif self.normalisation == "transductive":
            with own_statistics(self.net, momentum=0.0):
                outputs = self._leaving_buffers(state).call(self.net, x)
        else:
            outputs = state.call(self.net, x)
        return expect_outputs("Network", outputs, len(x))

    def predict(self, state: State, x: Tensor, support_x: Tensor) -> Tensor:
        """Compute ``on_query`` in evaluation mode, whatever mode the module is in."""
        with evaluating(self):
            return self.on_query(state, x, support_x)

    def _leaving_buffers(self, state: State) -> State:
        """Return the state with copies of its buffers, so that what the net writes (counters, too) is dropped."""
        if not self.has_batch_norm:
            return state
        return State(state.parameters, {n: b.clone() for n, b in state.buffers.items()}, state.tasks)

    def _check(self, x: Tensor) -> None:
        if self.input_shape is not None and tuple(x.shape[1:]) != self.input_shape:
            raise DataError(
                f"Network: got inputs of shape {tuple(x.shape)}, expected "
                f"[n, {', '.join(map(str, self.input_shape))}], for which it was built; convert the inputs "
                "(channels, size) or build a learner for inputs of this shape"
            )


def network(
    choice: NetworkChoice,
    spec: TaskSpec,
    *,
    normalisation: Normalisation = "transductive",
    width: int = 64,
    hidden: tuple[int, ...] = (40, 40),
) -> Network:
    """Build a network for tasks by its name, or from a module of the user's.

    Its outputs are logits [n, N] for classification and values [n, *target] for regression.

    Args:
        choice: ``conv4`` or ``strided-conv4`` (with a linear layer on top), ``mlp``, or a module from [n, *input] to
            the outputs. ``auto`` chooses ``conv4`` for images of at least 16 x 16 and ``mlp`` for all other inputs. A
            ``Network`` is returned as it is.
        spec: of the tasks.
        normalisation: of the queries; see ``Network``.
        width: channels of the convolutions.
        hidden: units of the hidden layers of mlp.

    Raises:
        OptionError: the name or the policy of normalisation is unknown.
        DataError: the net does not accept inputs of the spec's shape, or the way of the tasks varies, for which the
            last layer has no fixed number of outputs.

    Example:
        >>> import torch
        >>> spec = TaskSpec(kind="classification", input_shape=(6,), way=5, shot=1, query=1)
        >>> network("auto", spec).net(torch.zeros(2, 6)).shape
        torch.Size([2, 5])
    """
    if isinstance(choice, Network):
        return choice
    if isinstance(choice, nn.Module):
        return Network(choice, normalisation, spec.input_shape)
    target = spec.target_shape
    if spec.kind == "classification":
        low, high = bounds(spec.way)
        if low is None or low != high:
            raise DataError(
                f"network: got tasks with way={spec.way}, expected one number: the last layer has an output for each "
                "class; use tasks of one way, or a learner of variable way"
            )
        target = (low,)
    shape, out = spec.input_shape, math.prod(target)
    if choice == "auto":
        choice = "conv4" if len(shape) == 3 and min(shape[1:]) >= 16 else "mlp"
    if choice == "conv4":
        features = width * (shape[1] // 16) * (shape[2] // 16)  # each of the four blocks halves height and width
        net = nn.Sequential(*conv4(shape, width), nn.Linear(features, out))
    elif choice == "strided-conv4":
        net = nn.Sequential(*strided_conv4(shape, width), nn.Linear(width, out))
    elif choice == "mlp":
        net = mlp(shape, hidden, out)
    else:
        raise OptionError(f"network: got {choice!r}, expected 'auto', 'conv4', 'strided-conv4', 'mlp' or an nn.Module")
    if len(target) != 1:
        net.append(nn.Unflatten(1, target))
    return Network(net, normalisation, shape)
