"""Read the results in a run's ``result.json``, or in a file that ``kshot evaluate --output`` has written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from kshot._engine.result import Result
from kshot._engine.stored import (
    Unfit,
    fields,
    fitting,
    list_of,
    mapping_of,
    number,
    optional,
    plain,
    read_json,
    text,
    truth,
    whole,
)
from kshot.errors import RunError
from kshot.spec import KIND_NAMES

ADVICE = "test the run again: kshot evaluate RUN --output=FILE.json"

_PLAIN = mapping_of(plain)
_SEED = whole(-(2**63), 2**64 - 1)


def _component(value: Any, key: str) -> None:
    """Accept a description of a component: its name or class, and its options."""
    fields({}, {"name": text, "class": text, "options": _PLAIN}, others=True)(value, key)
    plain(value, key)


def _kind(value: Any, key: str) -> None:
    if value not in KIND_NAMES:
        raise Unfit(key, value, f"one of {', '.join(KIND_NAMES)}")


def _scores(value: Any, key: str) -> None:
    """Accept numbers in nested lists; None stands for NaN, and text for infinity, as JSON has neither."""
    if isinstance(value, list):
        for i, item in enumerate(value):
            _scores(item, f"{key}[{i}]")
    elif value is not None and value not in ("inf", "-inf"):
        number(value, key)


RESULT = fields(
    {"scores": mapping_of(_scores), "kind": _kind, "split": text},
    {
        "tasks_seed": _SEED,
        "seed": _SEED,
        "learner_seed": optional(_SEED),
        "shape": _PLAIN,
        **dict.fromkeys(("normalisation", "queries", "data"), text),
        **dict.fromkeys(("learner", "tasks"), _component),
        "backend": _PLAIN,
        "attack": _PLAIN,
        "classes": optional(list_of(text)),
        "versions": mapping_of(text),
        "iteration": whole(),
        "perturbed": truth,
        "disjoint": truth,
        "wall": number,
    },
    others=True,
)
"""A stored ``Result``, see ``Result.to_dict``."""


def read_results(file: Path) -> tuple[Result, ...]:
    """Return the results of all tests in a file.

    Raises:
        RunError: the file can't be read, or its content has another form than kshot writes.
    """
    content = read_json(file)
    fitting(content, fields({"results": list_of(RESULT)}, others=True), file, advice=ADVICE)
    return tuple(_read(file, i, one) for i, one in enumerate(content["results"]))


def _read(file: Path, i: int, values: dict[str, Any]) -> Result:
    try:
        result = Result.from_json(json.dumps(values))
        lengths = {len(scores) for scores in result.scores.values()}
    except (ValueError, TypeError, OverflowError) as error:  # rows of different lengths, or numbers without an axis
        raise RunError(f"{file}: results[{i}]: can't be read as a result of kshot ({error}); {ADVICE}") from error
    headline = np.asarray(result.scores[result.headline])
    if result.classes is not None:
        lengths.add(len(result.classes))
    if len(lengths) != 1 or not len(headline) or headline.ndim != 1:
        raise RunError(
            f"{file}: results[{i}].scores: got {len(headline)} rows of headline scores, and rows of lengths "
            f"{sorted(lengths)}, expected one number of episodes, at least 1; {ADVICE}"
        )
    return result
