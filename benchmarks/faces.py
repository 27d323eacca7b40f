"""Are unseen people's faces told apart better by a siamese network's distance than by raw pixels? AT&T (ORL) faces.

Over several splits by person: 20 people to train, 10 to choose settings by, 10 to test. With the settings chosen,
networks are trained anew on the 30 people and judged on all 4950 pairs of the other 10's pictures, on which raw pixels
are judged too. So few people make networks that differ by their seeds, so beside one stand three together, their
embeddings side by side.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from bench import ROOT, Report, arguments
from torch import Tensor, nn

import kshot
from kshot_siamese import Siamese
from kshot_siamese.verification import balanced_accuracy, best_threshold, equal_error_rate, pairs_of, roc_auc

SIZE, WIDTH, ITERATIONS = (28, 23), 32, 100
OPTIMIZER = {"lr": 3e-3, "schedule": "linear", "warmup": 20}
CANDIDATES = ((1.0, 1.0), (2.0, 0.5))
"""Strength of augmentation and margin."""

QUANTILE = {2: 12.706, 8: 2.365}
"""Student's t, 97.5 %, for that many splits."""


class Together(nn.Module):
    """Several learners' embeddings side by side: the squared distance is the sum of theirs."""

    def __init__(self, learners: list[Siamese]) -> None:
        super().__init__()
        self.learners = nn.ModuleList(learners)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([learner.embed(x) for learner in self.learners], -1)


def find_faces() -> None:
    """``KSHOT_ORL_FACES``, else ``../shared/data/orl_faces`` beside the repository."""
    beside = ROOT.parent / "shared" / "data" / "orl_faces"
    if not os.environ.get("KSHOT_ORL_FACES") and beside.is_dir():
        os.environ["KSHOT_ORL_FACES"] = str(beside)


def trained(split_seed: int, seed: int, settings: tuple[float, float], on: str, iterations: int) -> Siamese:
    """A network trained on the people of ``train`` or ``trainval``."""
    augment, margin = settings
    tasks = kshot.tasks(
        "orl-faces", way=20, shot=1, query=5, size=SIZE, split_seed=split_seed, augment=augment, seed=seed
    )
    learner: Siamese = kshot.learner("siamese", tasks.spec, width=WIDTH, margin=margin, seed=seed)
    kshot.Engine(learner, tasks, optimizer=OPTIMIZER, seed=seed).train(iterations, split=on)
    return learner.eval()


def auc(learner: Siamese, tasks: Any, split: str) -> float:
    pairs = pairs_of(learner, tasks.pool(split))
    return roc_auc(pairs.distance, pairs.genuine)


def judged(learner: Siamese, chooser: Siamese, tasks: Any, episodes: int) -> dict[str, float]:
    """A learner on the test people. The accuracy of verification is that of ``chooser``, which has not seen the
    validation people, at the threshold that is best on their pairs."""
    test = pairs_of(learner, tasks.pool("test"))
    val, then = (pairs_of(chooser, tasks.pool(split)) for split in ("val", "test"))
    threshold = best_threshold(val.distance, val.genuine)
    return {
        "ROC AUC": roc_auc(test.distance, test.genuine),
        "equal error rate": equal_error_rate(test.distance, test.genuine),
        "balanced accuracy, threshold of val": balanced_accuracy(then.distance, then.genuine, threshold),
        "10-way 1-shot accuracy": kshot.Engine(learner, tasks).evaluate(episodes).mean,
    }


def of_split(split_seed: int, iterations: int, episodes: int) -> tuple[tuple[float, float], list[dict[str, float]]]:
    """The settings chosen, and what one network, three together and raw pixels reach."""
    tasks = kshot.tasks("orl-faces", way=10, shot=1, query=9, size=SIZE, split_seed=split_seed)
    choosers = {settings: trained(split_seed, 0, settings, "train", iterations) for settings in CANDIDATES}
    chosen = max(CANDIDATES, key=lambda settings: auc(choosers[settings], tasks, "val"))
    final = [trained(split_seed, seed, chosen, "trainval", iterations) for seed in range(3)]
    first = [choosers[chosen], *(trained(split_seed, seed, chosen, "train", iterations) for seed in (1, 2))]
    together = [Siamese(tasks.spec, encoder=Together(learners)).eval() for learners in (final, first)]
    raw = Siamese(tasks.spec, encoder=nn.Flatten(), unit_length=False).eval()
    arms = ((final[0], first[0]), (together[0], together[1]), (raw, raw))
    return chosen, [judged(learner, chooser, tasks, episodes) for learner, chooser in arms]


def shown(values: np.ndarray[Any, Any], sign: str = "") -> str:
    """The mean over splits and half its 95 % interval, for splits that share people: the variance of the mean is
    s^2 (1 / J + test people / training people) (Nadeau & Bengio 2003)."""
    J = len(values)
    half = QUANTILE[J] * values.std(ddof=1) * np.sqrt(1 / J + 10 / 30)
    return f"{values.mean():{sign}.3f} ± {half:.3f}"


def main() -> None:
    options = arguments(__doc__)
    find_faces()
    torch.set_num_threads(1)
    splits, iterations, episodes = (2, 5, 20) if options.quick else (8, ITERATIONS, 300)
    chosen, found = zip(*(of_split(seed, iterations, episodes) for seed in range(splits)), strict=True)
    report = Report(
        "faces",
        [
            f"AT&T faces at {SIZE[0]} x {SIZE[1]}; {splits} splits by person, of 30 people to train on and 10 to test",
            f"conv4-{WIDTH}, {iterations} episodes; (augment, margin) chosen on validation people: {list(chosen)}",
            "± is the 95 % interval of the mean over splits, which share people (Nadeau & Bengio 2003)",
        ],
    )
    rates: list[float] = []
    for measure in found[0][0]:
        one, three, raw = (np.array([split[arm][measure] for split in found]) for arm in range(3))
        row = {"measure": measure, "siamese": shown(one), "three together": shown(three), "raw pixels": shown(raw)}
        report.rows.append({**row, "siamese - raw": shown(one - raw, "+"), "three - raw": shown(three - raw, "+")})
        if measure == "equal error rate":
            rates = [float(raw.mean() / one.mean()), float(raw.mean() / three.mean())]
    report.ratios.append((rates[1], "the equal error rate of raw pixels is {} x that of three networks together"))
    report.ratios.append((rates[0], "the equal error rate of raw pixels is {} x that of one siamese network"))
    report.finish(options)


if __name__ == "__main__":
    main()
