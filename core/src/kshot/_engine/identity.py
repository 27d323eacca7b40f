"""Collect the facts that a checkpoint must match to be resumed, and that several processes must have in common."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from kshot._engine.optimizer import Outer
from kshot._engine.processes import everywhere
from kshot._engine.provenance import as_json, describe, differences, initial_seed, learner_facts, tasks_facts, versions
from kshot._engine.run_folder import digest
from kshot._engine.states import shapes
from kshot.errors import RunError
from kshot.protocols import EngineView, TaskDistribution

_ADDED = frozenset({"learner_options", "learner_seed", "tasks_options", "evaluation"})
"""Fields that the first checkpoints lack."""


def identity_of(
    learner: nn.Module,
    tasks: TaskDistribution,
    evaluation_tasks: TaskDistribution,
    optimizer: Outer,
    *,
    meta_batch: int,
    seed: int,
) -> dict[str, Any]:
    """Return the facts that distinguish a training from others: learner and tasks with their options, and seeds.

    The number of iterations is not among them, as a run may be continued for longer; see ``Engine.train``.
    """
    trained_on = tasks_facts(tasks)
    return {
        "learner": type(learner).__name__,
        "learner_options": learner_facts(learner),
        "learner_seed": initial_seed(learner),
        "parameters": shapes(learner.state_dict()),
        "tasks": trained_on["spec"],
        "tasks_seed": trained_on["seed"],
        "tasks_options": trained_on.get("options", {}),
        "data": trained_on["data"],
        "evaluation": tasks_facts(evaluation_tasks),
        "seed": seed,
        "meta_batch": meta_batch,
        "optimizer": str(optimizer),
    }


def check_identity(path: str, theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """Raise RunError if a checkpoint is of another training; the message lists every difference by name."""
    then = dict(theirs)
    if isinstance(then.get("tasks"), str):  # the first checkpoints have the spec as text
        with contextlib.suppress(ValueError, RecursionError):  # text that is no spec is reported as a difference
            then["tasks"] = json.loads(then["tasks"])
    if not then.get("data"):  # the first checkpoints of tasks over arrays do not identify their data
        then["data"] = mine["data"]
    if differing := differences(then, mine, added=_ADDED):
        lines = "\n".join(f"  - {name}: the checkpoint has {a!r}, this engine {b!r}" for name, a, b in differing)
        raise everywhere(
            RunError(
                f"{path} is the checkpoint of another run; nothing was changed:\n{lines}\n"
                "To start a new training from its parameters: engine.init_from(PATH)"
            )
        )


def check_parameters(path: str, theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """Raise RunError if the parameters of a checkpoint have other names or shapes than the learner's."""
    if differing := differences({"parameters": theirs.get("parameters", {})}, {"parameters": mine["parameters"]}):
        lines = "\n".join(f"  - {name}: the checkpoint has {a}, this learner {b}" for name, a, b in differing)
        raise everywhere(RunError(f"{path} has the parameters of another learner; nothing was changed:\n{lines}"))


def warn_of_changes(path: str, state: Mapping[str, Any], now: Mapping[str, str], backend: str) -> None:
    """Warn if versions of kshot, torch or plugins, or the backend, differ from those that wrote a checkpoint.

    Args:
        path: of the checkpoint, for the message.
        state: the state in it.
        now: the versions now.
        backend: the backend now, see ``kshot._engine.provenance.computed_on``.
    """
    then, on = state.get("versions", {}), state.get("backend", backend)  # the first checkpoints don't name it
    names = [name for name in then if name != "python" and then[name] != now.get(name)]
    differing = [f"{name} {then[name]} (now {now.get(name, 'not used')})" for name in names]
    differing += [f"the backend {on} (now {backend})"] if on != backend else []
    if differing:
        warnings.warn(
            f"{path} was written with {', '.join(differing)}; the training may not go on to the same numbers",
            stacklevel=3,
        )


def process_facts(engine: EngineView, optimizer: Outer, learner: nn.Module, tasks: TaskDistribution) -> dict[str, Any]:
    """Return the facts that all processes must have in common, for a call with this learner and these tasks."""
    parameters = {name: digest(tensor)[:12] for name, tensor in learner.state_dict().items()}
    evaluation, description = engine.evaluation_tasks, engine.backend.describe()
    facts = {
        "learner": {**describe(learner), "parameters": parameters},
        "tasks": {**describe(tasks), **_data(tasks)},
        "evaluation tasks": {**describe(evaluation), **_data(evaluation)},
        "engine": {
            "seed": engine.seed,
            "meta_batch": engine.meta_batch,
            "chunk": engine.chunk,
            "at": engine.iteration,
        },
        "optimizer": optimizer.to_dict(),
        "backend": {name: description.get(name) for name in ("name", "precision")},
        "versions": versions(learner, tasks, evaluation, engine.backend),
    }
    return dict(as_json(facts))


def _data(tasks: TaskDistribution) -> dict[str, Any]:
    facts = tasks_facts(tasks)
    return {name: facts[name] for name in ("spec", "seed", "data")}
