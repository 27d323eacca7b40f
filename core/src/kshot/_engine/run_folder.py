"""The run folder: what a training leaves on disk, never half-written.

    runs/protonet-omniglot-0/
        config.json          what was asked for, and every automatic choice
        metrics.jsonl        a line an iteration or evaluation
        checkpoints/N.pt     after N outer steps; the newest few, atomic, loadable with ``weights_only=True``
        result.json          what the evaluation found
        inputs.pt            what inputs the learner takes and how files become them

A file appears under its name complete or not at all: it is written beside it, flushed to the disk, and renamed.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from kshot._atomic import beside, writing
from kshot.errors import RunError

FORMAT = "kshot-checkpoint"
VERSION = 1


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Give ``path`` its whole new content or leave it as it was, whatever happens in between.

    Raises:
        RunError: the disk is full or can't be written; nothing that was there is lost.
    """
    try:
        with writing(path) as file:
            write(file)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
        raise RunError(
            f"could not write {path}: {error}; what was there before is untouched: free some space, and resume the "
            "run or try again"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """A JSON file, atomically."""
    text = json.dumps(value, indent=1, default=str) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def write_text(path: Path, text: str) -> None:
    """Write a text file, atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def digest(state: Any) -> str:
    """SHA-256 of the structure and all tensors' bytes of a checkpoint."""
    leaves, structure = pytree.tree_flatten(state)
    made = hashlib.sha256(str(structure).encode())
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            made.update(f"{leaf.dtype}{tuple(leaf.shape)}".encode())
            made.update(leaf.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            made.update(repr(leaf).encode())
    return made.hexdigest()


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write ``state`` (tensors and plain containers only), atomically, with its digest."""
    body = dict(state)
    whole = {"format": FORMAT, "version": VERSION, "digest": digest(body), "state": body}
    write_atomically(path, lambda file: torch.save(whole, file))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what ``save_checkpoint`` wrote; executes nothing (``weights_only=True``).

    Raises:
        RunError: it is missing, truncated, corrupt, no checkpoint of kshot, or of a newer kshot.
    """
    if not path.is_file():
        raise RunError(f"{path}: there is no such checkpoint")
    try:
        whole = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise RunError(
            f"{path}: truncated, corrupt or no checkpoint at all ({_first_line(error)}); "
            "nothing was changed; resume from an earlier checkpoint of the run instead"
        ) from error
    if not isinstance(whole, dict) or whole.get("format") != FORMAT:
        raise RunError(f"{path}: a file of torch, but no checkpoint of kshot; nothing was changed")
    if not isinstance(whole.get("version"), int) or whole["version"] > VERSION:
        raise RunError(
            f"{path}: checkpoint format {whole.get('version')}, this kshot reads up to {VERSION}; "
            "nothing was changed: pip install -U kshot"
        )
    state = whole.get("state")
    if not isinstance(state, dict) or digest(state) != whole.get("digest"):
        raise RunError(f"{path}: corrupt, its content does not match its digest; nothing was changed")
    return state


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def refuse_used(run: Path) -> None:
    """Raise RunError if the run folder is not a new or empty one."""
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise RunError(
            f"{run} is not empty; expected a new or empty folder: choose another (--run), remove it, or go on with it: "
            f"kshot resume {run}"
        )


class RunFolder:
    """A run folder on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: str | Path, config: Mapping[str, Any]) -> RunFolder:
        """A new folder with its config, made whole.

        Raises:
            RunError: the folder exists and is not empty, or can't be written.
        """
        folder = Path(path)
        refuse_used(folder)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            made = beside(folder)
            (made / "checkpoints").mkdir(parents=True)
            write_json(made / "config.json", config)
            made.rename(folder)
        except OSError as error:
            raise RunError(f"could not make the run folder {folder}: {error}") from error
        return cls(folder)

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """An existing run folder.

        Raises:
            RunError: it is none.
        """
        folder = Path(path)
        if not (folder / "config.json").is_file():
            raise RunError(f"{folder} is no run folder: it has no config.json")
        return cls(folder)

    @property
    def config(self) -> dict[str, Any]:
        try:
            config: dict[str, Any] = json.loads((self.path / "config.json").read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise RunError(f"{self.path / 'config.json'} can't be read: {error}") from error
        return config

    def checkpoints(self) -> list[Path]:
        """All checkpoints, oldest first."""
        found = [p for p in (self.path / "checkpoints").glob("*.pt") if p.stem.isdigit()]
        return sorted(found, key=lambda p: int(p.stem))

    def newest(self) -> Path | None:
        """Return the newest checkpoint, or None if there is none yet."""
        return next(reversed(self.checkpoints()), None)

    def save(self, iteration: int, state: Mapping[str, Any], keep: int) -> Path:
        """Write checkpoint ``iteration``, then drop all but the newest ``keep``."""
        path = self.path / "checkpoints" / f"{iteration:08d}.pt"
        save_checkpoint(path, state)
        for old in self.checkpoints()[:-keep]:
            old.unlink(missing_ok=True)
        return path
