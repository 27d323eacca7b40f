"""Store the scores of an evaluation, with everything that is needed to interpret them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from kshot._engine.class_interval import class_interval
from kshot._shown import facts, needed, table
from kshot.errors import DataError


@frozen
class Difference:
    """Store the paired difference of two results: the mean over episodes of the difference of their headline scores.

    Attributes:
        score: name of the score that is compared.
        kind: kind of the tasks.
        mean: mean difference, in units of the score.
        interval: half the width of the 95 % t interval of the paired difference, t s / sqrt(n), where s is the standard
            deviation over episodes.
        episodes: number of episodes (n).
    """

    score: str
    kind: str
    mean: float
    interval: float
    episodes: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return {**attrs.asdict(self), "interval": _finite(self.interval)}

    def __str__(self) -> str:
        from kshot.kinds import KINDS

        about = f"({self.episodes} paired episodes)"
        if KINDS[self.kind].percent:
            return f"{100 * self.mean:+.2f} ± {100 * self.interval:.2f} points of {self.score} {about}"
        return f"{self.mean:+.4g} ± {self.interval:.2g} {self.score} {about}"


EPISODES = ("kind", "split", "tasks_seed", "shape", "tasks", "data", "episodes", "disjoint")
"""Fields in which two results must agree to be of the same episodes."""


@frozen(eq=False, repr=False)
class Result:
    """Store the scores of an evaluation, one row per episode, and the settings that produced them.

    Attributes:
        scores: {name: float64 array [episodes, ...]}, the headline score first; further axes are curves.
        kind, split, tasks_seed: kind of the tasks, the evaluated split, and the seed of the tasks.
        seed: seed of training.
        learner_seed: seed of the learner's initialisation; None if it is not known.
        shape: way, shot and query as in the spec.
        normalisation: the learner's normalisation policy: inductive, support, transductive, or none.
        queries: how queries were predicted: ``independent``, ``joint``, or ``at_adapt`` (given to ``adapt``).
        learner, tasks: name and options of each.
        backend: description of the backend, with its precision.
        versions: versions of the core, torch, Python and every plugin that took part.
        data: fingerprint of the data.
        iteration: number of outer steps after which the learner had these parameters.
        perturbed: whether the query inputs were perturbed.
        attack: the fields of the adversarial attack, see ``kshot.Attack``; empty if there was none.
        classes: the numbers of each episode's classes within the split [episodes, N]; None if it is not known.
        disjoint: whether no example is in two of the episodes.
        wall: duration of the evaluation in seconds.

    Example:
        >>> result = Result({"accuracy": np.array([0.5, 1.0, 0.75])}, kind="classification", split="test")
        >>> print(result)
        75.00 ± 62.10 % accuracy (3 episodes, test)
        >>> Result.from_json(result.to_json()).mean
        0.75
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
    attack: Mapping[str, Any] = attrs.field(factory=dict)
    classes: NDArray[np.int64] | None = None
    disjoint: bool = False

    @property
    def headline(self) -> str:
        """The name of the kind's main score, which stands first in ``scores``."""
        return next(iter(self.scores))

    @property
    def episodes(self) -> int:
        """The number of episodes (n)."""
        return len(self.scores[self.headline])

    @property
    def mean(self) -> float:
        """The mean of the headline score over episodes; accuracies are fractions."""
        return float(np.nanmean(self.scores[self.headline]))

    @property
    def interval(self) -> float:
        """Half the width of the 95 % t interval of the headline score: t s / sqrt(n)."""
        return float(self.intervals(self.headline))

    @property
    def class_interval(self) -> float:
        """Half the width of the 95 % interval of the headline score over the choice of the test classes.

        It says how far the score would move if the split had other classes. NaN if the classes are not known, are
        fewer than four, or are the same in all episodes.
        """
        return math.nan if self.classes is None else class_interval(self.scores[self.headline], self.classes)

    def means(self, name: str) -> NDArray[np.float64]:
        """Return the mean over episodes of the score ``name``; the axes of curves are kept."""
        return np.asarray(np.nanmean(self.scores[name], axis=0))

    def intervals(self, name: str) -> NDArray[np.float64]:
        """Return half the width of the 95 % t interval of the score ``name``: t s / sqrt(n).

        s is the standard deviation over episodes with divisor n - 1, and t the 97.5 % quantile of Student's t with
        n - 1 degrees of freedom: 1.964 for 600 episodes, 4.303 for 3. The interval of a single episode is NaN.
        """
        values = np.asarray(self.scores[name], np.float64)
        if len(values) < 2:
            return np.full(values.shape[1:], np.nan)
        with np.errstate(invalid="ignore"):  # infinite scores, of a diverged optimizer, give NaN
            return np.asarray(_t(len(values)) * values.std(axis=0, ddof=1) / math.sqrt(len(values)))

    def minus(self, other: Result) -> Difference:
        """Return this result's headline score minus the other's, paired by episode.

        Pairing removes the difficulty of each episode, so the interval is far narrower than those of the two results.

        Raises:
            DataError: the results are of different episodes (tasks, their options, split, seed, data or number), or
                have no common headline score.
        """
        if differing := self.other_episodes(other):
            listed = "; ".join(f"{name} {mine!r} and {theirs!r}" for name, (mine, theirs) in differing.items())
            raise DataError(
                f"Result.minus: got results of different episodes: {listed}; expected the same episodes: evaluate both "
                "on the same tasks, e.g. engine.evaluate(tasks=..., learner_options=...)"
            )
        return self.difference_from(other)

    def difference_from(self, other: Result) -> Difference:
        """Return what ``minus`` does for results of the same episodes whose tasks are described otherwise.

        Such results are on other inputs that are made of the same examples. The caller makes sure that they are.
        """
        gaps = np.asarray(self.scores[self.headline], np.float64) - np.asarray(other.scores[self.headline], np.float64)
        gaps = gaps[~np.isnan(gaps)]
        n = len(gaps)
        interval = _t(n) * gaps.std(ddof=1) / math.sqrt(n) if n > 1 else math.nan
        return Difference(self.headline, self.kind, float(gaps.mean()), float(interval), n)

    def other_episodes(self, other: Result) -> dict[str, tuple[Any, Any]]:
        """Return the fields in which the episodes of two results differ, {name: (this one's, the other's)}.

        It is empty if they are the same episodes. A result of tasks that were not built by name records their class,
        shape, seed and data, but not their options.
        """
        names = [n for n in EPISODES if _comparable(n, getattr(self, n)) != _comparable(n, getattr(other, n))]
        differing = {name: (getattr(self, name), getattr(other, name)) for name in names}
        if self.headline not in other.scores:
            differing["headline"] = (self.headline, other.headline)
        return differing

    def to_dict(self, episodes: bool = True) -> dict[str, Any]:
        """Return plain values; without ``episodes`` only means and intervals, not the scores of every episode."""
        plain = attrs.asdict(self, recurse=False)
        plain["scores"] = {n: _finite(np.asarray(v).tolist()) for n, v in self.scores.items()} if episodes else {}
        if self.classes is not None:  # as texts, because a line for each number would be long
            plain["classes"] = [" ".join(map(str, row)) for row in self.classes.tolist()] if episodes else None
        summary = {
            n: {"mean": _finite(self.means(n).tolist()), "interval": _finite(self.intervals(n).tolist())}
            for n in self.scores
        }
        return {
            "headline": self.headline,
            "mean": _finite(self.mean),
            "interval": _finite(self.interval),
            "class_interval": _finite(self.class_interval),
            "episodes": self.episodes,
            "summary": summary,
            **plain,
        }

    def to_json(self, episodes: bool = True) -> str:
        """Return the result as JSON, see ``to_dict``; ``from_json`` reads it if it has the episodes."""
        return json.dumps(self.to_dict(episodes), indent=1, default=str)

    @classmethod
    def from_json(cls, text: str, test: int | None = None) -> Result:
        """Return the result that ``to_json`` wrote, or one of those in a run's ``result.json``.

        Args:
            text: the content of the file.
            test: which test of the run to return, from 0; needed if there are several.

        Raises:
            DataError: the text is not a result, was written without episodes, or has several tests and none was
                chosen.
        """
        try:
            values = json.loads(text)
            if "results" in values:
                values = _chosen(values["results"], test)
            scores = {n: np.asarray(_nan(v), np.float64) for n, v in values["scores"].items()}
            known = [f for f in attrs.fields(cls) if f.name != "scores"]
            fields = {f.name: values[f.name] for f in known if f.name in values or f.default is attrs.NOTHING}
            if fields.get("classes") is not None:
                fields["classes"] = np.asarray([row.split() for row in fields["classes"]], np.int64)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(
                f"Result.from_json: got text that is not a result ({error!r}), expected what to_json or a run wrote"
            ) from error
        if not scores:
            raise DataError(
                "Result.from_json: got a result without episodes, expected one written by to_json(episodes=True)"
            )
        return cls(scores=scores, **fields)

    def to_frame(self) -> Any:
        """Return the scores as a ``pandas.DataFrame``: a row for each episode, a column for each score.

        The columns of a curve are ``NAME.0``, ``NAME.1`` and so on.

        Raises:
            Unavailable: pandas is not installed.
        """
        pandas = needed("pandas", "Result.to_frame")
        columns: dict[str, Any] = {}
        for name, values in self.scores.items():
            flat = np.asarray(values).reshape(len(values), -1)
            curve = np.ndim(values) > 1
            columns |= {f"{name}.{i}" if curve else name: flat[:, i] for i in range(flat.shape[1])}
        return pandas.DataFrame(columns, index=pandas.RangeIndex(self.episodes, name="episode"))

    def plot(self, name: str | None = None, ax: Any = None) -> Any:
        """Draw a score by matplotlib: its histogram over episodes, or a curve with its 95 % interval.

        Args:
            name: name of the score; by default the headline.
            ax: axes of matplotlib to draw in; by default new ones.

        Returns:
            The axes.

        Raises:
            Unavailable: matplotlib is not installed.
            DataError: there is no such score.
        """
        name = self.headline if name is None else name
        if name not in self.scores:
            raise DataError(f"Result.plot: got the score {name!r}, expected one of {', '.join(self.scores)}")
        if ax is None:
            ax = needed("matplotlib.pyplot", "Result.plot").subplots()[1]
        if np.ndim(self.scores[name]) > 1:
            mean, interval = self.means(name).reshape(-1), self.intervals(name).reshape(-1)
            ax.plot(mean)
            ax.fill_between(range(len(mean)), mean - interval, mean + interval, alpha=0.3)
            ax.set(xlabel="step", ylabel=name)
        else:
            ax.hist(self.scores[name], bins="auto")
            ax.axvline(float(self.means(name)), color="black")
            ax.set(xlabel=name, ylabel="episodes", title=str(self))
        return ax

    def __repr__(self) -> str:
        return f"<Result: {self}>"

    def _repr_html_(self) -> str:
        """Return the headline, the mean and interval of each score, and what was evaluated, as HTML."""
        single = {n: v for n, v in self.scores.items() if np.ndim(v) == 1}
        rows = [(n, f"{float(self.means(n)):.4g}", f"± {float(self.intervals(n)):.2g}") for n in single]
        about = {
            "learner": self.learner.get("name"),
            "tasks": self.tasks.get("name"),
            "iteration": self.iteration,
            "data": self.data,
        }
        return facts(str(self), about) + table(rows, ("score", "mean", "95 % interval"))

    def __str__(self) -> str:
        from kshot.kinds import KINDS

        policy = [self.normalisation] if self.normalisation != "none" else []
        joint = [f"queries {self.queries}"] if self.queries != "independent" else []
        way, shot = self.shape.get("way"), self.shape.get("shot")
        shape = [f"{way}-way {shot}-shot"] if way is not None and shot is not None else []
        attack = [attack_text(self.attack)] if self.attack else []
        number = f"{self.episodes} {'disjoint ' if self.disjoint else ''}episodes"
        about = ", ".join([number, self.split, *shape, *policy, *joint, *attack])
        if KINDS[self.kind].percent:
            return f"{100 * self.mean:.2f} ± {100 * self.interval:.2f} % {self.headline} ({about})"
        return f"{self.mean:.4g} ± {self.interval:.2g} {self.headline} ({about})"


