"""Zips, folders and tables of class vectors, as plugins read them, are read rightly or refused by name.

Their content is damaged or arranged at random, with fixed seeds.
"""

from __future__ import annotations

import io
import os
import random
import re
import wave
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import kshot_cats_dogs.files as cats_dogs
import kshot_omniglot.files as omniglot
import kshot_orl_faces.files as orl_faces
import kshot_orl_faces.pictures as faces
from kshot_omniglot.decode import decode
from kshot_semantics.table import read as read_vectors

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

INPUTS = {"zips": (3, 200), "vectors": (1, 400), "folders": (3, 60)}
"""How many seeds each test has, and how many inputs for each seed."""

Files = dict[str, bytes]


def drawing(side: int, form: str) -> bytes:
    """Return a small picture."""
    content = io.BytesIO()
    Image.fromarray((np.arange(side * side).reshape(side, side) * 5 % 256).astype(np.uint8)).save(content, form)
    return content.getvalue()


def omniglot_files() -> Files:
    """Return drawings in the layout of a part of Omniglot."""
    names = [f"images_background/Greek/character0{c}/000{c}_0{i}.png" for c in (1, 2) for i in (1, 2)]
    return {name: drawing(20, "PNG") for name in names}


def orl_files() -> Files:
    """Return pictures in the layout of the ORL faces."""
    content = io.BytesIO()
    Image.new("L", (92, 112), 7).save(content, "PPM")
    return {f"s{person}/{i}.pgm": content.getvalue() for person in (1, 2) for i in range(1, 11)}


def cats_dogs_files() -> Files:
    """Return recordings in the layout of Cats and Dogs."""
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(bytes(range(200)))
    return {f"{folder}/{name}": content.getvalue() for folder, names in cats_dogs.CLIPS.items() for name in names}


def read_omniglot(place: Path) -> Any:
    """Read drawings as omniglot does."""
    listing = omniglot.look_through({"images_background": place})
    pixels = decode(listing.job, 10)
    assert len(pixels) == 100 * sum(c.drawings for c in listing.characters)
    return len(pixels) // 100


def read_orl(place: Path) -> Any:
    """Read pictures as orl-faces does."""
    people = orl_faces.read(place)
    pixels = faces.decode(people, place)
    assert pixels.shape == (10 * len(people), 112, 92)
    return len(pixels)


def read_cats_dogs(place: Path) -> Any:
    """Read recordings as cats-dogs does."""
    clips = cats_dogs.read(place)
    assert all(clip.samples.dtype == np.int16 and len(clip.samples) for clip in clips)
    return len(clips)


