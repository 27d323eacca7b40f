"""Measure how much faster the engine evaluates several episodes at once than one at a time.

Prototypical networks with conv4-64 are evaluated on 600 episodes of Omniglot, 5-way 1-shot 15-query. The ratio is the
time of one episode at a time over that of ``engine.evaluate`` with its default batch.

Run ``python benchmarks/evaluation.py``; add ``--quick`` to test the script only.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from bench import Report, alternate, arguments, find_omniglot, ratio_of, spread

import kshot


def main() -> None:
    options = arguments(__doc__)
    _, data = find_omniglot()
    tasks = kshot.tasks("omniglot", way=5, shot=1, query=15)
    engine = kshot.Engine(kshot.learner("protonet", tasks.spec), tasks)
    episodes, rounds = (12, 1) if options.quick else (600, 3)
    runs: dict[str, Callable[[], object]] = {
        "engine.evaluate": lambda: engine.evaluate(episodes),
        "one episode at a time": lambda: engine.evaluate(episodes, batch=1),
    }
    engine.evaluate(12)  # the first evaluation is slower, and is not counted
    times = alternate(runs, rounds, warmup=0)
    report = Report("evaluation", [f"data: {data}", f"backend: {json.dumps(dict(engine.backend.describe()))}"])
    for name, values in times.items():
        middle, least, most = spread(values)
        report.rows.append({"run": name, "episodes": episodes, "seconds": middle, "least": least, "most": most})
    ratio = ratio_of(times["one episode at a time"], times["engine.evaluate"])
    what = f"({episodes} episodes 5w1s15q conv4-64, one process)"
    report.ratios.append((ratio, f"engine.evaluate is {{}} times as fast as one episode at a time {what}"))
    report.finish(options)


if __name__ == "__main__":
    main()
