"""Convert sounds of any form to features ``[1, F, T]``: both those of a folder and those to be predicted.

Letters: F bands or coefficients, T frames.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile  # type: ignore[import-untyped]
import torch
from numpy.typing import NDArray
from torch import Tensor

from kshot.arrays import as_inputs, as_table
from kshot.data.folders import reads
from kshot.errors import DataError
from kshot_audiofolder.form import Form

_SCALES = {"uint8": (128, 128), "int16": (0, 1 << 15), "int32": (0, 1 << 31)}
"""Type of samples -> its zero and its greatest value, as decoders have them."""


def suffixes() -> set[str]:
    """Return the suffixes of all formats that this installation of soundfile decodes without further options."""
    formats = set(soundfile.available_formats()) - {"RAW", "SD2", "MAT4", "MAT5"}
    return {f".{name.lower()}" for name in formats} | {".aif", ".aifc", ".oga", ".opus", ".snd", ".sph"}


def prepare(raw: Any, form: Form) -> Tensor:
    """Make inputs [n, 1, F, T] of sounds.

    Args:
        raw: a path; a pair of samples [n] or [n, channels] and their rate in Hz, as ``soundfile.read`` returns it; or a
            sequence of these. Samples of int16, int32 or uint8 are divided by the greatest of their type; [1, n], as
            ``torchaudio.load`` returns one channel, is taken too, and [channels, n] is refused. Float arrays
            [n, 1, F, T] are taken to be inputs already and returned unchanged.
        form: the form to which to bring them.

    Raises:
        DataError: a file is missing or is not a sound, or an array has another shape. The message names it.
    """
    if isinstance(raw, str | os.PathLike):
        return torch.from_numpy(form.decode(Path(raw)))
    if isinstance(raw, tuple) and len(raw) == 2 and isinstance(raw[1], int | np.integer):
        return torch.from_numpy(form.of_samples(_samples(raw[0]), int(raw[1]), "audiofolder: samples"))
    if isinstance(raw, Tensor | np.ndarray):
        if tuple(raw.shape[1:]) == form.shape and _is_float(raw):
            return as_inputs(raw, "audiofolder: inputs to prepare").cpu()
        raise DataError(
            f"audiofolder: got {raw.dtype} of shape {list(raw.shape)} to prepare, expected finite inputs [n, "
            f"{', '.join(map(str, form.shape))}]; or give samples with their rate, (samples, rate)"
        )
    if isinstance(raw, Iterable):
        prepared = [prepare(item, form) for item in raw]
        if prepared:
            return torch.cat(prepared)
    raise DataError(
        f"audiofolder: got {'an empty ' * isinstance(raw, Iterable)}{type(raw).__name__} to prepare, expected a path, "
        "a pair (samples, rate), or a sequence of these; give some"
    )


def _is_float(values: Tensor | NDArray[Any]) -> bool:
    """Return whether an array or tensor has real numbers with fractions."""
    return values.is_floating_point() if isinstance(values, Tensor) else values.dtype.kind == "f"


def _samples(raw: Any) -> NDArray[np.float32]:
    """Return samples [n] or [n, channels] as floats of about -1 to 1.

    Raises:
        DataError: they are not real numbers, or look like [channels, n].
    """
    who = "audiofolder: samples"
    samples = as_table(raw, who, copy=False).numpy().astype(np.float32)
    dtype = str(raw.dtype).removeprefix("torch.") if isinstance(raw, Tensor) else np.asarray(raw).dtype.name
    if not dtype.startswith(("float", "bfloat")):
        if dtype not in _SCALES:
            raise DataError(
                f"{who}: got {dtype}, of which the greatest sample is not known, expected floats of -1 to 1, or "
                f"{', '.join(_SCALES)}; divide them by the greatest"
            )
        zero, greatest = _SCALES[dtype]
        samples = (samples - zero) / np.float32(greatest)
    if samples.ndim == 2 and len(samples) == 1:
        samples = samples[0]
    if samples.ndim == 2 and samples.shape[1] > len(samples):
        raise DataError(
            f"{who}: got shape {list(samples.shape)}, expected [n] or [n, channels], n the greater; transpose "
            "[channels, n], as torchaudio.load returns it: (samples.T, rate); give several sounds as a list of pairs"
        )
    return samples


@reads(suffixes)
def prepare_as(
    raw: Any,
    *,
    rate: int,
    seconds: float,
    crop: Literal["start", "centre"],
    pad: Literal["repeat", "zeros"],
    features: Literal["mfcc", "mel", "wave"],
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
