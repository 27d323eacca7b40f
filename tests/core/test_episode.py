"""Episodes are values: their constructors check, vmap takes them as pytrees, and they can be cut and joined."""

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree

import kshot.episode
from kshot import Episode, Examples, Objective, Support
from kshot.episode import Metered, Rollout, map_tensors, one_task, slice_tasks, stack
from kshot.errors import DataError
from kshot.testing import sample_tasks


def episode(b: int = 2) -> Episode:
    """Make ``b`` tasks with different numbers in every input."""
    x = torch.arange(b * 6.0).reshape(b, 3, 2)
    y = torch.arange(3).expand(b, 3)
    return Episode(Support(x, y, key=torch.arange(b), way=3), Examples(x + 1, y))


def test_support_of_adds_the_axis_b_and_counts_the_classes():
    """Four images of a user; uint8 becomes fractions of 255."""
    s = Support.of(np.full((4, 1, 2, 2), 255, np.uint8), [0, 1, 1, 2])
    assert s.x.shape == (1, 4, 1, 2, 2)
    assert float(s.x.max()) == 1.0
    assert s.y.tolist() == [[0, 1, 1, 2]]
    assert s.way == 3


@pytest.mark.parametrize("way", [None, 2])
def test_support_of_takes_targets_of_regression_only_on_request(way):
    """Whole numbers may be either, so the caller says which: with ``way=None`` they are targets, as float32."""
    s = Support.of([[0.0], [2.0]], [0, 1], way=way)
    assert s.y.dtype == (torch.float32 if way is None else torch.int64)
    assert s.y.tolist() == [[0, 1]]
    assert s.way == way


def test_a_support_does_not_change_with_the_arrays_it_was_made_from():
    """A user's buffer is used again for the next picture; that must not change the support."""
    x, y = np.zeros((2, 3), np.float32), np.array([0, 1])
    query_x, unlabelled = torch.zeros(4, 3), torch.zeros(5, 3)
    s = Support.of(x, y, query_x=query_x, unlabelled=unlabelled)
    x[:], y[:] = 7, 7
    query_x.fill_(7)
    unlabelled.fill_(7)
    for part in (s.x, s.query_x, s.unlabelled):
        assert float(part.max()) == 0
    assert s.y.tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((3, 2)), [0, 1], r"got 3 examples and labels of shape \(2,\)"),
        (np.zeros((3, 2)), [0, 1, 3], r"got labels \{0, 1, 3\}, expected exactly 0..2"),
        (np.full((2, 2), np.nan), [0, 1], r"got 4 of 4 values that are NaN"),
        (np.zeros((0, 2)), np.zeros(0, int), "expected exactly"),
        (3.0, [0], "got x without an axis"),
    ],
)
def test_malformed_supports_are_refused(x, y, message):
    """The message says what was given and what was expected."""
    with pytest.raises(DataError, match=message):
        Support.of(x, y)


def test_vmap_takes_episodes():
    """Episodes are pytrees: vmap maps over B, and absent fields stay absent."""
    means = torch.func.vmap(lambda e: e.support.x.mean() + e.query.x.sum())(episode(3))
    e = episode(3)
    by_hand = torch.stack([e.support.x[b].mean() + e.query.x[b].sum() for b in range(3)])
    assert torch.allclose(means, by_hand)


def test_pytrees_round_trip_and_keep_fields_that_are_no_tensors():
    """Way and origin are context; the tensors of an objective are leaves."""
    objective = Objective(torch.ones(2, 4), (torch.full((2,), 3.0),), lambda p, d: d[0] * p.sum())
    e = Episode(
        Support(torch.zeros(2, 0, 1), torch.zeros(2, 0), source=objective),
        Examples(torch.zeros(2, 1), torch.zeros(2, 1)),
    )
    leaves, structure = pytree.tree_flatten(e)
    assert len(leaves) == 7
    again = pytree.tree_unflatten(leaves, structure)
    assert again.support.source.loss(torch.ones(2, 4)).tolist() == [12.0, 12.0]
    doubled = map_tensors(lambda t: t * 2, e)
    assert doubled.support.source.initial.tolist() == [[2.0] * 4] * 2


@pytest.mark.parametrize("cls", [Episode, Examples, Support, Rollout, Metered, Objective])
def test_values_keep_their_serialised_names(cls):
    """Stored pytrees refer to these names, also where a class has moved to another module."""
    assert pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE[f"kshot.episode.{cls.__name__}"] is cls
    assert getattr(kshot.episode, cls.__name__) is cls


def test_slices_and_stacks_are_inverse():
    """Tasks that are cut apart and stacked are the same again; ``one_task`` drops the axis B."""
    e = episode(3)
    again = stack([slice_tasks(e, b, b + 1) for b in range(3)])
    assert torch.equal(again.support.x, e.support.x)
    assert torch.equal(again.support.key, e.support.key)
    assert one_task(e, 1).support.x.shape == (3, 2)


def test_a_support_has_examples():
    """Targets of regression are checked as class numbers are."""
    for more in ({}, {"way": None}):
        with pytest.raises(DataError):
            Support.of(np.zeros((0, 2)), np.zeros(0), **more)


@pytest.mark.parametrize(("queries", "given"), [("independent", False), ("joint", False), ("at_adapt", True)])
def test_only_a_learner_that_asks_for_them_gets_the_query_inputs(queries, given):
    """Joint queries affect each other, but not the adaptation."""
    support = Support.of([[0.0], [1.0]], [0, 1])
    episode = Episode(support, Examples(torch.tensor([[[0.2]]]), torch.tensor([[0]])))
    assert (episode.for_adapting(queries).query_x is episode.query.x) is given
    assert (episode.for_adapting(queries).query_x is None) is not given


def test_a_slice_names_its_own_episodes():
    """Messages and seeds are made of these numbers."""
    batch = sample_tasks.classification().sample("train", [4, 7, 9])
    part = slice_tasks(batch, 1, 3)
    assert part.origin.indices == (7, 9)
    assert np.array_equal(part.origin.classes, batch.origin.classes[1:3])
    assert torch.equal(part.support.x, batch.support.x[1:3])
