"""Compare runs on the same episodes and over seeds, with t intervals, and the tests of one run with each other.

Letters: S seeds, n episodes.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from kshot._engine.recording import RESULT_FILE
from kshot._engine.result import Difference, Result, attack_text
from kshot._engine.run_folder import CONFIG_FILE, RunFolder, run_path
from kshot._engine.stored import fitting
from kshot._engine.stored_results import read_results
from kshot.errors import DataError, RunError
from kshot.kinds import KINDS
from kshot.runs.plan import ADVICE, PLAN, SEED
from kshot.runs.recipe import Table

PRINTED = ("way", "shot")
"""Options of the tasks that a printed result shows, so that labels omit them."""

LEVEL = 0.95
"""Level of all intervals."""

# --- The tests of one run --------------------------------------------------------------------------------------------


@frozen
class Compared:
    """Store the difference of one test of a run from the first test on the same episodes.

    Attributes:
        test, against: labels of the two tests.
        difference: the result of ``test`` minus that of ``against``.
    """

    test: str
    against: str
    difference: Difference

    def to_dict(self) -> Table:
        """Return plain values."""
        return {"test": self.test, "against": self.against, **self.difference.to_dict()}

    def __str__(self) -> str:
        return f"{self.test} against {self.against}: {self.difference}"


def labels(tests: Sequence[tuple[Table, Table]]) -> tuple[str, ...]:
    """Return a name for each test, (options of the tasks, of the learner): the options that are not the same in all.

    ``"refine soft, distractors 5"``; empty if what a result prints says everything.
    """
    flat = [{**dict(_flat(learner)), **dict(_flat(tasks))} for tasks, learner in tests]
    return tuple(_differing(flat, printed=PRINTED))


def _differing(flat: Sequence[Mapping[str, Any]], printed: Sequence[str] = ()) -> Iterator[str]:
    """Yield for each mapping what it does not have in common with all others, as text."""
    absent = object()
    names = list(dict.fromkeys(name for options in flat for name in options if name not in printed))
    varying = [n for n in names if any(options.get(n, absent) != flat[0].get(n, absent) for options in flat)]
    for options in flat:
        yield ", ".join(f"{name} {options[name]}" for name in varying if name in options)


def _flat(options: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested options by dotted names."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def compare_tests(results: Sequence[Result], names: Sequence[str]) -> tuple[Compared, ...]:
    """Return the paired difference of each result from the first one on the same episodes."""
    compared = []
    for i, result in enumerate(results):
        first = next(j for j in range(i + 1) if not result.other_episodes(results[j]))
        if first < i:
            test, against = (names[k] or f"test {k + 1}" for k in (i, first))
            compared.append(Compared(test, against, result.minus(results[first])))
    return tuple(compared)


# --- Several runs ----------------------------------------------------------------------------------------------------


@frozen
class Row:
    """Store the scores of one method on one test.

    Attributes:
        test: what is tested, ``5-way 1-shot``.
        method: the learner, and the options in which it differs from the other methods.
        score: the name of the headline.
        seeds: of the runs, each trained anew.
        mean: of the headline over seeds and episodes.
        interval: half the width of its 95 % t interval: over seeds if there are several, else over episodes.
        difference: from the first method on the same episodes; NaN for the first itself.
        difference_interval: half the width of the difference's 95 % t interval.
        paired_over: what the differences are paired over: ``seeds`` and episodes, ``episodes`` of one seed each, or
            ``unpaired seeds`` (Welch) if the methods have different seeds.
        episodes: n, the same for all methods.
        percent: whether the figures are fractions that are printed in percent.
    """

    test: str
    method: str
    score: str
    seeds: tuple[int, ...]
    mean: float
    interval: float
    difference: float
    difference_interval: float
    paired_over: str
    episodes: int
    percent: bool


@frozen
class Comparison:
    """Store a table with one row for each method and test; prints as Markdown.

    Example:
        >>> row = Row("5-way 1-shot", "protonet", "accuracy", (0,), 0.95, 0.01, math.nan, math.nan, "", 600, True)
        >>> print(Comparison((row,)))
        | test | method | seeds | accuracy | difference from the first | paired over |
        | --- | --- | --- | --- | --- | --- |
        | 5-way 1-shot | protonet | 0 | 95.00 ± 1.00 % |  |  |
        <BLANKLINE>
        600 episodes, the same for all; ± is half a 95 % t interval, over episodes.
    """

    rows: tuple[Row, ...]

    def to_markdown(self) -> str:
        """Return the table in Markdown, with a sentence about what the intervals are."""
        scores = list(dict.fromkeys(row.score for row in self.rows))
        head = ("test", "method", "seeds", " / ".join(scores), "difference from the first", "paired over")
        lines = [head, ("---",) * len(head), *(_cells(row) for row in self.rows)]
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        several = any(len(row.seeds) > 1 for row in self.rows)
        over = "over seeds where there are several, else over episodes" if several else "over episodes"
        numbers = " or ".join(str(n) for n in dict.fromkeys(row.episodes for row in self.rows))
        return f"{table}\n\n{numbers} episodes, the same for all; ± is half a 95 % t interval, {over}."

    def to_csv(self) -> str:
        """Return the rows as comma-separated values with a header; seeds are separated by spaces."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        names = [field.name for field in attrs.fields(Row)]
        writer.writerow(names)
        for row in self.rows:
            values = attrs.asdict(row)
            writer.writerow([" ".join(map(str, values[n])) if n == "seeds" else values[n] for n in names])
        return text.getvalue()

    def to_dict(self) -> list[dict[str, Any]]:
        """Return the rows as plain values; NaN becomes None."""
        return [
            {n: None if isinstance(v, float) and math.isnan(v) else v for n, v in attrs.asdict(row).items()}
            for row in self.rows
        ]

    def __str__(self) -> str:
        return self.to_markdown()


