"""Write and read the run folder, in which a training stores its configuration, metrics, checkpoints and results.

    runs/protonet-omniglot-0/
        config.json          the configuration, every automatic choice, and a digest of them
        metrics.jsonl        one line per iteration and per evaluation
        checkpoints/N.pt     the state after N outer steps; the newest few, loadable with ``weights_only=True``
        result.json          the results of the tests
        inputs.pt            the inputs that the learner takes, and how files are turned into them

Every file but metrics.jsonl is written atomically: under a temporary name, flushed to the disk, and then renamed. So
a file that exists is complete.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from kshot._atomic import beside, writing
from kshot._engine.stored import read_json, read_torch, shown
from kshot.errors import OptionError, RunError

FORMAT = "kshot-checkpoint"
VERSION = 1

CONFIG_FILE = "config.json"

LARGEST_CONFIG = 2**26
"""Greatest size of config.json, in bytes."""

EARLIER = "nothing was changed; resume from an earlier checkpoint of the run instead"

_NUMBERED = re.compile(r"[0-9]{1,15}\.pt")
"""The names of checkpoints; other digits than these, such as superscripts, are no numbers for ``int``."""


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file atomically: afterwards ``path`` has all of the new content, or is unchanged if writing failed.

    Args:
        write: writes the content to the binary file that it is given.

    Raises:
        RunError: the disk is full or can't be written; an earlier file is unchanged.
    """
    try:
        with writing(path) as file:
            write(file)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
        raise RunError(
            f"could not write {path}: {error}; what was there before is unchanged: {advice(error)}, then resume the "
            "run or try again"
        ) from error


def advice(error: Exception) -> str:
    """Return what to do about a file that can't be written, as part of a sentence."""
    number = getattr(error, "errno", None)
    if number in (errno.EACCES, errno.EPERM):
        return "give yourself permission to write there, or choose another folder"
    if number == errno.EROFS:
        return "choose a folder on a file system that can be written"
    if number == errno.EDQUOT:
        return "remove files of yours, as your quota is used up"
    if number == errno.EEXIST:
        return "choose another folder, as a file has this name or that of a folder above"
    if number in (errno.EISDIR, errno.ENAMETOOLONG):
        return "choose another name"
    if number in (errno.ENOENT, errno.ENOTDIR):
        return "put the folder back, as it was removed or renamed"
    return "free some space"


