"""Each class gets its row of the table, attributes of drawings are right, and no query is part of a description."""

from __future__ import annotations

import os
import zipfile
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


def npy(shape: str) -> bytes:
    """Return an npy file that says this shape, with a single number."""
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text + bytes(8)


def tasks(names: Any = NAMES) -> ClassificationTasks:
    """Make tasks with four vectors per class."""
    pools = {
        split: Pool.of(
            np.arange(8.0 * len(of_split)).reshape(-1, 2), np.repeat(np.arange(len(of_split)), 4), names=of_split
        )
        for split, of_split in names.items()
    }
    return ClassificationTasks(pools, way=2)


def view(table: Any = None, **options: Any) -> Semantics:
    return Semantics(tasks(), TABLE if table is None else table, **{"way": 2, "query": 2, **options})


# --- From a table -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shot", [0, 1, 2])
def test_each_label_has_its_class_s_row_of_the_table(shot: int) -> None:
    """The order of the table and of the split does not matter; this holds with a support and without."""
    v = view(dict(reversed(TABLE.items())), shot=shot, standardise=False)
    e = v.sample("train", range(20))
    for b, names in enumerate(e.origin.class_names):
        assert e.support.semantics[b].tolist() == [TABLE[name] for name in names]
    assert e.support.x.shape == (20, 2 * shot, 2)
    assert v.spec.semantics_shape == (3,)
    assert v.spec.provides == {"identities", "semantics"}


def test_attributes_are_standardised_by_the_training_classes_alone() -> None:
    """0, 1, 2 and 0, 10, 20 become -1.22, 0, 1.22; the test classes get the same scale, and constants become 0."""
    v = view()
    a = (1.5) ** 0.5
    train = v.pool("train").semantics
    assert torch.allclose(train, torch.tensor([[-a, -a, 0], [0, 0, 0], [a, a, 0]]))
    assert torch.allclose(v.pool("test").semantics, torch.tensor([[3 * a, 0, 0], [4 * a, a, 0]]))
    assert torch.equal(v.pool("trainval").semantics[:3], train)
    assert v.vectors("val").tolist() == [[3.0, 0.0, 7.0]]


def test_episodes_with_a_support_are_those_of_the_tasks_below() -> None:
    """The same seed gives the same classes, examples and queries; only the vectors are new."""
    plain = ClassificationTasks({"train": tasks().pool("train")}, way=2, shot=1, query=2, seed=3).sample(
        "train", [4, 5]
    )
    e = view(shot=1, seed=3).sample("train", [4, 5])
    assert torch.equal(e.support.x, plain.support.x)
    assert np.array_equal(e.origin.query_ids, plain.origin.query_ids)


def test_files_of_both_kinds_give_the_same_table(tmp_path: Path) -> None:
    """A CSV file as a spreadsheet saves it, with a quoted comma, an npz file and a dict of arrays agree."""
    (tmp_path / "t.csv").write_text(
        '"name, of the animal",size,legs\n"ape, great",1.5,2\nbee,-2e-1,6\n', encoding="utf-8-sig"
    )
    names, vectors = ["ape, great", "bee"], np.array([[1.5, 2], [-0.2, 6]])
    np.savez(tmp_path / "t.npz", names=np.array(names), vectors=vectors)
    for source in (tmp_path / "t.csv", str(tmp_path / "t.npz"), dict(zip(names, torch.tensor(vectors), strict=True))):
        table = read(source)
        assert list(table.rows) == names
        assert np.array_equal(table.vectors, vectors)
        assert np.array_equal(table.take(["bee"], "test"), vectors[1:])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a header"),
        ("name,size\n", "expected a header"),
        ("name\nape\n", "expected a header"),
        ("name,size\nape,1,2\n", "got 2 values for class 'ape', expected 1 as in the header"),
        ("name,size\nape,big\n", "got 'big' for attribute 'size' of class 'ape', expected a number"),
        ("name,size\nape,nan\n", "got NaN or infinite values for class 'ape'"),
        ("name,size\nape,1\nape,2\n", "got class 'ape' twice, expected one vector per class"),
    ],
)
def test_a_csv_file_that_is_no_table_is_refused(text: str, message: str, tmp_path: Path) -> None:
    """The error names the class and the attribute."""
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "t.csv")


