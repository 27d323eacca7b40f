"""Make few-shot tasks of the AT&T (ORL) faces."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from kshot import ClassificationTasks, Pool
from kshot.data.folder_tasks import make_pool
from kshot.data.tables import cache_folder
from kshot.errors import DataError
from kshot.preparing import Preparation
from kshot.randomness import purpose_key
from kshot_orl_faces.changes import Changed
from kshot_orl_faces.download import download as fetch
from kshot_orl_faces.files import ARCHIVE, PICTURES, locate, read
from kshot_orl_faces.pictures import decode, digest, prepare, table

log = logging.getLogger("kshot_orl_faces")


def orl_faces(
    way: int | tuple[int, int] = 5,
    shot: int | tuple[int, int] = 1,
    query: int | tuple[int, int] = 5,
    seed: int = 0,
    *,
    root: Path | str | None = None,
    download: bool = False,
    size: tuple[int, int] = (56, 46),
    people: tuple[int, int, int] = (20, 10, 10),
    split_seed: int = 0,
    augment: float = 0.0,
    cache: Path | str | None = None,
    block: int = 1,
) -> ClassificationTasks | Changed:
    """Make tasks of recognising people by the AT&T (ORL) database of faces (Samaria & Harter 1994).

    Inputs are [1, height, width], black 0 and white 1. The splits are by person: train, val, test, and trainval (train
    and val together, for a last training once the options are chosen).

    Args:
        way, shot, query, seed, block: of the episodes, see ``kshot.ClassificationTasks``. A person has 10 pictures.
        root: att_faces.zip, a folder that has it, or the folder of s1 to s40; by default the environment variable
            KSHOT_ORL_FACES.
        download: fetch the zip from the AT&T archive into the cache (4 MB), once.
        size: height and width in pixels; the originals have (112, 92).
        people: the numbers of people in train, val and test; val is left out if it has 0.
        split_seed: another seed gives another division of the people.
        augment: strength of small geometric changes of the training images, 0 for none. At 1 each image is turned by
            up to 6 degrees, zoomed by up to 6 % and shifted by up to 3 % of its sides, and half of them are mirrored.
        cache: kshot's cache folder, for the download; by default KSHOT_CACHE, or the system's.

    Raises:
        DataError: the data are missing, incomplete or malformed, or there are too few people or pictures.

    Example:
        >>> tasks = orl_faces(root="att_faces.zip")  # the faces, as downloaded # doctest: +SKIP
        >>> tasks.sample("train", [0]).support.x.shape  # doctest: +SKIP
    """
    if min(size) < 1:
        raise DataError(
            f"orl-faces: size: got {size}, expected a height and a width of at least 1; (112, 92) is the originals'"
        )
    if not (math.isfinite(augment) and augment >= 0):
        raise DataError(
            f"orl-faces: augment: got {augment}, expected a strength of at least 0; 1 is moderate, 0 is none"
        )
    needed = _most(shot) + _most(query)
    if needed > PICTURES:
        raise DataError(
            f"orl-faces: got shot + query of {_most(shot)} + {_most(query)} = {needed}, expected at most {PICTURES}, a "
            "person's number of pictures; lower shot or query"
        )
    place = choose(root, download, cache)
    files = read(place)
    people_of = split(tuple(files), people, split_seed)
    pixels = decode(files, place)
    names = f"{'-'.join(map(str, people))}-split{split_seed}"
    fingerprint = f"orl-faces-{size[0]}x{size[1]}-{names}-{digest(files, pixels)[:16]}"
    log.info("%d people of %s; %s", len(files), place, fingerprint)
    tasks = ClassificationTasks(
        pools(table(pixels, size), tuple(files), people_of),
        way=way,
        shot=shot,
        query=query,
        block=block,
        seed=seed,
        prepare=Preparation.of(prepare, size=size),
        fingerprint=fingerprint,
    )
    return Changed(tasks, augment) if augment else tasks


def _most(count: int | tuple[int, int]) -> int:
    """Return the greatest number of a range, or the number itself."""
    return count if isinstance(count, int) else max(count)


def choose(root: Path | str | None, download: bool, cache: Path | str | None) -> Path:
    """Return the zip or folder to read, by the options and by what is there.

    Raises:
        DataError: the options contradict each other, or there are no data.
    """
    if root is not None and download:
        raise DataError(
            "orl-faces: got both root and download, expected one of them; give root to use your own files, or "
            "download alone"
        )
    folder = cache_folder("orl-faces", cache)
    if download:
        return fetch(folder)
    if given := root or os.environ.get("KSHOT_ORL_FACES"):
        return locate(Path(given))
    if (folder / ARCHIVE).is_file():
        return folder / ARCHIVE
    raise DataError(
        f"orl-faces: got no faces, expected them at root= or in {folder}: they may not be shipped with this package; "
        f"give {ARCHIVE} or the folder it unpacks to by root= or KSHOT_ORL_FACES, or fetch it with download=True"
    )


def split(names: Sequence[str], people: tuple[int, int, int], split_seed: int) -> dict[str, tuple[str, ...]]:
    """Divide people by a hash of seed and name: the first are the test's, the next val's, then train's.

    So other numbers for train and val don't change the test people. Each split is in the order of ``names``.

    Args:
        names: the people.
        people: the numbers of people in train, val and test.
        split_seed: another seed gives another division.

    Raises:
        DataError: there are fewer people than asked for, or train or test has none.

    Example:
        >>> {name: len(people) for name, people in split(["s1", "s2", "s3"], (1, 1, 1), 0).items()}
        {'train': 1, 'val': 1, 'test': 1, 'trainval': 2}
    """
    train, val, test = people
    if min(people) < 0 or train == 0 or test == 0:
        raise DataError(f"orl-faces: people: got {people}, expected numbers for train, val and test; only val may be 0")
    if sum(people) > len(names):
        raise DataError(
            f"orl-faces: people: got {people}, {sum(people)} in all, expected at most {len(names)}; ask for fewer"
        )
    order = sorted(names, key=lambda name: (purpose_key(f"orl-faces/{split_seed}/{name}"), name))
    chosen = {
        "train": order[test + val : sum(people)],
        "val": order[test : test + val],
        "test": order[:test],
        "trainval": order[test : sum(people)],
    }
    if not val:
        del chosen["val"], chosen["trainval"]
    return {name: tuple(n for n in names if n in members) for name, members in chosen.items()}


def pools(x: Tensor, names: Sequence[str], held: dict[str, tuple[str, ...]]) -> dict[str, Pool]:
    """Return a pool for each split, all over the same table.

    Args:
        x: the pictures [num, 1, height, width], person by person.
        names: the people, in the order of their pictures.
        held: split -> its people.
    """
    rows = {name: np.arange(PICTURES) + PICTURES * i for i, name in enumerate(names)}
    return {split: make_pool(x, {name: rows[name] for name in people}, (0.0, 1.0)) for split, people in held.items()}
