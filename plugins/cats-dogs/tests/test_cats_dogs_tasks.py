"""Recordings are divided as documented, and an input does not reveal the length of its recording."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchaudio

import kshot
from kshot import registry
from kshot.errors import DataError
from kshot_cats_dogs import cats_dogs
from kshot_cats_dogs.features import cut, log_mel, mfcc
from kshot_cats_dogs.files import read
from kshot_cats_dogs.tasks import of_classes, prepare

Small = Callable[..., Path]


def test_coefficients_are_torchaudio_s() -> None:
    """``torchaudio.transforms.MFCC`` with the same options gives the same numbers."""
    wave = torch.from_numpy(np.random.default_rng(0).normal(size=8000).astype(np.float32)) * 0.1
    reference = torchaudio.transforms.MFCC(16000, 20, melkwargs={"n_fft": 400, "hop_length": 160, "n_mels": 40})
    assert torch.allclose(mfcc(wave, normalise=False), reference(wave), atol=1e-4)
    mel = log_mel(wave)
    by_hand = reference.dct_mat.T @ ((mel - mel.mean()) / mel.std(correction=0))
    assert torch.allclose(mfcc(wave), by_hand, atol=1e-4)


def test_shape_may_vary_by_block(small: Small) -> None:
    """All episodes of a block have one shot; the shots follow the seed."""
    made = [cats_dogs(root=small(), shot=(1, 3), query=1, block=4, seed=seed) for seed in (0, 1)]
    shots = [
        [len(tasks.sample("train", range(4 * b, 4 * b + 4)).support.y[0]) // 2 for b in range(12)] for tasks in made
    ]
    assert set(shots[0]) == {1, 2, 3}
    assert shots[0] != shots[1]


def test_inputs_do_not_depend_on_what_lies_beyond_the_cut() -> None:
    """The length of the recording, the sound after the cut and the loudness have no effect."""
    samples = torch.from_numpy(np.random.default_rng(0).normal(size=50000).astype(np.float32)) * 0.1
    first = mfcc(cut(samples, 15680, "start"))
    assert torch.equal(mfcc(cut(samples[:20000], 15680, "start")), first)
    assert torch.equal(mfcc(samples[:15680]), first)
    assert torch.allclose(mfcc(cut(samples * 4, 15680, "start")), first, atol=1e-3)
    assert torch.equal(cut(samples, 15680, "centre"), samples[17160:32840])


def test_recordings_are_divided_within_each_class(small: Small) -> None:
    """Every split has both classes, no recording is in two splits, and trainval is train and val together."""
    root = small()
    for sub_dogs, counts in ((False, ([8, 8], [3, 3], [3, 3], [11, 11])), (True, ([8, 17], [3, 5], [3, 6], [11, 22]))):
        tasks = cats_dogs(root=root, sub_dogs=sub_dogs, seconds=0.1)
        assert tasks.spec.split_by == "example"
        assert tasks.spec.splits == ("train", "val", "test", "trainval")
        assert tuple(tasks.pool(split).counts.tolist() for split in tasks.spec.splits) == counts
        rows = {split: set(tasks.pool(split).table()[0].tolist()) for split in tasks.spec.splits}
        assert rows["trainval"] == rows["train"] | rows["val"]
        assert len(rows["train"] | rows["val"] | rows["test"]) == (42 if sub_dogs else 28)
        assert all(tasks.pool(split).names == ("cats", "dogs") for split in tasks.spec.splits)


def test_inputs_of_an_episode_are_of_the_animal_they_are_named_after(small: Small) -> None:
    """The inputs are compared with those of the recordings."""
    root = small()
    clips, labels = of_classes(read(root), True)
    tasks = cats_dogs(root=root, sub_dogs=True)
    made = tasks.prepare([(clip.samples, 16000) for clip in clips])
    assert made.shape[1:] == tasks.spec.input_shape == (1, 20, 99)
    for split in tasks.spec.splits:
        episode = tasks.sample(split, range(4))
        assert episode.origin is not None
        for b in range(4):
            for x, y in zip(episode.query.x[b], episode.query.y[b], strict=True):
                (i,) = [i for i, m in enumerate(made) if torch.equal(m, x)]
                assert episode.origin.class_names[b][int(y)] == ("cats", "dogs")[labels[i]]


def test_own_recordings_are_prepared_as_the_data_are(small: Small) -> None:
    root = small(unpacked=True)
    tasks = cats_dogs(root=root, seconds=0.5)
    clip = read(root)[0]
    expected = tasks.prepare((clip.samples, 16000))
    path = root / clip.name
    floats = clip.samples.astype(np.float32) / 32768
    for given in (path, str(path), (floats, 16000), (torch.from_numpy(floats), 16000), expected):
        assert torch.allclose(tasks.prepare(given), expected, atol=1e-5)
    assert tasks.prepare([path, path]).shape == (2, 1, 20, 51)
    assert torch.equal(registry.preparation(tasks.preparation.to_dict())(path), tasks.prepare(path))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((np.zeros(100), 16000), r"samples of shape \[100\], expected \[n\], n at least 15680"),
        ((np.zeros((20000, 2)), 16000), r"samples of shape \[20000, 2\]"),
        ((np.zeros(20000), 8000), "got samples at 8000 Hz, expected 16000"),
        (np.zeros((2, 1, 20, 5)), r"got float64 of shape \[2, 1, 20, 5\] to prepare, expected inputs"),
        (7, "got int to prepare"),
        ([], "got an empty list to prepare"),
        ("none.wav", r"none\.wav: got a file that can't be read \(FileNotFoundError"),
    ],
)
def test_inputs_of_another_form_are_refused(small: Small, given: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        cats_dogs(root=small()).prepare(given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": 1.0}, "seconds: got 1.0, expected more than 0.0125 and at most 0.98"),
        ({"seconds": 0.01}, "seconds: got 0.01"), ({"crop": "end"}, "crop: got 'end'"),
        ({"way": 3}, "split 'train': got way 3, expected at most 2"),
        ({"shot": 10, "query": 2}, r"got shot \+ query = 10 \+ 2 = 12, expected at most 8, .* class 'cats'"),
        ({"split": (0.5, 0.5, 0.5)}, "expected shares of train, val and test that sum to 1"),
        ({"download": True}, "both root and download"),
    ],
)  # fmt: skip
def test_impossible_options_are_refused(small: Small, options: dict[str, Any], message: str) -> None:
    """Short recordings would be padded for longer clips, and a learner could read their length from the padding."""
    with pytest.raises(DataError, match=message):
        cats_dogs(root=small(), **options)


def test_missing_data_are_told_with_the_ways_to_them(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error lists all ways to get the data; the environment variable is one of them."""
    with pytest.raises(DataError, match="root= or KSHOT_CATS_DOGS, or fetch them with download=True"):
        cats_dogs()
    monkeypatch.setenv("KSHOT_CATS_DOGS", str(small()))
    assert cats_dogs().spec.way == 2


