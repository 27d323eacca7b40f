"""Start from another run's parameters: copy the tensors that match by name and shape, and report the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import torch
from attrs import frozen
from torch import Tensor, nn

from kshot._engine.checkpoint_state import check_state
from kshot._engine.run_folder import RunFolder, digest, load_checkpoint, run_path
from kshot.errors import RunError
from kshot.protocols import Inherits


@frozen
class Inherited:
    """Report which parameters a learner took from another run, by their names in ``state_dict``; prints as one line.

    Attributes:
        run, checkpoint: the run as the user named it, and the checkpoint file that was read.
        iteration: number of outer steps after which the run had these parameters.
        taken: names of the tensors that match by name and shape, and now have the run's values.
        initialised: names of the learner's other tensors, which stayed as initialised.
        unused: names of the run's other tensors, which this learner doesn't have.
        digest: SHA-256 digest of the copied tensors.
    """

    run: str
    checkpoint: str
    iteration: int
    taken: tuple[str, ...]
    initialised: tuple[str, ...]
    unused: tuple[str, ...]
    digest: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; tuples become lists."""
        plain = attrs.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}

    def __str__(self) -> str:
        total = len(self.taken) + len(self.initialised)
        sentences = [
            f"starting from {self.run} after {self.iteration} iterations: {len(self.taken)} of {total} tensors"
        ]
        if self.initialised:
            sentences.append(f"as initialised: {', '.join(self.initialised)}")
        if self.unused:
            sentences.append(f"not used: {', '.join(self.unused)}")
        return "; ".join(sentences)


def trained(run: str | Path) -> tuple[str, int, dict[str, Tensor]]:
    """Return the final parameters of a run: (path of the checkpoint, its iteration, parameters and buffers by name).

    They are the best validated ones, or the last if the run was not validated.

    Args:
        run: a run folder, of which the newest checkpoint is read, or a checkpoint.

    Raises:
        RunError: the run does not exist, has no checkpoint, or the checkpoint is unusable.
    """
    path = run_path(run)
    if not path.exists():
        raise RunError(f"{path}: there is no such run or checkpoint to start from; train it first, or correct the path")
    if path.is_dir():
        newest = RunFolder.open(path).newest()
        if newest is None:
            raise RunError(f"{path}: the run has no checkpoint to start from; finish it first: kshot resume {path}")
        path = newest
    state = load_checkpoint(path)
    check_state(str(path), state)
    best = state["best"]
    if best["parameters"] is not None:
        return str(path), int(best["iteration"]), best["parameters"]
    return str(path), int(state["iteration"]), state["learner"]


def inherit(learner: nn.Module, run: str, checkpoint: str, iteration: int, theirs: dict[str, Tensor]) -> Inherited:
    """Copy another run's parameters and buffers into a learner, as far as they match by name and shape.

    A learner with the ability ``Inherits`` changes them first, for example to keep the rows of the classes it knows.

    Args:
        run, checkpoint, iteration: where they come from, for the report.
        theirs: parameters and buffers of the run, by name.

    Raises:
        RunError: none matches; the learner is unchanged.
    """
    if isinstance(learner, Inherits):
        theirs = dict(learner.inherited(theirs))
    own: dict[str, Tensor] = learner.state_dict()
    taken = {n: theirs[n] for n, t in own.items() if n in theirs and theirs[n].shape == t.shape}
    if not any(t.is_floating_point() for t in taken.values()):  # a counter of batches alone is nothing that was learnt
        raise RunError(
            f"{checkpoint}: none of its parameters matches this {type(learner).__name__}'s by name and shape: got "
            f"{_shapes(theirs)}, expected {_shapes(own)}; start from a run of the same architecture and options"
        )
    with torch.no_grad():
        for name, values in taken.items():
            own[name].copy_(values)
    differing = {n: f"{n} ({list(theirs[n].shape)} there, {list(own[n].shape)} here)" for n in own if n in theirs}
    return Inherited(
        run=run,
        checkpoint=checkpoint,
        iteration=iteration,
        taken=tuple(taken),
        initialised=tuple(differing.get(n, n) for n in own if n not in taken),
        unused=tuple(n for n in theirs if n not in own),
        digest=digest(taken),
    )


def _shapes(tensors: dict[str, Tensor]) -> str:
    shown = [f"{name} {list(t.shape)}" for name, t in tensors.items() if t.is_floating_point()]
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")
