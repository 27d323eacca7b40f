"""Images become the right inputs; expected values are worked out by hand or by numpy."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kshot.data.pictures import formats
from kshot.errors import DataError
from kshot_imagefolder.images import Form, prepare

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (4, 6, 3), np.uint8)
GREYS = RNG.integers(0, 256, (4, 6), np.uint8)
AS_IT_IS = Form("RGB", (4, 6), "squeeze")
GREY = Form("L", (4, 6), "squeeze")


def saved(path: Path, image: Image.Image, **how: Any) -> Path:
    image.save(path, **how)
    return path


def decoded(path: Path, form: Form = AS_IT_IS) -> np.ndarray[Any, Any]:
    """Return the image as an array [h, w] or [h, w, 3]."""
    made = form.decode(path)
    assert made.dtype == np.uint8
    assert made.shape == (1, *form.shape)
    return made[0].transpose(1, 2, 0) if form.mode == "RGB" else made[0, 0]


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".ppm", ".tga", ".PNG"])
def test_pixels_are_as_in_the_file(tmp_path: Path, suffix: str) -> None:
    """An image of the right size and mode is not changed; channels come first, and rows go down."""
    assert np.array_equal(decoded(saved(tmp_path / f"x{suffix}", Image.fromarray(COLOURS))), COLOURS)


def test_colours_become_grey_by_luma_and_greys_become_colours(tmp_path: Path) -> None:
    """Grey is 0.299 R + 0.587 G + 0.114 B (ITU-R 601), rounded; a grey image gets three equal channels."""
    path = saved(tmp_path / "x.png", Image.fromarray(COLOURS))
    luma = COLOURS @ np.array([0.299, 0.587, 0.114])
    assert np.abs(decoded(path, GREY) - luma).max() <= 1
    path = saved(tmp_path / "y.png", Image.fromarray(GREYS))
    assert np.array_equal(decoded(path), np.repeat(GREYS[..., None], 3, 2))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_are_scaled_and_not_clipped(tmp_path: Path, suffix: str) -> None:
    """Pillow's own conversion makes every value above 255 white."""
    deep = np.array([[0, 255, 256, 32768], [40000, 65279, 65280, 65535]], np.uint16)
    path = saved(tmp_path / f"x{suffix}", Image.fromarray(deep))
    found = decoded(path, Form("L", (2, 4), "squeeze"))
    assert found.tolist() == [[0, 0, 1, 128], [156, 254, 255, 255]]


def test_numbers_without_a_known_range_are_refused(tmp_path: Path) -> None:
    """32-bit integers must be within 16 bits, and floats within 0 and 1."""
    form = Form("L", (1, 2), "squeeze")
    assert decoded(saved(tmp_path / "i.tif", Image.fromarray(np.array([[0, 65535]], np.int32))), form).tolist() == [
        [0, 255]
    ]
    assert decoded(saved(tmp_path / "f.tif", Image.fromarray(np.array([[0, 0.5]], np.float32))), form).tolist() == [
        [0, 128]
    ]
    for name, values, message in (("i", np.array([[0, 70000]], np.int32), "expected 16 bits"),
                               ("f", np.array([[0, 255]], np.float32), "expected floats of 0 to 1")):  # fmt: skip
        path = saved(tmp_path / f"{name}.tif", Image.fromarray(values))
        with pytest.raises(DataError, match=rf"{name}\.tif: got values from .*{message}"):
            form.decode(path)


