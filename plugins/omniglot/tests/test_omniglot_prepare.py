"""A user's own pictures become inputs by the same steps as the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kshot import registry
from kshot.errors import DataError
from kshot_omniglot import omniglot
from kshot_omniglot.decode import ink


@pytest.fixture(scope="module")
def drawing(common_cache: Path) -> tuple[Any, torch.Tensor, np.ndarray[Any, Any]]:
    """Return tasks, a drawing as an input [1, 28, 28], and its picture of 105 x 105 pixels, black on white."""
    tasks, original = (omniglot(cache=common_cache, protocol="embedded", rotations=False, size=s) for s in (28, 105))
    row = int(tasks.pool("test").rows[3, 7])
    return tasks, tasks.pool("test").gather(np.array([row]))[0], 255 - original.pool("test").x[row, 0].numpy()


def test_reduction_is_the_mean_over_boxes() -> None:
    """Of 4 x 4 pixels, those of a quarter become one; ink is 1 and paper 0. A nearest pixel would lose thin strokes."""
    paper = np.full((4, 4), 255, np.uint8)
    paper[0, 1] = paper[2, 2] = paper[3, 3] = paper[2, 3] = 0
    reduced = np.frombuffer(ink(Image.fromarray(paper), 2), np.uint8) / 255
    assert reduced.tolist() == pytest.approx([0.25, 0.0, 0.0, 0.75], abs=1 / 255)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "P", "I;16"])
def test_saved_drawing_comes_back_as_its_input(drawing: Any, tmp_path: Path, mode: str) -> None:
    """The kind of picture as which it was saved does not matter."""
    tasks, expected, picture = drawing
    if mode == "I;16":
        image = Image.fromarray(picture.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(picture).convert(mode)
    image.save(tmp_path / "a.png")
    for raw in (tmp_path / "a.png", str(tmp_path / "a.png"), image):
        x = tasks.prepare(raw)
        assert x.dtype == torch.float32
        assert torch.equal(x, expected[None])


def test_arrays_and_lists_are_stacked(drawing: Any) -> None:
    """Arrays may be [h, w], [n, h, w] or [n, 1, h, w]; tensors and lists of these are accepted too."""
    tasks, expected, picture = drawing
    two = np.stack([picture, picture])
    for raw, n in (
        (picture, 1),
        (two, 2),
        (two[:, None], 2),
        (torch.from_numpy(two), 2),
        ([picture, Image.fromarray(picture), two], 4),
    ):
        assert torch.equal(tasks.prepare(raw), expected.expand(n, 1, 28, 28))


def test_inputs_stay_as_they_are(drawing: Any) -> None:
    """Preparing an input again does not change it."""
    tasks, expected, _ = drawing
    assert torch.equal(tasks.prepare(tasks.prepare(expected[None])), expected[None])
    assert torch.equal(registry.preparation(tasks.preparation.to_dict())(expected[None]), expected[None])


def test_transparent_is_paper(drawing: Any) -> None:
    """The canvas of a web page saves ink on a transparent background."""
    tasks, expected, picture = drawing
    canvas = np.zeros((105, 105, 4), np.uint8)
    canvas[..., 3] = 255 - picture
    assert torch.equal(tasks.prepare(Image.fromarray(canvas)), expected[None])


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("no/such.png", r"no/such\.png: got a file that can't be read"),
        (7, "got int to prepare"),
        ([], "got an empty list to prepare"),
        (np.zeros((3, 2, 5, 6), np.uint8), r"uint8 of shape \[3, 2, 5, 6\]"),
        (np.zeros((4, 4), np.int64), "int64 of shape"),
        (np.zeros((0, 4, 4), np.uint8), r"shape \[0, 4, 4\]"),
        (np.full((1, 1, 28, 28), 2.0), "floats of shape"),
        (np.full((1, 1, 28, 28), np.nan), "floats of shape"),
        (np.zeros((28, 28)), "floats of shape"),
    ],
)
def test_what_is_no_picture_is_refused(drawing: Any, raw: Any, said: str) -> None:
    """The error says what was given and what was expected."""
    with pytest.raises(DataError, match=said):
        drawing[0].prepare(raw)


def test_file_that_is_no_picture_is_named(drawing: Any, tmp_path: Path) -> None:
    """A user must be able to find one wrong file among many."""
    (tmp_path / "b.png").write_text("text")
    with pytest.raises(DataError, match=r"b\.png: got a file that can't be read as an image"):
        drawing[0].prepare([tmp_path / "b.png"])