def _cells(row: Row) -> tuple[str, ...]:
    factor, unit, points = (100, " %", " points") if row.percent else (1, "", "")

    def figure(value: float, interval: float, sign: str = "") -> str:
        if math.isnan(value):
            return ""
        if row.percent:
            return f"{factor * value:{sign}.2f} ± {factor * interval:.2f}"
        return f"{value:{sign}.4g} ± {interval:.2g}"

    difference = figure(row.difference, row.difference_interval, "+")
    seeds = ", ".join(map(str, row.seeds))
    mean = f"{figure(row.mean, row.interval)}{unit}"
    return row.test, row.method, seeds, mean, f"{difference}{points}" if difference else "", row.paired_over


@frozen(eq=False)
class _Source:
    """Store the settings and results of one run in a comparison."""

    name: str
    settings: Mapping[str, Any]
    seed: int
    results: tuple[Result, ...]


def compare(*runs: Any) -> Comparison:
    """Compare two or more runs on identical episodes.

    Runs that differ in their seeds only are one method, and the figures of a method with several seeds are over
    seeds. Every method is compared with the first, by paired differences: of each episode, and of each seed.

    Args:
        runs: run folders, files written by ``kshot evaluate --output``, or ``kshot.runs.Run``.

    Raises:
        RunError: a run has no result yet, or can't be read.
        DataError: fewer than two runs, a seed twice, or the runs were tested on different episodes.

    Example:
        >>> import kshot
        >>> from kshot.testing import sample_learner, sample_tasks
        >>> _ = kshot.register(sample_learner.NearestMean, name="sample-learner")
        >>> _ = kshot.register(sample_tasks.classification, name="sample-tasks", group="tasks")
        >>> small = {"iterations": 2, "evaluate": {"episodes": 5}, "no_run": True, "quiet": True}
        >>> names = ({"name": "sample-learner", "width": width} for width in (4, 8))
        >>> comparison = compare(*(kshot.runs.train(name, "sample-tasks", **small) for name in names))
        >>> [row.paired_over for row in comparison.rows]
        ['', 'episodes']
    """
    if len(runs) < 2:
        raise DataError(f"compare: got {len(runs)} runs, expected at least two")
    sources = [_source(run) for run in runs]
    methods = _methods(sources)
    first = next(iter(methods.values()))
    rows = []
    for test in first[0].results:
        scored = {name: _scores(test, group) for name, group in methods.items()}
        baseline = next(iter(scored.values()))
        rows += [_row(test, name, scores, None if scores is baseline else baseline) for name, scores in scored.items()]
    return Comparison(tuple(rows))


