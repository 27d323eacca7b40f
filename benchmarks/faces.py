"""Compare the distance of a siamese network with that of raw pixels in verifying faces of unseen people (AT&T, ORL).

Each of twenty splits by person has 20 people for training, 10 for choosing the settings, and 10 for the test. With the
chosen settings a network is trained again on the 30 people and evaluated on all 4950 pairs of pictures of the 10 test
people. Raw pixels are evaluated on the same pairs. There are two networks: a linear one over whitened principal
components of the pixels, and conv4. Each ratio is the equal error rate of raw pixels over that of a network, so a value
above 1 means that the network is better.

Run ``python benchmarks/faces.py`` with the data in ``KSHOT_ORL_FACES`` (needs kshot-siamese, kshot-orl-faces and
kshot-whitened); add ``--quick`` to test the script only.
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
"""The settings among which the validation people choose, for each network."""

FIRST_SPLIT = 100
"""The number of the first split. The networks, sizes and rates above were selected on the validation people of splits 0
to 7; the splits used here divide the same people in other ways."""

QUANTILE = {2: 12.706, 20: 2.093}
"""Number of splits -> the 97.5 % quantile of Student's t for it."""


def find_faces() -> None:
    """Set ``KSHOT_ORL_FACES``, if it is not set, to ``../shared/data/orl_faces`` beside the repository."""
    beside = ROOT.parent / "shared" / "data" / "orl_faces"
    if not os.environ.get("KSHOT_ORL_FACES") and beside.is_dir():
        os.environ["KSHOT_ORL_FACES"] = str(beside)


def faces(split_seed: int, settings: dict[str, float], fit: str, **options: Any) -> Any:
    """Make the face tasks; if the settings give a number of components, whitened ones fitted on the split ``fit``."""
    options = {"size": SIZE, "split_seed": split_seed, "augment": settings.get("augment", 0.0), **options}
    if "components" not in settings:
        return kshot.tasks("orl-faces", **options)
    return kshot.tasks("whitened", of={"name": "orl-faces", **options}, components=int(settings["components"]), fit=fit)


def trained(net: str, split_seed: int, settings: dict[str, float], on: str, iterations: int) -> tuple[Siamese, Any]:
    """Train a network on the split ``on``; return it with the tasks for its test, whose images are not augmented."""
    tasks = faces(split_seed, settings, on, way=20, shot=1, query=5)
    width = 64 if net == "linear" else 32
    learner: Siamese = kshot.learner("siamese", tasks.spec, encoder=net, width=width, margin=settings["margin"])
    kshot.Engine(learner, tasks, optimizer=OPTIMIZER).train(iterations, split=on)
    return learner.eval(), faces(split_seed, {**settings, "augment": 0.0}, on, way=10, shot=1, query=9)


def auc(learner: Siamese, tasks: Any, split: str) -> float:
    """Return the area under the ROC curve over all pairs of a split."""
    pairs = pairs_of(learner, tasks.pool(split))
    return roc_auc(pairs.distance, pairs.genuine)


Trained = tuple[Siamese, Any]
"""A learner and its tasks."""


def auc_by_person(pairs: Pairs, y: np.ndarray[Any, Any]) -> list[float]:
    """Return for each person the area under the ROC curve over the pairs with a picture of this person."""
    of_first, of_second = y[pairs.first], y[pairs.second]
    masks = [(of_first == person) | (of_second == person) for person in np.unique(y)]
    return [roc_auc(pairs.distance[mask], pairs.genuine[mask]) for mask in masks]


def evaluate(final: Trained, first: Trained, episodes: int) -> tuple[dict[str, float], dict[str, float]]:
    """Evaluate a learner on the test people.

    Args:
        final: the learner that was trained on training and validation people.
        first: the one that was trained on the training people only. Its best threshold on the pairs of the validation
            people gives the accuracy of verification; ``final`` has seen these people.
        episodes: number of test episodes.

    Returns:
        The measures over all test people, and the area under the ROC curve of each person.
    """
    pool = final[1].pool("test")
    test = pairs_of(final[0], pool)
    val, then = (pairs_of(first[0], first[1].pool(split)) for split in ("val", "test"))
    threshold = best_threshold(val.distance, val.genuine)
    people = dict(zip(pool.names, auc_by_person(test, pool.table()[1]), strict=True))
    measures = {
        "ROC AUC": roc_auc(test.distance, test.genuine),
        "equal error rate": equal_error_rate(test.distance, test.genuine),
        "balanced accuracy, threshold of val": balanced_accuracy(then.distance, then.genuine, threshold),
        "10-way 1-shot accuracy": kshot.Engine(*final).evaluate(episodes).mean,
    }
    return measures, people


