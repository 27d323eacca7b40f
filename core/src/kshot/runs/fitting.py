"""Make a classifier of a folder of a user's own files, without training anything."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import evolve, frozen

from kshot import registry
from kshot.data.folders import accepted_by, contents, scan, takes_texts, tell_copies
from kshot.data.listings import columns_of, is_listing, listed_files, read_listing
from kshot.errors import DataError, OptionError, PluginError
from kshot.preparing import Preparation
from kshot.registry.conversion import Raw, parse_literal
from kshot.registry.modules import names_of, takes_module
from kshot.registry.options import options_of, validate
from kshot.runs.classifier import Classifier, fitted
from kshot.runs.embedded import embedding, shown
from kshot.spec import TaskSpec

log = logging.getLogger("kshot.runs")

READERS = ("imagefolder", "audiofolder", "textfolder")
"""Plugins that read files, in the order in which they are tried. Such a factory of tasks has the attribute
``prepares``, a function of its options for inputs that returns a preparation, the shape of an input, and its range; and
the options ``column`` and ``label``, the columns of a CSV file."""

SUGGESTED = {"imagefolder": "efficientnet-lite", "textfolder": "wordllama"}
"""The encoder that is used for the files of a plugin if it is installed and none is named."""

AT_ONCE = 64
"""Files that are read and embedded at once."""

Component = str | Mapping[str, Any]


def fit(
    folder: str | Path,
    *,
    encoder: Component | None = None,
    learner: Component | None = None,
    tasks: Component | None = None,
    skip: bool = False,
) -> Classifier:
    """Make a classifier of a folder that has a folder of files for each class, or of a CSV file with labels.

    Nothing is trained: an encoder with pretrained weights embeds each file, and new files are compared with these
    embeddings. Two classes of one file each are enough, and classes may differ in size; from two
    files per class on, the accuracy can be estimated.

    Args:
        folder: the folder; or a CSV file that has a text or the path of a file, and its label, in each row.
        encoder: an encoder plugin, by its name or ``{"name": ..., **options}``; ``none`` for the inputs themselves. By
            default ``efficientnet-lite`` for pictures and ``wordllama`` for texts, if they are installed.
        learner: a learner plugin that adapts without training, such as ``linear-probe``; by default a file is
            classified by the nearest mean of a class, after its embedding is scaled to unit length (the classifier
            L2N of Wang et al. 2019, 1911.04623).
        tasks: the plugin that reads the files, ``imagefolder``, ``audiofolder`` or ``textfolder``, with options such as
            ``size`` or, for a CSV file, ``column``; by default the one that reads files of this kind, or that has its
            default column in the CSV file.
        skip: whether to leave out files that can't be read, with a warning that names them, instead of an error.

    Warns of files with the same bytes, because a copy makes the estimate too high, and in another class one of the two
    labels is wrong.

    Raises:
        DataError: the folder is malformed, or a file can't be read. The message names it.
        PluginError: no plugin that is installed reads such files, or a plugin that is named can't be used.
        OptionError: an option is wrong.

    Example:
        >>> classifier = fit("photos")  # doctest: +SKIP
        >>> classifier.predict(["new.jpg"]).labels  # doctest: +SKIP
        ['newt']
    """
    reader = {"name": tasks} if isinstance(tasks, str) else dict(tasks or {})
    reader = reader if "name" in reader else {"name": reader_of(Path(folder)), **reader}
    if encoder is None:
        encoder = _suggested(str(reader["name"]))
    named = None if encoder is None else _table(encoder)
    columns = _columns(_table(reader)) if is_listing(folder) else {}
    reader = {key: value for key, value in reader.items() if key not in columns}
    preparation = preparation_of(reader, None if named is None or named["name"] == "none" else named)
    found = _found(folder, columns, preparation)
    x, read = prepare_all(preparation, found.raw, skip=skip, names=found.names)
    classes = list(found.counts)
    labels = np.repeat(np.arange(len(classes)), list(found.counts.values()))
    y, names = torch.from_numpy(labels[read]), [found.names[i] for i in read]
    chosen = None if learner is None else on_inputs(_table(learner))
    return fitted(x, y, classes, chosen, preparation, names)


@frozen
class _Found:
    """Store the examples of a folder or of a CSV file, class by class.

    Attributes:
        raw: what is prepared: paths, or texts.
        names: a name for each.
        counts: number of examples of each class.
    """

    raw: list[Any]
    names: list[str]
    counts: dict[str, int]


def _columns(reader: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of the columns of a CSV file: those that the user gave, else the defaults of the plugin.

    Raises:
        PluginError: the plugin reads no CSV files.
    """
    known = {option.name: option.default for option in options_of(registry.load(str(reader["name"]), "tasks"))}
    if "column" not in known or "label" not in known:
        raise PluginError(f"fit: got a CSV file and tasks {reader['name']!r}, expected one of {', '.join(READERS)}")
    return {name: str(reader.get(name, known[name])) for name in ("column", "label")}


