"""The view: rows of the table at their classes, attributes of drawings by hand, and no query in its own description."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kshot
from kshot import ClassificationTasks, Pool
from kshot.errors import DataError, MisfitError, OptionError
from kshot.randomness import below as integers
from kshot.randomness import draws, episode_keys
from kshot.testing import sample_tasks
from kshot_semantics import Semantics
from kshot_semantics.drawings import ATTRIBUTES, attributes, components, directions, holes
from kshot_semantics.table import read

NAMES = {
    "train": ("ape", "bee", "cow"),
    "val": ("dog",),
    "test": ("eel", "fox"),
    "trainval": ("ape", "bee", "cow", "dog"),
}
TABLE = {name: [float(i), 10.0 * (i % 3), 7.0] for i, name in enumerate(("ape", "bee", "cow", "dog", "eel", "fox"))}


def tasks(names: Any = NAMES) -> ClassificationTasks:
    """Classes of four vectors."""
    pools = {
        split: Pool.of(np.arange(8.0 * len(held)).reshape(-1, 2), np.repeat(np.arange(len(held)), 4), names=held)
        for split, held in names.items()
    }
    return ClassificationTasks(pools, way=1)


def view(table: Any = None, **options: Any) -> Semantics:
    return Semantics(tasks(), TABLE if table is None else table, **{"way": 2, "query": 2, **options})


# --- From a table -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shot", [0, 1, 2])
def test_each_label_has_its_class_s_row_of_the_table(shot: int) -> None:
    """Whatever the order of the table and of the split; with a support and without."""
    v = view(dict(reversed(TABLE.items())), shot=shot, standardise=False)
    e = v.sample("train", range(20))
    for b, names in enumerate(e.origin.class_names):
        assert e.support.semantics[b].tolist() == [TABLE[name] for name in names]
    assert e.support.x.shape == (20, 2 * shot, 2)
    assert v.spec.semantics_shape == (3,)
    assert v.spec.provides == {"identities", "semantics"}


def test_attributes_are_standardised_by_the_training_classes_alone() -> None:
    """By hand: 0, 1, 2 and 0, 10, 20 become -1.22, 0, 1.22; the test classes go by the same scale; constants are 0."""
    v = view()
    a = (1.5) ** 0.5
    train = v.pool("train").semantics
    assert torch.allclose(train, torch.tensor([[-a, -a, 0], [0, 0, 0], [a, a, 0]]))
    assert torch.allclose(v.pool("test").semantics, torch.tensor([[3 * a, 0, 0], [4 * a, a, 0]]))
    assert torch.equal(v.pool("trainval").semantics[:3], train)
    assert v.vectors("val").tolist() == [[3.0, 0.0, 7.0]]


def test_episodes_with_a_support_are_those_of_the_tasks_below() -> None:
    """The same classes, examples and queries for the same seed: vectors are all that is new."""
    plain = ClassificationTasks({"train": tasks().pool("train")}, way=2, shot=1, query=2, seed=3).sample(
        "train", [4, 5]
    )
    e = view(shot=1, seed=3).sample("train", [4, 5])
    assert torch.equal(e.support.x, plain.support.x)
    assert np.array_equal(e.origin.query_ids, plain.origin.query_ids)


def test_files_of_both_kinds_give_the_same_table(tmp_path: Path) -> None:
    """CSV as a spreadsheet saves it, quoted where there is a comma; npz with two arrays; a dict of arrays."""
    (tmp_path / "t.csv").write_text(
        '"name, of the animal",size,legs\n"ape, great",1.5,2\nbee,-2e-1,6\n', encoding="utf-8-sig"
    )
    names, vectors = ["ape, great", "bee"], np.array([[1.5, 2], [-0.2, 6]])
    np.savez(tmp_path / "t.npz", names=np.array(names), vectors=vectors)
    for source in (tmp_path / "t.csv", str(tmp_path / "t.npz"), dict(zip(names, torch.tensor(vectors), strict=True))):
        found = read(source)
        assert list(found.rows) == names
        assert np.array_equal(found.vectors, vectors)
        assert np.array_equal(found.take(["bee"], "test"), vectors[1:])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a header"),
        ("name,size\n", "expected a header"),
        ("name\nape\n", "expected a header"),
        ("name,size\nape,1,2\n", "class 'ape' has 2 values, the header 1"),
        ("name,size\nape,big\n", "class 'ape' has 'big' for 'size', expected a number"),
        ("name,size\nape,nan\n", "class 'ape' has values that are NaN or infinite"),
        ("name,size\nape,1\nape,2\n", "class 'ape' comes twice"),
    ],
)
def test_a_csv_file_that_is_no_table_is_refused(text: str, message: str, tmp_path: Path) -> None:
    """With the class and the attribute."""
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "t.csv")


def test_other_files_that_are_no_table_are_refused(tmp_path: Path) -> None:
    """Missing, of another kind, not what their name says, or with other arrays."""
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    np.savez(tmp_path / "flat.npz", names=np.array(["ape"]), vectors=np.zeros(1))
    np.savez(tmp_path / "objects.npz", names=np.array(["ape", 3], object), vectors=np.zeros((2, 1)))
    (tmp_path / "broken.npz").write_bytes(b"PK nothing")
    (tmp_path / "latin.csv").write_bytes("name,größe\n".encode("latin-1"))
    for name, message in (
        ("absent.csv", "can't be read: No such file"),
        ("t.txt", "expected a file that ends in .csv or .npz, 'drawings', or a dict"),
        ("other.npz", r"has the arrays a; expected names \[C\], vectors \[C, A\]"),
        ("flat.npz", r"names have shape \(1,\) and vectors \(1,\)"),
        ("objects.npz", "is no npz file of plain arrays"),
        ("broken.npz", "is no npz file of plain arrays"),
        ("latin.csv", "is not CSV in UTF-8"),
    ):
        with pytest.raises(DataError, match=message):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "0 names and 0 vectors"),
        ({"ape": [1.0], "bee": [1.0, 2.0]}, r"the vector of class 'bee' has shape \(2,\), that of 'ape' \(1,\)"),
        ({"ape": 1.0}, r"class 'ape' has shape \(\)"),
        ({"ape": ["big"]}, "a vector is not of numbers"),
        ({"ape": [np.inf]}, "class 'ape' has values that are NaN or infinite"),
    ],
)
def test_a_dict_that_is_no_table_is_refused(table: Any, message: str) -> None:
    """With the class."""
    with pytest.raises(DataError, match=message):
        read(table)


def test_missing_classes_are_refused_by_name() -> None:
    """When the view is made, and not in the middle of training; in whatever split."""
    with pytest.raises(DataError, match=r"2 of 2 classes of split 'test' are not in .*: 'eel', 'fox'; its names"):
        view({name: v for name, v in TABLE.items() if name not in ("eel", "fox")})
    with pytest.raises(DataError, match="the classes of split 'train' have no names to look up"):
        Semantics(sample_unnamed(), TABLE)


def sample_unnamed() -> ClassificationTasks:
    return ClassificationTasks({"train": Pool.of(np.zeros((4, 2)), [0, 0, 1, 1])}, way=2, query=1)


def test_tasks_without_a_pool_of_labelled_examples_are_refused() -> None:
    """Of another kind, or of the right kind and without a table; and an unknown split is."""
    with pytest.raises(MisfitError, match="Lines are regression tasks without a pool"):
        Semantics(sample_tasks.Lines(), TABLE)
    with pytest.raises(DataError, match="got unknown split 'trian', expected one of train, val, test, trainval"):
        view().sample("trian", [0])
    with pytest.raises(DataError, match="4 examples, but shot"):
        view(query=5).sample("train", [0])


def test_raw_examples_are_prepared_by_the_tasks_below() -> None:
    """``predict`` on files goes through the view."""
    assert view().prepare([3.0]).tolist() == [3.0]


# --- Drawings by geometry -------------------------------------------------------------------------------------------


def draw(*lines: str) -> np.ndarray[Any, Any]:
    """A picture of # and blanks [1, H, W]."""
    return np.array([[[float(c == "#") for c in line] for line in lines]])


