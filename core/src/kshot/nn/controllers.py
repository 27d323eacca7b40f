"""Controllers of learners with a memory: a feed-forward layer, an LSTM and a GRU, of which each sees what was read.

Letters: B meta-batch, T time steps, I numbers of an input, D units, R read heads, W slot width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kshot.functional import gru_cell, lstm_cell

ControllerName = Literal["feedforward", "lstm", "gru"]
"""The names of the controllers."""

Carry = tuple[Tensor, ...]
"""The state of a controller between steps, tensors [B, D]: (h, c) of an LSTM, (h,) of a GRU, and () without a state."""


class Controller(Protocol):
    """Compute h_t [B, D] from the input x_t, the vectors r_{t-1} that were read in the step before, and the state.

    Attributes:
        see: the linear map of the inputs. A learner applies it to all T inputs of a sequence in one product.
    """

    see: nn.Linear

    def start(self, like: Tensor) -> Carry:
        """Return the state before the first step of ``len(like)`` episodes: zeros, of the type of ``like``."""

    def __call__(self, input_projection: Tensor, previous_reads: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """Compute h_t [B, D] and the new state from ``see(x_t)``, r_{t-1} [B, R * W] and the old state."""


class FeedForward(nn.Module):
    """Compute h_t = tanh(U x_t + V r_{t-1}). This controller has no state; only the memory lasts from step to step.

    Args:
        inputs: number of values of an input x_t (I).
        read_size: number of values that are read from the memory per step (R * W).
        hidden: number of units (D).

    Example:
        >>> controller = FeedForward(inputs=3, read_size=4, hidden=5)
        >>> tuple(controller(controller.see(torch.zeros(2, 3)), torch.zeros(2, 4), ())[0].shape)
        (2, 5)
    """

    def __init__(self, inputs: int, read_size: int, hidden: int) -> None:
        super().__init__()
        self.see = nn.Linear(inputs, hidden)  # U, the projection of the inputs
        self.recall = nn.Linear(read_size, hidden, bias=False)  # V, the projection of the read vectors

    def start(self, like: Tensor) -> Carry:
        """Return no state."""
        return ()

    def forward(self, input_projection: Tensor, previous_reads: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """Compute h_t [B, D] from U x_t [B, D] and the previous read vectors [B, R * W]."""
        return torch.tanh(input_projection + self.recall(previous_reads)), ()


class LSTM(nn.Module):
    """Compute h_t by an LSTM with the inputs x_t and r_{t-1}. Its cell is a small additional memory.

    Args:
        inputs, read_size, hidden: as for ``FeedForward``.

    Example:
        >>> controller = LSTM(inputs=3, read_size=4, hidden=5)
        >>> x, reads = torch.zeros(2, 3), torch.zeros(2, 4)
        >>> hidden, (h, cell) = controller(controller.see(x), reads, controller.start(x))
        >>> tuple(hidden.shape), tuple(cell.shape)
        ((2, 5), (2, 5))
    """

    def __init__(self, inputs: int, read_size: int, hidden: int) -> None:
        super().__init__()
        # The gates are stored in the order input, forget, candidate, output.
        self.see = nn.Linear(inputs, 4 * hidden)  # the part of the gates that depends on the input x_t
        self.recall = nn.Linear(read_size + hidden, 4 * hidden, bias=False)  # the part that depends on r_{t-1}, h_{t-1}

    def start(self, like: Tensor) -> Carry:
        """Return h_0 = 0 and c_0 = 0, each [B, D]."""
        zeros = like.new_zeros(len(like), self.see.out_features // 4)
        return zeros, zeros

    def forward(self, input_projection: Tensor, previous_reads: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """Compute h_t [B, D] and the new state from U x_t [B, 4 D], the previous reads [B, R * W] and the old state."""
        h, cell = carry
        gates = input_projection + self.recall(torch.cat([previous_reads, h], 1))
        input_gate, forget_gate, candidate, output_gate = gates.chunk(4, 1)
        h, cell = lstm_cell(
            input_gate=input_gate,
            forget_gate=forget_gate + 1,  # the constant 1 keeps the forget gate open when training begins
            candidate=candidate,
            output_gate=output_gate,
            cell=cell,
        )
        return h, (h, cell)


class GRU(nn.Module):
    """Compute h_t by a gated recurrent unit with the inputs x_t and r_{t-1}.

    Args:
        inputs, read_size, hidden: as for ``FeedForward``.

    Example:
        >>> controller = GRU(inputs=3, read_size=4, hidden=5)
        >>> x, reads = torch.zeros(2, 3), torch.zeros(2, 4)
        >>> tuple(controller(controller.see(x), reads, controller.start(x))[0].shape)
        (2, 5)
    """

    def __init__(self, inputs: int, read_size: int, hidden: int) -> None:
        super().__init__()
        # The gates are stored in the order reset, update, candidate.
        self.see = nn.Linear(inputs, 3 * hidden)  # the part that depends on the input x_t
        self.recall = nn.Linear(read_size, 3 * hidden, bias=False)  # the part that depends on r_{t-1}
        self.last = nn.Linear(hidden, 3 * hidden)  # the part that depends on h_{t-1}

    def start(self, like: Tensor) -> Carry:
        """Return h_0 = 0 [B, D]."""
        return (like.new_zeros(len(like), self.see.out_features // 3),)

    def forward(self, input_projection: Tensor, previous_reads: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """Compute h_t [B, D] and the new state from U x_t [B, 3 D], the previous reads [B, R * W] and the old state."""
        (h,) = carry
        of_input = (input_projection + self.recall(previous_reads)).chunk(3, 1)
        of_state = self.last(h).chunk(3, 1)
        h = gru_cell(
            reset=of_input[0] + of_state[0],
            update=of_input[1] + of_state[1],
            candidate_input=of_input[2],
            candidate_hidden=of_state[2],
            hidden=h,
        )
        return h, (h,)


def controller(name: ControllerName, *, inputs: int, read_size: int, hidden: int) -> FeedForward | LSTM | GRU:
    """Build a controller by its name.

    Args:
        name: ``feedforward``, ``lstm`` or ``gru``.
        inputs, read_size, hidden: as for ``FeedForward``.

    Example:
        >>> type(controller("gru", inputs=3, read_size=4, hidden=5)).__name__
        'GRU'
    """
    kinds: dict[str, type[FeedForward] | type[LSTM] | type[GRU]]
    kinds = {"feedforward": FeedForward, "lstm": LSTM, "gru": GRU}
    return kinds[name](inputs, read_size, hidden)


def unroll(
    step: Callable[[Tensor, Any], tuple[Tensor, Any]], inputs: Tensor, state: Any, segment: int = 0
) -> tuple[Tensor, Any]:
    """Apply a function to one time step after another.

    Args:
        step: ``step(input, state) -> (output, state)``, with an input [B, *] and an output [B, *]. With segments it
            is called twice for each time step, so it must have no effect beside its result.
        inputs: of all steps [B, T, *].
        state: before the first step, any pytree of tensors.
        segment: the number of steps that are computed a second time together, in the backward pass; only the states
            between segments are kept until then. The gradient is the same, and about T / segment states and the
            intermediate results of one segment are in memory, instead of those of all T steps. 0 keeps everything.

    Returns:
        The outputs [B, T, *], and the state after the last step.

    Example:
        >>> total = lambda x, state: (state + x, state + x)
        >>> unroll(total, torch.ones(1, 3), torch.zeros(1))
        (tensor([[1., 2., 3.]]), tensor([3.]))
    """

    def run(part: Tensor, state: Any) -> tuple[Tensor, Any]:
        outputs = []
        for x in part.unbind(1):
            output, state = step(x, state)
            outputs.append(output)
        return torch.stack(outputs, 1), state

    if not segment or not torch.is_grad_enabled():
        return run(inputs, state)
    parts = []
    for part in inputs.split(segment, 1):
        outputs, state = checkpoint(run, part, state, use_reentrant=False)
        parts.append(outputs)
    return torch.cat(parts, 1), state
