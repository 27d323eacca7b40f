"""Beginning from another run's parameters: what two learners have in common goes over, the rest is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import torch
from attrs import frozen
from torch import Tensor, nn

from kshot._engine.run_folder import RunFolder, digest, load_checkpoint
from kshot.errors import RunError


@frozen
class Inherited:
    """What a learner took over from another run, by the names of its ``state_dict``. Prints as a line.

    Attributes:
        run, checkpoint: where from, and the file that was read.
        iteration: outer steps that its parameters had taken.
        taken: tensors that agree by name and shape, and now have the run's values.
        initialised: the learner's other tensors, which stayed as they were.
        unused: the run's other tensors, which have no place in this learner.
        digest: of what was taken.
    """

    run: str
    checkpoint: str
    iteration: int
    taken: tuple[str, ...]
    initialised: tuple[str, ...]
    unused: tuple[str, ...]
    digest: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        plain = attrs.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}

    def __str__(self) -> str:
        total = len(self.taken) + len(self.initialised)
        parts = [f"beginning from {self.run} after {self.iteration} iterations: {len(self.taken)} of {total} tensors"]
        if self.initialised:
            parts.append(f"as initialised: {', '.join(self.initialised)}")
        if self.unused:
            parts.append(f"not used: {', '.join(self.unused)}")
        return "; ".join(parts)


def trained(run: str | Path) -> tuple[str, int, dict[str, Tensor]]:
    """What another run ended with: the checkpoint's path, the outer steps taken, and parameters and buffers.

    Args:
        run: a run folder, of which the best validated parameters are taken, else the last; or a checkpoint.

    Raises:
        RunError: no such run, no checkpoint, or an unusable one.
    """
    path = Path(run)
    if not path.exists():
        raise RunError(f"{path}: there is no such run or checkpoint to begin from; train it first, or correct the path")
    if path.is_dir():
        found = RunFolder.open(path).checkpoints()
        if not found:
            raise RunError(f"{path}: the run has no checkpoint to begin from; go on with it: kshot resume {path}")
        path = found[-1]
    state = load_checkpoint(path)
    best = state["best"]
    if best["parameters"] is not None:
        return str(path), int(best["iteration"]), best["parameters"]
    return str(path), int(state["iteration"]), state["learner"]


def inherit(learner: nn.Module, run: str, checkpoint: str, iteration: int, theirs: dict[str, Tensor]) -> Inherited:
    """Give a learner those of ``theirs``, the parameters and buffers of ``run``, that agree by name and shape.

    Raises:
        RunError: none agrees; the learner is as it was.
    """
    own: dict[str, Tensor] = learner.state_dict()
    taken = {n: theirs[n] for n, t in own.items() if n in theirs and theirs[n].shape == t.shape}
    if not any(t.is_floating_point() for t in taken.values()):  # a counter of batches is nothing learnt
        raise RunError(
            f"{checkpoint}: none of its parameters agrees with this {type(learner).__name__}'s by name and shape; it "
            f"has {_shapes(theirs)}; this learner {_shapes(own)}: begin from a run of the same architecture and options"
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