RING = draw("      ", " #### ", " #  # ", " #  # ", " #### ", "      ")
DOTS = draw("#     ", "      ", "      ", "      ", "      ", "     #")
CORNERS = draw(" #    ", "# #   ", " #    ", "      ", "      ", "      ")


@pytest.mark.parametrize(("image", "parts", "shut_in"), [(RING, 1, 1), (DOTS, 2, 0), (CORNERS, 1, 1)])
def test_parts_and_holes_by_hand(image: Any, parts: int, shut_in: int) -> None:
    """Ink that touches at a corner is one part, and shuts paper in; together and alone."""
    assert components(image > 0, corners=True).tolist() == [parts]
    assert holes(image > 0).tolist() == [shut_in]
    assert components(np.concatenate([RING, DOTS, 0 * RING, CORNERS]) > 0, corners=True).tolist() == [1, 2, 0, 1]
    assert holes(np.concatenate([RING, DOTS, 0 * RING, CORNERS]) > 0).tolist() == [1, 0, 0, 1]


def test_attributes_of_a_ring_by_hand() -> None:
    """12 of 36 pixels; 4 of 6 wide; centred; row by row it is crossed 1, 2, 2, 1 times; mirrored it is itself."""
    found = dict(zip(ATTRIBUTES, attributes(RING)[0].tolist(), strict=True))
    expected = {
        "ink": 12 / 36, "parts": 1, "holes": 1, "width": 4 / 6, "height": 4 / 6, "centre across": 0.5,
        "centre down": 0.5, "tilt": 0, "crossings across": 1.5, "crossings down": 1.5, "mirrored left to right": 1,
        "mirrored top to bottom": 1, "turned by half": 1,
    }  # fmt: skip
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-9), name
    positions = np.array([0] * 4 + [1] * 2 + [2] * 2 + [3] * 4) / 6
    assert found["spread across"] == pytest.approx(positions.std())


