"""Change the sampling rate and the length of waves."""

from __future__ import annotations

import math

import torch
import torchaudio.functional  # type: ignore[import-untyped]
from torch import Tensor

from kshot.errors import DataError

_LARGEST_KERNEL = 1 << 24  # numbers in a resampling kernel; rates without a large common divisor need gigabytes


def resampled(wave: Tensor, rate: int, wanted: int, name: str) -> Tensor:
    """Return a wave [n] resampled from ``rate`` to ``wanted`` Hz by ``torchaudio.functional.resample``.

    Raises:
        DataError: the rates have so small a common divisor that resampling would take gigabytes.

    Example:
        >>> resampled(torch.zeros(800), 8000, 16000, "silence").shape
        torch.Size([1600])
    """
    common = math.gcd(rate, wanted)
    if (rate // common) * (wanted // common) > _LARGEST_KERNEL:
        raise DataError(
            f"{name}: got a sampling rate of {rate} Hz, expected one with a large common divisor with rate {wanted}; "
            f"resample the file, or choose rate={rate}"
        )
    result: Tensor = torchaudio.functional.resample(wave, rate, wanted)
    return result


def fitted(wave: Tensor, samples: int, crop: str, pad: str) -> Tensor:
    """Return a wave [n] as [samples]: a longer one is cut, a shorter one repeated or followed by zeros.

    Args:
        wave: the samples.
        samples: the number of samples of the result.
        crop: cut at the ``start`` or the ``centre``.
        pad: ``repeat`` or ``zeros``.

    Example:
        >>> fitted(torch.tensor([1, 2]), 5, "start", "repeat").tolist()
        [1, 2, 1, 2, 1]
    """
    n = len(wave)
    if n >= samples:
        start = (n - samples) // 2 if crop == "centre" else 0
        return wave[start : start + samples]
    if pad == "zeros":
        return torch.nn.functional.pad(wave, (0, samples - n))
    return wave.repeat(-(-samples // n))[:samples]