def run_path(run: str | os.PathLike[str]) -> Path:
    """Return the path of a run as a ``Path``; ``~`` is the home folder of the user.

    Raises:
        OptionError: it is no path, or one that no file system takes.
    """
    try:
        path = Path(run).expanduser()
        if "\0" in str(path) or max(map(len, map(os.fsencode, path.parts)), default=0) > 255:
            raise ValueError("a name with a NUL character, or of more than 255 bytes")
    except (TypeError, ValueError, RuntimeError) as error:  # the last for the home folder of an unknown user
        raise OptionError(f"run: got {run!r:.100}, expected the path of a folder ({error}); choose another") from error
    return path


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, atomically."""
    text = json.dumps(value, indent=1, default=str) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def write_text(path: Path, text: str) -> None:
    """Write a text file, atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def digest(state: Any) -> str:
    """Return the SHA-256 digest of nested containers: of their structure, their values, and the bytes of tensors."""
    leaves, structure = pytree.tree_flatten(state)
    sha = hashlib.sha256(str(structure).encode())
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            sha.update(f"{leaf.dtype}{tuple(leaf.shape)}".encode())
            leaf = leaf if leaf.layout == torch.strided else leaf.to_dense()
            if leaf.numel():  # an empty tensor may have strides that its bytes can't be viewed with
                sha.update(leaf.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            sha.update(repr(leaf).encode())
    return sha.hexdigest()


def json_digest(value: Any) -> str:
    """Return the SHA-256 digest of plain values, from their JSON with sorted keys and without spaces."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint with its digest, atomically.

    Args:
        state: tensors and plain containers only.

    Raises:
        RunError: the disk is full or can't be written; an earlier file is unchanged.
    """
    body = pytree.tree_map(_dense, dict(state))
    checkpoint = {"format": FORMAT, "version": VERSION, "digest": digest(body), "state": body}
    write_atomically(path, lambda file: torch.save(checkpoint, file))


def _dense(value: Any) -> Any:
    """Return a tensor that shares one element among several as one without sharing, as readers refuse the former."""
    if isinstance(value, Tensor) and value.layout is torch.strided:
        shares = value.numel() * value.element_size() > value.untyped_storage().nbytes()
        return value.contiguous() if shares else value
    return value


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint that ``save_checkpoint`` wrote; no code in it is executed (``weights_only=True``).

    Raises:
        RunError: the file is missing, truncated, corrupt, not a kshot checkpoint, or of a newer version of kshot.
    """
    if not path.is_file():
        raise RunError(f"{path}: there is no such checkpoint; check the path")
    checkpoint = read_torch(path, what="a checkpoint", advice=EARLIER)
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT:
        raise RunError(f"{path}: got a torch file that is not a kshot checkpoint; nothing was changed")
    version = checkpoint.get("version")
    if type(version) is not int or version > VERSION:
        raise RunError(
            f"{path}: got checkpoint format {shown(version)}, expected at most {VERSION}; nothing was "
            "changed; install a newer kshot to read it: pip install -U kshot"
        )
    state = checkpoint.get("state")
    if not isinstance(state, dict) or not matches(state, checkpoint.get("digest")):
        raise RunError(f"{path}: the file is corrupt: its content does not match its digest; {EARLIER}")
    return state


def matches(state: Any, expected: Any) -> bool:
    """Return whether stored values have the digest that was stored with them."""
    try:
        return bool(digest(state) == expected)
    except Exception:  # of types that kshot doesn't write
        return False


def refuse_used(run: Path) -> None:
    """Raise RunError if ``run`` exists and is not an empty folder."""
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise RunError(
            f"{run} is not empty; expected a new or empty folder: choose another (--run), remove it, or resume it: "
            f"kshot resume {run}"
        )


class RunFolder:
    """Represent a run folder on disk.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: str | Path, config: Mapping[str, Any]) -> RunFolder:
        """Create a run folder with its config.json, atomically.

        Raises:
            RunError: the folder exists and is not empty, or can't be written.
        """
        folder = Path(path)
        refuse_used(folder)
        try:
            plain = json.loads(json.dumps(dict(config), default=str))
        except (TypeError, ValueError, RecursionError) as error:
            raise OptionError(
                f"config: got values that can't be written as JSON ({error}), expected numbers, text, lists and "
                "mappings"
            ) from error
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            temporary = beside(folder)
            (temporary / "checkpoints").mkdir(parents=True)
            write_json(temporary / CONFIG_FILE, {**plain, "digest": json_digest(plain)})
            temporary.rename(folder)
        except OSError as error:
            raise RunError(
                f"could not create the run folder {folder}: {error}; {advice(error)}, then try again"
            ) from error
        return cls(folder)

    @classmethod
    def open(cls, path: str | Path, *, writing: bool = False) -> RunFolder:
        """Open an existing run folder.

        Args:
            writing: whether the run is going on; then its files must lie in it, as old checkpoints are deleted.

        Raises:
            RunError: it has no config.json, or a link leads out of it.
        """
        folder = Path(path)
        if not (folder / CONFIG_FILE).is_file():
            raise RunError(f"{folder} is not a run folder: it has no config.json")
        if writing:
            for inner in (folder / "checkpoints", folder / "metrics.jsonl"):
                if not inner.resolve().is_relative_to(folder.resolve()):
                    raise RunError(
                        f"{inner}: got a link to {inner.resolve()}, outside of the run folder, expected a part of it: "
                        "resuming would write there; replace the link by what it leads to"
                    )
        return cls(folder)

    @property
    def config(self) -> dict[str, Any]:
        """The content of config.json, without its digest.

        Raises:
            RunError: the file can't be read, or was changed after it was written.
        """
        path = self.path / CONFIG_FILE
        config = read_json(path, most=LARGEST_CONFIG)
        expected = config.pop("digest", None)  # absent in the first run folders
        if expected is not None and json_digest(config) != expected:
            raise RunError(
                f"{path}: got a content that does not match its digest, so it is damaged or was changed; expected it "
                'as it was written; if you changed it yourself, remove the line "digest"'
            )
        return config

    def checkpoints(self) -> list[Path]:
        """Return the paths of all checkpoints, oldest first."""
        paths = [p for p in (self.path / "checkpoints").glob("*.pt") if _NUMBERED.fullmatch(p.name) and p.is_file()]
        return sorted(paths, key=lambda p: int(p.stem))

    def newest(self) -> Path | None:
        """Return the newest checkpoint, or None if there is none yet."""
        return next(reversed(self.checkpoints()), None)

    def save(self, iteration: int, state: Mapping[str, Any], keep: int) -> Path:
        """Write the checkpoint of an iteration, then delete all but the newest ``keep``; return its path."""
        path = self.path / "checkpoints" / f"{iteration:08d}.pt"
        save_checkpoint(path, state)
        for old in self.checkpoints()[:-keep]:
            old.unlink(missing_ok=True)
        return path
