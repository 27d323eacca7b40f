"""Compare a siamese network's distance with raw pixels in verifying faces of unseen people (AT&T, ORL).

Over several splits by person: 20 people to train, 10 to choose settings by, 10 to test. With the settings chosen,
networks are trained anew on the 30 people and judged on all 4950 pairs of the other 10's pictures, on which raw pixels
are judged too. Two networks: a linear one over whitened principal components of the pixels, and conv4.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from bench import ROOT, Report, arguments
from torch import nn

import kshot
from kshot_siamese import Siamese
from kshot_siamese.verification import Pairs, balanced_accuracy, best_threshold, equal_error_rate, pairs_of, roc_auc

SIZE, ITERATIONS = (28, 23), 100
OPTIMIZER = {"lr": 3e-3, "schedule": "linear", "warmup": 20}
SETTINGS: dict[str, tuple[dict[str, float], ...]] = {
    "linear": tuple({"components": k, "augment": a, "margin": 1.0} for k in (30, 50, 70) for a in (0.5, 1.0)),
    "conv4": ({"augment": 1.0, "margin": 1.0}, {"augment": 2.0, "margin": 0.5}),
}
"""What is chosen among, on validation people."""

FIRST_SPLIT = 100
"""Splits below it were for trials: which nets, sizes and rates to offer above was found on the validation people of 0
to 7, of whom others are the test people here."""

QUANTILE = {2: 12.706, 20: 2.093}
"""Student's t, 97.5 %, for that many splits."""


def find_faces() -> None:
    """``KSHOT_ORL_FACES``, else ``../shared/data/orl_faces`` beside the repository."""
    beside = ROOT.parent / "shared" / "data" / "orl_faces"
    if not os.environ.get("KSHOT_ORL_FACES") and beside.is_dir():
        os.environ["KSHOT_ORL_FACES"] = str(beside)


def faces(split_seed: int, settings: dict[str, float], fit: str, **options: Any) -> Any:
    """Make the face tasks, with components fitted on the people of ``fit`` if the settings give their number."""
    options = {"size": SIZE, "split_seed": split_seed, "augment": settings.get("augment", 0.0), **options}
    if "components" not in settings:
        return kshot.tasks("orl-faces", **options)
    return kshot.tasks("whitened", of={"name": "orl-faces", **options}, components=int(settings["components"]), fit=fit)


def trained(net: str, split_seed: int, settings: dict[str, float], on: str, iterations: int) -> tuple[Siamese, Any]:
    """A network trained on the people of ``train`` or ``trainval``; and tasks for its test, images unchanged."""
    tasks = faces(split_seed, settings, on, way=20, shot=1, query=5)
    width = 64 if net == "linear" else 32
    learner: Siamese = kshot.learner("siamese", tasks.spec, encoder=net, width=width, margin=settings["margin"])
    kshot.Engine(learner, tasks, optimizer=OPTIMIZER).train(iterations, split=on)
    return learner.eval(), faces(split_seed, {**settings, "augment": 0.0}, on, way=10, shot=1, query=9)


def auc(learner: Siamese, tasks: Any, split: str) -> float:
    pairs = pairs_of(learner, tasks.pool(split))
    return roc_auc(pairs.distance, pairs.genuine)


Judged = tuple[Siamese, Any]
"""A learner and its tasks."""


def of_people(pairs: Pairs, y: np.ndarray[Any, Any]) -> list[float]:
    """For each person the area under the ROC curve over the pairs that have a picture of this person."""
    of_first, of_second = y[pairs.first], y[pairs.second]
    each = [(of_first == person) | (of_second == person) for person in np.unique(y)]
    return [roc_auc(pairs.distance[mine], pairs.genuine[mine]) for mine in each]


def judged(final: Judged, first: Judged, episodes: int) -> tuple[dict[str, float], dict[str, float]]:
    """A learner on the test people, in all and person by person. The accuracy of verification is that of ``first``,
    which has not seen the validation people, at the threshold that is best on their pairs."""
    pool = final[1].pool("test")
    test = pairs_of(final[0], pool)
    val, then = (pairs_of(first[0], first[1].pool(split)) for split in ("val", "test"))
    threshold = best_threshold(val.distance, val.genuine)
    people = dict(zip(pool.names, of_people(test, pool.table()[1]), strict=True))
    made = {
        "ROC AUC": roc_auc(test.distance, test.genuine),
        "equal error rate": equal_error_rate(test.distance, test.genuine),
        "balanced accuracy, threshold of val": balanced_accuracy(then.distance, then.genuine, threshold),
        "10-way 1-shot accuracy": kshot.Engine(*final).evaluate(episodes).mean,
    }
    return made, people


