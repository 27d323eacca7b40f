"""Protocols, splits and options are as documented, on generated data and on the embedded subset."""

from __future__ import annotations

import logging
import shutil
import socket
from collections.abc import Callable
from importlib.metadata import files as installed_files
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kshot
from kshot.errors import DataError
from kshot_omniglot import omniglot, table
from kshot_omniglot.splits import LAKE_VAL, vinyals


def alphabets(tasks: kshot.ClassificationTasks, split: str) -> set[str]:
    return {name.split("/")[0] for name in tasks.pool(split).names}


def test_embedded_is_the_default_without_data_and_network(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The main job runs on a fresh machine that is offline, and says which data it uses."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    with caplog.at_level(logging.INFO, "kshot_omniglot"):
        tasks = kshot.tasks("omniglot")
    assert tasks.fingerprint.startswith("omniglot-embedded-28px-rotations-")
    assert any("embedded" in r.message and tasks.fingerprint in r.message for r in caplog.records)
    assert tasks.sample("train", [0]).query.x.shape == (1, 75, 1, 28, 28)


def test_embedded_splits_are_whole_alphabets_of_their_own() -> None:
    """The splits have 12, 3 and 5 alphabets; the numbers of characters are summed by hand, times four rotations."""
    tasks = omniglot()
    held = {split: alphabets(tasks, split) for split in ("train", "val", "test")}
    assert {split: len(a) for split, a in held.items()} == {"train": 12, "val": 3, "test": 5}
    assert not held["train"] & held["val"] | held["train"] & held["test"] | held["val"] & held["test"]
    train = 29 + 24 + 26 + 33 + 26 + 24 + 48 + 52 + 40 + 26 + 42 + 55
    expected = {"train": train, "val": 41 + 22 + 22, "test": 26 + 47 + 30 + 25 + 42}
    for split, characters in expected.items():
        assert tasks.pool(split).classes == 4 * characters
        assert set(tasks.pool(split).counts.tolist()) == {20}


def test_embedded_splits_lie_within_those_of_vinyals_and_lake(miniature: Path) -> None:
    """A model that was trained on the full data must not have seen the test classes of the subset."""
    embedded, full = omniglot(rotations=False), omniglot(root=miniature, protocol="lake", query=1)
    for split in ("train", "val", "test"):
        names = set(embedded.pool(split).names)
        assert names <= set(vinyals()[split])
        assert names <= set(full.pool(split).names)


def test_embedded_file_is_small_and_carries_its_licence() -> None:
    """The MIT licence requires the notice beside the data, and the wheel of a plugin should be small."""
    folder = files("kshot_omniglot")
    assert len((folder / "embedded.xz").read_bytes()) <= 3_000_000
    licence = (folder / "LICENSE-omniglot").read_text()
    assert "Copyright (c) 2015 Brenden Lake" in licence
    assert "The above copyright notice and this permission notice shall be included" in licence
    assert installed_files("kshot-omniglot")


def test_vinyals_split_has_the_known_sizes(miniature: Path) -> None:
    """The splits have 1028, 172 and 423 characters with four rotations each, as in the published lists."""
    tasks = omniglot(root=miniature, query=1)
    sizes = {split: tasks.pool(split).classes for split in tasks.spec.splits}
    assert sizes == {"train": 4112, "val": 688, "test": 1692, "trainval": 4800}
    assert tasks.fingerprint.startswith("omniglot-vinyals-")


def test_lake_split_is_by_part_and_alphabet(miniature: Path) -> None:
    """30 background alphabets, 5 of them for validation, and 20 for the test, without rotations (Lake et al. 2015)."""
    tasks = omniglot(root=miniature, protocol="lake", query=1)
    held = {split: alphabets(tasks, split) for split in tasks.spec.splits}
    assert {s: len(a) for s, a in held.items()} == {"train": 25, "val": 5, "test": 20, "trainval": 30}
    assert held["val"] == set(LAKE_VAL)
    assert tasks.pool("trainval").classes == 964
    assert tasks.pool("test").classes == 659
    assert "Latin/character01" in tasks.pool("train").names


@pytest.mark.parametrize("options", [{"protocol": "vinyals"}, {"protocol": "lake"}, {"protocol": "embedded"}])
def test_no_class_and_no_drawing_is_in_two_splits(miniature: Path, options: dict[str, Any]) -> None:
    """train, val and test have nothing in common; trainval is exactly train and val."""
    if options["protocol"] != "embedded":
        options = {**options, "root": miniature}
    tasks = omniglot(query=1, **options)
    names = {s: tasks.pool(s).names for s in tasks.spec.splits}
    rows = {s: set(tasks.pool(s).rows.ravel().tolist()) - {-1} for s in tasks.spec.splits}
    for what in ({s: set(n) for s, n in names.items()}, rows):
        assert not what["train"] & what["val"] | what["train"] & what["test"] | what["val"] & what["test"]
        assert what["trainval"] == what["train"] | what["val"]
    assert all(len(set(n)) == len(n) for n in names.values())


def test_rotations_are_exact_quarter_turns_named_after_their_angle() -> None:
    """rotDDD is turned anticlockwise by DDD degrees, as the published pipeline does."""
    pool = omniglot().pool("val")
    drawings = {name: pool.x[torch.from_numpy(pool.rows[c])].numpy() for c, name in enumerate(pool.names)}
    for turn in range(4):
        for character in ("Hebrew/character01", "Armenian/character41"):
            upright = drawings[f"{character}/rot000"]
            # Row by row by hand: a quarter turn anticlockwise takes the last column to the first row.
            expected = upright
            for _ in range(turn):
                expected = expected[..., ::-1].swapaxes(-1, -2)
            assert np.array_equal(drawings[f"{character}/rot{90 * turn:03d}"], expected)


@pytest.mark.parametrize("size", [20, 105])
def test_size_is_that_of_the_inputs(size: int) -> None:
    """105 is the drawings' own size, at which nothing is resized and every pixel is ink or paper."""
    tasks = omniglot(size=size, rotations=False)
    assert tasks.spec.input_shape == (1, size, size)
    x = tasks.sample("test", [0]).support.x
    assert x.shape == (1, 5, 1, size, size)
    assert 0.005 < float(x.mean()) < 0.2  # ink is 1 and rare
    if size == 105:
        assert set(x.unique().tolist()) == {0.0, 1.0}


def test_without_rotations_names_are_the_characters() -> None:
    """Each character is one class."""
    pool = omniglot(rotations=False).pool("val")
    assert pool.classes == 85
    assert pool.names[0] == "Armenian/character01"


def test_shape_may_vary_by_block() -> None:
    """Ranges of way, shot or query are passed on to the tasks. All episodes of a block have one way."""
    made = [omniglot(way=(2, 6), shot=(1, 3), block=4, seed=seed) for seed in (0, 1)]
    assert made[0].spec.varies
    ways = [[tasks.sample("train", range(4 * b, 4 * b + 4)).support.way for b in range(20)] for tasks in made]
    assert len(set(ways[0])) > 1
    assert ways[0] != ways[1]


def test_root_may_be_zip_folder_or_a_known_layout(miniature: Path, tmp_path: Path) -> None:
    """The folder, one of the zips, and the folder where torchvision stores them all mean the same data."""
    torchvision = tmp_path / "data" / "omniglot-py"
    shutil.copytree(miniature, torchvision)
    fingerprints = {
        omniglot(root=root, query=1).fingerprint
        for root in (miniature, str(miniature), miniature / "images_evaluation.zip", torchvision.parent)
    }
    assert len(fingerprints) == 1


def test_environment_names_the_default_root(miniature: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable is read at each call, so that a test or a notebook can set it."""
    monkeypatch.setenv("KSHOT_OMNIGLOT", str(miniature))
    assert "-vinyals-" in omniglot(query=1).fingerprint
    assert "-embedded-" in omniglot(protocol="embedded").fingerprint


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"protocol": "vinyals"}, "download=True"),
        ({"protocol": "lake"}, "KSHOT_OMNIGLOT"),
        ({"protocol": "embedded", "root": "."}, "leave them out"),
        ({"root": ".", "download": True}, "both root and download"),
        ({"protocol": "snell"}, "'snell'"),
        ({"root": "no/such/folder"}, "does not exist"),
        ({"size": 0}, "size: got 0"),
        ({"workers": 0}, "workers: got 0"),
        ({"shot": 6, "query": 15}, "shot \\+ query of 6 \\+ 15 = 21, expected at most 20"),
        ({"shot": (1, 10), "query": 15}, "10 \\+ 15 = 25"),
    ],
)
def test_options_that_cannot_be_met_are_refused(options: dict[str, Any], said: str) -> None:
    """The error is raised before anything is decoded, and says what to do."""
    with pytest.raises(DataError, match=said):
        omniglot(**options)


def test_too_few_drawings_are_refused_before_decoding(miniature: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The miniature has two drawings per character."""

    def refuse(*_: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(table, "decode_all", refuse)
    with pytest.raises(DataError, match="got shot \\+ query of 1 \\+ 15 = 16, expected at most 2"):
        omniglot(root=miniature)


def test_incomplete_data_are_refused_with_what_is_missing(small: Callable[..., Path]) -> None:
    """Results on other characters would not be Omniglot's."""
    with pytest.raises(DataError, match=r"got 4 characters in images_background, expected 964.*missing"):
        omniglot(root=small())
