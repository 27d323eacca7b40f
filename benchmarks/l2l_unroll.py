"""Measure the training step of a learned optimizer: all optimizees at once, one after another, and with a trace.

A step is a meta-batch of l2l: 100 updates in five unrolls of 20, each with its outer gradient. The rows are

- together: what l2l does: the coordinates of all optimizees are one batch of the LSTM.
- one by one: l2l on one optimizee after another.
- traced: the same unroll written for one optimizee, which ``kshot.Lift`` runs for all of them and replays as a trace.
  vmap can't run torch's LSTM cell, so the cell is written out. l2l does not do this.

on 32 quadratics of 10 coordinates, and on 4 networks for digits of 1,510 coordinates.

Run ``python benchmarks/l2l_unroll.py``; add ``--quick`` to test the script only.
"""

from __future__ import annotations

import functools
import time
from typing import Any

from bench import Report, alternate, arguments, ratio_of, spread

UNROLL, STEPS = 20, 100


def unroll(state: Any, carry: Any, data: Any, *, function: Any) -> Any:
    """Take 20 steps of one optimizee; return the loss with the gradient of its sum, and the state after them."""
    import torch
    import torch.nn.functional as F

    from kshot.functional import log_and_sign, lstm_cell
    from kshot.inner import State

    p, (point, gradient, memory) = state.parameters, carry
    losses, surrogate = [], torch.zeros(())
    for _ in range(UNROLL):
        signal, new = log_and_sign(gradient, 10.0), []
        for layer in range(2):
            name = f"cells.{layer}."
            gates = F.linear(signal, p[f"{name}weight_ih"], p[f"{name}bias_ih"])
            gates = gates + F.linear(memory[2 * layer], p[f"{name}weight_hh"], p[f"{name}bias_hh"])
            i, f, g, o = gates.chunk(4, -1)
            signal, cell = lstm_cell(
                input_gate=i, forget_gate=f, candidate=g, output_gate=o, cell=memory[2 * layer + 1]
            )
            new += [signal, cell]
        memory = tuple(new)
        point = point + 0.1 * F.linear(signal, p["head.weight"], p["head.bias"])[:, 0]
        gradient, loss = torch.func.grad_and_value(function)(point.detach(), data)
        losses.append(loss)
        surrogate = surrogate + (gradient * point).sum()  # its derivative by the point is the gradient of the loss
    loss = torch.stack(losses).mean() + (surrogate - surrogate.detach()) / UNROLL
    return {"loss": loss}, State(
        {}, {"point": point, "gradient": gradient, **{f"memory{i}": m for i, m in enumerate(memory)}}
    )


class Traced:
    """The unroll of one optimizee, for all optimizees by Lift."""

    def __init__(self, learner: Any, function: Any) -> None:
        from kshot import Lift

        self.learner, self.lift = learner, Lift("traced")
        self.hidden = learner.optimizer.cells[0].hidden_size
        self.unroll = functools.partial(unroll, function=function)

    def meta_gradient(self, episode: Any) -> None:
        """Add the gradients of all unrolls of a meta-batch."""
        from kshot.inner import State

        objective = episode.support.source
        point = objective.initial
        B, P = point.shape
        carry = (point, objective.loss_and_gradient(point)[1], (point.new_zeros(B, P, self.hidden),) * 4)
        for _ in range(STEPS // UNROLL):
            _, end = self.lift.mean_gradient(self.unroll, State.of(self.learner.optimizer), carry, objective.data)
            memory = tuple(end.buffers[f"memory{i}"] for i in range(4))
            carry = (end.buffers["point"], end.buffers["gradient"], memory)


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
        learner = kshot.learner("l2l", tasks.spec, seed=0, unroll=UNROLL).train()
        together, singles = tasks.sample("train", range(B)), [tasks.sample("train", [i]) for i in range(B)]
        traced = Traced(learner, together.support.source.function)

        def all_together(learner: Any = learner, episode: Any = together) -> None:
            for _ in learner.meta_gradient(episode):
                pass

        def one_by_one(learner: Any = learner, episodes: Any = singles) -> None:
            for episode in episodes:
                for _ in learner.meta_gradient(episode):
                    pass

        def by_trace(traced: Any = traced, episode: Any = together) -> None:
            traced.meta_gradient(episode)

        gradients = []
        for work in (all_together, by_trace):
            learner.zero_grad()
            work()
            gradients.append(torch.cat([p.grad.flatten() for p in learner.parameters()]))
        apart = float((gradients[0] - gradients[1]).norm() / gradients[0].norm())
        report.notes.append(f"{name}: the gradient of the trace differs by {apart:.1g} of its norm")
        arms = {"together": all_together, "traced": by_trace, "one by one": one_by_one}
        times = alternate(arms, 1 if options.quick else 5, clock=clock)
        for arm, values in times.items():
            middle, least, most = spread([1000 * v for v in values])
            report.rows.append({"run": f"{name}, {arm}", "ms": middle, "least": least, "most": most})
        one_by_one_ratio, traced_ratio = (
            ratio_of(times[a], times[b]) for a, b in (("one by one", "together"), ("together", "traced"))
        )
        report.ratios += [
            (one_by_one_ratio, f"{name}: l2l is {{}} times as fast as with one optimizee after another"),
            (traced_ratio, f"{name}: a trace would be {{}} times as fast as l2l"),
        ]
    report.finish(options)


if __name__ == "__main__":
    main()
