"""The kit's rules for tasks: good tasks of every kind keep them, and broken ones are rejected by the rule's name."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
import pytest
import torch

from kshot import ClassificationTasks, Episode, Pool, TaskSpec
from kshot.episode import as_inputs
from kshot.preparing import Preparation
from kshot.registry import Plugin
from kshot.testing import RuleViolation, rules, sample_tasks, suite
from kshot.testing.rulebook.task_examples import bernstein
from kshot.testing.source import Source

# --- Good tasks -----------------------------------------------------------------------------------

VARYING: dict[str, Any] = {"way": (2, 4), "shot": (1, 3), "query": 2, "block": 4}
GOOD: list[tuple[Any, dict[str, Any]]] = [
    (sample_tasks.classification, {}),
    (sample_tasks.classification, {**VARYING, "semantics": 4, "unlabelled": 3}),
    (sample_tasks.classification, {"way": (2, 4), "block": 1}),
    (sample_tasks.classification, {"shot": 0, "semantics": 4}),
    (sample_tasks.classification, {"input_shape": (1, 16, 16), "unlabelled": 3, "external": 2}),
    (sample_tasks.Lines, {}),
    (sample_tasks.LabelStream, {}),
    (sample_tasks.Copying, {}),
    (sample_tasks.Quadratics, {}),
]
IN_THIS_PROCESS = [rule.name for rule in rules("tasks") if rule.name != "same-episodes-in-another-process"]


@pytest.mark.parametrize(("tasks", "options"), GOOD)
def test_good_tasks_keep_every_rule(tasks: Any, options: dict[str, Any]) -> None:
    """A rule that legitimate tasks break would make the kit useless."""
    tried = suite(tasks=tasks, options=options)
    for rule in IN_THIS_PROCESS:
        tried.verify(rule)


def test_good_tasks_are_the_same_in_another_process() -> None:
    """One case is enough, because each starts a process."""
    tasks, options = GOOD[1]
    assert suite(tasks=tasks, options=options).verify("same-episodes-in-another-process") is None


def test_varying_tasks_with_semantics_are_tried_by_every_rule() -> None:
    """Every rule for classification applies to these tasks, so every rule applies to some tasks."""
    skipped = {rule: suite(tasks=GOOD[1][0], options=GOOD[1][1]).verify(rule) for rule in IN_THIS_PROCESS}
    left_out = {rule for rule, reason in skipped.items() if reason and "kind" not in reason}
    assert left_out == {"manifest-is-true", "preparation-travels"}
    assert skipped["objectives-can-be-minimised"] == "their kind is classification"


def test_tasks_that_are_given_built_say_what_can_not_be_tested() -> None:
    """Another process or seed needs a factory; all other rules are tested."""
    report = suite(tasks=sample_tasks.Lines()).run()
    assert report.ok
    skipped = {f.rule: f.message for f in report if f.outcome == "skipped"}
    assert "given built" in skipped["same-episodes-in-another-process"]
    assert "given built" in skipped["other-seed-other-episodes"]


# --- Broken tasks ---------------------------------------------------------------------------------


class Spoilt:
    """Good tasks with one fault: subclasses override ``spoil``."""

    options: dict[str, Any] = {}

    def __init__(self, seed: int = 0) -> None:
        self.of: Any = sample_tasks.classification(seed=seed, **self.options)
        self.seed = seed
        self.spec: TaskSpec = self.of.spec

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        return self.spoil(self.of.sample(split, indices))

    def spoil(self, episode: Episode) -> Episode:
        return episode


def with_support(episode: Episode, **fields: Any) -> Episode:
    return attrs.evolve(episode, support=attrs.evolve(episode.support, **fields))


def with_origin(episode: Episode, **fields: Any) -> Episode:
    assert episode.origin is not None
    return attrs.evolve(episode, origin=attrs.evolve(episode.origin, **fields))


class Walking(Spoilt):
    """Adds noise from a generator that advances with each call."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def spoil(self, episode: Episode) -> Episode:
        x = episode.support.x
        return with_support(episode, x=x + 0.1 * torch.randn(x.shape, generator=self.generator))


class ByPlace(Spoilt):
    """Lets the position in the batch change an episode."""

    def spoil(self, episode: Episode) -> Episode:
        return with_support(episode, x=episode.support.x + torch.arange(episode.size).view(-1, 1, 1))


