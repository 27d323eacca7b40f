"""Make few-shot tasks of CIFAR-FS."""

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
from kshot.data.folder_tasks import make_pool
from kshot.data.folders import reads
from kshot.data.tables import Made, Table, cache_folder, open_or_build
from kshot.errors import DataError
from kshot.preparing import Preparation
from kshot_cifar_fs.splits import SPLITS

SIZE = 32
VERSION = 1  # of the table's contents; raise it when they change


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
    """Make tasks of classifying photographs: CIFAR-100's classes by the split of Bertinetto et al. (2019).

    Inputs are [3, 32, 32] within [0, 1]: red, green, blue. All 600 images of a class are used, those of CIFAR-100's
    training part and of its test part. The splits are train (64 classes), val (16), test (20), and trainval.

    Args:
        way, shot, query, seed, block: of the episodes, see ``kshot.ClassificationTasks``.
        root: the folder in which torchvision puts cifar-100-python or the archive; by default the environment variable
            KSHOT_CIFAR100, else kshot's cache.
        download: fetch CIFAR-100 (169 MB) to ``root``, once, by torchvision, which checks the archive's MD5 before it
            unpacks it.
        cache: kshot's cache folder; by default KSHOT_CACHE, or the system's.

    Raises:
        DataError: the data are missing or damaged, or a class has too few images for shot + query.

    Example:
        >>> tasks = cifar_fs(root="cifar", download=True)  # fetches CIFAR-100 once # doctest: +SKIP
        >>> tasks.sample("train", [0]).support.x.shape  # doctest: +SKIP
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
    """Return a hash of what the table is made from: the checksums that torchvision expects of CIFAR-100's files."""
    files = [*CIFAR100.train_list, *CIFAR100.test_list]
    return hashlib.blake2b(repr(files).encode(), digest_size=8).hexdigest()


def _make(place: Path, download: bool) -> Made:
    """Return all images [60000, 3, 32, 32] and their labels, the training part first.

    Raises:
        DataError: the files are missing, or don't have the expected checksums.
    """
    try:
        parts = [CIFAR100(str(place), train=train, download=download) for train in (True, False)]
    except RuntimeError as error:
        raise DataError(
            f"cifar-fs: got {place}, which has no complete CIFAR-100 ({error}), expected cifar-100-python in it; give "
            "the folder that has it by root= or KSHOT_CIFAR100, or fetch it with download=True"
        ) from error
    except OSError as error:
        raise DataError(
            f"cifar-fs: got {place}, where CIFAR-100 can't be read or fetched ({type(error).__name__}: {error}), "
            "expected a folder that can be read and written; give another by root= or KSHOT_CIFAR100"
        ) from error
    x = [part.data.transpose(0, 3, 1, 2) for part in parts]
    y = [int(label) for part in parts for label in part.targets]
    digest = hashlib.blake2b(repr((parts[0].classes, y)).encode(), digest_size=8)
    for images in x:
        digest.update(np.ascontiguousarray(images).data)
    facts = {"classes": parts[0].classes, "y": y, "digest": digest.hexdigest()}
    return Made(facts, "uint8", (len(y), 3, SIZE, SIZE), x)


def pools(table: Table) -> dict[str, Pool]:
    """Return a pool for each split, all over the same table.

    Raises:
        DataError: the table's classes are not CIFAR-100's.
    """
    number = {str(name): i for i, name in enumerate(table.facts["classes"])}
    missing = sorted({name for names in SPLITS.values() for name in names} - set(number))
    if missing:
        raise DataError(
            f"cifar-fs: got data without the classes {', '.join(missing[:5])}, expected CIFAR-100's fine labels; fetch "
            "the data again"
        )
    y = np.asarray(table.facts["y"])
    x = torch.from_numpy(table.x)
    rows = {name: np.flatnonzero(y == c) for name, c in number.items()}
    return {split: make_pool(x, {name: rows[name] for name in names}, (0.0, 1.0)) for split, names in SPLITS.items()}


@reads(pictures.formats)
def prepare(raw: Any) -> Tensor:
    """Make inputs [n, 3, 32, 32] of a user's own pictures; one that isn't square is cut to its middle square.

    Args:
        raw: paths, images, uint8 arrays, or a sequence of these, see ``kshot.data.pictures.inputs``.

    Raises:
        DataError: a file is missing or is not a picture, or an array has another shape or type. The message names it.

    Example:
        >>> prepare(Image.new("RGB", (64, 48), "red"))[0, :, 0, 0].tolist()
        [1.0, 0.0, 0.0]
    """

    def pixels(image: Image.Image) -> NDArray[np.uint8]:
        square = ImageOps.fit(image.convert("RGB"), (SIZE, SIZE), Image.Resampling.BOX)
        return np.asarray(square).transpose(2, 0, 1)

    return pictures.inputs(raw, pixels, (3, SIZE, SIZE), who="cifar-fs")
