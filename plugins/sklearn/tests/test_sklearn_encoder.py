"""The classifier on embeddings of an encoder plugin: files in, calibrated probabilities out."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from torch import nn

import kshot
from kshot.nn import tuned
from kshot_sklearn import FewShotClassifier

Image = pytest.importorskip("PIL.Image", reason="pictures need Pillow")
pytest.importorskip("kshot_imagefolder", reason="files are read by kshot-imagefolder")


def pooled(spec: kshot.TaskSpec) -> nn.Module:
    """Return the mean colours of four quarters."""
    return tuned(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()), "none")


@pytest.fixture
def files(tmp_path: Path) -> tuple[list[Path], list[str]]:
    """Eight pictures of two colours, and their labels."""
    kshot.register(pooled, name="pooled-colours", group="encoders")
    rng, paths, labels = np.random.default_rng(0), [], []
    for i in range(8):
        colour = (200, 30, 30) if i % 2 else (30, 30, 200)
        pixels = np.clip(np.array(colour) + rng.normal(0, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(pixels).save(paths[-1])
        labels.append("red" if i % 2 else "blue")
    return paths, labels


def test_files_are_classified_by_their_embeddings(files: tuple[list[Path], list[str]]) -> None:
    """Predictions, probabilities, the estimate, and a pickle that predicts the same."""
    paths, labels = files
    classifier = FewShotClassifier(encoder="pooled-colours").fit(paths[:6], labels[:6])
    assert classifier.predict(paths[6:]).tolist() == labels[6:]
    p = classifier.predict_proba(paths[6:])
    assert np.allclose(p.sum(1), 1)
    assert str(classifier.classifier_.estimate).startswith("100 % of 6 examples")
    again = pickle.loads(pickle.dumps(classifier))
    assert np.array_equal(again.predict_proba(paths[6:]), p)


def test_a_model_and_an_encoder_are_refused_together(files: tuple[list[Path], list[str]]) -> None:
    """Only one of them can make the embeddings."""
    with pytest.raises(ValueError, match="got model and encoder"):
        FewShotClassifier("runs/x", encoder="pooled-colours").fit(*files)
