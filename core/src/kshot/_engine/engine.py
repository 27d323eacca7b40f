"""The episodic engine: the only loops over episodes. It knows learners by ``.grad`` and predictors by calling them.

Under several processes each has an engine, and all call the same methods in the same order. They share the work: a
rank trains on its part of a meta-batch and evaluates its part of the episodes, and every rank has the whole outcome.
Rank 0 alone has hooks and a run folder, and reads its checkpoints for all.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from kshot._engine.cpu import Cpu, OneProcess
from kshot._engine.evaluation import Perturb, batches_of, describe, result_of, score_episodes
from kshot._engine.gradient import MetaBatch, MetaGradient
from kshot._engine.hook_calls import Hooks
from kshot._engine.optimizer import Outer
from kshot._engine.processes import agree, everywhere, exchange, from_first
from kshot._engine.provenance import versions
from kshot._engine.result import Result
from kshot._engine.run_folder import RunFolder, digest, load_checkpoint, save_checkpoint
from kshot._engine.warm_start import Inherited, inherit, trained
from kshot.checks import check
from kshot.episode import Episode
from kshot.errors import DataError, MisfitError, OptionError, RunError, TrainingError
from kshot.kinds import KINDS
from kshot.protocols import Backend, TaskDistribution
from kshot.randomness import as_seed
from kshot.sampling import check_episode
from kshot.spec import Training


@attrs.define(eq=False)
class Best:
    """The best validation so far, for early stopping."""

    score: float = math.nan
    iteration: int = -1
    worse: int = 0
    parameters: dict[str, Tensor] | None = None


class Engine:
    """Trains a learner on tasks and evaluates it.

    Args:
        learner: satisfies ``kshot.protocols.Learner``.
        tasks: what it trains on.
        meta_batch: B, tasks an outer step; by default the learner's own (``learner.training``), else 1.
        chunk: the most tasks computed at once; gradients of the chunks are accumulated to the same mean.
        optimizer: an ``Outer``, its fields, a name, or None for the learner's own.
        backend: where to compute; None is the CPU.
        hooks: hook plugins, by name or as objects; {name: object} gives names to objects. Rank 0 alone has them.
        seed: of dropout and the like while training; recorded.
        run: a folder to write to; None writes nothing.
        validate_on: tasks for validation and evaluation, where they differ from the training's (60-way to 5-way).
        config: more to record in the run folder's config.json.

    Raises:
        MisfitError: learner and tasks don't fit; every reason at once, before any compute.
        OptionError: an option is wrong.
        RunError: the run folder is not empty.
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
        seed: int = 0,
        run: str | Path | None = None,
        validate_on: TaskDistribution | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.training: Training = getattr(learner, "training_defaults", Training())
        self.meta_batch = self.training.meta_batch if meta_batch is None else meta_batch
        if self.meta_batch < 1 or (chunk is not None and chunk < 1):
            raise OptionError(f"Engine: meta_batch is {self.meta_batch} and chunk {chunk}, expected at least 1")
        self.chunk = min(chunk or self.meta_batch, self.meta_batch)
        self.backend: Backend = Cpu() if backend is None else backend
        self.tasks = tasks
        self.evaluation_tasks = tasks if validate_on is None else validate_on
        check(learner, tasks, self.backend)
        check(learner, self.evaluation_tasks, self.backend, built_for=tasks.spec)
        self._check_batching(learner)
        self.learner: Any = self.backend.place(learner)
        self.learner.eval()
        self.outer = outer_of(optimizer, self.training)
        self.parameters = [p for p in self.learner.parameters() if p.requires_grad]
        self.optimizer = self.outer.make(self.parameters) if self.parameters else None
        self.seed = as_seed(seed, "Engine")
        self.iteration = 0
        self.best = Best()
        self._entered: set[tuple[int, str]] = set()
        self._hooks = Hooks(() if self.backend.world.rank else hooks, self)
        self._gradient = MetaGradient(self.learner, self.parameters, self.backend)
        self.folder: RunFolder | None = None
        self._run = None if run is None else Path(run)
        self._config = dict(config or {})

    # --- Training ----------------------------------------------------------------------------------------------------

    def train(
        self,
        iterations: int | None = None,
        *,
        split: str = "train",
        validate_every: int | None = None,
        validation_episodes: int = 200,
        validation_split: str = "val",
        patience: int | None = None,
        checkpoint_every: int = 500,
        keep: int = 2,
    ) -> Mapping[str, float]:
        """Take outer steps until ``iterations`` have been taken in all; a resumed engine goes on from where it is.

        Args:
            iterations: outer steps in all; by default the learner's own.
            split: what to train on.
            validate_every: outer steps between validations; None for none. With validation the learner ends with
                the best validated parameters, without it with the last.
            validation_episodes: episodes of each validation, the same every time.
            validation_split: what to validate on; never the test split.
            patience: stop after so many validations in a row without a better one.
            checkpoint_every: outer steps between checkpoints, in a run with a folder.
            keep: how many of the newest checkpoints stay.

        Returns:
            The last iteration's metrics.

        Raises:
            DataError: the first episode is malformed.
            MisfitError: the processes do not agree on what to train, on what, or how; before any compute.
            TrainingError: a metric is not finite, or the learner broke its protocol; names iteration and episodes.
            HookError: a hook raised.
            RunError: the disk is full; earlier checkpoints are untouched.
        """
        total = self.training.iterations if iterations is None else iterations
        plan = {
            "iterations": total,
            "split": split,
            "validate_every": validate_every,
            "patience": patience,
            "validation_episodes": validation_episodes,
            "validation_split": validation_split,
            "checkpoint_every": checkpoint_every,
            "keep": keep,
        }
        check_plan(plan)
        self.enter(self.tasks, split, self.meta_batch)
        if validate_every is not None:
            self.enter(self.evaluation_tasks, validation_split, 1)
        self._agree("train", self.learner, self.tasks, train=plan)
        self._open_folder(plan)
        metrics: dict[str, float] = {}
        error: BaseException | None = None
        self._hooks.call("run_start", iteration=self.iteration, iterations=total)
        try:
            self.learner.train()
            while self.iteration < total and not (patience is not None and self.best.worse >= patience):
                metrics = self._outer_step(split, total)
                self.iteration += 1
                self._hooks.call("iteration_end", iteration=self.iteration, metrics=metrics)
                last = self.iteration == total
                if validate_every is not None and (self.iteration % validate_every == 0 or last):
                    self._validate(validation_split, validation_episodes)
                    last = last or (patience is not None and self.best.worse >= patience)
                if last or self.iteration % checkpoint_every == 0:
                    self._checkpoint(keep)
        except BaseException as raised:
            error = raised
            raise
        finally:
            self.learner.eval()
            self._hooks.end(self.iteration, error)
        if self.best.parameters is not None:
            self.learner.load_state_dict(self.best.parameters)
        from_first(self.backend.world, lambda: None)  # no rank leaves before the last checkpoint is on the disk
        return metrics

    def _outer_step(self, split: str, total: int) -> dict[str, float]:
        """One meta-batch -> its mean gradient in ``.grad`` -> a step of the optimizer (several for generators)."""
        first = self.iteration * self.meta_batch
        indices = range(first, first + self.meta_batch)
        batch = MetaBatch(self.tasks, split, indices, self.chunk, (self.seed, self.iteration))
        if self.optimizer is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = self.outer.rate(self.iteration, total)
        metrics: Mapping[str, float] = {}
        for metrics in self._gradient.steps(batch):
            if bad := [n for n, v in metrics.items() if not math.isfinite(v)]:
                raise everywhere(
                    TrainingError(
                        f"iteration {self.iteration + 1}: {', '.join(f'{n} is {metrics[n]}' for n in bad)} on episodes "
                        f"{indices[0]}..{indices[-1]} of split {split!r}; lower the learning rate, clip gradients "
                        "(optimizer.clip), or look at these episodes: tasks.sample(split, indices)"
                    )
                )
            if self.optimizer is not None:
                if self.outer.clip is not None:
                    nn.utils.clip_grad_norm_(self.parameters, self.outer.clip, error_if_nonfinite=True)
                self.optimizer.step()
        return dict(metrics)

    # --- Evaluation --------------------------------------------------------------------------------------------------

    def evaluate(
        self,
        episodes: int = 600,
        *,
        split: str = "test",
        tasks: TaskDistribution | None = None,
        learner_options: Mapping[str, Any] | None = None,
        perturb: Perturb | None = None,
        batch: int | None = None,
    ) -> Result:
        """Adapt to each of the first ``episodes`` episodes of ``split`` and score the predictions on its queries.

        Several processes share the batches of episodes, and each has the result, the same as one process has. A hook
        that evaluates does so alone, as rank 0 is the only one that has it.

        Args:
            tasks: other tasks than at construction (another way or shot, longer sequences); checked again.
            learner_options: other options of the learner, such as more inner steps; the parameters stay. For
                learners that were made by ``kshot.learner``.
            perturb: (predictor, query examples) -> the examples to predict instead, for attacks and noise.
            batch: episodes at once; by default what fits the caches.

        Raises:
            MisfitError, DataError: the tasks don't fit or are malformed, or the processes disagree.
        """
        world = OneProcess() if self._hooks.calling else self.backend.world
        used = self.evaluation_tasks if tasks is None else tasks
        learner = self.learner
        if learner_options:
            learner = self._with_options(learner_options)
        if used is not self.evaluation_tasks or learner_options:
            check(learner, used, self.backend, built_for=self.tasks.spec)
        if episodes < 1:
            raise OptionError(f"evaluate: episodes is {episodes}, expected at least 1")
        started = time.perf_counter()
        first = self.enter(used, split, 1)
        batches = batches_of(episodes, first, used, batch)
        if world.size > 1:
            asked = {"split": split, "episodes": episodes, "batch": batch, "perturbed": perturb is not None}
            self._agree("evaluate", learner, used, evaluate=asked)
        mine: list[dict[str, Tensor]] = []
        was_training = learner.training
        learner.eval()
        try:
            part = batches[world.rank :: world.size]
            for done, scores in score_episodes(learner, used, split, part, self.backend, perturb):
                mine.append(scores)
                self._hooks.call("evaluation_progress", done=done, episodes=episodes)
        finally:
            learner.train(was_training)
        parts = exchange(world, mine)
        rows: dict[str, list[Tensor]] = {}
        for i in range(len(batches)):
            for name, values in parts[i % world.size][i // world.size].items():
                rows.setdefault(name, []).append(values)
        result = result_of(
            rows,
            learner=learner,
            tasks=used,
            split=split,
            backend=self.backend,
            seed=self.seed,
            iteration=self.best.iteration if self.best.parameters is not None else self.iteration,
            perturbed=perturb is not None,
            started=started,
        )
        self._hooks.call("evaluation_end", iteration=self.iteration, result=result)
        return result

    def _with_options(self, options: Mapping[str, Any]) -> Any:
        from kshot.registry import rebuild

        other = self.backend.place(rebuild(self.learner, self.tasks.spec, **options))
        other.load_state_dict(self.learner.state_dict())
        return other

    def _validate(self, split: str, episodes: int) -> None:
        result = self.evaluate(episodes, split=split)
        better = result.mean if KINDS[result.kind].higher_is_better else -result.mean
        if math.isnan(self.best.score) or better > self.best.score:
            held = {n: t.detach().clone() for n, t in self.learner.state_dict().items()}
            self.best = Best(better, self.iteration, 0, held)
        else:
            self.best.worse += 1
        self.learner.train()

    # --- The door ----------------------------------------------------------------------------------------------------

    def enter(self, tasks: TaskDistribution, split: str, size: int) -> Episode:
        """The first meta-batch of a split, checked: malformed data are met before any compute, not hours later."""
        if split not in tasks.spec.splits:
            raise DataError(f"unknown split {split!r}; these tasks have {', '.join(tasks.spec.splits)}")
        episode = tasks.sample(split, range(size))
        if (id(tasks), split) not in self._entered:
            check_episode(episode, tasks.spec, f"{type(tasks).__name__}, split {split!r}")
            self._entered.add((id(tasks), split))
        return episode

    def _check_batching(self, learner: Any) -> None:
        spec = self.tasks.spec
        if learner.needs.couples_tasks and self.chunk < self.meta_batch:
            raise MisfitError(
                f"{type(learner).__name__} couples the tasks of a meta-batch, so its {self.meta_batch} tasks can't be "
                f"computed in chunks of {self.chunk}; leave chunk out or lower meta_batch"
            )
        if spec.varies and spec.block % self.meta_batch:
            raise MisfitError(
                f"the tasks' shape varies every {spec.block} episodes, which {self.meta_batch} tasks a meta-batch "
                f"don't divide; choose a meta_batch that divides {spec.block}, or a larger tasks.block"
            )

    # --- Several processes -------------------------------------------------------------------------------------------

    def _agree(self, call: str, learner: Any, tasks: TaskDistribution, **more: Any) -> None:
        """Raises MisfitError where the ranks are not at the same call, or do not have the same of anything."""
        if self.backend.world.size == 1:
            return
        described = self.backend.describe()
        facts = {
            "call": call,
            "learner": {
                **describe(learner),
                "parameters": {n: digest(t)[:12] for n, t in learner.state_dict().items()},
            },
            "tasks": {**describe(tasks), **data_of(tasks)},
            "evaluation tasks": {**describe(self.evaluation_tasks), **data_of(self.evaluation_tasks)},
            "engine": {"seed": self.seed, "meta_batch": self.meta_batch, "chunk": self.chunk, "at": self.iteration},
            "optimizer": self.outer.to_dict(),
            "backend": {name: described.get(name) for name in ("name", "precision")},
            "versions": versions(learner, tasks, self.evaluation_tasks, self.backend),
            **more,
        }
        agree(self.backend.world, json.loads(json.dumps(facts, default=str)))

    # --- Checkpoints -------------------------------------------------------------------------------------------------

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be resumed: shapes, tasks, seeds, and how training goes."""
        return {
            "learner": type(self.learner).__name__,
            "parameters": {n: list(p.shape) for n, p in self.learner.state_dict().items()},
            "tasks": self.tasks.spec.to_json(),
            "tasks_seed": int(getattr(self.tasks, "seed", 0)),
            "data": str(getattr(self.tasks, "fingerprint", "")),
            "seed": self.seed,
            "meta_batch": self.meta_batch,
            "optimizer": str(self.outer),
        }

    def state(self) -> dict[str, Any]:
        """Everything the next outer step needs: tensors and plain containers."""
        best = attrs.asdict(self.best, recurse=False)
        return {
            "identity": self.identity(),
            "versions": versions(self.learner, self.tasks, self.backend),
            "iteration": self.iteration,
            "learner": self.learner.state_dict(),
            "optimizer": None if self.optimizer is None else self.optimizer.state_dict(),
            "best": best,
            "hooks": self._hooks.state(),
        }

    def save(self, path: str | Path) -> Path:
        """Write a checkpoint to ``path``, atomically; rank 0 does."""
        if self.backend.world.rank == 0:
            save_checkpoint(Path(path), self.state())
        return Path(path)

    def resume(self, checkpoint: str | Path | None = None) -> int:
        """Take up a run: load ``checkpoint``, or the newest of the run folder; returns the outer steps taken.

        A run that was killed before its first checkpoint resumes at 0. Rank 0 reads, for all; a run may go on with
        another number of processes.

        Raises:
            RunError: there is no run, or the checkpoint is truncated, corrupt, newer, or of another learner, other
                tasks or another training. Nothing is overwritten.
        """
        path, state = from_first(self.backend.world, lambda: self._read(checkpoint))
        if state is None:
            return 0
        self._check_identity(path, state)
        self.learner.load_state_dict(state["learner"])
        if self.optimizer is not None:
            self.optimizer.load_state_dict(state["optimizer"])
        self.iteration = state["iteration"]
        self.best = Best(**state["best"])
        self._hooks.load(state["hooks"])
        return self.iteration

    def _read(self, checkpoint: str | Path | None) -> tuple[str, dict[str, Any] | None]:
        """Where the checkpoint is, and what is in it; nothing where the run has none yet."""
        if checkpoint is None:
            if self._run is None:
                raise RunError("resume: the engine has no run folder; give Engine(run=...) or resume(checkpoint=...)")
            self.folder = RunFolder.open(self._run)
            found = self.folder.checkpoints()
            if not found:
                return str(self._run), None
            checkpoint = found[-1]
        return str(checkpoint), load_checkpoint(Path(checkpoint))

    def init_from(self, run: str | Path) -> Inherited:
        """Begin from the parameters of another run (its best validated ones, else its last), not from its state.

        Takes what agrees by name and shape, so that a second stage may have parts of its own, and says what it took
        and what stayed as initialised; the run folder's config records it. Rank 0 reads, for all.

        Args:
            run: a run folder, or a checkpoint.

        Raises:
            RunError: no such run or checkpoint, nothing in it agrees, or training has begun.
        """
        if self.iteration or self.folder is not None:
            raise RunError(f"init_from: {self.iteration} iterations were taken already; begin with a new engine")
        inherited = inherit(self.learner, str(run), *from_first(self.backend.world, lambda: trained(run)))
        self._config["init_from"] = inherited.to_dict()
        return inherited

    def _check_identity(self, path: str, state: Mapping[str, Any]) -> None:
        mine, theirs = self.identity(), state.get("identity", {})
        differing = [n for n in mine if mine[n] != theirs.get(n)]
        if differing:
            lines = "\n".join(f"  - {n}: it has {theirs.get(n)!r}, this run {mine[n]!r}" for n in differing)
            raise everywhere(
                RunError(
                    f"{path} is the checkpoint of another run; nothing was changed:\n{lines}\n"
                    "To begin anew from its parameters: engine.init_from(PATH)"
                )
            )

    def _open_folder(self, plan: Mapping[str, Any]) -> None:
        if self._run is None or self.folder is not None or self.backend.world.rank:
            return
        config = {
            "kshot": versions(self.learner, self.tasks, self.backend),
            "identity": self.identity(),
            "learner": describe(self.learner),
            "tasks": describe(self.tasks),
            "backend": dict(self.backend.describe()),
            "optimizer": self.outer.to_dict(),
            "meta_batch": self.meta_batch,
            "chunk": self.chunk,
            "processes": self.backend.world.size,
            "seed": self.seed,
            "train": dict(plan),
            **self._config,
        }
        self.folder = RunFolder.create(self._run, config)

    def _checkpoint(self, keep: int) -> None:
        if self._run is None:
            return
        if not all(bool(torch.isfinite(p.sum())) for p in self.parameters):
            raise everywhere(
                TrainingError(
                    f"iteration {self.iteration}: a parameter is NaN or infinite; no checkpoint was written, the last "
                    "good one stays; lower the learning rate or clip gradients (optimizer.clip)"
                )
            )
        if self.folder is None:
            return
        path = self.folder.save(self.iteration, self.state(), keep)
        self._hooks.call("checkpoint_saved", iteration=self.iteration, path=path)


def data_of(tasks: TaskDistribution) -> dict[str, Any]:
    """What tells the episodes of these tasks from those of others."""
    return {
        "spec": tasks.spec.to_dict(),
        "seed": int(getattr(tasks, "seed", 0)),
        "data": str(getattr(tasks, "fingerprint", "")),
    }


def check_plan(plan: Mapping[str, Any]) -> None:
    """Raises OptionError where the options of ``train`` contradict themselves or the test split would be seen."""
    counts = {n: plan[n] for n in ("validate_every", "patience", "validation_episodes", "checkpoint_every", "keep")}
    if plan["iterations"] < 0 or any(n is not None and n < 1 for n in counts.values()):
        given = ", ".join(f"{name} {value}" for name, value in {"iterations": plan["iterations"], **counts}.items())
        raise OptionError(f"train: {given}; expected positive numbers")
    if plan["patience"] is not None and plan["validate_every"] is None:
        raise OptionError("train: patience needs validate_every: say how often to validate")
    if plan["validate_every"] is not None and plan["validation_split"] == "test":
        raise OptionError("train: validation_split is 'test', which training must not see; use another split")


def outer_of(optimizer: Outer | Mapping[str, Any] | str | None, training: Training) -> Outer:
    """The outer optimizer from what a user gave; what they leave out is the method's own."""
    if isinstance(optimizer, Outer):
        return optimizer
    changed = {"name": optimizer} if isinstance(optimizer, str) else dict(optimizer or {})
    if unknown := set(changed) - {f.name for f in attrs.fields(Outer)}:
        valid = ", ".join(f.name for f in attrs.fields(Outer))
        raise OptionError(f"optimizer: unknown option {', '.join(sorted(unknown))}; valid are {valid}")
    return Outer.of(training, **changed)
