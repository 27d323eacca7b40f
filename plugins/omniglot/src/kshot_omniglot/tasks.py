"""Make few-shot tasks of Omniglot."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from kshot import ClassificationTasks, Pool
from kshot.data.tables import cache_folder
from kshot.errors import DataError
from kshot.preparing import Preparation
from kshot.registry import Range
from kshot_omniglot import splits
from kshot_omniglot.download import download as fetch
from kshot_omniglot.embedded import ALPHABETS, Embedded
from kshot_omniglot.files import PARTS, Character, check_complete, find_parts, locate
from kshot_omniglot.prepare import prepare
from kshot_omniglot.table import Originals, Source, Table, load

log = logging.getLogger("kshot_omniglot")

Protocol = Literal["vinyals", "lake", "embedded"]


def omniglot(
    way: int | tuple[int, int] = 5,
    shot: int | tuple[int, int] = 1,
    query: int | tuple[int, int] = 15,
    seed: int = 0,
    *,
    root: Path | str | None = None,
    download: bool = False,
    protocol: Literal["auto", "vinyals", "lake", "embedded"] = "auto",
    rotations: bool | None = None,
    size: Annotated[int, Range(1, 512)] = 28,
    cache: Path | str | None = None,
    workers: int | None = None,
    block: int = 1,
) -> ClassificationTasks:
    """Make tasks of classifying handwritten characters (Lake, Salakhutdinov & Tenenbaum 2015).

    Inputs are [1, size, size], ink 1 on paper 0. The splits are train, val, test, and trainval (train and val
    together, for a last training once the options are chosen).

    Args:
        way, shot, query, seed, block: see ``kshot.ClassificationTasks``.
        root: the folder with images_background and images_evaluation, as zips or unpacked; by default the environment
            variable KSHOT_OMNIGLOT.
        download: fetch the original zips into the cache (14 MB), once.
        protocol: the split: 'vinyals' (4112, 688, 1692 classes with rotations), 'lake' (25 and 5 of the background
            alphabets, the 20 evaluation alphabets), 'embedded' (20 alphabets inside this package); 'auto' is
            'vinyals' if the data are there, else 'embedded'.
        rotations: make separate classes of characters turned by 90, 180 and 270 degrees; by default True, except for
            'lake'.
        size: pixels per side; the original drawings have 105.
        cache: kshot's cache folder; by default KSHOT_CACHE, or the system's.
        workers: number of processes that decode at the first load; by default one for each processor, at most 8.

    Raises:
        DataError: the data are missing, incomplete or malformed, or a class has too few drawings for shot + query.

    Example:
        >>> tasks = omniglot(way=3, shot=2, query=4, protocol="embedded")
        >>> tasks.sample("test", [0]).support.x.shape
        torch.Size([1, 6, 1, 28, 28])
    """
    if size < 1:
        raise DataError(
            f"omniglot: size: got {size}, expected at least 1 pixel per side; 28 is usual, 105 the original's"
        )
    if workers is not None and workers < 1:
        raise DataError(f"omniglot: workers: got {workers}, expected at least 1 process")
    folder = cache_folder("omniglot", cache)
    chosen, source = choose(root, download, protocol, folder)
    turned = chosen != "lake" if rotations is None else rotations
    needed = _most(shot) + _most(query)

    def check(characters: Sequence[Character]) -> None:
        if chosen != "embedded":
            names = [name for split in ("train", "val", "test") for name in splits.vinyals()[split]]
            check_complete(characters, names, splits.COUNTS, source.where)
        least = min(characters, key=lambda c: c.drawings)
        if least.drawings < needed:
            raise DataError(
                f"omniglot: got shot + query of {_most(shot)} + {_most(query)} = {needed}, expected at most "
                f"{least.drawings}, the number of drawings of {least.name}; lower shot or query"
            )

    table = load(source, size=size, turns=4 if turned else 1, folder=folder, check=check, workers=workers)
    fingerprint = f"omniglot-{chosen}-{size}px-{'rotations' if turned else 'upright'}-{table.digest}"
    log.info("%s: %d characters of %s; %s", chosen, len(table.characters), source.where, fingerprint)
    return ClassificationTasks(
        pools(table, split_of(chosen, table.characters)),
        way=way,
        shot=shot,
        query=query,
        block=block,
        seed=seed,
        prepare=Preparation.of(prepare, size=size),
        fingerprint=fingerprint,
    )


def _most(count: int | tuple[int, int]) -> int:
    """Return the greatest number of a range, or the number itself."""
    return count if isinstance(count, int) else max(count)


def choose(root: Path | str | None, download: bool, protocol: str, folder: Path) -> tuple[Protocol, Source]:
    """Return the protocol and its data, by the options and by what is there.

    Raises:
        DataError: the options contradict each other, or there are no data.
    """
    if protocol not in ("auto", "vinyals", "lake", "embedded"):
        raise DataError(f"omniglot: protocol: got {protocol!r}, expected 'auto', 'vinyals', 'lake' or 'embedded'")
    if protocol == "embedded":
        if root is not None or download:
            raise DataError(
                "omniglot: got root or download with protocol 'embedded', expected neither, as its data are in the "
                "package; leave them out, or choose another protocol"
            )
        return "embedded", Embedded()
    if root is not None and download:
        raise DataError(
            "omniglot: got both root and download, expected one of them; give root to use your own files, or "
            "download alone"
        )
    real: Protocol = "lake" if protocol == "lake" else "vinyals"
    if download:
        fetch(folder)
    elif root is not None or os.environ.get("KSHOT_OMNIGLOT"):
        return real, Originals(locate(Path(root if root is not None else os.environ["KSHOT_OMNIGLOT"])))
    parts = find_parts(folder)
    if len(parts) == len(PARTS):
        return real, Originals(parts)
    if protocol == "auto":
        return "embedded", Embedded()
    raise DataError(
        f"omniglot: got protocol {protocol!r} without the full data, expected them at root= or in {folder}; give their "
        "folder by root= or KSHOT_OMNIGLOT, fetch them with download=True, or use protocol='embedded'"
    )


def split_of(protocol: Protocol, characters: Sequence[Character]) -> splits.Splits:
    """Return the names of the characters of each split."""
    if protocol == "vinyals":
        return splits.vinyals()
    return splits.lake(characters) if protocol == "lake" else splits.by_alphabet(characters, ALPHABETS)


def pools(table: Table, names: splits.Splits) -> dict[str, Pool]:
    """Return a pool for each split, all over the same table. The rotations of a character are neighbouring classes."""
    counts = np.array([c.drawings for c in table.characters], np.int64)
    starts = np.cumsum(counts) - counts
    column = np.arange(counts.max())
    # Row i * turns + r of a pool is character i turned r times; -1 stands where a class has no further drawing.
    rows = np.where(column < counts[:, None], starts[:, None] + column, -1)  # [characters, most]
    turns = len(table.x) // table.drawings
    turn = np.arange(turns)[:, None] * table.drawings
    rows = np.where(rows[:, None] < 0, -1, rows[:, None] + turn)  # [characters, turns, most]
    names_of = {c.name: (c.name,) if turns == 1 else _turned_names(c.name, turns) for c in table.characters}
    number = {name: i for i, name in enumerate(names_of)}
    x = torch.from_numpy(table.x)

    def pool(characters: Sequence[str]) -> Pool:
        chosen: NDArray[np.int64] = np.array([number[name] for name in characters], np.int64)
        return Pool(
            x,
            rows[chosen].reshape(-1, len(column)),
            counts[chosen].repeat(turns),
            names=tuple(chain.from_iterable(names_of[name] for name in characters)),
            input_range=(0.0, 1.0),
        )

    return {split: pool(characters) for split, characters in names.items()}


def _turned_names(name: str, turns: int) -> tuple[str, ...]:
    """Return the names of the classes that a character's rotations are."""
    return tuple(f"{name}/rot{90 * r:03d}" for r in range(turns))
