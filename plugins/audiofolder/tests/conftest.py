"""Make folders of tiny generated sounds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Use no cache of the machine's user."""
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder of classes c0, c1, ... of tones with noise, a tenth of a second at 8 kHz; a class has a pitch."""

    def make(classes: int = 10, sounds: int | tuple[int, ...] = 4, suffix: str = ".wav") -> Path:
        root = tmp_path / "sounds"
        counts = (sounds,) * classes if isinstance(sounds, int) else sounds
        for c, count in enumerate(counts):
            (root / f"c{c}").mkdir(parents=True)
            for i in range(count):
                t = np.arange(800 + 100 * i) / 8000
                noise = 0.01 * np.random.default_rng((c, i)).normal(size=len(t))
                soundfile.write(
                    root / f"c{c}" / f"{i}{suffix}", 0.5 * np.sin(2 * np.pi * (300 + 300 * c) * t) + noise, 8000
                )
        return root

    return make
