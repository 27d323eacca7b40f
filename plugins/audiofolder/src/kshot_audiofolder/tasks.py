"""A folder of sounds as few-shot tasks."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import attrs
import torch
from torch import Tensor

from kshot.data import tables
from kshot.data.folder_tasks import FolderTasks
from kshot.data.folders import Decoded, Folder, contents, scan, splits_of, tell_copies
from kshot.errors import DataError
from kshot.preparing import Preparation
from kshot_audiofolder.sounds import VERSION, Form, prepare_as, suffixes

log = logging.getLogger("kshot_audiofolder")


def audiofolder(
    way: int | tuple[int, int] | None = None,
    shot: int | tuple[int, int] = 1,
    query: int | tuple[int, int] | None = None,
    seed: int = 0,
    *,
    root: Path | str,
    rate: int = 16000,
    seconds: float = 1.0,
    crop: Literal["start", "centre"] = "start",
    pad: Literal["repeat", "zeros"] = "repeat",
    features: Literal["mfcc", "mel"] = "mfcc",
    n_mfcc: int = 20,
    n_mels: int = 40,
    window: float = 0.025,
    hop: float = 0.01,
    f_min: float = 0.0,
    f_max: float | None = None,
    normalise: Literal["clip", "band", "none"] = "clip",
    split: tuple[float, float, float] | Path | str | Mapping[str, Sequence[str] | Path | str] = (0.6, 0.2, 0.2),
    split_by: Literal["class", "example"] = "class",
    split_seed: int = 0,
    cache: Path | str | None = None,
    workers: int | None = None,
    block: int = 1,
) -> FolderTasks:
    """Few-shot classification of your own sounds: in ``root`` a folder for each class, named after it.

    Inputs are [1, F, T]: F coefficients or bands over T frames. Files are decoded when the first episode is asked for,
    once, into a table in the cache; ``prepare`` brings other sounds to the same form and decodes nothing else.

    Args:
        way, shot, query, seed, block: of the episodes, see ``kshot.ClassificationTasks``. Classes may have different
            numbers of sounds, each at least shot + query. By default way is 5, or as many classes as the smallest split
            has; query is 5, or as many sounds as the smallest class leaves.
        root: the folder, see ``kshot.data.folders.scan``.
        rate: to which sounds are resampled, in Hz. Channels are mixed to one before.
        seconds: of a clip.
        crop: a longer sound is cut at its 'start' or its 'centre'.
        pad: a shorter one is said again and again ('repeat'), or followed by 'zeros', from which a learner can tell
            how long it was.
        features: 'mfcc', or 'mel' for the log mel spectrogram in decibels.
        n_mfcc, n_mels: coefficients and mel bands.
        window, hop: of the spectrogram (Hann), in seconds.
        f_min, f_max: least and greatest frequency of the bands in Hz; by default up to half the rate.
        normalise: the log mel spectrogram, before the cosine transform. 'clip': to mean 0 and deviation 1 over the
            clip, so that loudness is gone; 'band': each band so over time, so that the mean spectrum is gone too;
            'none'.
        split: shares of train, val and test; or lists of class names: a folder with train.txt, val.txt and test.txt
            (a name a line), or split -> names or such a file.
        split_by: 'class', so that classes of val and test are new ones; or 'example', where every split has all
            classes and each class's sounds are divided: for folders of few classes.
        split_seed: which classes, or sounds, go where by ``split``'s shares.
        cache: kshot's cache folder; by default KSHOT_CACHE, or the system's.
        workers: threads that decode; by default one a processor, at most 8.

    Raises:
        DataError: the folder, a list or an option is malformed, or there are too few classes or sounds. When the first
            episode is asked for: files can't be decoded; names them.
    """
    if workers is not None and workers < 1:
        raise DataError(f"audiofolder: workers is {workers}, expected at least 1 thread")
    form = Form(
        rate, float(seconds), crop, pad, features, n_mfcc, n_mels, window, hop, float(f_min), f_max, normalise
    )  # fmt: skip
    folder = scan(root, suffixes(), what="sounds")
    splits = splits_of(folder, split, split_by, split_seed)
    return FolderTasks(
        splits,
        partial(load, folder, form, cache, workers),
        input_shape=form.shape,
        input_range=None,
        prepare=Preparation.of(prepare_as, **attrs.asdict(form)),
        split_by=split_by,
        way=way,
        shot=shot,
        query=query,
        block=block,
        seed=seed,
    )


def load(folder: Folder, form: Form, cache: Path | str | None, workers: int | None) -> tuple[Tensor, str]:
    """All sounds' features, float32 [num, 1, F, T], from the cache or decoded and put there; and their fingerprint.

    Raises:
        DataError: files can't be read or decoded; names the first five.
    """

    def make() -> tables.Made:
        held = contents(folder, workers)
        files = folder.paths
        log.info("decoding %d sounds of %s", len(files), folder.root)
        facts: dict[str, Any] = {"digest": held.digest, "copies": held.copies}
        return tables.Made(facts, "float32", (len(files), *form.shape), Decoded(files, form.decode, workers))

    path = tables.cache_folder("audiofolder", cache) / f"{folder.key()[:20]}-{form.name}.table"
    table = tables.open_or_build(path, make, name="audiofolder", version=VERSION)
    tell_copies(f"audiofolder: {folder.root}", table.facts["copies"])
    fingerprint = f"audiofolder-{form.name}-{table.facts['digest'][:16]}"
    log.info("%d classes of %s; %s", len(folder.classes), folder.root, fingerprint)
    return torch.from_numpy(table.x), fingerprint
