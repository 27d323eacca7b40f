"""Learners and tasks are compared by values alone, and malformed episodes are refused before any compute."""

import attrs
import pytest
import torch

from kshot import ClassificationTasks, Engine, Needs, Pool, Support, TaskSpec
from kshot.checks import check, check_episode, mismatches
from kshot.errors import DataError, MisfitError
from kshot.testing import sample_learner, sample_tasks

SPEC = TaskSpec(kind="classification", input_shape=(3,), way=5, shot=1, query=2)


@pytest.mark.parametrize(
    ("needs", "spec", "reason"),
    [
        ({"kinds": ("regression",)}, {}, "the tasks are classification"),
        ({"semantics": "required"}, {}, "requires semantics"),
        ({"unlabelled": "required"}, {}, "requires unlabelled"),
        ({"external": True}, {}, "requires external"),
        ({}, {"way": (2, 5)}, "the way varies"),
        ({}, {"shot": 0, "provides": {"semantics"}}, "can't do without labelled examples"),
        ({"zero_shot": True}, {"shot": 0}, "no semantics to distinguish the classes by"),
        ({"input_range": (0, 1)}, {}, "unbounded"),
        ({"input_range": (0, 1)}, {"input_range": (-1, 1)}, "lie in [-1.0, 1.0]"),
        ({"input_range": (0, 1)}, {"input_range": (0, 255)}, "lie in [0.0, 255.0]"),
    ],
)
def test_each_mismatch_is_found(needs, spec, reason):
    """Each need that the tasks do not meet is one reason."""
    values = {"kind": "classification", "input_shape": (3,), "way": 5, "shot": 1, "query": 2, **spec}
    reasons = mismatches(Needs(**needs), TaskSpec(**values))
    assert len(reasons) == 1
    assert reason in reasons[0]


def test_surplus_is_no_mismatch_and_all_mismatches_are_reported_at_once():
    """Tasks may provide more than is needed; the message of a misfit lists every reason."""
    assert mismatches(Needs(), TaskSpec(**{**SPEC.to_dict(), "provides": ["semantics", "unlabelled"]})) == []

    class Greedy:
        needs = Needs(kinds=("control",), semantics="required", external=True)

    with pytest.raises(MisfitError) as caught:
        check(Greedy, SPEC)
    assert str(caught.value).count("\n  - ") == 3
    assert "Greedy" in str(caught.value)


def test_a_learner_is_compared_with_the_tasks_it_was_built_for():
    """It never takes another input shape, and another way only if its needs say so."""
    other = TaskSpec(kind="classification", input_shape=(4,), way=20, shot=1, query=2)
    assert len(mismatches(Needs(), other, built_for=SPEC)) == 2
    assert len(mismatches(Needs(variable_way=True), other, built_for=SPEC)) == 1


def test_only_objectives_may_have_another_number_of_parameters():
    """In other kinds ``target_shape`` is the shape of a prediction, which no declaration leaves open."""
    needs = Needs(kinds=("objective", "regression"), variable_parameters=True)

    def change(kind, needs):
        few, many = (TaskSpec(kind=kind, input_shape=(), target_shape=(parameters,), query=5) for parameters in (3, 4))
        return mismatches(needs, many, built_for=few)

    assert change("objective", needs) == []
    assert change("objective", Needs(kinds=("objective",))) == [
        "the learner was built for target_shape (3,), the tasks have (4,)"
    ]
    assert len(change("regression", needs)) == 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda e: e.query.x.__setitem__((0, 1, 0), torch.inf), "query.x: got 1 of 24 values that are NaN or infinite"),
        (lambda e: e.query.y.__setitem__((0, 0), 7), r"query.y: got labels \d..7, expected 0..2"),
        (lambda e: e.support.y.copy_(torch.zeros(6)), "support: got no example of label 1 in task 0"),
    ],
)
def test_malformed_episodes_are_refused(spoil, message):
    """The message names the tensor and the first place that is wrong."""
    pool = Pool.of(torch.arange(216.0).reshape(108, 2), torch.arange(12).repeat_interleave(9))
    tasks = ClassificationTasks({"train": pool}, way=3, shot=2, query=4)
    e = tasks.sample("train", [0])
    object.__setattr__(e.support, "y", e.support.y.clone())
    spoil(e)
    with pytest.raises(DataError, match=message):
        check_episode(e, tasks.spec, "these tasks")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("x", [[[0.0] * 6] * 6], r"support\.x: got list, expected a dense tensor"),
        ("x", None, r"support\.x: got NoneType, expected a dense tensor"),
        ("x", torch.tensor(0.0), r"support\.x: got a tensor without axes"),
        ("x", torch.zeros(1, 6, 6).to_sparse(), r"support\.x: got a tensor that is torch\.sparse_coo"),
        ("x", torch.zeros(1, 6, 6, device="meta"), r"support\.x: got a tensor that is meta"),
        ("x", torch.zeros(6), r"support\.x: got shape \(6,\), expected \[1, n, 6\]"),
        ("y", "labels", r"support\.y: got str, expected a dense tensor"),
        ("key", torch.tensor(0), r"support\.key: got a tensor without axes"),
        ("way", "3", r"got support\.way '3', expected N, an int"),
        ("way", 2.5, r"got support\.way 2\.5, expected N, an int"),
        ("unlabelled", torch.full((1, 2, 6), torch.nan), r"support\.unlabelled: got 12 of 12 values that are NaN"),
        ("unlabelled", torch.zeros(1, 2, 5), r"support\.unlabelled: got shape \(1, 2, 5\), expected \[1, n, 6\]"),
        ("semantics", [[1.0]], r"support\.semantics: got list, expected a dense tensor"),
    ],
)
def test_an_episode_that_has_no_tensors_is_refused(field, value, message):
    """Tasks of a third party may return anything."""
    tasks = sample_tasks.classification()
    episode = tasks.sample("train", [0])
    episode = attrs.evolve(episode, support=attrs.evolve(episode.support, **{field: value}))
    with pytest.raises(DataError, match=f"^their tasks.*{message}"):
        check_episode(episode, tasks.spec, "their tasks")


