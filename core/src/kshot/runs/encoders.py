"""The encoder of a trained run, as an encoder for other learners."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kshot._engine.inputs import load_inputs
from kshot._engine.run_folder import run_path
from kshot.errors import DataError, MisfitError
from kshot.nn.pretrained import Tune, tuned
from kshot.protocols import Embeds
from kshot.runs.learners import load_learner
from kshot.spec import TaskSpec


class RunEncoder(nn.Module):
    """Embed inputs by the learner of a trained run: [n, *input] -> [n, D].

    The run may be of any learner with an embedding, also of one that was trained without labels.

    Args:
        spec: spec of the tasks; their inputs must have the shape of those of the run.
        run: the run folder.
        tune: which weights are trained: ``none``, ``head`` (those of the last layer) or ``all``.
        import_from: a folder with the network that the run names by an import path, if it is not installed.

    Raises:
        RunError: the run does not exist, has no checkpoint, or can't be built again from its folder.
        MisfitError: its learner has no embedding.
        DataError: it was trained on inputs of another shape.

    Example:
        >>> import kshot, torch
        >>> from kshot.testing import sample_learner, sample_tasks
        >>> learner = kshot.register(sample_learner.NearestMean, name="sample-learner")
        >>> tasks = kshot.register(sample_tasks.classification, name="sample-tasks", group="tasks")
        >>> run = kshot.runs.train("sample-learner", "sample-tasks", run="runs/to-embed", iterations=2, quiet=True)
        >>> encoder = RunEncoder(kshot.tasks("sample-tasks").spec, run="runs/to-embed")
        >>> encoder(torch.zeros(2, 6)).shape[0]
        2
    """

    def __init__(
        self, spec: TaskSpec, *, run: Path | str, tune: Tune = "none", import_from: Path | str | None = None
    ) -> None:
        super().__init__()
        trained = load_learner(run, import_from=import_from)
        if not isinstance(trained.learner, Embeds):
            raise MisfitError(
                f"encoder 'run': got a run of {trained.name}, which has no embedding; expected a learner with one "
                "(kshot.protocols.Embeds), such as protonet or siamese"
            )
        if trained.spec.input_shape != spec.input_shape:
            raise DataError(
                f"encoder 'run': got tasks with inputs of shape {list(spec.input_shape)}, expected "
                f"{list(trained.spec.input_shape)}, on which {run} was trained; convert the inputs (channels, size)"
            )
        self.learner = trained.learner
        tuned(self, tune)

    @staticmethod
    def task_options(run: Path | str = "", **_: Any) -> dict[str, Any]:
        """Return the options with which tasks of pictures have inputs as those of the run."""
        stored = load_inputs(run_path(run))
        shape = () if stored is None else stored[0].input_shape
        if len(shape) != 3 or shape[0] not in (1, 3):
            return {}
        channels, height, width = shape
        return {"size": height if height == width else (height, width), "mode": "L" if channels == 1 else "RGB"}

    def forward(self, x: Tensor) -> Tensor:
        """Embed inputs ``x`` [n, *input] as [n, D]."""
        z: Tensor = self.learner.embed(x[None])[0]
        return z
