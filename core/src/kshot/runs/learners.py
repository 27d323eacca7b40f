"""Load the trained learner of a run, of any kind of tasks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from kshot._engine import warm_start
from kshot._engine.checkpoint_state import check_tensors
from kshot._engine.run_folder import CONFIG_FILE, RunFolder, run_path
from kshot.errors import DataError, RunError
from kshot.registry.modules import importing
from kshot.runs.plan import Plan, build_learner
from kshot.spec import TaskSpec


@frozen(eq=False)
class TrainedLearner:
    """Store the learner of a run, in evaluation mode and on the CPU, and what the run records of its training.

    Attributes:
        learner: with the final parameters of the run.
        name: under which it is registered, such as ``l2l``.
        spec: of the tasks that it was trained on.
        versions: of Python, torch, kshot and the plugins that trained it, as far as the run records them.

    Example:
        >>> TrainedLearner(None, "l2l", TaskSpec(kind="objective", input_shape=(), target_shape=(3,), query=4), {}).name
        'l2l'
    """

    learner: Any
    name: str
    spec: TaskSpec
    versions: Mapping[str, str]


def load_learner(run: str | Path, *, import_from: str | Path | None = None) -> TrainedLearner:
    """Load the learner of a run with its final parameters: the best validated ones, or the last.

    Neither the tasks nor their data are needed. To predict classes with a run, use ``kshot.Trained`` instead.

    Args:
        run: a run folder, made by ``kshot train`` or in Python.
        import_from: a folder with the network that the run names by an import path, if it is not installed.

    Raises:
        RunError: the run does not exist, has no checkpoint, or can't be built again from its folder.
        KshotError: the learner can't be built here.

    Example:
        >>> import kshot
        >>> from kshot.testing import sample_learner, sample_tasks
        >>> learner = kshot.register(sample_learner.NearestMean, name="sample-learner")
        >>> tasks = kshot.register(sample_tasks.classification, name="sample-tasks", group="tasks")
        >>> run = kshot.runs.train("sample-learner", "sample-tasks", iterations=2, evaluate={"episodes": 5}, quiet=True)
        >>> load_learner(run.folder).name
        'sample-learner'
    """
    folder = run_path(run)
    config = RunFolder.open(folder).config
    plan = Plan.of_run(folder, config)
    checkpoint, _, parameters = warm_start.trained(folder)
    try:
        described = config["identity"]["tasks"]  # the first run folders store it as text
        spec = TaskSpec.from_dict(json.loads(described) if isinstance(described, str) else described)
    except (KeyError, TypeError, ValueError, DataError) as error:
        where = f"{folder / CONFIG_FILE}: identity.tasks"
        raise RunError(f"{where}: got no spec of tasks ({error}), expected one; train the run again") from error
    with importing(import_from, run=folder):
        learner = build_learner(plan, spec)
    check_tensors(checkpoint, parameters, learner)
    learner.load_state_dict(parameters)
    versions = config.get("kshot")
    known = {str(n): str(v) for n, v in versions.items()} if isinstance(versions, Mapping) else {}
    return TrainedLearner(learner, str(plan.learner["name"]), spec, known)