def _found(source: str | Path, columns: Mapping[str, str], preparation: Preparation) -> _Found:
    """Return the examples of a folder, or of a CSV file if ``columns`` are given; warn of those that are the same.

    Raises:
        DataError: the folder or the file is malformed.
    """
    if columns and takes_texts(preparation):
        listing = read_listing(source, columns["column"], columns["label"])
        tell_copies(f"fit: {source}", listing.copies(), "texts")
        return _Found(
            list(listing.examples), list(listing.names), {name: len(texts) for name, texts in listing.classes.items()}
        )
    accept = accepted_by(preparation)
    if columns:
        folder = listed_files(read_listing(source, columns["column"], columns["label"]), accept, what="examples")
    else:
        folder = scan(source, accept, what="examples")
    tell_copies(f"fit: {source}", contents(folder).copies)
    return _Found(folder.paths, list(folder.files), {name: len(files) for name, files in folder.classes.items()})


def extend(classifier: Classifier, folders: Mapping[str, str | Path], *, skip: bool = False) -> Classifier:
    """Return a classifier with the files of more folders, of its classes or of new ones.

    Args:
        classifier: a classifier of files.
        folders: for each class a folder of its files.
        skip: whether to leave out files that can't be read, with a warning.

    Raises:
        DataError: the classifier is not one of files, a folder is malformed, or a file can't be read.
    """
    if classifier.preparation is None:
        raise DataError("classifier: got a classifier of numbers, expected one that was made of files")
    accept = accepted_by(classifier.preparation)
    raw, names = {}, {}
    for name, path in folders.items():
        files = files_of(Path(path), accept)
        raw[name], read = prepare_all(classifier.preparation, files, skip=skip)
        names[name] = [f"{name}/{files[i].name}" for i in read]
    plain = evolve(classifier, preparation=None).extended(raw, names)
    return evolve(plain, preparation=classifier.preparation)


def files_of(folder: Path, accept: Any) -> list[Path]:
    """Return the files of one class, in the order of their names.

    Raises:
        DataError: there is no such folder, or no file of this kind in it.
    """
    accepts = accept if callable(accept) else lambda path: path.suffix.lower() in accept
    files = sorted(path for path in folder.rglob("*") if path.is_file() and accepts(path)) if folder.is_dir() else []
    if not files:
        given = "a folder without examples" if folder.is_dir() else "a path that is no folder"
        raise DataError(f"{folder}: got {given}, expected a folder with the files of one class")
    return files


def preparation_of(reader: Mapping[str, Any], encoder: Mapping[str, Any] | None) -> Preparation:
    """Return how files become inputs: read by a plugin, and embedded by an encoder if one is given.

    Raises:
        PluginError: the plugin does not read files, or one of the two can't be used.
        OptionError: an option is wrong.
    """
    name = str(reader["name"])
    factory = registry.load(name, "tasks")
    prepares = getattr(factory, "prepares", None)
    if prepares is None:
        raise PluginError(f"fit: got tasks {name!r}, which don't read files, expected one of {', '.join(READERS)}")
    options = {key: value for key, value in reader.items() if key != "name"}
    if encoder is not None:
        of_encoder = {key: value for key, value in encoder.items() if key != "name"}
        suits = getattr(registry.load(str(encoder["name"]).partition(":")[0], "encoders"), "task_options", {})
        suits = dict(suits(**of_encoder) if callable(suits) else suits)
        known = {option.name for option in options_of(prepares)}
        options = {**{key: value for key, value in suits.items() if key in known}, **options}
    below, shape, input_range = prepares(**validate(prepares, options, who=f"tasks {name!r}"))
    if encoder is None:
        return below  # type: ignore[no-any-return]
    spec = TaskSpec(kind="classification", input_shape=shape, input_range=input_range, way=2, shot=1, query=1)
    module = registry.encoder(str(encoder["name"]), spec, **of_encoder)
    preparation = embedding(below, module, spec)
    assert preparation is not None, "it was built by name"
    return preparation


def preparation_for(encoder: Component, tasks: Component | None = None) -> Preparation:
    """Return how files become embeddings of an encoder.

    Args:
        encoder: an encoder plugin, by its name or ``{"name": ..., **options}``.
        tasks: the plugin that reads the files; by default ``imagefolder``.

    Raises:
        PluginError, OptionError: see ``fit``.
    """
    return preparation_of(_table(READERS[0] if tasks is None else tasks), _table(encoder))


