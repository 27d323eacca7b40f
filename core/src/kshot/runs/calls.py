"""Train, resume and evaluate runs from Python, by the same code as the commands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kshot._engine.hook_checks import named_hooks
from kshot._engine.run_folder import run_path
from kshot.errors import OptionError
from kshot.registry.modules import importing
from kshot.runs.cross_validation import CrossValidation, folded
from kshot.runs.plan import Plan
from kshot.runs.recipe import configure, layered, naming
from kshot.runs.run import Run
from kshot.runs.runner import evaluate_run, folder_of, resume_run, train_plan

Component = str | Mapping[str, Any]
"""A plugin's name, or ``{"name": ..., **options}``."""


def train(
    learner: Component | None = None,
    tasks: Component | None = None,
    *,
    recipe: str | Path | None = None,
    training: Mapping[str, Any] | None = None,
    optimizer: Component | None = None,
    engine: Mapping[str, Any] | None = None,
    backend: Component | None = None,
    evaluate: Mapping[str, Any] | None = None,
    test: Sequence[Mapping[str, Any]] | None = None,
    hooks: Iterable[Any] = (),
    iterations: int | None = None,
    seed: int | None = None,
    learner_seed: int | None = None,
    init_from: str | Path | None = None,
    fold: tuple[int, int] | None = None,
    run: str | Path | None = None,
    no_run: bool = False,
    quiet: bool = False,
    import_from: str | Path | None = None,
) -> Run:
    """Train a learner on tasks and test it, as ``kshot train LEARNER TASKS`` does, with the same resulting parameters.

    The method trains with its own defaults (optimizer, meta-batch, iterations, and options of the training tasks, such
    as 30-way), as far as the arguments say nothing else. It is tested on the tasks as they were asked for.

    Args:
        learner, tasks: a plugin's name, or ``{"name": ..., **options}``.
        recipe: path of a TOML file with options; the other arguments override it.
        training: options of the tasks that differ while training.
        optimizer, engine, evaluate: options, as in the tables of a recipe: ``{"lr": 1e-3}``,
            ``{"validate_every": 500}``, ``{"episodes": 1000}``.
        backend: where to compute; by default a device that is present and has a plugin, else the CPU.
        test: for each test the options of its tasks, and under ``learner`` the options of the learner in this test.
        hooks: names of hook plugins, or objects.
        iterations: number of outer steps; short for ``engine={"iterations": ...}``.
        seed: seed of the learner's initialisation and of training; 0 by default.
        learner_seed: seed of the initialisation, if it is to differ from ``seed``.
        init_from: a run or checkpoint whose parameters training starts from.
        fold: the number i of a division of a folder and the number n of all, see ``train_splits``.
        run: the folder to write to; ``runs/LEARNER-TASKS-SEED`` by default.
        no_run: write no run folder.
        quiet: print neither progress nor an announcement.
        import_from: an additional folder to import networks from that are named by an import path.

    Returns:
        The run. ``resume``, ``evaluate`` and ``kshot.Trained.of_run`` take the path of its folder.

    Raises:
        OptionError: an option is unknown or has a wrong value.
        PluginError: a plugin is missing or can't be used.
        MisfitError: learner and tasks don't fit.
        DataError: the data are malformed or have too few classes or examples.
        RunError: the run folder is not empty, or can't be written.
        TrainingError: a metric or a parameter is not finite.

    Example:
        >>> import kshot
        >>> from kshot.testing import sample_learner, sample_tasks
        >>> learner = kshot.register(sample_learner.NearestMean, name="sample-learner")
        >>> tasks = kshot.register(sample_tasks.classification, name="sample-tasks", group="tasks")
        >>> run = kshot.runs.train("sample-learner", "sample-tasks", iterations=2, evaluate={"episodes": 5}, quiet=True)
        >>> run.result.episodes, run.folder.as_posix()
        (5, 'runs/sample-learner-sample-tasks-0')
    """
    if run is not None and no_run:
        raise OptionError("train: got run and no_run=True, expected one of them")
    given = {
        "learner": learner,
        "tasks": tasks,
        "training": training,
        "optimizer": optimizer,
        "engine": engine,
        "backend": backend,
        "evaluate": evaluate,
        "test": test,
        "seed": seed,
        "learner_seed": learner_seed,
        "init_from": None if init_from is None else str(init_from),
        "run": None if run is None else str(run),
    }
    tables = layered(recipe, given, where="train")
    if iterations is not None:
        tables["engine"] = {**tables.get("engine", {}), "iterations": iterations}
    named = named_hooks(hooks)
    names = [hook for _, hook in named if isinstance(hook, str)]
    objects = {name: hook for name, hook in named if not isinstance(hook, str)}
    with naming(recipe):
        config = configure(tables, hooks=names)
        config = config if fold is None else folded(config, fold)
    with importing(import_from):
        return train_plan(Plan.of(config), None if no_run else folder_of(config), quiet=quiet, hooks=objects)


