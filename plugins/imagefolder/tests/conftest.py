"""Make folders of tiny generated images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Use no cache of the machine's user."""
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder of classes c0, c1, ... of random images of 6 x 6 in colour."""

    def make(classes: int = 10, images: int | tuple[int, ...] = 4, suffix: str = ".png") -> Path:
        root = tmp_path / "images"
        counts = (images,) * classes if isinstance(images, int) else images
        for c, count in enumerate(counts):
            (root / f"c{c}").mkdir(parents=True)
            for i in range(count):
                pixels = np.random.default_rng((c, i)).integers(0, 256, (6, 6, 3), np.uint8)
                Image.fromarray(pixels).save(root / f"c{c}" / f"{i}{suffix}")
        return root

    return make
