"""Episodes as values: constructors that check, pytrees that vmap takes, specs that round-trip, results that print."""

import json

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree

from kshot import Episode, Examples, Needs, Objective, Result, Support, TaskSpec
from kshot.checks import check, mismatches
from kshot.episode import map_tensors, one_task, slice_tasks, stack
from kshot.errors import DataError, MisfitError

SPEC = TaskSpec(kind="classification", input_shape=(3,), way=5, shot=1, query=2)


def episode(b: int = 2) -> Episode:
    x = torch.arange(b * 6.0).reshape(b, 3, 2)
    y = torch.arange(3).expand(b, 3)
    return Episode(Support(x, y, key=torch.arange(b), way=3), Examples(x + 1, y))


def test_support_of_adds_b_and_finds_the_way():
    """A user's own five images: uint8 becomes fractions."""
    s = Support.of(np.full((4, 1, 2, 2), 255, np.uint8), [0, 1, 1, 2])
    assert s.x.shape == (1, 4, 1, 2, 2)
    assert float(s.x.max()) == 1.0
    assert s.y.tolist() == [[0, 1, 1, 2]]
    assert s.way == 3


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((3, 2)), [0, 1], r"\(3, 2\) inputs and \(2,\) labels"),
        (np.zeros((3, 2)), [0, 1, 3], r"labels are \{0, 1, 3\}, expected exactly 0..2"),
        (np.full((2, 2), np.nan), [0, 1], r"4 of 4 values are NaN"),
        (np.zeros((0, 2)), np.zeros(0, int), "expected exactly"),
    ],
)
def test_malformed_supports_are_refused(x, y, message):
    """With what came and what was expected."""
    with pytest.raises(DataError, match=message):
        Support.of(x, y)


def test_vmap_takes_episodes():
    """As pytrees: B is mapped over, what is absent stays absent."""
    means = torch.func.vmap(lambda e: e.support.x.mean() + e.query.x.sum())(episode(3))
    e = episode(3)
    by_hand = torch.stack([e.support.x[b].mean() + e.query.x[b].sum() for b in range(3)])
    assert torch.allclose(means, by_hand)


def test_pytrees_round_trip_and_keep_what_is_no_tensor():
    """way, source and origin are context; an objective's tensors are leaves."""
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


def test_slices_and_stacks_are_inverse():
    """Tasks apart and together again; one task loses B."""
    e = episode(3)
    again = stack([slice_tasks(e, b, b + 1) for b in range(3)])
    assert torch.equal(again.support.x, e.support.x)
    assert torch.equal(again.support.key, e.support.key)
    assert one_task(e, 1).support.x.shape == (3, 2)


def test_specs_round_trip_through_json():
    """Ranges, provisions and shapes survive."""
    spec = TaskSpec(
        kind="classification",
        input_shape=(1, 28, 28),
        input_range=(0, 1),
        way=(5, 20),
        shot=1,
        query=5,
        block=8,
        provides={"semantics", "identities"},
        semantics_shape=(7,),
    )
    assert TaskSpec.from_json(spec.to_json()) == spec
    assert spec.varies
    assert json.loads(spec.to_json())["way"] == [5, 20]


@pytest.mark.parametrize(
    "wrong", [{"kind": "guessing"}, {"way": 0}, {"shot": -1}, {"way": (5, 2)}, {"provides": {"luck"}}]
)
def test_malformed_specs_are_refused(wrong):
    """At construction, not at sampling."""
    with pytest.raises(DataError, match="expected"):
        TaskSpec(**{"kind": "classification", "input_shape": (1,), **wrong})


@pytest.mark.parametrize(
    ("needs", "spec", "reason"),
    [
        ({"kinds": ("regression",)}, {}, "the tasks are classification"),
        ({"semantics": "required"}, {}, "requires semantics"),
        ({"unlabelled": "required"}, {}, "requires unlabelled"),
        ({"external": True}, {}, "requires external"),
        ({}, {"way": (2, 5)}, "the way varies"),
        ({}, {"shot": 0, "provides": {"semantics"}}, "can't do without labelled examples"),
        ({"zero_shot": True}, {"shot": 0}, "no semantics to tell the classes by"),
        ({"input_range": (0, 1)}, {}, "unbounded"),
        ({"input_range": (0, 1)}, {"input_range": (-1, 1)}, "lie in [-1.0, 1.0]"),
    ],
)
def test_each_mismatch_is_found(needs, spec, reason):
    """By values alone."""
    values = {"kind": "classification", "input_shape": (3,), "way": 5, "shot": 1, "query": 2, **spec}
    found = mismatches(Needs(**needs), TaskSpec(**values))
    assert len(found) == 1
    assert reason in found[0]


def test_surplus_is_no_mismatch_and_all_mismatches_come_at_once():
    """Tasks may provide more than is needed; a misfit lists everything."""
    assert mismatches(Needs(), TaskSpec(**{**SPEC.to_dict(), "provides": ["semantics", "unlabelled"]})) == []

    class Greedy:
        needs = Needs(kinds=("control",), semantics="required", external=True)

    with pytest.raises(MisfitError) as caught:
        check(Greedy, SPEC)
    assert str(caught.value).count("\n  - ") == 3
    assert "Greedy" in str(caught.value)


def test_a_learner_is_held_to_what_it_was_built_for():
    """Another input shape never; another way only where it says so."""
    other = TaskSpec(kind="classification", input_shape=(4,), way=20, shot=1, query=2)
    assert len(mismatches(Needs(), other, built_for=SPEC)) == 2
    assert len(mismatches(Needs(variable_way=True), other, built_for=SPEC)) == 1


def test_results_say_what_the_figure_means_and_round_trip():
    """Mean and interval by hand: 1.96 s / sqrt(n)."""
    r = Result(
        {"accuracy": np.array([0.5, 1.0, 0.75, 0.75]), "curve": np.ones((4, 3))},
        kind="classification",
        split="test",
        shape={"way": 5, "shot": 1},
        normalisation="inductive",
    )
    assert r.mean == 0.75
    assert r.interval == pytest.approx(1.96 * np.sqrt(0.125 / 3) / 2)
    assert str(r) == "75.00 ± 20.00 % accuracy (4 episodes, test, 5-way 1-shot, inductive)"
    again = Result.from_json(r.to_json())
    assert again.scores["curve"].shape == (4, 3)
    assert str(again) == str(r)
    with pytest.raises(DataError, match="no result of kshot"):
        Result.from_json("{}")
