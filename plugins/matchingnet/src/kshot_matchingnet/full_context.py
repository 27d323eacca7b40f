"""Full context embeddings of matching networks: Vinyals et al. 2016 (1606.04080), appendix A.

Letters: B meta-batch, S support size, n queries, D embedding, K processing steps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def lstm_step(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Compute one step of an LSTM.

    Args:
        gates: input gate, forget gate, candidate and output gate, before their nonlinearities [..., 4 D].
        cell: the cell of the step before [..., D].

    Returns:
        The hidden state [..., D] and the new cell [..., D].
    """
    input_gate, forget_gate, candidate, output_gate = gates.chunk(4, -1)
    cell = forget_gate.sigmoid() * cell + input_gate.sigmoid() * candidate.tanh()
    return output_gate.sigmoid() * cell.tanh(), cell


class FullContext(nn.Module):
    """Embed examples in the context of the whole support: g for the support (A.2), f for the queries (A.1).

    Args:
        features: D.
        steps: K, the number of processing steps of f.

    Example:
        >>> context = FullContext(features=4, steps=2)
        >>> g = context.g(torch.zeros(1, 6, 4))
        >>> context.f(torch.zeros(1, 3, 4), g).shape
        torch.Size([1, 3, 4])
    """

    def __init__(self, features: int, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.support = nn.LSTM(features, features, bidirectional=True, batch_first=True)
        # The LSTM of f in two layers: its input f'(x) is the same at each step, [h, r] is not.
        self.see = nn.Linear(features, 4 * features)
        self.recall = nn.Linear(2 * features, 4 * features, bias=False)

    def g(self, own: Tensor) -> Tensor:
        """Embed the support in its context: g'(x_i) [B, S, D] -> g(x_i, S) [B, S, D]."""
        # A.2: g(x_i, S) = h_i forwards + h_i backwards + g'(x_i), where h is a bidirectional LSTM over the support.
        forwards, backwards = self.support(own)[0].chunk(2, -1)
        embedding: Tensor = forwards + backwards + own
        return embedding

    def f(self, own: Tensor, g: Tensor) -> Tensor:
        """Embed queries in the context of the support: f'(x) [B, n, D] and g [B, S, D] -> f(x, S) = h_K [B, n, D].

        The hidden state and the cell start at 0.
        """
        seen = self.see(own)
        h = cell = torch.zeros_like(own)
        for _ in range(self.steps):
            # Equations 5 and 6: r = sum_i a(h, g_i) g_i, with a the softmax over h . g_i.
            r = (h @ g.mT).softmax(-1) @ g
            # Equations 3 and 4: h^, c = LSTM(f'(x), [h, r], c) and h = h^ + f'(x).
            out, cell = lstm_step(seen + self.recall(torch.cat([h, r], -1)), cell)
            h = out + own
        return h
