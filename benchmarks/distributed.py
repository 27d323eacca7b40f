"""Measure how much faster two processes train than one, and what the exchange of gradients costs.

Prototypical networks train on 8 tasks per meta-batch. Each measurement is a separate launch by torchrun, with one or
two processes of one thread each; the launches take turns. The benchmark reports how long a rank spends in the
all_reduce of an iteration, which is mostly waiting for the other rank. It also reports how long the same all_reduce
takes if both ranks arrive at the same time: as one flat tensor, as in the engine, and as one call per parameter. The
last ratio of each case is the time of an iteration with one process over that with two; 2 would be ideal.

Run ``python benchmarks/distributed.py`` (needs kshot-distributed); add ``--quick`` to test the script only.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from bench import Report, arguments, find_omniglot, ratio_of, spread

CASES = {
    "toy, mlp, 5w1s15q": ({"name": "toy", "way": 5, "shot": 1, "query": 15}, 100),
    "omniglot, conv4-64, 5w1s15q": ({"name": "omniglot", "way": 5, "shot": 1, "query": 15}, 6),
}
TASKS = 8


def part_iterations(processes: int, quick: bool) -> dict[str, Any]:
    """Return for each case the milliseconds per iteration and in all_reduce, as measured by this rank."""
    import kshot

    backend: Any = kshot.backend("distributed", local={"name": "cpu", "threads": 1})
    spent = 0.0
    reduce = backend.world.all_reduce

    def timed(tensor: Any) -> Any:
        nonlocal spent
        started = time.perf_counter()
        total = reduce(tensor)
        spent += time.perf_counter() - started
        return total

    backend.world.all_reduce = timed
    measured: dict[str, Any] = {}
    for name, (options, steps) in CASES.items():
        tasks = kshot.tasks(options.pop("name"), **options)
        steps = 2 if quick else steps
        learner = kshot.learner("protonet", tasks.spec)
        # A constant rate, because the total of a schedule can't change from one call of train to the next.
        optimizer = kshot.Outer(lr=1e-3)
        engine = kshot.Engine(learner, tasks, backend=backend, meta_batch=TASKS, optimizer=optimizer)
        engine.train(2)  # the first iterations are slower
        spent, begun = 0.0, time.perf_counter()
        engine.train(engine.iteration + steps)
        taken = time.perf_counter() - begun
        measured[name] = {"iteration": 1e3 * taken / steps, "all_reduce": 1e3 * spent / steps}
        if processes > 1:
            measured[name] |= time_exchange(engine, reduce, 3 if quick else 30)
    return measured


def time_exchange(engine: Any, reduce: Callable[[Any], Any], times: int) -> dict[str, float]:
    """Return the milliseconds of an all_reduce that both ranks start at once: as one flat call, and call by call."""
    import torch

    flat = torch.zeros(sum(p.numel() for p in engine.parameters))
    each = [torch.zeros(p.numel()) for p in engine.parameters]
    median = {}
    for name, tensors in (("one flat call", [flat]), ("one call per parameter", each)):
        taken = []
        for _ in range(times):
            reduce(torch.zeros(1))  # after this call both ranks start at the same time
            started = time.perf_counter()
            for tensor in tensors:
                reduce(tensor)
            taken.append(time.perf_counter() - started)
        median[name] = 1e3 * statistics.median(taken)
    return {**median, "parameters": len(each)}


def launch(processes: int, quick: bool) -> dict[str, Any]:
    """Launch the processes, and return the measurements of rank 0."""
    given = json.dumps({"processes": processes, "quick": quick})
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--"]
    command = [sys.executable, *launcher, __file__, "--part", "iterations", "--options", given]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    if done.returncode:
        raise SystemExit(f"the launch of {processes} processes failed:\n{done.stderr[-4000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def main() -> None:
    options = arguments(__doc__, part=True)
    if options.part:
        measured = part_iterations(**json.loads(options.options))
        if os.environ["RANK"] == "0":
            print(json.dumps(measured))
        return
    _, data = find_omniglot()
    seen: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    for _ in range(1 if options.quick else 3):
        for processes, runs in seen.items():
            runs.append(launch(processes, options.quick))
    report = Report("distributed", [f"data: {data}", f"{TASKS} tasks per meta-batch, one thread per process, gloo"])
    for name in CASES:
        for processes, runs in seen.items():
            middle, least, most = spread([run[name]["iteration"] for run in runs])
            row = {"run": f"{name}, processes: {processes}", "ms per iteration": middle, "least": least, "most": most}
            for what in ("all_reduce", "one flat call", "one call per parameter"):
                values = [run[name][what] for run in runs if what in run[name]]
                row[what] = statistics.median(values) if values and processes > 1 else "-"
            report.rows.append(row)
        two = seen[2]
        one = [run[name]["iteration"] for run in seen[1]]
        parameters = two[0][name]["parameters"]
        for top, bottom, what in (
            (
                "one call per parameter",
                "one flat call",
                f"one all_reduce per parameter ({parameters} of them) takes {{}} times as long as one flat all_reduce",
            ),
            ("one flat call", "iteration", "one flat all_reduce takes {} of the time of an iteration of two processes"),
        ):
            value = ratio_of([run[name][top] for run in two], [run[name][bottom] for run in two])
            report.ratios.append((value, f"{what} ({name})"))
        gain = ratio_of(one, [run[name]["iteration"] for run in two])
        report.ratios.append((gain, f"two processes are {{}} times as fast as one ({name})"))
    report.finish(options)


if __name__ == "__main__":
    main()
