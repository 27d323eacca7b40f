"""The update rule of the meta-LSTM: two gates for every parameter, with weights that all parameters share.

Ravi & Larochelle, "Optimization as a model for few-shot learning", 2017, section 3. Letters: P parameters of the
network, H hidden units. Everything is written for one task.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kshot.errors import OptionError
from kshot.functional import log_and_sign, lstm_cell


class Memory(NamedTuple):
    """What the rule remembers of the previous step, for every parameter.

    Attributes:
        hidden, cell: the state of the first layer [P, H]; H is 0 without this layer.
        input_gate, forget_gate: i_{t-1} and f_{t-1} [P]; 0 before the first step.
    """

    hidden: Tensor
    cell: Tensor
    input_gate: Tensor
    forget_gate: Tensor


class Gates(nn.Module):
    """Compute c_t = f_t o c_{t-1} - i_t o gradient, where c_t are the parameters of the network (section 3.1).

    The first layer is an ordinary LSTM of preprocessed gradient and loss. The gates are sigmoids of linear maps of its
    hidden state, of the parameter and of their own value at the previous step. By default the forget gates start near
    0.99 and the input gates near 0.01, so that training begins with gradient descent of small steps.

    Args:
        hidden: H, units of the first layer; 0 to leave it out, so that the gates see the preprocessed numbers.
        preprocessing: p of ``kshot.functional.log_and_sign``.
        forget_bias, input_bias: the range (least, greatest) of the initial bias of each gate.
        scale: the gates' linear maps are multiplied by this factor, and their initial weights and biases are divided by
            it. So it changes no initial gate, but an outer step of Adam changes the gates by this factor more.

    Raises:
        OptionError: a range is empty or not finite, or the scale is not a positive number.

    Example:
        >>> gates = Gates(hidden=5)
        >>> parameters, memory = gates(torch.ones(3), torch.tensor([1.0, 0.0, -1.0]), torch.tensor(2.0))
        >>> tuple(parameters.shape), tuple(memory.hidden.shape)
        ((3,), (3, 5))
    """

    def __init__(
        self,
        hidden: int = 20,
        preprocessing: float = 10.0,
        forget_bias: tuple[float, float] = (4.0, 5.0),
        input_bias: tuple[float, float] = (-5.0, -4.0),
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        for name, (least, greatest) in {"forget_bias": forget_bias, "input_bias": input_bias}.items():
            if not -math.inf < least <= greatest < math.inf:
                raise OptionError(
                    f"meta-lstm: got {name} {(least, greatest)}, expected two finite numbers, the lower one first; "
                    "change them"
                )
        if not 0 < scale < math.inf:
            raise OptionError(f"meta-lstm: got gate_scale {scale}, expected a positive number; change it")
        self.p, self.units, self.scale = preprocessing, hidden, scale
        # From two numbers of the gradient, two of the loss and the hidden state to the four gates of the first layer.
        self.lstm = nn.Linear(4 + hidden, 4 * hidden) if hidden else None
        seen = (hidden or 4) + 2
        self.input_gate, self.forget_gate = nn.Linear(seen, 1), nn.Linear(seen, 1)
        # The authors' initial weights; their initial biases open the forget gate and nearly close the input gate.
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.01, 0.01)
        nn.init.uniform_(self.forget_gate.bias, *forget_bias)
        nn.init.uniform_(self.input_gate.bias, *input_bias)
        if scale != 1:
            with torch.no_grad():
                for parameter in (*self.input_gate.parameters(), *self.forget_gate.parameters()):
                    parameter.div_(scale)

    def forward(
        self, parameters: Tensor, gradient: Tensor, loss: Tensor, memory: Memory | None = None
    ) -> tuple[Tensor, Memory]:
        """Take one step.

        Args:
            parameters: c_{t-1} [P], which are the parameters of the network.
            gradient: of the loss at these parameters [P].
            loss: [].
            memory: of the previous step; None before the first.

        Returns:
            c_t [P], and the memory.
        """
        if memory is None:
            empty, zero = gradient.new_zeros(len(gradient), self.units), torch.zeros_like(gradient)
            memory = Memory(empty, empty, zero, zero)
        signal = torch.cat([log_and_sign(gradient, self.p), log_and_sign(loss.expand_as(gradient), self.p)], -1)
        hidden, cell = memory.hidden, memory.cell
        if self.lstm is not None:
            i, f, g, o = self.lstm(torch.cat([signal, hidden], -1)).chunk(4, -1)
            hidden, cell = lstm_cell(input_gate=i, forget_gate=f, candidate=g, output_gate=o, cell=cell)
            signal = hidden
        # i_t = sigmoid(W_I [gradient, loss, theta_{t-1}, i_{t-1}] + b_I), and f_t likewise (section 3.1).
        i, f = (
            (self.scale * layer(torch.cat([signal, parameters[:, None], previous[:, None]], -1))[:, 0]).sigmoid()
            for layer, previous in ((self.input_gate, memory.input_gate), (self.forget_gate, memory.forget_gate))
        )
        # Eq. 2: c_t = f_t o c_{t-1} + i_t o c~_t with the candidate c~_t = -gradient.
        return f * parameters - i * gradient, Memory(hidden, cell, i, f)
