"""The view: a division that never moves, episodes that show each example once, and labels that stay hidden."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

import kshot
from kshot import ClassificationTasks, Pool
from kshot.errors import DataError, MisfitError, OptionError
from kshot.randomness import episode_keys
from kshot.testing import sample_tasks
from kshot_semi_supervised import SemiSupervised
from kshot_semi_supervised.division import choose_others

X = np.arange(40 * 20, dtype=np.float32)[:, None]  # each input is its own row's number
SPLITS = {"train": range(20), "val": range(20, 30), "test": range(30, 40)}


def rows(classes: Any) -> np.ndarray[Any, Any]:
    return np.array([np.arange(c * 20, c * 20 + 20) for c in classes])


def tasks(**options: Any) -> ClassificationTasks:
    """40 classes of 20 examples in one table; row r is an example of class r // 20; trainval is train and val."""
    splits = {**SPLITS, "trainval": range(30)}
    pools = {
        split: Pool(torch.from_numpy(X), rows(held), np.full(len(held), 20), names=[f"class {c}" for c in held])
        for split, held in splits.items()
    }
    return ClassificationTasks(pools, **options)


def view(**options: Any) -> SemiSupervised:
    return SemiSupervised(tasks(), **options)


def labelled_rows(of: SemiSupervised, split: str) -> dict[int, set[int]]:
    """Class number in the table -> the rows that were seen with a label in 400 episodes."""
    found: dict[int, set[int]] = {}
    origin = of.sample(split, range(400)).origin
    for array in (origin.support_ids, origin.query_ids):
        for row in array.flat:
            found.setdefault(int(row) // 20, set()).add(int(row))
    return found


def test_a_tenth_of_each_class_is_labelled_and_always_the_same_tenth() -> None:
    """2 of 20; over 400 episodes of training no third one is seen with a label, and ``pool`` holds these two."""
    v = view(unlabelled=5)
    seen = labelled_rows(v, "train")
    assert set(seen) == set(SPLITS["train"])
    assert all(len(found) == 2 for found in seen.values())
    ids, y = v.pool("train").table()
    assert {int(c): set(ids[y == i].tolist()) for i, c in enumerate(SPLITS["train"])} == seen
    assert list(v.pool("train").names) == [f"class {c}" for c in SPLITS["train"]]


def test_unlabelled_examples_are_never_labelled_ones() -> None:
    """In no split and no episode, of no class, distractors included."""
    v = view(unlabelled=18, distractors=3)
    for split in ("train", "val"):
        labelled = {row for found in labelled_rows(v, split).values() for row in found}
        unlabelled = set(v.sample(split, range(400)).origin.unlabelled_ids.flat)
        assert not labelled & unlabelled
        assert len(labelled) + len(unlabelled) == 20 * len(SPLITS[split])


def test_a_class_is_divided_alike_in_every_split_that_has_it() -> None:
    """What trainval shows with labels is what train and val do: the division goes by examples, not by splits."""
    v = view()
    together = labelled_rows(v, "trainval")
    assert together == labelled_rows(v, "train") | labelled_rows(v, "val")


def test_another_seed_divides_otherwise() -> None:
    """And the classes differ among themselves: it is not the same two places in each."""
    first, second = (labelled_rows(view(seed=s), "train") for s in (0, 1))
    assert sum(first[c] != second[c] for c in first) >= 15
    assert len({frozenset(row % 20 for row in found) for found in first.values()}) >= 15


def test_draws_are_pinned() -> None:
    """Integers of seed, split and index alone: the same here as on any platform, now and in later versions."""
    e = view(way=2, unlabelled=2, distractors=1).sample("test", [3])
    arrays = {name: array.tolist() for name, array in e.origin.arrays().items()}
    assert arrays == PINNED


def test_inputs_are_those_of_the_rows_that_the_origin_names() -> None:
    """Each input of this table is its row's number."""
    e = view(unlabelled=4, distractors=2, query=3).sample("test", [0, 5, 2])
    for x, ids in (
        (e.support.x, e.origin.support_ids),
        (e.query.x, e.origin.query_ids),
        (e.support.unlabelled, e.origin.unlabelled_ids),
    ):
        assert x[..., 0].tolist() == ids.tolist()


def test_labels_are_those_of_the_rows_classes() -> None:
    """Support, query, and what the origin says of unlabelled examples, by the table; -1 for other classes."""
    v = view(unlabelled=4, distractors=2, query=3)
    e = v.sample("test", range(30))
    for b, classes in enumerate(e.origin.classes.tolist()):
        label_of = {SPLITS["test"][c]: label for label, c in enumerate(classes)}
        for ids, y in (
            (e.origin.support_ids[b], e.support.y[b].tolist()),
            (e.origin.query_ids[b], e.query.y[b].tolist()),
            (e.origin.unlabelled_ids[b], e.origin.unlabelled_y[b].tolist()),
        ):
            assert [label_of.get(int(row) // 20, -1) for row in ids] == y
        counts = np.bincount(e.origin.unlabelled_ids[b] // 20)
        assert sorted(counts[counts > 0].tolist()) == [4] * 7
        assert (e.origin.unlabelled_y[b] == -1).sum() == 8


def test_classes_support_and_query_do_not_depend_on_what_is_unlabelled() -> None:
    """Results with and without unlabelled examples and distractors are of the same queries; more adds to less."""
    shapes = [(0, 0), (3, 0), (14, 0), (14, 1), (14, 5)]
    found = [view(unlabelled=m, distractors=d, query=5).sample("test", range(20)).origin for m, d in shapes]
    for a, b in pairwise(found):
        for name in ("classes", "support_ids", "query_ids"):
            assert np.array_equal(getattr(a, name), getattr(b, name)), name
    for a, b in pairwise(found[1:4]):
        for less, more in zip(a.unlabelled_ids, b.unlabelled_ids, strict=True):
            assert set(less) < set(more)


def test_episodes_show_the_classes_that_the_tasks_below_show() -> None:
    """The same seed draws the same classes, so a figure on the view can be set beside one without it."""
    ours, theirs = view(way=5, seed=7), tasks(way=5, seed=7)
    assert np.array_equal(
        ours.sample("test", range(10)).origin.classes, theirs.sample("test", range(10)).origin.classes
    )


def test_without_unlabelled_examples_the_episodes_are_supervised() -> None:
    """Learners that need none and the supervised control train on it."""
    v = view(unlabelled=0)
    e = v.sample("train", [0])
    assert e.support.unlabelled is None
    assert v.spec.provides == {"identities"}
    assert e.origin.unlabelled_ids is None
    assert view().spec.provides == {"identities", "unlabelled"}


def test_outside_the_test_split_queries_are_labelled_examples() -> None:
    """Training and the fitting of a mask must not meet a label of the unlabelled part, whatever the user asks for."""
    v = view(query=2)
    for split in ("train", "val", "trainval"):
        with pytest.raises(DataError, match=r"2 labelled of 20 examples, but shot \+ query is 1 \+ 2, and outside the"):
            v.sample(split, [0])
    assert view().spec.query == 1
    assert view(labelled=0.5, shot=2).spec.query == 8


def test_test_queries_are_labelled_ones_first_and_then_what_the_episode_does_not_show() -> None:
    """1 of support, 1 labelled and 4 unlabelled queries, and the 14 that are left: all 20 of a class."""
    v = view(query=5, unlabelled=14)
    labelled = {c: set(v.pool("test").rows[i].tolist()) for i, c in enumerate(SPLITS["test"])}
    e = v.sample("test", range(50))
    for b in range(50):
        arrays = [getattr(e.origin, name)[b] for name in ("support_ids", "query_ids", "unlabelled_ids")]
        for c in e.origin.classes[b].tolist():
            support, query, more = ({int(r) for r in a if r // 20 == SPLITS["test"][c]} for a in arrays)
            own = labelled[SPLITS["test"][c]]
            assert support < own
            assert len(query & own) == 1
            assert support | query | more == set(range(SPLITS["test"][c] * 20, SPLITS["test"][c] * 20 + 20))


def test_a_fraction_is_rounded_and_a_number_is_taken() -> None:
    """At least one example of each class; classes of different sizes have parts of different sizes."""
    pool = Pool.of(np.arange(30.0)[:, None], np.repeat([0, 1, 2], [4, 11, 15]))
    uneven = ClassificationTasks({"train": pool, "test": pool}, way=2)
    parts = {f: SemiSupervised(uneven, labelled=f, unlabelled=1).pool("train").counts.tolist() for f in (0.1, 0.5, 3)}
    assert parts == {0.1: [1, 1, 2], 0.5: [2, 6, 8], 3: [3, 3, 3]}
    v = SemiSupervised(uneven, way=3, labelled=0.5, unlabelled=2)
    ids, y = pool.table()
    class_of = dict(zip(ids.tolist(), y.tolist(), strict=True))
    for row in v.sample("train", range(50)).origin.unlabelled_ids:
        assert np.bincount([class_of[int(i)] for i in row]).tolist() == [2, 2, 2]


def test_distractors_are_the_other_classes_each_equally_often() -> None:
    """All 10 choices of 2 of 5 others, over 4,000 keys: 400 each, give or take five standard deviations (95)."""
    keys = episode_keys(0, "test", range(4000))
    taken = np.tile([4, 0, 2], (4000, 1))
    chosen = choose_others(keys, "distractors", 8, taken, 2)
    pairs = {tuple(sorted(row)) for row in chosen.tolist()}
    assert pairs == {(a, b) for a in (1, 3, 5, 6, 7) for b in (1, 3, 5, 6, 7) if a < b}
    counts = [int((np.sort(chosen, 1) == pair).all(1).sum()) for pair in pairs]
    assert max(abs(n - 400) for n in counts) < 95
    assert choose_others(keys, "distractors", 3, taken, 0).shape == (4000, 0)


def test_ways_and_shots_may_vary() -> None:
    """The number of unlabelled examples follows the way; a block has one shape."""
    v = view(way=(2, 5), shot=(1, 2), query=1, labelled=4, unlabelled=3, distractors=1, block=4)
    seen = set()
    for block in range(30):
        e = v.sample("train", range(4 * block, 4 * block + 4))
        N, K = e.support.way, e.origin.shot
        seen.add((N, K))
        assert e.support.x.shape[1] == N * K
        assert e.support.unlabelled.shape[1] == (N + 1) * 3
    assert len(seen) == 8


def test_class_vectors_are_passed_on() -> None:
    """Row c describes label c."""
    of = sample_tasks.classification(semantics=3)
    e = SemiSupervised(of, way=3, labelled=3).sample("test", [0, 1])
    vectors = of.pool("test").semantics
    assert torch.equal(e.support.semantics, vectors[torch.from_numpy(e.origin.classes)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labelled": 0}, "labelled is 0, expected a fraction of each class"),
        ({"labelled": 1.5}, "labelled is 1.5"),
        ({"labelled": -0.1}, "labelled is -0.1"),
        ({"unlabelled": -1}, "unlabelled is -1"),
        ({"distractors": -2}, "distractors -2, expected none negative"),
        ({"unlabelled": 0, "distractors": 5}, "5 distractors without unlabelled examples"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    """At once, and with what was expected."""
    with pytest.raises(OptionError, match=message):
        view(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"way": 8, "distractors": 3}, r"split 'val' has 10 classes, but way \+ distractors is 8 \+ 3"),
        ({"shot": 3}, "class 'class 20' has 2 labelled of 20 examples, but shot is 3; lower shot or raise labelled"),
        ({"unlabelled": 19}, "but 19 unlabelled ones are asked for beside 1 \\+ 1"),
        ({"labelled": 21}, "labelled asks for more"),
    ],
)
def test_data_that_do_not_suffice_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    """Split, class, what it has, what is asked for, and what to do."""
    with pytest.raises(DataError, match=message):
        view(**options).sample("val", [0])


def test_tasks_without_a_pool_of_labelled_examples_are_refused() -> None:
    """Of another kind, or of the right kind and without a table."""

    class Opaque:
        spec = tasks().spec

        def sample(self, split: str, indices: Any) -> kshot.Episode:
            raise AssertionError("not asked")

    with pytest.raises(MisfitError, match="Lines are regression tasks without a pool"):
        SemiSupervised(sample_tasks.Lines())
    with pytest.raises(MisfitError, match="Opaque are classification tasks without a pool"):
        SemiSupervised(Opaque())
    with pytest.raises(DataError, match="got unknown split 'trian', expected one of train, val, test, trainval"):
        view().sample("trian", [0])


def test_raw_examples_are_prepared_by_the_tasks_below() -> None:
    """``predict`` on files goes through the view."""
    v = SemiSupervised(tasks(prepare=lambda raw: torch.full((1, 1), float(raw))))
    assert v.prepare(3).tolist() == [[3.0]]
    assert v.preparation is None  # a closure can't be written down


PINNED = {
    "classes": [[4, 6]],
    "support_ids": [[694, 725]],
    "query_ids": [[729, 693]],
    "unlabelled_ids": [[608, 723, 691, 731, 600, 684]],
    "unlabelled_y": [[-1, 1, 0, 1, -1, 0]],
}