def test_places_are_told_apart() -> None:
    """A dot in the upper right corner, on 8 x 8."""
    image = np.zeros((1, 8, 8))
    image[0, 1, 6] = 1
    found = dict(zip(ATTRIBUTES, attributes(image)[0].tolist(), strict=True))
    assert found["centre across"] == pytest.approx(6.5 / 8)
    assert found["centre down"] == pytest.approx(1.5 / 8)
    assert [found[f"column band {b}"] for b in range(4)] == [0, 0, 0, 1]
    assert [found[f"row band {b}"] for b in range(4)] == [1, 0, 0, 0]
    assert found["mirrored left to right"] == 0


@pytest.mark.parametrize(("angle", "b"), [(0, 0), (45, 1), (90, 2), (135, 3)])
def test_strokes_have_their_direction(angle: int, b: int) -> None:
    """A bar through the middle, on 21 x 21, anticlockwise from lying flat: most of it in its own direction."""
    down, across = np.mgrid[-10:11, -10:11]
    theta = np.deg2rad(angle)
    off = np.abs(across * np.sin(theta) + down * np.cos(theta))
    along = np.abs(across * np.cos(theta) - down * np.sin(theta))
    found = directions(((off <= 1) & (along <= 8)).astype(float)[None])[0]
    assert found.argmax() == b
    assert found[b] > 0.7
    assert found.sum() == pytest.approx(1)


def test_a_blank_drawing_has_finite_attributes() -> None:
    """There are some in real data."""
    found = attributes(np.zeros((2, 28, 28)))
    assert found.shape == (2, len(ATTRIBUTES))
    assert np.isfinite(found).all()


# --- Classes described by their drawings ----------------------------------------------------------------------------

SIDE = 16


def shapes(classes: int = 24, examples: int = 12) -> ClassificationTasks:
    """Each class is a rectangle of its own place and size, an outline or filled; drawn up to a pixel off."""

    def pool(split: str) -> Pool:
        keys = episode_keys(0, split, range(classes))
        own = integers(draws(keys, "shape", 5), 6)  # first row and column, height and width, filled
        moved = integers(draws(keys, "moved", examples * 2), 3).reshape(classes, examples, 2) - 1
        x = np.zeros((classes, examples, 1, SIDE, SIDE), np.uint8)
        for c in range(classes):
            i, j, h, w, filled = own[c]
            for d in range(examples):
                top, left = 1 + i + moved[c, d, 0], 1 + j + moved[c, d, 1]
                x[c, d, 0, top : top + h + 4, left : left + w + 4] = 255
                x[c, d, 0, top + 1 : top + h + 3, left + 1 : left + w + 3] = 255 * (filled > 2)
        return Pool.of(x.reshape(-1, 1, SIDE, SIDE), np.repeat(np.arange(classes), examples))

    return ClassificationTasks({split: pool(split) for split in ("train", "val", "test")}, query=1)


