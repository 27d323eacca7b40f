"""Make a classifier of a folder, and predict files with it, by ``kshot.runs.fitting``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kshot.cli.inference import check_there
from kshot.data.folders import accepted_by, takes_texts
from kshot.data.listings import is_listing
from kshot.errors import DataError, OptionError, RunError
from kshot.runs.classifier import Classifier
from kshot.runs.classifier_file import SUFFIX, load, save
from kshot.runs.fitting import extend, files_of
from kshot.runs.fitting import fit as make
from kshot.runs.judging import Judged, check_picture, draw, judge


def fit(
    source: Path,
    output: Path | None,
    tables: Mapping[str, Any],
    add: Sequence[str] = (),
    remove: Sequence[str] = (),
    *,
    skip: bool = False,
) -> tuple[Classifier, Path]:
    """Make or change a classifier and write it to a file; return both.

    Args:
        source: a folder of class folders, a CSV file with labels, or a classifier's file that is to be changed.
        output: the file to write; by default that of ``source``.
        tables: options ``encoder``, ``learner`` and ``tasks`` of a new classifier.
        add: ``NAME=FOLDER`` for each class to add, or to extend.
        remove: names of classes to remove.
        skip: whether to leave out files that can't be read.

    Raises:
        KshotError: see ``kshot.runs.fitting``; the output can't be written.
    """
    folders = dict(_pair(text) for text in add)
    if source.is_file() and not is_listing(source):
        if tables:
            raise OptionError(f"fit: got {', '.join(tables)} for {source}, which has its own; leave it out")
        if not folders and not remove:
            raise OptionError(f"fit: got the classifier {source} and no change, expected --add or --remove")
        classifier, output = load(source), output or source
    else:
        if output is None:
            raise OptionError("fit: got no file to write, expected -o NAME.kshot")
        classifier = make(source, **tables, skip=skip)
    if output.suffix != SUFFIX:
        raise OptionError(f"fit: got the output {output}, expected a name that ends in {SUFFIX}")
    if not output.parent.is_dir():
        raise RunError(f"{output}: the folder {output.parent} does not exist; create it or choose another")
    if folders:
        classifier = extend(classifier, folders, skip=skip)
    if remove:
        classifier = classifier.without(remove)
    save(classifier, output)
    return classifier, output


def described(classifier: Classifier) -> dict[str, Any]:
    """Return the classes, the estimate and the mistakes of a classifier as plain values."""
    counts = {name: int((classifier.y == i).sum()) for i, name in enumerate(classifier.names)}
    wrong = [
        {"file": classifier.files[i], "class": classifier.names[label], "predicted": classifier.names[guess]}
        for i, (label, guess) in enumerate(zip(classifier.y, classifier.left_out, strict=True))
        if guess not in (-1, label)
    ]
    estimate = classifier.estimate
    return {
        "classes": counts,
        "estimate": None if estimate is None else {"correct": estimate.correct, "of": estimate.total},
        "mistakes": wrong,
    }


def predict(
    path: Path, files: Sequence[Path], coverage: float, texts: Sequence[str] = (), picture: Path | None = None
) -> dict[str, Any]:
    """Predict files, and texts, with a classifier's file; return plain values.

    Args:
        path: the classifier's file.
        files: files, folders of files, or one folder of class folders, whose predictions are compared with the classes.
        coverage: see ``Classifier.predict``.
        texts: texts to predict, by a classifier of texts.
        picture: a PNG file to write, with the confusion table and the worst mistakes of a folder of class folders.

    Raises:
        KshotError: the classifier can't be read or takes no texts, a file is missing or unreadable, or the picture
            can't be drawn.
    """
    judged = None
    labelled = len(files) == 1 and files[0].is_dir() and any(child.is_dir() for child in files[0].iterdir())
    if picture is not None:
        if not labelled:
            given = ", ".join(map(str, files)) or "no file"
            raise OptionError(f"--mistakes: got {given}, expected one folder that has a folder for each class")
        check_picture(picture)
    check_there([file for file in files if not file.is_dir()])
    classifier = load(path)
    if texts and not takes_texts(classifier.preparation):
        raise OptionError(f"predict: got a text for {path}, which is no classifier of texts; give files")
    names: list[Any]
    if labelled:
        if texts:
            raise OptionError(f"predict: got texts and {files[0]}, a folder of classes; give one of them")
        judged = judge(classifier, files[0], coverage=coverage)
        names, answer = list(judged.files), judged.answer
        if picture is not None:
            draw(judged, picture)
    else:
        accept = accepted_by(classifier.preparation)
        files = [file for given in files for file in (files_of(given, accept) if given.is_dir() else [given])]
        answer = classifier.predict([*files, *texts], coverage=coverage)
        names = [*files, *(" ".join(text.split()) for text in texts)]
    rows = zip(names, answer.labels, answer.probabilities, answer.plausible, strict=True)
    outcome: dict[str, Any] = {
        "classifier": str(path),
        "classes": list(answer.names),
        "coverage": coverage,
        "predictions": [
            {
                "file": str(file),
                "class": label if plausible.any() else None,
                "nearest": label,
                "probability": float(p.max()),
                "probabilities": p.tolist(),
                "plausible": [name for name, yes in zip(answer.names, plausible, strict=True) if yes],
            }
            for file, label, p, plausible in rows
        ],
    }
    if judged is not None:
        for prediction, name in zip(outcome["predictions"], judged.true, strict=True):
            prediction["true"] = name
        outcome |= judgement(judged)
    return outcome


def judgement(judged: Judged) -> dict[str, Any]:
    """Return how predictions compare with the true classes, as plain values."""
    known, plausible = judged.known, judged.answer.known
    return {
        "accuracy": {"correct": judged.correct, "of": int(known.sum())},
        "none of these": {
            "of the classes": [int((known & ~plausible).sum()), int(known.sum())],
            "of other folders": [int((~known & ~plausible).sum()), int((~known).sum())],
        },
        "confusion": {
            "rows": list(judged.rows),
            "columns": list(judged.answer.names),
            "counts": judged.counts.tolist(),
        },
        "mistakes": judged.mistakes,
    }


def export(path: Path, output: Path) -> dict[str, Any]:
    """Write a classifier's file as an ONNX file; return plain values.

    Raises:
        KshotError: see ``kshot.runs.exporting.export``; the classifier can't be read.
    """
    from kshot.runs.exporting import export as write

    written = write(load(path), output)
    return {
        "file": str(written.path),
        "classes": list(written.classes),
        "inputs": list(written.inputs),
        "difference": written.difference,
        "bytes": written.path.stat().st_size,
    }


def _pair(text: str) -> tuple[str, Path]:
    name, mark, folder = text.partition("=")
    if not mark or not name:
        raise OptionError(f"--add: got {text!r}, expected NAME=FOLDER, such as newt=photos/newt")
    if not Path(folder).is_dir():
        raise DataError(f"--add: got {folder}, which is no folder, expected the folder with the files of {name!r}")
    return name, Path(folder)
