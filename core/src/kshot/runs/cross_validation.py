"""Train and test on several divisions of a folder, and report the mean and the interval over the divisions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import numpy as np
from attrs import frozen

from kshot.errors import OptionError
from kshot.kinds import KINDS
from kshot.runs.comparison import mean_and_interval
from kshot.runs.recipe import Config
from kshot.runs.run import Run
from kshot.runs.views import takes


def folded(config: Config, fold: tuple[int, int]) -> Config:
    """Return the configuration of a run on the i-th of n divisions of a folder, with its own run folder.

    The run folder is ``runs/LEARNER-TASKS-SEED-split-I``, or that of the user, in which {split} stands for i.

    Raises:
        OptionError: there are fewer than two divisions, the tasks can't be divided, or the user's run folder is the
            same for all divisions.
    """
    i, n = fold
    if n < 2 or not 0 <= i < n:
        raise OptionError(f"splits: got division {i} of {n}, expected at least 2 divisions, counted from 0")
    name = str(config.tasks["name"])
    if not takes(config.tasks, "fold"):
        raise OptionError(
            f"splits: got tasks {name!r}, whose classes are divided once, expected tasks with the option 'fold', such "
            "as imagefolder and audiofolder"
        )
    run = config.run or f"runs/{config.learner['name']}-{name}-{config.seed}-split-{{split}}"
    if "{split}" not in run:
        raise OptionError(f"run: got {run} for {n} divisions, expected a path with {{split}} in it: {run}-{{split}}")
    return attrs.evolve(config, tasks={**config.tasks, "fold": [i, n]}, run=run.replace("{split}", str(i)))


@frozen(repr=False)
class CrossValidation:
    """Store the runs on several divisions of a folder; prints the mean over them.

    The interval is a t interval over the divisions: it says how far the mean would move with other test classes. The
    divisions share training classes, so it is rather too small than too large.

    Attributes:
        runs: one for each division.
    """

    runs: tuple[Run, ...]

    def summary(self) -> list[dict[str, Any]]:
        """Return for each test, and for each of its baselines, the mean over divisions and half its 95 % t interval.

        A baseline also has the mean difference of the learner from it, over the same divisions.
        """
        rows: list[dict[str, Any]] = []
        for test, label in enumerate(self.runs[0].labels):
            results = [run.results[test] for run in self.runs]
            scores = [result.mean for result in results]
            about = {"test": label, "score": results[0].headline, "kind": results[0].kind, "splits": len(self.runs)}
            rows.append({**about, "baseline": None, **_figures("", scores)})
            for baseline in self.runs[0].baselines:
                same = [b for run in self.runs for b in run.baselines if (b.test, b.name) == (label, baseline.name)]
                if baseline.test == label and len(same) == len(self.runs) and not results[0].attack:
                    means = [b.result.mean for b in same]
                    gaps = [b.difference.mean for b in same]
                    figures = {**_figures("", means), **_figures("difference", gaps)}
                    rows.append({**about, "baseline": baseline.name, **figures})
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Return the summary and every run as plain values, without the scores of every episode."""
        return {"summary": self.summary(), "runs": [run.to_dict(episodes=False) for run in self.runs]}

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def __repr__(self) -> str:
        return f"<CrossValidation: {'; '.join(self._lines())}>"

    def _lines(self) -> Iterator[str]:
        for row in self.summary():
            percent = KINDS[row["kind"]].percent
            factor, unit, points = (100, " %", " points") if percent else (1, "", "")

            def figure(name: str, sign: str = "", row: Any = row, factor: int = factor) -> str:
                return f"{factor * row[name]:{sign}.2f} ± {factor * row[f'{name}_interval']:.2f}"

            label = f"{row['test']}: " if row["test"] else ""
            if row["baseline"] is None:
                score = f"{figure('mean')}{unit} {row['score']}"
                yield f"{label}{score} over {row['splits']} splits of the classes (95 % t interval)"
            else:
                difference = f"the learner: {figure('difference', '+')}{points} on the same splits"
                yield f"  {row['baseline']}: {figure('mean')}{unit}; {difference}"


def _figures(name: str, values: list[float]) -> dict[str, float]:
    """Return the mean of values and half the width of its 95 % t interval, by name."""
    mean, half = mean_and_interval(np.asarray(values))
    return {name or "mean": mean, f"{name or 'mean'}_interval": half}
