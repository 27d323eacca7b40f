"""Folders of images and sounds with odd names, links, stray and damaged files become tasks or are refused by name.

They are arranged at random, with fixed seeds.
"""

from __future__ import annotations

import io
import os
import random
import shutil
import unicodedata
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import kshot

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

INPUTS = {"imagefolder": (2, 150), "audiofolder": (1, 100)}
"""How many seeds each test has, and how many inputs for each seed."""

CLASSES = ("cat", "dog", "owl", "ape", "bee", "fox")
ODD = (
    "a b",
    "ä",
    "a\u0308",
    "日本",
    "-rf",
    "a.b",
    "a\nb",
    "\x1b[2J",
    "x" * 250,
    "~",
    "$HOME",
    "*",
    "NUL",
    "a'b",
    '"',
    "\\",
    "Cat",
    "cat ",
)
STRAY = (
    "notes.txt",
    ".DS_Store",
    "Thumbs.db",
    "desktop.ini",
    "._1.png",
    "1.tmp",
    "README",
    "data.csv",
    "1.png.part",
    "x.wav",
    "x.png",
)


def content(suffix: str, seed: int) -> bytes:
    """Return a small image or sound."""
    rng, data = np.random.default_rng(seed), io.BytesIO()
    if suffix == ".png":
        Image.fromarray(rng.integers(0, 256, (6, 5, 3), np.uint8)).save(data, "PNG")
    else:
        with wave.open(data, "wb") as file:
            file.setparams((1, 2, 8000, 400, "NONE", ""))
            file.writeframes(rng.integers(-9999, 9999, 400, np.int16).tobytes())
    return data.getvalue()


def arranged(root: Path, suffix: str, draw: random.Random, plain: bool) -> None:
    """Write a folder of classes, and change it in some ways unless it is to be plain."""
    for c, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for i in range(3):
            (root / name / f"{i}{suffix}").write_bytes(content(suffix, 10 * c + i))
    for _ in range(0 if plain else draw.choice([1, 1, 2, 3])):
        folder = root / draw.choice(CLASSES)
        if not folder.is_dir() or folder.is_symlink():
            continue
        file = folder / f"{draw.randrange(3)}{suffix}"
        change = draw.choice(CHANGES)
        try:
            change(root, folder, file, suffix, draw)
        except OSError:  # something else is there already
            continue


def rename(root: Path, folder: Path, file: Path, suffix: str, draw: random.Random) -> None:
    """Give a class or a file an odd name."""
    if draw.random() < 0.5:
        folder.rename(root / draw.choice(ODD))
    else:
        file.rename(folder / f"{draw.choice(ODD)}{suffix}")


def not_unicode(root: Path, folder: Path, file: Path, suffix: str, draw: random.Random) -> None:
    """Add a name of bytes that are no text."""
    os.mkdir(os.fsencode(root) + b"/\xff\xfe") if draw.random() < 0.5 else file.rename(
        os.fsdecode(os.fsencode(folder) + b"/\xff.png")
    )


def twice(root: Path, folder: Path, file: Path, suffix: str, draw: random.Random) -> None:
    """Add a class whose name is the same in another of Unicode's forms."""
    for form in ("NFC", "NFD"):
        shutil.copytree(folder, root / unicodedata.normalize(form, "Ätna"), symlinks=True)


def stray(root: Path, folder: Path, file: Path, suffix: str, draw: random.Random) -> None:
    """Add a stray file, beside the classes or in one."""
    place = draw.choice([root, folder, folder / "sub"])
    place.mkdir(exist_ok=True)
    (place / draw.choice(STRAY)).write_bytes(draw.choice([b"", b"text", content(suffix, 99)]))


