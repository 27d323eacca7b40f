"""Measure the training step of a learned optimizer: all optimizees at once, with and without a trace, and one by one.

A step is a meta-batch of l2l: 100 updates in five unrolls of 20, each with its outer gradient. The rows are

- traced: what l2l does after its first hundred unrolls: the operations of an unroll are replayed.
- together: the same without a trace: the coordinates of all optimizees are one batch of the LSTM.
- one by one: the same on one optimizee after another, without a trace.

on 32 quadratics of 10 coordinates, and on 4 networks for digits of 1,510 coordinates.

Run ``python benchmarks/l2l_unroll.py``; add ``--quick`` to test the script only.
"""

from __future__ import annotations

import time
from typing import Any

from bench import Report, alternate, arguments, ratio_of, spread

UNROLL, STEPS = 20, 100


def main() -> None:
    options = arguments(__doc__, rows=True)
    import torch

    import kshot

    torch.set_num_threads(1)
    clock = time.process_time if options.processor_time else time.perf_counter
    report = Report("l2l_unroll", ["one torch thread, float32"])
    if options.processor_time:
        report.notes.append("the time of the processor, because the machine is not idle")
    cases = {"quadratics": (kshot.tasks("quadratics", steps=STEPS), 32), "digit-nets": (kshot.tasks("digit-nets"), 4)}
    for name, (tasks, B) in cases.items():
        if not name.startswith(options.only):
            continue
        learner, traced = (
            kshot.learner("l2l", tasks.spec, seed=0, unroll=UNROLL, strategy=strategy).train()
            for strategy in ("loop", "traced")
        )
        together, singles = tasks.sample("train", range(B)), [tasks.sample("train", [i]) for i in range(B)]

        def all_together(learner: Any = learner, episode: Any = together) -> None:
            for _ in learner.meta_gradient(episode):
                pass

        def one_by_one(learner: Any = learner, episodes: Any = singles) -> None:
            for episode in episodes:
                for _ in learner.meta_gradient(episode):
                    pass

        def by_trace(learner: Any = traced, episode: Any = together) -> None:
            for _ in learner.meta_gradient(episode):
                pass

        by_trace()  # make the trace
        gradients = []
        for each, work in ((learner, all_together), (traced, by_trace)):
            each.zero_grad()
            work()
            gradients.append(torch.cat([p.grad.flatten() for p in each.parameters()]))
        same = "equal" if torch.equal(*gradients) else "not equal"
        report.notes.append(f"{name}: the gradients with and without a trace are {same} bit for bit")
        arms = {"together": all_together, "traced": by_trace, "one by one": one_by_one}
        times = alternate(arms, 1 if options.quick else 5, clock=clock)
        for arm, values in times.items():
            middle, least, most = spread([1000 * v for v in values])
            report.rows.append({"run": f"{name}, {arm}", "ms": middle, "least": least, "most": most})
        one_by_one_ratio, traced_ratio = (
            ratio_of(times[a], times[b]) for a, b in (("one by one", "together"), ("together", "traced"))
        )
        report.ratios += [
            (one_by_one_ratio, f"{name}: all together is {{}} times as fast as one optimizee after another"),
            (traced_ratio, f"{name}: a trace is {{}} times as fast as all together without one"),
        ]
    report.finish(options)


if __name__ == "__main__":
    main()
