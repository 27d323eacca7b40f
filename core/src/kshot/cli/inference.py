"""Predict, embed and verify files with a trained run, by ``kshot.Trained``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kshot._engine.inputs import load_inputs
from kshot._engine.run_folder import RunFolder, write_atomically
from kshot.data.folders import accepted_by, scan
from kshot.errors import DataError, KshotError
from kshot.runs.plan import Plan
from kshot.runs.trained import Trained


def predict(run: Path, support: Path, files: Sequence[Path], import_from: Path | None = None) -> dict[str, Any]:
    """Predict the classes of files by a folder of class folders; return plain values.

    Raises:
        KshotError: see ``kshot.Trained``; a file is missing or unreadable.
    """
    check_there(files)
    written = load_inputs(run)
    # The rule of the folders that tasks are made of: other files, such as notes, are ignored and logged.
    folder = scan(support, accepted_by(written[1] if written else None), what="examples")
    examples = {name: [folder.root / file for file in of_class] for name, of_class in folder.classes.items()}
    prediction = Trained.of_run(run, import_from=import_from).predict(examples, list(files))
    predictions = [
        {"file": str(file), "class": label, "probability": float(p.max()), "probabilities": p.tolist()}
        for file, label, p in zip(files, prediction.labels, prediction.probabilities, strict=True)
    ]
    known = digests(examples)
    repeated = [{"file": str(file), "support": str(same)} for file, same in repeats(files, known)]
    return {
        "run": str(run),
        "classes": list(prediction.names),
        "support": {name: len(paths) for name, paths in examples.items()},
        "predictions": predictions,
        "repeats": repeated,
        "contradictions": [[str(path) for path in paths] for paths in contradictions(examples, known)],
    }


def digests(support: Mapping[str, Sequence[Path]]) -> dict[str, list[Path]]:
    """Return the files of the support by the digest of their contents."""
    known: dict[str, list[Path]] = {}
    for path in (path for paths in support.values() for path in paths):
        known.setdefault(_digest(path), []).append(path)
    return known


def repeats(files: Sequence[Path], known: Mapping[str, Sequence[Path]]) -> list[tuple[Path, Path]]:
    """Return the files with the same bytes as a file of the support, each with that file.

    A correct prediction of such a file says nothing about the learner.
    """
    pairs = [(file, known.get(_digest(file))) for file in files]
    return [(file, same[0]) for file, same in pairs if same is not None]


def contradictions(support: Mapping[str, Sequence[Path]], known: Mapping[str, Sequence[Path]]) -> list[Sequence[Path]]:
    """Return the files of the support that have the same bytes but are examples of different classes."""
    class_of = {path: name for name, paths in support.items() for path in paths}
    return [paths for paths in known.values() if len({class_of[path] for path in paths}) > 1]


def embed(run: Path, files: Sequence[Path], output: Path, import_from: Path | None = None) -> tuple[int, int]:
    """Write the files' embeddings [n, D] and their names [n] to an npz file, atomically; return (n, D).

    Raises:
        KshotError: see ``kshot.Trained``; a file is missing or unreadable, or the output can't be written.
    """
    check_there(files)
    if not output.parent.is_dir():
        raise DataError(f"{output}: the folder {output.parent} does not exist; create it or choose another")
    z = Trained.of_run(run, import_from=import_from).embed(list(files))
    names = np.array([str(file) for file in files])
    write_atomically(output, lambda file: np.savez(file, embeddings=z, files=names))
    return z.shape


def verify(run: Path, a: Path, b: Path, threshold: float | None, import_from: Path | None = None) -> dict[str, Any]:
    """Decide whether two files are of the same class; return their distance and the threshold as plain values.

    Args:
        threshold: a distance, or None to choose it on pairs of the run's validation classes.

    Raises:
        KshotError: see ``kshot.Trained``; a file is missing or unreadable.
    """
    check_there([a, b])
    model = Trained.of_run(run, import_from=import_from)
    distance = float(model.distances([a], [b])[0])
    if threshold is not None:
        value, how = threshold, dict[str, Any](chosen="given")
    else:
        try:
            chosen = model.threshold()
        except KshotError as error:
            error.add_note("while choosing a threshold on the data of the run, which are not needed with --threshold")
            raise
        value = chosen.value
        genuine, imposter = chosen.pairs
        how = {"chosen": chosen.split, "accuracy": chosen.accuracy, "genuine": genuine, "imposter": imposter}
        how["trained_on"] = Plan.of_run(run, RunFolder.open(run).config).engine.get("split", "train")
    return {"run": str(run), "distance": distance, "threshold": {"value": value, **how}, "same": distance <= value}


def check_there(files: Sequence[Path]) -> None:
    """Raise DataError if one of ``files`` is not a file, before anything is loaded."""
    for file in files:
        if not file.is_file():
            problem = (
                "got a folder, expected a file: give the files in it" if file.is_dir() else "there is no such file"
            )
            raise DataError(f"{file}: {problem}")


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()
