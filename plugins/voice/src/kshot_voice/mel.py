"""Triangular filters on the mel scale of Slaney's Auditory Toolbox, as librosa has them by default."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LINEAR = 200 / 3
"""Hertz per mel below 1,000 Hz."""

BREAK = 1000.0
"""Frequency in Hz above which mels grow with the logarithm of the frequency."""

LOGSTEP = math.log(6.4) / 27
"""Logarithm of the ratio of frequencies of one mel above ``BREAK``."""


def to_mel(hertz: float) -> float:
    """Return a frequency in mels.

    Example:
        >>> to_mel(200.0), round(to_mel(6400.0))
        (3.0, 42)
    """
    return hertz / LINEAR if hertz < BREAK else BREAK / LINEAR + math.log(hertz / BREAK) / LOGSTEP


def to_hertz(mel: Tensor) -> Tensor:
    """Return frequencies in mels as Hz.

    Example:
        >>> to_hertz(torch.tensor([3.0]))
        tensor([200.])
    """
    above = BREAK * torch.exp(LOGSTEP * (mel - BREAK / LINEAR))
    return torch.where(mel < BREAK / LINEAR, LINEAR * mel, above)


def mel_filters(window: int, rate: int, bands: int) -> Tensor:
    """Return triangular filters [bands, window // 2 + 1] from 0 to half the rate, each with an area of 1 Hz.

    Args:
        window: samples of a window.
        rate: samples per second.
        bands: number of filters.

    Example:
        >>> mel_filters(400, 16000, 40).shape
        torch.Size([40, 201])
    """
    frequencies = torch.linspace(0, rate / 2, window // 2 + 1, dtype=torch.float64)
    edges = to_hertz(torch.linspace(0, to_mel(rate / 2), bands + 2, dtype=torch.float64))
    widths = edges.diff()
    ramps = edges[:, None] - frequencies
    rising, falling = -ramps[:-2] / widths[:-1, None], ramps[2:] / widths[1:, None]
    triangles = torch.minimum(rising, falling).clamp_min(0)
    return (triangles * (2 / (edges[2:] - edges[:-2]))[:, None]).float()