def test_palettes_are_looked_up(tmp_path: Path) -> None:
    """The numbers of a palette are not brightnesses, neither in colour nor in grey."""
    image = Image.new("P", (6, 4))
    image.putpalette([10, 20, 30, 200, 100, 50] + [0] * 762)
    image.putdata([0, 1] * 12)
    for name in ("x.png", "x.gif", "x.bmp"):
        path = saved(tmp_path / name, image)
        assert decoded(path)[0, :2].tolist() == [[10, 20, 30], [200, 100, 50]]
        assert np.abs(decoded(path, GREY)[0, :2] - [18.15, 124.2]).max() <= 1


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    """Transparency may be an alpha channel, also a partial one, or a transparent colour, also one of a palette."""
    rgba = np.zeros((4, 6, 4), np.uint8)
    rgba[0, 0] = (255, 0, 0, 255)
    rgba[0, 1] = (255, 0, 0, 0)
    rgba[0, 2] = (0, 0, 0, 128)
    found = decoded(saved(tmp_path / "x.png", Image.fromarray(rgba)))
    assert found[0, :2].tolist() == [[255, 0, 0], [255, 255, 255]]
    assert found[0, 2].tolist() == [127, 127, 127]
    la = Image.fromarray(rgba).convert("LA")
    assert decoded(saved(tmp_path / "la.png", la), GREY)[0, 1] == 255
    palette = Image.new("P", (6, 4), 1)
    palette.putpalette([0, 0, 0, 9, 9, 9] + [0] * 762)
    palette.putpixel((0, 0), 0)
    found = decoded(saved(tmp_path / "p.png", palette, transparency=0))
    assert found[0, :2].tolist() == [[255, 255, 255], [9, 9, 9]]
    plain = Image.new("RGB", (6, 4), (1, 2, 3))
    assert (decoded(saved(tmp_path / "t.png", plain, transparency=(1, 2, 3))) == 255).all()


def test_bits_and_print_colours(tmp_path: Path) -> None:
    """Images with one bit per pixel and CMYK images are read."""
    assert set(np.unique(decoded(saved(tmp_path / "x.png", Image.fromarray(GREYS > 127))))) == {0, 255}
    assert (decoded(saved(tmp_path / "x.tif", Image.new("CMYK", (6, 4), (0, 0, 0, 255)))) == 0).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_camera_s_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    """The EXIF tag 0x0112 states how the picture in the file is turned or mirrored."""
    stored = {1: lambda p: p, 2: np.fliplr, 3: lambda p: np.rot90(p, 2), 4: np.flipud,
              5: lambda p: p.transpose(1, 0, 2), 6: np.rot90, 7: lambda p: np.rot90(p.transpose(1, 0, 2), 2),
              8: lambda p: np.rot90(p, -1)}  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored[orientation](COLOURS)))
    assert np.array_equal(decoded(saved(tmp_path / "x.png", image, exif=exif)), COLOURS)


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif"])
def test_of_an_animation_the_first_image_is_taken(tmp_path: Path, suffix: str) -> None:
    """The same holds for a file of several pages."""
    if suffix not in formats():
        pytest.skip(f"this Pillow has no {suffix}")
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("black", "white", "red")]
    how = {"lossless": True} if suffix == ".webp" else {}
    path = saved(tmp_path / f"x{suffix}", frames[0], save_all=True, append_images=frames[1:], **how)
    assert (decoded(path) == 0).all()


def test_images_of_another_shape_are_squeezed_cropped_or_padded(tmp_path: Path) -> None:
    """A row of four quarters, 2 x 8, becomes 2 x 2 or 4 x 4; expected pixels are computed by hand."""
    row = np.repeat(np.array([[0, 80, 160, 240]], np.uint8), 2, 1).repeat(2, 0)
    path = saved(tmp_path / "x.png", Image.fromarray(row))
    cropped = decoded(path, Form("L", (2, 2), "crop"))
    assert cropped.tolist() == [[80, 160]] * 2  # pixels 3 and 4 of 0..7
    padded = decoded(path, Form("L", (8, 8), "pad"))
    assert (padded[[0, 1, 2, 5, 6, 7]] == 255).all()
    assert np.array_equal(padded[3:5], row)
    squeezed = decoded(path, Form("L", (2, 4), "squeeze"))
    # Half as wide by a triangle of width 2: each pixel weighs its four nearest as 1, 3, 3, 1; at the edges 3, 3, 1.
    naive = [(3 * 0 + 3 * 0 + 80) / 7, (0 + 3 * 80 + 3 * 80 + 160) / 8, (80 + 6 * 160 + 240) / 8, (160 + 6 * 240) / 7]
    assert np.abs(squeezed - np.array(naive)).max() <= 1


def test_a_cropped_image_is_the_squeezed_middle(tmp_path: Path) -> None:
    """An image whose height and width are exchanged must not be taken for one of the right size."""
    noise = RNG.integers(0, 256, (8, 14), np.uint8)
    path, middle = (saved(tmp_path / n, Image.fromarray(p)) for n, p in (("x.png", noise), ("y.png", noise[:, 3:11])))
    form = Form("L", (4, 4), "crop")  # at the border the filter sees what lies beyond
    assert np.array_equal(form.decode(path)[..., 1:3], form.decode(middle)[..., 1:3])
    tall = saved(tmp_path / "z.png", Image.fromarray(noise.T))
    assert decoded(tall, Form("L", (8, 14), "squeeze")).std() < noise.std()


