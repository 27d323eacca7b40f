"""Sequences: their loss, their scores, and memories that are tried before they are used."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kshot.nn
from kshot import Episode, Examples, Support
from kshot._engine.evaluation import join
from kshot._engine.result import Result
from kshot.episode import IGNORED
from kshot.errors import MisfitError, OptionError, TrainingError
from kshot.functional import sequence_errors, sequence_loss
from kshot.kinds import KINDS

NAN = math.nan


def score(logits: Any, y: Any) -> dict[str, Tensor]:
    """The scores of a predictor that says ``logits``, whatever it is shown."""
    targets = torch.as_tensor(y)
    B, T = targets.shape[:2]
    support = Support(torch.zeros(B, 0, 1), targets[:, :0], key=torch.arange(B))
    episode = Episode(support, Examples(torch.zeros(B, T, 1), targets))
    return KINDS["sequence"].score(lambda _: torch.as_tensor(logits), episode)


def says(labels: list[list[int]], way: int) -> Tensor:
    """Logits [B, T, N] that are greatest at ``labels``."""
    return nn.functional.one_hot(torch.tensor(labels), way).float()


def test_the_loss_of_labels_is_minus_log_p_of_each_scored_step_and_each_task_counts_alike() -> None:
    """A task with one answer weighs as much as one with three; naively, in float64."""
    logits = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([[0, 3, 1], [IGNORED, 2, IGNORED]])
    tasks = []
    for b in range(2):
        terms = [-math.log(logits[b, t].softmax(0)[y[b, t]]) for t in range(3) if y[b, t] != IGNORED]
        tasks.append(sum(terms) / len(terms))
    assert float(sequence_loss(logits, y)) == pytest.approx(sum(tasks) / 2, abs=1e-12)


def test_the_loss_of_bits_is_the_mean_cross_entropy_of_scored_bits() -> None:
    """Unscored bits are NaN: they add nothing, and their logits get no gradient, not NaN."""
    logits = torch.tensor([[[0.0, 2.0], [5.0, -1.0]]], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([[[1.0, 0.0], [NAN, NAN]]], dtype=torch.float64)
    loss = sequence_loss(logits, y)
    loss.backward()
    assert float(loss.detach()) == pytest.approx((math.log(2) + math.log1p(math.exp(2))) / 2, abs=1e-12)
    assert logits.grad is not None
    assert logits.grad[0, 1].tolist() == [0.0, 0.0]
    assert logits.grad[0, 0].tolist() == pytest.approx([-0.25, 1 / (1 + math.exp(-2)) / 2])


def test_a_task_without_answers_counts_nothing() -> None:
    """0 / 0 would spoil the whole meta-batch's loss."""
    assert float(sequence_loss(torch.randn(1, 2, 3), torch.full((1, 2), IGNORED))) == 0
    assert float(sequence_loss(torch.randn(1, 2, 3), torch.full((1, 2, 3), NAN))) == 0


def test_errors_are_one_zero_and_nan() -> None:
    """A label by the greatest logit, a bit by the sign; NaN where nothing is asked."""
    labels = sequence_errors(says([[0, 1, 1]], 2), torch.tensor([[0, 0, IGNORED]]))
    assert np.array_equal(labels.numpy(), [[0, 1, NAN]], equal_nan=True)
    bits = sequence_errors(torch.tensor([[[2.0, -2.0, 2.0]]]), torch.tensor([[[1.0, 1.0, NAN]]]))
    assert np.array_equal(bits.numpy(), [[[0, 1, NAN]]], equal_nan=True)


def test_the_curve_begins_with_the_first_scored_step() -> None:
    """Copies of different lengths are answered at different steps: columns are answers, not clock ticks."""
    y = torch.tensor([[[NAN, NAN], [1.0, 1.0], [0.0, 0.0]], [[NAN, NAN], [NAN, NAN], [0.0, 1.0]]])
    scores = score(torch.ones(2, 3, 2), y)
    assert scores["error"].tolist() == [0.5, 0.5]
    assert np.array_equal(scores["error_by_step"].numpy(), [[0, 1], [0.5, NAN]], equal_nan=True)
    assert set(scores) == {"error", "error_by_step"}