class GlobalSeed(Spoilt):
    """Is built with numbers from torch's global generator."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.shift = torch.rand(())

    def spoil(self, episode: Episode) -> Episode:
        return with_support(episode, x=episode.support.x + self.shift)


class ByHash(Spoilt):
    """Uses Python's hash of a string, which PYTHONHASHSEED changes."""

    def spoil(self, episode: Episode) -> Episode:
        return with_support(episode, x=episode.support.x + hash("train") % 1000)


class Seedless(Spoilt):
    """Has the option seed, but ignores it."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(0)


class Lending(Spoilt):
    """Returns its own tensors instead of copies."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.kept: dict[Any, Episode] = {}

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        key = (split, *indices)
        if key not in self.kept:
            self.kept[key] = self.of.sample(split, indices)
        return self.kept[key]


class Unwritable(Spoilt):
    """Has a preparation with an object that only this process knows."""

    preparation = Preparation(as_inputs, {"size": object})


class Nowhere(Spoilt):
    """Has a preparation with a function that is in no module."""

    preparation = Preparation(lambda raw: as_inputs(raw), {})


class Foreign(Spoilt):
    """Has a preparation with a function that no plugin registered."""

    preparation = Preparation(os.getcwd, {})  # type: ignore[arg-type]


class AnySplit(Spoilt):
    """Samples from the first split if the split is unknown."""

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        return super().sample(split if split in self.spec.splits else "train", indices)


class Unpicklable(Spoilt):
    """Remembers a local function after it was used."""

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        self.again = lambda: self.sample(split, indices)
        return super().sample(split, indices)


class KeyErrors(Spoilt):
    """Raises KeyError for an unknown split."""

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        {"train": 1, "val": 2, "test": 3}[split]
        return super().sample(split, indices)


