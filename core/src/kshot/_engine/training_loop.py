"""Take outer steps, validate and save, until the asked number of steps has been taken: the only loop of training."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from typing import Any

from kshot._engine.gradient import MetaBatch
from kshot._engine.hook_calls import Hooks
from kshot._engine.interruption import Schedule, Stop
from kshot._engine.modes import to_training
from kshot._engine.outer_step import OuterStep
from kshot._engine.parameters import Parameters, check_finite_parameters
from kshot._engine.recording import Results
from kshot._engine.training_options import TrainingOptions
from kshot._engine.trial import check_predictions
from kshot.episode import Episode
from kshot.kinds import KINDS

LOW = 50
"""Iterations in a row whose loss is below ``stop_loss`` after which training stops."""

log = logging.getLogger("kshot.runs")


class TrainingLoop:
    """Train the learner of one engine.

    Args:
        engine: the ``Engine``, whose ``iteration`` counts the outer steps.
        step, parameters, hooks, results: of the engine.
    """

    # The engine is not named as a type, because this module and its own would then import each other in a circle.
    def __init__(self, engine: Any, step: OuterStep, parameters: Parameters, hooks: Hooks, results: Results) -> None:
        self.engine, self.step, self.parameters, self.hooks, self.results = engine, step, parameters, hooks, results
        self._tried = False  # whether the predictions were compared with the tasks
        self.low = 0  # number of the last iterations in a row whose loss was low

    def settle(self, episodes: Episode | None) -> None:
        """Train the parameters that require a gradient now, and try whether the predictions fit the tasks.

        Args:
            episodes: of the tasks that are trained on, at least one; None if no outer step is to be taken.

        Raises:
            MisfitError: the predictions have another shape than the tasks' targets.
        """
        engine = self.engine
        joined, replaced = self.step.settle()
        if joined:
            log.info("from iteration %d on these are trained too: %s", engine.iteration + 1, ", ".join(joined))
        if replaced:
            # The best parameters are of another network, and the shapes may be others.
            self.parameters.forget_best()
            vars(engine).pop("identity", None)
            self._tried = False
        if episodes is not None and not self._tried:
            check_predictions(engine.learner, engine.tasks.spec, episodes, engine.backend)
            self._tried = True

    def run(self, options: TrainingOptions, stop: Stop) -> dict[str, float]:
        """Take outer steps until ``options.iterations`` have been taken; return the metrics of the last one.

        Args:
            options: of ``Engine.train``, whose errors are raised.
            stop: says whether training was asked to stop after the present iteration.
        """
        engine, total, every = self.engine, options.iterations, options.validate_every
        schedule = Schedule(options.checkpoint_every, options.checkpoint_seconds, options.keep)
        metrics: dict[str, float] = {}
        error: BaseException | None = None
        self.hooks.call("run_start", iteration=engine.iteration, iterations=total)
        try:
            to_training(engine.learner)
            while engine.iteration < total and not self._settled(options):
                # 1. Take a step. Iteration t trains on the episodes tB .. tB + B - 1, so that resuming is a number.
                indices = range(engine.iteration * engine.meta_batch, (engine.iteration + 1) * engine.meta_batch)
                seed = engine.seed, engine.iteration
                batch = MetaBatch(engine.tasks, options.split, indices, engine.chunk, seed, stop.signal is not None)
                metrics = self.step.take(batch, engine.iteration, total)
                engine.iteration += 1
                self.low = self.low + 1 if _is_low(metrics, options.stop_loss or 0) else 0
                self.results.clear()
                last = engine.iteration == total or self._settled(options)
                validates = every is not None and (engine.iteration % every == 0 or last)
                # 2. Call the hooks. One that stops the run must not lose it, unless the validation would be missing.
                try:
                    self.hooks.call("iteration_end", iteration=engine.iteration, metrics=metrics)
                except KeyboardInterrupt:
                    if not validates:
                        self._checkpoint(schedule)
                    raise
                # 3. Validate.
                if validates:
                    self._validate(options, closing=engine.iteration % (every or 1) != 0)
                    last = last or self._settled(options)
                # 4. Save. By time, and when asked to stop, that is due only where one can write: on rank 0. Several
                #    processes stop together, after the first iteration whose sums tell all of them that one was asked.
                alone = engine.backend.world.size == 1
                stops = stop.signal is not None if alone or last else self.step.gradient.stop
                extra = engine.folder is not None and (stops or schedule.overdue())
                if last or extra or schedule.due(engine.iteration):
                    self._checkpoint(schedule, last=last)
                if stops:
                    stop.act(f"after iteration {engine.iteration}; the state is saved; continue with resume")
            if total == 0:  # nothing is trained, but the run can be used
                self._checkpoint(schedule, last=True)
        except BaseException as raised:
            error = raised
            raise
        finally:
            engine.learner.eval()
            self.hooks.end(engine.iteration, error)
        return metrics

    def _settled(self, options: TrainingOptions) -> bool:
        """Return whether training stops early: validations were not better, or the loss has been low."""
        low = options.stop_loss is not None and self.low >= LOW
        return low or self.parameters.best.worse_than(options.patience)

    def _validate(self, options: TrainingOptions, *, closing: bool) -> None:
        result = self.engine.evaluate(options.validation_episodes, split=options.validation_split, write=False)
        score = result.mean if KINDS[result.kind].higher_is_better else -result.mean
        self.parameters.validated(score, self.engine.iteration, closing=closing)

    def _checkpoint(self, schedule: Schedule, *, last: bool = False) -> None:
        """Write a checkpoint, unless a parameter is not finite; at the end that is an error without a folder too."""
        engine = self.engine
        if engine.writes or last:
            check_finite_parameters(engine.parameters, engine.iteration)
        if engine.folder is None:
            return
        started = time.monotonic()
        path = engine.folder.save(engine.iteration, engine.state(), schedule.keep)
        schedule.written(started)
        self.hooks.call("checkpoint_saved", iteration=engine.iteration, path=path)


def _is_low(metrics: Mapping[str, float], least: float) -> bool:
    """Return whether the loss is below ``least`` and no prediction was wrong, as far as the metrics say so.

    The loss alone says little: the squared error of relation networks is small while many predictions are still wrong.
    """
    return metrics.get("loss", math.inf) < least and metrics.get("accuracy", 1.0) >= 1