def test_other_files_that_are_no_table_are_refused(tmp_path: Path) -> None:
    """Refused are missing files, other types of file, broken files and files with other arrays."""
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    np.savez(tmp_path / "flat.npz", names=np.array(["ape"]), vectors=np.zeros(1))
    np.savez(tmp_path / "objects.npz", names=np.array(["ape", 3], object), vectors=np.zeros((2, 1)))
    (tmp_path / "broken.npz").write_bytes(b"PK nothing")
    (tmp_path / "latin.csv").write_bytes("name,größe\n".encode("latin-1"))
    for name, message in (
        ("absent.csv", "got an error when reading it .No such file"),
        ("t.txt", "got a file name ending in '.txt', expected .csv or .npz"),
        ("other.npz", r"got the arrays a, expected names \[C\] and vectors \[C, A\]"),
        ("flat.npz", r"got names of shape \(1,\) and vectors of shape \(1,\)"),
        ("objects.npz", r"names: got an array that can't be read .*, expected a plain array"),
        ("broken.npz", "got a file that can't be read as a zip"),
        ("latin.csv", "expected CSV in UTF-8"),
    ):
        with pytest.raises(DataError, match=message):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "got 0 names and 0 vectors"),
        ({"ape": [10**400]}, "got a vector that is not of numbers"),
        (
            {"ape": [1.0], "bee": [1.0, 2.0]},
            r"got a vector of shape \(2,\) for class 'bee' and of shape \(1,\) for 'ape'",
        ),
        ({"ape": 1.0}, r"shape \(\) for class 'ape'"),
        ({"ape": ["big"]}, "got a vector that is not of numbers"),
        ({"ape": [np.inf]}, "got NaN or infinite values for class 'ape'"),
    ],
)
def test_a_dict_that_is_no_table_is_refused(table: Any, message: str) -> None:
    """The error names the class."""
    with pytest.raises(DataError, match=message):
        read(table)


@pytest.mark.parametrize("suffix", ["csv", "npz"])
def test_a_table_that_is_no_usual_file_is_refused(tmp_path: Path, suffix: str) -> None:
    """A pipe would be waited for, and a device read until the memory is full."""
    os.mkfifo(tmp_path / f"pipe.{suffix}")
    (tmp_path / f"zero.{suffix}").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(DataError, match=rf"{name}\.{suffix}: got a (named pipe|device), expected a table"):
            read(tmp_path / f"{name}.{suffix}")
    with pytest.raises(
        DataError, match=r"got an error when reading it .*, expected a readable file|can't be read as a zip"
    ):
        read(f"a\0.{suffix}")


@pytest.mark.parametrize("array", [b"text", b"", npy("(1, 1"), npy("(1099511627776,)"), npy("(1,)")[:-4]])
def test_a_damaged_array_is_refused(tmp_path: Path, array: bytes) -> None:
    """numpy reads what is no array as bytes, and reserves the memory for as many numbers as the header says."""
    with zipfile.ZipFile(tmp_path / "t.npz", "w") as file:
        for name in ("names.npy", "vectors.npy"):
            file.writestr(name, array)
    with pytest.raises(DataError, match=r"t\.npz: names: got an array that can't be read"):
        read(tmp_path / "t.npz")


def test_a_damaged_npz_file_is_refused(tmp_path: Path) -> None:
    """Its compressed data are wrong."""
    np.savez_compressed(tmp_path / "t.npz", names=np.array(["a"]), vectors=np.arange(900.0)[None])
    data = bytearray((tmp_path / "t.npz").read_bytes())
    data[700:720] = bytes(20)
    (tmp_path / "t.npz").write_bytes(data)
    with pytest.raises(DataError, match=r"t\.npz: got the entry vectors\.npy, which can't be read"):
        read(tmp_path / "t.npz")


def test_missing_classes_are_refused_by_name() -> None:
    """The error comes when the view is made, not in the middle of training, and for every split."""
    with pytest.raises(
        DataError, match=r"got 2 of 2 classes of split 'test' that are not in .*: 'eel', 'fox'; expected names such"
    ):
        view({name: v for name, v in TABLE.items() if name not in ("eel", "fox")})
    with pytest.raises(DataError, match="got classes without names in split 'train'"):
        Semantics(sample_unnamed(), TABLE)


