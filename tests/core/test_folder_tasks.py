"""Tasks over the files of a folder, loaded when the first episode is asked for."""

from __future__ import annotations

import logging
import re
from typing import Any

import numpy as np
import pytest
import torch

import kshot
from kshot.data.folder_tasks import FolderTasks
from kshot.data.splits import rows_of, split_classes, split_examples
from kshot.errors import DataError


def tasks(loaded: list[int], sizes: tuple[int, ...] = (8,) * 10, **more: Any) -> FolderTasks:
    """Return tasks of classes of these sizes; the value of an example is its row."""
    classes = {f"c{i}": [f"c{i}/{j}" for j in range(n)] for i, n in enumerate(sizes)}
    options: dict[str, Any] = {"way": 2, "shot": 1, "query": 3, "fractions": (0.6, 0.2, 0.2), **more}
    fractions, by = options.pop("fractions"), options.get("split_by", "class")

    def load() -> tuple[torch.Tensor, str]:
        loaded.append(1)
        return torch.arange(sum(sizes), dtype=torch.float32)[:, None], "rows"

    splits = (
        split_examples(classes, fractions)
        if by == "example"
        else rows_of(classes, split_classes([*classes], fractions))
    )
    return FolderTasks(splits, load, input_shape=(1,), input_range=None, prepare=torch.as_tensor, **options)


def test_examples_are_loaded_when_they_are_asked_for_and_once() -> None:
    """A spec, a check and a prediction on files decode nothing of the folder."""
    loaded: list[int] = []
    made = tasks(loaded)
    assert made.spec.input_shape == (1,)
    assert made.prepare([1.0]).tolist() == [1.0]
    assert loaded == []
    episode = made.sample("train", [0, 1])
    assert made.pool("train").classes == 6
    assert made.fingerprint.startswith("rows-split-")
    assert loaded == [1]
    assert episode.origin is not None
    assert np.array_equal(episode.support.x[..., 0], episode.origin.support_ids)


def test_examples_are_of_the_classes_they_are_named_after() -> None:
    """Classes have different sizes, and an example's row says which class it is of."""
    sizes = (4, 5, 9, 4, 6, 7, 8, 4, 5, 6)
    owner = np.repeat(np.arange(10), sizes)
    for by in ("class", "example"):
        made = tasks([], sizes if by == "class" else tuple(4 * s for s in sizes), split_by=by, query=2)
        owner = np.repeat(np.arange(10), sizes if by == "class" else [4 * s for s in sizes])
        for split in made.spec.splits:
            episode = made.sample(split, range(20))
            assert episode.origin is not None
            for b in range(20):
                for x, y in zip(episode.query.x[b, :, 0].long(), episode.query.y[b], strict=True):
                    assert episode.origin.class_names[b][int(y)] == f"c{owner[x]}"


def test_other_splits_have_another_fingerprint() -> None:
    """Scores on other test classes are not comparable."""
    prints = {tasks([], fractions=f).fingerprint for f in ((0.6, 0.2, 0.2), (0.5, 0.2, 0.3))}
    assert len(prints) == 2
    assert tasks([]).fingerprint == tasks([], seed=1).fingerprint


def test_tasks_that_no_split_allows_are_refused_before_anything_is_loaded() -> None:
    """One split is enough: a user may train 30-way on 40 classes, and test 5-way on 10."""
    loaded: list[int] = []
    with pytest.raises(DataError, match=r"split 'train': got way 20, expected at most 6, .* lower way to at most 6"):
        tasks(loaded, way=20)
    with pytest.raises(DataError, match=r"got shot \+ query = 1 \+ 9 = 10, expected at most 8, .* class 'c\d'"):
        tasks(loaded, query=(3, 9))
    assert loaded == []


def test_a_split_that_is_too_small_is_logged_and_refused(caplog: pytest.LogCaptureFixture) -> None:
    """It is refused when it is sampled, not before."""
    with caplog.at_level(logging.INFO, "kshot.data.folder_tasks"):
        made = tasks([], way=4)
    assert [r.getMessage()[:38] for r in caplog.records] == [
        f"split '{split}': got way 4, expected at most 2"[:38] for split in ("val", "test")
    ]
    assert made.sample("train", [0]).support.way == 4
    with pytest.raises(DataError, match="split 'val': got way 4, expected at most 2"):
        made.sample("val", [0])


