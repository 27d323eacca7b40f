"""Splits are by person, training images are augmented, and bad data and options are refused."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kshot
from kshot.errors import DataError
from kshot.randomness import episode_keys
from kshot_orl_faces import orl_faces
from kshot_orl_faces.changes import SHIFT, TURN, ZOOM, Changed, changed, transformations
from kshot_orl_faces.tasks import split

Small = Callable[..., Path]
NAMES = [f"s{n}" for n in range(1, 41)]


def test_shape_may_vary_by_block(small: Small) -> None:
    """All episodes of a block have one way; the ways follow the seed."""
    options: dict[str, Any] = {"people": (4, 2, 2), "way": (2, 4), "query": 1, "block": 4, "size": (8, 8)}
    made = [orl_faces(root=small(people=8), seed=seed, **options) for seed in (0, 1)]
    ways = [[tasks.sample("train", range(4 * b, 4 * b + 4)).support.way for b in range(12)] for tasks in made]
    assert set(ways[0]) == {2, 3, 4}
    assert ways[0] != ways[1]


# --- Splits by person -----------------------------------------------------------------------------------------------


def test_people_are_divided_without_overlap() -> None:
    """No person is in two splits; trainval is train and val together."""
    held = split(NAMES, (20, 10, 10), 0)
    assert [len(held[s]) for s in ("train", "val", "test", "trainval")] == [20, 10, 10, 30]
    assert sorted(held["train"] + held["val"] + held["test"]) == sorted(NAMES)
    assert set(held["trainval"]) == {*held["train"], *held["val"]}


def test_who_is_tested_is_the_first_by_a_hash_of_seed_and_name() -> None:
    """A naive computation by BLAKE2b agrees; it is the same on every platform."""

    def number(name: str, seed: int) -> int:
        digest = hashlib.blake2b(f"orl-faces/{seed}/{name}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little")

    for seed in range(3):
        held = split(NAMES, (20, 10, 10), seed)
        assert set(held["test"]) == set(sorted(NAMES, key=lambda n: number(n, seed))[:10])
    assert split(NAMES, (20, 10, 10), 0) != split(NAMES, (20, 10, 10), 1)


def test_other_numbers_of_training_people_leave_the_test_people_alone() -> None:
    """Results with 5 and with 30 training people are then on the same faces."""
    test = split(NAMES, (20, 10, 10), 4)["test"]
    few = split(NAMES, (5, 2, 10), 4)
    all_but = split(NAMES, (30, 0, 10), 4)
    assert few["test"] == all_but["test"] == test
    assert list(all_but) == ["train", "test"]
    assert len(few["trainval"]) == 7


@pytest.mark.parametrize(
    ("people", "message"),
    [((20, 10, 11), "41 in all, expected at most 40"), ((0, 30, 10), "only val may be 0"), ((30, 10, 0), "only val"),
     ((31, -1, 10), "expected numbers")],
)  # fmt: skip
def test_impossible_numbers_of_people_are_refused(people: tuple[int, int, int], message: str) -> None:
    """They are refused before anything is decoded."""
    with pytest.raises(DataError, match=message):
        split(NAMES, people, 0)


def test_fewer_people_than_the_split_asks_for_are_refused(small: Small) -> None:
    """A folder may have been unpacked only in part."""
    with pytest.raises(DataError, match=r"people: got \(20, 10, 10\), 40 in all, expected at most 4; ask for fewer"):
        orl_faces(root=small())


def test_pictures_of_an_episode_are_of_the_person_they_are_named_after(small: Small) -> None:
    """Class numbers, names and rows agree in every split; the pixels of the files show it."""
    folder = small(people=8, unpacked=True)
    tasks = orl_faces(root=folder, people=(4, 2, 2), way=2, size=(112, 92), shot=2, query=3)
    for name in tasks.spec.splits:
        e = tasks.sample(name, [0, 1])
        assert e.origin is not None
        for b in range(2):
            for x, y in ((e.support.x[b], e.support.y[b]), (e.query.x[b], e.query.y[b])):
                for picture, label in zip(x, y, strict=True):
                    person = e.origin.class_names[b][label]
                    pixels = (picture[0] * 255).round().byte().numpy().tobytes()
                    assert any((folder / person / f"{i}.pgm").read_bytes().endswith(pixels) for i in range(1, 11))


# --- Where the data are -------------------------------------------------------------------------------------------


def test_the_environment_names_the_data(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument takes precedence over the environment variable."""
    path = small()
    monkeypatch.setenv("KSHOT_ORL_FACES", str(path))
    tasks = orl_faces(people=(2, 1, 1))
    monkeypatch.setenv("KSHOT_ORL_FACES", "nowhere")
    assert orl_faces(root=path.parent, people=(2, 1, 1)).fingerprint == tasks.fingerprint


def test_missing_data_are_told_with_the_ways_to_them(small: Small) -> None:
    """The data can't be in the package, so the error lists the ways to get them."""
    with pytest.raises(DataError, match=r"root= or KSHOT_ORL_FACES, or fetch it with download=True"):
        orl_faces()
    with pytest.raises(DataError, match="both root and download"):
        orl_faces(root=small(), download=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"size": (0, 46)}, "size: got"), ({"augment": -1.0}, "augment: got -1"),
     ({"augment": math.nan}, "augment: got nan"),
     ({"shot": 5, "query": (1, 6)}, "shot \\+ query of 5 \\+ 6 = 11, expected at most 10")],
)  # fmt: skip
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    """The error is raised before any file is searched for."""
    with pytest.raises(DataError, match=message):
        orl_faces(**options)