def _source(run: Any) -> _Source:
    """Read a run folder, a file of results, or a run in memory."""
    if hasattr(run, "results") and hasattr(run, "engine"):
        recorded = {} if run.folder is None else RunFolder.open(run.folder).config
        return _as_source(str(run.folder or "run"), recorded, run.results)
    path = run_path(run)
    folder, file = (path, path / RESULT_FILE) if path.is_dir() else (None, path)
    config = {} if folder is None else RunFolder.open(folder).config
    if folder is not None and not file.is_file():
        raise RunError(f"{folder} has no result yet; expected a tested run: kshot resume {folder}")
    if plan := config.get("plan") or config.get("cli"):
        fitting(plan, PLAN, path / CONFIG_FILE, "plan", advice=ADVICE)
    fitting(config.get("seed", 0), SEED, path / CONFIG_FILE, "seed", advice=ADVICE)
    results = read_results(file)
    return _as_source(str(path), config, results)


def _as_source(name: str, config: Mapping[str, Any], results: Sequence[Result]) -> _Source:
    if not results:
        raise RunError(f"{name} has no results; test it first: kshot evaluate {name}")
    seed = int(config.get("seed", results[0].seed))
    plan = config.get("plan") or config.get("cli")
    if plan is not None:
        ignored = ("seed", "learner_seed", "about", "backend", "evaluate", "tests", "test_learners", "hooks")
        settings = {key: value for key, value in plan.items() if key not in ignored}
        settings["init_from"] = str(settings.get("init_from")).replace(str(seed), "{seed}")
    else:
        described = results[0].learner
        settings = {"learner": {"name": described.get("name", described.get("class")), **described.get("options", {})}}
    return _Source(name, settings, seed, tuple(results))


def _methods(sources: Sequence[_Source]) -> dict[str, list[_Source]]:
    """Group runs that differ in seeds only, under a name each."""
    groups: dict[str, list[_Source]] = {}
    for source in sources:
        groups.setdefault(json.dumps(source.settings, sort_keys=True, default=str), []).append(source)
    for group in groups.values():
        seeds = [source.seed for source in group]
        if len(set(seeds)) < len(seeds):
            named = ", ".join(source.name for source in group)
            raise DataError(f"compare: got runs of one method with one seed twice ({named}), expected different seeds")
    names: list[str] = []
    learners = [str(group[0].settings["learner"].get("name")) for group in groups.values()]
    for learner, group in zip(learners, groups.values(), strict=True):
        alike = [g for other, g in zip(learners, groups.values(), strict=True) if other == learner]
        options = list(_differing([dict(_flat(g[0].settings)) for g in alike]))[alike.index(group)]
        name = f"{learner}, {options}".removesuffix(", ").replace("learner.", "")
        names.append(name if name not in names else group[0].name)
    return dict(zip(names, groups.values(), strict=True))


def _scores(test: Result, group: Sequence[_Source]) -> dict[int, NDArray[np.float64]]:
    """Return for each seed the headline of every episode [n] on the episodes of ``test``."""
    scores = {}
    for source in group:
        same = [r for r in source.results if not r.other_episodes(test) and r.attack == test.attack]
        if not same:
            differing = source.results[0].other_episodes(test) or {"attack": (source.results[0].attack, test.attack)}
            listed = "; ".join(f"{name} {mine!r} and {theirs!r}" for name, (mine, theirs) in differing.items())
            raise DataError(
                f"compare: {source.name} was not tested on the episodes of the first run: {listed}; test it on the "
                "same: kshot evaluate RUN --tasks.NAME=VALUE --output=FILE.json, and compare the file"
            )
        scores[source.seed] = np.asarray(same[0].scores[test.headline], np.float64)
    return scores


