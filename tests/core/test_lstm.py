"""``kshot.functional.lstm``: the one LSTM cell that all controllers share."""

import math

import torch
from torch import Tensor, nn

from kshot.functional import lstm_cell


def rand(*shape: int, seed: int) -> Tensor:
    """Return reproducible standard normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_cell_computes_the_textbook_equations_unit_by_unit() -> None:
    """The naive second implementation uses Python floats and writes out every sigmoid."""
    i, f, g, o, c = (rand(2, 3, seed=seed) for seed in range(5))
    hidden, cell = lstm_cell(input_gate=i, forget_gate=f, candidate=g, output_gate=o, cell=c)

    def sigmoid(value: Tensor) -> float:
        return 1 / (1 + math.exp(-float(value)))

    for b in range(2):
        for unit in range(3):
            at = b, unit
            expected_cell = sigmoid(f[at]) * float(c[at]) + sigmoid(i[at]) * math.tanh(float(g[at]))
            expected_hidden = sigmoid(o[at]) * math.tanh(expected_cell)
            assert abs(float(cell[at]) - expected_cell) < 1e-12
            assert abs(float(hidden[at]) - expected_hidden) < 1e-12


def test_a_cell_and_its_gradient_equal_those_of_torch() -> None:
    """``torch.nn.LSTMCell`` stores the gates in the order input, forget, candidate, output."""
    torch.manual_seed(0)
    reference = nn.LSTMCell(3, 4).double()
    x, h, c = rand(2, 3, seed=1), rand(2, 4, seed=2), rand(2, 4, seed=3)
    expected = reference(x, (h, c))
    gates = x @ reference.weight_ih.T + reference.bias_ih + h @ reference.weight_hh.T + reference.bias_hh
    i, f, g, o = gates.chunk(4, 1)
    computed = lstm_cell(input_gate=i, forget_gate=f, candidate=g, output_gate=o, cell=c)
    for ours, theirs in zip(computed, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)
        ours_slope, theirs_slope = (
            torch.autograd.grad(t.sum(), reference.weight_hh, retain_graph=True)[0] for t in (ours, theirs)
        )
        assert torch.allclose(ours_slope, theirs_slope, atol=1e-12)
