"""What a training or an evaluation of a run ended with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen

from kshot._engine.engine import Engine
from kshot._engine.result import Result
from kshot.protocols import Pooled
from kshot.runs.comparison import Compared, compare_tests
from kshot.runs.trained import Trained


@frozen(eq=False)
class Run:
    """What a training or an evaluation of a run ended with.

    Attributes:
        results: one for each test.
        labels: what each test is called, if there are several.
        wall: seconds of this process's training and evaluation.
        iterations: outer steps taken in all.
        folder: the run folder, or None.
        rank: of this process; only 0 writes.
        engine: with the learner and its tasks, to go on with in Python.
    """

    results: tuple[Result, ...]
    labels: tuple[str, ...]
    wall: Mapping[str, float]
    iterations: int
    folder: Path | None
    rank: int
    engine: Engine = field(repr=False)

    @property
    def result(self) -> Result:
        """The result of the first test, which is the only one unless a recipe asks for more."""
        return self.results[0]

    @property
    def differences(self) -> tuple[Compared, ...]:
        """Of tests on the same episodes: each compared with the first."""
        return compare_tests(self.results, self.labels)

    def trained(self) -> Trained:
        """Return the learner in use: a few labelled examples in, predictions out."""
        tasks = self.engine.tasks
        prepare = tasks.prepare if isinstance(tasks, Pooled) else None
        return Trained(self.engine.learner, tasks.spec, prepare=prepare, backend=self.engine.backend, tasks=tasks)

    def to_dict(self, episodes: bool = True) -> dict[str, Any]:
        """Return plain values; without ``episodes`` only means and intervals, not every episode's scores."""
        run = None if self.folder is None else str(self.folder)
        results = [result.to_dict(episodes) for result in self.results]
        plain: dict[str, Any] = {"run": run, "iterations": self.iterations, "wall": dict(self.wall), "results": results}
        if any(self.labels):
            plain["labels"] = list(self.labels)
        if self.differences:
            plain["differences"] = [compared.to_dict() for compared in self.differences]
        return plain

    def __str__(self) -> str:
        lines = [f"{label}: {one}" if label else str(one) for label, one in zip(self.labels, self.results, strict=True)]
        spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.wall.items())
        return "\n".join([*lines, *map(str, self.differences), f"{self.iterations} iterations; {spent}"])
