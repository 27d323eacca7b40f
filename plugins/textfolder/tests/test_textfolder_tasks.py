"""A folder and a CSV file become tasks: the tables, the cache, and the errors."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import kshot
from kshot import registry
from kshot.data.texts import from_bytes
from kshot.errors import DataError
from kshot_textfolder import textfolder
from kshot_textfolder.texts import Form

Small = Callable[..., Path]
TextOf = Callable[[int, int], str]
SHORT: dict[str, Any] = {"way": 2, "query": 1, "size": 64, "length": 50}


@pytest.mark.parametrize("source", ["root", "csv"])
@pytest.mark.parametrize("features", ["bytes", "ngrams"])
def test_texts_of_an_episode_are_of_their_class(
    small: Small, table: Small, text_of: TextOf, source: str, features: str
) -> None:
    """The inputs equal those that ``prepare``, and its stored form, make of the texts."""
    options: dict[str, Any] = {source: (small if source == "root" else table)(10, 5), "features": features}
    tasks = textfolder(**options, **{**SHORT, "shot": 2, "query": 3})
    written = registry.preparation(tasks.preparation.to_dict())
    for split in tasks.spec.splits:
        episode = tasks.sample(split, [0])
        assert episode.origin is not None
        for x, y in zip(episode.query.x[0], episode.query.y[0], strict=True):
            name = episode.origin.class_names[0][int(y)]
            own = written([text_of(int(name[1:]), i) for i in range(5)])
            assert torch.equal(own, tasks.prepare([text_of(int(name[1:]), i) for i in range(5)]))
            assert any(torch.equal(x, row) for row in own)


def test_the_text_can_be_read_again_from_an_input(table: Small, text_of: TextOf) -> None:
    pool = textfolder(csv=table(), **SHORT, features="bytes", split=(0, 0, 1)).pool("test")
    assert pool.x.dtype == torch.uint8
    ids, y = pool.table()
    assert from_bytes(pool.gather(ids)) == [text_of(int(pool.names[c][1:]), i) for c in range(10) for i in range(4)]
    assert y.tolist() == [c for c in range(10) for _ in range(4)]


def test_it_is_converted_once_and_not_before_it_is_needed(
    small: Small, table: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    count: list[str] = []
    of_text = Form.of_text
    monkeypatch.setattr(Form, "of_text", lambda self, text, name: (count.append(name), of_text(self, text, name))[1])
    for source in ({"root": small()}, {"csv": table()}):
        count.clear()
        tasks = textfolder(**source, **SHORT)
        tasks.prepare("one more")
        assert len(count) == 1
        first = tasks.sample("test", [0])
        assert torch.equal(textfolder(**source, **SHORT).sample("test", [0]).query.x, first.query.x)
        assert len(count) == 41
        assert textfolder(**source, **{**SHORT, "size": 32}).sample("test", [0]).query.x.shape[-1] == 32
        assert len(count) == 81


def test_the_fingerprint_is_of_contents_and_options(small: Small, table: Small) -> None:
    root = small()
    first = textfolder(root=root, **SHORT).fingerprint
    os.utime(root / "c0" / "0.txt", ns=(1, 1))
    assert textfolder(root=root, **SHORT).fingerprint == first
    path = table()
    others: list[dict[str, Any]] = [{}, {"size": 32}, {"features": "bytes"}, {"split_seed": 3}]
    prints = {first, *(textfolder(csv=path, **{**SHORT, **other}).fingerprint for other in others)}
    path.write_text(path.read_text(encoding="utf-8") + "one more,c0\n", encoding="utf-8")
    prints.add(textfolder(csv=path, **SHORT).fingerprint)
    assert len(prints) == 6


def test_a_row_that_is_added_leaves_the_other_texts_in_their_splits(table: Small) -> None:
    """Texts are divided by what they are, and not by their lines."""
    path = table(2, 20)

    def texts() -> dict[str, set[str]]:
        tasks = textfolder(csv=path, **SHORT, features="bytes", split_by="example", split=(0.5, 0, 0.5))
        return {s: set(from_bytes(tasks.pool(s).gather(tasks.pool(s).table()[0]))) for s in ("train", "test")}

    before = texts()
    head, *rows = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([head, "A first row,c0", *rows]) + "\n", encoding="utf-8")
    after = texts()
    assert len(before["test"] & after["test"]) >= len(before["test"]) - 1
    assert not before["train"] & before["test"]


def test_files_that_are_no_texts_are_named_all_at_once(small: Small) -> None:
    """With the line; the error is raised when the first episode is requested."""
    root = small()
    (root / "c1" / "0.txt").write_bytes(b"one\ncaf\xe9")
    (root / "c3" / "2.txt").write_bytes(b"")
    (root / "c4" / "1.txt").write_bytes(b"\0\1\2")
    tasks = textfolder(root=root, **SHORT)
    with pytest.raises(
        DataError,
        match=r"(?s)got 3 files .*c1.0\.txt, line 2: got bytes that are not UTF-8 .*c3.2\.txt: got a text without a "
        r"word.*c4.1\.txt, line 1: got a NUL",
    ):
        tasks.sample("train", [0])


def test_a_text_in_a_csv_file_that_cannot_be_used_is_named_by_its_line(table: Small) -> None:
    path = table()
    path.write_text(path.read_text(encoding="utf-8") + "one\0two,c0\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"texts\.csv, text of line 42, line 1: got a NUL character"):
        textfolder(csv=path, **SHORT).sample("train", [0])


def test_copies_are_warned_of(small: Small, table: Small, text_of: TextOf) -> None:
    root, path = small(), table()
    (root / "c1" / "copy.txt").write_bytes((root / "c0" / "0.txt").read_bytes())
    with pytest.warns(UserWarning, match=r"got 1 files that are copies of others \(c0/0\.txt = c1/copy\.txt\)"):
        textfolder(root=root, **SHORT).pool("train")
    path.write_text(path.read_text(encoding="utf-8") + f'"{text_of(0, 0)}",c1\n', encoding="utf-8")
    with pytest.warns(UserWarning, match=r"got 1 texts that are copies of others \(c0/line 2 = c1/line 42\)"):
        textfolder(csv=path, **SHORT).pool("train")


def test_classes_are_split_by_lists_or_examples_by_shares(table: Small) -> None:
    path = table()
    tasks = textfolder(csv=path, split={"train": ["c1", "c0"], "test": ["c2", "c3"]}, **SHORT)
    assert (tasks.pool("train").names, tasks.pool("test").names) == (("c1", "c0"), ("c2", "c3"))
    by_text = textfolder(csv=path, split=(0.5, 0, 0.5), split_by="example", **SHORT)
    assert by_text.pool("test").counts.tolist() == [2] * 10
    assert by_text.spec.split_by == "example"


def test_shape_may_vary_by_block(small: Small) -> None:
    """All episodes of a block have one way; the ways follow the seed."""
    root = small()
    made = [
        textfolder(root=root, **{**SHORT, "way": (2, 3)}, block=4, seed=seed, split=(0.4, 0.3, 0.3)) for seed in (0, 1)
    ]
    ways = [[tasks.sample("train", range(4 * b, 4 * b + 4)).support.way for b in range(12)] for tasks in made]
    assert set(ways[0]) == {2, 3}
    assert ways[0] != ways[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers: got 0"), ({"features": "words"}, "features: got 'words'"),
        ({"way": 9}, "split 'train': got way 9, expected at most 5"),
        ({"shot": 2, "query": 3}, r"got shot \+ query = 2 \+ 3 = 5, expected at most 4, .* class 'c\d'"),
        ({"root": "nowhere"}, "nowhere: got a path that does not exist, .* a folder of texts for each class"),
        ({"root": None}, "got neither root nor csv"), ({"csv": "a.csv"}, "got root and csv"),
        ({"root": None, "csv": "nowhere.csv"}, r"nowhere\.csv: got a path that does not exist, expected a CSV file"),
        ({"root": None, "csv": "texts.csv", "column": "said"}, "line 1: got the columns text, label, expected one"),
    ],
)  # fmt: skip
def test_impossible_options_are_refused(
    small: Small, table: Small, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    """They are refused before anything is read."""
    monkeypatch.chdir(table().parent)
    with pytest.raises(DataError, match=message):
        textfolder(**{"root": small(), **SHORT, **options})


def test_a_learner_tells_texts_apart(small: Small) -> None:
    """The test goes through the engine's checks: the nearest text has the word of the class."""
    tasks = kshot.tasks("textfolder", root=small(12, 6), **{**SHORT, "query": 3, "size": 1024})

    class Nearest(torch.nn.Module):
        needs = kshot.Needs()

        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        @kshot.per_episode
        def meta_gradient(self, episode: kshot.Episode) -> torch.Tensor:
            return (self.scale * episode.query.x.mean() - 1).square()

        @kshot.per_episode
        def adapt(self, support: kshot.Support) -> kshot.Predictor:
            return lambda x: -torch.cdist(x.flatten(1), support.x.flatten(1))

    engine = kshot.Engine(Nearest(), tasks)
    engine.train(2)
    assert engine.evaluate(50).mean > 0.95
