"""Decoding, resizing and preparing a user's own pictures agree with plain numpy."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kshot import registry
from kshot.errors import DataError
from kshot_orl_faces import orl_faces
from kshot_orl_faces.pictures import decode, digest, prepare

Small = Callable[..., Path]
PEOPLE = (2, 1, 1)


def raw(path: Path) -> np.ndarray[Any, Any]:
    """Return the pixels of a picture's file, which are its last 92 x 112 bytes."""
    return np.frombuffer(path.read_bytes()[-112 * 92 :], np.uint8).reshape(112, 92)


def test_inputs_are_the_means_of_the_pixels_they_cover(small: Small) -> None:
    """At the default size, half the original, an input pixel is the mean of 2 x 2, rounded by rows and by columns."""
    folder = small(unpacked=True)
    pool = orl_faces(root=folder, people=PEOPLE).pool("train")
    for c, name in enumerate(pool.names):
        for i in range(10):
            original = raw(folder / name / f"{i + 1}.pgm").astype(np.float64)
            naive = original.reshape(56, 2, 46, 2).mean((1, 3))
            found = pool.gather(pool.rows[c, i : i + 1])[0, 0].numpy() * 255
            assert np.abs(found - naive).max() <= 1 + 1e-3


def test_the_originals_are_left_as_they_are(small: Small) -> None:
    """At size (112, 92) nothing is resized."""
    folder = small(unpacked=True)
    pool = orl_faces(root=folder, people=PEOPLE, size=(112, 92)).pool("test")
    assert pool.x.dtype == torch.uint8
    assert np.array_equal(pool.x[pool.rows[0, 3], 0].numpy(), raw(folder / pool.names[0] / "4.pgm"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"P5\n92 112\n255\n" + bytes(1000), "got a file that can't be decoded"),
        (b"GIF89a", "got a file that can't be decoded"),
        (b"", "got a file that can't be decoded"),
        (b"P5\n112 92\n255\n" + bytes(112 * 92), "got 112 x 92 pixels of mode L, expected 92 x 112 grey"),
        (b"P6\n92 112\n255\n" + bytes(3 * 112 * 92), "got 92 x 112 pixels of mode RGB"),
    ],
)
def test_file_that_is_no_such_picture_is_named(small: Small, data: bytes, message: str) -> None:
    """The files are cut off, or of another format, size or colour."""
    path = small(change=lambda content: content.update({"s2/3.pgm": data}))
    with pytest.raises(DataError, match=rf"att_faces\.zip: s2/3\.pgm: {message}"):
        orl_faces(root=path, people=PEOPLE)


def test_the_digest_is_of_the_pictures_and_not_of_the_file() -> None:
    """A comment in a header does not change the digest; a pixel or a name does."""
    pixels = bytes(range(92)) * 112
    plain, remarked = b"P5\n92 112\n255\n" + pixels, b"P5\n# by xv\n92 112\n255\n" + pixels
    made = [digest(["s1"], decode({"s1": [data]}, "here")) for data in (plain, remarked)]
    assert made[0] == made[1]
    assert digest(["s1"], decode({"s1": [plain[:-1] + b"x"]}, "here")) != made[0]
    assert digest(["s2"], decode({"s2": [plain]}, "here")) != made[0]


def test_own_pictures_are_prepared_as_the_data_are(small: Small, tmp_path: Path) -> None:
    """A path, an image, arrays and a mixture all give the same inputs."""
    folder = small(unpacked=True)
    tasks = orl_faces(root=folder, people=PEOPLE)
    pool = tasks.pool("train")
    expected = pool.gather(pool.rows[0, :1])
    path = folder / pool.names[0] / "1.pgm"
    pixels = raw(path)
    for given in (path, str(path), Image.open(path), pixels, pixels[None, None], torch.from_numpy(pixels.copy())):
        assert torch.equal(tasks.prepare(given), expected)
    assert torch.equal(tasks.prepare([path, pixels]), expected.expand(2, -1, -1, -1))
    assert torch.equal(tasks.prepare(expected), expected)
    colours = Image.merge("RGB", [Image.fromarray(pixels)] * 3)
    made = io.BytesIO()
    colours.save(made, "PNG")
    (tmp_path / "mine.png").write_bytes(made.getvalue())
    assert torch.allclose(tasks.prepare(tmp_path / "mine.png"), expected, atol=1.5 / 255)
    Image.fromarray(pixels.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert torch.equal(tasks.prepare(tmp_path / "deep.png"), expected)
    assert torch.equal(registry.preparation(tasks.preparation.to_dict())(path), expected)
    assert orl_faces(root=folder, people=PEOPLE, augment=1.0).preparation.options == tasks.preparation.options


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((2, 1, 5, 5), np.float32), r"got floats of shape \[2, 1, 5, 5\]"),
        (np.full((1, 1, 56, 46), 2.0, np.float32), "within"),
        (np.zeros((2, 2, 5, 5), np.uint8), "got uint8 of shape"),
        (np.zeros((5, 5), np.int64), "got int64 of shape"),
        (7, "got int to prepare"),
        ([], "got an empty list to prepare"),
        ("no-such-file.png", "can't be read as an image"),
    ],
)
def test_inputs_of_another_form_are_refused(given: Any, message: str) -> None:
    """They are refused before a learner receives them."""
    with pytest.raises(DataError, match=message):
        prepare(given, (56, 46))
