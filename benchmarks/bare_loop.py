"""Measure the overhead of the engine over a bare PyTorch loop of the same arithmetic, in one process.

The bare loop is what one would write without kshot for one learner. It has the same network (channels-last, pooling
before the ReLU), autocast if the backend chooses bfloat16, the same malloc settings, the same episodes from
``tasks.sample``, and the same loss, accuracy and Adam. It has no checks, hooks, schedule and reseeding. Blocks of steps
of both alternate. The last ratio of each case is the engine's overhead in percent of the time of the bare loop.

Run ``python benchmarks/bare_loop.py``; add ``--quick`` to test the script only.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from bench import Report, alternate, arguments, find_omniglot, ratio_of, spread

import kshot
from kshot.nn import conv4, mlp

LR = 1e-3


def arms(tasks: Any, net: torch.nn.Module, steps: int) -> tuple[dict[str, Callable[[], object]], Any]:
    """Return two functions that run ``steps`` training steps each, and the engine.

    The functions are the bare loop and the engine; both start from the same parameters.
    """
    learner = kshot.learner("protonet", tasks.spec)
    engine = kshot.Engine(learner, tasks, optimizer=kshot.Outer(lr=LR))
    net.load_state_dict(learner.encoder.net.state_dict())
    net.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=LR, fused=True)  # as in kshot's engine
    way, shot = tasks.spec.way, tasks.spec.shot
    done = 0  # steps that the bare loop has taken; the next step uses the episode of this index

    def bare() -> None:
        nonlocal done
        for i in range(done, done + steps):
            episode = tasks.sample("train", [i])
            optimizer.zero_grad()
            with engine.backend.autocast():
                # Embed support and query in one pass; the logits are minus squared distances to the prototypes.
                z = net(torch.cat([episode.support.x, episode.query.x], 1)[0]).float()
                prototypes = z[: way * shot].view(way, shot, -1).mean(1)
                logits = -(z[way * shot :, None] - prototypes[None]).square().sum(-1)
                loss = F.cross_entropy(logits, episode.query.y[0])
                loss.backward()
                accuracy = (logits.argmax(-1) == episode.query.y[0]).float().mean()
            # The engine logs both values after each step, which waits for the computation; so does this loop.
            loss.item()
            accuracy.item()
            optimizer.step()
        done += steps

    def by_engine() -> None:
        engine.train(engine.iteration + steps)

    return {"bare loop": bare, "engine": by_engine}, engine


def same(tasks: Any, net: torch.nn.Module) -> float:
    """Return the greatest relative difference of a parameter after 3 steps of both, which must do the same work."""
    runs, engine = arms(tasks, net, 3)
    for run in runs.values():
        run()
    pairs = zip(net.parameters(), engine.learner.encoder.net.parameters(), strict=True)
    return max(float((a - b).detach().abs().max() / b.detach().abs().max().clamp_min(0.01)) for a, b in pairs)


def main() -> None:
    options = arguments(__doc__)
    _, data = find_omniglot()
    omniglot = kshot.tasks("omniglot", way=20, shot=1, query=5)
    toy = kshot.tasks("toy", way=5, shot=1, query=15)
    cases = [
        ("toy, mlp, 5-way 15-query", toy, lambda: mlp(toy.spec.input_shape), 300, 20),
        ("omniglot, conv4-64, 20-way 5-query", omniglot, lambda: conv4(omniglot.spec.input_shape), 10, 20),
    ]
    report = Report("bare_loop", [f"data: {data}"])
    for name, tasks, net, steps, rounds in cases:
        if options.quick:
            steps, rounds = max(2, steps // 10), 3
        difference = same(tasks, net())
        if not difference < 0.02:
            raise SystemExit(
                f"{name}: got parameters that differ by {difference:.2g} after 3 steps, expected less than "
                "0.02: engine and loop do not do the same work"
            )
        runs, engine = arms(tasks, net(), steps)
        times = alternate(runs, rounds, each=steps)
        for arm, values in times.items():
            middle, least, most = spread([1e6 * v for v in values])
            report.rows.append({"run": f"{name}: {arm}", "us per step": middle, "least": least, "most": most})
        extra = spread([1e6 * (e - b) for e, b in zip(times["engine"], times["bare loop"], strict=True)])[0]
        percent = 100 * (ratio_of(times["engine"], times["bare loop"]) - 1)
        report.notes.append(f"{name}: largest relative difference of a parameter after 3 steps {difference:.1g}")
        report.ratios.append((extra, f"the engine adds {{}} us per iteration to a bare loop ({name})"))
        report.ratios.append((percent, f"the engine's overhead is {{}} % of the time of a bare loop ({name})"))
    report.notes.append(f"backend: {json.dumps(dict(engine.backend.describe()))}")
    report.finish(options)


if __name__ == "__main__":
    main()