class Padding(Spoilt):
    """Samples episodes of two blocks in the shape of the first one."""

    options = {"way": (2, 4), "block": 4}

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        first = [i for i in indices if i // 4 == indices[0] // 4]
        return self.of.sample(split, first + first[:1] * (len(indices) - len(first)))


class Wider(Spoilt):
    """Has more queries than the spec says."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.spec = attrs.evolve(self.spec, query=2)


class WrongWay(Spoilt):
    """Has another way than the spec says."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.spec = attrs.evolve(self.spec, way=4)


class OutOfRange(Spoilt):
    """Has images with values above 1."""

    options = {"input_shape": (1, 16, 16)}

    def spoil(self, episode: Episode) -> Episode:
        return with_support(episode, x=episode.support.x * 255)


class Doubles(Spoilt):
    """Has float64 inputs."""

    def spoil(self, episode: Episode) -> Episode:
        return with_support(episode, x=episode.support.x.double())


class OneKey(Spoilt):
    """Has the same key for all episodes."""

    def spoil(self, episode: Episode) -> Episode:
        return with_support(episode, key=torch.zeros_like(episode.support.key))


class Nameless(Spoilt):
    """Samples episodes without an origin."""

    def spoil(self, episode: Episode) -> Episode:
        return attrs.evolve(episode, origin=None)


class Telling(Spoilt):
    """Puts the queries into the support."""

    def spoil(self, episode: Episode) -> Episode:
        return with_support(episode, query_x=episode.query.x)


class NothingUnlabelled(Spoilt):
    """States unlabelled examples in the spec, but has none."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        provides: Any = {*self.spec.provides, "unlabelled"}
        self.spec = attrs.evolve(self.spec, provides=provides)


class Leaking(Spoilt):
    """Has an example of the support as the first query of each task."""

    def spoil(self, episode: Episode) -> Episode:
        assert episode.origin is not None
        assert episode.origin.support_ids is not None
        assert episode.origin.query_ids is not None
        ids, x, y = episode.origin.query_ids.copy(), episode.query.x.clone(), episode.query.y
        label = y[:, 0]
        place = (episode.support.y == label[:, None]).int().argmax(1)
        for b, s in enumerate(place.tolist()):
            ids[b, 0], x[b, 0] = episode.origin.support_ids[b, s], episode.support.x[b, s]
        return with_origin(attrs.evolve(episode, query=attrs.evolve(episode.query, x=x)), query_ids=ids)


class Unlabelled(Spoilt):
    """A legitimate case: unlabelled examples without identities."""

    options = {"unlabelled": 4}

    def spoil(self, episode: Episode) -> Episode:
        return with_origin(episode, unlabelled_ids=None, unlabelled_y=None)


class BrightUnlabelled(Unlabelled):
    """Has unlabelled images with values above 1."""

    options = {"unlabelled": 4, "input_shape": (1, 16, 16)}

    def spoil(self, episode: Episode) -> Episode:
        assert episode.support.unlabelled is not None
        return with_support(super().spoil(episode), unlabelled=episode.support.unlabelled * 255)


class LeakingUnlabelled(Unlabelled):
    """Has the first query among the unlabelled examples."""

    def spoil(self, episode: Episode) -> Episode:
        assert episode.origin is not None
        assert episode.origin.unlabelled_ids is not None
        assert episode.origin.query_ids is not None
        assert episode.support.unlabelled is not None
        ids, x = episode.origin.unlabelled_ids.copy(), episode.support.unlabelled.clone()
        ids[:, 0], x[:, 0] = episode.origin.query_ids[:, 0], episode.query.x[:, 0]
        return with_origin(with_support(episode, unlabelled=x), unlabelled_ids=ids)


class RepeatedUnlabelled(Unlabelled):
    """Has an unlabelled example twice."""

    def spoil(self, episode: Episode) -> Episode:
        assert episode.origin is not None
        assert episode.origin.unlabelled_ids is not None
        assert episode.support.unlabelled is not None
        ids, x = episode.origin.unlabelled_ids.copy(), episode.support.unlabelled.clone()
        ids[:, 0], x[:, 0] = ids[:, 1], x[:, 1]
        return with_origin(with_support(episode, unlabelled=x), unlabelled_ids=ids)


class SortedUnlabelled(Unlabelled):
    """Has unlabelled examples in the order of their hidden labels."""

    options = {"unlabelled": 12}

    def spoil(self, episode: Episode) -> Episode:
        assert episode.origin is not None
        assert episode.origin.unlabelled_y is not None
        assert episode.support.unlabelled is not None
        order = np.argsort(episode.origin.unlabelled_y, axis=1, kind="stable")
        arrays = {
            name: np.take_along_axis(getattr(episode.origin, name), order, 1)
            for name in ("unlabelled_ids", "unlabelled_y")
        }
        rows = torch.arange(episode.size)[:, None]
        x = episode.support.unlabelled[rows, torch.from_numpy(order)]
        return with_origin(with_support(episode, unlabelled=x), **arrays)


def numbers(split: str, classes: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(split))
    return torch.randn(classes * 8, 3, generator=generator)


LABELS = np.repeat(np.arange(6), 8)


def same_class_names(seed: int = 0) -> ClassificationTasks:
    """Build tasks whose splits have classes of the same names."""
    pools = {s: Pool.of(numbers(s), LABELS, names=[f"class {c}" for c in range(6)]) for s in ("train", "validate")}
    return ClassificationTasks(pools, way=3, query=3, seed=seed)


def same_rows(seed: int = 0) -> ClassificationTasks:
    """Build tasks whose splits are the same rows of one table, under other names."""
    x = numbers("train")
    pools = {s: Pool.of(x, LABELS, names=[f"{s} {c}" for c in range(6)]) for s in ("train", "test")}
    return ClassificationTasks(pools, way=3, query=3, seed=seed)


def same_contents(seed: int = 0) -> ClassificationTasks:
    """Build tasks whose splits are equal tables."""
    pools = {s: Pool.of(numbers("train"), LABELS) for s in ("train", "test")}
    return ClassificationTasks(pools, way=3, query=3, seed=seed)


class SharedExamples(Spoilt):
    """Has the same examples in all splits, declares a split by example, and has no pool to look at."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.spec = attrs.evolve(self.spec, split_by="example")


class Sorted(Spoilt):
    """Assigns labels in the order of class numbers."""

    def spoil(self, episode: Episode) -> Episode:
        assert episode.origin is not None
        assert episode.origin.classes is not None
        order = np.argsort(episode.origin.classes, axis=1)
        rank = torch.from_numpy(np.argsort(order, axis=1))
        support = attrs.evolve(episode.support, y=rank.gather(1, episode.support.y))
        query = attrs.evolve(episode.query, y=rank.gather(1, episode.query.y))
        classes = np.sort(episode.origin.classes, axis=1)
        return with_origin(attrs.evolve(episode, support=support, query=query), classes=classes)


class Unmoved(Spoilt):
    """Has semantics in the order of class numbers, whatever the labels."""

    options = {"semantics": 4}

    def spoil(self, episode: Episode) -> Episode:
        assert episode.origin is not None
        assert episode.support.semantics is not None
        order = torch.from_numpy(np.argsort(episode.origin.classes, axis=1))
        semantics = torch.stack([s[o] for s, o in zip(episode.support.semantics, order, strict=True)])
        return with_support(episode, semantics=semantics)


class Captions(Spoilt):
    """A legitimate case: every episode describes a class by another of its noisy captions."""

    options = {"semantics": 4}

    def spoil(self, episode: Episode) -> Episode:
        s = episode.support.semantics
        assert s is not None
        noise = torch.stack(
            [
                torch.randn(s.shape[1:], generator=torch.Generator().manual_seed(k & 0xFFFF))
                for k in episode.support.key.tolist()
            ]
        )
        return with_support(episode, semantics=s + noise)


# Rule, broken tasks, and the other rules that they break inevitably.
BROKEN: list[tuple[str, Any, set[str]]] = [
    ("same-episodes", Walking, {"data-immutable", "same-episodes-in-another-process"}),
    ("same-episodes", ByPlace, set()),
    ("same-episodes", GlobalSeed, {"same-episodes-in-another-process"}),
    ("same-episodes-in-another-process", ByHash, set()),
    ("other-seed-other-episodes", Seedless, set()),
    ("data-immutable", Lending, set()),
    ("preparation-travels", Unwritable, set()),
    ("preparation-travels", Nowhere, set()),
    ("preparation-travels", Foreign, set()),
    ("unknown-split-refused", AnySplit, set()),
    ("copies-sample-alike", Unpicklable, set()),
    ("unknown-split-refused", KeyErrors, set()),
    ("mixed-blocks-refused", Padding, set()),
    ("spec-is-true", Wider, set()),
    ("spec-is-true", WrongWay, set()),
    ("spec-is-true", OutOfRange, set()),
    ("spec-is-true", Doubles, set()),
    ("spec-is-true", OneKey, {"other-seed-other-episodes", "splits-have-own-episodes"}),
    ("spec-is-true", Nameless, {"support-and-query-disjoint"}),
    ("spec-is-true", Telling, set()),
    ("spec-is-true", NothingUnlabelled, set()),
    ("support-and-query-disjoint", Leaking, set()),
    ("spec-is-true", BrightUnlabelled, set()),
    ("unlabelled-disjoint", LeakingUnlabelled, set()),
    ("unlabelled-disjoint", RepeatedUnlabelled, set()),
    ("unlabelled-shuffled", SortedUnlabelled, set()),
    ("splits-disjoint", same_class_names, set()),
    ("splits-disjoint", same_rows, set()),
    ("splits-disjoint", same_contents, set()),
    ("splits-disjoint", SharedExamples, set()),
    ("labels-uniform", Sorted, {"inputs-hide-labels"}),
    ("semantics-move-with-labels", Unmoved, set()),
]


@pytest.mark.parametrize(("rule", "tasks", "also"), BROKEN, ids=lambda v: getattr(v, "__name__", None))
def test_broken_tasks_are_rejected_by_the_rule_they_break(rule: str, tasks: Any, also: set[str]) -> None:
    """The message names the rule, and rules that the tasks keep do not fail."""
    tried = suite(tasks=tasks)
    with pytest.raises(RuleViolation, match=f"^{rule}: .{{20,}}"):
        tried.verify(rule)
    failed = set()
    for other in IN_THIS_PROCESS:
        try:
            tried.verify(other)
        except RuleViolation as violation:
            failed.add(violation.rule)
    assert failed - also == {rule} & set(IN_THIS_PROCESS)


def test_every_rule_for_tasks_has_tasks_that_break_it() -> None:
    """A rule that no test breaks may be one that can't be broken."""
    elsewhere = {
        rule.name
        for rule in rules("tasks")
        if rule.check.__module__.endswith(("rulebook.control", "rulebook.objectives"))
    }
    elsewhere |= {  # test_kit_catches.py
        "splits-have-own-episodes",
        "process-is-left-alone",
        "inputs-hide-labels",
        "queries-shuffled",
        "classes-differ",
    }
    assert {rule for rule, _, _ in BROKEN} | {"manifest-is-true"} | elsewhere == {rule.name for rule in rules("tasks")}


def test_a_manifest_that_says_another_kind_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """``kshot list`` and ``check`` show users the kinds in the manifest."""
    monkeypatch.setattr(Source, "plugin", Plugin("lines", "tasks", "kshot-lines", "1", "x:y", kinds=("control",)))
    with pytest.raises(RuleViolation, match=r"manifest-is-true: got spec.kind regression, expected one of .*: control"):
        suite(tasks=sample_tasks.Lines).verify("manifest-is-true")


def test_a_class_may_have_several_descriptions() -> None:
    """Captions of a class differ between episodes, but are nearer to each other than to those of other classes."""
    assert suite(tasks=Captions).verify("semantics-move-with-labels") is None


def test_unlabelled_examples_may_come_from_elsewhere() -> None:
    """Unlabelled examples without identities are compared with the queries by their contents only."""
    tried = suite(tasks=Unlabelled)
    assert tried.verify("unlabelled-disjoint") is None
    assert "does not say" in (tried.verify("unlabelled-shuffled") or "")
    assert tried.verify("spec-is-true") is None


def test_the_sample_tasks_say_what_their_unlabelled_examples_are() -> None:
    """Compare each label with the pool: it is the class of the example, or -1 if that is not in the episode."""
    tasks: Any = sample_tasks.classification(unlabelled=40)
    episode = tasks.sample("test", [0, 1, 2])
    ids, y = tasks.of.pool("test").table()
    for classes, ids_of_task, labels in zip(
        episode.origin.classes, episode.origin.unlabelled_ids, episode.origin.unlabelled_y, strict=True
    ):
        label_of = {int(c): n for n, c in enumerate(classes)}
        class_of = dict(zip(ids.tolist(), y.tolist(), strict=True))
        assert labels.tolist() == [label_of.get(class_of[i], -1) for i in ids_of_task.tolist()]
        assert set(labels.tolist()) == {-1, 0, 1, 2}


def test_a_local_factory_can_not_be_tried_in_another_process() -> None:
    """The rule that needs another process is reported as not applicable."""
    reason = suite(tasks=lambda: sample_tasks.Lines()).verify("same-episodes-in-another-process")
    assert reason is not None
    assert "top level of a module" in reason


def test_fair_labels_pass_almost_surely() -> None:
    """None of 2,000 random tables exceeds Bernstein's bound at odds of 1e-6, but some exceed 1 / 2.5 of it."""
    generator = np.random.default_rng(0)
    counts = generator.binomial(400, 1 / 5, size=(2000, 25))
    bound = bernstein(400 / 5 * 4 / 5, np.log(2 * 25 / 1e-6))
    farthest = np.abs(counts - 80).max(1)
    assert (farthest < bound).all()
    assert (farthest > bound / 2.5).any()
    assert bound < 60  # sorted labels give 400 or 0 where 80 are expected


def test_the_sample_tasks_are_addressable_by_hand() -> None:
    """Step t + 1 of a label stream shows the label of step t, computed here from the episode itself."""
    episode = sample_tasks.LabelStream(way=3, length=8).sample("train", [4])
    shown, y = episode.query.x[0, :, 4:], episode.query.y[0]
    assert shown[0].tolist() == [0, 0, 0]
    assert [row.index(1) for row in shown[1:].int().tolist()] == y[:-1].tolist()


def test_a_spec_of_sample_tasks_is_plain() -> None:
    """Specs can be written as JSON."""
    assert json.loads(sample_tasks.Copying().spec.to_json())["kind"] == "sequence"


def repeating(seed: int = 0) -> ClassificationTasks:
    """Build tasks of data in which half of the examples are duplicates of others, as of silence or white paper."""
    pools = {}
    for split in ("train", "test"):
        x = numbers(split).view(6, 8, 3)
        x[:, 4:] = x[:, :1]
        pools[split] = Pool.of(x.view(-1, 3), LABELS, names=[f"{split} {c}" for c in range(6)])
    return ClassificationTasks(pools, way=3, query=3, seed=seed)


def test_duplicates_in_the_data_are_no_overlap() -> None:
    """Queries that repeat inputs of the support also repeat each other then."""
    tried = suite(tasks=repeating)
    for rule in IN_THIS_PROCESS:
        tried.verify(rule)


def test_one_query_per_class_may_be_in_any_order() -> None:
    """With one query per class, no two queries have one label, and each label is equally often in each place."""
    tried = suite(tasks=sample_tasks.classification, options={"query": 1})
    assert tried.verify("queries-shuffled") is None
    assert tried.verify("support-and-query-disjoint") is None
