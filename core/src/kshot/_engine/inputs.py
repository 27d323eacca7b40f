"""Store in ``inputs.pt`` of the run folder which inputs the learner takes, and how files are turned into them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from kshot._engine.run_folder import digest, matches, write_atomically
from kshot._engine.stored import anything, fields, fitting, list_of, number, optional, read_torch, text, whole
from kshot.errors import RunError
from kshot.preparing import Preparation
from kshot.protocols import Portable
from kshot.registry import preparation as read_preparation
from kshot.spec import TaskSpec

INPUTS, INPUTS_FILE, VERSION = "kshot-inputs", "inputs.pt", 2
"""Format, name and version of the file; version 1 has no digest."""

ADVICE = "remove it to prepare files by the data that the run was trained on"

MOST = 2**31
"""Greatest number of elements of one input."""


def _count(value: Any, key: str) -> None:
    """Accept a count of a spec: None, a number, or a range of numbers."""
    rule = list_of(whole(0, MOST), 2) if isinstance(value, list | tuple) else optional(whole(0, MOST))
    rule(value, key)


_SHAPE, _RANGE = list_of(whole(1, MOST)), optional(list_of(number, 2))

SPEC = fields(
    {"kind": text, "input_shape": _SHAPE},
    {
        "target_shape": _SHAPE,
        "input_range": _RANGE,
        "target_range": _RANGE,
        **dict.fromkeys(("way", "shot", "query", "rollouts"), _count),
        "block": whole(1),
        "splits": list_of(text, 1),
        "split_by": text,
        "provides": list_of(text),
        "semantics_shape": optional(_SHAPE),
        "external_classes": list_of(text),
    },
)
"""A stored ``TaskSpec``."""

CONTENT = fields({"format": text, "version": whole(), "spec": SPEC, "prepare": anything}, {"digest": text})


def save_inputs(run: Path, tasks: Any) -> None:
    """Write the spec of ``tasks`` and their preparation of raw examples into a run folder, if it can be written.

    Raises:
        RunError: the file can't be written.
    """
    preparation = tasks.preparation if isinstance(tasks, Portable) else None
    if preparation is not None:
        body = {"spec": tasks.spec.to_dict(), "prepare": preparation.to_dict()}
        value = {"format": INPUTS, "version": VERSION, "digest": digest(body), **body}
        write_atomically(run / INPUTS_FILE, lambda file: torch.save(value, file))


def load_inputs(run: Path) -> tuple[TaskSpec, Preparation] | None:
    """Return the spec and the preparation that ``save_inputs`` wrote, or None if it wrote nothing.

    Only functions that an installed plugin has registered as preparing inputs are imported and called.

    Raises:
        RunError: the file is damaged or of another version, or names a function that is not registered.
    """
    path = run / INPUTS_FILE
    if not path.exists() and not path.is_symlink():
        return None
    value = read_torch(path, what="a kshot inputs file", advice=ADVICE)
    if not isinstance(value, dict) or value.get("format") != INPUTS or value.get("version") not in (1, VERSION):
        raise RunError(f"{path}: is not a kshot inputs file of version 1 or {VERSION}; {ADVICE}")
    fitting(value, CONTENT, path, advice=ADVICE)
    body = {name: value[name] for name in ("spec", "prepare")}
    if value["version"] > 1 and not matches(body, value.get("digest")):
        raise RunError(f"{path}: the file is corrupt: its content does not match its digest; {ADVICE}")
    try:
        spec = TaskSpec.from_dict(value["spec"])
        if math.prod(spec.input_shape) > MOST:
            raise RunError(f"spec.input_shape: got {list(spec.input_shape)}, expected at most {MOST} elements")
        return spec, read_preparation(value["prepare"])
    except RunError as error:
        raise RunError(f"{path}: {error}") from error
    except Exception as error:  # a value of a spec that its checks were not written for
        raise RunError(f"{path}: spec: got values that are no spec ({error}), expected a TaskSpec; {ADVICE}") from error