def train_seeds(*args: Any, seeds: Sequence[int], **options: Any) -> tuple[Run, ...]:
    """Call ``train`` once for each seed, with the same arguments and a separate run folder each.

    Args:
        args, options: arguments of ``train``; ``run``, if given, must contain ``{seed}``.
        seeds: at least one seed.

    Returns:
        The runs, in the order of ``seeds``.

    Raises:
        OptionError: seeds repeat, or ``run`` is the same folder for several seeds.

    Example:
        >>> import kshot
        >>> from kshot.testing import sample_learner, sample_tasks
        >>> _ = kshot.register(sample_learner.NearestMean, name="sample-learner")
        >>> _ = kshot.register(sample_tasks.classification, name="sample-tasks", group="tasks")
        >>> small = {"iterations": 2, "evaluate": {"episodes": 5}, "no_run": True, "quiet": True}
        >>> runs = train_seeds("sample-learner", "sample-tasks", seeds=[0, 1], **small)
        >>> [run.result.seed for run in runs]
        [0, 1]
    """
    run = options.get("run")
    check_seeds(seeds, [] if run is None else [Path(str(run).replace("{seed}", str(seed))) for seed in seeds])
    return tuple(train(*args, seed=seed, **options) for seed in seeds)


def train_splits(*args: Any, splits: int, **options: Any) -> CrossValidation:
    """Call ``train`` on several divisions of a folder, each with other test classes: cross-validation over classes.

    If the share of the test is 1 / splits, each class is a test class once. Otherwise the test classes of the divisions
    are evenly spread over the classes.

    Args:
        args, options: arguments of ``train``; ``run``, if given, must contain ``{split}``.
        splits: number of divisions, at least 2.

    Raises:
        OptionError: there are fewer than two divisions, or the tasks can't be divided.

    Example:
        >>> train_splits("protonet", {"name": "imagefolder", "root": "pictures"}, splits=5)  # doctest: +SKIP
        <CrossValidation: 83.10 ± 4.20 % accuracy over 5 splits of the classes (95 % t interval)>
    """
    if splits < 2:
        raise OptionError(f"splits: got {splits}, expected at least 2 divisions")
    return CrossValidation(tuple(train(*args, fold=(i, splits), **options) for i in range(splits)))


def check_seeds(seeds: Sequence[int], folders: Sequence[Path]) -> None:
    """Raise OptionError if seeds repeat, or if the runs of two seeds would be written to the same folder."""
    if not seeds or len(set(seeds)) != len(seeds):
        raise OptionError(f"seeds: got {list(seeds)}, expected different numbers, at least one")
    if len(set(folders)) != len(folders):
        raise OptionError(
            f"run: got {folders[0]} for {len(seeds)} seeds, expected a path with {{seed}} in it: {folders[0]}-{{seed}}"
        )


def resume(
    run: str | Path,
    *,
    backend: Mapping[str, Any] | None = None,
    quiet: bool = False,
    import_from: str | Path | None = None,
) -> Run:
    """Continue an interrupted training from its newest checkpoint, and test it; a finished training is only tested.

    Args:
        run: a run folder, made by a command or in Python.
        backend: options that differ from the run's: ``backend={"name": "cpu"}`` if its device is missing here.
        quiet, import_from: see ``train``.

    Raises:
        RunError: the run does not exist, can't be built again, or its checkpoint is unusable; nothing is overwritten.

    Example:
        >>> import kshot
        >>> from kshot.testing import sample_learner, sample_tasks
        >>> _ = kshot.register(sample_learner.NearestMean, name="sample-learner")
        >>> _ = kshot.register(sample_tasks.classification, name="sample-tasks", group="tasks")
        >>> small = {"iterations": 2, "evaluate": {"episodes": 5}, "quiet": True}
        >>> run = kshot.runs.train("sample-learner", "sample-tasks", run="runs/to-resume", **small)
        >>> resume("runs/to-resume", quiet=True).result.mean == run.result.mean
        True
    """
    return resume_run(run_path(run), dict(backend or {}), quiet=quiet, import_from=import_from)


def evaluate(
    run: str | Path,
    *,
    tasks: Mapping[str, Any] | None = None,
    learner: Mapping[str, Any] | None = None,
    backend: Mapping[str, Any] | None = None,
    evaluate: Mapping[str, Any] | None = None,
    quiet: bool = False,
    import_from: str | Path | None = None,
) -> Run:
    """Test a run again, with other options if wanted; the run folder is not changed.

    The parameters are the best validated ones of its newest checkpoint, or the last if it was not validated.

    Args:
        run: a run folder, made by a command or in Python.
        tasks, learner, backend: options that differ from the run's: ``tasks={"way": 20}``.
        evaluate: options of the evaluation, such as ``{"episodes": 1000}``.
        quiet, import_from: see ``train``.

    Raises:
        RunError: the run does not exist, has no checkpoint, or can't be built again.
        OptionError: an option is unknown or has a wrong value.

    Example:
        >>> import kshot
        >>> from kshot.testing import sample_learner, sample_tasks
        >>> _ = kshot.register(sample_learner.NearestMean, name="sample-learner")
        >>> _ = kshot.register(sample_tasks.classification, name="sample-tasks", group="tasks")
        >>> _ = kshot.runs.train("sample-learner", "sample-tasks", run="runs/to-evaluate", iterations=2, quiet=True)
        >>> run = kshot.runs.evaluate("runs/to-evaluate", tasks={"way": 5}, evaluate={"episodes": 5}, quiet=True)
        >>> run.result.shape["way"]
        5
    """
    changes = {"tasks": tasks, "learner": learner, "backend": backend, "evaluate": evaluate}
    given = {name: dict(options) for name, options in changes.items() if options is not None}
    return evaluate_run(run_path(run), given, quiet=quiet, import_from=import_from)
