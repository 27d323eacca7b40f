"""The speaker encoder of Wan, Wang, Papir & Moreno, "Generalized end-to-end loss for speaker verification", 2018.

The network, its weights and all settings are those of Resemblyzer 0.1.4 by Resemble AI (Apache-2.0), see
``LICENSE.resemblyzer``. Of its file of weights, those of the network were kept, unchanged; the state of the optimizer
was left out.

Letters: n examples, S samples of a clip, T frames of a part of it.
"""

from __future__ import annotations

import hashlib
import io
import math
from importlib.resources import files
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot import TaskSpec
from kshot.errors import DataError
from kshot.nn import Tune, tuned
from kshot_voice.mel import mel_filters

RATE = 16000
"""Samples per second of the sounds."""

WINDOW, HOP, BANDS = 400, 160, 40
"""Samples of a window and from one to the next, and number of mel bands."""

PART = 160
"""Frames of the parts (1.6 s) into which a longer clip is cut."""

STEP = round(RATE / 1.3 / HOP)
"""Frames from one part to the next, so that there are 1.3 parts in a second."""

COVERED = 0.75
"""Share of the last part that the clip must cover; else the part is left out."""

LOUDNESS = 10 ** (-30 / 20)
"""Root mean square to which quieter clips are amplified: 30 dB below the greatest amplitude."""

DIGEST = "6ab70d68b199be4ca6f3f09deb73f9c8143a027580ea88e67e99ebc59d7bcb63"
"""SHA-256 of the file of weights."""


class VoiceEncoder(nn.Module):
    """Embed clips of sound by an LSTM that was trained to tell 1,800 and more speakers apart: [n, S] -> [n, 256].

    A clip is cut into parts of 1.6 seconds, about half of which overlap; each part's mel spectrogram is read by the
    LSTM; and the embedding is the mean of those of the parts, scaled to length 1. Quiet clips are amplified first.
    Silence is not removed, as the original program does with a detector of voices.

    Args:
        spec: spec of the tasks, whose inputs are waveforms [S] or [1, S] with 16,000 samples per second, such as those
            of ``audiofolder`` with ``features="wave"``, which it uses by itself if a learner uses this encoder.
        tune: which weights are trained: ``none``, ``head`` (the last layer) or ``all``.

    Raises:
        DataError: the inputs are not waveforms of at least 0.1 seconds, or the package's file of weights is damaged.
        OptionError: ``tune`` is another value.

    Example:
        >>> spec = TaskSpec(kind="classification", input_shape=(1, 16000), way=2, shot=1, query=1)
        >>> with torch.no_grad():
        ...     VoiceEncoder(spec)(torch.zeros(2, 1, 16000)).shape
        torch.Size([2, 256])
    """

    task_options: ClassVar[dict[str, Any]] = {"features": "wave", "rate": RATE, "seconds": 3.0}

    window: Tensor
    filters: Tensor

    def __init__(self, spec: TaskSpec, *, tune: Tune = "none") -> None:
        super().__init__()
        shape = spec.input_shape
        if len(shape) not in (1, 2) or shape[:-1] not in ((), (1,)) or shape[-1] < RATE // 10:
            raise DataError(
                f"voice: got inputs of shape {list(shape)}, expected waveforms [samples] or [1, samples] of at least "
                f"{RATE // 10} samples, {RATE} in a second; audiofolder makes them with features=wave and rate={RATE}"
            )
        self.lstm = nn.LSTM(BANDS, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)
        self.load_state_dict(_weights())
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.register_buffer("filters", mel_filters(WINDOW, RATE, BANDS), persistent=False)
        tuned(self, tune, self.linear)

    def forward(self, x: Tensor) -> Tensor:
        """Embed waveforms ``x`` [n, S] or [n, 1, S] within [-1, 1] as [n, 256]."""
        wave = x.flatten(1).to(torch.float32)
        # 1. Amplify quiet clips.
        rms = wave.square().mean(1, keepdim=True).sqrt()
        wave = wave * (LOUDNESS / rms.clamp_min(1e-8)).clamp_min(1.0)
        # 2. The mel spectrogram of the clip, with zeros after its end as far as the last part reaches.
        starts, length = parts_of(wave.shape[1])
        mel = self.mel(F.pad(wave, (0, max(0, length - wave.shape[1]))))
        # 3. Embed each part, and return the mean of the parts at length 1.
        parts = torch.stack([mel[:, start : start + PART] for start in starts], 1)
        _, (hidden, _) = self.lstm(parts.flatten(0, 1))
        z = F.normalize(F.relu(self.linear(hidden[-1])), dim=1)
        return F.normalize(z.view(x.shape[0], len(starts), -1).mean(1), dim=1)

    def mel(self, wave: Tensor) -> Tensor:
        """Return the mel spectrograms [n, T, 40] of waveforms [n, S]: powers, without a logarithm."""
        spectrum = torch.stft(
            wave, WINDOW, HOP, window=self.window, center=True, pad_mode="constant", return_complex=True
        )
        return (self.filters @ spectrum.abs().square()).mT


def parts_of(samples: int) -> tuple[list[int], int]:
    """Return the first frames of the parts of a clip, and the number of samples that the parts cover together.

    Example:
        >>> parts_of(16000)  # a second: one part, of which the end is silent
        ([0], 25600)
        >>> parts_of(48000)
        ([0, 77, 154], 50240)
    """
    frames = math.ceil((samples + 1) / HOP)
    starts = list(range(0, max(1, frames - PART + STEP + 1), STEP))
    if len(starts) > 1 and samples - starts[-1] * HOP < COVERED * PART * HOP:
        starts = starts[:-1]
    return starts, (starts[-1] + PART) * HOP


def _weights() -> dict[str, Any]:
    """Read the weights of the package.

    Raises:
        DataError: the file is damaged.
    """
    content = files("kshot_voice").joinpath("resemblyzer.pt").read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != DIGEST:
        raise DataError(
            f"voice: got weights with the SHA-256 {found}, expected {DIGEST}: install kshot-voice again "
            "(pip install --force-reinstall)"
        )
    weights: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return weights
