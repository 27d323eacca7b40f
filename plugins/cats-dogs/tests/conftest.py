"""Provide data for the tests: generated recordings with the known names, and the real ones if they are available."""

from __future__ import annotations

import io
import os
import wave
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from kshot_cats_dogs.files import CLIPS


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Use no data and no cache of the machine's user."""
    for name in ("KSHOT_CATS_DOGS", "KSHOT_CATS_DOGS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "cache"))


def wav(samples: int = 16000, pitch: float = 440, seed: int = 0, rate: int = 16000, channels: int = 1) -> bytes:
    """Return a wav of a tone with noise, 16 bits."""
    made = io.BytesIO()
    noise = np.random.default_rng(seed).normal(size=samples)
    wave_ = 0.3 * np.sin(2 * np.pi * pitch * np.arange(samples) / rate) + 0.01 * noise
    with wave.open(made, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((wave_ * 32767).astype("<i2").repeat(channels).tobytes())
    return made.getvalue()


def entries() -> dict[str, bytes]:
    """Return all 42 recordings: cats are high and long, dogs low and short."""
    return {
        f"{folder}/{name}": wav(20000 if folder == "Cats" else 16000, 2000 if folder == "Cats" else 300, f * 100 + i)
        for f, (folder, names) in enumerate(CLIPS.items())
        for i, name in enumerate(names)
    }


def write_zip(path: Path, content: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., Path]:
    """Make audio_cats_dogs.zip, or the folder it unpacks to; ``change`` edits the contents."""

    def make(change: Callable[[dict[str, bytes]], object] = lambda content: None, unpacked: bool = False) -> Path:
        content = entries()
        change(content)
        if not unpacked:
            return write_zip(tmp_path / "zipped" / "audio_cats_dogs.zip", content)
        for name, data in content.items():
            path = tmp_path / "unpacked" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return tmp_path / "unpacked"

    return make


@pytest.fixture(scope="session")
def real() -> Path:
    """Return the folder of the real recordings, or skip."""
    here = Path(__file__).resolve()
    home = next((p for p in here.parents if (p / "core").is_dir() and (p / "plugins").is_dir()), here.parent)
    path = Path(os.environ.get("KSHOT_SHARED") or home.parent / "shared" / "data") / "audio_cats_dogs"
    if not (path / "audio_cats_dogs.zip").exists():
        pytest.skip("the recordings are not at ../shared/data/audio_cats_dogs")
    return path
