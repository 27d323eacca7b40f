"""Check, train, resume and evaluate a plan. The work itself is ``kshot.Engine``'s."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from kshot import registry
from kshot._engine.warm_start import Inherited
from kshot.runs.compare import Compared, compare, labels
from kshot.runs.recipe import EvaluateOptions, Table, overlay, put_flags
from kshot.cli.console import CHANGEABLE, say
from kshot.runs.launch import launch
from kshot.runs.plan import Parts, Plan, blame_own, build, build_backend, build_tasks, listed, record
from kshot._engine.engine import Engine
from kshot.errors import MisfitError, OptionError, RunError
from kshot.checks import check, mismatches
from kshot._engine.gradient import division
from kshot._engine.processes import everywhere, first_then_rest, from_first
from kshot.registry.options import validate
from kshot._engine.result import Result
from kshot._engine.run_folder import RunFolder, write_json
from kshot.spec import Needs
from kshot.runs.trained import INPUTS_FILE, save_inputs

ENGINE = ("meta_batch", "chunk")
"""Options of [engine] that the engine takes when it is made; the others are its ``train``'s."""


@frozen
class Outcome:
    """What a command has to tell.

    Attributes:
        results: one for each test.
        labels: what each test is called where there are several.
        wall: seconds of this process's training and evaluation.
        iterations: outer steps taken in all.
        rank: of this process; only 0 writes.
    """

    results: tuple[Result, ...]
    labels: tuple[str, ...]
    wall: Mapping[str, float]
    iterations: int
    run: Path | None
    rank: int

    @property
    def differences(self) -> tuple[Compared, ...]:
        """Of tests on the same episodes: each from the first."""
        return compare(self.results, self.labels)

    def to_dict(self, episodes: bool) -> dict[str, Any]:
        run = None if self.run is None else str(self.run)
        results = [result.to_dict(episodes) for result in self.results]
        plain: dict[str, Any] = {"run": run, "iterations": self.iterations, "wall": dict(self.wall), "results": results}
        if any(self.labels):
            plain["labels"] = list(self.labels)
        if self.differences:
            plain["differences"] = [compared.to_dict() for compared in self.differences]
        return plain


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
        config={"cli": record(plan, parts), "launch": launch()},
        **{name: value for name, value in plan.engine.items() if name in ENGINE},
    )
    for variant, test in zip(variants(plan, parts), tests, strict=True):
        check(variant, test, parts.backend, built_for=parts.training.spec)
    return engine


def variants(plan: Plan, parts: Parts) -> list[Any]:
    """The learner of each test: the trained one, or one like it with other options.

    Raises:
        OptionError: an option is wrong, or makes a learner that can't take the trained one's parameters.
    """
    made = []
    for options in plan.test_learners:
        learner = registry.rebuild(parts.learner, parts.training.spec, **options) if options else parts.learner
        if _shapes(learner) != _shapes(parts.learner):
            raise OptionError(
                f"test.learner: {listed(options)} makes a learner of other parameters than the trained one's, which it "
                "could not take; expected options that change how it adapts, not what it has learned"
            )
        made.append(learner)
    return made


def _shapes(learner: Any) -> dict[str, Any]:
    return {name: t.shape for name, t in learner.state_dict().items()}


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
        parts = build(plan, training, tests, build_backend(plan))
        pairs = zip(variants(plan, parts), tests, strict=True)
        found = [r for one, tasks in pairs for r in mismatches(one.needs, tasks.spec, built_for=training.spec)]
        found += mismatches(parts.learner.needs, training.spec)
        if found:
            return list(dict.fromkeys(found))
        engine = make_engine(plan, parts, run=None, hooks=())
        preflight(plan, parts, engine)
        if plan.init_from is not None:
            engine.init_from(plan.init_from)
    except MisfitError as error:  # of a learner in the learner, or of learner and engine
        return [str(error)]
    return []


