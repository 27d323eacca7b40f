"""Make few-shot tasks of texts: of a folder, or of a CSV file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import attrs

from kshot.data.folder_tables import load_folder
from kshot.data.folder_tasks import FolderTasks, with_options_of
from kshot.data.folders import Folder, scan
from kshot.data.listings import read_listing
from kshot.data.splits import splits_of
from kshot.errors import DataError
from kshot.preparing import Preparation
from kshot_textfolder.tables import load_listing
from kshot_textfolder.texts import SUFFIX, VERSION, Features, Form, prepare_as


def textfolder(
    way: int | tuple[int, int] | None = None,
    shot: int | tuple[int, int] = 1,
    query: int | tuple[int, int] | None = None,
    seed: int = 0,
    *,
    root: Path | str | None = None,
    csv: Path | str | None = None,
    column: str = "text",
    label: str = "label",
    features: Features = "ngrams",
    size: int = 2048,
    length: int = 2000,
    split: tuple[float, float, float] | Path | str | Mapping[str, Sequence[str] | Path | str] | None = None,
    split_by: Literal["class", "example"] = "class",
    split_seed: int = 0,
    fold: tuple[int, int] | None = None,
    cache: Path | str | None = None,
    workers: int | None = None,
    block: int = 1,
) -> FolderTasks:
    """Make classification tasks from your own texts: ``root`` has a folder of .txt files for each class.

    Or ``csv`` has a text and its label in each row. Texts are in UTF-8. Inputs are vectors [L], made once, when the
    first episode is asked for, into a table in the cache. ``prepare`` converts other texts in the same way.

    Args:
        way, shot, query, seed, block: see ``kshot.ClassificationTasks``. Classes may have different numbers of texts;
            those with fewer than shot + query are left out, if a split has enough others. By default way is 5, or fewer
            if the smallest split has fewer classes; query is 5, or fewer if the smallest class has fewer texts besides
            the shots.
        root: the folder of class folders, see ``kshot.data.folders.scan``.
        csv: instead of ``root``, a CSV file (or, if its name ends in .tsv, one with tabs), see
            ``kshot.data.listings.read_listing``.
        column: the column of ``csv`` with the texts.
        label: the column of ``csv`` with the labels.
        features: 'ngrams', the words and parts of words in a text as a vector of ``size`` numbers, L = size; or
            'bytes', the text itself in UTF-8, L = length, which encoders of texts take.
        size: L of 'ngrams'.
        length: L of 'bytes'; longer texts are cut after a character.
        split: the shares of train, val and test; by default (0.6, 0.2, 0.2), and for fewer than 24 classes see
            ``kshot.data.splits.default_shares``. Or the class names of each split: a folder with train.txt, val.txt
            and test.txt (one name per line), or a mapping from a split to its names or to such a file.
        split_by: 'class', so that the classes of val and test are new ones; or 'example', for few classes: every split
            has all classes, and each class's texts are divided.
        split_seed: the seed of the random division by shares.
        fold: the number i of a division and the number n of all, for cross-validation by shares: the test classes, or
            the test examples, of the n divisions are evenly spread. ``kshot train --splits=n`` trains on each.
        cache: kshot's cache folder; by default KSHOT_CACHE, or the system's.
        workers: number of threads that read files; by default one for each processor, at most 8.

    Raises:
        DataError: the folder, the CSV file, a list or an option is malformed, or there are too few classes or texts;
            or, when the first episode is asked for, files can't be read. The message names them, and the line.

    Example:
        >>> tasks = textfolder(root="texts")  # doctest: +SKIP
        >>> tasks.sample("train", [0]).support.x.shape  # doctest: +SKIP
    """
    if workers is not None and workers < 1:
        raise DataError(f"textfolder: workers: got {workers}, expected at least 1 thread")
    if (root is None) == (csv is None):
        given = "neither root nor csv" if root is None else "root and csv"
        raise DataError(
            f"textfolder: got {given}, expected a folder that has a folder of texts for each class (root=), or a CSV "
            "file of texts and labels (csv=)"
        )
    form = Form(features, size, length)
    if csv is not None:
        listing = read_listing(csv, column, label)
        # Texts are divided by what they are, and not by their lines, which move when a row is added.
        folder = Folder(listing.path, listing.classes)
        load = partial(load_listing, listing, form, cache)
    else:
        assert root is not None
        folder = scan(root, {SUFFIX}, what="texts")
        load = partial(
            load_folder,
            folder,
            form.decode,
            name="textfolder",
            form=form.name,
            version=VERSION,
            dtype=form.dtype,
            input_shape=form.shape,
            cache=cache,
            workers=workers,
        )
    return FolderTasks(
        splits_of(folder, split, split_by, split_seed, fold),
        load,
        input_shape=form.shape,
        input_range=form.input_range,
        prepare=Preparation.of(prepare_as, **attrs.asdict(form)),
        split_by=split_by,
        way=way,
        shot=shot,
        query=query,
        block=block,
        seed=seed,
    )


@with_options_of(textfolder, [field.name for field in attrs.fields(Form)])
def prepares(**options: Any) -> tuple[Preparation, tuple[int, ...], tuple[float, float]]:
    """Say how ``textfolder`` makes inputs of texts: the preparation, the shape of an input, and its range.

    Example:
        >>> prepares(features="bytes", length=100)[1:]
        ((100,), (0.0, 1.0))
    """
    form = Form(**options)
    return Preparation.of(prepare_as, **attrs.asdict(form)), form.shape, form.input_range


textfolder.prepares = prepares  # type: ignore[attr-defined]
