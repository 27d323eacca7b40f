"""Compute the MFCC of a clip, which reveal neither the length nor the loudness of its recording.

kshot-audiofolder has the same steps with all their options; here the options are fixed, so that it need not be
installed.
Letters: F coefficients, T frames.
"""

from __future__ import annotations

import torch
import torchaudio.functional  # type: ignore[import-untyped]
from torch import Tensor

from kshot_cats_dogs.files import RATE

N_MFCC, N_MELS = 20, 40
WINDOW, HOP = 400, 160
"""Samples of a Hann window and from one window to the next: 25 and 10 ms."""


def cut(samples: Tensor, count: int, crop: str) -> Tensor:
    """Return ``count`` of the samples [n], from the start or the centre; n is at least ``count``."""
    first = (len(samples) - count) // 2 if crop == "centre" else 0
    return samples[first : first + count]


def log_mel(wave: Tensor) -> Tensor:
    """Return the mel spectrogram [40, T] of a wave [n] in decibels, cut off 80 below its loudest cell."""
    spectrum = torchaudio.functional.spectrogram(
        wave, 0, torch.hann_window(WINDOW), WINDOW, HOP, WINDOW, 2.0, normalized=False
    )
    bands = torchaudio.functional.melscale_fbanks(WINDOW // 2 + 1, 0.0, RATE / 2, N_MELS, RATE)
    decibels: Tensor = torchaudio.functional.amplitude_to_DB(bands.T @ spectrum, 10.0, 1e-10, 0.0, 80.0)
    return decibels


def mfcc(wave: Tensor, *, normalise: bool = True) -> Tensor:
    """Return the MFCC [20, T] of a wave [n], T = 1 + n // 160, as ``torchaudio.transforms.MFCC`` computes them.

    Args:
        wave: samples within -1 and 1.
        normalise: bring the log mel spectrogram to mean 0 and deviation 1 over the clip before its cosine transform.

    Example:
        >>> mfcc(torch.zeros(1600)).shape
        torch.Size([20, 11])
    """
    mel = log_mel(wave)
    if normalise:
        mel = (mel - mel.mean()) / mel.std(correction=0).clamp_min(1e-3)
    cosines: Tensor = torchaudio.functional.create_dct(N_MFCC, N_MELS, "ortho")
    return cosines.T @ mel
