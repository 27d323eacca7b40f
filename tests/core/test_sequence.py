"""The losses and errors of sequences, against values worked out by hand or naively in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kshot.episode import IGNORED
from kshot.functional import sequence_errors, sequence_loss

NAN = math.nan


def test_the_loss_of_labels_is_minus_log_p_of_each_scored_step_and_each_task_counts_alike() -> None:
    """A task with one answer has the same weight as one with three; computed naively in float64."""
    logits = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([[0, 3, 1], [IGNORED, 2, IGNORED]])
    tasks = []
    for b in range(2):
        terms = [-math.log(logits[b, t].softmax(0)[y[b, t]]) for t in range(3) if y[b, t] != IGNORED]
        tasks.append(sum(terms) / len(terms))
    assert float(sequence_loss(logits, y)) == pytest.approx(sum(tasks) / 2, abs=1e-12)


def test_the_loss_of_strings_is_the_mean_over_their_characters() -> None:
    """Minus log p of each character of the scored steps, computed naively; steps that are not scored add nothing."""
    logits = torch.randn(1, 3, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([[[0, 3], [IGNORED, IGNORED], [2, 2]]])
    terms = [-math.log(logits[0, t, i].softmax(0)[y[0, t, i]]) for t in (0, 2) for i in range(2)]
    assert float(sequence_loss(logits, y)) == pytest.approx(sum(terms) / 4, abs=1e-12)
    assert sequence_errors(logits, y).shape == (1, 3, 2)


def test_the_loss_of_bits_is_the_mean_cross_entropy_of_scored_bits() -> None:
    """Unscored bits are NaN: they add nothing, and the gradient of their logits is 0, not NaN."""
    logits = torch.tensor([[[0.0, 2.0], [5.0, -1.0]]], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([[[1.0, 0.0], [NAN, NAN]]], dtype=torch.float64)
    loss = sequence_loss(logits, y)
    loss.backward()
    assert float(loss.detach()) == pytest.approx((math.log(2) + math.log1p(math.exp(2))) / 2, abs=1e-12)
    assert logits.grad is not None
    assert logits.grad[0, 1].tolist() == [0.0, 0.0]
    assert logits.grad[0, 0].tolist() == pytest.approx([-0.25, 1 / (1 + math.exp(-2)) / 2])


def test_a_task_without_answers_has_loss_zero() -> None:
    """0 / 0 would make the loss of the meta-batch NaN."""
    assert float(sequence_loss(torch.randn(1, 2, 3), torch.full((1, 2), IGNORED))) == 0
    assert float(sequence_loss(torch.randn(1, 2, 3), torch.full((1, 2, 3), NAN))) == 0


def test_errors_are_one_zero_and_nan() -> None:
    """A label is predicted by the greatest logit, a bit by the sign; an unscored step is NaN."""
    labels = sequence_errors(torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]]), torch.tensor([[0, 0, IGNORED]]))
    assert np.array_equal(labels.numpy(), [[0, 1, NAN]], equal_nan=True)
    bits = sequence_errors(torch.tensor([[[2.0, -2.0, 2.0]]]), torch.tensor([[[1.0, 1.0, NAN]]]))
    assert np.array_equal(bits.numpy(), [[[0, 1, NAN]]], equal_nan=True)
