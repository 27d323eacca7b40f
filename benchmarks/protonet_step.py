"""Measure a training episode of prototypical networks on Omniglot (conv4-64, 1 shot, 5 queries) against easyfsl.

(a) Both in one process with images in memory; blocks of steps take turns. Both have the same torch threads and the same
    malloc settings (kshot's backend makes them for the process, which helps easyfsl too).
(b) Each in a separate process, as its own users would run it: kshot's engine with its default options, and easyfsl with
    its own loader over PNG files, as in its notebook on episodic training. easyfsl is measured with the notebook's 12
    workers and with one worker per core, and also with images in memory and no workers.

Every ratio is the time of a step of easyfsl over that of kshot, so a value above 1 means that kshot is faster.

Run ``python benchmarks/protonet_step.py``; add ``--quick`` to test the script only.
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from bench import (
    EASYFSL_PATCH,
    Report,
    alternate,
    arguments,
    easyfsl_conv4,
    easyfsl_from_files,
    easyfsl_in_memory,
    easyfsl_step,
    find_omniglot,
    fresh,
    picture_folders,
    ratio_of,
    require,
    spread,
)  # fmt: skip

LR = 1e-3
NOTEBOOK_WORKERS = 12
NOTEBOOK_TASKS = 500


def kshot_engine(way: int, **options: Any) -> Any:
    """Build an engine with default options but a constant learning rate, so that no block of steps ends with rate 0."""
    import kshot

    tasks = kshot.tasks("omniglot", way=way, shot=1, query=5)
    learner = kshot.learner("protonet", tasks.spec)
    return kshot.Engine(learner, tasks, optimizer=kshot.Outer(lr=LR), **options)


def easyfsl_model() -> tuple[Any, Any]:
    """Build the model of easyfsl with conv4-64, and its Adam."""
    import torch
    from easyfsl.methods import PrototypicalNetworks

    model = PrototypicalNetworks(easyfsl_conv4()).train()
    return model, torch.optim.Adam(model.parameters(), lr=LR)


def sampler(way: int, tasks: int) -> dict[str, int]:
    """Return the arguments of easyfsl's sampler."""
    return {"n_way": way, "n_shot": 1, "n_query": 5, "n_tasks": tasks}


# -------------------- (a) one process