def of_split(split_seed: int, iterations: int, episodes: int) -> tuple[list[str], list[Any]]:
    """Run one split: return the settings chosen for each network, and the results of the networks and of raw pixels."""
    chosen, arms = [], []
    for net, offered in SETTINGS.items():
        first = [trained(net, split_seed, settings, "train", iterations) for settings in offered]
        best = int(np.argmax([auc(*one, "val") for one in first]))
        chosen.append(f"{net} {', '.join(f'{name} {value:g}' for name, value in offered[best].items())}")
        final = trained(net, split_seed, offered[best], "trainval", iterations)
        arms.append(evaluate(final, first[best], episodes))
    for size in (SIZE, (112, 92)):
        # Without an encoder, the distance of the siamese network is that of raw pixels.
        tasks = faces(split_seed, {}, "train", way=10, shot=1, query=9, size=size)
        raw = (Siamese(tasks.spec, encoder=nn.Flatten(), unit_length=False).eval(), tasks)
        arms.append(evaluate(raw, raw, episodes))
    return chosen, arms


def shown(values: np.ndarray[Any, Any], sign: str = "") -> str:
    """Format the mean over splits and the half-width of its 95 % interval.

    The splits share people, so the variance of the mean is s^2 (1 / J + test people / training people) (Nadeau & Bengio
    2003).
    """
    J = len(values)
    half = QUANTILE[J] * values.std(ddof=1) * np.sqrt(1 / J + 10 / 30)
    return f"{values.mean():{sign}.3f} ± {half:.3f}"


def shown_over_people(values: np.ndarray[Any, Any], sign: str = "") -> str:
    """Format the mean over people and 1.96 standard errors, as if people were independent."""
    return f"{values.mean():{sign}.3f} ± {1.96 * values.std(ddof=1) / np.sqrt(len(values)):.3f}"


def over_people(arms: Sequence[Sequence[dict[str, float]]]) -> np.ndarray[Any, Any]:
    """Return for each arm and person the mean over the splits in which this person was tested [arms, people]."""
    names = sorted({name for split in arms[0] for name in split})
    return np.array([[np.mean([split[n] for split in arm if n in split]) for n in names] for arm in arms])


def main() -> None:
    options = arguments(__doc__)
    find_faces()
    torch.set_num_threads(1)
    splits, iterations, episodes = (2, 5, 20) if options.quick else (20, ITERATIONS, 300)
    numbers = range(FIRST_SPLIT, FIRST_SPLIT + splits)
    chosen, results = zip(*(of_split(seed, iterations, episodes) for seed in numbers), strict=True)
    counted = Counter(text for texts in chosen for text in texts)
    report = Report(
        "faces",
        [
            f"AT&T faces at {SIZE[0]} x {SIZE[1]}; {splits} splits of 30 people for training and 10 for the test",
            f"{iterations} training episodes; the settings that the validation people chose:",
            *(f"  {times} times {text}" for text, times in sorted(counted.items())),
            "± is the 95 % interval of the mean over splits, which share people (Nadeau & Bengio 2003);",
            "  in the last row it is that of the mean over people, each tested by networks that never saw this person",
        ],
    )
    rates: list[tuple[float, str]] = []

    def add(measure: str, arms: Sequence[np.ndarray[Any, Any]], show: Callable[..., str]) -> None:
        linear, conv, raw, full_size = arms
        row = {"measure": measure, "linear": show(linear), "conv4": show(conv)}
        row |= {"pixels": show(raw), "pixels 112 x 92": show(full_size)}
        row |= {"linear - pixels": show(linear - raw, "+"), "linear - 112 x 92": show(linear - full_size, "+")}
        report.rows.append({**row, "conv4 - pixels": show(conv - raw, "+")})

    for measure in results[0][0][0]:
        arms = [np.array([split[arm][0][measure] for split in results]) for arm in range(4)]
        add(measure, arms, shown)
        linear, conv, raw, _ = arms
        if measure == "equal error rate":
            rates = [(float(raw.mean() / arm.mean()), name) for arm, name in ((conv, "conv4"), (linear, "linear"))]
    people = over_people([[split[arm][1] for split in results] for arm in range(4)])
    add(f"a person's ROC AUC, over {people.shape[1]} people", people, shown_over_people)
    for ratio, name in rates:
        report.ratios.append(
            (ratio, f"the equal error rate of raw pixels is {{}} times that of the siamese network ({name})")
        )
    report.finish(options)


if __name__ == "__main__":
    main()
