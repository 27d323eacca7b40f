"""A folder becomes tasks: the table, the cache, and the errors."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import kshot
from kshot import registry
from kshot.errors import DataError
from kshot_imagefolder import imagefolder
from kshot_imagefolder.images import Form

Small = Callable[..., Path]


def pixels(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1) / 255).float()


def test_images_of_an_episode_are_of_the_class_they_are_named_after(small: Small) -> None:
    """The inputs equal the pixels of the files, also if classes have different sizes."""
    root = small(images=(5, 6, 7, 5, 9, 5, 6, 7, 8, 5))
    tasks = imagefolder(root=root, size=6, way=2, shot=2, query=3)
    for split in tasks.spec.splits:
        episode = tasks.sample(split, range(3))
        assert episode.origin is not None
        for b in range(3):
            for x, y in zip(episode.query.x[b], episode.query.y[b], strict=True):
                files = (root / episode.origin.class_names[b][int(y)]).iterdir()
                assert any(torch.allclose(x, pixels(file)) for file in files)


def test_images_of_any_size_and_kind_stand_together(small: Small) -> None:
    """A class may mix sizes, channels, formats and bit depths."""
    root = small(3, 2)
    folder = root / "c0"
    Image.fromarray(np.zeros((9, 4), np.uint8)).save(folder / "grey.bmp")
    Image.fromarray(np.full((3, 30), 40000, np.uint16)).save(folder / "deep.png")
    Image.new("RGBA", (5, 5)).save(folder / "clear.webp")
    Image.new("P", (7, 2)).save(folder / "palette.gif")
    Image.new("CMYK", (8, 8)).save(folder / "print.jpg")
    tasks = imagefolder(root=root, size=(4, 5), way=2, query=1, split=(0, 0, 1))
    assert tasks.spec.input_shape == (3, 4, 5)
    assert tasks.pool("test").counts.tolist() == [7, 2, 2]
    named = dict(zip(sorted(p.name for p in folder.iterdir()), tasks.pool("test").x, strict=False))
    assert (named["clear.webp"] == 255).all()
    assert (named["deep.png"] == 156).all()


def test_shape_may_vary_by_block(small: Small) -> None:
    """All episodes of a block have one way; the ways follow the seed."""
    root = small()
    split: dict[str, Any] = {"split": (0.4, 0.3, 0.3)}
    made = [imagefolder(root=root, size=4, way=(2, 3), shot=1, query=1, block=4, seed=seed, **split) for seed in (0, 1)]
    ways = [[tasks.sample("train", range(4 * b, 4 * b + 4)).support.way for b in range(12)] for tasks in made]
    assert set(ways[0]) == {2, 3}
    assert ways[0] != ways[1]


def test_it_is_decoded_once_and_not_before_it_is_needed(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the spec nor a prediction on files decodes the folder; a new file makes a new table."""
    count: list[Any] = []
    pixels = Form.pixels
    monkeypatch.setattr(Form, "pixels", lambda self, image: (count.append(image), pixels(self, image))[1])
    root = small()
    tasks = imagefolder(root=root, size=4, query=1, way=2)
    assert count == []
    assert tasks.prepare(root / "c0" / "0.png").shape == (1, 3, 4, 4)
    assert len(count) == 1
    first = tasks.sample("test", [0])
    assert len(count) == 1 + 40
    again = imagefolder(root=root, size=4, query=1, way=2)
    assert torch.equal(again.sample("test", [0]).query.x, first.query.x)
    assert again.fingerprint == tasks.fingerprint
    assert len(count) == 41
    (root / "c0" / "9.png").write_bytes((root / "c1" / "0.png").read_bytes())
    with pytest.warns(UserWarning, match="copies"):
        changed = imagefolder(root=root, size=4, query=1, way=2).fingerprint
    assert len(count) == 41 + 41
    assert changed != tasks.fingerprint


