"""Train and evaluate a learner on episodes; the loops are in ``training_loop`` and ``evaluation``.

If several processes train together, each has an engine, and all call the same methods in the same order. Every rank
takes its share of the episodes. Only rank 0 has hooks and a run folder, and reads files."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from kshot import registry
from kshot._engine.attack import Attack
from kshot._engine.checkpoint_state import check_loadable, check_resumable
from kshot._engine.cpu import OneProcess
from kshot._engine.disjoint import disjoint as disjointly
from kshot._engine.door import Door, check_batching, expect_tasks
from kshot._engine.evaluation import Perturb, batches_of, evaluated, result_of, with_options
from kshot._engine.hook_calls import Hooks
from kshot._engine.identity import identity_of, process_facts, warn_of_changes
from kshot._engine.inputs import save_inputs
from kshot._engine.interruption import Stop
from kshot._engine.modes import to_evaluation
from kshot._engine.optimizer import Outer, outer_of
from kshot._engine.outer_step import OuterStep
from kshot._engine.parameters import Best, Parameters
from kshot._engine.processes import agree, from_first
from kshot._engine.provenance import computed_on, initial_seed, versions
from kshot._engine.recording import Results, config_of
from kshot._engine.result import Result
from kshot._engine.run_folder import RunFolder, load_checkpoint, run_path, save_checkpoint
from kshot._engine.run_lock import only_training
from kshot._engine.training_loop import TrainingLoop
from kshot._engine.training_options import TrainingOptions, check_total, counts
from kshot._engine.warm_start import Inherited, inherit, trained
from kshot.checks import check
from kshot.episode import Episode
from kshot.errors import RunError
from kshot.protocols import Backend, TaskDistribution
from kshot.randomness import as_seed
from kshot.spec import Training


class Engine:
    """Train a learner on tasks and evaluate it, with every component given as an object.

    ``kshot.runs.train`` builds the components by name and does more. An engine differs from it in two points:

    - It trains on ``tasks`` as they are. The task options that a method prefers while training
      (``learner.training_defaults.tasks``, such as 30-way with 1 query) are not applied; to train that way, pass such
      tasks, and the tasks of the test as ``validate_on``. The method's other training defaults are applied.
    - It does not evaluate after training, and writes to no folder unless given one.

    **Which parameters the learner has.** Between two calls it has the best validated parameters, or those of the last
    outer step if there was no validation. ``evaluate`` scores these and reports their iteration. A second ``train``, or
    one after ``resume``, continues from the last outer step as without a pause; ``save`` stores both. If you load other
    parameters into the learner yourself, ``train`` continues from those.

    Args:
        learner: the learner, see ``kshot.protocols.Learner``.
        tasks: the tasks to train on.
        meta_batch: tasks per outer step (B); by default the learner's own (``learner.training_defaults``), else 1.
        chunk: largest number of tasks computed at once. The gradients of the chunks add up to that of the meta-batch.
        optimizer: an ``Outer``, its fields, a name, or None for the learner's own.
        backend: where to compute; None is as ``kshot.backend()`` chooses: a device with a plugin, else the CPU.
        hooks: hook plugins, by name or as objects; {name: object} gives names to objects. Only rank 0 has them.
        seed: seed of dropout and the like while training; None for the seed of the learner's initialisation, or 0.
        run: a folder to write to; None writes nothing. If all components were built by name, ``kshot predict``,
            ``kshot evaluate`` and ``kshot resume`` can use the folder; else its config.json lists the obstacles.
        validate_on: tasks for validation and evaluation, if they differ from the training tasks (60-way to 5-way).
        config: additional values to record in the run folder's config.json.

    Raises:
        MisfitError, OptionError: learner and tasks don't fit (every reason is listed), or an option is wrong.

    Example:
        >>> from kshot.testing import sample_learner, sample_tasks
        >>> tasks = sample_tasks.classification()
        >>> engine = Engine(sample_learner.NearestMean(tasks.spec), tasks)
        >>> _ = engine.train(iterations=3)
        >>> engine.evaluate(episodes=20).episodes
        20
    """

    def __init__(
        self,
        learner: Any,
        tasks: TaskDistribution,
        *,
        meta_batch: int | None = None,
        chunk: int | None = None,
        optimizer: Outer | Mapping[str, Any] | str | None = None,
        backend: Backend | None = None,
        hooks: Sequence[Any] | Mapping[str, Any] = ("metrics",),
        seed: int | None = None,
        run: str | Path | None = None,
        validate_on: TaskDistribution | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.training: Training = getattr(learner, "training_defaults", Training())
        meta_batch, chunk = counts("Engine", meta_batch=meta_batch, chunk=chunk)
        self.meta_batch = self.training.meta_batch if meta_batch is None else meta_batch
        self.chunk = min(chunk or self.meta_batch, self.meta_batch)
        self.backend: Backend = registry.backend() if backend is None else backend
        self.tasks = expect_tasks(tasks)
        self.evaluation_tasks = tasks if validate_on is None else expect_tasks(validate_on)
        check(learner, tasks, self.backend)
        check(learner, self.evaluation_tasks, self.backend, built_for=tasks.spec)
        check_batching(learner, tasks.spec, self.meta_batch, self.chunk)
        self.learner: Any = self.backend.place(learner)
        to_evaluation(self.learner)
        self.outer = outer_of(optimizer, self.training)
        self._step = OuterStep(self.learner, self.outer, self.backend)
        self.parameters = self._step.parameters
        self.seed = (initial_seed(learner) or 0) if seed is None else as_seed(seed, "Engine")
        self.iteration = 0
        self.folder: RunFolder | None = None
        self._parameters = Parameters(self.learner)
        self._iterations: int | None = None  # the total that the last call of train asked for
        self._evaluates_only, self._results, self._door = False, Results(), Door()
        self._hooks = Hooks(() if self.backend.world.rank else hooks, self)
        self._loop = TrainingLoop(self, self._step, self._parameters, self._hooks, self._results)
        self._run, self._config = None if run is None else run_path(run), dict(config or {})

    def train(
        self,
        iterations: int | None = None,
        *,
        split: str = "train",
        validate_every: int | None = None,
        validation_episodes: int = 200,
        validation_split: str = "val",
        patience: int | None = None,
        stop_loss: float | None = None,
        checkpoint_every: int = 500,
        checkpoint_seconds: float | None = 60.0,
        keep: int = 2,
    ) -> Mapping[str, float]:
        """Take outer steps until ``iterations`` have been taken in all.

        Training continues from the last outer step, also after an earlier call or ``resume``: ``train(8); train(16)``
        gives the same as ``train(16)``, bit for bit. Parameters that were unfrozen or replaced in between are trained
        too, with a new state of the optimizer. Modules that you set to evaluation mode while the learner was in
        training mode stay in it, and so do modules whose parameters are all frozen.

        With a run folder and one process, Ctrl-C and SIGTERM end training after the present iteration, and its state
        is saved; a second one ends it at once.

        Args:
            iterations: number of outer steps in all; by default the learner's own.
            split: the split to train on.
            validate_every: outer steps between validations; None for none. With validation the learner ends with
                the best validated parameters, without it with the last. The end of a training is always validated.
            validation_episodes: number of episodes of each validation, the same episodes every time.
            validation_split: the split to validate on; never the test split.
            patience: stop after this many validations in a row that were not better.
            stop_loss: stop when the loss was below this number, and no prediction wrong, in 50 iterations in a row.
            checkpoint_every: outer steps between checkpoints, if there is a run folder.
            checkpoint_seconds: time after which a checkpoint is written in any case; None for no limit.
            keep: number of newest checkpoints to keep.

        Returns:
            The last iteration's metrics.

        Raises:
            DataError: the first episode is malformed.
            MisfitError: the learner's predictions don't have the shape of the tasks' targets, or the processes have
                different learners, tasks or options; before the first outer step.
            OptionError: ``iterations`` differs from an earlier call's under a schedule that depends on it.
            TrainingError: a metric or a gradient is not finite, or the learner broke its protocol; names iteration
                and episodes.
            HookError: a hook raised.
            RunError: the run folder is in use or not empty, or a state can't be stored; earlier checkpoints stay.
        """
        total = self.training.iterations if iterations is None else iterations
        options = TrainingOptions(
            iterations=total, split=split, validate_every=validate_every, validation_episodes=validation_episodes,
            validation_split=validation_split, patience=patience, checkpoint_every=checkpoint_every, keep=keep,
            checkpoint_seconds=checkpoint_seconds, stop_loss=stop_loss,
        )  # fmt: skip
        if self._evaluates_only:
            raise RunError("train: got an engine that load() made ready to evaluate only; use resume() to train on")
        total = options.iterations
        check_total(self.outer, self._iterations, total)
        episodes = self.enter(self.tasks, split, self.meta_batch) if total else None  # loading a split may be costly
        if validate_every is not None:
            self.enter(self.evaluation_tasks, validation_split, 1)
        self._parameters.return_to_last()
        self._loop.settle(episodes)
        self._agree("train", self.learner, self.tasks, train=options.to_dict())
        self._open_folder(options.to_dict())
        self._iterations = total
        alone = nullcontext() if self.folder is None else only_training(self.folder.path)
        with alone, Stop(self.folder is not None or self.backend.world.size > 1) as stop:
            metrics = self._loop.run(options, stop)
        self._parameters.stand_on_best(self.iteration)
        from_first(self.backend.world, lambda: None)  # no rank leaves before the last checkpoint is on the disk
        return metrics

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The torch optimizer over the trained parameters; None if there are none."""
        return self._step.optimizer

    @property
    def best(self) -> Best:
        """The best validation so far, which decides about early stopping and the final parameters."""
        return self._parameters.best

    @property
    def writes(self) -> bool:
        """Whether this training has a run folder."""
        return self._run is not None

    @property
    def parameters_iteration(self) -> int:
        """The number of outer steps after which the learner had its present parameters."""
        return self._parameters.iteration(self.iteration)

    # --- Evaluation --------------------------------------------------------------------------------------------------

    def evaluate(
        self,
        episodes: int = 600,
        *,
        split: str = "test",
        tasks: TaskDistribution | None = None,
        learner_options: Mapping[str, Any] | None = None,
        perturb: Perturb | None = None,
        attack: Attack | Mapping[str, Any] | str | None = None,
        disjoint: bool = False,
        batch: int | None = None,
        write: bool = True,
    ) -> Result:
        """Adapt to each of the first ``episodes`` episodes of ``split`` and score the predictions on its queries.

        In a run with a folder, the results of the present parameters are written to its result.json. Several processes
        share the batches of episodes, and each returns the result of all. If a hook calls this, rank 0 evaluates alone.

        Args:
            tasks: other tasks than at construction (another way or shot, longer sequences); checked again.
            learner_options: other options of the learner, such as more inner steps; the parameters stay. For
                learners that were made by ``kshot.learner``.
            perturb: (predictor, query examples) -> the examples to predict instead.
            attack: an adversarial attack on queries, support or both: a ``kshot.Attack``, or its fields.
            disjoint: whether no example may be in two episodes; if a split has too few examples, episodes are fewer.
            batch: episodes at once; by default as many as fit into the caches of a processor, at most 64.
            write: whether the result goes into the run folder.

        Raises:
            MisfitError, DataError: the tasks don't fit or are malformed, or processes disagree.
        """
        world = OneProcess() if self._hooks.calling else self.backend.world
        used = self.evaluation_tasks if tasks is None else expect_tasks(tasks)
        learner = with_options(self.learner, self.tasks.spec, self.backend, learner_options or {})
        if used is not self.evaluation_tasks or learner_options:
            check(learner, used, self.backend, built_for=self.tasks.spec)
        episodes, batch = counts("evaluate", episodes=episodes, batch=batch)
        attack = Attack.of(attack, used.spec)
        started = time.perf_counter()
        source, episodes = disjointly(used, split, episodes) if disjoint else (used, episodes)
        batches = batches_of(episodes, self.enter(source, split, 1), used, batch)
        if world.size > 1:
            asked = {"split": split, "episodes": episodes, "batch": batch, "perturbed": perturb is not None}
            asked |= {"attack": attack and attack.plain(), "disjoint": disjoint}
            self._agree("evaluate", learner, used, evaluate=asked)
        progress = self._hooks.progress(episodes)
        rows = evaluated(learner, source, split, batches, self.backend, world, perturb, attack, progress)
        how: Any = {"perturb": perturb, "attack": attack, "disjoint": disjoint, "started": started}
        result = result_of(self, rows, learner, used, split, **how)
        if write and not self._hooks.calling:
            self._results.add(result, self.folder, self.iteration)
        self._hooks.call("evaluation_end", iteration=self.iteration, result=result)
        return result

    def enter(self, tasks: TaskDistribution, split: str, size: int) -> Episode:
        """Return the first ``size`` episodes of a split, checked the first time; see ``Door.enter``."""
        return self._door.enter(tasks, split, size)

    def _agree(self, call: str, learner: Any, tasks: TaskDistribution, **more: Any) -> None:
        """Raise MisfitError if the ranks make different calls, or have different components, options or versions."""
        if self.backend.world.size > 1:
            agree(self.backend.world, {"call": call, **process_facts(self, self.outer, learner, tasks), **more})

    # --- Checkpoints and the run folder ------------------------------------------------------------------------------

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The facts that a checkpoint must match to be resumed: learner and tasks with their options, and seeds."""
        return identity_of(
            self.learner, self.tasks, self.evaluation_tasks, self.outer, meta_batch=self.meta_batch, seed=self.seed
        )

    def state(self) -> dict[str, Any]:
        """Return everything the next outer step needs, and the best parameters: tensors and plain containers.

        Raises:
            RunError: the state of a hook or module could not be read again.
        """
        return {
            "identity": self.identity,
            "versions": versions(self.learner, self.tasks, self.backend),
            "backend": computed_on(self.backend),
            "iteration": self.iteration,
            "iterations": self._iterations,
            "low": self._loop.low,
            **self._parameters.state(),
            "optimizer": None if self.optimizer is None else self.optimizer.state_dict(),
            "hooks": self._hooks.state(),
        }

    def save(self, path: str | Path) -> Path:
        """Write a checkpoint to ``path``, atomically, on rank 0; return the path."""
        if self.backend.world.rank == 0:
            save_checkpoint(Path(path), self.state())
        return Path(path)

    def resume(self, checkpoint: str | Path | None = None) -> int:
        """Load ``checkpoint``, or the newest of the run folder, and return the outer steps taken.

        Afterwards the engine is as when the checkpoint was written: ``train`` continues from the last outer step, and
        ``evaluate`` scores the best validated parameters. A run that was killed before its first checkpoint resumes
        at 0. A run may be resumed with another number of processes.

        Raises:
            RunError: there is no run; or the checkpoint is damaged, was written by a newer kshot, or is of another
                learner, other tasks or a training with other options. Nothing is overwritten.
        """
        path, state = from_first(self.backend.world, lambda: self._read(checkpoint))
        self._step.settle()
        if state is not None:  # check everything first; hooks check their states by loading them
            check_resumable(path, state, self.identity, self.learner, self.optimizer, self._hooks)
        if checkpoint is None and self._run is not None and self.backend.world.rank == 0:
            self.folder = RunFolder(self._run)
        if state is None:
            return 0
        if self.backend.world.rank == 0:
            warn_of_changes(path, state, versions(self.learner, self.tasks, self.backend), computed_on(self.backend))
        self._step.load(state["optimizer"], path)
        self._take(state)
        return self.iteration

    def load(self, checkpoint: str | Path) -> int:
        """Load the parameters of ``checkpoint`` to evaluate them, on whatever tasks; return their iteration.

        Only names and shapes of the parameters are compared. The engine can't train afterwards.

        Raises:
            RunError: the checkpoint is unusable, or of a learner with other parameters. Nothing is changed.
        """
        path, state = from_first(self.backend.world, lambda: (str(checkpoint), load_checkpoint(Path(checkpoint))))
        check_loadable(path, state, self.learner)
        self._take(state)
        self._evaluates_only = True
        return self.parameters_iteration

    def _take(self, state: Mapping[str, Any]) -> None:
        self.iteration, self._iterations = state["iteration"], state.get("iterations")
        self._loop.low = state.get("low", 0)
        self._parameters.load(state, self.iteration)
        self._results.clear()

    def _read(self, checkpoint: str | Path | None) -> tuple[str, dict[str, Any] | None]:
        """Return where the checkpoint is and what is in it; None if the run has none yet."""
        if checkpoint is None:
            if self._run is None:
                raise RunError("resume: got no run folder, expected Engine(run=...) or resume(checkpoint=...)")
            if (checkpoint := RunFolder.open(self._run, writing=True).newest()) is None:
                return str(self._run), None
        return str(checkpoint), load_checkpoint(Path(checkpoint))

    def init_from(self, run: str | Path) -> Inherited:
        """Start a new training from the parameters of another run: the best validated ones, or else the last.

        Copies the tensors that match by name and shape. The others stay as initialised, and config.json reports them.
        ``run`` is a run folder, or a checkpoint.

        Raises:
            RunError: the run or checkpoint does not exist, nothing in it matches, or training has begun.
        """
        if self.iteration or self.folder is not None:
            raise RunError(f"init_from: got {self.iteration} iterations taken already, expected a new engine")
        inherited = inherit(self.learner, str(run), *from_first(self.backend.world, lambda: trained(run)))
        self._config["init_from"] = inherited.to_dict()
        return inherited

    def _open_folder(self, options: Mapping[str, Any]) -> None:
        """Create the run folder, with all that is needed to build this training again, on rank 0."""
        if self._run is None or self.folder is not None or self.backend.world.rank:
            return
        config = config_of(self, self._hooks.named(), self.outer, options) | self._config
        self.folder = RunFolder.create(self._run, config)
        save_inputs(self._run, self.tasks)
