"""The view divides each class once, shows an example at most once per episode, and keeps hidden labels hidden."""

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

X = np.arange(40 * 20, dtype=np.float32)[:, None]  # each input is the number of its row
SPLITS = {"train": range(20), "val": range(20, 30), "test": range(30, 40)}


def rows(classes: Any) -> np.ndarray[Any, Any]:
    return np.array([np.arange(c * 20, c * 20 + 20) for c in classes])


def tasks(**options: Any) -> ClassificationTasks:
    """Make 40 classes of 20 examples in one table. Row r is an example of class r // 20; trainval is train and val."""
    splits = {**SPLITS, "trainval": range(30)}
    pools = {
        split: Pool(
            torch.from_numpy(X), rows(classes), np.full(len(classes), 20), names=[f"class {c}" for c in classes]
        )
        for split, classes in splits.items()
    }
    return ClassificationTasks(pools, **options)


def view(**options: Any) -> SemiSupervised:
    return SemiSupervised(tasks(), **options)


def labelled_rows(of: SemiSupervised, split: str) -> dict[int, set[int]]:
    """Return, for each class number in the table, the rows that 400 episodes show with a label."""
    seen: dict[int, set[int]] = {}
    origin = of.sample(split, range(400)).origin
    for array in (origin.support_ids, origin.query_ids):
        for row in array.flat:
            seen.setdefault(int(row) // 20, set()).add(int(row))
    return seen


def test_a_tenth_of_each_class_is_labelled_and_always_the_same_tenth() -> None:
    """It is 2 of 20: 400 training episodes show no third example with a label, and ``pool`` contains these two."""
    v = view(unlabelled=5)
    seen = labelled_rows(v, "train")
    assert set(seen) == set(SPLITS["train"])
    assert all(len(labelled) == 2 for labelled in seen.values())
    ids, y = v.pool("train").table()
    assert {int(c): set(ids[y == i].tolist()) for i, c in enumerate(SPLITS["train"])} == seen
    assert list(v.pool("train").names) == [f"class {c}" for c in SPLITS["train"]]


def test_unlabelled_examples_are_never_labelled_ones() -> None:
    """This holds in every split and episode, for the distractors too."""
    v = view(unlabelled=18, distractors=3)
    for split in ("train", "val"):
        labelled = {row for of_class in labelled_rows(v, split).values() for row in of_class}
        unlabelled = set(v.sample(split, range(400)).origin.unlabelled_ids.flat)
        assert not labelled & unlabelled
        assert len(labelled) + len(unlabelled) == 20 * len(SPLITS[split])


def test_a_class_is_divided_alike_in_every_split_that_has_it() -> None:
    """The rows that trainval shows with labels are those of train and val: examples are divided, not splits."""
    v = view()
    together = labelled_rows(v, "trainval")
    assert together == labelled_rows(v, "train") | labelled_rows(v, "val")


def test_another_seed_divides_otherwise() -> None:
    """The classes differ among themselves too: the labelled rows are not at the same two places in each class."""
    first, second = (labelled_rows(view(seed=s), "train") for s in (0, 1))
    assert sum(first[c] != second[c] for c in first) >= 15
    assert len({frozenset(row % 20 for row in labelled) for labelled in first.values()}) >= 15


def test_draws_are_pinned() -> None:
    """They depend on seed, split and index alone, and are the same on every platform and in later versions."""
    e = view(way=2, unlabelled=2, distractors=1).sample("test", [3])
    arrays = {name: array.tolist() for name, array in e.origin.arrays().items()}
    assert arrays == PINNED


def test_inputs_are_those_of_the_rows_that_the_origin_names() -> None:
    """Each input of this table is the number of its row, so inputs and identities must agree."""
    e = view(unlabelled=4, distractors=2, query=3).sample("test", [0, 5, 2])
    for x, ids in (
        (e.support.x, e.origin.support_ids),
        (e.query.x, e.origin.query_ids),
        (e.support.unlabelled, e.origin.unlabelled_ids),
    ):
        assert x[..., 0].tolist() == ids.tolist()


def test_labels_are_those_of_the_rows_classes() -> None:
    """Labels of support, query and unlabelled examples (in the origin) agree with the table; -1 marks distractors."""
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
    """Results with and without unlabelled examples have the same queries, and more of them only adds examples."""
    shapes = [(0, 0), (3, 0), (14, 0), (14, 1), (14, 5)]
    origins = [view(unlabelled=m, distractors=d, query=5).sample("test", range(20)).origin for m, d in shapes]
    for a, b in pairwise(origins):
        for name in ("classes", "support_ids", "query_ids"):
            assert np.array_equal(getattr(a, name), getattr(b, name)), name
    for a, b in pairwise(origins[1:4]):
        for less, more in zip(a.unlabelled_ids, b.unlabelled_ids, strict=True):
            assert set(less) < set(more)


def test_episodes_show_the_classes_that_the_tasks_below_show() -> None:
    """The same seed draws the same classes, so results with and without the view can be compared."""
    ours, theirs = view(way=5, seed=7), tasks(way=5, seed=7)
    assert np.array_equal(
        ours.sample("test", range(10)).origin.classes, theirs.sample("test", range(10)).origin.classes
    )


def test_without_unlabelled_examples_the_episodes_are_supervised() -> None:
    """Learners that use no unlabelled examples, and the supervised control, train on such episodes."""
    v = view(unlabelled=0)
    e = v.sample("train", [0])
    assert e.support.unlabelled is None
    assert v.spec.provides == {"identities"}
    assert e.origin.unlabelled_ids is None
    assert view().spec.provides == {"identities", "unlabelled"}


def test_outside_the_test_split_queries_are_labelled_examples() -> None:
    """Training must not see a label of the unlabelled part, whatever the options are."""
    v = view(query=2)
    for split in ("train", "val", "trainval"):
        with pytest.raises(
            DataError, match=r"2 labelled of 20 examples, but got shot \+ query 1 \+ 2, and outside the"
        ):
            v.sample(split, [0])
    assert view().spec.query == 1
    assert view(labelled=0.5, shot=2).spec.query == 8


def test_test_queries_are_labelled_ones_first_and_then_what_the_episode_does_not_show() -> None:
    """1 support example, 1 labelled and 4 unlabelled queries and the 14 others are all 20 examples of a class."""
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
    """Each class keeps at least one labelled example; larger classes have larger parts for the same fraction."""
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
    """Over 4,000 keys each of the 10 pairs of 5 other classes comes 400 times, within five standard deviations (95)."""
    keys = episode_keys(0, "test", range(4000))
    taken = np.tile([4, 0, 2], (4000, 1))
    chosen = choose_others(keys, "distractors", 8, taken, 2)
    pairs = {tuple(sorted(row)) for row in chosen.tolist()}
    assert pairs == {(a, b) for a in (1, 3, 5, 6, 7) for b in (1, 3, 5, 6, 7) if a < b}
    counts = [int((np.sort(chosen, 1) == pair).all(1).sum()) for pair in pairs]
    assert max(abs(n - 400) for n in counts) < 95
    assert choose_others(keys, "distractors", 3, taken, 0).shape == (4000, 0)


def test_ways_and_shots_may_vary() -> None:
    """The number of unlabelled examples follows the way, and all episodes of a block have one shape."""
    options = {"way": (2, 5), "shot": (1, 2), "query": 1, "labelled": 4, "unlabelled": 3, "distractors": 1, "block": 4}
    v = view(**options)
    seen = set()
    for block in range(30):
        e = v.sample("train", range(4 * block, 4 * block + 4))
        N, K = e.support.way, e.origin.shot
        seen.add((N, K))
        assert e.support.x.shape[1] == N * K
        assert e.support.unlabelled.shape[1] == (N + 1) * 3
    assert len(seen) == 8
    ways = [[view(**options, seed=seed).sample("train", [4 * b]).support.way for b in range(12)] for seed in (0, 1)]
    assert ways[0] != ways[1]  # the shapes follow the seed too


def test_class_vectors_are_passed_on() -> None:
    """Row c of the semantics is the vector of label c."""
    of = sample_tasks.classification(semantics=3)
    e = SemiSupervised(of, way=3, labelled=3).sample("test", [0, 1])
    vectors = of.pool("test").semantics
    assert torch.equal(e.support.semantics, vectors[torch.from_numpy(e.origin.classes)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labelled": 0}, "got labelled 0, expected a fraction of each class"),
        ({"labelled": 1.5}, "got labelled 1.5"),
        ({"labelled": -0.1}, "got labelled -0.1"),
        ({"unlabelled": -1}, "got unlabelled -1"),
        ({"distractors": -2}, "distractors -2, expected 0 or more"),
        ({"unlabelled": 0, "distractors": 5}, "got distractors 5 and unlabelled 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    """The view is not built, and the error says what was expected."""
    with pytest.raises(OptionError, match=message):
        view(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"way": 8, "distractors": 3}, r"got way \+ distractors 8 \+ 3, but split 'val' has 10 classes"),
        (
            {"shot": 3},
            "'class 20' of split 'val' has 2 labelled of 20 examples, but got shot 3; lower shot or raise labelled",
        ),
        ({"unlabelled": 19}, r"got unlabelled 19 in addition to shot \+ query 1 \+ 1"),
        ({"labelled": 21}, "got a larger number for labelled"),
    ],
)
def test_data_that_do_not_suffice_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    """The error says the split, the class, its size, what was asked for and what to do."""
    with pytest.raises(DataError, match=message):
        view(**options).sample("val", [0])


def test_tasks_without_a_pool_of_labelled_examples_are_refused() -> None:
    """Tasks of another kind are refused, and classification tasks without a pool; an unknown split is too."""

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
    """Prediction on files works through the view."""
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