def test_prediction_is_prepared_as_the_table_is(small: Small) -> None:
    """The same file gives the same input bit for bit."""
    root = small(suffix=".jpg")
    tasks = imagefolder(root=root, size=(5, 4), fit="crop", query=1, way=2)
    pool = tasks.pool("train")
    for i in range(4):
        assert torch.equal(tasks.prepare(root / pool.names[1] / f"{i}.jpg")[0], pool.gather(pool.rows[1, i : i + 1])[0])
    written = registry.preparation(tasks.preparation.to_dict())
    assert torch.equal(written(root / pool.names[1] / "0.jpg")[0], pool.gather(pool.rows[1, :1])[0])


def test_the_fingerprint_is_of_contents_and_options(small: Small) -> None:
    """The same folder copied to another machine has other file times but is the same data."""
    root = small()
    base: dict[str, Any] = {"root": root, "size": 4, "way": 2, "query": 1}
    first = imagefolder(**base).fingerprint
    assert first.startswith("imagefolder-RGB-4x4-squeeze-")
    os.utime(root / "c0" / "0.png", ns=(1, 1))
    assert imagefolder(**base).fingerprint == first
    others = [{"size": 5}, {"mode": "L"}, {"fit": "pad"}, {"split": (0.5, 0.3, 0.2)}, {"split_seed": 3}]
    assert len({first, *(imagefolder(**{**base, **other}).fingerprint for other in others)}) == 6


def test_classes_are_split_by_lists(small: Small, tmp_path: Path) -> None:
    """The lists may be files, or names in the options."""
    lists = tmp_path / "lists"
    lists.mkdir()
    for split, names in (("train", "c0\nc1\nc2\n"), ("val", "c3\nc4\n"), ("test", "c5\nc6\n")):
        (lists / f"{split}.txt").write_text(names)
    root = small()
    tasks = imagefolder(root=root, size=4, way=2, query=1, split=lists)
    assert tasks.pool("test").names == ("c5", "c6")
    tasks = imagefolder(root=root, size=4, way=2, query=1, split={"train": ["c0", "c9"], "test": lists / "test.txt"})
    assert tasks.pool("train").names == ("c0", "c9")
    (lists / "val.txt").write_text("c3\nc4/rot090\n")
    with pytest.raises(DataError, match=r"val\.txt: got the class 'c4/rot090', .* whose name has no slash"):
        imagefolder(root=root, size=4, way=2, query=1, split=lists)


def test_options_come_from_the_command_line_as_text(small: Small) -> None:
    """Shares, a size of two numbers and a folder are all given as text."""
    from kshot.registry.conversion import Raw

    tasks = kshot.tasks(
        "imagefolder", root=Raw(str(small())), size=Raw("[4, 5]"), split=Raw("[0.5, 0.2, 0.3]"), way=Raw("2"), query=1
    )
    assert tasks.spec.input_shape == (3, 4, 5)
    assert len(tasks.pool("test").names) == 3


def test_few_classes_may_be_divided_by_image(small: Small) -> None:
    """Every split has all classes, and no image is in two splits."""
    tasks = imagefolder(root=small(2, 10), size=4, way=2, query=1, split_by="example")
    assert tasks.spec.split_by == "example"
    rows = {split: set(tasks.pool(split).table()[0].tolist()) for split in tasks.spec.splits}
    assert [len(rows[split]) for split in ("train", "val", "test", "trainval")] == [12, 4, 4, 16]
    assert rows["trainval"] == rows["train"] | rows["val"]
    assert not rows["test"] & rows["trainval"]
    assert all(tasks.pool(split).names == ("c0", "c1") for split in tasks.spec.splits)


def test_files_that_are_no_images_are_named_all_at_once(small: Small) -> None:
    """The error is raised when the first episode is requested, before any table is written."""
    root = small()
    (root / "c1" / "0.png").write_text("this is no picture")
    (root / "c3" / "2.png").write_bytes(b"")
    tasks = imagefolder(root=root, size=4, way=2, query=1)
    for _ in range(2):
        with pytest.raises(DataError, match=r"(?s)got 2 files .*c1.0\.png: got a file .* .*c3.2\.png"):
            tasks.sample("train", [0])
    assert not list((root.parent / "cache" / "imagefolder").glob("*.table*[!k]"))