def test_recordings_that_are_not_the_known_ones_are_logged(small: Small, caplog: pytest.LogCaptureFixture) -> None:
    """Such recordings may be used; the fingerprint shows that they are others."""
    with caplog.at_level(logging.WARNING, "kshot_cats_dogs"):
        cats_dogs(root=small(), sub_dogs=True).pool("train")
    assert "the recordings are not the known ones" in caplog.text


def test_the_fingerprint_tells_options_apart(small: Small) -> None:
    root = small()
    options: list[dict[str, Any]] = [{}, {"seconds": 0.5}, {"crop": "centre"}, {"sub_dogs": True}, {"split_seed": 1}]
    assert len({cats_dogs(root=root, **each).fingerprint for each in options}) == 5


def nearest(features: torch.Tensor, y: torch.Tensor) -> int:
    """Count the recordings whose nearest other recording is of the same class."""
    apart = torch.cdist(features, features).fill_diagonal_(float("inf"))
    return int((y[apart.argmin(1)] == y).sum())


def test_real_recordings_are_told_apart_by_more_than_their_length(real: Path) -> None:
    """Leave-one-out by the nearest mean and deviation of MFCC gets the known 23 of 28 and 37 of 42 complete recordings.

    It gets no fewer of the first 0.98 s, where lengths are equal; by length alone it gets 16 and 31.
    """
    found = []
    for sub_dogs in (False, True):
        clips, labels = of_classes(read(real / "audio_cats_dogs.zip"), sub_dogs)
        y = torch.tensor(labels)
        waves = [torch.from_numpy(clip.samples.astype(np.float32)) / 32768 for clip in clips]
        made = [[mfcc(w[:n]) for w in waves] for n in (None, 15680)]
        features = [torch.stack([torch.cat([m.mean(1), m.std(1)]) for m in each]) for each in made]
        lengths = torch.tensor([[float(len(w))] for w in waves]).log()
        found.append([nearest(each, y) for each in (lengths, *features)])
    assert [row[:2] for row in found] == [[16, 23], [31, 37]]
    assert found[0][2] >= 23
    assert found[1][2] >= 37


def test_a_learner_trains_on_them(small: Small) -> None:
    """The test goes through the engine's checks; generated cats are high and dogs low."""
    tasks = kshot.tasks("cats-dogs", root=small())

    class Nearest(torch.nn.Module):
        needs = kshot.Needs()

        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        @kshot.per_episode
        def meta_gradient(self, episode: kshot.Episode) -> torch.Tensor:
            return (self.scale * episode.query.x.mean() - 1).square()

        @kshot.per_episode
        def adapt(self, support: kshot.Support) -> kshot.Predictor:
            return lambda x: -torch.cdist(x.flatten(1), support.x.flatten(1))

    engine = kshot.Engine(Nearest(), tasks)
    engine.train(2)
    assert engine.evaluate(50).mean == 1.0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (np.full(16000, np.nan), "16000 of 16000 values that are NaN"),
        (np.full(16000, 30000.0), "got samples from 3e\\+04 to 3e\\+04, expected floats within -1 and 1"),
        (np.zeros(16000, np.int32), "got int32, expected int16, or floats"),
        (np.zeros((1, 16000)), r"got samples of shape \[1, 16000\], expected \[n\]"),
    ],
)
def test_samples_of_another_scale_are_refused(given: Any, told: str) -> None:
    """Their features would be those of another sound, or NaN."""
    with pytest.raises(DataError, match=told):
        prepare((given, 16000), 15680, "start")


def test_inputs_that_are_not_finite_are_refused() -> None:
    """A learner would meet NaN."""
    with pytest.raises(DataError, match="inputs to prepare: got 1980 of 1980 values that are NaN"):
        prepare(np.full((1, 1, 20, 99), np.nan), 15680, "start")