@pytest.mark.parametrize("value", [None, 3, "episode", [], torch.zeros(2), Support.of([[0.0]], [0])])
def test_tasks_that_return_no_episode_are_refused(value):
    """The message names the tasks."""

    class Theirs:
        spec, seed = sample_tasks.classification().spec, 0

        def sample(self, split, indices):
            return value

    engine = Engine(sample_learner.NearestMean(Theirs.spec), Theirs())
    with pytest.raises(DataError, match=r"Theirs, split 'train': got .*, expected an Episode"):
        engine.train(1)


@pytest.mark.parametrize("part", ["support", "query"])
def test_targets_that_are_not_finite_are_refused(part):
    """One NaN target makes the loss of all tasks NaN."""
    lines = sample_tasks.Lines()
    e = lines.sample("train", [0, 1])
    getattr(e, part).y[1, 0] = torch.nan
    with pytest.raises(DataError, match=rf"{part}.y: got 1 of \d+ values that are NaN or infinite"):
        check_episode(e, lines.spec, "these tasks")


def test_a_learner_may_play_as_many_rollouts_as_the_tasks_allow():
    """And no more."""
    spec = TaskSpec(kind="control", input_shape=(2,), target_shape=(2,), rollouts=2)
    assert mismatches(Needs(kinds=("control",), rollouts=2), spec) == []
    assert len(mismatches(Needs(kinds=("control",), rollouts=3), spec)) == 1


def test_tasks_of_demonstrations_have_an_environment_and_may_lack_actions():
    """The source of the query is checked; classes that are actions need not all occur, and learners must allow this."""
    for discrete in (False, True):
        tasks = sample_tasks.Demonstrations(discrete)
        episode = tasks.sample("train", range(3))
        check_episode(episode, tasks.spec, "mine")
        without = attrs.evolve(episode, query=attrs.evolve(episode.query, source=None))
        with pytest.raises(DataError, match=r"mine: query.source: got NoneType, expected an environment"):
            check_episode(without, tasks.spec, "mine")
    assert set(episode.support.y[0].tolist()) != {0, 1}
    wrong = attrs.evolve(episode, query=attrs.evolve(episode.query, y=episode.query.y + 2))
    with pytest.raises(DataError, match=r"query.y: got labels"):
        check_episode(wrong, tasks.spec, "mine")
    (reason,) = mismatches(Needs(), tasks.spec)
    assert "labels are actions of demonstrations" in reason
    assert mismatches(Needs(absent_labels=True), tasks.spec) == []
    assert mismatches(Needs(kinds=("regression",)), sample_tasks.Demonstrations().spec) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"x": torch.zeros(2, 6, 5)}, "external.x: got shape (2, 6, 5), expected [2, n, 6]"),
        ({"x": torch.full((2, 6, 6), torch.nan)}, "external.x: got 72 of 72 values that are NaN or infinite"),
        ({"y": torch.full((2, 6), 10)}, "external.y: got labels 10..10, expected 0..9"),
        ({"y": torch.full((2, 6), -1)}, "external.y: got labels -1..-1, expected 0..9"),
        ({"y": torch.zeros(2, 6)}, "external.y: got torch.float32"),
        ({"y": torch.zeros(2, 5, dtype=torch.int64)}, "expected int64 of shape (2, 6)"),
    ],
)
def test_external_examples_are_what_the_spec_says(wrong, message):
    """Their inputs go through the network of the tasks, and a label out of range is an error of an index."""
    tasks = sample_tasks.classification(external=6)
    episode = tasks.sample("train", [0, 1])
    check_episode(episode, tasks.spec, "my tasks")
    with pytest.raises(DataError, match=r"^my tasks: external") as error:
        check_episode(attrs.evolve(episode, external=attrs.evolve(episode.external, **wrong)), tasks.spec, "my tasks")
    assert message in str(error.value)
    # Without names of the classes, the targets may be of any sort.
    unnamed = attrs.evolve(tasks.spec, external_classes=())
    if "y" in wrong:
        check_episode(attrs.evolve(episode, external=attrs.evolve(episode.external, **wrong)), unnamed, "my tasks")
