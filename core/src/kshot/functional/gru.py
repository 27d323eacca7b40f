"""One step of a gated recurrent unit. Letters: D units."""

from __future__ import annotations

import torch
from torch import Tensor


def gru_cell(
    *, reset: Tensor, update: Tensor, candidate_input: Tensor, candidate_hidden: Tensor, hidden: Tensor
) -> Tensor:
    """Compute one step of a GRU from the pre-activations of its gates.

    Implements Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical machine
    translation", 2014 (1406.1078), in the variant of ``torch.nn.GRU``, in which the reset gate is applied after the
    linear map of the hidden state:

        n_t = tanh(a + sigmoid(r) * b)
        h_t = (1 - sigmoid(z)) * n_t + sigmoid(z) * h_{t-1}

    As in ``lstm_cell``, the linear maps are left to the caller.

    Args:
        reset: r, before its sigmoid [..., D].
        update: z, before its sigmoid [..., D].
        candidate_input: a, the part of the candidate that depends on the input [..., D].
        candidate_hidden: b, the part of the candidate that depends on the hidden state [..., D].
        hidden: h_{t-1}, the hidden state of the step before [..., D].

    Returns:
        The hidden state h_t [..., D].

    Example:
        With an open update gate, the unit keeps its state:

        >>> wide, zero = torch.full((1,), 50.0), torch.zeros(1)
        >>> gru_cell(
        ...     reset=zero, update=wide, candidate_input=wide, candidate_hidden=zero, hidden=torch.tensor([0.5])
        ... )
        tensor([0.5000])
    """
    candidate = (candidate_input + reset.sigmoid() * candidate_hidden).tanh()
    return torch.lerp(candidate, hidden, update.sigmoid())
