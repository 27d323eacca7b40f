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
from torch import Tensor

from kshot.errors import DataError
from kshot_audiofolder.form import Form


def suffixes() -> set[str]:
    """Return the suffixes of all formats that this installation of soundfile decodes without further options."""
    formats = set(soundfile.available_formats()) - {"RAW", "SD2", "MAT4", "MAT5"}
    return {f".{name.lower()}" for name in formats} | {".aif", ".aifc", ".oga", ".opus", ".snd", ".sph"}


def prepare(raw: Any, form: Form) -> Tensor:
    """Make inputs [n, 1, F, T] of sounds.

    Args:
        raw: a path; a pair of samples [n] or [n, channels] and their rate in Hz, as ``soundfile.read`` returns it; or a
            sequence of these. Float arrays [n, 1, F, T] are taken to be inputs already and returned unchanged.
        form: the form to which to bring them.

    Raises:
        DataError: a file is missing or is not a sound, or an array has another shape. The message names it.
    """
    if isinstance(raw, str | os.PathLike):
        return torch.from_numpy(form.decode(Path(raw)))
    if isinstance(raw, tuple) and len(raw) == 2 and isinstance(raw[1], int | np.integer):
        return torch.from_numpy(form.of_samples(np.asarray(raw[0]), int(raw[1]), "samples"))
    if isinstance(raw, Tensor | np.ndarray):
        values = torch.as_tensor(raw).detach().cpu()
        if tuple(values.shape[1:]) == form.shape and values.is_floating_point() and bool(values.isfinite().all()):
            return values.to(torch.float32)
        raise DataError(
            f"audiofolder: got {values.dtype} of shape {list(values.shape)} to prepare, expected finite inputs [n, "
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