def damage(root: Path, folder: Path, file: Path, suffix: str, draw: random.Random) -> None:
    """Cut a file off, empty it, or put another sort of file in its place."""
    whole = file.read_bytes()
    file.write_bytes(
        draw.choice([b"", whole[: len(whole) // 2], b"text", whole + b"more", content(".wav", 5), content(".png", 5)])
    )


def special(root: Path, folder: Path, file: Path, suffix: str, draw: random.Random) -> None:
    """Put something else in the place of a file or a class."""
    place = draw.choice([file, folder / f"new{suffix}", root / "new", root / f"new{suffix}"])
    if place.is_file():
        place.unlink()
    draw.choice(
        [
            lambda p: os.mkfifo(p),
            lambda p: p.mkdir(),
            lambda p: p.symlink_to("nowhere"),
            lambda p: p.symlink_to(p.name),
            lambda p: p.symlink_to("/dev/zero"),
            lambda p: p.symlink_to(".."),
            lambda p: p.symlink_to("."),
            lambda p: p.symlink_to(folder.resolve()),
            lambda p: p.symlink_to(file.resolve()),
        ]
    )(place)


def empty(root: Path, folder: Path, file: Path, suffix: str, draw: random.Random) -> None:
    """Empty a class, or leave one class, or none."""
    how = draw.randrange(4)
    for path in [*folder.iterdir()] if how < 2 else ():
        path.unlink() if path.is_file() or path.is_symlink() else shutil.rmtree(path)
    for path in [*root.iterdir()] if how > 1 else ():
        if path != folder or how == 3:
            path.unlink() if path.is_file() or path.is_symlink() else shutil.rmtree(path)


def copies(root: Path, folder: Path, file: Path, suffix: str, draw: random.Random) -> None:
    """Copy a file, into its class or another."""
    shutil.copy(file, draw.choice([folder, root / "dog"]) / f"copy{suffix}")


CHANGES = (rename, rename, not_unicode, twice, stray, stray, damage, special, special, empty, copies)

OPTIONS: dict[str, dict[str, Any]] = {
    "imagefolder": {"size": 4, "mode": "L"},
    "audiofolder": {"rate": 8000, "seconds": 0.05, "features": "mel", "n_mels": 8},
}


@pytest.mark.parametrize(("name", "seed"), [(name, seed) for name in INPUTS for seed in range(INPUTS[name][0])])
def test_a_folder_becomes_tasks_or_is_refused(name: str, seed: int, trials: Any, tmp_path: Path) -> None:
    """All episodes have files of the folder, and nothing is written but the cache."""
    draw, suffix = random.Random(f"{name} {seed}"), {"imagefolder": ".png", "audiofolder": ".wav"}[name]
    for i in range(INPUTS[name][1]):
        root = Path(f"folder{i}")
        root.mkdir()
        arranged(root, suffix, draw, plain=i % 25 == 0)
        by = draw.choice(["class", "example"])
        options = {**OPTIONS[name], "split": (0.34, 0.33, 0.33) if by == "class" else (0.4, 0.3, 0.3), "split_by": by}

        def use(root: Path = root, options: dict[str, Any] = options) -> Any:
            tasks = kshot.tasks(
                name,
                root=root,
                cache=tmp_path / "cache",
                way=2,
                shot=1,
                query=0 if options["split_by"] == "example" else 1,
                **options,
            )
            return tasks, [tasks.sample(split, range(3)) for split in ("train", "val", "test")]

        trials.attempt(
            f"{name} {seed}/{i}, {sorted(p.relative_to(root).as_posix() for p in root.glob('*/*'))!r:.600}",
            use,
            is_right,
            named=f"folder{i}|split ",
            must=i % 25 == 0,
        )
        shutil.rmtree(root)
    trials.finish(INPUTS[name][1], refused=0.2, accepted=0.2)


def is_right(made: Any) -> None:
    """Assert that episodes are finite and in range, and that no two splits share a class or an example."""
    tasks, episodes = made
    for split, episode in zip(("train", "val", "test"), episodes, strict=True):
        kshot.checks.check_episode(episode, tasks.spec, split)
        x = torch.cat([episode.support.x, episode.query.x], 1)
        assert bool(x.isfinite().all())
        assert x.shape[2:] == tasks.spec.input_shape
    names = [set(tasks.pool(split).names) for split in ("train", "val", "test")]
    if tasks.spec.split_by == "class":
        assert len(set.union(*names)) == sum(map(len, names))
    assert all("\x00" not in name for name in names[0])
