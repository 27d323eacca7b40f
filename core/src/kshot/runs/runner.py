"""Train, resume, evaluate and check a plan. The loops are in the engine."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from attrs import evolve

from kshot import registry
from kshot._engine.engine import Engine
from kshot._engine.gradient import division
from kshot._engine.processes import everywhere, first_then_rest, from_first
from kshot._engine.recording import RESULT_FILE
from kshot._engine.run_folder import CONFIG_FILE, RunFolder, refuse_used, run_path, write_json
from kshot._engine.run_lock import only_training
from kshot._engine.states import shapes
from kshot._engine.stored import fitting, mapping_of, plain
from kshot._engine.warm_start import Inherited
from kshot.checks import check, mismatches
from kshot.errors import MisfitError, OptionError, RunError
from kshot.registry.building import overlay
from kshot.registry.modules import importing
from kshot.runs.baselines import Baseline, baselines
from kshot.runs.comparison import labels
from kshot.runs.launch import launch
from kshot.runs.plan import (
    ADVICE,
    Parts,
    Plan,
    blame_own,
    build,
    build_backend,
    build_tasks,
    building,
    listed,
    obstacles,
    record,
    tell_limits,
)
from kshot.runs.recipe import Config, Table, attacks_of, evaluate_options
from kshot.runs.run import Run
from kshot.runs.small import cautions, with_early_stopping
from kshot.runs.views import lowered
from kshot.spec import Needs

log = logging.getLogger("kshot.runs")

ENGINE = ("meta_batch", "chunk")
"""Options of [engine] that ``Engine`` takes; the others are options of ``Engine.train``."""


def folder_of(config: Config) -> Path:
    """Return the run folder: as the user asked, or ``runs/LEARNER-TASKS-SEED``."""
    return run_path(config.run or f"runs/{config.learner['name']}-{config.tasks['name']}-{config.seed}")


def rebuilding(folder: Path, import_from: str | Path | None) -> AbstractContextManager[None]:
    """Let import paths in a run folder name only installed packages or ``import_from``, inside the block."""
    return importing(import_from, run=folder)


def train_plan(plan: Plan, run: Path | None, *, quiet: bool, hooks: Mapping[str, Any] | None = None) -> Run:
    """Train from the beginning, and test. If a launcher restarts its processes, they resume the run they began.

    Args:
        run: the folder to write to, or None.
        hooks: more hooks, as objects by name.

    Raises:
        RunError: the run folder is not empty; before any data are loaded.
        KshotError: see ``misfits`` and ``kshot.Engine``.
    """
    backend = build_backend(plan)
    world = backend.world
    begun = None if run is None else from_first(world, lambda: _own_config(run))
    wanted = plan
    plan, training, tests = first_then_rest(world, lambda: build_tasks(wanted, new=True))
    parts = build(plan, training, tests, backend)
    if "iterations" not in plan.engine and not parts.learner.state_dict():
        plan = evolve(plan, engine={**plan.engine, "iterations": 0})
        if not quiet:
            log.info("note: %s has nothing to learn on these inputs, so it is only tested", plan.learner["name"])
    if plan.engine.get("iterations") != 0:
        tell_limits(wanted, plan)
        plan = with_early_stopping(plan, parts, quiet=quiet)
    if run is not None and begun is not None:
        plan, parts = _as_begun(plan, parts, run, begun)
    return _begin(plan, parts, run, quiet=quiet, resuming=begun is not None, hooks=hooks or {})


def resume_run(folder: Path, backend_options: Table, *, quiet: bool, import_from: str | Path | None) -> Run:
    """Continue a run from its newest checkpoint, and test it; see ``kshot.runs.resume``."""
    with rebuilding(folder, import_from):
        plan = Plan.of_run(folder, RunFolder.open(folder).config)
        plan = evolve(plan, backend=overlay(plan.backend, backend_options))
        backend = build_backend(plan)
        plan, training, tests = first_then_rest(backend.world, lambda: build_tasks(plan))
        parts = build(plan, training, tests, backend)
        # The lock is taken before the checkpoint is read: another training might write a newer one meanwhile.
        with nullcontext() if backend.world.rank else only_training(folder):
            return _begin(plan, parts, folder, quiet=quiet, resuming=True, hooks={})


def evaluate_run(folder: Path, changes: Mapping[str, Table], *, quiet: bool, import_from: str | Path | None) -> Run:
    """Test a run with changed tables of options, by section; see ``kshot.runs.evaluate``."""
    with rebuilding(folder, import_from):
        run_folder = RunFolder.open(folder)
        plan = changed_plan(Plan.of_run(folder, run_folder.config), changes)
        if (checkpoint := run_folder.newest()) is None:
            raise RunError(f"{folder} has no checkpoint yet; expected a trained run: kshot resume {folder}")
        backend = build_backend(plan)
        plan, training, tests = first_then_rest(backend.world, lambda: build_tasks(plan))
        parts = build(plan, training, tests, backend)
        engine = make_engine(plan, parts, run=None, hooks={} if quiet else {"progress": registry.hook("progress")})
        for test in parts.tests:
            engine.enter(test, plan.evaluate.get("split", "test"), 1)
        engine.load(checkpoint)
        return _evaluate_tests(plan, parts, engine, folder, {})


def make_engine(plan: Plan, parts: Parts, *, run: Path | None, hooks: Mapping[str, Any]) -> Engine:
    """Make the engine of a plan; ``hooks`` are additional to those of the plan.

    Raises:
        MisfitError: the learner doesn't fit the training tasks, those of a test, or the backend.
    """
    preventing = obstacles(parts)
    engine = Engine(
        parts.learner,
        parts.training,
        optimizer=plan.optimizer,
        backend=parts.backend,
        hooks={**hooks, **parts.hooks},
        seed=plan.seed,
        run=run,
        validate_on=parts.tests[0],
        config={
            "plan": None if preventing else record(plan, parts),
            "obstacles": preventing,
            "launch": launch(),
        },
        **{name: value for name, value in plan.engine.items() if name in ENGINE},
    )
    for variant, test in zip(variants(plan, parts), parts.tests, strict=True):
        check(variant, test, parts.backend, built_for=parts.training.spec)
    return engine


def variants(plan: Plan, parts: Parts) -> list[Any]:
    """Return the learner of each test: the trained one, or one like it with other options.

    Raises:
        OptionError: an option is wrong, or makes a learner that can't take the trained one's parameters.
    """
    learners = []
    for options in plan.test_learners:
        learner = registry.rebuild(parts.learner, parts.training.spec, **options) if options else parts.learner
        if shapes(learner.state_dict()) != shapes(parts.learner.state_dict()):
            raise OptionError(
                f"test.learner: got {listed(options)}, which makes a learner with other parameters than the "
                "trained one; expected options that change how it adapts, not what it has learned"
            )
        learners.append(learner)
    return learners


def preflight(plan: Plan, parts: Parts, engine: Engine) -> None:
    """Sample from every split that will be used, so that bad data are found before any compute.

    Raises:
        DataError: an unknown split, too few classes or examples, malformed episodes.
        OptionError: sampling raised an error that is none of kshot, as for an example that fits into no memory.
    """
    for test, how in zip(parts.tests, plan.tests, strict=True):
        with building(f"tasks {how['name']!r}"):
            engine.enter(test, plan.evaluate.get("split", "test"), 1)
        for attack in attacks_of(plan.evaluate):
            if attack is not None:
                attack.check(test.spec)
    if plan.engine.get("iterations") == 0:  # the split to train on may be costly to load
        return
    with blame_own(plan), building(f"tasks {plan.training['name']!r}"):
        engine.enter(parts.training, plan.engine.get("split", "train"), engine.meta_batch)
    if plan.engine.get("validate_every") is not None:
        engine.enter(parts.tests[0], plan.engine.get("validation_split", "val"), 1)


def misfits(plan: Plan, training: Any, tests: Sequence[Any]) -> list[str]:
    """Return every reason why the learner does not fit its tasks; builds everything and computes nothing.

    Raises:
        KshotError: anything else that ``kshot train`` would say before its first step.
    """
    # By the class first, as an instance can't always be made for tasks that don't fit.
    needs = getattr(registry.load(str(plan.learner["name"]), "learners"), "needs", None)
    if isinstance(needs, Needs):
        reasons = [reason for tasks in (training, *tests) for reason in mismatches(needs, tasks.spec)]
        if reasons:
            return list(dict.fromkeys(reasons))
    try:
        parts = build(plan, training, tests, build_backend(plan))
        pairs = zip(variants(plan, parts), tests, strict=True)
        reasons = [r for one, tasks in pairs for r in mismatches(one.needs, tasks.spec, built_for=training.spec)]
        reasons += mismatches(parts.learner.needs, training.spec)
        if reasons:
            return list(dict.fromkeys(reasons))
        engine = make_engine(plan, parts, run=None, hooks={})
        preflight(plan, parts, engine)
        if plan.init_from is not None:
            engine.init_from(plan.init_from)
    except MisfitError as error:  # of a learner in the learner, or of learner and engine
        return [str(error)]
    return []


def _begin(plan: Plan, parts: Parts, run: Path | None, *, quiet: bool, resuming: bool, hooks: Mapping[str, Any]) -> Run:
    """Make the engine, check the data, load the state of a resumed run, and train to the end."""
    built_in = {name: registry.hook(name) for name in (("metrics",) if quiet else ("metrics", "progress"))}
    engine = make_engine(plan, parts, run=run, hooks={**built_in, **hooks})
    preflight(plan, parts, engine)
    inherited = _inherit(plan, engine, run if resuming else None)
    done = engine.resume() if resuming else 0
    if not quiet:
        where = f"; continuing from iteration {done}" if done else "; no checkpoint yet, so training starts again"
        log.info("%s%s", announcement(plan, parts, engine), where if resuming else "")
        if inherited is not None:
            log.info("%s", inherited)
    return _finish(plan, parts, engine, run, quiet=quiet)


def _inherit(plan: Plan, engine: Engine, resumed: Path | None) -> Inherited | None:
    """Start from the parameters of the plan's ``init_from``, unless a resumed run already has a checkpoint.

    Raises:
        RunError: nothing in it matches, or a resumed run, which never wrote a checkpoint, had begun from others.
    """
    if plan.init_from is None:
        return None
    begun: Any = {}
    if resumed is not None:
        begun = from_first(engine.backend.world, lambda: _begun_from(resumed))
        if begun is None:
            return None
    inherited = engine.init_from(plan.init_from)
    if begun.get("digest", inherited.digest) != inherited.digest:
        raise everywhere(
            RunError(
                f"{resumed} started from {begun.get('checkpoint')}, but {plan.init_from} now has other parameters; "
                "train again in another folder"
            )
        )
    return inherited


def _begun_from(run: Path) -> Any:
    """Return the ``init_from`` in the config of a run without a checkpoint; None if it has a checkpoint."""
    folder = RunFolder.open(run)
    if folder.checkpoints():
        return None
    begun = folder.config.get("init_from", {})
    fitting(begun, mapping_of(plain), run / CONFIG_FILE, "init_from", advice=ADVICE)
    return begun


def _finish(plan: Plan, parts: Parts, engine: Engine, run: Path | None, *, quiet: bool) -> Run:
    """Train to the end, test, and write result.json; if nothing was left to train, an earlier one is kept."""
    began = engine.iteration
    started = time.perf_counter()
    engine.train(**{name: value for name, value in plan.engine.items() if name not in ENGINE})
    trained = engine.iteration > began
    wall = {"training": time.perf_counter() - started} if trained else {}
    if not trained and not quiet:
        log.info("nothing was left to train after iteration %d; the run is only tested", engine.iteration)
    outcome = _evaluate_tests(plan, parts, engine, run, wall)
    if plan.evaluate.get("baselines", True):
        outcome = evolve(outcome, baselines=_baselines(plan, parts, outcome))
    path = None if run is None else run / RESULT_FILE
    if path is not None and outcome.rank == 0 and (trained or not path.exists()):
        write_json(path, {**outcome.to_dict(episodes=True), "trained_from": began})
    return outcome


def _baselines(plan: Plan, parts: Parts, outcome: Run) -> tuple[Baseline, ...]:
    """Return the baselines of each test, on the episodes of its result without an attack."""
    attacks = attacks_of(plan.evaluate)
    if None not in attacks:
        return ()
    first = range(attacks.index(None), len(outcome.results), len(attacks))
    results = {test: outcome.results[i] for test, i in enumerate(first)}
    return tuple(baselines(plan, parts, results, {test: outcome.labels[i] for test, i in enumerate(first)}))


def _evaluate_tests(plan: Plan, parts: Parts, engine: Engine, run: Path | None, wall: Mapping[str, float]) -> Run:
    """Evaluate every test of a plan, with each of its attacks."""
    started = time.perf_counter()
    options = {name: value for name, value in plan.evaluate.items() if name not in ("attack", "baselines")}
    tests = list(zip(parts.tests, plan.test_learners, strict=True))
    attacks = attacks_of(plan.evaluate)
    results = tuple(
        engine.evaluate(**options, attack=attack, tasks=tasks, learner_options=own or None, write=False)
        for tasks, own in tests
        for attack in attacks
    )
    wall = {**wall, "evaluation": time.perf_counter() - started}
    attacked = ["nothing" if attack is None else attack.on for attack in attacks]
    names = labels(
        [
            ({**test, "attack on": on}, own)
            for test, own in zip(plan.tests, plan.test_learners, strict=True)
            for on in attacked
        ]
    )
    warnings = [
        cautions(result, tests[i // len(attacks)][0]) if attacks[i % len(attacks)] is None else ""
        for i, result in enumerate(results)
    ]
    rank = parts.backend.world.rank
    return Run(results, names, wall, engine.iteration, run, rank, engine, cautions=tuple(warnings))


def _own_config(run: Path) -> Any:
    """Return the config of the run in this folder if this launch began it; None if the folder is new or empty.

    Raises:
        RunError: the folder has the run of another launch, or other files.
    """
    mine = launch()
    if mine is not None and (run / "config.json").is_file():
        config = RunFolder.open(run).config
        if config.get("launch") == mine:
            return config
    refuse_used(run)
    return None


def _as_begun(plan: Plan, parts: Parts, run: Path, config: Mapping[str, Any]) -> tuple[Plan, Parts]:
    """Return a plan with the automatic choices that its run began with.

    Raises:
        RunError: the run was begun by another plan.
    """
    begun = Plan.of_run(run, config)
    then = config.get("plan") or config["cli"]
    now = json.loads(json.dumps(record(plan, parts), default=str))
    differing = [name for name, value in then.items() if name != "backend" and now.get(name) != value]
    if differing:
        lines = "\n".join(f"  - {name}: the run has {then[name]}, this command {now.get(name)}" for name in differing)
        raise everywhere(RunError(f"{run} was begun by another command; choose another folder with --run:\n{lines}"))
    plan = evolve(plan, backend=begun.backend)
    return plan, evolve(parts, backend=build_backend(plan))


def announcement(plan: Plan, parts: Parts, engine: Engine) -> str:
    """Return a sentence: what is trained on which tasks, by whose choice, and how processes share the work."""
    own = f" (training defaults of the learner: {listed(plan.own)})" if plan.own else ""
    shared = division(parts.learner.needs, engine.meta_batch, parts.backend.world.size)
    return f"training {plan.learner['name']} on {plan.training['name']}{own}, {backend_text(parts.backend)}{shared}"


def backend_text(backend: Any) -> str:
    """Return a description of a backend, such as ``cpu in bfloat16, 2 threads``."""
    described = backend.describe()
    threads = f", {described['threads']} threads" if "threads" in described else ""
    return f"{described.get('name', 'backend')} in {described.get('precision', 'its own precision')}{threads}"


def changed_plan(plan: Plan, changes: Mapping[str, Table]) -> Plan:
    """Return a plan with the changes of an evaluation and without hooks; tests that become equal are merged.

    Raises:
        OptionError: an option is wrong.
    """
    tests: list[tuple[Table, Table]] = []
    for test, own in zip(plan.tests, plan.test_learners, strict=True):
        both = overlay(test, changes.get("tasks", {})), overlay(own, changes.get("learner", {}))
        if both not in tests:
            tests.append(both)
    given = overlay(plan.evaluate, changes.get("evaluate", {}))
    return evolve(
        plan,
        tests=[lowered(test) for test, _ in tests],
        test_learners=[own for _, own in tests],
        backend=overlay(plan.backend, changes.get("backend", {})),
        evaluate=evaluate_options(given),
        hooks={},  # hooks may write files, which an evaluation does not
    )
