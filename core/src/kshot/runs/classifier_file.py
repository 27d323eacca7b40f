"""Store a classifier in one small file of plain values, and read it back; no code in the file is executed.

The file has the labelled examples as inputs in half precision, their names, the name and the options of the learner,
and how files become inputs: functions that installed plugins have registered, and an encoder by its name and the
digest of its weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from kshot._engine.run_folder import digest, matches, write_atomically
from kshot._engine.stored import (
    anything,
    fields,
    finite,
    fitting,
    list_of,
    number,
    optional,
    plain,
    read_torch,
    tensor,
    text,
    whole,
)
from kshot.errors import RunError
from kshot.registry import preparation as read_preparation
from kshot.runs.classifier import Classifier, Estimate

FORMAT, VERSION, SUFFIX = "kshot-classifier", 1, ".kshot"

ADVICE = "make it again: kshot fit FOLDER -o FILE"

CONTENT = fields(
    {
        "names": list_of(text, 2),
        "x": tensor,
        "y": tensor,
        "files": list_of(text),
        "preparation": optional(anything),
        "learner": optional(fields({"name": text}, others=True)),
        "temperature": number,
        "unusual": tensor,
        "estimate": optional(list_of(whole(), 2)),
        "left_out": tensor,
    }
)


def save(classifier: Classifier, path: Path) -> None:
    """Write a classifier to a file, completely or not at all.

    Raises:
        RunError: the file can't be written.
    """
    estimate = classifier.estimate
    body = {
        "names": list(classifier.names),
        "x": classifier.x.half(),
        "y": torch.from_numpy(classifier.y),
        "files": list(classifier.files),
        "preparation": None if classifier.preparation is None else classifier.preparation.to_dict(),
        "learner": None if classifier.learner is None else dict(classifier.learner),
        "temperature": classifier.temperature,
        "unusual": torch.from_numpy(classifier.unusual),
        "estimate": None if estimate is None else [estimate.correct, estimate.total],
        "left_out": torch.from_numpy(classifier.left_out),
    }
    value = {"format": FORMAT, "version": VERSION, "digest": digest(body), "body": body}
    write_atomically(path, lambda file: torch.save(value, file))


def load(path: Path) -> Classifier:
    """Read a classifier from a file that ``save`` wrote.

    Raises:
        RunError: the file is missing, damaged, of another version, or names functions that are not registered here.
    """
    value = read_torch(path, what="a classifier of kshot", advice=ADVICE)
    if not isinstance(value, dict) or value.get("format") != FORMAT or value.get("version") != VERSION:
        raise RunError(f"{path}: got a file that is no classifier of version {VERSION}, expected one; {ADVICE}")
    body: dict[str, Any] = value.get("body")  # type: ignore[assignment]
    fitting(body, CONTENT, path, advice=ADVICE)
    if not matches(body, value.get("digest")):
        raise RunError(f"{path}: the file is corrupt: its content does not match its digest; {ADVICE}")
    fitting(body["learner"], plain, path, "learner", advice=ADVICE)
    n, way = len(body["y"]), len(body["names"])
    right = (
        body["x"].dtype == torch.float16
        and body["y"].dtype == body["left_out"].dtype == torch.int64
        and body["unusual"].dtype == torch.float64
        and body["x"].ndim >= 2
        and len(body["x"]) == len(body["files"]) == n == len(body["left_out"])
        and body["unusual"].ndim == body["y"].ndim == body["left_out"].ndim == 1
        and torch.bincount(body["y"].clamp(0, way), minlength=way).shape == (way,)
        and bool((body["left_out"] < way).all())
        and finite(body["x"])
        and finite(body["unusual"])
        and body["temperature"] > 0
    )
    if not right:
        raise RunError(f"{path}: got examples, labels and names that do not belong together; {ADVICE}")
    try:
        prepared: Any = None if body["preparation"] is None else read_preparation(body["preparation"])
    except RunError as error:
        raise RunError(f"{path}: {error}") from error
    return Classifier(
        tuple(body["names"]),
        body["x"].float(),
        np.asarray(body["y"].numpy()),
        tuple(body["files"]),
        prepared,
        None if body["learner"] is None else dict(body["learner"]),
        float(body["temperature"]),
        np.asarray(body["unusual"].numpy()),
        None if body["estimate"] is None else Estimate(*body["estimate"]),
        np.asarray(body["left_out"].numpy()),
    )
