"""Measure the gain of a second process and the cost of exchange, in iterations with 1 and 2 processes in turn.

Prototypical networks train on 8 tasks per meta-batch. Each measurement is a separate launch, by torchrun for two
processes, with one thread each. The benchmark reports how long a rank spends in an iteration's all_reduce, which is
mostly waiting. It also reports how long the same all_reduce takes if both ranks arrive at once, as
one flat tensor (as in the engine) and as one call per parameter.
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
    """Return the milliseconds of each case, measured by this rank."""
    import kshot

    backend: Any = kshot.backend("distributed", local={"name": "cpu", "threads": 1})
    spent = 0.0
    reduce = backend.world.all_reduce

    def timed(tensor: Any) -> Any:
        nonlocal spent
        started = time.perf_counter()
        found = reduce(tensor)
        spent += time.perf_counter() - started
        return found

    backend.world.all_reduce = timed
    found: dict[str, Any] = {}
    for name, (options, steps) in CASES.items():
        tasks = kshot.tasks(options.pop("name"), **options)
        steps = 2 if quick else steps
        engine = kshot.Engine(kshot.learner("protonet", tasks.spec), tasks, backend=backend, meta_batch=TASKS)
        engine.train(2)
        spent, begun = 0.0, time.perf_counter()
        engine.train(engine.iteration + steps)
        taken = time.perf_counter() - begun
        found[name] = {"iteration": 1e3 * taken / steps, "all_reduce": 1e3 * spent / steps}
        if processes > 1:
            found[name] |= meetings(engine, reduce, 3 if quick else 30)
    return found


def meetings(engine: Any, reduce: Callable[[Any], Any], times: int) -> dict[str, float]:
    """Milliseconds of an all_reduce where both ranks come at once: flat, and a call for each parameter."""
    import torch

    flat = torch.zeros(sum(p.numel() for p in engine.parameters))
    each = [torch.zeros(p.numel()) for p in engine.parameters]
    found = {}
    for name, tensors in (("flat", [flat]), ("a call each", each)):
        taken = []
        for _ in range(times):
            reduce(torch.zeros(1))
            started = time.perf_counter()
            for tensor in tensors:
                reduce(tensor)
            taken.append(time.perf_counter() - started)
        found[name] = 1e3 * statistics.median(taken)
    return {**found, "parameters": len(each)}


def launched(processes: int, quick: bool) -> dict[str, Any]:
    """Launch the processes, and return the measurements of rank 0."""
    given = json.dumps({"processes": processes, "quick": quick})
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--"]
    command = [sys.executable, *launcher, __file__, "--part", "iterations", "--options", given]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    if done.returncode:
        raise SystemExit(f"{processes} processes failed:\n{done.stderr[-4000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def main() -> None:
    options = arguments(__doc__, part=True)
    if options.part:
        found = part_iterations(**json.loads(options.options))
        if os.environ["RANK"] == "0":
            print(json.dumps(found))
        return
    _, data = find_omniglot()
    seen: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    for _ in range(1 if options.quick else 3):
        for processes, runs in seen.items():
            runs.append(launched(processes, options.quick))
    report = Report("distributed", [f"data: {data}", f"{TASKS} tasks a meta-batch, one thread a process, gloo"])
    for name in CASES:
        for processes, runs in seen.items():
            middle, least, most = spread([run[name]["iteration"] for run in runs])
            row = {"run": f"{name}: {processes}", "ms an iteration": middle, "least": least, "most": most}
            for what in ("all_reduce", "flat", "a call each"):
                values = [run[name][what] for run in runs if what in run[name]]
                row[what] = statistics.median(values) if values and processes > 1 else "-"
            report.rows.append(row)
        two = seen[2]
        one = [run[name]["iteration"] for run in seen[1]]
        parameters = two[0][name]["parameters"]
        for top, bottom, what in (
            ("a call each", "flat", f"a call for each of {parameters} parameters takes {{}} times one flat call"),
            ("flat", "iteration", "one flat all_reduce is {} of an iteration of two processes"),
        ):
            value = ratio_of([run[name][top] for run in two], [run[name][bottom] for run in two])
            report.ratios.append((value, f"{what} ({name})"))
        gain = ratio_of(one, [run[name]["iteration"] for run in two])
        report.ratios.append((gain, f"two processes are {{}} times as fast as one ({name})"))
    report.finish(options)


if __name__ == "__main__":
    main()
