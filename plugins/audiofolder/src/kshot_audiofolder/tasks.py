"""Make few-shot tasks of a folder of sounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import attrs

from kshot.data.folder_tables import load_folder
from kshot.data.folder_tasks import FolderTasks, with_options_of
from kshot.data.listings import labelled_files
from kshot.data.splits import splits_of
from kshot.errors import DataError
from kshot.preparing import Preparation
from kshot_audiofolder.augmentation import Change, augmentation
from kshot_audiofolder.form import VERSION, Form
from kshot_audiofolder.sounds import prepare_as, suffixes


def audiofolder(
    way: int | tuple[int, int] | None = None,
    shot: int | tuple[int, int] = 1,
    query: int | tuple[int, int] | None = None,
    seed: int = 0,
    *,
    root: Path | str | None = None,
    csv: Path | str | None = None,
    column: str = "path",
    label: str = "label",
    rate: int = 16000,
    seconds: float = 1.0,
    crop: Literal["start", "centre"] = "start",
    pad: Literal["repeat", "zeros"] = "repeat",
    features: Literal["mfcc", "mel", "wave"] = "mfcc",
    n_mfcc: int = 20,
    n_mels: int = 40,
    window: float = 0.025,
    hop: float = 0.01,
    f_min: float = 0.0,
    f_max: float | None = None,
    normalise: Literal["clip", "band", "none"] = "clip",
    split: tuple[float, float, float] | Path | str | Mapping[str, Sequence[str] | Path | str] | None = None,
    split_by: Literal["class", "example"] = "class",
    split_seed: int = 0,
    fold: tuple[int, int] | None = None,
    augment: Sequence[Change] = (),
    cache: Path | str | None = None,
    workers: int | None = None,
    block: int = 1,
) -> FolderTasks:
    """Make tasks of classifying a user's own sounds: ``root`` has a folder for each class, named after the class.

    Or ``csv`` has the path of a sound and its label in each row.

    Inputs are [1, F, T]: F coefficients or bands over T frames; or waveforms [1, S] of S samples. Files are decoded
    once, when the first episode is asked for, into a table in the cache. ``prepare`` brings other sounds into the same
    form without decoding the folder.

    Args:
        way, shot, query, seed, block: see ``kshot.ClassificationTasks``. Classes may have different numbers of sounds;
            those with fewer than shot + query are left out, if a split has enough others. By default way is 5, or as
            many classes as the smallest split has; query is 5, or as many sounds as the smallest class leaves after the
            shots.
        root: the folder of class folders, see ``kshot.data.folders.scan``; with ``csv``, the folder to which its paths
            are relative, by default that of the CSV file.
        csv: a CSV file (or, if its name ends in .tsv, one with tabs), see ``kshot.data.listings.read_listing``.
        column: the column of ``csv`` with the paths.
        label: the column of ``csv`` with the labels.
        rate: sampling rate in Hz to which sounds are resampled, after their channels are averaged.
        seconds: length of a clip.
        crop: take a clip from the 'start' or the 'centre' of a longer sound.
        pad: 'repeat' a shorter sound, or add 'zeros', which reveal to a learner how long it was.
        features: 'mfcc', or 'mel' for the log mel spectrogram in decibels, or 'wave' for the samples themselves, which
            encoders of waveforms take; the options below except those of splits then have no effect.
        n_mfcc: number of coefficients.
        n_mels: number of mel bands.
        window: length of the spectrogram's Hann window in seconds.
        hop: seconds from one window to the next.
        f_min: least frequency of the bands in Hz.
        f_max: greatest frequency of the bands in Hz; by default half the rate.
        normalise: how to normalise the log mel spectrogram before the cosine transform. 'clip': to mean 0 and deviation
            1 over the clip, which removes the loudness; 'band': the same for each band over time, which also removes
            the mean spectrum; 'none': not at all.
        split: shares of train, val and test; by default (0.6, 0.2, 0.2), and for fewer than 24 classes see
            ``kshot.data.splits.default_shares``; or lists of class names: a folder with train.txt, val.txt and test.txt
            (one name per line), or a mapping from a split to names or to such a file.
        split_by: 'class', so that the classes of val and test are new ones; or 'example', for folders of few classes:
            every split has all classes, and each class's sounds are divided.
        split_seed: another seed gives another division by shares.
        fold: the number i of a division and the number n of all, for cross-validation by shares: the test classes, or
            the test examples, of the n divisions are evenly spread. ``kshot train --splits=n`` trains on each.
        augment: random changes of sounds in the episodes of split train (and trainval): 'shift' (in time); of spectral
            features 'mask' (some bands and frames); of waves 'gain' (loudness) and 'noise'.
        cache: kshot's cache folder; by default KSHOT_CACHE, or the system's.
        workers: number of threads that decode; by default one for each processor, at most 8.

    Raises:
        DataError: the folder, the CSV file, a list or an option is malformed, or there are too few classes or sounds;
            or, when the first episode is asked for, files can't be decoded. The message names them.

    Example:
        >>> tasks = audiofolder(root="sounds", seconds=1.0)  # doctest: +SKIP
        >>> tasks.sample("train", [0]).support.x.shape  # doctest: +SKIP
    """
    if workers is not None and workers < 1:
        raise DataError(f"audiofolder: workers: got {workers}, expected at least 1 thread")
    form = Form(
        rate, float(seconds), crop, pad, features, n_mfcc, n_mels, window, hop, float(f_min), f_max, normalise
    )  # fmt: skip
    folder = labelled_files(root, csv, suffixes(), column=column, label=label, what="sounds", who="audiofolder")
    splits = splits_of(folder, split, split_by, split_seed, fold)
    return FolderTasks(
        splits,
        partial(
            load_folder,
            folder,
            form.decode,
            name="audiofolder",
            form=form.name,
            version=VERSION,
            dtype="float32",
            input_shape=form.shape,
            cache=cache,
            workers=workers,
        ),
        input_shape=form.shape,
        input_range=None,
        prepare=Preparation.of(prepare_as, **attrs.asdict(form)),
        split_by=split_by,
        way=way,
        shot=shot,
        query=query,
        block=block,
        seed=seed,
        augment=augmentation(augment, features),
    )


@with_options_of(audiofolder, [field.name for field in attrs.fields(Form)])
def prepares(**options: Any) -> tuple[Preparation, tuple[int, ...], None]:
    """Say how ``audiofolder`` makes inputs of sound files: the preparation, the shape of an input, and no range.

    Example:
        >>> prepares(rate=8000)[1]
        (1, 20, 101)
    """
    form = Form(**{**options, "seconds": float(options["seconds"]), "f_min": float(options["f_min"])})
    return Preparation.of(prepare_as, **attrs.asdict(form)), form.shape, None


audiofolder.prepares = prepares  # type: ignore[attr-defined]
