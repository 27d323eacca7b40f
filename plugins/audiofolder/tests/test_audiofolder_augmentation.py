"""Random changes of training sounds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kshot import randomness
from kshot.errors import DataError
from kshot_audiofolder import audiofolder
from kshot_audiofolder.augmentation import MASK, SHIFT, Augmentation

KEYS = randomness.episode_keys(0, "train", range(200))
SHORT: dict[str, Any] = {"rate": 8000, "seconds": 0.1, "n_mels": 20, "way": 2, "query": 1}


@pytest.mark.parametrize(
    ("changes", "features", "shape"),
    [
        (("shift",), "mel", (1, 8, 30)), (("mask",), "mfcc", (1, 8, 30)), (("shift", "mask"), "mel", (1, 8, 30)),
        (("gain",), "wave", (1, 400)), (("noise",), "wave", (1, 400)), (("shift", "gain", "noise"), "wave", (1, 400)),
    ],
)  # fmt: skip
def test_a_sound_is_changed_by_its_key_alone(changes: Any, features: str, shape: tuple[int, ...]) -> None:
    """Not by the others, nor by global random numbers."""
    x = torch.randn(200, *shape, generator=torch.Generator().manual_seed(0)) / 10
    kept = x.clone()
    before = torch.get_rng_state()
    changed = Augmentation(changes, features)(x, KEYS)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(x, kept)
    assert changed.shape == x.shape
    assert bool(changed.isfinite().all())
    assert torch.allclose(Augmentation(changes, features)(x[7:9], KEYS[7:9]), changed[7:9])
    again = Augmentation(changes, features)(x[:1].expand(200, *shape), KEYS)
    assert len({tuple(one.flatten().tolist()) for one in again}) >= 7


def test_a_shift_goes_round_and_is_at_most_the_stated_share() -> None:
    """In both directions."""
    x = torch.zeros(200, 1, 100)
    x[:, :, 50] = 1
    places = Augmentation(("shift",), "wave")(x, KEYS)[:, 0].argmax(1) - 50
    assert (int(places.min()), int(places.max())) == (-round(SHIFT * 100), round(SHIFT * 100))


def test_a_mask_has_the_mean_and_at_most_the_stated_width() -> None:
    """Of bands and of frames."""
    x = torch.rand(200, 1, 20, 50, generator=torch.Generator().manual_seed(0))
    changed = Augmentation(("mask",), "mel")(x, KEYS)
    masked = changed != x
    bands, frames = masked.all(-1).sum(-1), masked.all(-2).sum(-1)
    assert int(bands.max()) == round(MASK * 20)
    assert int(frames.max()) == round(MASK * 50)
    assert int(bands.min()) == int(frames.min()) == 0
    one = int(bands.argmax())
    row = int(masked[one, 0].all(-1).int().argmax())
    assert float(changed[one, 0, row].median()) == pytest.approx(float(x[one].mean()), abs=1e-5)


def test_gain_and_noise_have_the_stated_strength() -> None:
    """Silence stays silence."""
    x = torch.sin(torch.arange(400.0) / 5).expand(200, 1, 400)
    factors = Augmentation(("gain",), "wave")(x, KEYS).std(-1) / x.std(-1)
    assert 0.5 < float(factors.min()) < 0.6
    assert 1.7 < float(factors.max()) < 2.0
    noise = Augmentation(("noise",), "wave")(x, KEYS) - x
    ratio = 10 * (x.square().mean(-1) / noise.square().mean(-1)).log10()
    assert 9.5 < float(ratio.min()) < 12
    assert 28 < float(ratio.max()) < 30.5
    silence = torch.zeros(2, 1, 400)
    assert torch.equal(Augmentation(("noise",), "wave")(silence, KEYS[:2]), silence)


def test_only_training_episodes_are_augmented(small: Callable[..., Path]) -> None:
    """All other splits are as without changes."""
    root = small(12, 6)
    plain, changed = audiofolder(root=root, **SHORT), audiofolder(root=root, augment=["mask", "shift"], **SHORT)
    assert not torch.equal(plain.sample("train", range(4)).query.x, changed.sample("train", range(4)).query.x)
    assert torch.equal(plain.sample("test", range(4)).query.x, changed.sample("test", range(4)).query.x)


def test_changes_of_other_features_are_refused(small: Callable[..., Path]) -> None:
    """The message lists those of these features."""
    root = small(12, 6)
    with pytest.raises(DataError, match="got 'noise' with features 'mfcc', expected some of shift, mask"):
        audiofolder(root=root, augment=["noise"], **SHORT)
    with pytest.raises(DataError, match="got 'mask' with features 'wave', expected some of shift, gain, noise"):
        audiofolder(root=root, augment=["mask"], features="wave", **SHORT)
