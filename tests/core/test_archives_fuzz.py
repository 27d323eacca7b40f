"""Zips with damaged bytes or malicious entries are read rightly or refused by name, and nothing is unpacked.

What is right is computed from the entries before they were written, and from what the standard library reads.
"""

from __future__ import annotations

import io
import os
import random
import stat
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from kshot.data.archives import Archive

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

INPUTS = {"damaged": (2, 400), "entries": (2, 300), "other": (1, 50)}
"""How many seeds each test has, and how many inputs for each seed."""

READ = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
METHODS = (*READ, zipfile.ZIP_LZMA)
LARGEST = 100_000

PARTS = (
    *(
        "a",
        "b",
        "cat",
        "1.txt",
        "ä",
        "a\u0308",
        "日本",
        "x" * 100,
        "x" * 300,
        "con",
        "NUL.txt",
        "aux ",
        "COM1",
        "com¹.txt",
    ),
    *(
        "..",
        ".",
        "",
        " ",
        "...",
        ".. ",
        " ..",
        "c:",
        "C:evil",
        "~",
        "$HOME",
        "a\\b",
        "..\\..",
        "\\",
        "a\nb",
        "a\tb",
        "\x7f",
    ),
    *(
        "\u2028",
        "\u202e",
        "Icon\r",
        ".hidden",
        "a.",
        "a ",
        "-rf",
        "*",
        "?",
        "<",
        "|",
        '"',
        "'",
        "%00",
        "&",
        "\ufeff",
        "\ud7ff",
    ),
)


def read(path: Path) -> dict[str, bytes]:
    """Read all entries of a zip."""
    with Archive(path, largest=LARGEST, what="a text", largest_in_all=300_000) as archive:
        return {entry.filename: archive.read(entry.filename) for entry in archive.entries(lambda name: True)}


def is_right(entries: dict[str, bytes], path: Path) -> None:
    """Assert that entries are those that the standard library reads, and lie within a folder on every system."""
    with zipfile.ZipFile(path) as file:
        assert entries == {info.filename: file.read(info) for info in file.infolist() if not info.is_dir()}
    for name in entries:
        assert "\\" not in name
        assert "\0" not in name
        assert not name.startswith("/")
        assert ".." not in name.replace(" ", "").split("/")
        assert os.path.realpath(os.path.join("/base", name)).startswith("/base/")
    assert sum(map(len, entries.values())) <= 300_000


def small(draw: random.Random, methods: tuple[int, ...] = METHODS) -> bytes:
    """Return a zip of a few texts."""
    content = io.BytesIO()
    method = draw.choice(methods)
    with zipfile.ZipFile(content, "w", method) as file:
        for i in range(draw.randrange(1, 4)):
            data = bytes(draw.choices(range(65, 70), k=draw.choice([0, 1, 50, 3000])))
            if draw.random() < 0.8:
                file.writestr(zipfile.ZipInfo(f"{draw.choice('ab')}/{i}.txt"), data, method)
            else:  # as it is written to a pipe, with the sizes behind the data
                with file.open(zipfile.ZipInfo(f"piped/{i}.txt"), "w", force_zip64=draw.random() < 0.5) as entry:
                    entry.write(data)
        if draw.random() < 0.3:
            file.comment = b"a comment"
    return content.getvalue()


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Return bytes with some changed, removed, repeated or cut off."""
    bytes_, how = bytearray(content), draw.random()
    at = draw.randrange(len(bytes_))
    if how < 0.2:
        del bytes_[at:]
    elif how < 0.6:
        for _ in range(draw.choice([1, 1, 2, 8])):
            bytes_[draw.randrange(len(bytes_))] = draw.choice([0, 1, 8, 12, 14, 127, 128, 255, draw.randrange(256)])
    elif how < 0.75:
        bytes_[at : at + 4] = draw.choice([b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0", b"PK\x01\x02"])
    elif how < 0.85:
        del bytes_[at : at + draw.randrange(1, 30)]
    elif how < 0.95:
        bytes_[at:at] = bytes_[at : at + 40] if draw.random() < 0.5 else draw.randbytes(20)
    else:
        bytes_ += small(draw) if draw.random() < 0.5 else b"PK\x05\x06" * 5
    return bytes(bytes_)


@pytest.mark.parametrize("seed", range(INPUTS["damaged"][0]))
def test_a_damaged_zip_is_read_or_refused(seed: int, trials: Any) -> None:
    """The library raises errors of a dozen types."""
    draw, path = random.Random(f"archives {seed}"), Path("a.zip")
    for i in range(INPUTS["damaged"][1]):
        whole = i % 10 == 0
        content = small(draw, READ if whole else METHODS)
        path.write_bytes(content if whole else damaged(content, draw))
        label = f"{seed}/{i}, {path.read_bytes()!r:.100}"
        trials.attempt(label, lambda: read(path), lambda entries: is_right(entries, path), named="a.zip", must=whole)
    path.unlink()
    trials.finish(INPUTS["damaged"][1], refused=0.2, accepted=0.1)


def entry(draw: random.Random) -> tuple[zipfile.ZipInfo, bytes, bool]:
    """Return an entry with an odd name, type or size, its content, and whether it is surely malicious."""
    name = (
        "/".join(draw.choice(PARTS[:4] if draw.random() < 0.6 else PARTS) for _ in range(draw.randrange(1, 4))) or "a"
    )
    info, data = zipfile.ZipInfo("?"), b"meow"
    info.filename = info.orig_filename = name
    malicious = name.startswith("/") or "\\" in name or ".." in name.replace(" ", "").split("/")
    how = draw.random()
    if how < 0.3:
        kind = draw.choice(
            [
                stat.S_IFLNK,
                stat.S_IFCHR,
                stat.S_IFBLK,
                stat.S_IFIFO,
                stat.S_IFSOCK,
                stat.S_IFREG,
                stat.S_IFDIR,
                0,
                0o160000,
            ]
        )
        info.external_attr = (kind | draw.choice([0o644, 0o4755, 0])) << 16
        malicious |= kind in (stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK)
    elif how < 0.45:
        data = bytes(draw.choice([LARGEST, LARGEST + 1, 10**6]))
        malicious |= len(data) > LARGEST and not name.endswith("/")
    info.compress_type = draw.choice(METHODS)
    return info, data, malicious


@pytest.mark.parametrize("seed", range(INPUTS["entries"][0]))
def test_a_zip_with_odd_entries_is_read_or_refused(seed: int, trials: Any) -> None:
    """Names that lead out, links, devices, duplicates and bombs are refused; other names are read."""
    draw, path = random.Random(f"entries {seed}"), Path("a.zip")
    for i in range(INPUTS["entries"][1]):
        bad = False
        names = set()
        with zipfile.ZipFile(path, "w") as file:
            for _ in range(draw.randrange(1, 4)):
                info, data, malicious = entry(draw)
                if draw.random() < 0.1 and names:
                    info.filename = info.orig_filename = draw.choice(sorted(names))
                bad |= malicious or (info.filename in names and not info.filename.endswith("/"))
                names.add(info.filename)
                file.writestr(info, data)
        if draw.random() < 0.1:  # sizes that are not those of the data
            content = bytearray(path.read_bytes())
            at = content.rfind(b"PK\x01\x02") + draw.choice([20, 24])
            content[at : at + 4] = struct.pack("<I", draw.choice([0, 1, 50_000, 2**31, 2**32 - 1]))
            path.write_bytes(content)
        right = None if bad else lambda entries: is_right(entries, path)
        trials.attempt(f"{seed}/{i}, {sorted(names)!r}", lambda: read(path), right, named="a.zip")
    path.unlink()
    trials.finish(INPUTS["entries"][1], refused=0.3, accepted=0.05)


def bomb(entries: int, size: int) -> bytes:
    """Return a zip of many entries that all share the same few bytes of data."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("0.txt", bytes(size))
    whole = content.getvalue()
    at, end = whole.find(b"PK\x01\x02"), whole.find(b"PK\x05\x06")
    record = whole[at:end]
    records = b"".join(record.replace(b"0.txt", b"%05d" % i) for i in range(entries))
    tail = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, entries, entries, len(records), at, 0)
    return whole[:at] + records + tail


