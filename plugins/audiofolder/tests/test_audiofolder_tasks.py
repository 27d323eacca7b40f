"""A folder becomes tasks: the table, the cache, and the errors."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import kshot
from kshot import registry
from kshot.errors import DataError
from kshot_audiofolder import audiofolder
from kshot_audiofolder.form import Form

Small = Callable[..., Path]
SHORT: dict[str, Any] = {"rate": 8000, "seconds": 0.1, "n_mels": 20, "way": 2, "query": 1}


def test_sounds_of_an_episode_are_of_the_class_they_are_named_after(small: Small) -> None:
    """The inputs equal those that ``prepare`` makes of the files, also if classes have different sizes."""
    root = small(sounds=(5, 6, 7, 5, 9, 5, 6, 7, 8, 5))
    tasks = audiofolder(root=root, **{**SHORT, "query": 3})
    for split in tasks.spec.splits:
        episode = tasks.sample(split, [0])
        assert episode.origin is not None
        for x, y in zip(episode.query.x[0], episode.query.y[0], strict=True):
            made = tasks.prepare(sorted((root / episode.origin.class_names[0][int(y)]).iterdir()))
            written = registry.preparation(tasks.preparation.to_dict())
            assert torch.equal(written(sorted((root / episode.origin.class_names[0][int(y)]).iterdir())), made)
            assert any(torch.equal(x, file) for file in made)


def test_shape_may_vary_by_block(small: Small) -> None:
    """All episodes of a block have one way; the ways follow the seed."""
    root = small()
    split: dict[str, Any] = {"split": (0.4, 0.3, 0.3)}
    made = [audiofolder(root=root, **{**SHORT, "way": (2, 3)}, block=4, seed=seed, **split) for seed in (0, 1)]
    ways = [[tasks.sample("train", range(4 * b, 4 * b + 4)).support.way for b in range(12)] for tasks in made]
    assert set(ways[0]) == {2, 3}
    assert ways[0] != ways[1]


def test_sounds_of_any_rate_length_and_kind_stand_together(small: Small) -> None:
    root = small(2, 2)
    rng = np.random.default_rng(0)
    for name, n, rate, channels in (("a.flac", 100, 8000, 1), ("b.ogg", 44100, 44100, 2), ("c.aiff", 3, 22050, 1)):
        soundfile.write(root / "c0" / name, rng.uniform(-0.1, 0.1, (n, channels)), rate)
    tasks = audiofolder(root=root, split=(0, 0, 1), **SHORT)
    pool = tasks.pool("test")
    assert pool.counts.tolist() == [5, 2]
    assert pool.x.dtype == torch.float32
    assert tuple(pool.x.shape) == (7, *tasks.spec.input_shape) == (7, 1, 20, 11)
    assert bool(pool.x.isfinite().all())


def test_it_is_decoded_once_and_not_before_it_is_needed(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    count: list[Path] = []
    decode = Form.decode
    monkeypatch.setattr(Form, "decode", lambda self, path, name="": (count.append(path), decode(self, path, name))[1])
    root = small()
    tasks = audiofolder(root=root, **SHORT)
    tasks.prepare(root / "c0" / "0.wav")
    assert len(count) == 1
    first = tasks.sample("test", [0])
    again = audiofolder(root=root, **SHORT)
    assert torch.equal(again.sample("test", [0]).query.x, first.query.x)
    assert len(count) == 41
    assert audiofolder(root=root, **{**SHORT, "n_mfcc": 13}).sample("test", [0]).query.x.shape[3] == 13
    assert len(count) == 81


def test_the_fingerprint_is_of_contents_and_options(small: Small) -> None:
    root = small()
    first = audiofolder(root=root, **SHORT).fingerprint
    os.utime(root / "c0" / "0.wav", ns=(1, 1))
    assert audiofolder(root=root, **SHORT).fingerprint == first
    others: list[dict[str, Any]] = [{"n_mfcc": 13}, {"normalise": "none"}, {"split_seed": 3}]
    assert len({first, *(audiofolder(root=root, **{**SHORT, **other}).fingerprint for other in others)}) == 4


def test_files_that_are_no_sounds_are_named_all_at_once(small: Small) -> None:
    """One error names a text called .wav, an empty file and a file without samples."""
    root = small()
    (root / "c1" / "0.wav").write_text("this is no sound")
    (root / "c3" / "2.wav").write_bytes(b"")
    soundfile.write(root / "c4" / "1.wav", np.zeros(0), 8000)
    with pytest.raises(
        DataError, match=r"(?s)got 3 files .*:.*c1.0\.wav: got a file that can't .*c3.2\.wav.*c4.1\.wav: got samples"
    ):
        audiofolder(root=root, **SHORT).sample("train", [0])


def test_copies_are_warned_of(small: Small) -> None:
    root = small()
    (root / "c1" / "copy.wav").write_bytes((root / "c0" / "0.wav").read_bytes())
    with pytest.warns(UserWarning, match=r"got 1 files that are copies of others \(c0/0\.wav = c1/copy\.wav\)"):
        audiofolder(root=root, **SHORT).pool("train")


def test_classes_are_split_by_lists_or_examples_by_shares(small: Small) -> None:
    root = small()
    tasks = audiofolder(root=root, split={"train": ["c1", "c0"], "test": ["c2", "c3"]}, **SHORT)
    assert (tasks.pool("train").names, tasks.pool("test").names) == (("c1", "c0"), ("c2", "c3"))
    by_sound = audiofolder(root=root, split=(0.5, 0, 0.5), split_by="example", **SHORT)
    assert by_sound.pool("test").counts.tolist() == [2] * 10
    assert by_sound.spec.split_by == "example"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers: got 0"), ({"pad": "edge"}, "pad: got 'edge'"),
        ({"way": 9}, "split 'train': got way 9, expected at most 5"),
        ({"shot": 2, "query": 3}, r"got shot \+ query = 2 \+ 3 = 5, expected at most 4, .* class 'c\d'"),
        ({"root": "nowhere"}, "nowhere: got a path that does not exist, .* a folder of sounds for each class"),
        ({"split": {"test": ["a/b"]}}, "got the class 'a/b'"),
    ],
)  # fmt: skip
def test_impossible_options_are_refused(small: Small, options: dict[str, Any], message: str) -> None:
    """They are refused before anything is decoded."""
    with pytest.raises(DataError, match=message):
        audiofolder(**{"root": small(), **SHORT, **options})


def test_a_class_of_other_files_is_refused(small: Small) -> None:
    root = small()
    (root / "phone").mkdir()
    (root / "phone" / "clip.m4a").write_bytes(b"...")
    with pytest.raises(DataError, match=r"phone: got only 1 other files, such as phone/clip\.m4a"):
        audiofolder(root=root, **SHORT)


def test_a_learner_tells_pitches_apart(small: Small) -> None:
    """The test goes through the engine's checks: the nearest support example of a tone has the tone's pitch."""
    tasks = kshot.tasks("audiofolder", root=small(12, 6), **{**SHORT, "query": 3})

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
    assert engine.evaluate(50).mean > 0.95


def test_a_csv_file_of_paths_gives_the_tasks_of_the_folder(small: Small, tmp_path: Path) -> None:
    """The same episodes, as classes and files have the same names."""
    root = small()
    rows = [f"{path.relative_to(root).as_posix()}\t{path.parent.name}" for path in sorted(root.glob("*/*"))]
    (tmp_path / "list.tsv").write_text("\n".join(["file\tsort", *rows]))
    expected = audiofolder(root=root, **SHORT)
    tasks = audiofolder(csv=tmp_path / "list.tsv", root=root, column="file", label="sort", **SHORT)
    assert torch.equal(tasks.sample("test", [0]).query.x, expected.sample("test", [0]).query.x)
    assert tasks.fingerprint == expected.fingerprint
    with pytest.raises(DataError, match=r"audiofolder: got neither root nor csv, expected a folder .* of sounds"):
        audiofolder(**SHORT)