PLUGINS: dict[str, tuple[Callable[[], Files], Callable[[Path], Any]]] = {
    "omniglot": (omniglot_files, read_omniglot),
    "orl-faces": (orl_files, read_orl),
    "cats-dogs": (cats_dogs_files, read_cats_dogs),
}


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Return bytes with some changed, removed, repeated or cut off."""
    bytes_, how = bytearray(content), draw.random()
    at = draw.randrange(len(bytes_))
    if how < 0.3:
        del bytes_[at:]
    elif how < 0.8:
        for _ in range(draw.choice([1, 1, 2, 8, 64])):
            bytes_[draw.randrange(len(bytes_))] = draw.choice([0, 1, 8, 127, 128, 255, draw.randrange(256)])
    else:
        bytes_[at : at + 4] = draw.choice([b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0", b""])
    return bytes(bytes_)


ODD = (
    "../x",
    "/x",
    "x/../../y",
    "ä" * 40,
    "a\\b",
    "s1/1.pgm/2.pgm",
    "__MACOSX/x",
    ".DS_Store",
    "Thumbs.db",
    "s1/11.pgm",
    "s٣/1.pgm",
    "s1/1.PGM",
    "s1/²1.pgm",
    "images_background/Greek/character01/x.png",
    "x.png",
    "cat_1.wav",
    "a/b/cat_1.wav",
)


def rearranged(files: Files, draw: random.Random) -> Files:
    """Return files with a few of them renamed, removed, damaged or added."""
    files = dict(files)
    for _ in range(draw.choice([1, 1, 2])):
        name, how = draw.choice(sorted(files)), draw.random()
        if how < 0.25:
            del files[name]
        elif how < 0.6:
            files[name] = draw.choice([b"", b"text", damaged(files[name], draw), drawing(9, "BMP"), bytes(3 << 20)])
        elif how < 0.8:
            files[draw.choice(ODD)] = files[name]
        else:
            files[f"{draw.choice(['x/', 'x/y/', './'])}{name}"] = files.pop(name)
    return files


@pytest.mark.parametrize("seed", range(INPUTS["zips"][0]))
def test_a_zip_of_a_plugin_is_read_or_refused(seed: int, trials: Any) -> None:
    """The plugins check what is in the zips, after the core has checked the zips."""
    name = sorted(PLUGINS)[seed]
    draw, (make, read), path = random.Random(f"zips {seed}"), PLUGINS[name], Path("a.zip")
    files = make()
    for i in range(INPUTS["zips"][1]):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for entry, content in (rearranged(files, draw) if i % 2 else files).items():
                file.writestr(zipfile.ZipInfo(entry), content, zipfile.ZIP_DEFLATED)  # without the present time
        if i % 4 == 0 and i:
            path.write_bytes(damaged(path.read_bytes(), draw))
        trials.attempt(f"{name}, {i}", lambda: read(path), lambda n: n > 0, named="a.zip", must=not i)
    trials.finish(INPUTS["zips"][1], refused=0.2, accepted=0.1)


@pytest.mark.parametrize("seed", range(INPUTS["folders"][0]))
def test_a_folder_of_a_plugin_is_read_or_refused(seed: int, trials: Any) -> None:
    """It may have links, pipes, circles and folders with the names of files."""
    name = sorted(PLUGINS)[seed]
    draw, (make, read) = random.Random(f"folders {seed}"), PLUGINS[name]
    files = make()
    for i in range(INPUTS["folders"][1]):
        root = Path(f"folder{i}")
        inner = {"omniglot": "images_background/"}.get(name, "")
        for entry, content in (rearranged(files, draw) if i else files).items():
            path = root / entry.removeprefix(inner).replace("\0", "").replace("..", "_").lstrip("/")
            if path.exists() or any(parent.is_file() for parent in path.parents):
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        some = draw.choice(sorted(path for path in root.rglob("*") if path.is_file()))
        if i % 3 == 1:
            some.unlink()
            draw.choice(
                [
                    lambda p: os.mkfifo(p),
                    lambda p: p.mkdir(),
                    lambda p: p.symlink_to("nowhere"),
                    lambda p: p.symlink_to(p.name),
                    lambda p: p.symlink_to("/dev/zero"),
                    lambda p: p.symlink_to(".."),
                    lambda p: (p.parent / "again").symlink_to(".."),
                ]
            )(some)
        trials.attempt(f"{name}, {i}", lambda root=root: read(root), lambda n: n > 0, named=str(root), must=not i)
    trials.finish(INPUTS["folders"][1], refused=0.2, accepted=0.02)


def npz(draw: random.Random) -> bytes:
    """Return an npz file with a table of vectors, perhaps of odd arrays."""
    content = io.BytesIO()
    names: Any = draw.choice([["a", "b"], ["a", "b"], ["a", "a"], [1, 2], [], [[1, 2]], ["a"], [b"a", b"b"], "a"])
    vectors = draw.choice(
        [[[1.0, 2], [3, 4]], [[1.0, 2], [3, 4]], [[np.nan, 1], [1, 2]], [1.0, 2], [[1j, 2], [3, 4]], [["a"], ["b"]], []]
    )
    arrays = {"names": np.array(names), "vectors": np.array(vectors)}
    if draw.random() < 0.1:
        arrays["vectors"] = np.array([{}, object()], object)
    if draw.random() < 0.1:
        arrays["extra"] = arrays.pop(draw.choice(sorted(arrays)))
    draw.choice([np.savez, np.savez_compressed])(content, **arrays)  # type: ignore[arg-type]
    return content.getvalue()


def header(draw: random.Random) -> bytes:
    """Return an npz file whose array says something unlikely in its header."""
    shape = draw.choice(
        ["(2, 2)", "(1099511627776,)", "(2, -1)", "(2**70,)", "()", "x", "(" * 300, "(1048576, 1048576)"]
    )
    dtype = draw.choice(["<f8", "|O", "<U1000000000", "|V9", "M8[s]", "x", "[('a', '<f8')]"])
    text = f"{{'descr': '{dtype}', 'fortran_order': {draw.choice(['False', '1', 'x'])}, 'shape': {shape}, }}".encode()
    array = (
        b"\x93NUMPY"
        + draw.choice([b"\x01\0", b"\x02\0", b"\x09\0"])
        + len(text).to_bytes(2, "little")
        + text
        + bytes(32)
    )
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", draw.choice([0, 8, 12, 14])) as file:
        for name in ("names.npy", "vectors.npy"):
            file.writestr(name, array if draw.random() < 0.7 else bytes(draw.choice([0, 9, 5_000_000])))
    return content.getvalue()


CSV = b"name,small,round\r\ncat,1,0.5\ndog,2,-1e3\n"


@pytest.mark.parametrize("seed", range(INPUTS["vectors"][0]))
def test_a_table_of_class_vectors_is_read_or_refused(seed: int, trials: Any) -> None:
    """It is a CSV or an npz file of the user, or of somebody else."""
    draw = random.Random(f"vectors {seed}")
    os.mkfifo("pipe.csv")
    os.mkfifo("pipe.npz")
    for name, target in (
        ("zero.csv", "/dev/zero"),
        ("zero.npz", "/dev/zero"),
        ("itself.npz", "itself.npz"),
        ("nowhere.csv", "none"),
    ):
        os.symlink(target, name)
    Path("folder.npz").mkdir()
    odd = [
        "pipe.csv",
        "pipe.npz",
        "zero.csv",
        "zero.npz",
        "itself.npz",
        "nowhere.csv",
        "folder.npz",
        "a.txt",
        "",
        ".csv",
        "a\0.csv",
    ]
    lines = [
        b"cat,1,2\n",
        b"cat,nan,1\n",
        b"x,1\n",
        b"x,1,2,3\n",
        b",,\n",
        b'"open,1,2\n',
        b"\0,1,2\n",
        b"x,1e999,1\n",
        b"x,\xff,1\n",
        b"x,1_0,2\n",
        b"x," + b"9" * 200_000 + b",1\n",
        b"\xef\xbb\xbfbird,1,2\n",
        b"x" * 10**6 + b",1,2\n",
    ]
    for i in range(INPUTS["vectors"][1]):
        how = draw.random()
        source: Any = Path(f"{i}.csv" if how < 0.4 else f"{i}.npz")
        if i < len(odd):
            source = Path(odd[i])
        elif how < 0.2:
            source.write_bytes(damaged(CSV, draw))
        elif how < 0.4:
            source.write_bytes(CSV + draw.choice(lines) + draw.choice(lines))
        elif how < 0.6:
            source.write_bytes(npz(draw))
        elif how < 0.75:
            source.write_bytes(damaged(npz(draw), draw))
        elif how < 0.9:
            source.write_bytes(header(draw))
        else:
            source = {
                draw.choice(["a", "b", 1]): draw.choice(
                    [[1.0, 2.0], 1.0, "ab", None, [[1]], [10**400], ["x"], [np.nan]]
                )
                for _ in range(2)
            }
        named = "dict" if isinstance(source, dict) else re.escape(str(source).split("\0")[0])
        trials.attempt(f"{i}, {source!r:.80}", lambda source=source: read_vectors(source), has_vectors, named=named)
    trials.finish(INPUTS["vectors"][1], refused=0.3, accepted=0.05)


def has_vectors(table: Any) -> None:
    """Assert that a table has a finite vector for each of its names."""
    assert table.vectors.ndim == 2
    assert table.vectors.dtype == np.float64
    assert np.isfinite(table.vectors).all()
    assert sorted(table.rows.values()) == list(range(len(table.vectors)))