def of_split(split_seed: int, iterations: int, episodes: int) -> tuple[list[str], list[Any]]:
    """Return the settings chosen for each net, and the results of the nets and of raw pixels."""
    chosen, arms = [], []
    for net, offered in SETTINGS.items():
        first = [trained(net, split_seed, settings, "train", iterations) for settings in offered]
        best = int(np.argmax([auc(*one, "val") for one in first]))
        chosen.append(f"{net} {', '.join(f'{name} {value:g}' for name, value in offered[best].items())}")
        final = trained(net, split_seed, offered[best], "trainval", iterations)
        arms.append(judged(final, first[best], episodes))
    for size in (SIZE, (112, 92)):
        tasks = faces(split_seed, {}, "train", way=10, shot=1, query=9, size=size)
        raw = (Siamese(tasks.spec, encoder=nn.Flatten(), unit_length=False).eval(), tasks)
        arms.append(judged(raw, raw, episodes))
    return chosen, arms


def shown(values: np.ndarray[Any, Any], sign: str = "") -> str:
    """The mean over splits and half its 95 % interval, for splits that share people: the variance of the mean is
    s^2 (1 / J + test people / training people) (Nadeau & Bengio 2003)."""
    J = len(values)
    half = QUANTILE[J] * values.std(ddof=1) * np.sqrt(1 / J + 10 / 30)
    return f"{values.mean():{sign}.3f} ± {half:.3f}"


def shown_over_people(values: np.ndarray[Any, Any], sign: str = "") -> str:
    """The mean over people and half its 95 % interval, as of independent ones: 1.96 standard errors."""
    return f"{values.mean():{sign}.3f} ± {1.96 * values.std(ddof=1) / np.sqrt(len(values)):.3f}"


def over_people(arms: Sequence[Sequence[dict[str, float]]]) -> np.ndarray[Any, Any]:
    """Arms of splits' people -> [arms, people], each person's mean over the splits that tested this one."""
    names = sorted({name for split in arms[0] for name in split})
    return np.array([[np.mean([split[n] for split in arm if n in split]) for n in names] for arm in arms])


def main() -> None:
    options = arguments(__doc__)
    find_faces()
    torch.set_num_threads(1)
    splits, iterations, episodes = (2, 5, 20) if options.quick else (20, ITERATIONS, 300)
    numbers = range(FIRST_SPLIT, FIRST_SPLIT + splits)
    chosen, found = zip(*(of_split(seed, iterations, episodes) for seed in numbers), strict=True)
    counted = Counter(text for texts in chosen for text in texts)
    report = Report(
        "faces",
        [
            f"AT&T faces at {SIZE[0]} x {SIZE[1]}; {splits} splits by person, of 30 people to train on and 10 to test",
            f"{iterations} episodes; chosen on validation people:",
            *(f"  {times} times {text}" for text, times in sorted(counted.items())),
            "± is the 95 % interval of the mean over splits, which share people (Nadeau & Bengio 2003);",
            "  in the last row it is that over people, each judged by networks that never saw this one",
        ],
    )
    rates: list[tuple[float, str]] = []

    def add(measure: str, arms: Sequence[np.ndarray[Any, Any]], show: Callable[..., str]) -> None:
        linear, conv, raw, whole = arms
        row = {"measure": measure, "linear": show(linear), "conv4": show(conv)}
        row |= {"pixels": show(raw), "pixels 112 x 92": show(whole)}
        row |= {"linear - pixels": show(linear - raw, "+"), "linear - 112 x 92": show(linear - whole, "+")}
        report.rows.append({**row, "conv4 - pixels": show(conv - raw, "+")})

    for measure in found[0][0][0]:
        arms = [np.array([split[arm][0][measure] for split in found]) for arm in range(4)]
        add(measure, arms, shown)
        linear, conv, raw, _ = arms
        if measure == "equal error rate":
            rates = [(float(raw.mean() / arm.mean()), name) for arm, name in ((conv, "conv4"), (linear, "linear"))]
    people = over_people([[split[arm][1] for split in found] for arm in range(4)])
    add(f"a person's ROC AUC, over {people.shape[1]} people", people, shown_over_people)
    for ratio, name in rates:
        report.ratios.append(
            (ratio, f"the equal error rate of raw pixels is {{}} x that of the siamese network ({name})")
        )
    report.finish(options)


if __name__ == "__main__":
    main()