def prepare_all(
    preparation: Preparation, files: Sequence[Any], *, skip: bool = False, names: Sequence[str] = ()
) -> tuple[torch.Tensor, list[int]]:
    """Read files, with a progress bar on a terminal if they are many.

    Args:
        preparation: how files become inputs.
        files: the files, or texts.
        skip: whether to leave out files that can't be read, with a warning that names them.
        names: a name for each of the files, for messages; by default its path.

    Returns:
        The inputs [n, *input], and the places of their files in ``files``.

    Raises:
        DataError: a file can't be read, or none can.
    """
    x: list[torch.Tensor] = []
    bad: list[int] = []
    parts = [range(i, min(i + AT_ONCE, len(files))) for i in range(0, len(files), AT_ONCE)]
    for part in shown(parts, len(files), f"reading {len(files)} files"):
        try:
            x.append(preparation([files[i] for i in part]))
        except DataError:
            if not skip:
                raise
            for i in part:
                try:
                    x.append(preparation([files[i]]))
                except DataError:
                    bad.append(i)
    if bad:
        shown_names = ", ".join(str((names or files)[i]) for i in bad)
        log.warning("warning: left out %d files that can't be read: %s", len(bad), shown_names)
    if not x:
        raise DataError(f"fit: got {len(files)} files of which none can be read, such as {files[0]}, expected examples")
    return torch.cat(x), [i for i in range(len(files)) if i not in set(bad)]


def reader_of(folder: Path) -> str:
    """Return the plugin that reads the files of a folder of class folders, or of a CSV file.

    Raises:
        DataError: the folder has no files in class folders, or the CSV file no column with the files or texts.
        PluginError: no installed plugin reads them.
    """
    if is_listing(folder):
        return _reader_of_listing(folder)
    files = [path for path in folder.expanduser().glob("*/**/*") if path.is_file() and not path.name.startswith(".")]
    if not files:
        raise DataError(f"{folder}: got no files in class folders, expected a folder that has a folder for each class")
    return _reader_of_files(folder, files)


def _reader_of_files(source: Path, files: Sequence[Path]) -> str:
    """Return the first of the plugins that reads one of the files.

    Raises:
        PluginError: no installed plugin reads them.
    """
    suffixes = [path.suffix.lower() for path in files]
    readers = list(_installed(READERS))
    for name, factory in readers:
        accept = accepted_by(factory.prepares()[0])
        if not callable(accept) and any(suffix in accept for suffix in suffixes):
            return name
    common = max(set(suffixes), key=suffixes.count)
    has = f"installed: {', '.join(name for name, _ in readers)}" if readers else "none is installed"
    raise PluginError(
        f"{source}: got files such as {files[suffixes.index(common)].name}, expected files that a plugin reads "
        f"({has}); pip install kshot-imagefolder for pictures, kshot-audiofolder for sounds, kshot-textfolder for texts"
    )


def _reader_of_listing(path: Path) -> str:
    """Return the plugin that reads the texts or the files of a CSV file, by its columns ``text`` or ``path``.

    Raises:
        DataError: it has none of these columns, or is malformed.
        PluginError: no installed plugin reads the files.
    """
    columns = columns_of(path)
    if "text" in columns:
        return "textfolder"
    if columns.get("path"):
        return _reader_of_files(path, [Path(file) for file in columns["path"]])
    raise DataError(
        f"{path}: got the columns {', '.join(columns)}, expected a column 'text' or 'path'; name the plugin and the "
        "column, such as --tasks=textfolder --tasks.column=NAME"
    )


def _installed(names: Iterable[str]) -> Iterable[tuple[str, Any]]:
    """Yield the factories of the plugins that can be used, with their names."""
    for name in names:
        try:
            yield name, registry.load(name, "tasks")
        except PluginError:
            continue


def _suggested(reader: str) -> str | None:
    """Return the encoder for files that a plugin reads, with a note, or None if it is not installed."""
    name = SUGGESTED.get(reader)
    if name is None:
        return None
    try:
        registry.load(name, "encoders")
    except PluginError:
        log.warning("note: without an encoder, raw inputs are compared; a far better one: pip install kshot-%s", name)
        return None
    log.info("encoder: %s (--encoder names another; none for raw inputs)", name)
    return name


def on_inputs(learner: dict[str, Any]) -> dict[str, Any]:
    """Return a learner that takes inputs as its embeddings, if it has an option for that and the user chose none."""
    for option in options_of(registry.load(str(learner["name"]), "learners"), skip_positional=1):
        if takes_module(option.annotation) and "identity" in names_of(option.annotation):
            return {option.name: "identity", **learner}
    return learner


def _table(component: Component) -> dict[str, Any]:
    """Return a component as ``{"name": ..., **options}``, with text of the command line as the values that it says."""
    table = {"name": component} if isinstance(component, str) else dict(component)
    if "name" not in table:
        raise OptionError(f"fit: got the option {next(iter(table), None)!r} of no plugin, expected its name too")
    return {name: parse_literal(value) if isinstance(value, Raw) else value for name, value in table.items()}
