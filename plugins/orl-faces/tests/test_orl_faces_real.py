"""The real faces, if available, have the right counts and contents, and are of the people in their names."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import kshot
from kshot_orl_faces import orl_faces
from kshot_orl_faces.changes import Changed


@pytest.fixture(scope="session")
def tasks(real: Path) -> kshot.ClassificationTasks | Changed:
    return orl_faces(root=real)


def test_all_pictures_are_there(tasks: kshot.ClassificationTasks) -> None:
    """40 people with 10 pictures each are in one table, and each person is in one of three splits."""
    assert tasks.pool("train").x.shape == (400, 1, 56, 46)
    assert tasks.pool("train").x.dtype == torch.uint8
    assert [tasks.pool(s).classes for s in ("train", "val", "test", "trainval")] == [20, 10, 10, 30]
    held = np.concatenate([tasks.pool(s).rows.ravel() for s in ("train", "val", "test")])
    assert np.array_equal(np.sort(held), np.arange(400))


def test_pictures_are_of_the_person_they_are_named_after(real: Path) -> None:
    """At full size their bytes are those in the zip."""
    t = orl_faces(root=real, size=(112, 92))
    with zipfile.ZipFile(real / "att_faces.zip") as archive:
        for split in ("train", "val", "test"):
            pool = t.pool(split)
            for c, name in enumerate(pool.names):
                for i in (1, 10):
                    pixels = archive.read(f"{name}/{i}.pgm")[-112 * 92 :]
                    assert pool.x[pool.rows[c, i - 1]].numpy().tobytes() == pixels


def test_people_are_known_by_pixels_far_above_chance(tasks: kshot.ClassificationTasks) -> None:
    """Chance is 20 % for 5 people; the nearest neighbour would reach no more if labels or pictures were mixed up."""
    right = []
    for i in range(40):
        e = tasks.sample("test", [i])
        nearest = torch.cdist(e.query.x.flatten(2), e.support.x.flatten(2))[0].argmin(-1)
        right.append(float((e.support.y[0][nearest] == e.query.y[0]).float().mean()))
    assert np.mean(right) > 0.7