def drawn(**options: Any) -> Semantics:
    return Semantics(shapes(), "drawings", **{"described": 5, "query": 7, **options})


def test_no_drawing_that_describes_a_class_is_ever_shown() -> None:
    """5 of 12 describe, the other 7 are shown; and they are the same whatever the seed of the episodes."""
    for seed in (0, 1):
        v = drawn(seed=seed)
        e = v.sample("test", range(100))
        shown = np.unique(e.origin.query_ids)
        assert len(shown) == 24 * 7
        whole = shapes().pool("test")
        for c in range(24):
            rest = np.setdiff1d(whole.rows[c], shown)
            assert len(rest) == 5
            expected = attributes(whole.gather(rest)[:, 0].double().numpy()).mean(0)
            assert np.allclose(v.vectors("test")[c], expected)
        assert sorted(v.pool("test").table()[0].tolist()) == shown.tolist()


def test_a_class_is_described_alike_in_every_split_that_has_it() -> None:
    """What is set aside goes by the drawings' rows: trainval must not show what describes a class in train."""
    whole = shapes().pool("train")
    parts = {"train": slice(0, 15), "val": slice(15, 24), "trainval": slice(0, 24)}
    pools = {split: Pool(whole.x, whole.rows[p], whole.counts[p], input_range=(0.0, 1.0)) for split, p in parts.items()}
    v = Semantics(ClassificationTasks(pools), "drawings", described=5, query=7)
    together, apart = v.pool("trainval"), [v.pool("train"), v.pool("val")]
    assert np.array_equal(together.rows, np.concatenate([p.rows for p in apart]))
    assert torch.equal(together.semantics, torch.cat([p.semantics for p in apart]))


def test_classes_of_different_sizes_keep_what_is_left() -> None:
    """4, 11 and 15 drawings, 3 of each set aside."""
    x = (np.arange(30 * 64).reshape(30, 1, 8, 8) % 251).astype(np.uint8)
    pool = Pool.of(x, np.repeat([0, 1, 2], [4, 11, 15]))
    v = Semantics(ClassificationTasks({"train": pool}, way=3, query=1), "drawings", way=3, query=1, described=3)
    left = v.pool("train")
    assert left.counts.tolist() == [1, 8, 12]
    ids, y = left.table()
    truth = np.repeat([0, 1, 2], [4, 11, 15])
    assert np.array_equal(truth[ids], y)


def test_drawings_are_told_by_descriptions_of_classes_never_seen() -> None:
    """By the nearest description alone, without learning: 5 ways, chance 20 %."""
    v = drawn()
    e = v.sample("test", range(200))
    whole = torch.from_numpy(attributes(e.query.x.flatten(0, 1)[:, 0].double().numpy())).view(200, 35, -1)
    train = v.vectors("train")
    spread = np.where(train.std(0) > 0, train.std(0), 1)
    own = ((whole - torch.from_numpy(train.mean(0))) / torch.from_numpy(spread)).float()
    answers = torch.cdist(own, e.support.semantics).argmin(-1)
    accuracy = float((answers == e.query.y).float().mean())
    assert accuracy > 0.8, accuracy


def test_what_is_no_drawing_is_refused() -> None:
    """Vectors, colours, other ranges; too few drawings; none to describe by."""
    with pytest.raises(MisfitError, match=r"these inputs have shape \(6,\) and range None; give a table"):
        Semantics(sample_tasks.classification(), "drawings")
    with pytest.raises(MisfitError, match=r"shape \(3, 16, 16\)"):
        Semantics(sample_tasks.classification(input_shape=(3, 16, 16)), "drawings")
    with pytest.raises(OptionError, match="described is 0, expected at least 1"):
        drawn(described=0)
    with pytest.raises(DataError, match="class number 0 has 12 examples, of which 12 would be set aside"):
        drawn(described=12)
    assert kshot.tasks("semantics", of=shapes(), table="drawings", described=11).pool("val").fewest == 1
