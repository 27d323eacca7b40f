"""The learned update rule: a small LSTM for every coordinate, with shared weights (1606.04474, section 2.1).

Letters: B meta-batch, P coordinates of a point, H hidden units.
"""

from __future__ import annotations

from torch import Tensor, nn

from kshot.functional import log_and_sign


class CoordinateLSTM(nn.Module):
    """The optimizer m: an LSTM of two layers with a state for every coordinate and weights that all share.

    The cells are torch's own: their recurrent input is the hidden state alone.

    Args:
        hidden: H, units of each layer.
        preprocessing: p of ``kshot.functional.log_and_sign``.
        output_scale: a factor of the output.

    Example:
        >>> import torch
        >>> update, state = CoordinateLSTM(hidden=5, preprocessing=10.0, output_scale=0.1)(torch.ones(2, 3), None)
        >>> tuple(update.shape), [tuple(t.shape) for t in state]
        ((2, 3), [(6, 5), (6, 5), (6, 5), (6, 5)])
    """

    def __init__(self, hidden: int, preprocessing: float, output_scale: float) -> None:
        super().__init__()
        self.cells = nn.ModuleList([nn.LSTMCell(2, hidden), nn.LSTMCell(hidden, hidden)])
        self.head = nn.Linear(hidden, 1)
        self.p, self.scale = preprocessing, output_scale

    def forward(self, gradient: Tensor, state: tuple[Tensor, ...] | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Compute the update from a gradient.

        Args:
            gradient: of the objectives at the point [B, P].
            state: h and c of each layer, [B * P, H] each; None before the first step.

        Returns:
            The update [B, P] and the new state.
        """
        # The coordinates of all tasks are one batch of B * P sequences.
        signal = log_and_sign(gradient, self.p).flatten(0, 1)
        new_state: list[Tensor] = []
        for layer, lstm in enumerate(self.cells):
            signal, cell = lstm(signal, None if state is None else state[2 * layer : 2 * layer + 2])
            new_state += [signal, cell]
        # g_t is a linear map of the last layer's hidden state.
        return self.scale * self.head(signal).view_as(gradient), tuple(new_state)