def _row(
    test: Result,
    method: str,
    scores: Mapping[int, NDArray[np.float64]],
    baseline: Mapping[int, NDArray[np.float64]] | None,
) -> Row:
    means = {seed: float(np.nanmean(values)) for seed, values in scores.items()}
    if len(means) > 1:
        mean, interval = mean_and_interval(list(means.values()))
    else:
        mean, interval = mean_and_interval(next(iter(scores.values())))
    difference, half, over = (math.nan, math.nan, "") if baseline is None else _difference(scores, baseline)
    way, shot = test.shape.get("way"), test.shape.get("shot")
    shape = f"{way}-way {shot}-shot" if way is not None and shot is not None else test.kind
    return Row(
        test=", ".join(filter(None, (shape, attack_text(test.attack), "" if test.split == "test" else test.split))),
        method=method,
        score=test.headline,
        seeds=tuple(sorted(scores)),
        mean=mean,
        interval=interval,
        difference=difference,
        difference_interval=half,
        paired_over=over,
        episodes=test.episodes,
        percent=KINDS[test.kind].percent,
    )


def _difference(
    scores: Mapping[int, NDArray[np.float64]], baseline: Mapping[int, NDArray[np.float64]]
) -> tuple[float, float, str]:
    """Return the mean difference from the baseline, half its interval, and what it is paired over."""
    common = sorted(scores.keys() & baseline.keys())
    if len(scores) == len(baseline) == 1:  # one training of each: the sample are the episodes
        (mine,), (theirs,) = scores.values(), baseline.values()
        return (*mean_and_interval(mine - theirs), "episodes")
    if len(common) > 1:  # each seed gives one difference, over the same episodes
        return (*mean_and_interval([float(np.nanmean(scores[s] - baseline[s])) for s in common]), "seeds")
    a = np.array([np.nanmean(values) for values in scores.values()])
    b = np.array([np.nanmean(values) for values in baseline.values()])
    return (*_welch(a, b), "unpaired seeds")


def over_seeds(results: Sequence[Sequence[Result]], names: Sequence[str]) -> list[str]:
    """Return a line for each test: the mean of its headline over runs with other seeds, and its t interval.

    Args:
        results: of each run, one for each test.
        names: of the tests, empty where there is only one.
    """
    lines = []
    for test, name in enumerate(names):
        first = results[0][test]
        mean, interval = mean_and_interval([run[test].mean for run in results])
        percent = KINDS[first.kind].percent
        text = f"{100 * mean:.2f} ± {100 * interval:.2f} %" if percent else f"{mean:.4g} ± {interval:.2g}"
        label = f"{name}: " if name else ""
        lines.append(f"{label}{text} {first.headline} over {len(results)} seeds (95 % t interval)")
    return lines


def mean_and_interval(values: NDArray[np.float64] | Sequence[float]) -> tuple[float, float]:
    """Return the mean of a sample and half the width of its 95 % t interval, t s / sqrt(n); NaN values are left out.

    The interval of a single value is NaN.
    """
    from scipy import stats

    sample = np.asarray(values, np.float64)
    sample = sample[~np.isnan(sample)]
    n = len(sample)
    if n < 2:
        return (float(sample.mean()) if n else math.nan), math.nan
    t = float(stats.t.ppf((1 + LEVEL) / 2, n - 1))
    return float(sample.mean()), t * float(sample.std(ddof=1)) / math.sqrt(n)


def _welch(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, float]:
    """Return the difference of two means and half its 95 % interval by Welch's t test; NaN for a sample of one."""
    from scipy import stats

    difference = float(a.mean() - b.mean())
    if len(a) < 2 or len(b) < 2:
        return difference, math.nan
    low, high = stats.ttest_ind(a, b, equal_var=False).confidence_interval(LEVEL)
    return difference, float(high - low) / 2
