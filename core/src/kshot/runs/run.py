"""Represent the outcome of training or evaluating a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from attrs import field, frozen

from kshot._engine.engine import Engine
from kshot._engine.result import Result
from kshot.kinds import KINDS
from kshot.protocols import Pooled
from kshot.runs.baselines import Baseline
from kshot.runs.comparison import Compared, compare_tests
from kshot.runs.trained import Trained


@frozen(eq=False, repr=False)
class Run:
    """Represent the outcome of training or evaluating a run; prints the results of its tests.

    Attributes:
        results: one result for each test.
        labels: a name for each test; empty if there is only one.
        wall: durations of training and of evaluation in this process, in seconds; without training if nothing was left
            to train.
        iterations: number of outer steps taken in all.
        folder: the run folder; None if nothing was written.
        rank: rank of this process; only rank 0 writes.
        engine: the engine, with the learner and its tasks, to continue in Python.
        cautions: for each result of a folder's test why its interval is too small, or "" if it is not.
        baselines: results of simple methods on the same episodes, for images and sounds of a folder.

    Example:
        >>> import kshot
        >>> from kshot.testing import sample_learner, sample_tasks
        >>> _ = kshot.register(sample_learner.NearestMean, name="sample-learner")
        >>> _ = kshot.register(sample_tasks.classification, name="sample-tasks", group="tasks")
        >>> run = kshot.runs.train(
        ...     "sample-learner", "sample-tasks", iterations=2, evaluate={"episodes": 5}, no_run=True, quiet=True
        ... )
        >>> run.iterations, len(run.results), run.folder
        (2, 1, None)
    """

    results: tuple[Result, ...]
    labels: tuple[str, ...]
    wall: Mapping[str, float]
    iterations: int
    folder: Path | None
    rank: int
    engine: Engine = field(repr=False)
    baselines: tuple[Baseline, ...] = ()
    cautions: tuple[str, ...] = ()

    @property
    def result(self) -> Result:
        """The result of the first test, which is the only one unless a recipe asks for more."""
        return self.results[0]

    @property
    def differences(self) -> tuple[Compared, ...]:
        """The paired differences of tests on the same episodes, each from the first of them."""
        return compare_tests(self.results, self.labels)

    def trained(self) -> Trained:
        """Return the trained learner for predictions on new examples."""
        tasks = self.engine.tasks
        prepare = tasks.prepare if isinstance(tasks, Pooled) else None
        return Trained(self.engine.learner, tasks.spec, prepare=prepare, backend=self.engine.backend, tasks=tasks)

    def to_dict(self, episodes: bool = True) -> dict[str, Any]:
        """Return plain values; without ``episodes`` only means and intervals, not the scores of every episode."""
        run = None if self.folder is None else str(self.folder)
        results = [result.to_dict(episodes) for result in self.results]
        plain: dict[str, Any] = {"run": run, "iterations": self.iterations, "wall": dict(self.wall), "results": results}
        if any(self.labels):
            plain["labels"] = list(self.labels)
        if self.differences:
            plain["differences"] = [compared.to_dict() for compared in self.differences]
        if any(self.cautions):
            plain["cautions"] = list(self.cautions)
        if self.baselines:
            plain["baselines"] = [baseline.to_dict(episodes) for baseline in self.baselines]
        return plain

    def __repr__(self) -> str:
        where = "" if self.folder is None else f" in {self.folder}"
        return f"<Run{where}: {'; '.join(map(str, self.results))}>"

    def _repr_html_(self) -> str:
        """Return the results of all tests as HTML."""
        return "".join(result._repr_html_() for result in self.results)

    def __str__(self) -> str:
        lines = []
        cautions = self.cautions or ("",) * len(self.results)
        for label, one, caution in zip(self.labels, self.results, cautions, strict=True):
            lines += [f"{label}: {one}" if label else str(one), *over_classes(one)]
            if caution:
                lines.append(f"  caution: {caution}")
            if not one.attack:
                lines += [str(baseline) for baseline in self.baselines if baseline.test == label]
        spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.wall.items())
        return "\n".join([*lines, *map(str, self.differences), f"{self.iterations} iterations; {spent}"])


def over_classes(result: Result) -> list[str]:
    """Return a line with the interval over classes, if it is known and the classes are few enough to matter.

    It matters if it is more than half as wide again as the interval over episodes.
    """
    width, classes = result.class_interval, result.classes
    if classes is None or not width > 1.5 * result.interval:
        return []
    shown = f"{100 * width:.2f} points" if KINDS[result.kind].percent else f"{width:.2g}"
    number = len(np.unique(classes))
    return [f"  with other classes than these {number}, the score could differ by {shown} (95 % interval over classes)"]
