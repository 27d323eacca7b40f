"""What an evaluation found, with everything needed to say what the figure means."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from kshot.errors import DataError


@frozen
class Difference:
    """How much one result is above another on the same episodes: the mean over episodes of the difference of a score.

    Attributes:
        score: what is compared.
        kind: of the tasks.
        mean: in units of the score.
        interval: half the width of the 95 % interval of the paired difference, 1.96 s / sqrt(n).
        episodes: n.
    """

    score: str
    kind: str
    mean: float
    interval: float
    episodes: int

    def to_dict(self) -> dict[str, Any]:
        return {**attrs.asdict(self), "interval": _finite(self.interval)}

    def __str__(self) -> str:
        from kshot.kinds import KINDS

        about = f"({self.episodes} paired episodes)"
        if KINDS[self.kind].percent:
            return f"{100 * self.mean:+.2f} ± {100 * self.interval:.2f} points of {self.score} {about}"
        return f"{self.mean:+.4g} ± {self.interval:.2g} {self.score} {about}"


EPISODES = ("kind", "split", "tasks_seed", "shape", "tasks", "data", "episodes")
"""What two results must agree in to be of the same episodes."""


@frozen(eq=False)
class Result:
    """Scores of an evaluation, one row an episode.

    Attributes:
        scores: name -> [episodes, ...] float64, the headline first; further axes are curves.
        kind, split, tasks_seed: what was evaluated.
        seed: of training.
        learner_seed: of the learner's initialisation; None where it is not known.
        shape: way, shot and query as in the spec.
        normalisation: the learner's policy: inductive, support, transductive, or none.
        queries: whether queries were seen independent, joint or at_adapt.
        learner, tasks: names and options.
        backend: its description, precision among it.
        versions: of core, torch and every plugin that took part.
        data: the data's fingerprint.
        iteration: outer steps taken before.
        perturbed: whether inputs were perturbed.
        wall: seconds, apart from the figures.
    """

    scores: Mapping[str, NDArray[np.float64]]
    kind: str
    split: str
    tasks_seed: int = 0
    seed: int = 0
    shape: Mapping[str, Any] = attrs.field(factory=dict)
    normalisation: str = "none"
    queries: str = "independent"
    learner: Mapping[str, Any] = attrs.field(factory=dict)
    tasks: Mapping[str, Any] = attrs.field(factory=dict)
    backend: Mapping[str, Any] = attrs.field(factory=dict)
    versions: Mapping[str, str] = attrs.field(factory=dict)
    data: str = ""
    iteration: int = 0
    perturbed: bool = False
    wall: float = 0.0
    learner_seed: int | None = None

    @property
    def headline(self) -> str:
        """The name of the score that stands for the kind."""
        return next(iter(self.scores))

    @property
    def episodes(self) -> int:
        return len(self.scores[self.headline])

    @property
    def mean(self) -> float:
        """Of the headline, over episodes; fractions for accuracies."""
        return float(np.nanmean(self.scores[self.headline]))

    @property
    def interval(self) -> float:
        """Half the width of the headline's 95 % interval: 1.96 s / sqrt(n)."""
        return float(self.intervals(self.headline))

    def means(self, name: str) -> NDArray[np.float64]:
        """The mean over episodes of any score, its curve axes kept."""
        return np.asarray(np.nanmean(self.scores[name], axis=0))

    def intervals(self, name: str) -> NDArray[np.float64]:
        """1.96 s / sqrt(n) over episodes, s with n - 1; NaN for a single episode."""
        values = np.asarray(self.scores[name], np.float64)
        if len(values) < 2:
            return np.full(values.shape[1:], np.nan)
        with np.errstate(invalid="ignore"):  # of infinite scores, as of an optimizer that diverged, it is NaN
            return np.asarray(1.96 * values.std(axis=0, ddof=1) / math.sqrt(len(values)))

    def minus(self, other: Result) -> Difference:
        """This result's headline minus the other's, episode by episode.

        Pairing takes out how hard each episode is, so the interval is far narrower than those of the two results.

        Raises:
            DataError: the results are of other episodes (tasks, their options, split, seed, data or number), or have
                no common headline.
        """
        if differing := self.other_episodes(other):
            listed = "; ".join(f"{name} {mine!r} and {theirs!r}" for name, (mine, theirs) in differing.items())
            raise DataError(
                f"Result.minus: these results are not of the same episodes: {listed}; evaluate both on the same tasks, "
                "e.g. engine.evaluate(tasks=..., learner_options=...)"
            )
        gaps = np.asarray(self.scores[self.headline], np.float64) - np.asarray(other.scores[self.headline], np.float64)
        held = gaps[~np.isnan(gaps)]
        interval = 1.96 * held.std(ddof=1) / math.sqrt(len(held)) if len(held) > 1 else math.nan
        return Difference(self.headline, self.kind, float(held.mean()), float(interval), len(held))

    def other_episodes(self, other: Result) -> dict[str, tuple[Any, Any]]:
        """In what the episodes of two results differ: {name: (of this, of the other)}; empty where they are the same.

        A result of tasks that were not built by name records their class, shape, seed and data, not their options.
        """
        names = [n for n in EPISODES if _comparable(n, getattr(self, n)) != _comparable(n, getattr(other, n))]
        found = {name: (getattr(self, name), getattr(other, name)) for name in names}
        if self.headline not in other.scores:
            found["headline"] = (self.headline, other.headline)
        return found

    def to_dict(self, episodes: bool = True) -> dict[str, Any]:
        """Plain values. Without ``episodes`` only means and intervals, not every episode's scores."""
        plain = attrs.asdict(self, recurse=False)
        plain["scores"] = {n: _finite(np.asarray(v).tolist()) for n, v in self.scores.items()} if episodes else {}
        summary = {
            n: {"mean": _finite(self.means(n).tolist()), "interval": _finite(self.intervals(n).tolist())}
            for n in self.scores
        }
        return {
            "headline": self.headline,
            "mean": _finite(self.mean),
            "interval": _finite(self.interval),
            "episodes": self.episodes,
            "summary": summary,
            **plain,
        }

    def to_json(self, episodes: bool = True) -> str:
        return json.dumps(self.to_dict(episodes), indent=1, default=str)

    @classmethod
    def from_json(cls, text: str, test: int | None = None) -> Result:
        """Return the result that ``to_json`` wrote, or one of those in a run's ``result.json``.

        Args:
            text: what the file holds.
            test: which of the tests of a run, from 0; needed where there are several.

        Raises:
            DataError: it is no such text, was written without episodes, or has several tests and none was chosen.
        """
        try:
            values = json.loads(text)
            if "results" in values:
                values = _chosen(values["results"], test)
            scores = {n: np.asarray(_nan(v), np.float64) for n, v in values["scores"].items()}
            known = [f for f in attrs.fields(cls) if f.name != "scores"]
            fields = {f.name: values[f.name] for f in known if f.name in values or f.default is attrs.NOTHING}
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(
                f"Result.from_json: got text that is not a result ({error!r}), expected what to_json or a run wrote"
            ) from error
        if not scores:
            raise DataError(
                "Result.from_json: got a result without episodes, expected one written by to_json(episodes=True)"
            )
        return cls(scores=scores, **fields)

    def __str__(self) -> str:
        from kshot.kinds import KINDS

        policy = [self.normalisation] if self.normalisation != "none" else []
        joint = [f"queries {self.queries}"] if self.queries != "independent" else []
        way, shot = self.shape.get("way"), self.shape.get("shot")
        shape = [f"{way}-way {shot}-shot"] if way is not None and shot is not None else []
        about = ", ".join([f"{self.episodes} episodes", self.split, *shape, *policy, *joint])
        if KINDS[self.kind].percent:
            return f"{100 * self.mean:.2f} ± {100 * self.interval:.2f} % {self.headline} ({about})"
        return f"{self.mean:.4g} ± {self.interval:.2g} {self.headline} ({about})"


