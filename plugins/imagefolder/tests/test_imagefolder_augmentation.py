"""Random changes of training images."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kshot import randomness
from kshot.errors import DataError, Unavailable
from kshot_imagefolder import imagefolder
from kshot_imagefolder.augmentation import ANGLE, AREA, CHANGES, Augmentation, crops

KEYS = randomness.episode_keys(0, "train", range(200))
FEW = {"way": 2, "query": 2, "size": 6}


@pytest.mark.parametrize("changes", [(change,) for change in CHANGES] + [CHANGES])
def test_an_image_is_changed_by_its_key_alone(changes: Any) -> None:
    """Not by the others, nor by global random numbers; the range and the shape stay."""
    x = torch.rand(200, 3, 12, 10, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    changed = Augmentation(changes)(x, KEYS)
    assert torch.equal(torch.get_rng_state(), before)
    assert changed.shape == x.shape
    assert bool(((changed >= 0) & (changed <= 1)).all())
    assert not torch.equal(changed, x)
    assert torch.equal(Augmentation(changes)(x[7:9], KEYS[7:9]), changed[7:9])
    again = Augmentation(changes)(x[:1].expand(200, -1, -1, -1), KEYS)
    assert len({tuple(one.flatten().tolist()) for one in again}) > (1 if changes == ("flip",) else 50)


def test_half_of_the_images_are_flipped() -> None:
    """From left to right."""
    x = torch.arange(6.0).view(1, 2, 3).expand(200, 1, 2, 3) / 6
    flipped = Augmentation(("flip",))(x, KEYS)
    assert {tuple(one[0, 0].tolist()) for one in flipped} == {
        tuple(x[0, 0, 0].tolist()),
        tuple(x[0, 0, 0].flip(0).tolist()),
    }
    assert 70 < int((flipped[:, 0, 0, 0] > 0).sum()) < 130


def test_crops_lie_within_the_image_and_have_the_stated_area() -> None:
    """Also of images that are not square."""
    for h, w in ((100, 60), (60, 100), (1, 1)):
        top, left, height, width = crops(KEYS, h, w).T
        assert bool((top >= 0).all() and (left >= 0).all() and (height > 0).all() and (width > 0).all())
        assert bool((top + height <= h).all() and (left + width <= w).all())
        share = height * width / (h * w)
        assert bool((share > AREA[0] - 0.2).all())
        assert h == 1 or (share.min() < 0.7 and share.max() > 0.9 and len({*top}) > 10)


def test_a_rotation_keeps_a_plain_image_and_is_at_most_the_stated_angle() -> None:
    """The corners have the mean colour."""
    plain = torch.full((3, 3, 9, 9), 0.25)
    assert torch.allclose(Augmentation(("rotate",))(plain, KEYS[:3]), plain, atol=1e-6)
    bar = torch.zeros(200, 1, 41, 41)
    bar[:, :, 20] = 1
    turned = Augmentation(("rotate",))(bar, KEYS)[:, 0]
    heights = (turned[:, :, 35] * torch.arange(41.0)[:, None].T.view(1, 41)).sum(1) / turned[:, :, 35].sum(1)
    assert float((heights - 20).abs().max()) <= 15 * np.tan(np.radians(ANGLE)) + 1
    assert float((heights - 20).abs().max()) > 2


def test_only_training_episodes_are_augmented(small: Callable[..., Path]) -> None:
    """Their labels and their examples are those of episodes without changes, and so are all other splits."""
    root = small(12, 6)
    plain, changed = imagefolder(root=root, **FEW), imagefolder(root=root, augment=["flip", "colour"], **FEW)  # type: ignore[arg-type]
    assert changed.spec == plain.spec
    one, other = plain.sample("train", range(4)), changed.sample("train", range(4))
    assert torch.equal(one.query.y, other.query.y)
    assert one.origin is not None
    assert other.origin is not None
    assert np.array_equal(one.origin.query_ids, other.origin.query_ids)
    for mine, theirs in ((one.support.x, other.support.x), (one.query.x, other.query.x)):
        assert float((mine - theirs).abs().mean()) > 0.01
    assert torch.equal(changed.sample("train", [2]).support.x[0], other.support.x[2])
    assert torch.equal(plain.sample("test", range(4)).query.x, changed.sample("test", range(4)).query.x)
    assert torch.equal(plain.pool("train").x, changed.pool("train").x)


def test_embeddings_that_were_computed_once_are_not_augmented(small: Callable[..., Path]) -> None:
    """The message says what to do."""
    from kshot.runs.embedded import Embedded

    tasks = Embedded(imagefolder(root=small(12, 6), augment=["flip"], **FEW), torch.nn.Flatten())  # type: ignore[arg-type]
    tasks.sample("test", [0])
    with pytest.raises(DataError, match=r"augment: got embeddings of \[108\] numbers, .* leave augment out"):
        tasks.sample("train", [0])


def test_unknown_changes_and_a_missing_package_are_refused(
    small: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is decoded."""
    root = small(12, 6)
    with pytest.raises(DataError, match="augment: got 'mirror', expected some of flip, crop, rotate, colour"):
        imagefolder(root=root, augment=["mirror"], **FEW)  # type: ignore[list-item, arg-type]
    monkeypatch.setitem(sys.modules, "torchvision.transforms.v2.functional", None)
    with pytest.raises(Unavailable, match=r"pip install kshot-imagefolder\[augment\]"):
        imagefolder(root=root, augment=["flip"], **FEW)  # type: ignore[arg-type]
    imagefolder(root=root, **FEW)  # type: ignore[arg-type]