def train(plan: Plan, run: Path | None, *, quiet: bool) -> Outcome:
    """Train from the beginning, and test. A launcher that restarts its processes finds its own run and goes on.

    Raises:
        RunError: the run folder is not empty; before any data are loaded.
        KshotError: see ``misfits`` and ``kshot.Engine``.
    """
    backend = build_backend(plan)
    world = backend.world
    begun = None if run is None else from_first(world, lambda: own_config(run))
    plan, training, tests = first_then_rest(world, lambda: build_tasks(plan, new=True))
    parts = build(plan, training, tests, backend)
    if run is not None and begun is not None:
        plan, parts = as_begun(plan, parts, run, begun)
    return begin(plan, parts, run, quiet=quiet, resuming=begun is not None)


def resume(run: Path, *, quiet: bool) -> Outcome:
    """Go on with a run from its newest checkpoint, and test; a finished one is tested only.

    Raises:
        RunError: there is no such run, or its checkpoint is unusable; nothing is overwritten.
    """
    plan = Plan.of_run(run, RunFolder.open(run).config)
    backend = build_backend(plan)
    plan, training, tests = first_then_rest(backend.world, lambda: build_tasks(plan))
    parts = build(plan, training, tests, backend)
    return begin(plan, parts, run, quiet=quiet, resuming=True)


def begin(plan: Plan, parts: Parts, run: Path | None, *, quiet: bool, resuming: bool) -> Outcome:
    """Make the engine, look at the data, take up what was done, and train to the end."""
    engine = make_engine(plan, parts, run=run, hooks=built_in(quiet))
    preflight(plan, parts, engine)
    inherited = inherit(plan, engine, run if resuming else None)
    done = engine.resume() if resuming else 0
    if not quiet:
        say(announcement(plan, parts, engine) + (f"; going on after iteration {done}" if resuming else ""))
        if inherited is not None:
            say(str(inherited))
    return finish(plan, parts, engine, run)


def inherit(plan: Plan, engine: Engine, resumed: Path | None) -> Inherited | None:
    """Begin from the parameters of the plan's ``init_from``; not where a resumed run has a checkpoint of its own.

    Raises:
        RunError: nothing in it agrees, or a resumed run, which never came to a checkpoint, had begun from others.
    """
    if plan.init_from is None:
        return None
    begun: Any = {}
    if resumed is not None:
        begun = from_first(engine.backend.world, lambda: _begun(resumed))
        if begun is None:
            return None
    inherited = engine.init_from(plan.init_from)
    if begun.get("digest", inherited.digest) != inherited.digest:
        raise everywhere(
            RunError(
                f"{resumed} began from {begun.get('checkpoint')}, but {plan.init_from} now holds other parameters; "
                "train anew, in another folder"
            )
        )
    return inherited


def _begun(run: Path) -> Any:
    """Where a run without a checkpoint began from, as its config says; None where it has a checkpoint to go on from."""
    folder = RunFolder.open(run)
    return None if folder.checkpoints() else folder.config.get("init_from", {})


def finish(plan: Plan, parts: Parts, engine: Engine, run: Path | None) -> Outcome:
    """Train to the end, test, write result.json; where nothing was left to train, an earlier one stays."""
    began = engine.iteration
    started = time.perf_counter()
    engine.train(**{name: value for name, value in plan.engine.items() if name not in ENGINE})
    if run is not None and engine.backend.world.rank == 0 and not (run / INPUTS_FILE).exists():
        save_inputs(run, parts.training)
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
) -> Outcome:
    started = time.perf_counter()
    tests = zip(parts.tests, plan.test_learners, strict=True)
    results = tuple(engine.evaluate(**plan.evaluate, tasks=tasks, learner_options=own or None) for tasks, own in tests)
    wall = {**wall, "evaluation": time.perf_counter() - started}
    names = labels(list(zip(plan.tests, plan.test_learners, strict=True)))
    return Outcome(results, names, wall, engine.iteration, run, parts.backend.world.rank)


