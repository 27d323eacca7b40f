"""Measure how well several methods separate sounds of cats and dogs: leave-one-out, with 95 % intervals.

The data are 28 recordings (Cats and Dogs), and 42 with those of Sub_dogs as dogs. Each recording in turn is left out
and classified by the others:

length    by the recording whose logarithm of the length is nearest
whole     by the nearest mean and deviation over time of 20 MFCC, computed on complete recordings
cut       the same on recordings that are cut to their first 0.98 s, the length of the shortest, so none is padded
protonet, siamese   by an embedding of the MFCC of cut recordings, trained on eight cuts of each of the others

``whole`` could make use of the length; ``cut`` and the embeddings can't. The intervals are Wilson's. Nothing was chosen
by these figures: the MFCC are those of kshot-cats-dogs, and the settings of the embeddings were fixed before the first
run. A ratio is the number of recordings that ``cut`` classifies correctly over that of ``length``.

Run ``python benchmarks/sounds.py`` with the data in ``KSHOT_CATS_DOGS`` (needs kshot-cats-dogs, kshot-protonet and
kshot-siamese); add ``--quick`` to test the script only.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import ROOT, Report, arguments

CUTS = 8
"""Number of cuts per training recording, spread evenly over it."""

SETTINGS = {"way": 2, "shot": 5, "query": 5}
ITERATIONS = 100
SEEDS = (0, 1)


def wilson(right: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Return Wilson's 95 % interval (1927, eq. 3) of the share ``right / n``."""
    share, square = right / n, z * z / n
    middle = (share + square / 2) / (1 + square)
    half = z / (1 + square) * ((share * (1 - share) + square / 4) / n) ** 0.5
    return middle - half, middle + half


def nearest(features: Any, y: Any) -> int:
    """Count the rows [n, D] whose nearest other row is of the same class."""
    import numpy as np

    apart = np.square(features[:, None] - features[None]).sum(-1)
    np.fill_diagonal(apart, np.inf)
    return int((y[apart.argmin(1)] == y).sum())


def summary(wave: Any) -> Any:
    """Return the mean and the deviation over time of a recording's 20 MFCC [40]."""
    import torch

    from kshot_cats_dogs.features import mfcc

    coefficients = mfcc(wave)
    return torch.cat([coefficients.mean(1), coefficients.std(1)]).numpy()


def embedded(name: str, starts: Any, cuts: Any, y: Any, seed: int, iterations: int) -> int:
    """Count the recordings that a learner classifies correctly after training on all others.

    Args:
        name: of the learner.
        starts: MFCC of the first 0.98 s of each recording [n, 1, 20, T].
        cuts: MFCC of cuts of each recording [n, CUTS, 1, 20, T].
        y: class of each recording [n].
        seed: of tasks, learner and training.
        iterations: number of training episodes.
    """
    import torch

    import kshot

    right = 0
    for i in range(len(y)):
        others = [j for j in range(len(y)) if j != i]
        pool = kshot.Pool.of(cuts[others].flatten(0, 1), y[others].repeat(CUTS))
        tasks = kshot.ClassificationTasks({"train": pool}, **SETTINGS, seed=seed)
        learner = kshot.learner(name, tasks.spec, seed=seed, width=32)
        kshot.Engine(learner, tasks, optimizer=kshot.Outer(lr=1e-3), hooks=(), seed=seed).train(iterations)
        learner.eval()
        with torch.no_grad():
            predict = learner.adapt(kshot.Support.of(starts[others], y[others]))
            right += int(predict(starts[i : i + 1][None]).argmax()) == y[i]
    return right


def rows(sub_dogs: bool, root: Path, seeds: Sequence[int], iterations: int) -> list[dict[str, Any]]:
    """Classify all recordings by each method; returns the rows of the table."""
    import numpy as np
    import torch

    from kshot_cats_dogs.features import mfcc
    from kshot_cats_dogs.files import locate, read
    from kshot_cats_dogs.tasks import SHORTEST, of_classes

    clips, labels = of_classes(read(locate(root)), sub_dogs)
    y = np.array(labels)
    waves = [torch.from_numpy(clip.samples.astype(np.float32) / 32768) for clip in clips]
    firsts = np.stack([np.linspace(0, len(wave) - SHORTEST, CUTS).astype(int) for wave in waves])
    cuts = torch.stack(
        [torch.stack([mfcc(w[f : f + SHORTEST]) for f in fs]) for w, fs in zip(waves, firsts, strict=True)]
    )
    starts = cuts[:, 0]
    correct: list[tuple[str, str, int]] = [
        ("the more frequent class", "", int(max((y == 0).sum(), (y == 1).sum()))),
        ("length", "", nearest(np.log([[len(wave)] for wave in waves]), y)),
        ("whole", "", nearest(np.stack([summary(wave) for wave in waves]), y)),
        ("cut", "", nearest(np.stack([summary(wave[:SHORTEST]) for wave in waves]), y)),
    ]
    for name in ("protonet", "siamese"):
        for seed in seeds:
            right = embedded(name, starts[:, None], cuts[:, :, None], y, seed, iterations)
            correct.append((name, str(seed), right))
    table = []
    for method, number, right in correct:
        low, high = wilson(right, len(y))
        table.append({"by": method, "seed": number, "recordings": len(y), "right": right, "accuracy": right / len(y),
                      "interval": f"{low:.2f} to {high:.2f}"})  # fmt: skip
    return table


def main() -> None:
    options = arguments(__doc__)
    import torch

    torch.set_num_threads(1)
    place = os.environ.get("KSHOT_CATS_DOGS") or ROOT.parent / "shared" / "data" / "audio_cats_dogs"
    report = Report("sounds", notes=[f"{ITERATIONS} iterations of {SETTINGS}, Adam 1e-3, width 32, {CUTS} cuts each"])
    for sub_dogs in (False, True):
        seeds, iterations = (SEEDS[:1], 2) if options.quick else (SEEDS, ITERATIONS)
        report.rows += rows(sub_dogs, Path(place), seeds, iterations)
    by = {(row["by"], row["recordings"]): row["right"] for row in report.rows}
    for n in (28, 42):
        report.ratios.append(
            (
                by["cut", n] / by["length", n],
                f"of {n} recordings MFCC of cuts get {{}} times as many right as the length",
            )
        )
    report.finish(options)


if __name__ == "__main__":
    main()
