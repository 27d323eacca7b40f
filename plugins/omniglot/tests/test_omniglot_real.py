"""The full data, if available, have the published counts and split, and drawings are of their classes."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import kshot
from kshot_omniglot import omniglot


@pytest.fixture(scope="session")
def tasks(real: Path, common_cache: Path) -> kshot.ClassificationTasks:
    return omniglot(root=real, cache=common_cache)


def share_of_ink(data: bytes) -> np.ndarray[Any, Any]:
    """Resize a drawing to 28 x 28 in another way: each pixel is the mean of those whose centres lie in its square."""
    ink = 1 - np.asarray(Image.open(io.BytesIO(data)).convert("L"), np.float64) / 255
    centres = np.arange(105) + 0.5
    inside = [(3.75 * i < centres) & (centres <= 3.75 * (i + 1)) for i in range(28)]
    return np.array([[ink[np.ix_(rows, columns)].mean() for columns in inside] for rows in inside])


def drawings_of(real: Path, character: str) -> list[np.ndarray[Any, Any]]:
    for part in ("images_background", "images_evaluation"):
        with zipfile.ZipFile(real / f"{part}.zip") as archive:
            names = [n for n in archive.namelist() if f"/{character}/" in n]
            if names:
                return [share_of_ink(archive.read(n)) for n in names]
    raise AssertionError(character)


def test_all_drawings_are_there(tasks: kshot.ClassificationTasks) -> None:
    """One table has 1623 characters in four rotations, with 20 drawings each."""
    assert tasks.pool("train").x.shape == (4 * 32460, 1, 28, 28)
    assert tasks.pool("train").x.dtype == torch.uint8
    held = np.concatenate([tasks.pool(s).rows.ravel() for s in ("train", "val", "test")])
    assert np.array_equal(np.sort(held), np.arange(4 * 32460))


def test_vinyals_split_is_the_published_one(tasks: kshot.ClassificationTasks, real: Path) -> None:
    """The order of the lines matters, because it numbers the classes; trainval has the classes in another order."""
    for split in ("train", "val", "test"):
        assert list(tasks.pool(split).names) == (real / "splits" / "vinyals" / f"{split}.txt").read_text().split()
    trainval = (real / "splits" / "vinyals" / "trainval.txt").read_text().split()
    assert sorted(tasks.pool("trainval").names) == sorted(trainval)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_images_of_an_episode_are_of_the_class_they_are_named_after(
    tasks: kshot.ClassificationTasks, real: Path, split: str
) -> None:
    """Inputs are at most one grey level from drawings decoded in another way, because each axis is rounded."""
    episode = tasks.sample(split, [5])
    assert episode.origin is not None
    for label, name in enumerate(episode.origin.class_names[0]):
        character, turn = name.rsplit("/rot", 1)
        known = np.stack([np.rot90(d, int(turn) // 90) for d in drawings_of(real, character)])
        for x in (
            *episode.support.x[0][episode.support.y[0] == label],
            *episode.query.x[0][episode.query.y[0] == label],
        ):
            assert np.abs(known - x[0].numpy()).max((1, 2)).min() < 1.5 / 255


def test_lake_split_of_the_full_data(real: Path, common_cache: Path) -> None:
    """964 characters of 30 alphabets are for training and validation, 659 of 20 for the test, all upright."""
    lake = omniglot(root=real, cache=common_cache, protocol="lake")
    sizes = {split: lake.pool(split).classes for split in lake.spec.splits}
    assert sizes == {"train": 792, "val": 172, "test": 659, "trainval": 964}
    assert lake.pool("test").x.shape == (32460, 1, 28, 28)


def test_embedded_drawings_are_the_real_ones(tasks: kshot.ClassificationTasks) -> None:
    """Every pixel of every drawing is the same after the same resizing."""
    embedded = omniglot()
    for split in ("train", "val", "test"):
        some, full = embedded.pool(split), tasks.pool(split)
        number = {name: c for c, name in enumerate(full.names)}
        rows = full.rows[[number[name] for name in some.names]]
        assert torch.equal(
            some.x[torch.from_numpy(some.rows.ravel())], full.x[torch.from_numpy(np.ascontiguousarray(rows).ravel())]
        )


@pytest.mark.slow
def test_folder_and_zips_give_the_same_table(tasks: kshot.ClassificationTasks, real: Path, tmp_path: Path) -> None:
    """All 32,460 files are unpacked for this."""
    for part in ("images_background", "images_evaluation"):
        with zipfile.ZipFile(real / f"{part}.zip") as archive:
            archive.extractall(tmp_path / "unpacked")
    unpacked = omniglot(root=tmp_path / "unpacked", cache=tmp_path / "c")
    assert unpacked.fingerprint == tasks.fingerprint
    assert torch.equal(unpacked.pool("train").x, tasks.pool("train").x)
