"""Tests of kshot.functional: distances, class sums and means, and the best threshold, against values worked out by
hand or by naive loops."""

import doctest
import importlib
import itertools

import pytest
import torch

from kshot.functional import (
    best_threshold,
    class_folds,
    class_means,
    class_sums,
    conjugate_gradient,
    full_precision,
    pairwise_squared_distance,
    prototypical_logits,
    span_coordinates,
)


@pytest.mark.parametrize("module", ["conjugate", "folds", "metric", "sequence", "span", "verification"])
def test_the_examples_in_docstrings_run(module):
    """A wrong example is worse than none."""
    result = doctest.testmod(importlib.import_module(f"kshot.functional.{module}"))
    assert result.attempted > 0
    assert result.failed == 0


# --- Distances and classes ----------------------------------------------------------------------------------------


def test_full_precision_converts_half_precision_only():
    """float64 must stay float64, because exact tests compute in it."""
    for dtype, expected in (
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        assert full_precision(torch.zeros(1, dtype=dtype)).dtype == expected


def test_distances_are_squared_and_summed():
    """The distance of (0, 0) and (3, 4) is 25: neither its root 5 nor the mean over features, 12.5."""
    a = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    assert pairwise_squared_distance(a, torch.tensor([[3.0, 4.0]])).tolist() == [[25.0], [13.0]]
    assert prototypical_logits(a, a).tolist() == [[0.0, -2.0], [-2.0, 0.0]]


def test_class_means_of_unbalanced_classes():
    """Each sum is divided by the number of examples of its own class, in any order of the examples."""
    z = torch.tensor([[[2.0], [10.0], [4.0], [6.0]]])
    y = torch.tensor([[0, 1, 0, 0]])
    assert class_means(z, y, 2).tolist() == [[[4.0], [10.0]]]


def test_class_sums_are_those_of_a_naive_loop():
    """The episodes of a batch have different labels, and class 3 has no examples."""
    z = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.tensor([[0, 2, 1, 0, 2, 0], [1, 0, 0, 2, 0, 2]])
    sums = class_sums(z, y, 4)
    for b in range(2):
        for c in range(4):
            naive = sum((z[b, i] for i in range(6) if y[b, i] == c), torch.zeros(3, dtype=torch.float64))
            assert torch.allclose(sums[b, c], naive, rtol=0, atol=1e-12)


# --- The best threshold -------------------------------------------------------------------------------------------


def balanced(genuine: torch.Tensor, imposters: torch.Tensor, threshold: float) -> float:
    """Compute the balanced accuracy by its definition."""
    accepted, refused = (genuine <= threshold).double().mean(), (imposters > threshold).double().mean()
    return float((accepted + refused) / 2)


def test_the_best_threshold_by_hand():
    """Two of three genuine pairs are nearer than all imposters: (2/3 + 1) / 2, in the middle of the gap from 2 to 4."""
    threshold, accuracy = best_threshold(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([4.0, 5.0, 10.0, 11.0]))
    assert float(threshold) == 3.0
    assert float(accuracy) == pytest.approx((2 / 3 + 1) / 2)


def test_among_equally_good_thresholds_the_middle_of_the_widest_gap_is_chosen():
    """From 1 to 2 and from 3 to 7, the accuracy is 3/4. If the gaps are equal too, the first one is taken."""
    assert float(best_threshold(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 7.0]))[0]) == 5.0
    assert float(best_threshold(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 4.0]))[0]) == 1.5


def test_a_threshold_that_refuses_every_pair_is_never_chosen():
    """If all genuine pairs are farther than all imposters, accepting every pair is as good, 1/2."""
    threshold, accuracy = best_threshold(torch.tensor([2.0, 3.0]), torch.tensor([1.0]))
    assert (float(threshold), float(accuracy)) == (3.0, 0.5)


@pytest.mark.parametrize("seed", range(20))
def test_no_threshold_is_better_than_the_best(seed):
    """All thresholds are tried, at and between the distances; with ties, and with distances below 0."""
    generator = torch.Generator().manual_seed(seed)
    genuine = (torch.randn(15, generator=generator, dtype=torch.float64)).round(decimals=1)
    imposters = (torch.randn(25, generator=generator, dtype=torch.float64) + 1).round(decimals=1)
    threshold, accuracy = best_threshold(genuine, imposters)
    cuts = torch.cat([genuine, imposters]).unique().tolist()
    tried = [balanced(genuine, imposters, t) for t in cuts + [(a + b) / 2 for a, b in itertools.pairwise(cuts)]]
    assert float(accuracy) == pytest.approx(max(tried), abs=1e-12)
    assert balanced(genuine, imposters, float(threshold)) == pytest.approx(max(tried), abs=1e-12)


def test_the_mean_of_a_class_without_examples_is_zero():
    """And not NaN, which would spread to every logit."""
    means = class_means(torch.tensor([[3.0], [5.0]]), torch.tensor([2, 2]), 4)
    assert means.tolist() == [[0.0], [0.0], [4.0], [0.0]]


# --- Linear equations ---------------------------------------------------------------------------------------------


