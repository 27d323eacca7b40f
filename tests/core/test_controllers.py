"""``kshot.nn.controllers`` and ``kshot.functional.gru``: torch's own cells, and unrolling with and without segments."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kshot.nn
from kshot.functional import gru_cell
from kshot.nn.controllers import GRU, LSTM, FeedForward


def rand(*shape: int, seed: int) -> Tensor:
    """Return reproducible standard normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_gru_cell_computes_the_equations_unit_by_unit() -> None:
    """The naive second implementation uses Python floats and writes out every sigmoid."""
    r, z, a, b, h = (rand(2, 3, seed=seed) for seed in range(5))
    hidden = gru_cell(reset=r, update=z, candidate_input=a, candidate_hidden=b, hidden=h)

    def sigmoid(value: Tensor) -> float:
        return 1 / (1 + math.exp(-float(value)))

    for at in [(i, j) for i in range(2) for j in range(3)]:
        candidate = math.tanh(float(a[at]) + sigmoid(r[at]) * float(b[at]))
        expected = (1 - sigmoid(z[at])) * candidate + sigmoid(z[at]) * float(h[at])
        assert abs(float(hidden[at]) - expected) < 1e-12


def test_the_gru_is_torchs() -> None:
    """Torch's cell on [x_t, r_{t-1}] gives the same states, and the same gradient of every parameter, in float64."""
    torch.manual_seed(0)
    controller = GRU(inputs=3, read_size=2, hidden=4).double()
    cell = nn.GRUCell(5, 4).double()
    with torch.no_grad():
        cell.weight_ih.copy_(torch.cat([controller.see.weight, controller.recall.weight], 1))
        cell.weight_hh.copy_(controller.last.weight)
        cell.bias_ih.copy_(controller.see.bias)
        cell.bias_hh.copy_(controller.last.bias)
    x, reads, h = rand(2, 3, seed=1), rand(2, 2, seed=2), rand(2, 4, seed=3)
    ours, carry = controller(controller.see(x), reads, (h,))
    theirs = cell(torch.cat([x, reads], 1), h)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)
    assert len(carry) == 1
    assert torch.equal(carry[0], ours)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    inputs = torch.cat([controller.see.weight.grad, controller.recall.weight.grad], 1)  # type: ignore[list-item]
    assert torch.allclose(inputs, cell.weight_ih.grad, rtol=0, atol=1e-12)
    for own, other in (
        (controller.last.weight, cell.weight_hh),
        (controller.last.bias, cell.bias_hh),
        (controller.see.bias, cell.bias_ih),
    ):
        assert torch.allclose(own.grad, other.grad, rtol=0, atol=1e-12)  # type: ignore[arg-type]


def test_the_lstm_is_torchs_with_an_open_forget_gate() -> None:
    """Torch's cell on [x_t, r_{t-1}] with a bias of 1 at the forget gate gives the same states, in float64."""
    torch.manual_seed(0)
    controller = LSTM(inputs=3, read_size=2, hidden=4).double()
    cell = nn.LSTMCell(5, 4).double()
    with torch.no_grad():
        cell.weight_ih.copy_(torch.cat([controller.see.weight, controller.recall.weight[:, :2]], 1))
        cell.weight_hh.copy_(controller.recall.weight[:, 2:])
        cell.bias_ih.copy_(controller.see.bias)
        cell.bias_hh.zero_()
        cell.bias_hh[4:8] = 1
    x, reads, h, c = rand(2, 3, seed=1), rand(2, 2, seed=2), rand(2, 4, seed=3), rand(2, 4, seed=4)
    hidden, carry = controller(controller.see(x), reads, (h, c))
    for ours, theirs in zip((hidden, carry[1]), cell(torch.cat([x, reads], 1), (h, c)), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


def test_a_feed_forward_controller_is_one_layer_without_a_state() -> None:
    """It equals tanh(U x + b + V r), in float64."""
    controller = FeedForward(inputs=3, read_size=2, hidden=4).double()
    x, reads = rand(2, 3, seed=1), rand(2, 2, seed=2)
    hidden, carry = controller(controller.see(x), reads, controller.start(x))
    expected = torch.tanh(x @ controller.see.weight.T + controller.see.bias + reads @ controller.recall.weight.T)
    assert torch.allclose(hidden, expected, rtol=0, atol=1e-12)
    assert carry == ()


@pytest.mark.parametrize(("name", "states"), [("feedforward", 0), ("lstm", 2), ("gru", 1)])
def test_a_controller_starts_at_zero(name: Any, states: int) -> None:
    """Its state has the batch of what it is made like, and the type."""
    controller = kshot.nn.controller(name, inputs=3, read_size=2, hidden=4)
    start = controller.start(rand(5, 1, seed=0))
    assert [tuple(t.shape) for t in start] == [(5, 4)] * states
    assert all(t.dtype == torch.float64 and not t.any() for t in start)


@pytest.mark.parametrize("segment", [0, 1, 2, 5, 9])
def test_segments_change_neither_outputs_nor_gradients(segment: int) -> None:
    """The state may be any pytree; a step is run once more for each segment, and only if a gradient is asked for."""
    weight = rand(3, 3, seed=0).requires_grad_()
    calls = 0

    def step(x: Tensor, state: Any) -> tuple[Tensor, Any]:
        nonlocal calls
        calls += 1
        sums, (last,) = state["sums"], state["last"]
        output = torch.tanh(x @ weight + sums * last)
        return output, {"sums": sums + output, "last": (output,)}

    inputs = rand(2, 5, 3, seed=1)
    zeros = torch.zeros(2, 3, dtype=torch.float64)
    outputs, end = kshot.nn.unroll(step, inputs, {"sums": zeros, "last": (zeros + 1,)}, segment)
    assert torch.allclose(end["sums"], outputs.sum(1), rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(outputs.square().sum(), weight)
    assert calls == (10 if segment else 5)
    # The same by hand.
    sums, last, expected = zeros, zeros + 1, []
    for t in range(5):
        last = torch.tanh(inputs[:, t] @ weight + sums * last)
        sums = sums + last
        expected.append(last)
    by_hand = torch.stack(expected, 1)
    assert torch.allclose(outputs, by_hand, rtol=0, atol=1e-12)
    assert torch.allclose(gradient, torch.autograd.grad(by_hand.square().sum(), weight)[0], rtol=0, atol=1e-12)
    calls = 0
    with torch.no_grad():
        kshot.nn.unroll(step, inputs, {"sums": zeros, "last": (zeros,)}, segment)
    assert calls == 5