def _chosen(results: list[Any], test: int | None) -> Any:
    if test is None and len(results) != 1:
        raise DataError(
            f"Result.from_json: got a run with {len(results)} tests, expected one; choose it by test=0 to "
            f"test={len(results) - 1}"
        )
    if test is not None and not 0 <= test < len(results):
        raise DataError(f"Result.from_json: got test={test}, expected 0 to {len(results) - 1}")
    return results[test or 0]


def _comparable(name: str, value: Any) -> str:
    """Return a field as text, in which a result just made and one read from a file are alike.

    Options of tasks that ``shape`` and ``tasks_seed`` have too are left out: a default that was written out is the
    same episode.
    """
    if name == "tasks" and "options" in value:
        options = {n: v for n, v in value["options"].items() if n not in ("way", "shot", "query", "seed")}
        value = {**value, "options": options}
    return json.dumps(value, sort_keys=True, default=str)


def _finite(value: Any) -> Any:
    """JSON has neither NaN nor infinity: None and "inf" stand for them."""
    if isinstance(value, list):
        return [_finite(v) for v in value]
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return None if math.isnan(value) else str(value)


def _nan(value: Any) -> Any:
    if isinstance(value, list):
        return [_nan(v) for v in value]
    if isinstance(value, str):
        return float(value)
    return math.nan if value is None else value
