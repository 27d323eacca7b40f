"""CIFAR-FS as few-shot tasks."""

from __future__ import annotations

import hashlib
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.datasets import CIFAR100

from kshot import ClassificationTasks, Pool
from kshot.data import pictures
from kshot.data.tables import Made, Table, cache_folder, open_or_build
from kshot.errors import DataError
from kshot.preparing import Preparation
from kshot_cifar_fs.splits import SPLITS

SIZE = 32
VERSION = 1  # of the table's contents: raise it when they change


def cifar_fs(
    way: int | tuple[int, int] = 5,
    shot: int | tuple[int, int] = 1,
    query: int | tuple[int, int] = 15,
    seed: int = 0,
    *,
    root: Path | str | None = None,
    download: bool = False,
    cache: Path | str | None = None,
    block: int = 1,
) -> ClassificationTasks:
    """Few-shot classification of photographs: CIFAR-100's classes by the split of Bertinetto et al. (2019).

    Inputs are [3, 32, 32] within [0, 1], red, green, blue. All 600 images of a class are used, of CIFAR-100's own
    training and test parts. The splits are train (64 classes), val (16), test (20), and trainval.

    Args:
        way, shot, query, seed, block: of the episodes, see ``kshot.ClassificationTasks``.
        root: the folder that has cifar-100-python, or the archive, as torchvision puts them there; by default the
            environment variable KSHOT_CIFAR100, else kshot's cache.
        download: fetch CIFAR-100 (169 MB) to ``root``, once, by torchvision, which checks its sum.
        cache: kshot's cache folder; by default KSHOT_CACHE, or the system's.

    Raises:
        DataError: the data are missing or damaged, or a class has too few images for shot + query.
    """
    folder = cache_folder("cifar-fs", cache)
    given = root if root is not None else os.environ.get("KSHOT_CIFAR100") or folder
    place = Path(given).expanduser().absolute()
    table = open_or_build(
        folder / f"cifar100-{key()}.u8", partial(_make, place, download), name="cifar-fs", version=VERSION
    )
    return ClassificationTasks(
        pools(table),
        way=way,
        shot=shot,
        query=query,
        block=block,
        seed=seed,
        prepare=Preparation.of(prepare),
        fingerprint=f"cifar-fs-{table.facts['digest']}",
    )


def key() -> str:
    """What the table is made from: the sums that torchvision expects of CIFAR-100's files."""
    files = [*CIFAR100.train_list, *CIFAR100.test_list]
    return hashlib.blake2b(repr(files).encode(), digest_size=8).hexdigest()


def _make(place: Path, download: bool) -> Made:
    """All images [60000, 3, 32, 32] and their labels, training part first.

    Raises:
        DataError: the files aren't there, or aren't what they should be.
    """
    try:
        parts = [CIFAR100(str(place), train=train, download=download) for train in (True, False)]
    except RuntimeError as error:
        raise DataError(
            f"cifar-fs: {place} has no whole CIFAR-100 ({error}); give the folder that has cifar-100-python by root= "
            "or KSHOT_CIFAR100, or fetch it with download=True"
        ) from error
    except OSError as error:
        raise DataError(f"cifar-fs: CIFAR-100 could not be had at {place}: {error}") from error
    x = [part.data.transpose(0, 3, 1, 2) for part in parts]
    y = [int(label) for part in parts for label in part.targets]
    digest = hashlib.blake2b(repr((parts[0].classes, y)).encode(), digest_size=8)
    for images in x:
        digest.update(np.ascontiguousarray(images).data)
    facts = {"classes": parts[0].classes, "y": y, "digest": digest.hexdigest()}
    return Made(facts, "uint8", (len(y), 3, SIZE, SIZE), x)


def pools(table: Table) -> dict[str, Pool]:
    """A pool for each split, all over the one table.

    Raises:
        DataError: the classes aren't CIFAR-100's.
    """
    number = {str(name): i for i, name in enumerate(table.facts["classes"])}
    unknown = sorted({name for names in SPLITS.values() for name in names} - set(number))
    if unknown:
        raise DataError(f"cifar-fs: the data lack {', '.join(unknown[:5])}; expected CIFAR-100's fine labels")
    y = np.asarray(table.facts["y"])
    x = torch.from_numpy(table.x)
    rows_of = [np.flatnonzero(y == c) for c in range(len(number))]

    def pool(names: tuple[str, ...]) -> Pool:
        held = [rows_of[number[name]] for name in names]
        counts = np.array([len(rows) for rows in held], np.int64)
        rows: NDArray[np.int64] = np.full((len(held), int(counts.max())), -1, np.int64)
        for row, own in zip(rows, held, strict=True):
            row[: len(own)] = own
        return Pool(x, rows, counts, names=names, input_range=(0.0, 1.0))

    return {split: pool(names) for split, names in SPLITS.items()}


def prepare(raw: Any) -> Tensor:
    """A user's own pictures as inputs [n, 3, 32, 32]. What isn't square is cut to its middle.

    Args:
        raw: paths, images, uint8 arrays, or some of them, see ``kshot.data.pictures.inputs``.

    Raises:
        DataError: a file is missing or no picture, or an array has another shape or type; names it.
    """

    def made(image: Image.Image) -> NDArray[np.uint8]:
        square = ImageOps.fit(image.convert("RGB"), (SIZE, SIZE), Image.Resampling.BOX)
        return np.asarray(square).transpose(2, 0, 1)

    return pictures.inputs(raw, made, (3, SIZE, SIZE), who="cifar-fs")
