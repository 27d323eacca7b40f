"""Make few-shot tasks of recordings of cats and dogs."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from kshot.arrays import as_inputs, as_table
from kshot.data.files import check_regular
from kshot.data.folder_tasks import FolderTasks
from kshot.data.folders import reads
from kshot.data.splits import split_examples
from kshot.data.tables import cache_folder
from kshot.errors import DataError
from kshot.preparing import Preparation
from kshot_cats_dogs.download import SHA256
from kshot_cats_dogs.download import download as fetch
from kshot_cats_dogs.features import HOP, N_MFCC, WINDOW, cut, mfcc
from kshot_cats_dogs.files import ARCHIVE, CLIPS, RATE, Clip, digest, locate, read, wav

log = logging.getLogger("kshot_cats_dogs")

SHORTEST = 15680
"""Number of samples of the shortest recording, 0.98 s."""


def cats_dogs(
    way: int = 2,
    shot: int | tuple[int, int] = 1,
    query: int | tuple[int, int] = 2,
    seed: int = 0,
    *,
    root: Path | str | None = None,
    download: bool = False,
    sub_dogs: bool = False,
    seconds: float = SHORTEST / RATE,
    crop: Literal["start", "centre"] = "start",
    split: tuple[float, float, float] = (0.6, 0.2, 0.2),
    split_seed: int = 0,
    cache: Path | str | None = None,
    block: int = 1,
) -> FolderTasks:
    """Make tasks that distinguish cats from dogs by 28 or 42 recordings of 1 to 17 seconds.

    Inputs are MFCC [1, 20, T]. All recordings are cut to the same length, so an input doesn't reveal how long its
    recording was.

    There are only two classes, so they can't be divided into splits: train, val, test and trainval (train and val
    together) all have both classes, and the recordings of each class are divided. Such a test split has six recordings,
    so a score over its episodes says little. Leave-one-out over all recordings says more, see the README.

    Args:
        way, shot, query, seed, block: of the episodes, see ``kshot.ClassificationTasks``.
        root: audio_cats_dogs.zip, or a folder or zip that has the recordings in any folders; by default the
            environment variable KSHOT_CATS_DOGS.
        download: fetch the public set into the cache, once, and check it.
        sub_dogs: use the 14 recordings of the folder Sub_dogs too, as dogs.
        seconds: length of the clip that is used of each recording, at most 0.98, the length of the shortest.
        crop: take the clip from the recording's 'start' or 'centre'.
        split: shares of train, val and test within each class.
        split_seed: another seed gives another division.
        cache: kshot's cache folder, for the download; by default KSHOT_CACHE, or the system's.

    Raises:
        DataError: the recordings are missing, incomplete or malformed, or an option is out of its range.

    Example:
        >>> tasks = cats_dogs(root="audio_cats_dogs.zip")  # the recordings, as downloaded # doctest: +SKIP
        >>> tasks.sample("train", [0]).support.x.shape  # doctest: +SKIP
    """
    count = round(seconds * RATE)
    if not WINDOW // 2 < count <= SHORTEST:
        raise DataError(
            f"cats-dogs: seconds: got {seconds}, expected more than {WINDOW // 2 / RATE} and at most "
            f"{SHORTEST / RATE}, the length of the shortest recording: padding would reveal how long a recording was; "
            "choose less"
        )
    if crop not in ("start", "centre"):
        raise DataError(f"cats-dogs: crop: got {crop!r}, expected 'start' or 'centre'")
    clips, labels = of_classes(read(choose(root, download, cache)), sub_dogs)
    names: dict[str, list[str]] = {"cats": [], "dogs": []}
    for clip, label in zip(clips, labels, strict=True):
        names[("cats", "dogs")[label]].append(clip.name)
    return FolderTasks(
        split_examples(names, split, split_seed),
        partial(load, clips, count, crop),
        input_shape=(1, N_MFCC, 1 + count // HOP),
        input_range=None,
        prepare=Preparation.of(prepare, count=count, crop=crop),
        split_by="example",
        way=way,
        shot=shot,
        query=query,
        block=block,
        seed=seed,
    )


def of_classes(clips: Sequence[Clip], sub_dogs: bool) -> tuple[list[Clip], list[int]]:
    """Return the clips, with or without those of Sub_dogs, and their labels: cats are 0 and dogs 1."""
    chosen = [clip for clip in clips if sub_dogs or not clip.name.startswith("Sub_dogs/")]
    return chosen, [int(not clip.name.startswith("Cats/")) for clip in chosen]


def choose(root: Path | str | None, download: bool, cache: Path | str | None) -> Path:
    """Return the zip or folder to read, by the options and by what is there.

    Raises:
        DataError: the options contradict each other, or there are no data.
    """
    if root is not None and download:
        raise DataError(
            "cats-dogs: got both root and download, expected one of them; give root to use your own files, or "
            "download alone"
        )
    folder = cache_folder("cats-dogs", cache)
    if download:
        return fetch(folder)
    if given := root or os.environ.get("KSHOT_CATS_DOGS"):
        return locate(Path(given))
    if (folder / ARCHIVE).is_file():
        return folder / ARCHIVE
    raise DataError(
        f"cats-dogs: got no recordings, expected them at root= or in {folder}: they may not be shipped with this "
        f"package; give {ARCHIVE} or the folder it unpacks to by root= or KSHOT_CATS_DOGS, or fetch them with "
        "download=True"
    )


def load(clips: Sequence[Clip], count: int, crop: str) -> tuple[Tensor, str]:
    """Return the inputs [num, 1, 20, T] of all clips, and their fingerprint."""
    actual = digest(list(clips))
    if len(clips) == sum(map(len, CLIPS.values())) and actual != SHA256:
        log.warning("the recordings are not the known ones: got the SHA-256 %s, expected %s", actual, SHA256)
    x = torch.cat([prepare((clip.samples, RATE), count, crop) for clip in clips])
    fingerprint = f"cats-dogs-{len(clips)}-{count}-{crop}-{actual[:16]}"
    log.info("%d recordings; %s", len(clips), fingerprint)
    return x, fingerprint


@reads(lambda: {".wav"})
def prepare(raw: Any, count: int, crop: str) -> Tensor:
    """Make inputs [n, 1, 20, T] of sounds.

    Args:
        raw: the path of a wav of 16 bits, 16 kHz and one channel; a pair of samples [n] (int16, or floats within -1
            and 1) and their rate, 16000; or a sequence of these. Float arrays [n, 1, 20, T] are taken to be inputs
            already and returned unchanged.
        count: number of samples to use.
        crop: take them from the ``start`` or the ``centre``.

    Raises:
        DataError: a file is missing, of another kind, or has fewer samples. The message names it.

    Example:
        >>> prepare((np.zeros(16000, np.int16), 16000), 15680, "start").shape
        torch.Size([1, 1, 20, 99])
    """
    if isinstance(raw, str | os.PathLike):
        path = Path(raw)
        check_regular(path, "a wav")
        try:
            clip = wav(path.read_bytes(), str(path))
        except OSError as error:
            raise DataError(
                f"{path}: got a file that can't be read ({type(error).__name__}: {error}), expected a wav; give another"
            ) from error
        return _input(clip, count, crop, str(path))
    if isinstance(raw, tuple) and len(raw) == 2 and isinstance(raw[1], int | np.integer):
        if raw[1] != RATE:
            raise DataError(f"cats-dogs: got samples at {raw[1]} Hz, expected {RATE}; resample them")
        return _input(raw[0], count, crop, "cats-dogs: samples")
    if isinstance(raw, Tensor | np.ndarray):
        is_float = raw.is_floating_point() if isinstance(raw, Tensor) else raw.dtype.kind == "f"
        if tuple(raw.shape[1:]) == (1, N_MFCC, 1 + count // HOP) and is_float:
            return as_inputs(raw, "cats-dogs: inputs to prepare").cpu()
        raise DataError(
            f"cats-dogs: got {raw.dtype} of shape {list(raw.shape)} to prepare, expected inputs [n, 1, {N_MFCC}, "
            f"{1 + count // HOP}]; or give samples with their rate, (samples, {RATE})"
        )
    if isinstance(raw, Sequence) and raw:
        return torch.cat([prepare(item, count, crop) for item in raw])
    raise DataError(
        f"cats-dogs: got {'an empty ' * isinstance(raw, Sequence)}{type(raw).__name__} to prepare, expected a path, a "
        f"pair (samples, {RATE}), or a sequence of these; give some"
    )


def _input(raw: Any, count: int, crop: str, name: str) -> Tensor:
    """Return the input [1, 1, 20, T] of samples [n], int16 or floats within -1 and 1."""
    samples = as_table(raw, name, copy=False)
    dtype = str(raw.dtype).removeprefix("torch.") if isinstance(raw, Tensor) else np.asarray(raw).dtype.name
    if not dtype.startswith(("float", "bfloat", "int16")):
        raise DataError(f"{name}: got {dtype}, expected int16, or floats within -1 and 1; convert them")
    if samples.ndim != 1 or len(samples) < count:
        raise DataError(
            f"{name}: got samples of shape {list(samples.shape)}, expected [n], n at least {count}; give more, or one "
            "channel"
        )
    wave = samples.to(torch.float32) / (32768.0 if dtype == "int16" else 1.0)
    if float(wave.abs().max()) > 2:  # resampling overshoots 1 by a little
        raise DataError(
            f"{name}: got samples from {float(wave.min()):.4g} to {float(wave.max()):.4g}, expected floats within -1 "
            "and 1; divide them by the greatest of their type"
        )
    return mfcc(cut(wave, count, crop))[None, None]
