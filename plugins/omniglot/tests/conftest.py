"""Provide data for the tests: generated miniatures of Omniglot, and the real data if they are available."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kshot_omniglot import splits

EVALUATION = {
    "Angelic", "Atemayar_Qelisayer", "Atlantean", "Aurek-Besh", "Avesta", "Ge_ez", "Glagolitic", "Gurmukhi", "Kannada",
    "Keble", "Malayalam", "Manipuri", "Mongolian", "Old_Church_Slavonic_(Cyrillic)", "Oriya", "Sylheti",
    "Syriac_(Serto)", "Tengwar", "Tibetan", "ULOG",
}  # fmt: skip


@pytest.fixture(scope="session")
def common_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the cache of all tests that aren't about caching, so that each table is built once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, common_cache: Path) -> None:
    """Use no data and no cache of the machine's user."""
    for name in ("KSHOT_OMNIGLOT", "KSHOT_OMNIGLOT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KSHOT_CACHE", str(common_cache))


def picture(seed: int, side: int = 12) -> bytes:
    """Return a PNG of random dots, one bit per pixel as the originals are."""
    dots = np.random.default_rng(seed).random((side, side)) < 0.7
    made = io.BytesIO()
    Image.fromarray(dots).save(made, "PNG")
    return made.getvalue()


def entries(part: str, characters: Iterable[str], drawings: int = 2, first: int = 0) -> dict[str, bytes]:
    """Return names and pictures of a part, all different."""
    made = {}
    for c, name in enumerate(characters, first):
        for d in range(1, drawings + 1):
            made[f"{part}/{name}/{c:04d}_{d:02d}.png"] = picture(c * 100 + d)
    return made


def write_zip(path: Path, content: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def unpack(content: Mapping[str, bytes], folder: Path) -> None:
    for name, data in content.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with both zips: all 1623 characters, but two small drawings of each."""
    names = [name for split in ("train", "val", "test") for name in splits.vinyals()[split]]
    background = sorted(n for n in names if n.split("/")[0] not in EVALUATION)
    evaluation = sorted(n for n in names if n.split("/")[0] in EVALUATION)
    root = tmp_path_factory.mktemp("miniature")
    write_zip(root / "images_background.zip", entries("images_background", background))
    write_zip(root / "images_evaluation.zip", entries("images_evaluation", evaluation, first=len(background)))
    return root


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder with both zips of six characters in all, four drawings each; ``change`` edits their contents."""

    def make(
        name: str = "small",
        change: Callable[[dict[str, bytes]], None] = lambda content: None,
        method: int = zipfile.ZIP_STORED,
        unpacked: bool = False,
    ) -> Path:
        root = tmp_path / name
        for part, alphabets, first in (("images_background", "AB", 0), ("images_evaluation", "C", 4)):
            characters = [f"{a}/character{n:02d}" for a in alphabets for n in (1, 2)]
            content = entries(part, characters, drawings=4, first=first)
            if part == "images_background":
                change(content)
            if unpacked:
                unpack(content, root)
            else:
                write_zip(root / f"{part}.zip", content, method)
        return root

    return make


def shared() -> Path:
    here = Path(__file__).resolve()
    home = next((p for p in here.parents if (p / "core").is_dir() and (p / "plugins").is_dir()), here.parent)
    return Path(os.environ.get("KSHOT_SHARED") or home.parent / "shared" / "data") / "omniglot"


@pytest.fixture(scope="session")
def real() -> Path:
    """Return the folder of the full data, or skip."""
    if not (shared() / "images_background.zip").exists():
        pytest.skip("the full Omniglot is not at ../shared/data/omniglot")
    return shared()
