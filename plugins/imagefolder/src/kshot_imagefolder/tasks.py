"""A folder of images as few-shot tasks."""

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
from kshot.data.pictures import formats
from kshot.errors import DataError
from kshot.preparing import Preparation
from kshot_imagefolder.images import VERSION, Fit, Form, Mode, prepare_as

log = logging.getLogger("kshot_imagefolder")


def imagefolder(
    way: int | tuple[int, int] | None = None,
    shot: int | tuple[int, int] = 1,
    query: int | tuple[int, int] | None = None,
    seed: int = 0,
    *,
    root: Path | str,
    size: int | tuple[int, int] = 84,
    mode: Mode = "RGB",
    fit: Fit = "squeeze",
    split: tuple[float, float, float] | Path | str | Mapping[str, Sequence[str] | Path | str] = (0.6, 0.2, 0.2),
    split_by: Literal["class", "example"] = "class",
    split_seed: int = 0,
    cache: Path | str | None = None,
    workers: int | None = None,
    block: int = 1,
) -> FolderTasks:
    """Few-shot classification of your own images: in ``root`` a folder for each class, named after it.

    Inputs are [C, height, width] within [0, 1]. Files are decoded when the first episode is asked for, once, into a
    table in the cache; ``prepare`` brings other images to the same form and decodes nothing else.

    Args:
        way, shot, query, seed, block: of the episodes, see ``kshot.ClassificationTasks``. Classes may have different
            numbers of images, each at least shot + query. By default way is 5, or as many classes as the smallest split
            has; query is 5, or as many images as the smallest class leaves.
        root: the folder, see ``kshot.data.folders.scan``.
        size: pixels a side, or height and width.
        mode: 'RGB' (C = 3) or 'L' (grey, C = 1).
        fit: of an image of another shape: 'squeeze' it, 'crop' its middle, or 'pad' it with white.
        split: shares of train, val and test; or lists of class names: a folder with train.txt, val.txt and test.txt
            (a name a line), or split -> names or such a file.
        split_by: 'class', so that classes of val and test are new ones; or 'example', where every split has all
            classes and each class's images are divided: for folders of few classes.
        split_seed: which classes, or images, go where by ``split``'s shares.
        cache: kshot's cache folder; by default KSHOT_CACHE, or the system's.
        workers: threads that decode; by default one a processor, at most 8.

    Raises:
        DataError: the folder, a list or an option is malformed, or there are too few classes or images. When the first
            episode is asked for: files can't be decoded; names them.
    """
    sides = (size, size) if isinstance(size, int) else (size[0], size[1])
    if min(sides) < 1:
        raise DataError(f"imagefolder: size is {size}, expected at least 1 pixel a side; 84 is usual")
    if workers is not None and workers < 1:
        raise DataError(f"imagefolder: workers is {workers}, expected at least 1 thread")
    for name, value, choices in (("mode", mode, ("L", "RGB")), ("fit", fit, ("squeeze", "crop", "pad"))):
        if value not in choices:
            raise DataError(f"imagefolder: {name} is {value!r}, expected {' or '.join(map(repr, choices))}")
    form = Form(mode, sides, fit)
    folder = scan(root, formats().keys(), what="images")
    splits = splits_of(folder, split, split_by, split_seed)
    return FolderTasks(
        splits,
        partial(load, folder, form, cache, workers),
        input_shape=form.shape,
        input_range=(0.0, 1.0),
        prepare=Preparation.of(prepare_as, **attrs.asdict(form)),
        split_by=split_by,
        way=way,
        shot=shot,
        query=query,
        block=block,
        seed=seed,
    )


def load(folder: Folder, form: Form, cache: Path | str | None, workers: int | None) -> tuple[Tensor, str]:
    """All images, uint8 [num, C, h, w], from the cache or decoded and put there; and their fingerprint.

    Raises:
        DataError: files can't be read or decoded; names the first five.
    """
    name = f"{form.mode}-{form.size[0]}x{form.size[1]}-{form.fit}"

    def make() -> tables.Made:
        held = contents(folder, workers)
        files = folder.paths
        log.info("decoding %d images of %s", len(files), folder.root)
        facts: dict[str, Any] = {"digest": held.digest, "copies": held.copies}
        return tables.Made(facts, "uint8", (len(files), *form.shape), Decoded(files, form.decode, workers))

    path = tables.cache_folder("imagefolder", cache) / f"{folder.key()[:20]}-{name}.table"
    table = tables.open_or_build(path, make, name="imagefolder", version=VERSION)
    tell_copies(f"imagefolder: {folder.root}", table.facts["copies"])
    fingerprint = f"imagefolder-{name}-{table.facts['digest'][:16]}"
    log.info("%d classes of %s; %s", len(folder.classes), folder.root, fingerprint)
    return torch.from_numpy(table.x), fingerprint