def sample_unnamed() -> ClassificationTasks:
    return ClassificationTasks({"train": Pool.of(np.zeros((4, 2)), [0, 0, 1, 1])}, way=2, query=1)


def test_tasks_without_a_pool_of_labelled_examples_are_refused() -> None:
    """Tasks of another kind are refused; an unknown split and too many queries are too."""
    with pytest.raises(MisfitError, match="Lines are regression tasks without a pool"):
        Semantics(sample_tasks.Lines(), TABLE)
    with pytest.raises(DataError, match="got unknown split 'trian', expected one of train, val, test, trainval"):
        view().sample("trian", [0])
    with pytest.raises(DataError, match="expected at most 4, the number of examples"):
        view(query=5).sample("train", [0])


def test_raw_examples_are_prepared_by_the_tasks_below() -> None:
    """Prediction on files works through the view."""
    assert view().prepare([3.0]).tolist() == [3.0]


# --- Drawings by geometry -------------------------------------------------------------------------------------------


def draw(*lines: str) -> np.ndarray[Any, Any]:
    """Make an image [1, H, W] from lines of # and blanks."""
    return np.array([[[float(c == "#") for c in line] for line in lines]])


RING = draw("      ", " #### ", " #  # ", " #  # ", " #### ", "      ")
DOTS = draw("#     ", "      ", "      ", "      ", "      ", "     #")
CORNERS = draw(" #    ", "# #   ", " #    ", "      ", "      ", "      ")


@pytest.mark.parametrize(("image", "parts", "shut_in"), [(RING, 1, 1), (DOTS, 2, 0), (CORNERS, 1, 1)])
def test_parts_and_holes_by_hand(image: Any, parts: int, shut_in: int) -> None:
    """Ink that touches at a corner is one part and encloses paper, for one image and for several at once."""
    assert components(image > 0, corners=True).tolist() == [parts]
    assert holes(image > 0).tolist() == [shut_in]
    assert components(np.concatenate([RING, DOTS, 0 * RING, CORNERS]) > 0, corners=True).tolist() == [1, 2, 0, 1]
    assert holes(np.concatenate([RING, DOTS, 0 * RING, CORNERS]) > 0).tolist() == [1, 0, 0, 1]


def test_attributes_of_a_ring_by_hand() -> None:
    """12 of 36 pixels, 4 of 6 wide, centred, crossed 1, 2, 2, 1 times by its rows, and equal to its mirror images."""
    computed = dict(zip(ATTRIBUTES, attributes(RING)[0].tolist(), strict=True))
    expected = {
        "ink": 12 / 36, "parts": 1, "holes": 1, "width": 4 / 6, "height": 4 / 6, "centre across": 0.5,
        "centre down": 0.5, "tilt": 0, "crossings across": 1.5, "crossings down": 1.5, "mirrored left to right": 1,
        "mirrored top to bottom": 1, "turned by half": 1,
    }  # fmt: skip
    for name, value in expected.items():
        assert computed[name] == pytest.approx(value, abs=1e-9), name
    positions = np.array([0] * 4 + [1] * 2 + [2] * 2 + [3] * 4) / 6
    assert computed["spread across"] == pytest.approx(positions.std())


def test_attributes_depend_on_the_place_of_the_ink() -> None:
    """A dot in the upper right corner of 8 x 8 pixels has its centre and its bands there."""
    image = np.zeros((1, 8, 8))
    image[0, 1, 6] = 1
    computed = dict(zip(ATTRIBUTES, attributes(image)[0].tolist(), strict=True))
    assert computed["centre across"] == pytest.approx(6.5 / 8)
    assert computed["centre down"] == pytest.approx(1.5 / 8)
    assert [computed[f"column band {b}"] for b in range(4)] == [0, 0, 0, 1]
    assert [computed[f"row band {b}"] for b in range(4)] == [1, 0, 0, 0]
    assert computed["mirrored left to right"] == 0