def evaluate(run: Path, plan: Plan, *, quiet: bool) -> Outcome:
    """Test the newest checkpoint of a run (its best validated parameters, else its last); writes nothing.

    Raises:
        RunError: there is no checkpoint, or it is unusable.
    """
    if not RunFolder.open(run).checkpoints():
        raise RunError(f"{run} has no checkpoint yet; expected a trained run: go on with it: kshot resume {run}")
    backend = build_backend(plan)
    plan, training, tests = first_then_rest(backend.world, lambda: build_tasks(plan))
    parts = build(plan, training, tests, backend)
    engine = make_engine(plan, parts, run=run, hooks=() if quiet else ("progress",))
    for tasks in parts.tests:
        engine.enter(tasks, plan.evaluate.get("split", "test"), 1)
    engine.resume()
    if engine.best.parameters is not None:
        engine.learner.load_state_dict(engine.best.parameters)
    return evaluate_tests(plan, parts, engine, run, {})


def built_in(quiet: bool) -> tuple[str, ...]:
    return ("metrics",) if quiet else ("metrics", "progress")


def own_config(run: Path) -> Any:
    """The config of the run in this folder where this very launch began it; None where nobody began any.

    Raises:
        RunError: there is another's run in the folder, or anything else.
    """
    mine = launch()
    if mine is not None and (run / "config.json").is_file():
        config = RunFolder.open(run).config
        if config.get("launch") == mine:
            return config
    refuse_used(run)
    return None


def as_begun(plan: Plan, parts: Parts, run: Path, config: Mapping[str, Any]) -> tuple[Plan, Parts]:
    """A plan with the automatic choices that its run began with.

    Raises:
        RunError: the run was begun by another plan.
    """
    begun = Plan.of_run(run, config)
    now = json.loads(json.dumps(record(plan, parts), default=str))
    differing = [n for n, then in config["cli"].items() if n != "backend" and now.get(n) != then]
    if differing:
        lines = "\n".join(f"  - {n}: it has {config['cli'][n]}, this command {now.get(n)}" for n in differing)
        raise everywhere(RunError(f"{run} was begun by another command; choose another folder with --run:\n{lines}"))
    plan = evolve(plan, backend=begun.backend)
    return plan, evolve(parts, backend=build_backend(plan))


def refuse_used(run: Path) -> None:
    """Raises RunError where the run folder is not a new or empty one."""
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise RunError(
            f"{run} is not empty; expected a new or empty folder: choose another with --run, remove it, "
            f"or go on with it: kshot resume {run}"
        )


def announcement(plan: Plan, parts: Parts, engine: Engine) -> str:
    """What is trained on what, what of it is the learner's own choice, and how processes share the work."""
    own = f" (the learner's own {listed(plan.own)})" if plan.own else ""
    shared = division(parts.learner.needs, engine.meta_batch, parts.backend.world.size)
    return f"training {plan.learner['name']} on {plan.training['name']}{own}, {backend_text(parts.backend)}{shared}"


def backend_text(backend: Any) -> str:
    described = backend.describe()
    threads = f", {described['threads']} threads" if "threads" in described else ""
    return f"{described.get('name', 'backend')} in {described.get('precision', 'its own precision')}{threads}"


def changed_plan(run: Path, flags: Sequence[tuple[str, str]]) -> Plan:
    """The plan of a run with the changes of an evaluation; tests that it makes alike are one.

    Raises:
        RunError: there is no such run.
        OptionError: a section that an evaluation does not have, or a wrong option of it.
    """
    plan = Plan.of_run(run, RunFolder.open(run).config)
    changed: Table = {}
    put_flags(changed, flags, CHANGEABLE)
    tests: list[tuple[Table, Table]] = []
    for test, own in zip(plan.tests, plan.test_learners, strict=True):
        both = overlay(test, changed.get("tasks", {})), overlay(own, changed.get("learner", {}))
        if both not in tests:
            tests.append(both)
    given = {**plan.evaluate, **changed.get("evaluate", {})}
    return evolve(
        plan,
        tests=[test for test, _ in tests],
        test_learners=[own for _, own in tests],
        backend=overlay(plan.backend, changed.get("backend", {})),
        evaluate=validate(EvaluateOptions, given, who="evaluate"),
    )
