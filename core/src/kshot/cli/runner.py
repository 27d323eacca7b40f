"""Check, train, resume and evaluate a plan. The work itself is ``kshot.Engine``'s."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from kshot import registry
from kshot.cli.config import EvaluateOptions, Table, overlay, put_flags
from kshot.cli.frame import CHANGEABLE, say
from kshot.cli.plan import Parts, Plan, blame_own, build, build_tasks, listed, record
from kshot.engine import Engine
from kshot.errors import MisfitError, RunError
from kshot.fit import check, mismatches
from kshot.registry.options import validate
from kshot.result import Result
from kshot.run import RunFolder, write_json
from kshot.spec import Needs

ENGINE = ("meta_batch", "chunk")
"""Options of [engine] that the engine takes when it is made; the others are its ``train``'s."""


@frozen
class Outcome:
    """What a command has to tell.

    Attributes:
        results: one for each test.
        wall: seconds of this process's training and evaluation.
        iterations: outer steps taken in all.
        rank: of this process; only 0 speaks.
    """

    results: tuple[Result, ...]
    wall: Mapping[str, float]
    iterations: int
    run: Path | None
    rank: int

    def to_dict(self, episodes: bool) -> dict[str, Any]:
        run = None if self.run is None else str(self.run)
        results = [result.to_dict(episodes) for result in self.results]
        return {"run": run, "iterations": self.iterations, "wall": dict(self.wall), "results": results}


def make_engine(plan: Plan, parts: Parts, *, run: Path | None, hooks: Sequence[str]) -> Engine:
    """The engine of a plan; ``hooks`` are the built-in ones wanted.

    Raises:
        MisfitError: the learner doesn't fit the training tasks, those of a test, or the backend.
    """
    tests = parts.tests
    engine = Engine(
        parts.learner,
        parts.training,
        optimizer=plan.optimizer,
        backend=parts.backend,
        hooks={**{name: registry.hook(name) for name in hooks}, **parts.hooks},
        seed=plan.seed,
        run=run,
        validate_on=tests[0],
        config={"cli": record(plan, parts)},
        **{name: value for name, value in plan.engine.items() if name in ENGINE},
    )
    for test in tests[1:]:
        check(parts.learner, test, parts.backend, built_for=parts.training.spec)
    return engine


def preflight(plan: Plan, parts: Parts, engine: Engine) -> None:
    """Sample from every split that will be used, so that bad data show before any compute.

    Raises:
        DataError: an unknown split, too few classes or examples, malformed episodes.
    """
    for test in parts.tests:
        engine.enter(test, plan.evaluate.get("split", "test"), 1)
    with blame_own(plan):
        engine.enter(parts.training, plan.engine.get("split", "train"), engine.meta_batch)
    if plan.engine.get("validate_every") is not None:
        engine.enter(parts.tests[0], plan.engine.get("validation_split", "val"), 1)


def misfits(plan: Plan, training: Any, tests: Sequence[Any]) -> list[str]:
    """Why the learner does not fit its tasks, every reason; builds everything and computes nothing.

    Raises:
        KshotError: anything else that ``kshot train`` would say before its first step.
    """
    needs = getattr(registry.load(str(plan.learner["name"]), "learners"), "needs", None)
    if isinstance(needs, Needs):
        found = [reason for tasks in (training, *tests) for reason in mismatches(needs, tasks.spec)]
        if found:
            return list(dict.fromkeys(found))
    try:
        parts = build(plan, training, tests)
        built_for = training.spec
        found = [r for tasks in tests for r in mismatches(parts.learner.needs, tasks.spec, built_for=built_for)]
        found += mismatches(parts.learner.needs, training.spec)
        if found:
            return list(dict.fromkeys(found))
        preflight(plan, parts, make_engine(plan, parts, run=None, hooks=()))
    except MisfitError as error:  # of a learner in the learner, or of learner and engine
        return [str(error)]
    return []


def train(plan: Plan, run: Path | None, *, quiet: bool) -> Outcome:
    """Train from the beginning, and test.

    Raises:
        RunError: the run folder is not empty; before anything else.
        KshotError: see ``misfits`` and ``kshot.Engine``.
    """
    if run is not None:
        refuse_used(run)
    parts = build(plan, *build_tasks(plan))
    engine = make_engine(plan, parts, run=run, hooks=built_in(quiet))
    preflight(plan, parts, engine)
    if not quiet and parts.backend.world.rank == 0:
        say(announcement(plan, parts))
    return finish(plan, parts, engine, run)


