"""A user's own pictures, whatever form they come in, reach a plugin alike; kshot-imagefolder's tests have the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from kshot.data.pictures import formats, inputs, opaque, read
from kshot.errors import DataError

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (4, 6, 3), np.uint8)
GREYS = RNG.integers(0, 256, (4, 6), np.uint8)


def grey(raw: Any) -> Tensor:
    def made(image: Image.Image) -> NDArray[np.uint8]:
        return np.asarray(image.convert("L"))[None]

    return inputs(raw, made, (1, 4, 6), who="me")


def colour(raw: Any) -> Tensor:
    def made(image: Image.Image) -> NDArray[np.uint8]:
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1)

    return inputs(raw, made, (3, 4, 6), who="me")


def test_arrays_of_colours_are_one_or_many_with_channels_on_either_side() -> None:
    first = COLOURS.transpose(2, 0, 1)
    clear = np.dstack([COLOURS, np.full((4, 6), 255, np.uint8)])
    expected = torch.from_numpy(first[None] / 255).float()
    for given in (COLOURS, first, COLOURS[None], first[None], torch.tensor(first), clear, Image.fromarray(COLOURS)):
        assert torch.allclose(colour(given), expected, atol=1e-7)
    assert torch.equal(colour([COLOURS, [first]]), torch.cat([colour(COLOURS)] * 2))
    assert torch.equal(colour(expected), expected)


def test_arrays_of_greys_are_one_or_a_stack() -> None:
    """[n, h, w] is a stack, of 3 too; only a last axis of channels makes one picture of three axes."""
    expected = torch.from_numpy(GREYS / 255).float()[None, None]
    for given in (GREYS, GREYS[None], GREYS[..., None], GREYS[None, None], GREYS[None, ..., None]):
        assert torch.allclose(grey(given), expected)
    assert torch.equal(grey(np.stack([GREYS] * 3)), torch.cat([grey(GREYS)] * 3))
    assert grey(COLOURS).shape == (1, 1, 4, 6)


def test_a_plain_picture_is_left_alone_and_others_become_plain() -> None:
    """Half of 16 bits is half of 8; what is transparent is white."""
    image = Image.fromarray(COLOURS)
    assert opaque(image) is image
    assert np.asarray(opaque(Image.fromarray(np.full((2, 2), 128 * 257, np.uint16)))).tolist() == [[128, 128]] * 2
    assert opaque(Image.new("RGBA", (1, 1), (9, 9, 9, 0))).convert("L").getpixel((0, 0)) == 255
    for values, told in ((np.array([[70000]], np.int32), "16 bits"), (np.array([[2.0]], np.float32), "floats of 0 to")):
        with pytest.raises(DataError, match=rf"x\.tif: has values from .* expected {told}"):
            opaque(Image.fromarray(values), "x.tif")


def test_a_picture_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(GREYS).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(np.asarray(read(tmp_path / "x.png")), np.rot90(GREYS, -1))


def test_programs_and_stubs_are_no_pictures() -> None:
    """EPS runs Ghostscript; others Pillow only recognises."""
    assert {".png", ".jpg", ".gif", ".bmp", ".pgm", ".tif"} <= set(formats())
    assert not {".eps", ".ps", ".mpg", ".h5", ".pdf", ".txt"} & set(formats())


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            np.zeros((2, 1, 5, 5), np.float32),
            r"me: can't prepare floats of shape \[2, 1, 5, 5\]; expected inputs \[n, 3, 4",
        ),
        (np.full((1, 3, 4, 6), 2.0, np.float32), "within"),
        (np.full((1, 3, 4, 6), np.nan, np.float32), "within"),
        (np.zeros((7, 5, 5), np.uint8), r"can't prepare uint8 of shape \[7, 5, 5\]; .* with 1, 3 or 4 channels$"),
        (np.zeros((0, 4, 6, 3), np.uint8), "can't prepare uint8"),
        (np.zeros((5, 5), np.int64), "can't prepare int64"),
        (7, "can't prepare int"),
        ([], "can't prepare list"),
        ("no-such-file.png", r"no-such-file\.png: can't be read as an image \(FileNotFoundError.*mend it"),
    ],
)
def test_what_cannot_be_prepared_is_told(given: Any, told: str) -> None:
    with pytest.raises(DataError, match=told):
        colour(given)


def test_a_file_of_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("no picture")
    with pytest.raises(DataError, match=r"x\.png: can't be read as an image \(UnidentifiedImageError"):
        colour([COLOURS, tmp_path / "x.png"])