def others(draw: random.Random) -> list[tuple[str, bytes | None]]:
    """Return files that are no zips, or not harmless ones."""
    tar = {}
    for mode in ("w", "w:gz", "w:bz2", "w:xz"):
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode=mode) as file:  # type: ignore[call-overload]
            for name in ("a.txt", "../b.txt", "/etc/passwd"):
                file.addfile(tarfile.TarInfo(name), io.BytesIO(b""))
        tar[f"tar {mode}"] = content.getvalue()
    texts = [
        b"",
        b"PK",
        b"PK\x03\x04",
        b"PK\x05\x06",
        b"PK\x05\x06" + bytes(18),
        b"PK\x05\x06" + b"\xff" * 18,
        b"\0" * 30,
        b"text",
        b"PK\x06\x06" + b"\xff" * 60 + b"PK\x06\x07" + b"\xff" * 16 + b"PK\x05\x06" + b"\xff" * 16 + bytes(2),
    ]
    found: list[tuple[str, bytes | None]] = [*tar.items(), *((f"text {text!r:.40}", text) for text in texts)]
    found += [
        (f"bomb {n} {size}", bomb(n, size)) for n, size in ((5, 90_000), (60_000, 90_000), (2, 200_000), (9000, 10))
    ]
    found += [(name, None) for name in ("folder", "pipe", "zero", "nowhere", "itself", "missing", "topipe")]
    return found + [(f"junk {i}", draw.randbytes(200)) for i in range(50 - len(found))]


def test_a_file_that_is_no_harmless_zip_is_refused(trials: Any) -> None:
    """Tars, bombs whose entries share their data, and paths that are no files."""
    os.mkdir("folder.zip")
    os.mkfifo("pipe.zip")
    for name, target in (("zero", "/dev/zero"), ("nowhere", "none"), ("itself", "itself.zip"), ("topipe", "pipe.zip")):
        os.symlink(target, f"{name}.zip")
    for label, content in others(random.Random("others")):
        path = Path("a.zip" if content is not None else f"{label}.zip")
        if content is not None:
            path.write_bytes(content)
        empty = content is not None and content.startswith(b"PK\x05\x06" + bytes(18))
        many = label == "bomb 9000 10"  # small enough
        right = (lambda entries, path=path: is_right(entries, path)) if empty or many else None
        trials.attempt(label, lambda path=path: read(path), right, named=str(path))
    trials.finish(INPUTS["other"][1], refused=0.8, accepted=0.02)
