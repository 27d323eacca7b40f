"""Sound files that are damaged, odd or malicious are read rightly or refused by name, without much memory.

Files of every format that soundfile writes are damaged at random, with fixed seeds.
"""

from __future__ import annotations

import io
import os
import random
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from kshot_audiofolder.form import Form
from kshot_audiofolder.sounds import prepare

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

INPUTS = {"damaged": (3, 400), "headers": (1, 200), "samples": (1, 200)}
"""How many seeds each test has, and how many inputs for each seed."""

FORM = Form(8000, 0.1, "start", "repeat", "mel", 5, 10, 0.025, 0.01, 0.0, None, "clip")
CENTRE = Form(8000, 0.05, "centre", "zeros", "mfcc", 5, 10, 0.025, 0.01, 0.0, None, "clip")


def tone(channels: int = 1, seconds: float = 0.12) -> NDArray[np.float64]:
    """Return a tone [n, channels]."""
    t = np.arange(int(8000 * seconds)) / 8000
    return np.stack([0.5 * np.sin(2 * np.pi * (400 + 200 * c) * t) for c in range(channels)], 1)


def written() -> list[tuple[str, bytes]]:
    """Return a label and the content of one file of each format and subtype that soundfile writes and reads."""
    files = []
    for form in sorted(set(soundfile.available_formats()) - {"RAW", "SD2", "MAT4", "MAT5"}):
        for subtype in sorted(soundfile.available_subtypes(form)):
            for channels in (1, 2):
                content = io.BytesIO()
                try:
                    soundfile.write(content, tone(channels), 8000, subtype, format=form)
                    soundfile.read(io.BytesIO(content.getvalue()))
                except (RuntimeError, TypeError, ValueError):  # not with these channels, or this rate
                    continue
                files.append((f"{form} {subtype} {channels}", content.getvalue()))
    return files


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Return bytes with some changed, removed, repeated or cut off; those at the beginning more often."""
    bytes_, how = bytearray(content), draw.random()
    at = draw.randrange(min(len(bytes_), 80) if draw.random() < 0.6 else len(bytes_))
    if how < 0.3:
        del bytes_[at:]
    elif how < 0.65:
        for _ in range(draw.choice([1, 1, 2, 8])):
            bytes_[draw.randrange(min(len(bytes_), 80) if draw.random() < 0.6 else len(bytes_))] = draw.choice(
                [0, 1, 127, 128, 255, draw.randrange(256)]
            )
    elif how < 0.85:
        values = [
            b"\xff\xff\xff\xff",
            b"\x7f\xff\xff\xff",
            b"\xff\xff\xff\x7f",
            b"\0\0\0\0",
            b"\0\0\0\x01",
            b"\x01\0\0\0",
        ]
        bytes_[at : at + 4] = draw.choice(values)
    elif how < 0.93:
        del bytes_[at : at + draw.randrange(1, 30)]
    else:
        bytes_[at:at] = bytes_[at : at + 40] if draw.random() < 0.5 else draw.randbytes(20)
    return bytes(bytes_)


def is_right(path: Path, features: Any, form: Form, whole: bool) -> bool:
    """Return whether features are finite, of the right shape and, of a whole file, those of plainly read samples."""
    assert isinstance(features, np.ndarray)
    assert features.shape == (1, *form.shape)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    if not whole:
        return True
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return bool(np.allclose(features, form.of_samples(samples, rate, "plain"), atol=1e-4))


@pytest.mark.parametrize("seed", range(INPUTS["damaged"][0]))
def test_a_damaged_sound_is_read_or_refused(seed: int, trials: Any) -> None:
    """Whatever a decoder does with damage, an error names the file; some damage only changes the sound."""
    draw, files = random.Random(f"sounds {seed}"), written()
    draw.shuffle(files)
    for i in range(INPUTS["damaged"][1]):
        label, content = files[i % len(files)]
        whole = i < len(files) and i % 2 == 0
        suffix = label.split()[0].lower() if draw.random() < 0.7 else draw.choice(["wav", "mp3", "flac", "txt", "au"])
        path, form = Path(f"{i}.{suffix}"), draw.choice([FORM, CENTRE])
        path.write_bytes(content if whole else damaged(content, draw))
        trials.attempt(
            f"{seed}/{i}, {label} {'whole' if whole else 'damaged'} as {path}",
            lambda path=path, form=form: form.decode(path),
            lambda x, path=path, form=form, whole=whole: is_right(path, x, form, whole),
            named=re.escape(str(path)),
            must=whole,
        )
        path.unlink()
    trials.finish(INPUTS["damaged"][1], refused=0.2, accepted=0.2)


def chunk(name: bytes, content: bytes, size: int | None = None, order: str = "<") -> bytes:
    """Return a chunk of RIFF or FORM, which says to have ``size`` bytes."""
    return name + struct.pack(f"{order}I", (len(content) if size is None else size) % 2**32) + content


def headed(draw: random.Random) -> tuple[str, bytes]:
    """Return a file whose header says something unlikely, and its suffix."""
    big = [0, 1, 3, 8000, 44_100, 2**16, 2**24 - 1, 2**31 - 1, 2**31, 2**32 - 1]
    data = struct.pack("<800h", *(int(9000 * np.sin(i / 3)) for i in range(800)))
    rate, channels, bits = (
        draw.choice(big),
        draw.choice([0, 1, 1, 1, 2, 8, 255, 1024, 65_535]),
        draw.choice([0, 1, 8, 12, 16, 16, 24, 32, 64, 255]),
    )
    tag = draw.choice([0, 1, 1, 1, 2, 3, 6, 7, 0x11, 0x31, 0x55, 0xFFFE, 0xFFFF])
    size = draw.choice([None, None, 0, 1, 2**31 - 1, 2**32 - 1, 10_000])
    form = draw.choice(["wav", "wavex", "rf64", "w64", "aiff", "au", "caf", "flac", "text"])
    fmt = struct.pack("<HHIIHH", tag, channels, rate, draw.choice(big), draw.choice([0, 1, 2, 4, 65_535]), bits)
    if form == "wav":
        return form, b"RIFF" + struct.pack("<I", draw.choice(big)) + b"WAVE" + chunk(b"fmt ", fmt) + chunk(
            b"data", data, size
        )
    if form == "wavex":
        guid = draw.choice([1, 3, 6, 7, 99]).to_bytes(2, "little") + bytes.fromhex("000000001000800000AA00389B71")
        fmt = (
            struct.pack("<H", 0xFFFE)
            + fmt[2:]
            + struct.pack("<HHI", draw.choice([0, 22, 99]), bits, draw.choice(big))
            + guid
        )
        return "wav", b"RIFF" + struct.pack("<I", len(data) + 60) + b"WAVE" + chunk(b"fmt ", fmt) + chunk(
            b"data", data, size
        )
    if form == "rf64":
        sizes = struct.pack("<QQQI", *(draw.choice([0, 1600, 2**40, 2**62, 2**63, 2**64 - 1]) for _ in range(3)), 0)
        return form, b"RF64\xff\xff\xff\xffWAVE" + chunk(b"ds64", sizes) + chunk(b"fmt ", fmt) + chunk(
            b"data", data, 2**32 - 1
        )
    if form == "w64":
        content = io.BytesIO()
        soundfile.write(content, tone(), 8000, format="W64")
        changed = bytearray(content.getvalue())
        at = draw.choice([16, 56, 64, 66, 68, 72, 76, 78, 96, 104])
        changed[at : at + 8] = struct.pack("<Q", draw.choice([0, 1, 24, 2**31, 2**40, 2**63, 2**64 - 1]))
        return form, bytes(changed)
    if form == "aiff":
        exponent, mantissa = (
            draw.choice([0, 0x400B, 0x400E, 0x401E, 0x7FFF, 0xFFFF]),
            draw.choice([0, 0xFA0 << 52, 2**64 - 1]),
        )
        comm = struct.pack(">hIhHQ", channels % 2**15, draw.choice(big), bits % 2**15, exponent, mantissa)
        sound = chunk(b"SSND", bytes(8) + data, size, ">")
        return form, b"FORM" + struct.pack(">I", draw.choice(big)) + b"AIFF" + chunk(b"COMM", comm, None, ">") + sound
    if form == "au":
        offset = draw.choice([0, 24, 32, 2**31, 2**32 - 1])
        return form, b".snd" + struct.pack(
            ">IIIII", offset, draw.choice(big), draw.choice([0, 1, 2, 3, 6, 7, 27, 99]), rate, channels
        ) + data
    if form == "caf":
        desc = struct.pack(
            ">d4sIIIII",
            float(draw.choice([0, -1, 8000, 1e300, np.inf, np.nan])),
            b"lpcm",
            draw.choice([0, 1, 2, 3]),
            draw.choice(big),
            draw.choice(big),
            channels,
            bits,
        )
        length = draw.choice([-1, 0, 1604, 2**40, 2**63 - 1, -(2**63)])
        return form, b"caff\0\x01\0\0" + b"desc" + struct.pack(">q", 32) + desc + b"data" + struct.pack(
            ">q", length
        ) + bytes(4) + data
    if form == "flac":
        content = io.BytesIO()
        soundfile.write(content, tone(), 8000, format="FLAC")
        changed = bytearray(content.getvalue())
        changed[8 + draw.randrange(18)] = draw.choice([0, 255, 128])
        return form, bytes(changed)
    return "wav", draw.choice(
        [
            b"",
            b"\0",
            b"RIFF",
            b"RIFF\0\0\0\0WAVE",
            b"RIFF\xff\xff\xff\xffWAVEdata\0\0\0\0",
            b"OggS",
            b"fLaC",
            b"ID3\x04\0\0\x7f\x7f\x7f\x7f",
            b".snd",
            b"FORM\0\0\0\0AIFF",
            b"caff",
            b"text" * 99,
            b"\xff\xfb" * 200,
        ]
    )


@pytest.mark.parametrize("seed", range(INPUTS["headers"][0]))
def test_a_sound_whose_header_says_something_unlikely_fills_no_memory(seed: int, trials: Any) -> None:
    """Sampling rates, channels and lengths of 2^32 - 1 are refused before anything of that size is made."""
    draw = random.Random(f"headers {seed}")
    paths = odd_paths()
    for i in range(INPUTS["headers"][1]):
        if i < len(paths):
            path, label = paths[i], f"{paths[i]!r:.60}"
        else:
            suffix, content = headed(draw)
            path, label = Path(f"{i}.{suffix}"), f"{content[:90]!r}"
            path.write_bytes(content)
        form = draw.choice([FORM, CENTRE])
        right = None if i < len(paths) else lambda x, path=path, form=form: is_right(path, x, form, False)
        trials.attempt(
            f"{seed}/{i}, {label}",
            lambda path=path, form=form: form.decode(path),
            right,
            named=re.escape(str(path).split("\0")[0]),
        )
        if i >= len(paths):
            path.unlink()
    trials.finish(INPUTS["headers"][1], refused=0.3, accepted=0.03)


def odd_paths() -> list[Path]:
    """Make paths that are no usual files."""
    Path("folder.wav").mkdir()
    os.mkfifo("pipe.wav")
    links = {
        "nowhere.wav": "none",
        "itself.wav": "itself.wav",
        "zero.wav": "/dev/zero",
        "topipe.wav": "pipe.wav",
        "null.wav": "/dev/null",
    }
    for name, target in links.items():
        os.symlink(target, name)
    return [*map(Path, ["folder.wav", "pipe.wav", *links, "missing.wav", "a\0b.wav", "y" * 900])]


SAMPLES: tuple[Any, ...] = (
    *(
        None,
        3,
        "text.wav",
        b"text",
        [],
        [[]],
        (),
        {},
        {1},
        object(),
        [None],
        [0.5],
        range(9),
        (1, 2, 3),
        Path("no.wav"),
    ),
    *(np.zeros(0), np.zeros((0, 2)), np.zeros((2, 900)), np.zeros((3, 3, 3)), np.full(900, np.nan), np.full(900, 1e30)),
    *(np.zeros(900, complex), np.zeros(900, "i8"), np.zeros(900, bool), np.zeros(900, object), np.full(900, "a"), 0.5),
    *(np.zeros((1, *FORM.shape)), np.full((1, *FORM.shape), np.nan), np.zeros(FORM.shape), np.zeros((2, 1, 9, 9))),
)
RATES: tuple[Any, ...] = (
    0,
    -1,
    1,
    8000,
    44_100,
    2**31,
    10**20,
    0.5,
    "8000",
    None,
    True,
    np.int64(8000),
    np.nan,
    7999,
    99_991,
)


@pytest.mark.parametrize("seed", range(INPUTS["samples"][0]))
def test_samples_that_are_none_are_refused(seed: int, trials: Any) -> None:
    """A preparation is given samples and rates of any sort."""
    draw = random.Random(f"samples {seed}")
    good = tone()[:, 0]
    for i in range(INPUTS["samples"][1]):
        sort = draw.choice(["good", "good", "int16", "flipped", "list", "odd", "odd"])
        samples: Any = {
            "good": good,
            "int16": (good * 2**15).astype(np.int16),
            "flipped": good[::-1].copy()[::-1],
            "list": good.tolist(),
            "odd": draw.choice(SAMPLES),
        }[sort]
        rate = 8000 if draw.random() < 0.5 else draw.choice(RATES)
        raw = draw.choice(
            [(samples, rate), [(samples, rate)], (samples, rate, 1), [(samples, rate), (good, 8000)], samples]
        )
        expected = FORM.of_samples(good.astype(np.float32), 8000, "plain")

        def right(got: Any, sort: str = sort, rate: Any = rate, expected: Any = expected) -> bool:
            assert got.shape[1:] == FORM.shape
            assert bool(got.isfinite().all())
            same = sort not in ("odd",) and type(rate) is int and rate == 8000
            return not same or bool(np.allclose(got.numpy(), expected, atol=2e-2))

        trials.attempt(f"{seed}/{i}, {sort} {rate!r} {raw!r:.60}", lambda raw=raw: prepare(raw, FORM), right)
    trials.finish(INPUTS["samples"][1], refused=0.3, accepted=0.1)
