"""MFCC of a recording's part, in which neither its length nor its loudness is left.

kshot-audiofolder has the same steps with all their options; here they are settled, and it need not be installed.
Letters: F coefficients, T frames.
"""

from __future__ import annotations

import torch
import torchaudio.functional  # type: ignore[import-untyped]
from torch import Tensor

from kshot_cats_dogs.files import RATE

N_MFCC, N_MELS = 20, 40
WINDOW, HOP = 400, 160
"""Samples: 25 and 10 ms, by a Hann window."""


def cut(samples: Tensor, count: int, crop: str) -> Tensor:
    """Samples [n] -> [count], from the start or the centre; n is at least ``count``: nothing is ever filled up."""
    first = (len(samples) - count) // 2 if crop == "centre" else 0
    return samples[first : first + count]


def log_mel(wave: Tensor) -> Tensor:
    """A wave [n] within -1 and 1 -> decibels of the mel bands [40, T], at most 80 below the loudest cell."""
    spectrum = torchaudio.functional.spectrogram(
        wave, 0, torch.hann_window(WINDOW), WINDOW, HOP, WINDOW, 2.0, normalized=False
    )
    bands = torchaudio.functional.melscale_fbanks(WINDOW // 2 + 1, 0.0, RATE / 2, N_MELS, RATE)
    made: Tensor = torchaudio.functional.amplitude_to_DB(bands.T @ spectrum, 10.0, 1e-10, 0.0, 80.0)
    return made


def mfcc(wave: Tensor, *, normalise: bool = True) -> Tensor:
    """A wave [n] -> MFCC [20, T], T = 1 + n // 160: ``torchaudio.transforms.MFCC``, by default of a log mel spectrogram
    brought to mean 0 and deviation 1 over the clip before its cosine transform."""
    mel = log_mel(wave)
    if normalise:
        mel = (mel - mel.mean()) / mel.std(correction=0).clamp_min(1e-3)
    cosines: Tensor = torchaudio.functional.create_dct(N_MFCC, N_MELS, "ortho")
    return cosines.T @ mel