def in_one_process(way: int, steps: int, rounds: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Return the seconds per step of each arm in each round, and the description of kshot's backend."""
    engine = kshot_engine(way)
    model, optimizer = easyfsl_model()
    loader = easyfsl_in_memory(engine.tasks.pool("train"), sampler(way, 10**6))
    episodes: Iterator[Any] = iter(loader)
    ready = [next(episodes) for _ in range(steps)]

    def kshot_block() -> None:
        engine.train(engine.iteration + steps)

    def easyfsl_block() -> None:
        for episode in itertools.islice(episodes, steps):
            easyfsl_step(model, optimizer, episode)

    def easyfsl_ready_block() -> None:
        for episode in ready:
            easyfsl_step(model, optimizer, episode)

    arms: dict[str, Callable[[], object]] = {
        "kshot": kshot_block,
        "easyfsl, its sampler and collate": easyfsl_block,
        "easyfsl, episodes prepared before": easyfsl_ready_block,
    }
    return alternate(arms, rounds, each=steps), dict(engine.backend.describe())


# -------------------- (b) parts, each in a separate process


def part_kshot(way: int, warm: int, steps: int) -> dict[str, Any]:
    """Train with a run folder, metrics and progress, as ``kshot train`` does."""
    import kshot

    marks: list[float] = []

    class Clock:
        @kshot.hookimpl
        def iteration_end(self) -> None:
            marks.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        hooks = {name: kshot.hook(name) for name in ("metrics", "progress")}
        engine = kshot_engine(way, hooks={**hooks, "clock": Clock()}, run=Path(folder) / "run")
        engine.train(warm + steps)
    return {"seconds": (marks[-1] - marks[warm - 1]) / steps, "backend": dict(engine.backend.describe())}


def part_easyfsl(way: int, warm: int, steps: int, workers: int, folders: list[str] | None) -> dict[str, Any]:
    """Train as the notebook does: from PNG files in ``folders``, or from memory if it is None."""
    from tqdm import tqdm

    model, optimizer = easyfsl_model()
    with tempfile.TemporaryDirectory() as place:
        if folders is None:
            import kshot

            pool = kshot.tasks("omniglot").pool("train")
            loader = easyfsl_in_memory(pool, sampler(way, NOTEBOOK_TASKS))
        else:
            loader = easyfsl_from_files(folders, Path(place), workers, sampler(way, NOTEBOOK_TASKS))
        losses: list[float] = []
        started = 0.0
        with tqdm(enumerate(loader), total=len(loader), desc="Training") as bar:
            for index, episode in bar:
                losses.append(easyfsl_step(model, optimizer, episode))
                bar.set_postfix(loss=mean(losses))
                if index == warm - 1:
                    started = time.perf_counter()
                if index == warm + steps - 1:
                    break
        return {"seconds": (time.perf_counter() - started) / steps}


PARTS: dict[str, Callable[..., dict[str, Any]]] = {"kshot": part_kshot, "easyfsl": part_easyfsl}


def in_own_processes(
    way: int, warm: int, steps: int, rounds: int, folders: list[str]
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Return the seconds per step of each process, which take turns, and the description of kshot's backend."""
    size = {"way": way, "warm": warm, "steps": steps}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    times: dict[str, list[float]] = {}
    described: dict[str, Any] = {}
    for _ in range(rounds):
        answer = fresh(__file__, "kshot", **size)
        described = answer["backend"]
        times.setdefault("kshot train", []).append(answer["seconds"])
        for workers in sorted({NOTEBOOK_WORKERS, cores}, reverse=True):
            answer = fresh(__file__, "easyfsl", **size, workers=workers, folders=folders)
            times.setdefault(f"easyfsl, PNG files, {workers} workers", []).append(answer["seconds"])
        answer = fresh(__file__, "easyfsl", **size, workers=0, folders=None)
        times.setdefault("easyfsl, images in memory", []).append(answer["seconds"])
    return times, described


def main() -> None:
    options = arguments(__doc__, part=True)
    root, data = find_omniglot()
    if options.part:
        print(json.dumps(PARTS[options.part](**json.loads(options.options))))
        return
    require("easyfsl", "torchvision", "tqdm")
    report = Report("protonet_step", [f"data: {data}", EASYFSL_PATCH, "1-shot 5-query, conv4-64, Adam"])

    def add_rows(where: str, way: int, times: dict[str, list[float]]) -> None:
        for name, values in times.items():
            middle, least, most = spread([1000 * v for v in values])
            run = f"{where} {way}-way: {name}"
            report.rows.append({"run": run, "ms per step": middle, "least": least, "most": most})

    with tempfile.TemporaryDirectory() as unpacked:
        folders = [str(f) for f in picture_folders(root, Path(unpacked))]
        for way, warm, steps in ((20, 20, 100), (60, 10, 40)):
            warm, steps, rounds = (2, 3, 1) if options.quick else (warm, steps, 2)
            own, backend = in_own_processes(way, warm, steps, rounds, folders)
            add_rows("(b)", way, own)
            files = [name for name in own if "PNG" in name]
            best = min(files, key=lambda name: mean(own[name]))
            for name in [n for n in own if n not in ("kshot train", best)] + [best]:
                what = f"{way}-way 1-shot 5-query, each in a separate process as its users run it"
                ratio = ratio_of(own[name], own["kshot train"])
                report.ratios.append((ratio, f"kshot is {{}} times as fast as {name} ({what})"))
    report.notes.append(f"kshot's backend in (b): {json.dumps(backend)}")
    for way, steps in ((60, 5), (20, 10)):
        steps, rounds = (1, 1) if options.quick else (steps, 8)
        times, backend = in_one_process(way, steps, rounds)
        add_rows("(a)", way, times)
        kshot, *others = times
        for name in reversed(others):
            what = f"{way}-way 1-shot 5-query, one process, images in memory"
            ratio = ratio_of(times[name], times[kshot])
            report.ratios.append((ratio, f"kshot is {{}} times as fast as {name} ({what})"))
    report.notes.append(f"kshot's backend in (a), whose malloc settings hold for both: {json.dumps(backend)}")
    report.finish(options)


if __name__ == "__main__":
    main()
