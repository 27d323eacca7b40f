"""Change training sounds at random; all random numbers follow from keys.

Letters: n sounds, F coefficients or bands, T frames or samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torchaudio.functional as audio  # type: ignore[import-untyped]
from attrs import frozen
from torch import Tensor

from kshot import randomness
from kshot.errors import DataError

Change = Literal["shift", "mask", "gain", "noise"]

CHANGES: tuple[Change, ...] = ("shift", "mask", "gain", "noise")

SHIFT = 0.1
"""Greatest shift in time, as a share of a clip."""

MASK = 0.2
"""Greatest width of a mask, as a share of the bands or of the frames."""

GAIN = 6.0
"""Greatest change of loudness in decibels."""

NOISE = (10.0, 30.0)
"""Least and greatest signal-to-noise ratio in decibels."""


@frozen
class Augmentation:
    """Change each sound at random, in the order of ``CHANGES``.

    Attributes:
        changes: ``shift`` (in time, round the end); of spectral features ``mask`` (the mean in place of some bands and
            some frames, as in SpecAugment, Park et al. 2019, 1904.08779); of waves ``gain`` (loudness) and ``noise``
            (white).
        features: ``mfcc``, ``mel`` or ``wave``.

    Raises:
        DataError: a change is unknown, or not one of such features.

    Example:
        >>> shift = Augmentation(("shift",), "wave")
        >>> shift(torch.arange(20.0)[None, None], randomness.episode_keys(0, "train", [0])).sum()
        tensor(190.)
    """

    changes: tuple[Change, ...]
    features: str

    def __attrs_post_init__(self) -> None:
        fitting = ("shift", "gain", "noise") if self.features == "wave" else ("shift", "mask")
        if wrong := [change for change in self.changes if change not in fitting]:
            raise DataError(
                f"augment: got {wrong[0]!r} with features {self.features!r}, expected some of {', '.join(fitting)}"
            )

    def __call__(self, x: Tensor, keys: randomness.U64) -> Tensor:
        """Return changed sounds.

        Args:
            x: features [n, 1, F, T] or waves [n, 1, T].
            keys: of the sounds [n].
        """
        T = x.shape[-1]
        changed = list(x)
        if "shift" in self.changes:
            for i, u in enumerate(2 * randomness.uniform(keys, "shift", 1)[:, 0] - 1):
                changed[i] = changed[i].roll(round(float(u) * SHIFT * T), -1)
        if "mask" in self.changes:
            for i, (width, place, length, start) in enumerate(randomness.uniform(keys, "mask", 4)):
                changed[i] = _masked(_masked(changed[i], -2, width, place), -1, length, start)
        if "gain" in self.changes:
            for i, u in enumerate(2 * randomness.uniform(keys, "gain", 1)[:, 0] - 1):
                changed[i] = audio.gain(changed[i], GAIN * float(u))
        if "noise" in self.changes:
            low, high = NOISE
            ratios = low + (high - low) * randomness.uniform(keys, "ratio", 1)[:, 0]
            white = torch.from_numpy(randomness.normal(keys, "noise", T)).to(x)
            for i, ratio in enumerate(ratios):
                if bool(changed[i].any()):  # silence has no ratio to noise
                    snr = torch.tensor([ratio], dtype=x.dtype, device=x.device)
                    changed[i] = audio.add_noise(changed[i], white[i][None], snr)
        return torch.stack(changed)


def _masked(x: Tensor, axis: int, width: np.float64, place: np.float64) -> Tensor:
    """Return features with the mean of all in place of some neighbours along an axis.

    Args:
        width, place: uniform numbers of [0, 1), for the number of neighbours and where they begin.
    """
    size = x.shape[axis]
    count = int(width * (MASK * size + 1))
    first = int(place * (size - count + 1))
    masked = x.clone()
    masked.narrow(axis, first, count).fill_(float(x.mean()))
    return masked


def augmentation(changes: Sequence[str], features: str) -> Augmentation | None:
    """Return the augmentation that an option names, or None if it names no changes.

    Raises:
        DataError: see ``Augmentation``.
    """
    return Augmentation(tuple(changes), features) if len(changes) else None  # type: ignore[arg-type]