def positive_definite(n: int) -> torch.Tensor:
    a = torch.randn(n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return a @ a.T + torch.eye(n, dtype=torch.float64)


def test_conjugate_gradients_solve_in_as_many_iterations_as_there_are_unknowns():
    """The solution equals that of a direct solver, and one iteration less does not reach it."""
    a, b = positive_definite(6), torch.arange(6, dtype=torch.float64)
    solution = torch.linalg.solve(a, b)
    assert torch.allclose(conjugate_gradient(lambda v: a @ v, b, 6), solution, rtol=0, atol=1e-9)
    assert not torch.allclose(conjugate_gradient(lambda v: a @ v, b, 5), solution, rtol=0, atol=1e-4)


def test_conjugate_gradients_stay_at_the_solution():
    """Iterations after the solution divide 0 by 0, which must not reach the result; a target of 0 is solved by 0."""
    a, b = torch.diag(torch.tensor([2.0, 4.0])), torch.tensor([2.0, 0.0])
    assert conjugate_gradient(lambda v: a @ v, b, 10, enough=0.0).tolist() == [1.0, 0.0]
    assert conjugate_gradient(lambda v: a @ v, 0 * b, 10, enough=0.0).tolist() == [0.0, 0.0]
    # A residual below ``enough`` is not worked on: with 5 > 4 = b^T b the start is the result.
    assert conjugate_gradient(lambda v: a @ v, b, 10, enough=5.0).tolist() == [0.0, 0.0]


def test_conjugate_gradients_stop_where_there_is_no_minimum():
    """Along the second axis the quadratic has none: the result is that of the iteration before, 2 (1, 1)."""
    a = torch.diag(torch.tensor([2.0, -1.0], dtype=torch.float64))
    b = torch.tensor([1.0, 1.0], dtype=torch.float64)
    assert conjugate_gradient(lambda v: a @ v, b, 1).tolist() == [2.0, 2.0]  # b times b^T b / b^T A b = 2 / 1
    assert conjugate_gradient(lambda v: a @ v, b, 10).tolist() == [2.0, 2.0]
    assert conjugate_gradient(lambda v: -v, b, 10).tolist() == [0.0, 0.0]


def test_conjugate_gradients_can_be_vmapped():
    """Each of several equations stops at its own iteration; the result of each is that of a direct solver."""
    a = torch.stack([torch.eye(4, dtype=torch.float64), positive_definite(4)])
    b = torch.arange(8, dtype=torch.float64).view(2, 4)
    solved = torch.func.vmap(lambda a, b: conjugate_gradient(lambda v: a @ v, b, 8, enough=1e-24))(a, b)
    assert torch.allclose(solved, torch.linalg.solve(a, b), rtol=0, atol=1e-9)


def test_numbers_that_are_not_finite_are_not_hidden():
    """NaN in a product must reach the result, where the engine reports it."""
    assert conjugate_gradient(lambda v: v * torch.nan, torch.ones(2)).isnan().all()


# --- Folds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_every_fold_leaves_examples_of_each_class(folds):
    """Classes have 1 to 6 examples. Each example of the larger classes is in one fold, the lone example in none."""
    y = torch.cat([torch.full((c + 1,), c) for c in range(6)])
    order = torch.randn(2, len(y), generator=torch.Generator().manual_seed(0))
    fold = class_folds(y.expand(2, -1), order, folds)
    assert fold.shape == (2, 21)
    assert fold[:, 0].tolist() == [-1, -1]
    assert bool((fold[:, 1:] >= 0).all())
    for row in fold:
        for f in range(folds):
            left = torch.bincount(y[row != f], minlength=6)
            assert int(left.min()) > 0
        for c in range(1, 6):
            sizes = torch.bincount(row[y == c], minlength=folds)
            assert int(sizes.max()) - int(sizes.min()) <= 1


def test_folds_do_not_depend_on_the_order_or_the_numbers_of_classes():
    """Examples move with their folds if the support is permuted and the classes are numbered differently."""
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(12) % 3
    order = torch.randn(12, generator=generator)
    p, numbers = torch.randperm(12, generator=generator), torch.tensor([2, 0, 1])
    assert torch.equal(class_folds(numbers[y[p]], order[p], 3), class_folds(y, order, 3)[p])


def test_examples_of_equal_order_are_in_different_folds():
    """Equal examples must not all be in one fold, which would leave their class empty."""
    assert class_folds(torch.zeros(4, dtype=torch.int64), torch.zeros(4), 2).tolist() == [0, 1, 0, 1]


# --- Span ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "D"), [(3, 7), (7, 3), (1, 4)])
def test_coordinates_in_the_span_keep_inner_products_and_give_back_the_vectors(m, D):
    """Also for more vectors than dimensions, and for vectors that are multiples of each other."""
    z = torch.randn(2, m, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z[0, -1] = 2 * z[0, 0]
    coordinates, basis = span_coordinates(z)
    R = min(m, D)
    assert coordinates.shape == (2, m, R)
    assert torch.allclose(basis @ basis.mT, torch.eye(R, dtype=z.dtype).expand(2, -1, -1), atol=1e-12)
    assert torch.allclose(coordinates @ basis, z, atol=1e-12)
    assert torch.allclose(coordinates @ coordinates.mT, z @ z.mT, atol=1e-12)
