"""Measure what a trace saves where no gradient of the tasks is returned: adaptation at evaluation, and Reptile.

Blocks of steps with a trace and without alternate in one process and one thread; their results are equal to the bit.

- maml: adapting to 600 sinusoid tasks with 10 inner steps, 100 tasks at a time, and predicting 10 queries of each.
- reptile: a meta-step on 5 sinusoid tasks.

Run ``python benchmarks/adaptation.py``; add ``--quick`` to test the script only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from bench import Report, alternate, arguments, ratio_of, spread


def adapting(learner: Any, episodes: list[Any]) -> Any:
    """Return the predictions of the queries of all tasks."""
    import torch

    learner.eval()
    with torch.no_grad():
        return torch.cat([learner.adapt(e.support)(e.query.x) for e in episodes])


def stepping(learner: Any, episodes: list[Any]) -> Any:
    """Return the meta-gradient as a vector."""
    import torch

    learner.zero_grad()
    learner.train().meta_gradient(episodes[0])
    return torch.cat([p.grad.flatten() for p in learner.parameters()])


def main() -> None:
    options = arguments(__doc__, rows=True)
    import torch

    import kshot

    torch.set_num_threads(1)
    clock = time.process_time if options.processor_time else time.perf_counter
    report = Report("adaptation", ["one torch thread"])
    if options.processor_time:
        report.notes.append("the time of the processor, because the machine is not idle")
    tasks, backend = kshot.tasks("sinusoid", shot=10, query=10), kshot.backend("cpu")
    cases: tuple[tuple[str, Callable[..., Any], dict[str, Any], list[range], int], ...] = (
        ("maml", adapting, {"test_steps": 10}, [range(100 * i, 100 * (i + 1)) for i in range(6)], 1),
        ("reptile", stepping, {}, [range(5)], 20),
    )
    for name, work, more, batches, each in cases:
        if not name.startswith(options.only):
            continue
        split = "test" if work is adapting else "train"
        episodes = [tasks.sample(split, batch) for batch in (batches[:1] if options.quick else batches)]
        arms, results = {}, {}
        for strategy in ("vmap", "traced"):
            learner = backend.place(kshot.learner(name, tasks.spec, strategy=strategy, seed=0, **more))
            for _ in range(3):  # the second makes the trace
                results[strategy] = work(learner, episodes)

            def block(learner: Any = learner, work: Any = work, episodes: Any = episodes, each: int = each) -> None:
                for _ in range(each):
                    work(learner, episodes)

            arms[strategy] = block
        report.notes.append(f"{name}: equal to the bit: {torch.equal(results['vmap'], results['traced'])}")
        times = alternate(arms, 1 if options.quick else 9, each=each, clock=clock)
        for strategy, values in times.items():
            middle, least, most = spread([1000 * v for v in values])
            report.rows.append({"run": f"{name}, {strategy}", "ms": middle, "least": least, "most": most})
        report.ratios.append((ratio_of(times["vmap"], times["traced"]), f"{name}: a trace is {{}} times as fast"))
    report.finish(options)


if __name__ == "__main__":
    main()
