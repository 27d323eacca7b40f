"""Measure how meta-steps of MAML grow with the meta-batch: memory, threads, and the arithmetic that conv4 reaches.

- ``memory``: the peak of a second-order meta-step for 1 to 512 tasks, each in a separate process: conv4-64 on
  Omniglot, 5-way 1-shot with 1 query per class, and mlp on sinusoids with 10 support and 10 query points.
- ``arithmetic``: conv4 with 16 tasks in one thread, floating-point operations per second, over those of a large product
  of matrices in the same process.
- ``threads``: conv4 of 64 and of 32 channels with 16 tasks in two threads, between which kshot divides the tasks,
  against one; and two threads in each operation, as torch divides them. All in one process, in turn. On a machine that
  is not idle the ratio of processor times shows whether two threads do more work than one.

Run ``python benchmarks/meta_batches.py``; add ``--quick`` to test the script only, and
``--only memory`` to measure only that.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

from bench import Report, alternate, arguments, find_omniglot, fresh, peak, ratio_of

SHAPES: dict[str, dict[str, Any]] = {
    "omniglot": {"way": 5, "shot": 1, "query": 1},
    "sinusoid": {"shot": 10, "query": 10},
}


def made(tasks: str, number: int, strategy: str = "auto", width: int = 64) -> tuple[Any, Any]:
    """Return a learner and a meta-batch, on kshot's backend ``cpu``."""
    import kshot

    distribution, backend = kshot.tasks(tasks, **SHAPES[tasks]), kshot.backend("cpu")
    learner = kshot.learner("maml", distribution.spec, seed=0, strategy=strategy, width=width).train()
    return backend.place(learner), backend.place(distribution.sample("train", range(number)))


def stepping(learner: Any, episodes: Any) -> Any:
    """Return a function that computes a meta-gradient."""

    def step() -> None:
        learner.zero_grad()
        learner.meta_gradient(episodes)

    return step


def memory_of(tasks: str, number: int, strategy: str) -> dict[str, float]:
    """Return the peak resident memory in MB before and after some meta-steps."""
    import torch

    torch.set_num_threads(1)
    step = stepping(*made(tasks, number, strategy))
    before = peak()
    for _ in range(2):  # with a trace, the second is a replay
        step()
    return {"before": before, "peak": peak()}


def arithmetic(quick: bool) -> tuple[float, float]:
    """Return the thousand millions of operations per second of conv4's meta-step, and of a product of matrices."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    learner, episodes = made("omniglot", 2 if quick else 16, "traced")
    step = stepping(learner, episodes)
    with FlopCounterMode(display=False) as counter:
        step()
    for _ in range(2):
        step()
    a = torch.rand(2048, 2048)
    times = alternate({"step": step, "product": lambda: a @ a}, 1 if quick else 7, clock=time.process_time)
    speeds = counter.get_total_flops(), 2 * 2048**3
    return tuple(1e-9 * n / statistics.median(t) for n, t in zip(speeds, times.values(), strict=True))  # type: ignore[return-value]


def threads(quick: bool, width: int) -> dict[str, list[float]]:
    """Return the seconds of conv4's meta-step in one thread, in two that divide the tasks, and in two by torch.

    Under ``one, processor`` and ``two, processor`` are the seconds that the processors spend in the first two.
    """
    import torch

    learner, episodes = made("omniglot", 2 if quick else 16, "traced", width)
    untraced, _ = made("omniglot", 1, "loop", width)
    step, loop = stepping(learner, episodes), stepping(untraced, episodes)
    torch.set_num_threads(1)
    for _ in range(3):
        step()
    spent: dict[str, list[float]] = {"one, processor": [], "two, processor": []}

    def within(number: int, run: Any, name: str = "") -> Any:
        def timed() -> None:
            torch.set_num_threads(number)
            began = time.process_time()
            run()
            if name:
                spent[name].append(time.process_time() - began)

        return timed

    arms = {"one": within(1, step, "one, processor"), "two": within(2, step, "two, processor")}
    arms |= {"one, loop": within(1, loop), "torch's": within(2, loop)}
    return alternate(arms, 1 if quick else 9) | spent


def main() -> None:
    options = arguments(__doc__, part=True, rows=True)
    _, data = find_omniglot()
    if options.part:
        print(json.dumps(memory_of(**json.loads(options.options))))
        return
    import torch

    torch.set_num_threads(1)
    report = Report("meta_batches", [f"data: {data}", f"load of the machine: {Path('/proc/loadavg').read_text()[:14]}"])
    numbers = (1, 4) if options.quick else (1, 4, 16, 64, 128, 256, 512)
    for tasks in SHAPES:
        for strategy in ("auto", "traced"):
            if f"memory of {tasks}, {strategy}".startswith(options.only):
                report.rows.append({"MB above those before the first step": f"{tasks}, {strategy}"})
                for number in numbers:
                    memory = fresh(__file__, "peak", tasks=tasks, number=number, strategy=strategy)
                    report.rows[-1][f"{number} tasks"] = memory["peak"] - memory["before"]
    if "arithmetic".startswith(options.only):
        reached, possible = arithmetic(options.quick)
        report.ratios.append((reached / possible, "conv4 reaches {} of the arithmetic of a large product of matrices, "
                              f"{reached:.0f} of {possible:.0f} thousand million operations per second"))  # fmt: skip
    for width in (64, 32):
        if not "threads".startswith(options.only):
            continue
        times, what = threads(options.quick, width), f"conv4 of {width} channels: two threads"
        report.ratios += [
            (ratio_of(times["one, loop"], times["torch's"]), f"{what} in each operation are {{}} times as fast as one"),
            (ratio_of(times["one"], times["two"]), f"{what} that divide the tasks are {{}} times as fast as one"),
            (ratio_of(times["two, processor"], times["one, processor"]), f"{what} take {{}} times the processor time"),
        ]
    report.finish(options)


if __name__ == "__main__":
    main()
