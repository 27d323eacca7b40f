"""Record in the run folder how to build the run again, and its results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kshot._engine.cpu import Cpu
from kshot._engine.optimizer import Outer
from kshot._engine.provenance import as_json, describe, initial_seed, versions
from kshot._engine.result import Result
from kshot._engine.run_folder import RunFolder, write_json
from kshot.protocols import EngineView
from kshot.registry import built, load
from kshot.registry.options import options_of

RESULT_FILE = "result.json"

BUILT_IN_HOOKS = ("metrics", "progress")


def config_of(
    engine: EngineView, hooks: Mapping[str, Any], optimizer: Outer, training: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the content of config.json: the components, every automatic choice, and how to build them again.

    Args:
        hooks: the hooks by name.
        training: the options of ``Engine.train``.
    """
    learner, tasks, backend = engine.learner, engine.tasks, engine.backend
    obstacles = [text for name, part in parts_of(engine).items() for text in obstacles_of(name, part)]
    return {
        "kshot": versions(learner, tasks, backend),
        "identity": engine.identity,
        "learner": describe(learner),
        "tasks": describe(tasks),
        "backend": dict(backend.describe()),
        "optimizer": optimizer.to_dict(),
        "meta_batch": engine.meta_batch,
        "chunk": engine.chunk,
        "processes": backend.world.size,
        "seed": engine.seed,
        "learner_seed": initial_seed(learner),
        "train": dict(training),
        "plan": None if obstacles else plan_of(engine, hooks, optimizer, training),
        "obstacles": obstacles,
    }


def parts_of(engine: EngineView) -> dict[str, Any]:
    """Return the components that are needed to build an engine again, by their names in messages."""
    return {
        "learner": engine.learner,
        "tasks": engine.tasks,
        "evaluation tasks": engine.evaluation_tasks,
        "backend": engine.backend,
    }


def plan_of(
    engine: EngineView, hooks: Mapping[str, Any], optimizer: Outer, training: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the plan that builds this training again: the fields of ``kshot.runs.plan.Plan``, as plain values.

    Hooks that were not built by name are left out: a run can be used without them.
    """
    plain = {name: _plain(component) for name, component in parts_of(engine).items()}
    built_hooks = {name: how for name, hook in hooks.items() if (how := built(hook)) and how.portable}
    chunk = engine.chunk if engine.chunk < engine.meta_batch else None
    plan = {
        "learner": plain["learner"],
        "training": plain["tasks"],
        "tests": [plain["evaluation tasks"]],
        "test_learners": [{}],
        "own": {},
        "optimizer": optimizer.to_dict(),
        "engine": {"meta_batch": engine.meta_batch, "chunk": chunk, **training},
        "backend": settled(plain["backend"], engine.backend.describe()),
        "evaluate": {},
        "hooks": {name: dict(how.options) for name, how in built_hooks.items() if name not in BUILT_IN_HOOKS},
        "seed": engine.seed,
        "learner_seed": initial_seed(engine.learner),
        "about": {},
        "init_from": None,
    }
    return dict(as_json(plan))


def obstacles_of(name: str, component: Any) -> list[str]:
    """Return a sentence for everything that keeps a component from being built again from plain values."""
    how = built(component)
    if how is None:
        if type(component) is Cpu:  # its description contains all its options
            return []
        kind = {"learner": "kshot.learner(NAME, tasks.spec, ...)", "backend": "kshot.backend(NAME, ...)"}
        way_out = kind.get(name, "kshot.tasks(NAME, ...)")
        return [
            f"{name}: got a {type(component).__name__} object that was not built by name; build it by {way_out}, or "
            "register its class (kshot.register) or make it a plugin first"
        ]
    return [
        f"{name}.{option}: got an object, expected a value that can be written down; name a network by its import "
        f'path, {option.rpartition(".")[2]}="mypackage.nets:resnet12", and a component by its plugin\'s name'
        for option in how.obstacles
    ]


def _plain(component: Any) -> dict[str, Any]:
    how = built(component)
    return how.plain() if how is not None else {"name": str(component.describe()["name"])}


def settled(backend: Mapping[str, Any], description: Mapping[str, Any]) -> dict[str, Any]:
    """Return a backend's options with its automatic choices filled in, also those of a backend among its options."""
    accepted = {option.name for option in options_of(load(str(backend["name"]), "backends"))}
    options = dict(backend)
    for name in accepted & description.keys():
        value, inner = description[name], backend.get(name)
        if isinstance(value, Mapping) and "name" in value:
            value = settled(dict(inner) if isinstance(inner, Mapping) else {"name": value["name"]}, value)
        options[name] = value
    return options


class Results:
    """Collect the results of the learner's present parameters, and write them into the run folder."""

    def __init__(self) -> None:
        self._results: list[Result] = []

    def clear(self) -> None:
        """Forget all results, because the parameters have changed."""
        self._results = []

    def add(self, result: Result, folder: RunFolder | None, iterations: int) -> None:
        """Add a result, replacing one of the same evaluation, and write all into ``result.json``, atomically.

        Args:
            folder: the run folder; None to write nothing, as on every rank but 0.
            iterations: number of outer steps taken in all.

        Raises:
            RunError: the file can't be written.
        """
        self._results = [other for other in self._results if not _same_evaluation(other, result)] + [result]
        if folder is not None:
            plain = [result.to_dict() for result in self._results]
            write_json(folder.path / RESULT_FILE, {"run": str(folder.path), "iterations": iterations, "results": plain})


def _same_evaluation(a: Result, b: Result) -> bool:
    names = ("learner", "kind", "split", "tasks_seed", "shape", "tasks", "data", "iteration", "perturbed", "attack")
    return a.disjoint == b.disjoint and all(
        json.dumps(getattr(a, n), default=str) == json.dumps(getattr(b, n), default=str) for n in names
    )
