"""Measure how many episodes per second are sampled on Omniglot, 5-way 1-shot 15-query, in one thread.

Images are in memory. kshot samples episodes one by one and in batches of 32, and is compared with a naive loop and, if
it is installed, with the sampler and collate function of easyfsl. A ratio is the time of the other over that of kshot,
so a value above 1 means that kshot is faster.

Run ``python benchmarks/sampling.py``; add ``--quick`` to test the script only.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from bench import (
    EASYFSL_PATCH,
    Report,
    alternate,
    arguments,
    easyfsl_in_memory,
    find_omniglot,
    has_easyfsl,
    ratio_of,
    spread,
)  # fmt: skip

import kshot

WAY, SHOT, QUERY, BATCH = 5, 1, 15, 32


def naive(pool: Any, generator: random.Random) -> Callable[[], Any]:
    """Sample as one would without a library: with lists of images, ``random.sample`` and ``torch.stack``."""
    ids, y = pool.table()
    images: list[list[torch.Tensor]] = [[] for _ in range(pool.classes)]
    for c, image in zip(y.tolist(), pool.gather(ids), strict=True):
        images[c].append(image)

    def episode() -> Any:
        support, query = [], []
        for label, c in enumerate(generator.sample(range(len(images)), WAY)):
            drawn = generator.sample(images[c], SHOT + QUERY)
            support += [(x, label) for x in drawn[:SHOT]]
            query += [(x, label) for x in drawn[SHOT:]]
        generator.shuffle(query)
        return [(torch.stack([x for x, _ in part]), torch.tensor([y for _, y in part])) for part in (support, query)]

    return episode


def main() -> None:
    options = arguments(__doc__)
    _, data = find_omniglot()
    torch.set_num_threads(1)
    tasks = kshot.tasks("omniglot", way=WAY, shot=SHOT, query=QUERY)
    pool = tasks.pool("test")
    number, rounds = (64, 3) if options.quick else (1600, 9)
    report = Report(
        "sampling", [f"data: {data}, test classes ({pool.classes}); one thread; episodes have float32 images"]
    )
    first = 0  # the index of the next episode, so that no episode is sampled twice

    def single() -> None:
        nonlocal first
        for i in range(first, first + number):
            tasks.sample("test", [i])
        first += number

    def batched() -> None:
        nonlocal first
        for i in range(first, first + number, BATCH):
            tasks.sample("test", range(i, i + BATCH))
        first += number

    draw = naive(pool, random.Random(0))
    runs: dict[str, Callable[[], object]] = {
        "kshot, one by one": single,
        f"kshot, batches of {BATCH}": batched,
        "a naive loop": lambda: [draw() for _ in range(number)] and None,
    }
    if has_easyfsl():
        report.notes.append(EASYFSL_PATCH)
        sampler = {"n_way": WAY, "n_shot": SHOT, "n_query": QUERY, "n_tasks": 10**9}
        loader = iter(easyfsl_in_memory(pool, sampler))

        def easyfsl() -> None:
            for _ in range(number):
                next(loader)

        runs["easyfsl, sampler and collate"] = easyfsl
    times = alternate(runs, rounds, each=number)
    for name, values in times.items():
        middle, least, most = spread([1 / v for v in values])
        report.rows.append({"run": name, "episodes/s": middle, "least": least, "most": most})
    batches, singly = times[f"kshot, batches of {BATCH}"], times["kshot, one by one"]
    for name in [n for n in times if not n.startswith("kshot")]:
        for how, mine in (("in batches", batches), ("one by one", singly)):
            what = f"({WAY}w{SHOT}s{QUERY}q, index and gather, one thread)"
            report.ratios.append((ratio_of(times[name], mine), f"kshot {how} is {{}} times as fast as {name} {what}"))
    report.finish(options)


if __name__ == "__main__":
    main()
