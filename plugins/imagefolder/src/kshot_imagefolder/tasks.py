"""Make few-shot tasks of a folder of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import attrs

from kshot.data.folder_tables import load_folder
from kshot.data.folder_tasks import FolderTasks, with_options_of
from kshot.data.listings import labelled_files
from kshot.data.pictures import formats
from kshot.data.splits import splits_of
from kshot.errors import DataError
from kshot.preparing import Preparation
from kshot_imagefolder.augmentation import Change, augmentation
from kshot_imagefolder.images import VERSION, Fit, Form, Mode, prepare_as


def imagefolder(
    way: int | tuple[int, int] | None = None,
    shot: int | tuple[int, int] = 1,
    query: int | tuple[int, int] | None = None,
    seed: int = 0,
    *,
    root: Path | str | None = None,
    csv: Path | str | None = None,
    column: str = "path",
    label: str = "label",
    size: int | tuple[int, int] = 84,
    mode: Mode = "RGB",
    fit: Fit = "squeeze",
    split: tuple[float, float, float] | Path | str | Mapping[str, Sequence[str] | Path | str] | None = None,
    split_by: Literal["class", "example"] = "class",
    split_seed: int = 0,
    fold: tuple[int, int] | None = None,
    augment: Sequence[Change] = (),
    cache: Path | str | None = None,
    workers: int | None = None,
    block: int = 1,
) -> FolderTasks:
    """Make classification tasks from your own images: ``root`` has a folder for each class, named after the class.

    Or ``csv`` has the path of an image and its label in each row.

    Inputs are [C, height, width] within [0, 1]. Files are decoded once, when the first episode is asked for, into a
    table in the cache. ``prepare`` brings other images into the same form without decoding the folder.

    Args:
        way, shot, query, seed, block: see ``kshot.ClassificationTasks``. Classes may have different numbers of images;
            those with fewer than shot + query are left out, if a split has enough others. By default way is 5, or fewer
            if the smallest split has fewer classes; query is 5, or fewer if the smallest class has fewer images besides
            the shots.
        root: the folder of class folders, see ``kshot.data.folders.scan``; with ``csv``, the folder to which its paths
            are relative, by default that of the CSV file.
        csv: a CSV file (or, if its name ends in .tsv, one with tabs), see ``kshot.data.listings.read_listing``.
        column: the column of ``csv`` with the paths.
        label: the column of ``csv`` with the labels.
        size: pixels per side, or height and width.
        mode: 'RGB' (C = 3) or 'L' (grey, C = 1).
        fit: what to do with an image of other proportions: 'squeeze' it, 'crop' its middle, or 'pad' it with white.
        split: the shares of train, val and test; by default (0.6, 0.2, 0.2), and for fewer than 24 classes see
            ``kshot.data.splits.default_shares``. Or the class names of each split: a folder with train.txt, val.txt
            and test.txt (one name per line), or a mapping from a split to its names or to such a file.
        split_by: 'class', so that the classes of val and test are new ones; or 'example', for folders of few classes:
            every split has all classes, and each class's images are divided.
        split_seed: the seed of the random division by shares.
        fold: the number i of a division and the number n of all, for cross-validation by shares: the test classes, or
            the test examples, of the n divisions are evenly spread. ``kshot train --splits=n`` trains on each.
        augment: random changes of images in the episodes of split train (and trainval): 'flip' (left and right),
            'crop', 'rotate', 'colour'. Needs torchvision: ``pip install kshot-imagefolder[augment]``.
        cache: kshot's cache folder; by default KSHOT_CACHE, or the system's.
        workers: number of threads that decode; by default one for each processor, at most 8.

    Raises:
        DataError: the folder, the CSV file, a list or an option is malformed, or there are too few classes or images;
            or, when the first episode is asked for, files can't be decoded. The message names them.

    Example:
        >>> tasks = imagefolder(root="pictures", size=32)  # doctest: +SKIP
        >>> tasks.sample("train", [0]).support.x.shape  # doctest: +SKIP
    """
    if workers is not None and workers < 1:
        raise DataError(f"imagefolder: workers: got {workers}, expected at least 1 thread")
    form = form_of(size, mode, fit)
    sides = form.size
    accept = formats().keys()
    folder = labelled_files(root, csv, accept, column=column, label=label, what="images", who="imagefolder")
    splits = splits_of(folder, split, split_by, split_seed, fold)
    return FolderTasks(
        splits,
        partial(
            load_folder,
            folder,
            form.decode,
            name="imagefolder",
            form=f"{mode}-{sides[0]}x{sides[1]}-{fit}",
            version=VERSION,
            dtype="uint8",
            input_shape=form.shape,
            cache=cache,
            workers=workers,
        ),
        input_shape=form.shape,
        input_range=(0.0, 1.0),
        prepare=Preparation.of(prepare_as, **attrs.asdict(form)),
        split_by=split_by,
        way=way,
        shot=shot,
        query=query,
        block=block,
        seed=seed,
        augment=augmentation(augment),
    )


def form_of(size: int | tuple[int, int], mode: Mode, fit: Fit) -> Form:
    """Return the form of inputs that options of ``imagefolder`` describe.

    Raises:
        DataError: an option is out of its range.
    """
    sides = (size, size) if isinstance(size, int) else (size[0], size[1])
    if min(sides) < 1:
        raise DataError(f"imagefolder: size: got {size}, expected at least 1 pixel per side; 84 is usual")
    for name, value, choices in (("mode", mode, ("L", "RGB")), ("fit", fit, ("squeeze", "crop", "pad"))):
        if value not in choices:
            raise DataError(f"imagefolder: {name}: got {value!r}, expected {' or '.join(map(repr, choices))}")
    return Form(mode, sides, fit)


@with_options_of(imagefolder, ["size", "mode", "fit"])
def prepares(
    *, size: int | tuple[int, int], mode: Mode, fit: Fit
) -> tuple[Preparation, tuple[int, ...], tuple[float, float]]:
    """Say how ``imagefolder`` makes inputs of image files: the preparation, the shape of an input, and its range.

    Example:
        >>> prepares(size=8, mode="L")[1:]
        ((1, 8, 8), (0.0, 1.0))
    """
    form = form_of(size, mode, fit)
    return Preparation.of(prepare_as, **attrs.asdict(form)), form.shape, (0.0, 1.0)


imagefolder.prepares = prepares  # type: ignore[attr-defined]
