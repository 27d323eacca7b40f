"""Provide data for the tests: generated miniatures of the database, and the real one if it is available."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Use no data and no cache of the machine's user."""
    for name in ("KSHOT_ORL_FACES", "KSHOT_ORL_FACES_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "cache"))


def pgm(seed: int, width: int = 92, height: int = 112) -> bytes:
    """Return a PGM of random greys."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)
    return b"P5\n%d %d\n255\n" % (width, height) + pixels.tobytes()


def entries(people: int) -> dict[str, bytes]:
    return {f"s{p}/{i}.pgm": pgm(p * 100 + i) for p in range(1, people + 1) for i in range(1, 11)}


def write_zip(path: Path, content: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def unpack(content: Mapping[str, bytes], folder: Path) -> Path:
    for name, data in content.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., Path]:
    """Make att_faces.zip, or the folder it unpacks to, of a few people; ``change`` edits the contents."""

    def make(
        people: int = 4,
        change: Callable[[dict[str, bytes]], None] = lambda content: None,
        method: int = zipfile.ZIP_STORED,
        unpacked: bool = False,
    ) -> Path:
        content = entries(people)
        change(content)
        if unpacked:
            return unpack(content, tmp_path / "att_faces")
        return write_zip(tmp_path / "small" / "att_faces.zip", content, method)

    return make


def shared() -> Path:
    here = Path(__file__).resolve()
    home = next((p for p in here.parents if (p / "core").is_dir() and (p / "plugins").is_dir()), here.parent)
    return Path(os.environ.get("KSHOT_SHARED") or home.parent / "shared" / "data") / "orl_faces"


@pytest.fixture(scope="session")
def real() -> Path:
    """Return the folder of the real zip, or skip."""
    if not (shared() / "att_faces.zip").exists():
        pytest.skip("the AT&T faces are not at ../shared/data/orl_faces")
    return shared()
