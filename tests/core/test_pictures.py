"""Pictures of any form become inputs by the same rules; kshot-imagefolder tests more kinds of files."""

from __future__ import annotations

import os
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
    """All forms of the same picture give the same input."""
    first = COLOURS.transpose(2, 0, 1)
    clear = np.dstack([COLOURS, np.full((4, 6), 255, np.uint8)])
    expected = torch.from_numpy(first[None] / 255).float()
    for given in (COLOURS, first, COLOURS[None], first[None], torch.tensor(first), clear, Image.fromarray(COLOURS)):
        assert torch.allclose(colour(given), expected, atol=1e-7)
    assert torch.equal(colour([COLOURS, [first]]), torch.cat([colour(COLOURS)] * 2))
    assert torch.equal(colour(expected), expected)


def test_arrays_of_greys_are_one_or_a_stack() -> None:
    """[n, h, w] is a stack, also if n is 3; only a last axis of channels makes three axes one picture."""
    expected = torch.from_numpy(GREYS / 255).float()[None, None]
    for given in (GREYS, GREYS[None], GREYS[..., None], GREYS[None, None], GREYS[None, ..., None]):
        assert torch.allclose(grey(given), expected)
    assert torch.equal(grey(np.stack([GREYS] * 3)), torch.cat([grey(GREYS)] * 3))
    assert grey(COLOURS).shape == (1, 1, 4, 6)


def test_an_8_bit_opaque_picture_is_unchanged_and_others_become_one() -> None:
    """Half of the range of 16 bits is half of the range of 8; transparent pixels become white."""
    image = Image.fromarray(COLOURS)
    assert opaque(image) is image
    assert np.asarray(opaque(Image.fromarray(np.full((2, 2), 128 * 257, np.uint16)))).tolist() == [[128, 128]] * 2
    assert opaque(Image.new("RGBA", (1, 1), (9, 9, 9, 0))).convert("L").getpixel((0, 0)) == 255
    for values, told in ((np.array([[70000]], np.int32), "16 bits"), (np.array([[2.0]], np.float32), "floats of 0 to")):
        with pytest.raises(DataError, match=rf"x\.tif: got values from .* expected {told}"):
            opaque(Image.fromarray(values), "x.tif")


def test_a_picture_is_turned_by_its_exif_orientation(tmp_path: Path) -> None:
    """Cameras store pictures as the sensor sees them."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(GREYS).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(np.asarray(read(tmp_path / "x.png")), np.rot90(GREYS, -1))


def test_formats_that_run_programs_or_cannot_be_decoded_are_left_out() -> None:
    """EPS runs Ghostscript; Pillow recognises others but can't decode them."""
    assert {".png", ".jpg", ".gif", ".bmp", ".pgm", ".tif"} <= set(formats())
    assert not {".eps", ".ps", ".mpg", ".h5", ".pdf", ".txt"} & set(formats())


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            np.zeros((2, 1, 5, 5), np.float32),
            r"me: got floats of shape \[2, 1, 5, 5\] to prepare, expected inputs \[n, 3, 4",
        ),
        (np.full((1, 3, 4, 6), 2.0, np.float32), "within"),
        (np.full((1, 3, 4, 6), np.nan, np.float32), "within"),
        (np.zeros((7, 5, 5), np.uint8), r"got uint8 of shape \[7, 5, 5\] to prepare, .* with 1, 3 or 4 channels$"),
        (np.zeros((0, 4, 6, 3), np.uint8), "got uint8 of shape"),
        (np.zeros((5, 5), np.int64), "got int64 of shape"),
        (7, "got int to prepare"),
        ([], "got an empty list to prepare"),
        (
            "no-such-file.png",
            r"no-such-file\.png: got a file that can't be read as an image \(FileNotFoundError.*fix or",
        ),
    ],
)
def test_inputs_of_another_form_are_refused(given: Any, told: str) -> None:
    """The message says what was given and which forms are accepted."""
    with pytest.raises(DataError, match=told):
        colour(given)


def test_a_text_file_is_refused_by_name(tmp_path: Path) -> None:
    """Among many files, a user must know which one it is."""
    (tmp_path / "x.png").write_text("no picture")
    with pytest.raises(DataError, match=r"x\.png: got a file that can't be read as an image \(UnidentifiedImageError"):
        colour([COLOURS, tmp_path / "x.png"])


@pytest.mark.parametrize(
    "mode",
    [
        "1",
        "L",
        "P",
        "RGB",
        "RGBA",
        "RGBX",
        "RGBa",
        "CMYK",
        "YCbCr",
        "LAB",
        "HSV",
        "LA",
        "La",
        "I",
        "F",
        "I;16",
        "I;16B",
    ],
)
@pytest.mark.parametrize("wanted", ["L", "RGB"])
def test_a_picture_of_any_mode_can_be_converted(mode: str, wanted: str) -> None:
    """Pillow itself can't make greys of LAB."""
    assert opaque(Image.new(mode, (2, 2))).convert(wanted).size == (2, 2)


def test_whatever_a_plugin_s_conversion_raises_names_the_picture(tmp_path: Path) -> None:
    """In a file, and in an image that was opened and is not loaded yet."""
    Image.new("RGB", (40, 40)).save(tmp_path / "x.png")

    def fail(image: Image.Image) -> Any:
        raise ZeroDivisionError

    with pytest.raises(DataError, match=r"x\.png: got a file that can't be read as an image \(ZeroDivisionError"):
        inputs(tmp_path / "x.png", fail, (3, 4, 4), who="me")
    (tmp_path / "cut.bmp").write_bytes(b"")
    Image.new("RGB", (40, 40)).save(tmp_path / "cut.bmp")
    (tmp_path / "cut.bmp").write_bytes((tmp_path / "cut.bmp").read_bytes()[:-100])
    with Image.open(tmp_path / "cut.bmp") as image, pytest.raises(DataError, match=r"cut\.bmp: got a file"):
        inputs(image, lambda picture: np.asarray(picture.convert("RGB")).transpose(2, 0, 1), (3, 40, 40), who="me")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    """Opening it waits for somebody who writes."""
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(DataError, match=r"x\.png: got a named pipe, expected an image"):
        read(tmp_path / "x.png")


@pytest.mark.parametrize(("sixteen", "eight"), [(0, 0), (255, 0), (256, 1), (0x12FE, 0x12), (65535, 255)])
def test_a_grey_of_16_bits_keeps_its_upper_half(sixteen: int, eight: int) -> None:
    """Its lower half is noise; Pillow's own conversion would clip at 255."""
    for dtype in (np.uint16, np.int32):
        assert np.asarray(opaque(Image.fromarray(np.full((1, 2), sixteen, dtype)))).tolist() == [[eight] * 2]