@pytest.mark.parametrize("fit", ["squeeze", "crop", "pad"])
@pytest.mark.parametrize("side", [32, 100])
def test_a_large_jpeg_is_read_small_and_is_nearly_the_same(tmp_path: Path, fit: Any, side: int) -> None:
    """The JPEG decoder can halve a photograph, which saves most of the work; stripes of 24 pixels must survive it."""
    y, x = np.mgrid[:512, :768]
    picture = np.stack([x / 3, 128 + 100 * np.sin(2 * np.pi * x / 24), (x + y) / 5], -1).astype(np.uint8)
    path = saved(tmp_path / "x.jpg", Image.fromarray(picture), quality=95)
    form = Form("RGB", (side, side), fit)
    whole = form.pixels(Image.open(path).convert("RGB")).astype(int)
    assert np.abs(form.decode(path).astype(int) - whole).mean() <= 3


@pytest.mark.parametrize("data", [b"", b"a text file named .png", b"\x89PNG\r\n\x1a\n", "cut"])
def test_a_file_that_is_no_image_is_named(tmp_path: Path, data: bytes | str) -> None:
    """The files are empty, contain text, have only a beginning, or are cut off."""
    made = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)).save(made, "PNG")
    path = tmp_path / "x.png"
    path.write_bytes(made.getvalue()[:4000] if isinstance(data, str) else data)
    with pytest.raises(DataError, match=r"x\.png: got a file that can't be read as an image \(.*fix or remove it"):
        AS_IT_IS.decode(path)


def test_own_images_are_prepared_as_the_folder_s_are(tmp_path: Path) -> None:
    """A path, an image, arrays with channels first or last, and a mixture all give the same inputs."""
    path = saved(tmp_path / "x.png", Image.fromarray(COLOURS))
    expected = torch.from_numpy(COLOURS.transpose(2, 0, 1)[None] / 255).float()
    first = COLOURS.transpose(2, 0, 1)
    opaque_alpha = np.dstack([COLOURS, np.full((4, 6), 255, np.uint8)])
    for given in (path, str(path), Image.open(path), COLOURS, first, COLOURS[None], first[None], torch.tensor(first),
                  opaque_alpha):  # fmt: skip
        assert torch.allclose(prepare(given, AS_IT_IS), expected, atol=1e-7)
    assert torch.allclose(prepare([path, COLOURS], AS_IT_IS), expected.expand(2, -1, -1, -1))
    assert torch.equal(prepare(expected, AS_IT_IS), expected)
    for grey in (GREYS, GREYS[None], GREYS[..., None], GREYS[None, None], GREYS[None, ..., None]):
        assert torch.allclose(prepare(grey, GREY), torch.from_numpy(GREYS / 255).float()[None, None])
    assert prepare(np.zeros((5, 4, 6, 3), np.uint8), GREY).shape == (5, 1, 4, 6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            np.zeros((2, 1, 5, 5), np.float32),
            r"got floats of shape \[2, 1, 5, 5\] to prepare, expected inputs \[n, 3, 4, 6\]",
        ),
        (np.full((1, 3, 4, 6), 2.0, np.float32), "within"),
        (np.zeros((7, 5, 5), np.uint8), r"got uint8 of shape \[7, 5, 5\]"),
        (np.zeros((0, 4, 6, 3), np.uint8), "got uint8 of shape"),
        (np.zeros((5, 5), np.int64), "got int64 of shape"),
        (7, "got int to prepare"),
        ([], "got an empty list to prepare"),
        ("no-such-file.png", r"no-such-file\.png: got a file that can't be read as an image \(FileNotFoundError"),
        (".", r"can't be read as an image \(IsADirectoryError|PermissionError"),
    ],
)
def test_inputs_of_another_form_are_refused(given: Any, message: str) -> None:
    """They are refused before a learner receives them."""
    with pytest.raises(DataError, match=message):
        prepare(given, AS_IT_IS)