def attack_text(attack: Mapping[str, Any]) -> str:
    """Return the field ``attack`` of a result in words; an empty string if there was no attack.

    Example:
        >>> attack_text({"name": "fgsm", "epsilon": 0.1, "on": "both"})
        'fgsm 0.1 on support and query'
    """
    if not attack:
        return ""
    on = str(attack.get("on")).replace("both", "support and query")
    return f"{attack.get('name')} {attack.get('epsilon')} on {on}"


def _t(n: int) -> float:
    """Return the factor of the 95 % interval of a mean of n values: the 97.5 % quantile of Student's t."""
    from scipy.special import stdtrit  # much faster to import than scipy.stats

    return float(stdtrit(n - 1, 0.975))


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
    """Return a field as text that is the same for a new result and for one that was read from a file.

    The options of tasks that ``shape`` and ``tasks_seed`` record too are left out: an option that is given explicitly
    with its default value does not change the episodes.
    """
    if name == "tasks" and "options" in value:
        options = {n: v for n, v in value["options"].items() if n not in ("way", "shot", "query", "seed")}
        value = {**value, "options": options}
    return json.dumps(value, sort_keys=True, default=str)


def _finite(value: Any) -> Any:
    """Replace NaN by None and infinity by ``"inf"``, in nested lists, as JSON has neither."""
    if isinstance(value, list):
        return [_finite(v) for v in value]
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return None if math.isnan(value) else str(value)


def _nan(value: Any) -> Any:
    """Undo ``_finite``."""
    if isinstance(value, list):
        return [_nan(v) for v in value]
    if isinstance(value, str):
        return float(value)
    return math.nan if value is None else value
