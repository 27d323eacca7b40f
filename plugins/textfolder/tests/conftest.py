"""Make folders and CSV files of small generated texts."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

WORDS = (
    "parcel",
    "password",
    "refund",
    "lamp",
    "weather",
    "bicycle",
    "garden",
    "piano",
    "winter",
    "bridge",
    "café",
    "犬",
)


def text(c: int, i: int) -> str:
    """Return text ``i`` of class ``c``, which has the word of its class and one of its own."""
    return f"The {WORDS[c]} number {100 * c + i}, please."


@pytest.fixture
def text_of() -> Callable[[int, int], str]:
    """Return the function ``text``."""
    return text


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Use no cache of the machine's user."""
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder of classes c0, c1, ... of short texts."""

    def make(classes: int = 10, texts: int | tuple[int, ...] = 4) -> Path:
        root = tmp_path / "texts"
        counts = (texts,) * classes if isinstance(texts, int) else texts
        for c, count in enumerate(counts):
            (root / f"c{c}").mkdir(parents=True)
            for i in range(count):
                (root / f"c{c}" / f"{i}.txt").write_text(text(c, i), encoding="utf-8")
        return root

    return make


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    """Make a CSV file of the same texts."""

    def make(classes: int = 10, texts: int = 4) -> Path:
        path = tmp_path / "texts.csv"
        rows = [[text(c, i), f"c{c}"] for c in range(classes) for i in range(texts)]
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["text", "label"], *rows])
        return path

    return make
