"""Clusters of characters, of pictures and of sounds are classes of training tasks."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kshot

pytest.importorskip("kshot_cactus")

CLASSES = 6


def write_files(root: Path) -> None:
    """Write a folder of pictures and a folder of sounds; those of a class are alike."""
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for c in range(CLASSES):
        for kind in ("pictures", "sounds"):
            (root / kind / f"c{c}").mkdir(parents=True)
        for i in range(8):
            pixels = np.full((16, 16), 40 * c) + rng.integers(0, 20, (16, 16))
            image.fromarray(pixels.astype(np.uint8)).save(root / f"pictures/c{c}/{i}.png")
            with wave.open(str(root / f"sounds/c{c}/{i}.wav"), "wb") as file:
                file.setparams((1, 2, 8000, 1600, "NONE", "not compressed"))
                tone = np.sin(np.arange(1600) * 0.15 * (c + 1) + rng.uniform(0, 6)) * 9000 + rng.normal(size=1600)
                file.writeframes(tone.astype(np.int16).tobytes())


def options(name: str, root: Path) -> dict[str, Any]:
    """Return options of the tasks below."""
    files = {"split": (1 / 3, 1 / 3, 1 / 3), "way": 2, "query": 1}
    return {
        "omniglot": {"protocol": "embedded"},
        "imagefolder": {"root": root / "pictures", "size": 16, "mode": "L", **files},
        "audiofolder": {"root": root / "sounds", "seconds": 0.2, **files},
    }[name]


@pytest.mark.parametrize("name", ["omniglot", "imagefolder", "audiofolder"])
def test_a_learner_trains_on_clusters_of_any_data(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training has no label and the test has true ones; the two training classes of files are found exactly."""
    pytest.importorskip(f"kshot_{name}")
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "cache"))
    if name != "omniglot":
        write_files(tmp_path)
    of = kshot.tasks(name, **options(name, tmp_path))
    clusters = 2 if name != "omniglot" else 8
    tasks = kshot.tasks("cactus", of=of, clusters=clusters, way=2, shot=1, query=2)
    learner = kshot.learner("simclr", tasks.spec, encoder="mlp", width=4)
    engine = kshot.Engine(learner, tasks)
    engine.train(iterations=2)
    assert engine.evaluate(episodes=5).episodes == 5
    if name != "omniglot":
        rows, y = of.pool("train").table()
        (labels,) = tasks.clustering.labels("train")
        found = dict(zip(tasks.clustering.examples("train").tolist(), labels.tolist(), strict=True))
        assert len({(c, found[row]) for row, c in zip(rows.tolist(), y.tolist(), strict=True)}) == 2
