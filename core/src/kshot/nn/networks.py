"""Nets that adapt: encoder and head in one module, whose parameters are a task's own while it learns."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn

from kshot.errors import DataError, OptionError
from kshot.inner import State
from kshot.nn.encoders import conv4, mlp
from kshot.nn.normalisation import Normalisation, batch_norms, evaluating, own_statistics
from kshot.spec import TaskSpec, bounds

NetworkChoice = Literal["auto", "conv4", "mlp"] | nn.Module


class Network(nn.Module):
    """A net of [n, *input] -> [n, *output] for one task, called with the task's state, batch norm by stated policy.

    The support is always normalised by itself, while training and after: an honest learner has all of it. The queries

    - ``transductive``: by themselves, as in MAML's published figures; they see each other;
    - ``support``: by the support's statistics, under the adapted parameters; these count as constants in gradients;
    - ``inductive``: in training by themselves, which moves the running statistics; afterwards by those.

    Args:
        net: any unmodified module.
        normalisation: of the queries, where the net has batch norm layers.
        input_shape: of one input; others are refused with a DataError. None takes what the net takes.
    """

    def __init__(
        self, net: nn.Module, normalisation: Normalisation = "transductive", input_shape: tuple[int, ...] | None = None
    ) -> None:
        super().__init__()
        if normalisation not in ("inductive", "support", "transductive"):
            raise OptionError(
                f"Network: normalisation is {normalisation!r}, expected 'inductive', 'support' or 'transductive'"
            )
        self.net = net
        self.normalisation = normalisation
        self.input_shape = input_shape
        self.has_batch_norm = bool(batch_norms(net))

    @property
    def queries(self) -> Literal["independent", "joint"]:
        """What ``Needs.queries`` is for a learner that predicts with this."""
        return "joint" if self.has_batch_norm and self.normalisation == "transductive" else "independent"

    def state(self) -> State:
        """The parameters where every task begins, with their graph."""
        return State.of(self.net)

    def on_support(self, state: State, x: Tensor) -> Tensor:
        """Outputs for the support ``x`` [S, *input] while adapting; leaves the running statistics as they are."""
        self._check(x)
        with own_statistics(self.net, momentum=0.0):
            found: Tensor = state.call(self.net, x)
        return found

    def on_query(self, state: State, x: Tensor, support_x: Tensor) -> Tensor:
        """Outputs for queries ``x`` [n, *input] of a task that adapted to ``support_x`` [S, *input]."""
        self._check(x)
        found: Tensor
        if not self.has_batch_norm:
            found = state.call(self.net, x)
        elif self.normalisation == "support":
            seen = State(state.parameters, {n: b.clone() for n, b in state.buffers.items()})
            with own_statistics(self.net, momentum=1.0):
                seen.call(self.net, support_x)
            with evaluating(self.net):
                found = seen.call(self.net, x)
        elif self.normalisation == "transductive":
            with own_statistics(self.net, momentum=0.0):
                found = state.call(self.net, x)
        else:
            found = state.call(self.net, x)
        return found

    def predict(self, state: State, x: Tensor, support_x: Tensor) -> Tensor:
        """``on_query`` after training, whatever mode the module is in."""
        with evaluating(self):
            return self.on_query(state, x, support_x)

    def _check(self, x: Tensor) -> None:
        if self.input_shape is not None and tuple(x.shape[1:]) != self.input_shape:
            raise DataError(
                f"the network got inputs of shape {tuple(x.shape)}, expected [n, "
                f"{', '.join(map(str, self.input_shape))}]: it was built for {self.input_shape}; convert the inputs or "
                "build a learner for theirs"
            )


def network(
    choice: NetworkChoice,
    spec: TaskSpec,
    *,
    normalisation: Normalisation = "transductive",
    width: int = 64,
    hidden: tuple[int, ...] = (40, 40),
) -> Network:
    """A network for tasks: conv4 and a linear layer for images, a fully connected net for the rest, or your own.

    Its outputs are logits [n, N] for classification, values [n, *target] for regression.

    Args:
        choice: ``auto``, ``conv4``, ``mlp``, or a module from [n, *input] to the outputs.
        width: channels of conv4.
        hidden: units of the mlp's hidden layers.

    Raises:
        OptionError: an unknown name.
        DataError: the net can't take the spec's inputs, or the way varies and the head can't.
    """
    if isinstance(choice, Network):
        return choice
    if isinstance(choice, nn.Module):
        return Network(choice, normalisation, spec.input_shape)
    target = spec.target_shape
    if spec.kind == "classification":
        low, high = bounds(spec.way)
        if low is None or low != high:
            raise DataError(f"network: way is {spec.way}, expected one number: the last layer has an output a class")
        target = (low,)
    shape, out = spec.input_shape, math.prod(target)
    if choice == "auto":
        choice = "conv4" if len(shape) == 3 and min(shape[1:]) >= 16 else "mlp"
    if choice == "conv4":
        features = width * (shape[1] // 16) * (shape[2] // 16)
        net = nn.Sequential(*conv4(shape, width), nn.Linear(features, out))
    elif choice == "mlp":
        net = mlp(shape, hidden, out)
    else:
        raise OptionError(f"network is {choice!r}, expected 'auto', 'conv4', 'mlp' or an nn.Module of yours")
    if len(target) != 1:
        net.append(nn.Unflatten(1, target))
    return Network(net, normalisation, shape)