def test_the_fingerprint_tells_other_data_apart(small: Small) -> None:
    """It depends on size, split and contents, but not on how the files are packed."""
    zipped, folder = small(), small(unpacked=True)
    base: dict[str, Any] = {"people": (2, 1, 1)}
    first = orl_faces(root=zipped, **base).fingerprint
    assert orl_faces(root=folder, **base).fingerprint == first
    others = [{"size": (28, 23)}, {"split_seed": 1}, {"people": (1, 1, 1)}]
    made = {orl_faces(root=zipped, **{**base, **other}).fingerprint for other in others}
    assert len({first, *made}) == 4


# --- Changed training images --------------------------------------------------------------------------------------


def ramp(B: int, n: int, H: int = 12, W: int = 10) -> torch.Tensor:
    return torch.rand(B, n, 1, H, W, generator=torch.Generator().manual_seed(0))


def test_at_strength_0_images_are_only_mirrored() -> None:
    """About half of the images are mirrored exactly; the others do not change."""
    x = ramp(8, 20)
    found = changed(x, episode_keys(0, "train", range(8)), 0.0).flatten(0, 1)
    plain, mirrored = x.flatten(0, 1), x.flatten(0, 1).flip(-1)
    same = torch.stack([torch.allclose(f, p, atol=1e-5) * torch.tensor(1) for f, p in zip(found, plain, strict=True)])
    other = [torch.allclose(f, m, atol=1e-5) for f, m in zip(found, mirrored, strict=True)]
    assert [bool(s) != o for s, o in zip(same, other, strict=True)] == [True] * 160
    assert 55 < int(same.sum()) < 105  # half of 160, within 4 standard deviations


def test_a_turn_keeps_shapes_whatever_the_sides() -> None:
    """A quarter turn of an image that is not square, by hand: x' = -y and y' = x in pixels from its centre."""
    draws = np.array([[1.0, 0.5, 0.5, 0.5, 0.9]])  # the greatest turn, no zoom, no shift, not mirrored
    (theta,) = transformations(draws, 90 / TURN, tall=12 / 10)
    x, y = 3.0, -2.0  # pixels from the centre, in the new image
    across, down = theta @ [x / 5, y / 6, 1]
    assert (across * 5, down * 6) == pytest.approx((2.0, 3.0))
    (theta,) = transformations(draws - [[0, 0, 0, 0, 0.8]], 90 / TURN, tall=12 / 10)  # mirrored first: -3, -2
    across, down = theta @ [x / 5, y / 6, 1]
    assert (across * 5, down * 6) == pytest.approx((2.0, -3.0))


def test_zoom_and_shift_are_as_much_as_they_say() -> None:
    """Strength 1 has the documented maxima; strength 2 has twice the logarithm of the zoom and twice the shift."""
    (theta,) = transformations(np.array([[0.5, 1.0, 1.0, 0.0, 0.1]]), 1.0, tall=1.2)
    assert theta == pytest.approx(np.array([[-1 / (1 + ZOOM), 0, 2 * SHIFT], [0, 1 / (1 + ZOOM), -2 * SHIFT]]))
    (theta,) = transformations(np.array([[0.5, 1.0, 1.0, 0.0, 0.9]]), 2.0, tall=1.2)
    assert theta == pytest.approx(np.array([[(1 + ZOOM) ** -2, 0, 4 * SHIFT], [0, (1 + ZOOM) ** -2, -4 * SHIFT]]))


def test_only_training_images_are_changed(small: Small) -> None:
    """Labels, identities, the pool, validation and test do not change; each training image changes in its own way."""
    path = small(people=8)
    base: dict[str, Any] = {"root": path, "people": (4, 2, 2), "way": 2}
    plain, tasks = orl_faces(**base), orl_faces(**base, augment=1.0)
    assert isinstance(tasks, Changed)
    assert tasks.spec == plain.spec
    for name in plain.spec.splits:
        a, b = plain.sample(name, range(3)), tasks.sample(name, range(3))
        assert torch.equal(a.support.x, b.support.x) == (name in ("val", "test"))
        assert torch.equal(a.query.x, b.query.x) == (name in ("val", "test"))
        assert torch.equal(a.query.y, b.query.y)
        assert a.origin is not None
        assert b.origin is not None
        assert np.array_equal(a.origin.support_ids, b.origin.support_ids)
        assert tasks.pool(name).x is tasks.of.pool(name).x
    assert torch.equal(tasks.prepare(np.zeros((112, 92), np.uint8)), torch.zeros(1, 1, 56, 46))
    one = torch.ones(2, 6, 1, 8, 8).cumsum(-1).cumsum(-2) / 64
    found = changed(one, episode_keys(0, "train", range(2)), 1.0).flatten(0, 1)
    assert len({f.numpy().tobytes() for f in found}) == 12


def test_a_learner_trains_on_changed_images(small: Small) -> None:
    """The test goes through the engine's checks: types, ranges and shapes are as the spec says."""
    tasks = orl_faces(root=small(people=8), people=(4, 2, 2), way=2, size=(20, 16), augment=2.0, query=2)

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
    engine.train(3)
    assert math.isfinite(engine.evaluate(20).mean)
