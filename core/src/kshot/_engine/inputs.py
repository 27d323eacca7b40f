"""Store in ``inputs.pt`` of the run folder which inputs the learner takes, and how files are turned into them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from kshot._engine.run_folder import write_atomically
from kshot.errors import RunError
from kshot.preparing import Preparation
from kshot.protocols import Portable
from kshot.registry import preparation as read_preparation
from kshot.spec import TaskSpec

INPUTS, INPUTS_FILE = "kshot-inputs", "inputs.pt"
"""Format and name of the file."""


def save_inputs(run: Path, tasks: Any) -> None:
    """Write the spec of ``tasks`` and their preparation of raw examples into a run folder, if it can be written.

    Raises:
        RunError: the file can't be written.
    """
    preparation = tasks.preparation if isinstance(tasks, Portable) else None
    if preparation is not None:
        value = {"format": INPUTS, "version": 1, "spec": tasks.spec.to_dict(), "prepare": preparation.to_dict()}
        write_atomically(run / INPUTS_FILE, lambda file: torch.save(value, file))


def load_inputs(run: Path) -> tuple[TaskSpec, Preparation] | None:
    """Return the spec and the preparation that ``save_inputs`` wrote, or None if it wrote nothing.

    Only functions that an installed plugin has registered as preparing inputs are imported and called.

    Raises:
        RunError: the file is damaged or of another version, or names a function that is not registered.
    """
    path, advice = run / INPUTS_FILE, "remove it to prepare files by the data that the run was trained on"
    try:
        value = torch.load(path, weights_only=True)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"{path}: can't be read ({type(error).__name__}: {error}); {advice}") from error
    except Exception as error:  # torch raises errors of many types on damaged bytes
        raise RunError(
            f"{path}: is truncated or is not a kshot inputs file ({type(error).__name__}); {advice}"
        ) from error
    if not isinstance(value, dict) or (value.get("format"), value.get("version")) != (INPUTS, 1):
        raise RunError(f"{path}: is not a kshot inputs file of version 1; {advice}")
    try:
        return TaskSpec.from_dict(value["spec"]), read_preparation(value["prepare"])
    except RunError as error:
        raise RunError(f"{path}: {error}") from error