@pytest.mark.parametrize(
    ("sizes", "shot", "expected"),
    [
        ((20,) * 40, 1, (5, 5)),
        ((5,) * 10, 1, (2, 4)),  # 2 classes to test
        ((5,) * 10, (1, 3), (2, 2)),
        ((20,) * 14 + (3,), 1, (3, 2)),
        ((8,) * 4, 1, (2, 5)),  # 1 class to test: refused when it is sampled
        ((3,) * 20, 3, (4, 1)),  # no query left: refused
    ],
)
def test_way_and_query_are_by_default_what_the_data_allow(sizes: tuple[int, ...], shot: Any, expected: Any) -> None:
    """Five images per class and a few classes are enough to begin."""
    if sizes[0] == 3:
        with pytest.raises(DataError, match=r"got shot \+ query = 3 \+ 1 = 4, expected at most 3"):
            tasks([], sizes, way=None, query=None, shot=shot)
        return
    made = tasks([], sizes, way=None, query=None, shot=shot)
    assert (made.spec.way, made.spec.query) == expected
    assert made.sample("train", [0]).query.y.unique().tolist() == list(range(expected[0]))


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("by", ["class", "example"])
@pytest.mark.parametrize(("number", "each"), [(2, 4), (3, 5), (3, 20), (4, 2), (4, 5), (5, 6), (6, 3)])
def test_advice_on_small_folders_works_when_it_is_followed(number: int, each: int, by: str, split: str) -> None:
    """Three folders of five pictures got advice that led to the next error."""
    fractions, options = (0.6, 0.2, 0.2) if number > 2 and (each > 2 or by == "class") else (0.5, 0.0, 0.5), {}
    for _ in range(3):  # a second piece of advice may follow, if another option was wrong too
        try:
            made = tasks(
                [], (each,) * number, fractions=fractions, split_by=by, **{"way": None, "query": None} | options
            )
            made.sample(split, [0])
            break
        except DataError as error:
            advice = str(error).rpartition("; ")[2] if "; or divide" not in str(error) else str(error)
            assert "add examples" not in advice
            if "split_by='example'" in advice:
                by = "example"
            if "split_by='class'" in advice:
                by = "class"
            if "split=(0.5, 0, 0.5)" in advice:
                fractions = (0.5, 0.0, 0.5)
            options |= {name: int(value) for name, value in re.findall(r"(way|shot|query)=(\d+)", advice)}
            if most := re.search(r"lower way to at most (\d+)", advice):
                options["way"] = int(most[1])
            if most := re.search(r"shot and query to (\d+)", advice):
                options["query"] = int(most[1]) - 1
    else:
        pytest.fail("no advice helped")


@pytest.mark.parametrize("splits", [{}, {"train": {}}])
def test_no_split_and_no_class_are_refused(splits: Any) -> None:
    """There would be nothing to sample."""
    with pytest.raises(DataError, match=r"got (no splits|a split without classes), expected at least one split"):
        FolderTasks(splits, lambda: pytest.fail("loaded"), input_shape=(1,), input_range=None, prepare=torch.as_tensor)


@pytest.mark.parametrize("by", ["class", "example"])
def test_folder_tasks_keep_the_rules_for_tasks(by: str) -> None:
    """The conformance kit has them."""
    report = kshot.testing.suite(tasks=tasks([], sizes=(20,) * 10, split_by=by, query=2)).run()
    assert report.ok, str(report)


def test_the_seed_determines_the_episodes() -> None:
    """Two seeds give other episodes, one seed the same; the spec and the fingerprint do not depend on it."""
    drawn = {seed: tasks([], seed=seed).sample("train", range(4)) for seed in (0, 1)}
    again = tasks([], seed=1).sample("train", range(4))
    assert drawn[1].origin is not None
    assert drawn[1].origin.seed == 1
    assert not torch.equal(drawn[0].query.x, drawn[1].query.x)
    assert torch.equal(again.query.x, drawn[1].query.x)


def test_classes_with_too_few_examples_are_left_out_if_others_remain(caplog: pytest.LogCaptureFixture) -> None:
    """They are named. Training episodes are then of classes of different sizes; examples of all others are used."""
    sizes = (20, 7, 2, 9, 30, 3, 8, 6, 12, 5)
    with caplog.at_level(logging.WARNING):
        made = tasks([], sizes, way=2, shot=1, query=4, fractions=(0.5, 0.0, 0.5))
    lacking = {f"c{i}" for i, size in enumerate(sizes) if size < 5}
    assert lacking == {"c2", "c5"}
    for split in made.spec.splits:
        assert not lacking & {*made.pool(split).names}
        made.sample(split, range(3))
    assert all(f"'{name}'" in caplog.text or name in caplog.text for name in lacking)
    used = {int(i) for b in range(400) for i in made.sample("train", [b]).origin.query_ids.flat}  # type: ignore[union-attr]
    pool = made.pool("train")
    assert used == {int(i) for i in pool.table()[0]}


def test_no_class_is_left_out_if_too_few_would_remain() -> None:
    """Then the user is told which class is too small."""
    made = tasks([], (8, 8, 8, 2), way=2, shot=1, query=3, fractions=(0.5, 0.0, 0.5))
    with pytest.raises(DataError, match="number of examples of class 'c3'"):
        made.sample(next(split for split in made.spec.splits if "c3" in made._splits[split]), [0])


def test_the_default_number_of_queries_is_that_of_classes_with_enough_examples() -> None:
    """A class without an example besides the shots does not count."""
    assert tasks([], (9, 9, 9, 9, 9, 9, 9, 9, 9, 5), way=2, shot=5, query=None).spec.query == 4
