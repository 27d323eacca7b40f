"""From a sound of any form to features ``[1, F, T]``, the same for a folder's sounds and for one to be predicted.

Letters: F bands or coefficients, T frames.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal

import attrs
import numpy as np
import soundfile  # type: ignore[import-untyped]
import torch
import torchaudio.functional  # type: ignore[import-untyped]
from attrs import frozen
from numpy.typing import NDArray
from torch import Tensor

from kshot.errors import DataError

VERSION = 1
"""Of the decoding; raise it when it changes."""

TOP_DB = 80.0
"""Decibels below a clip's loudest cell where its mel spectrogram is cut off, as by ``torchaudio.transforms.MFCC``."""

_UNKNOWN_LENGTH = 0x7FFF0000  # and above, what programs write as the length of a WAV that they could not know yet
_LARGEST_KERNEL = 1 << 24  # numbers of a resampling kernel; rates without a common divisor would need gigabytes


def suffixes() -> set[str]:
    """Of all that soundfile decodes here without being told more than the file says."""
    formats = set(soundfile.available_formats()) - {"RAW", "SD2", "MAT4", "MAT5"}
    return {f".{name.lower()}" for name in formats} | {".aif", ".aifc", ".oga", ".opus", ".snd", ".sph"}


@frozen
class Form:
    """What sounds are brought to. The options of ``audiofolder`` say what each is.

    Raises:
        DataError: an option is out of its range, or options contradict each other.
    """

    rate: int
    seconds: float
    crop: Literal["start", "centre"]
    pad: Literal["repeat", "zeros"]
    features: Literal["mfcc", "mel"]
    n_mfcc: int
    n_mels: int
    window: float
    hop: float
    f_min: float
    f_max: float | None
    normalise: Literal["clip", "band", "none"]

    def __attrs_post_init__(self) -> None:
        choices = {"crop": ("start", "centre"), "pad": ("repeat", "zeros"), "features": ("mfcc", "mel"),
                   "normalise": ("clip", "band", "none")}  # fmt: skip
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise DataError(f"audiofolder: {name} is {getattr(self, name)!r}, expected one of {', '.join(allowed)}")
        for name in ("rate", "seconds", "n_mfcc", "n_mels", "window", "hop"):
            if not 0 < getattr(self, name) < math.inf:
                raise DataError(f"audiofolder: {name} is {getattr(self, name)}, expected more than 0")
        if self.features == "mfcc" and self.n_mfcc > self.n_mels:
            raise DataError(f"audiofolder: n_mfcc is {self.n_mfcc}, expected at most n_mels, {self.n_mels}")
        if self.hop_length < 1 or self.n_fft < 2 or self.samples <= self.n_fft // 2:
            raise DataError(
                f"audiofolder: at a rate of {self.rate} Hz, seconds {self.seconds} is {self.samples} samples, window "
                f"{self.window} is {self.n_fft} and hop {self.hop} is {self.hop_length}; expected a hop of at least 1, "
                "a window of at least 2, and more samples than half a window"
            )
        if not 0 <= self.f_min < self.highest <= self.rate / 2:
            raise DataError(
                f"audiofolder: f_min is {self.f_min} and f_max {self.highest}; expected 0 <= f_min < f_max <= half the "
                f"rate, {self.rate / 2}"
            )
        if bool((self.bands.sum(0) == 0).any()):
            raise DataError(
                f"audiofolder: {self.n_mels} mel bands are too many for a window of {self.n_fft} samples: some have no "
                "frequency; lower n_mels or lengthen window"
            )

    @property
    def samples(self) -> int:
        """Of a clip."""
        return round(self.seconds * self.rate)

    @property
    def n_fft(self) -> int:
        """Samples of a window."""
        return round(self.window * self.rate)

    @property
    def hop_length(self) -> int:
        """Samples from one window to the next."""
        return round(self.hop * self.rate)

    @property
    def highest(self) -> float:
        """f_max, or half the rate."""
        return self.rate / 2 if self.f_max is None else self.f_max

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an input, [1, F, T]."""
        return (1, self.n_mfcc if self.features == "mfcc" else self.n_mels, 1 + self.samples // self.hop_length)

    @property
    def name(self) -> str:
        """For a cache's file: other options, another name."""
        text = json.dumps(attrs.asdict(self), sort_keys=True)
        return f"{self.features}-{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"

    @cached_property
    def bands(self) -> Tensor:
        """The triangular mel filters [n_fft // 2 + 1, n_mels]."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of empty bands, which are refused
            made: Tensor = torchaudio.functional.melscale_fbanks(
                self.n_fft // 2 + 1, self.f_min, self.highest, self.n_mels, self.rate
            )
        return made

    def decode(self, source: Path | BinaryIO, name: str = "") -> NDArray[np.float32]:
        """The features of a file, [1, 1, F, T].

        Raises:
            DataError: it can't be read as a sound, or has no samples or ones that aren't finite; names it.
        """
        name = name or str(source)
        try:
            with soundfile.SoundFile(source if not isinstance(source, Path) else str(source)) as file:
                promised = re.search(r"^data : (\d+) \(should be (\d+)\)$", file.extra_info, re.MULTILINE)
                # Only what is needed: a recording of an hour is a gigabyte.
                rate, needed = file.samplerate, math.ceil(self.seconds * file.samplerate)
                if self.crop == "centre" and file.frames > needed:
                    file.seek((file.frames - needed) // 2)
                expected = min(needed, file.frames - file.tell())
                samples = file.read(expected, dtype="float32", always_2d=True)
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            raise DataError(
                f"{name}: can't be read as a sound ({type(error).__name__}: {error}); mend it or take it away"
            ) from error
        if promised is not None and int(promised[2]) < int(promised[1]) < _UNKNOWN_LENGTH:
            raise DataError(
                f"{name}: was cut off: it holds {promised[2]} of {promised[1]} bytes of samples; mend it or remove it"
            )
        if len(samples) < expected:
            raise DataError(f"{name}: ends after {len(samples)} of {expected} samples; mend it or take it away")
        return self.of_samples(samples, rate, name)

    def of_samples(self, samples: NDArray[Any], rate: int, name: str) -> NDArray[np.float32]:
        """The features of samples [n] or [n, channels], [1, 1, F, T]: cut, mixed, resampled, filled, transformed."""
        if rate < 1:
            raise DataError(f"{name}: is sampled at {rate} Hz, expected a positive rate")
        if samples.size == 0 or samples.ndim > 2:
            raise DataError(
                f"{name}: has samples of shape {list(samples.shape)}, expected [n] or [n, channels], n >= 1"
            )
        if not np.isfinite(samples).all():
            raise DataError(f"{name}: has samples that are not finite numbers; mend it or take it away")
        needed = math.ceil(self.seconds * rate)
        first = (len(samples) - needed) // 2 if self.crop == "centre" and len(samples) > needed else 0
        part = samples[first : first + needed]
        mono = torch.from_numpy(np.array(part, np.float32).reshape(len(part), -1).mean(1))
        # Cut before it is resampled, as in a file: its very ends depend on what the filter sees beyond.
        wave = fitted(resampled(mono, rate, self.rate, name), self.samples, self.crop, self.pad)
        made: NDArray[np.float32] = self.transform(wave).numpy()[None, None]
        return made

    def transform(self, wave: Tensor) -> Tensor:
        """A clip [samples] -> features [F, T]: log mel spectrogram, normalised; of MFCC its cosine transform too."""
        spectrum = torchaudio.functional.spectrogram(
            wave, 0, torch.hann_window(self.n_fft), self.n_fft, self.hop_length, self.n_fft, 2.0, normalized=False
        )
        mel: Tensor = torchaudio.functional.amplitude_to_DB(self.bands.T @ spectrum, 10.0, 1e-10, 0.0, TOP_DB)
        if self.normalise != "none":
            over = (0, 1) if self.normalise == "clip" else (1,)
            mel = mel - mel.mean(over, keepdim=True)
            mel = mel / mel.square().mean(over, keepdim=True).sqrt().clamp_min(1e-3)  # silence stays 0
        if self.features == "mel":
            return mel
        cosines: Tensor = torchaudio.functional.create_dct(self.n_mfcc, self.n_mels, "ortho")
        return cosines.T @ mel


def resampled(wave: Tensor, rate: int, wanted: int, name: str) -> Tensor:
    """A wave [n] at another rate, by ``torchaudio.functional.resample``.

    Raises:
        DataError: the rates have so small a common divisor that it would take gigabytes.
    """
    common = math.gcd(rate, wanted)
    if (rate // common) * (wanted // common) > _LARGEST_KERNEL:
        raise DataError(
            f"{name}: is sampled at {rate} Hz, which has no large common divisor with rate {wanted}; resample the "
            f"file, or choose rate={rate}"
        )
    made: Tensor = torchaudio.functional.resample(wave, rate, wanted)
    return made


def fitted(wave: Tensor, samples: int, crop: str, pad: str) -> Tensor:
    """A wave [n] as [samples]: cut at its start or centre; a shorter one said again and again, or followed by zeros."""
    n = len(wave)
    if n >= samples:
        start = (n - samples) // 2 if crop == "centre" else 0
        return wave[start : start + samples]
    if pad == "zeros":
        return torch.nn.functional.pad(wave, (0, samples - n))
    return wave.repeat(-(-samples // n))[:samples]


def prepare(raw: Any, form: Form) -> Tensor:
    """Sounds as inputs [n, 1, F, T].

    Args:
        raw: a path; a pair of samples [n] or [n, channels] and their rate in Hz, as ``soundfile.read`` gives it; or a
            sequence of these. Float arrays [n, 1, F, T] are taken for inputs already and left alone.

    Raises:
        DataError: a file is missing or no sound, or an array has another shape; names it.
    """
    if isinstance(raw, str | os.PathLike):
        return torch.from_numpy(form.decode(Path(raw)))
    if isinstance(raw, tuple) and len(raw) == 2 and isinstance(raw[1], int | np.integer):
        return torch.from_numpy(form.of_samples(np.asarray(raw[0]), int(raw[1]), "samples"))
    if isinstance(raw, Tensor | np.ndarray):
        made = torch.as_tensor(raw).detach().cpu()
        if tuple(made.shape[1:]) == form.shape and made.is_floating_point() and bool(made.isfinite().all()):
            return made.to(torch.float32)
        raise DataError(
            f"audiofolder: can't prepare {made.dtype} of shape {list(made.shape)}; expected inputs [n, "
            f"{', '.join(map(str, form.shape))}], or samples with their rate, (samples, rate)"
        )
    if isinstance(raw, Iterable):
        parts = [prepare(item, form) for item in raw]
        if parts:
            return torch.cat(parts)
    raise DataError(
        f"audiofolder: can't prepare {type(raw).__name__}; expected a path, a pair (samples, rate), or some of them"
    )


def prepare_as(
    raw: Any,
    *,
    rate: int,
    seconds: float,
    crop: Literal["start", "centre"],
    pad: Literal["repeat", "zeros"],
    features: Literal["mfcc", "mel"],
    n_mfcc: int,
    n_mels: int,
    window: float,
    hop: float,
    f_min: float,
    f_max: float | None,
    normalise: Literal["clip", "band", "none"],
) -> Tensor:
    """Call ``prepare`` with a form given by its fields, plain values that a run can store."""
    form = Form(rate, seconds, crop, pad, features, n_mfcc, n_mels, window, hop, f_min, f_max, normalise)
    return prepare(raw, form)
