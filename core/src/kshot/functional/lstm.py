"""One step of a long short-term memory, for controllers that multiply their own inputs. Letters: D units."""

from __future__ import annotations

from torch import Tensor


def lstm_cell(
    *, input_gate: Tensor, forget_gate: Tensor, candidate: Tensor, output_gate: Tensor, cell: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute one step of an LSTM from the pre-activations of its gates.

    Implements Gers, Schmidhuber & Cummins, "Learning to forget: continual prediction with LSTM", 2000, without
    peephole connections:

        c_t = sigmoid(f) * c_{t-1} + sigmoid(i) * tanh(g)
        h_t = sigmoid(o) * tanh(c_t)

    The linear maps are left to the caller, because learners differ in the inputs that they multiply, in the order in
    which a stored matrix holds the four gates, and in the bias of the forget gate. A learner whose recurrent input is
    only its own hidden state should use ``torch.nn.LSTM``, which computes the same and is faster.

    Args:
        input_gate: i, before its sigmoid [..., D].
        forget_gate: f, before its sigmoid [..., D].
        candidate: g, before its tanh [..., D]: what is added to the cell.
        output_gate: o, before its sigmoid [..., D].
        cell: c_{t-1}, the cell state of the step before [..., D].

    Returns:
        The hidden state h_t [..., D] and the cell state c_t [..., D].

    Example:
        With a closed input gate and an open forget gate, the cell keeps its content:

        >>> import torch
        >>> shut, wide = torch.full((1,), -50.0), torch.full((1,), 50.0)
        >>> hidden, cell = lstm_cell(
        ...     input_gate=shut, forget_gate=wide, candidate=wide, output_gate=wide, cell=torch.tensor([0.5])
        ... )
        >>> cell, hidden
        (tensor([0.5000]), tensor([0.4621]))
    """
    cell = forget_gate.sigmoid() * cell + input_gate.sigmoid() * candidate.tanh()
    return output_gate.sigmoid() * cell.tanh(), cell