def test_copies_are_warned_of(small: Small) -> None:
    """Copies within a class are reported, and copies in two classes, which are worse."""
    root = small()
    (root / "c1" / "copy.png").write_bytes((root / "c0" / "0.png").read_bytes())
    with pytest.warns(UserWarning, match=r"got 1 files that are copies of others \(c0/0\.png = c1/copy\.png\)"):
        imagefolder(root=root, size=4, way=2, query=1).pool("train")


def test_other_files_in_a_class_are_logged(small: Small, caplog: pytest.LogCaptureFixture) -> None:
    root = small()
    (root / "c1" / "notes.txt").write_text("found in the garden")
    with caplog.at_level(logging.WARNING, "kshot.data.folders"):
        imagefolder(root=root, size=4, way=2, query=1)
    assert "ignored 1 files in class folders that are not images, such as c1/notes.txt" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size: got 0"), ({"size": (4, -1)}, "size: got"), ({"workers": 0}, "workers: got 0"),
        ({"mode": "CMYK"}, "mode: got 'CMYK', expected 'L' or 'RGB'"), ({"fit": "stretch"}, "fit: got 'stretch'"),
        ({"way": 9}, "split 'train': got way 9, expected at most 5"),
        ({"shot": 2, "query": 3}, r"got shot \+ query = 2 \+ 3 = 5, expected at most 4, .* class 'c\d'"),
        ({"split": {"train": ["c0"]}, "split_by": "example"}, "got lists of classes"),
        ({"root": "nowhere"}, "nowhere: got a path that does not exist"),
    ],
)  # fmt: skip
def test_impossible_options_are_refused(small: Small, options: dict[str, Any], message: str) -> None:
    """They are refused before anything is decoded."""
    with pytest.raises(DataError, match=message):
        imagefolder(**{"root": small(), "size": 4, "way": 2, "query": 1, **options})


@pytest.mark.parametrize("classes", [0, 1])
def test_a_folder_without_classes_is_refused(small: Small, classes: int) -> None:
    root = small(classes)
    root.mkdir(exist_ok=True)
    with pytest.raises(DataError, match=rf"got {classes} class folders.*a folder that has a folder of images"):
        imagefolder(root=root)


def test_a_learner_trains_and_predicts(small: Small) -> None:
    """The test goes through the engine's checks, and predicts on files of a class that was not trained on."""
    root = small(12, 6)
    for c in range(12):  # bright and dark classes
        for i in range(6):
            grey = np.random.default_rng(i).integers(20 * c, 20 * c + 20, (6, 6), np.uint8)
            Image.fromarray(grey).save(root / f"c{c}" / f"{i}.png")
    tasks = imagefolder(root=root, size=4, mode="L", way=2, query=3)

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
    assert engine.evaluate(50).mean == 1.0


def test_a_csv_file_of_paths_gives_the_tasks_of_the_folder(small: Small, tmp_path: Path) -> None:
    """The same episodes, as classes and files have the same names."""
    root = small()
    rows = [f"{path.relative_to(root).as_posix()},{path.parent.name}" for path in sorted(root.glob("*/*"))]
    (tmp_path / "list.csv").write_text("\n".join(["file,sort", *rows]))
    columns = {"column": "file", "label": "sort"}
    expected = imagefolder(root=root, size=4, way=2, query=1)
    tasks = kshot.tasks("imagefolder", csv=tmp_path / "list.csv", root=root, **columns, size=4, way=2, query=1)
    assert torch.equal(tasks.sample("test", [0, 1]).query.x, expected.sample("test", [0, 1]).query.x)
    assert tasks.fingerprint == expected.fingerprint
    (root / "list.csv").write_text("\n".join(["path,label", *rows]))
    assert imagefolder(csv=root / "list.csv", size=4, way=2, query=1).fingerprint == expected.fingerprint
    (root / "c1" / "0.png").unlink()
    with pytest.raises(DataError, match=r"list\.csv, line 6: got a path that does not exist"):
        imagefolder(csv=root / "list.csv", size=4, way=2, query=1)
    with pytest.raises(DataError, match=r"imagefolder: got neither root nor csv, expected a folder .* of images"):
        imagefolder(size=4)
