"""Picture files that are damaged, odd or malicious are read rightly or refused by name, without much memory.

Files of every format that Pillow writes are damaged at random, with fixed seeds.
"""

from __future__ import annotations

import io
import os
import random
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from kshot.data import pictures

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

INPUTS = {"damaged": (3, 500), "headers": (1, 300), "odd": (1, 61)}
"""How many seeds each test has, and how many inputs for each seed."""

MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "GIF": ("1", "L", "P", "RGB"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "WEBP": ("RGB", "RGBA"),
    "PPM": ("1", "L", "RGB"),
    "TGA": ("L", "RGB", "RGBA", "P"),
    "PCX": ("1", "L", "P", "RGB"),
    "ICO": ("RGBA",),
    "JPEG2000": ("L", "RGB", "RGBA"),
    "SGI": ("L", "RGB"),
    "DDS": ("RGB", "RGBA"),
    "IM": ("L", "RGB", "F"),
    "XBM": ("1",),
}
"""Formats that Pillow writes, and what they store."""

MORE: dict[str, list[dict[str, Any]]] = {
    "TIFF": [{"compression": c} for c in ("raw", "tiff_lzw", "packbits", "tiff_deflate")],
    "JPEG": [{"progressive": True}, {"quality": 30}],
    "PNG": [{"optimize": True}, {"transparency": 3}],
    "WEBP": [{"lossless": True}],
}


def picture(mode: str, size: tuple[int, int]) -> Image.Image:
    """Return a picture with a smooth pattern, in a mode."""
    height, width = size
    ramp = (np.add.outer(np.arange(height), np.arange(width)) * 9 % 256).astype(np.uint8)
    if mode in ("I;16", "I"):
        return Image.fromarray(ramp.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(ramp.astype("i4"))
    if mode == "F":
        return Image.fromarray((ramp / 255).astype(np.float32))
    if mode == "LAB":
        return Image.frombytes("LAB", (width, height), np.repeat(ramp[..., None], 3, 2).tobytes())
    image = Image.fromarray(np.stack([ramp, 255 - ramp, ramp // 2], -1))
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(255 - ramp))
    return image.convert(mode)


def written() -> list[tuple[str, str, bytes]]:
    """Return format, mode and content of one file of each sort."""
    files = []
    for name, modes in MODES.items():
        for mode in modes:
            for more in ({}, *MORE.get(name, ())):
                image, content = picture(mode, (12, 10)), io.BytesIO()
                if name == "GIF":
                    more = {"save_all": True, "append_images": [picture(mode, (12, 10)).rotate(90)]}
                if name == "PNG" and "transparency" in more and mode not in ("L", "P"):
                    continue
                try:
                    image.save(content, name, **more)
                except (OSError, KeyError, ValueError):  # this installation can't write it
                    continue
                files.append((name, mode, content.getvalue()))
    return files


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Return bytes with some changed, removed, repeated or cut off; those at the beginning more often."""
    bytes_, how = bytearray(content), draw.random()
    at = draw.randrange(min(len(bytes_), 64) if draw.random() < 0.5 else len(bytes_))
    if how < 0.35:
        del bytes_[at:]
    elif how < 0.7:
        for _ in range(draw.choice([1, 1, 2, 8])):
            bytes_[draw.randrange(min(len(bytes_), 64) if draw.random() < 0.5 else len(bytes_))] = draw.choice(
                [0, 1, 127, 128, 255, draw.randrange(256)]
            )
    elif how < 0.8:
        bytes_[at : at + 4] = draw.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0"])
    elif how < 0.9:
        del bytes_[at : at + draw.randrange(1, 30)]
    else:
        bytes_[at:at] = bytes_[at : at + 40] if draw.random() < 0.5 else draw.randbytes(20)
    return bytes(bytes_)


def small(image: Image.Image) -> NDArray[np.uint8]:
    """Make grey pixels [1, 8, 8]."""
    return np.asarray(image.convert("L").resize((8, 8), Image.Resampling.BILINEAR))[None]


def use(path: Path) -> Any:
    """Decode a file as imagefolder does, and as a preparation does."""
    once = pictures.decode(path, small)
    assert np.array_equal(pictures.inputs(path, small, (1, 8, 8), who="me").numpy()[0] * 255, once) or draws(path)
    return once


def draws(path: Path) -> bool:
    """Return whether Pillow reads a smaller version of the file on request."""
    with Image.open(path) as image:
        return image.format in ("JPEG", "MPO")


def is_right(path: Path, pixels: NDArray[np.uint8]) -> bool:
    """Return whether pixels are those of a plain conversion by Pillow, of pictures that need no other."""
    assert pixels.shape == (1, 8, 8)
    assert pixels.dtype == np.uint8
    with Image.open(path) as image:
        image.load()
        if image.mode not in ("1", "L", "RGB") or image.has_transparency_data:
            return True
        return bool(np.array_equal(pixels, small(ImageOps.exif_transpose(image))))


@pytest.mark.parametrize("seed", range(INPUTS["damaged"][0]))
def test_a_damaged_picture_is_read_or_refused(seed: int, trials: Any) -> None:
    """Whatever a decoder does with damage, an error names the file; some damage only changes the picture."""
    draw, files = random.Random(f"pictures {seed}"), written()
    for i in range(INPUTS["damaged"][1]):
        form, mode, content = files[i % len(files)]
        whole = i < len(files)
        suffix = form if draw.random() < 0.7 else draw.choice(["txt", "png", "jpg", "", "gif", "tif"])
        path = Path(f"{i}.{suffix.lower()}")
        path.write_bytes(content if whole else damaged(content, draw))
        label = f"{seed}/{i}, {form} {mode} {'whole' if whole else 'damaged'} as {path}"
        trials.attempt(
            label,
            lambda path=path: use(path),
            lambda x, path=path: is_right(path, x),
            named=re.escape(str(path)),
            must=whole,
        )
        path.unlink()
    trials.finish(INPUTS["damaged"][1], refused=0.2, accepted=0.2)


def png(width: int, height: int, data: bytes = b"", colour: int = 2, depth: int = 8) -> bytes:
    """Return a PNG that says this size, with right checksums."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def tiff(width: int, height: int, **tags: int) -> bytes:
    """Return a TIFF that says this size, with no more than 16 bytes of pixels."""
    values = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: width * height}
    values |= {int(tag[1:]): value for tag, value in tags.items()}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value & 0xFFFFFFFF) for tag, value in sorted(values.items()))
    return b"II*\0" + struct.pack("<I", 24) + bytes(16) + struct.pack("<H", len(values)) + entries + bytes(4)