def test_instances_are_counted_class_by_class() -> None:
    """By hand: 2 1 2 2 1 shows instances 1 1 2 3 2; an unscored step is none."""
    y = [[2, 1, 2, 2, 1], [0, 0, IGNORED, 0, 0]]
    scores = score(says([[2, 0, 2, 0, 1], [1, 0, 0, 0, 1]], 3), y)
    expected = [[0.5, 1.0, 0.0, NAN], [0.0, 1.0, 1.0, 0.0]]
    assert np.array_equal(scores["accuracy_by_instance"].numpy(), expected, equal_nan=True)
    assert scores["error"].tolist() == pytest.approx([0.4, 0.5])
    assert np.array_equal(scores["error_by_step"].numpy(), [[0, 1, 0, 1, 0], [1, 0, 0, 1, NAN]], equal_nan=True)


def test_predictions_of_another_shape_are_refused() -> None:
    """Broadcasting would make a figure of them."""
    with pytest.raises(TrainingError, match=r"\(1, 2, 1\) for a sequence of bits, expected \(1, 2, 3\)"):
        score(torch.zeros(1, 2, 1), torch.zeros(1, 2, 3))
    with pytest.raises(TrainingError, match="a sequence of labels"):
        score(torch.zeros(1, 3, 4), [[0, 1]])


def test_scores_of_unlike_lengths_make_a_result() -> None:
    """Curves are padded with NaN, and neither their means nor their JSON warn of it."""
    parts = [
        score(torch.ones(3, n, 1), torch.cat([torch.full((3, n - 1, 1), NAN), torch.ones(3, 1, 1)], 1)) for n in (2, 4)
    ]
    parts.append(score(torch.ones(3, 3, 1), torch.zeros(3, 3, 1)))
    scores = {name: join([part[name].double() for part in parts]) for name in parts[0]}
    result = Result(scores=scores, kind="sequence", split="test")
    assert result.mean == pytest.approx(1 / 3)
    assert result.means("error_by_step").tolist() == pytest.approx([1 / 3, 1, 1])
    assert Result.from_json(result.to_json()).mean == result.mean


class Row(nn.Module):
    """A memory that is one row, replaced at each step.

    Args:
        cut: how many numbers of the interface it cuts.
        told: read_size that it says.
    """

    def __init__(self, slots: int, width: int, reads: int, *, cut: int | None = None, told: int | None = None) -> None:
        super().__init__()
        self.cut = cut or width
        self.interface_size, self.read_size = width, told or width

    def initial_state(self, batch_size: int) -> Tensor:
        return torch.zeros(batch_size, self.interface_size)

    def step(self, interface: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        (row,) = interface.split([self.cut], -1)
        return row, row


def test_a_memory_is_tried_before_it_is_used() -> None:
    """Sizes that disagree are met when a learner is built, by name, and not in the middle of its first step."""
    assert isinstance(kshot.nn.memory(Row, 3, 5, 1), Row)
    with pytest.raises(MisfitError, match=r"Row says interface_size 5 .* shape \(2, 5\) raised RuntimeError: .*\[4\]"):
        kshot.nn.memory(lambda *sizes: Row(*sizes, cut=4), 3, 5, 1)
    with pytest.raises(MisfitError, match=r"read_size 7, but got reads of shape \(2, 5\)"):
        kshot.nn.memory(lambda *sizes: Row(*sizes, told=7), 3, 5, 1)


def test_what_a_memory_itself_refuses_is_passed_on() -> None:
    """It says better what is wrong, when it is made and when it is tried."""

    class Refusing(Row):
        def step(self, interface: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            raise OptionError("a head is missing")

    def impossible(slots: int, width: int, reads: int) -> Row:
        raise OptionError("too few slots")

    with pytest.raises(OptionError, match=r"^a head is missing"):
        kshot.nn.memory(Refusing, 3, 5, 1)
    with pytest.raises(OptionError, match=r"^too few slots"):
        kshot.nn.memory(impossible, 3, 5, 1)