def resume(run: Path, *, quiet: bool) -> Outcome:
    """Go on with a run from its newest checkpoint, and test; a finished one is tested only.

    Raises:
        RunError: there is no such run, or its checkpoint is unusable; nothing is overwritten.
    """
    plan = Plan.of_run(run, RunFolder.open(run).config)
    parts = build(plan, *build_tasks(plan))
    engine = make_engine(plan, parts, run=run, hooks=built_in(quiet))
    preflight(plan, parts, engine)
    done = engine.resume()
    if not quiet and parts.backend.world.rank == 0:
        say(f"{announcement(plan, parts)}; going on after iteration {done}")
    return finish(plan, parts, engine, run)


def finish(plan: Plan, parts: Parts, engine: Engine, run: Path | None) -> Outcome:
    """Train to the end, test, write result.json; where nothing was left to train, an earlier one stays."""
    began = engine.iteration
    started = time.perf_counter()
    engine.train(**{name: value for name, value in plan.engine.items() if name not in ENGINE})
    outcome = evaluate_tests(plan, parts, engine, run, {"training": time.perf_counter() - started})
    path = None if run is None else run / "result.json"
    if path is not None and outcome.rank == 0 and (engine.iteration > began or not path.exists()):
        write_json(path, {**outcome.to_dict(episodes=True), "trained_from": began})
    return outcome


def evaluate_tests(
    plan: Plan,
    parts: Parts,
    engine: Engine,
    run: Path | None,
    wall: Mapping[str, float],
    learner_options: Mapping[str, Any] | None = None,
) -> Outcome:
    started = time.perf_counter()
    options = {**plan.evaluate, "learner_options": learner_options}
    results = tuple(engine.evaluate(**options, tasks=tasks) for tasks in parts.tests)
    wall = {**wall, "evaluation": time.perf_counter() - started}
    return Outcome(results, wall, engine.iteration, run, parts.backend.world.rank)


def evaluate(run: Path, plan: Plan, learner_options: Mapping[str, Any], *, quiet: bool) -> Outcome:
    """Test the newest checkpoint of a run (its best validated parameters, else its last); writes nothing.

    Raises:
        RunError: there is no checkpoint, or it is unusable.
    """
    if not RunFolder.open(run).checkpoints():
        raise RunError(f"{run} has no checkpoint yet; expected a trained run: go on with it: kshot resume {run}")
    parts = build(plan, *build_tasks(plan))
    engine = make_engine(plan, parts, run=run, hooks=() if quiet else ("progress",))
    for tasks in parts.tests:
        engine.enter(tasks, plan.evaluate.get("split", "test"), 1)
    engine.resume()
    if engine.best.parameters is not None:
        engine.learner.load_state_dict(engine.best.parameters)
    return evaluate_tests(plan, parts, engine, run, {}, learner_options or None)


def built_in(quiet: bool) -> tuple[str, ...]:
    return ("metrics",) if quiet else ("metrics", "progress")


def refuse_used(run: Path) -> None:
    """Raises RunError where the run folder is not a new or empty one."""
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise RunError(
            f"{run} is not empty; expected a new or empty folder: choose another with --run, remove it, "
            f"or go on with it: kshot resume {run}"
        )


def announcement(plan: Plan, parts: Parts) -> str:
    """What is trained on what, and what of it is the learner's own choice."""
    own = f" (the learner's own {listed(plan.own)})" if plan.own else ""
    return f"training {plan.learner['name']} on {plan.training['name']}{own}, {backend_text(parts.backend)}"


def backend_text(backend: Any) -> str:
    described = backend.describe()
    threads = f", {described['threads']} threads" if "threads" in described else ""
    return f"{described.get('name', 'backend')} in {described.get('precision', 'its own precision')}{threads}"


def changed_plan(run: Path, flags: Sequence[tuple[str, str]]) -> tuple[Plan, Table]:
    """The plan of a run with the changes of an evaluation, and the learner's changed options.

    Raises:
        RunError: there is no such run.
        OptionError: a section that an evaluation does not have, or a wrong option of it.
    """
    plan = Plan.of_run(run, RunFolder.open(run).config)
    changed: Table = {}
    put_flags(changed, flags, CHANGEABLE)
    tests: list[Table] = []
    for test in plan.tests:
        if (options := overlay(test, changed.get("tasks", {}))) not in tests:
            tests.append(options)
    given = {**plan.evaluate, **changed.get("evaluate", {})}
    plan = evolve(
        plan,
        tests=tests,
        backend=overlay(plan.backend, changed.get("backend", {})),
        evaluate=validate(EvaluateOptions, given, who="evaluate"),
    )
    return plan, changed.get("learner", {})