def huge(draw: random.Random) -> tuple[str, bytes]:
    """Return a small file that says to be large, and its format."""
    sides = [0, 1, 2**15, 30_000, 65_535, 65_536, 2**24, 2**31 - 1, 2**31, 2**32 - 1]
    w, h = draw.choice(sides), draw.choice(sides)
    form = draw.choice(
        ["png", "tiff", "bmp", "gif", "ppm", "tga", "jpg", "pcx", "ico", "sgi", "dds", "xbm", "zeros", "f"]
    )
    if form == "png":
        return form, png(w, h, bytes(1000), draw.choice([0, 2, 3, 4, 6, 7]), draw.choice([1, 8, 16, 5]))
    if form == "tiff":
        more = {
            f"t{tag}": draw.choice([0, 1, 5, 7, 2**31, 2**32 - 1])
            for tag in draw.sample([258, 259, 273, 277, 279, 322, 323, 324], 2)
        }
        return form, tiff(w, h, **more)
    if form == "bmp":
        head = struct.pack(
            "<IiiHHIIiiII",
            40,
            w % 2**31,
            -(h % 2**31),
            1,
            draw.choice([1, 8, 24, 32]),
            draw.choice([0, 1, 2]),
            0,
            0,
            0,
            0,
            0,
        )
        return form, b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + head + bytes(100)
    if form == "gif":
        w, h = w % 65536, h % 65536
        frame = b"," + struct.pack("<HHHHB", 0, 0, w, h, 0) + b"\x08\x08" + bytes([8, 28, 72, 176, 160, 193, 131, 6, 0])
        return form, b"GIF89a" + struct.pack("<HHBBB", w, h, 0, 0, 0) + frame + b"\0;"
    if form in ("ppm", "f"):
        magic = draw.choice([b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"Pf", b"PF", b"P7"])
        return form, magic + b"\n%d %d\n%d\n" % (w, h, draw.choice([0, 1, 255, 65535, 2**40])) + b"1" * 50
    if form == "tga":
        return form, bytes([0, 0, draw.choice([2, 3, 10, 11])]) + bytes(9) + struct.pack(
            "<HHBB", w % 65536, h % 65536, draw.choice([8, 24, 32]), 0
        ) + bytes(60)
    if form == "jpg":
        sof = (
            b"\xff\xc0\0\x11\x08" + struct.pack(">HH", h % 65536, w % 65536) + b"\x03\x01\x22\0\x02\x11\x01\x03\x11\x01"
        )
        return form, b"\xff\xd8" + sof + b"\xff\xda\0\x0c\x03\x01\0\x02\x11\x03\x11\0\x3f\0" + bytes(100) + b"\xff\xd9"
    if form == "pcx":
        return form, b"\n\x05\x01\x08" + struct.pack("<HHHH", 0, 0, w % 65536, h % 65536) + bytes(116) + bytes(50)
    if form == "ico":
        return form, b"\0\0\x01\0\x01\0" + struct.pack(
            "<BBBBHHII", w % 256, h % 256, 0, 0, 1, 32, draw.choice(sides), 22
        ) + png(w, h)
    if form == "sgi":
        return form, b"\x01\xda\0\x01" + struct.pack(">HHHH", 3, w % 65536, h % 65536, 3) + bytes(600)
    if form == "dds":
        head = (
            struct.pack("<IIIII", 124, 0x1007, h, w, 0)
            + bytes(52)
            + struct.pack("<IIIIIIII", 32, 0x41, 0, 32, 255, 0, 0, 0)
        )
        return form, b"DDS " + head.ljust(124, b"\0") + bytes(100)
    if form == "xbm":
        return form, b"#define a_width %d\n#define a_height %d\nstatic char a_bits[] = {\n0x00" % (w, h)
    # A picture of zeros, of which all rows are there: Pillow takes the small one, and refuses the large one as a bomb.
    side = draw.choice([1500, 14_000])
    return "png", png(side, side, bytes((side // 8 + 1) * side), 0, 1)


@pytest.mark.parametrize("seed", range(INPUTS["headers"][0]))
def test_a_picture_that_says_to_be_huge_fills_no_memory(seed: int, trials: Any) -> None:
    """The fixture limits the memory, so that a large allocation is an error of another type."""
    draw = random.Random(f"huge pictures {seed}")
    for i in range(INPUTS["headers"][1]):
        form, content = huge(draw)
        path = Path(f"{i}.{form}")
        path.write_bytes(content)
        trials.attempt(
            f"{seed}/{i}, {content[:60]!r}",
            lambda path=path: use(path),
            lambda x: x.shape == (1, 8, 8),
            named=str(path),
        )
        path.unlink()
    trials.finish(INPUTS["headers"][1], refused=0.5, accepted=0.005)


def odd() -> Iterator[tuple[str, Path, bool]]:
    """Make paths that are no usual files: yield a label, the path and whether it has a picture."""
    content = io.BytesIO()
    picture("RGB", (8, 8)).save(content, "PNG")
    whole = content.getvalue()
    for name in (
        "a b.png",
        "ä.png",
        "日本.png",
        "a.PNG",
        "no suffix",
        "a.jpeg",
        "-x.png",
        "a\nb.png",
        "x" * 250 + ".png",
    ):
        Path(name).write_bytes(whole)
        yield "a name", Path(name), True
    texts = [
        b"",
        b"\0",
        b"text",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"<svg/>",
        b"%PDF-1.4",
        b"PK\x03\x04",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"\xff\xd8\xff",
        b"RIFF\0\0\0\0WEBPVP8 ",
        b"II*\0",
        b"MM\0*",
        b"BM",
        b"P6\n",
        b"8BPS",
        b"\0\0\x01\0",
        b"DDS ",
        b"icns",
        b"BLP2",
        b"qoif",
        b"GRIB",
        b"\x89HDF\r\n\x1a\n",
        b"\xd7\xcd\xc6\x9a",
        b"\0\0\0\x0cjP  \r\n\x87\n",
        b"\0\0\0\x18ftypavif",
    ]
    for i, text in enumerate(texts):
        path = Path(f"text{i}.png")
        path.write_bytes(text + b"\x01" * (i % 3 * 40))
        yield f"text {text!r}", path, False
    Path("folder.png").mkdir()
    os.mkfifo("pipe.png")
    for name, target in (
        ("nowhere.png", "none"),
        ("itself.png", "itself.png"),
        ("zero.png", "/dev/zero"),
        ("null.png", "/dev/null"),
        ("topipe.png", "pipe.png"),
        ("tofolder.png", "."),
        ("random.png", "/dev/urandom"),
    ):
        os.symlink(target, name)
        yield "a link", Path(name), False
    yield "a folder", Path("folder.png"), False
    yield "a pipe", Path("pipe.png"), False
    yield "nothing", Path("missing.png"), False
    yield "a zero", Path("a\0b.png"), False
    yield "a long name", Path("y" * 900 + ".png"), False
    yield "a file as a folder", Path("a b.png/x.png"), False
    os.symlink("a b.png", "good.png")
    yield "a link to a picture", Path("good.png"), True
    for i, (form, rest) in enumerate([(whole, b""), (whole + b"junk" * 99, b""), (whole + whole, b"")] * 4):
        Path(f"more{i}.png").write_bytes(form + rest)
        yield "more after the end", Path(f"more{i}.png"), True


def test_a_path_that_is_no_usual_file_is_refused(trials: Any) -> None:
    """A pipe is not waited for, and a device is not read for ever."""
    tried = 0
    for label, path, good in odd():
        shown = re.escape(str(path)[:60].split("\0")[0])
        trials.attempt(
            f"{label} {str(path)[:40]!r}",
            lambda path=path: use(path),
            (lambda x: x.shape == (1, 8, 8)) if good else None,
            named=shown,
            must=good,
        )
        tried += 1
    assert tried == INPUTS["odd"][1]
    trials.finish(tried, refused=0.3, accepted=0.2)
