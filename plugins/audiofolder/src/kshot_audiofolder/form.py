"""The form to which sounds are brought: its options and their limits, decoding, and features ``[1, F, T]`` or waves.

Letters: F bands or coefficients, T frames, S samples.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal

import attrs
import numpy as np
import torch
import torchaudio.functional  # type: ignore[import-untyped]
from attrs import frozen
from numpy.typing import NDArray
from torch import Tensor

from kshot.errors import DataError
from kshot_audiofolder.reading import clip
from kshot_audiofolder.waves import fitted, resampled

VERSION = 1
"""Version of the decoding; raise it when the decoding changes."""

TOP_DB = 80.0
"""Decibels below its loudest cell at which a mel spectrogram is cut off, as in ``torchaudio.transforms.MFCC``."""


@frozen
class Form:
    """Store the form to which sounds are brought. ``audiofolder`` describes each field, as its option.

    Raises:
        DataError: an option is out of its range, or options contradict each other.

    Example:
        >>> form = Form(8000, 1.0, "start", "repeat", "mfcc", 20, 40, 0.025, 0.01, 0.0, None, "clip")
        >>> form.shape, form.of_samples(np.zeros(8000), 8000, "silence").shape
        ((1, 20, 101), (1, 1, 20, 101))
    """

    rate: int
    seconds: float
    crop: Literal["start", "centre"]
    pad: Literal["repeat", "zeros"]
    features: Literal["mfcc", "mel", "wave"]
    n_mfcc: int
    n_mels: int
    window: float
    hop: float
    f_min: float
    f_max: float | None
    normalise: Literal["clip", "band", "none"]

    def __attrs_post_init__(self) -> None:
        choices = {"crop": ("start", "centre"), "pad": ("repeat", "zeros"), "features": ("mfcc", "mel", "wave"),
                   "normalise": ("clip", "band", "none")}  # fmt: skip
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise DataError(
                    f"audiofolder: {name}: got {getattr(self, name)!r}, expected one of {', '.join(allowed)}"
                )
        for name in ("rate", "seconds", "n_mfcc", "n_mels", "window", "hop"):
            if not 0 < getattr(self, name) < math.inf:
                raise DataError(f"audiofolder: {name}: got {getattr(self, name)}, expected more than 0")
        if self.features == "mfcc" and self.n_mfcc > self.n_mels:
            raise DataError(f"audiofolder: n_mfcc: got {self.n_mfcc}, expected at most n_mels, {self.n_mels}")
        if self.hop_length < 1 or self.n_fft < 2 or self.samples <= self.n_fft // 2:
            raise DataError(
                f"audiofolder: got seconds={self.seconds}, window={self.window} and hop={self.hop}, at a rate of "
                f"{self.rate} Hz {self.samples}, {self.n_fft} and {self.hop_length} samples, expected a hop of at "
                "least 1, a window of at least 2, and more seconds than half a window; lengthen what is too short"
            )
        if not 0 <= self.f_min < self.highest <= self.rate / 2:
            raise DataError(
                f"audiofolder: got f_min {self.f_min} and f_max {self.highest}, expected 0 <= f_min < f_max <= half "
                f"the rate, {self.rate / 2}; change one of them"
            )
        if bool((self.bands.sum(0) == 0).any()):
            raise DataError(
                f"audiofolder: n_mels: got {self.n_mels} mel bands, some without a frequency, expected fewer for a "
                f"window of {self.n_fft} samples; lower n_mels or lengthen window"
            )

    @property
    def samples(self) -> int:
        """Number of samples of a clip."""
        return round(self.seconds * self.rate)

    @property
    def n_fft(self) -> int:
        """Number of samples of a window."""
        return round(self.window * self.rate)

    @property
    def hop_length(self) -> int:
        """Number of samples from one window to the next."""
        return round(self.hop * self.rate)

    @property
    def highest(self) -> float:
        """``f_max``, or half the rate if it is None."""
        return self.rate / 2 if self.f_max is None else self.f_max

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an input, [1, F, T], or [1, S] of a waveform."""
        if self.features == "wave":
            return (1, self.samples)
        return (1, self.n_mfcc if self.features == "mfcc" else self.n_mels, 1 + self.samples // self.hop_length)

    @property
    def name(self) -> str:
        """Name for a file in the cache, which changes with any option."""
        text = json.dumps(attrs.asdict(self), sort_keys=True)
        return f"{self.features}-{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"

    @cached_property
    def bands(self) -> Tensor:
        """The triangular mel filters [n_fft // 2 + 1, n_mels]."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of empty bands, which the constructor refuses
            bands: Tensor = torchaudio.functional.melscale_fbanks(
                self.n_fft // 2 + 1, self.f_min, self.highest, self.n_mels, self.rate
            )
        return bands

    def decode(self, source: Path | BinaryIO, name: str = "") -> NDArray[np.float32]:
        """Return the features [1, 1, F, T] of a file.

        Args:
            source: the file's path, or an open file.
            name: of the file, for messages; by default its path.

        Raises:
            DataError: it can't be read as a sound, was cut off, or has no samples or some that aren't finite. The
                message names it.
        """
        name = name or str(source)
        samples, rate = clip(source, self.seconds, self.crop, name)
        return self.of_samples(samples, rate, name)

    def of_samples(self, samples: NDArray[Any], rate: int, name: str) -> NDArray[np.float32]:
        """Return the features [1, 1, F, T] of samples.

        Args:
            samples: [n] or [n, channels].
            rate: their sampling rate in Hz.
            name: of the sound, for messages.

        Raises:
            DataError: there are no samples, or some that aren't finite or are so large that the features aren't, or the
                rate can't be resampled.
        """
        if rate < 1:
            raise DataError(f"{name}: got a sampling rate of {rate} Hz, expected a positive one")
        if samples.size == 0 or samples.ndim > 2:
            raise DataError(
                f"{name}: got samples of shape {list(samples.shape)}, expected [n] or [n, channels], n >= 1; give some"
            )
        if not np.isfinite(samples).all():
            raise DataError(f"{name}: got samples that are not finite, expected numbers; fix or remove it")
        # 1. Cut the clip before resampling it, as ``decode`` does in a file: near its ends, the filter's result depends
        #    on the samples beyond them.
        needed = math.ceil(self.seconds * rate)
        first = (len(samples) - needed) // 2 if self.crop == "centre" and len(samples) > needed else 0
        part = samples[first : first + needed]
        # 2. Average the channels, resample, and cut or pad to the clip's length at the new rate.
        with np.errstate(over="ignore"):  # what is too large has features that are refused below
            mono = torch.from_numpy(np.array(part, np.float32).reshape(len(part), -1).mean(1))
        wave = fitted(resampled(mono, rate, self.rate, name), self.samples, self.crop, self.pad)
        # 3. Compute the features.
        features: NDArray[np.float32] = self.transform(wave).numpy()[None, None]
        if not np.isfinite(features).all():
            raise DataError(
                f"{name}: got samples from {float(np.min(part)):.4g} to {float(np.max(part)):.4g}, whose features are "
                "not finite, expected samples of about -1 to 1; scale it or remove it"
            )
        return features

    def transform(self, wave: Tensor) -> Tensor:
        """Return the features [F, T] of a clip [S]: its normalised log mel spectrogram, or the MFCC of that; or the
        clip itself.
        """
        if self.features == "wave":
            return wave
        spectrum = torchaudio.functional.spectrogram(
            wave, 0, torch.hann_window(self.n_fft), self.n_fft, self.hop_length, self.n_fft, 2.0, normalized=False
        )
        mel: Tensor = torchaudio.functional.amplitude_to_DB(self.bands.T @ spectrum, 10.0, 1e-10, 0.0, TOP_DB)
        if self.normalise != "none":
            axes = (0, 1) if self.normalise == "clip" else (1,)
            mel = mel - mel.mean(axes, keepdim=True)
            mel = mel / mel.square().mean(axes, keepdim=True).sqrt().clamp_min(1e-3)  # so that silence stays 0
        if self.features == "mel":
            return mel
        cosines: Tensor = torchaudio.functional.create_dct(self.n_mfcc, self.n_mels, "ortho")
        return cosines.T @ mel