@pytest.mark.parametrize(("angle", "b"), [(0, 0), (45, 1), (90, 2), (135, 3)])
def test_strokes_have_their_direction(angle: int, b: int) -> None:
    """A bar through the middle of 21 x 21 pixels, turned anticlockwise, lies mostly in its own direction."""
    down, across = np.mgrid[-10:11, -10:11]
    theta = np.deg2rad(angle)
    off = np.abs(across * np.sin(theta) + down * np.cos(theta))
    along = np.abs(across * np.cos(theta) - down * np.sin(theta))
    computed = directions(((off <= 1) & (along <= 8)).astype(float)[None])[0]
    assert computed.argmax() == b
    assert computed[b] > 0.7
    assert computed.sum() == pytest.approx(1)


def test_a_blank_drawing_has_finite_attributes() -> None:
    """Real data contain some blank drawings."""
    computed = attributes(np.zeros((2, 28, 28)))
    assert computed.shape == (2, len(ATTRIBUTES))
    assert np.isfinite(computed).all()


# --- Classes described by their drawings ----------------------------------------------------------------------------

SIDE = 16


def shapes(classes: int = 24, examples: int = 12) -> ClassificationTasks:
    """Make classes that are rectangles of different place and size, outlined or filled, moved by up to a pixel."""

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
    """5 of 12 drawings describe the class and the other 7 are shown; the seed of the episodes has no effect on that."""
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


def test_a_hash_of_the_rows_chooses_the_drawings_that_describe() -> None:
    """The five rows with the least hashes are chosen, wherever in its class a row stands."""
    of = shapes()
    shown = Semantics(of, "drawings", described=5, query=7).pool("val").table()[0]
    for rows in of.pool("val").rows:
        chosen = sorted(rows.tolist(), key=lambda row: int(episode_keys(0, "semantics/set aside", [row])[0]))[:5]
        assert np.setdiff1d(rows, shown).tolist() == sorted(chosen)


def test_a_class_is_described_alike_in_every_split_that_has_it() -> None:
    """Drawings are set aside by their rows, so that trainval does not show what describes a class in train."""
    whole = shapes().pool("train")
    parts = {"train": slice(0, 15), "val": slice(15, 24), "trainval": slice(0, 24)}
    pools = {split: Pool(whole.x, whole.rows[p], whole.counts[p], input_range=(0.0, 1.0)) for split, p in parts.items()}
    v = Semantics(ClassificationTasks(pools), "drawings", described=5, query=7)
    together, apart = v.pool("trainval"), [v.pool("train"), v.pool("val")]
    assert np.array_equal(together.rows, np.concatenate([p.rows for p in apart]))
    assert torch.equal(together.semantics, torch.cat([p.semantics for p in apart]))


def test_classes_of_different_sizes_keep_what_is_left() -> None:
    """Of 4, 11 and 15 drawings 3 each are set aside, so 1, 8 and 12 are left."""
    x = (np.arange(30 * 64).reshape(30, 1, 8, 8) % 251).astype(np.uint8)
    pool = Pool.of(x, np.repeat([0, 1, 2], [4, 11, 15]))
    v = Semantics(ClassificationTasks({"train": pool}, way=3, query=1), "drawings", way=3, query=1, described=3)
    left = v.pool("train")
    assert left.counts.tolist() == [1, 8, 12]
    ids, y = left.table()
    truth = np.repeat([0, 1, 2], [4, 11, 15])
    assert np.array_equal(truth[ids], y)


def test_descriptions_of_unseen_classes_identify_drawings() -> None:
    """The nearest description classifies 5-way tasks without learning, with far more than 20 % accuracy."""
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
    """Refused are vectors, colour images, ``described`` below 1, and classes with too few drawings."""
    with pytest.raises(
        MisfitError, match=r"got inputs of shape \(6,\) and range None, expected images .* give a table"
    ):
        Semantics(sample_tasks.classification(), "drawings")
    with pytest.raises(MisfitError, match=r"shape \(3, 16, 16\)"):
        Semantics(sample_tasks.classification(input_shape=(3, 16, 16)), "drawings")
    with pytest.raises(OptionError, match="got described 0, expected at least 1"):
        drawn(described=0)
    with pytest.raises(DataError, match="got described 12, but class number 0 of split 'train' has 12 examples"):
        drawn(described=12)
    assert kshot.tasks("semantics", of=shapes(), table="drawings", described=11).pool("val").fewest == 1
