"""Measure a training step of a neural Turing machine on lists to copy, against one cell after another.

The reference computes the same arithmetic in the usual way: in every time step one head after another, each by its
equations. Both have the same parameters and give the same answers, which is checked. All run in one process, in turn,
and the ratio is that of the median times of the processor; for the peak memory each runs in a separate process.

Run ``python benchmarks/ntm_step.py``; add ``--quick`` to test the script only.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from bench import Report, alternate, arguments, fresh, peak, spread


def cells(learner: Any, x: Any) -> Any:
    """Compute the answers of a machine with a feed-forward controller, one cell and one head after another."""
    import torch
    import torch.nn.functional as F

    memory, controller = learner.memory, learner.controller
    B, M, W = len(x), memory.slots, memory.width
    slots = torch.full((B, M, W), memory.initial)
    reads = torch.zeros(B, W)
    start = torch.zeros(B, M)
    start[:, 0] = 1
    read_weights = write_weights = start

    def address(key: Any, strength: Any, gate: Any, shift: Any, power: Any, before: Any) -> Any:
        content = F.softmax(F.softplus(strength) * F.cosine_similarity(slots, key.unsqueeze(1), dim=-1), 1)
        gate, shift = torch.sigmoid(gate), F.softmax(shift, 1)
        gated = gate * content + (1 - gate) * before
        moved = sum(shift[:, k + 1 : k + 2] * torch.roll(gated, k, 1) for k in (-1, 0, 1))
        sharp = (moved + 1e-16) ** (1 + F.softplus(power))
        return sharp / sharp.sum(1, keepdim=True)

    answers = []
    for t in range(x.shape[1]):
        h = torch.tanh(controller.see(x[:, t]) + controller.recall(reads))
        parts = learner.emit(h).split([W, W, W, 1, 1, 1, 1, 1, 1, W, 3, 3], 1)
        read_key, write_key, add, *numbers, erase, read_shift, write_shift = parts
        read_strength, write_strength, read_power, write_power, read_gate, write_gate = numbers
        addressed = address(read_key, read_strength, read_gate, read_shift, read_power, read_weights)
        write_weights = address(write_key, write_strength, write_gate, write_shift, write_power, write_weights)
        read_weights = addressed
        slots = slots * (1 - write_weights.unsqueeze(2) * torch.sigmoid(erase).unsqueeze(1))
        slots = slots + write_weights.unsqueeze(2) * add.unsqueeze(1)
        reads = (read_weights.unsqueeze(2) * slots).sum(1)
        answers.append(learner.say(torch.cat([h, reads], 1)))
    return torch.stack(answers, 1)


def machine(strategy: str, slots: int = 128, segment: int = 0) -> Any:
    """Build the machine of the paper's size, 128 slots of width 20 and 100 units."""
    import kshot

    memory = {"name": "ntm-memory", "slots": slots, "width": 20}
    spec = kshot.tasks("copy").spec
    return kshot.learner("ntm", spec, seed=0, memory=memory, strategy=strategy, segment=segment)


def step_of(learner: Any, B: int, length: int, reference: bool = False) -> Callable[[], None]:
    """Return a function that computes the gradient of one meta-batch."""
    import kshot
    from kshot.functional import sequence_loss

    episodes = kshot.tasks("copy", length=length).sample("train", range(B))

    def step() -> None:
        learner.zero_grad()
        if reference:
            sequence_loss(cells(learner, episodes.query.x), episodes.query.y).backward()
        else:
            learner.meta_gradient(episodes)

    return step


def part_memory(segment: int, length: int, B: int) -> dict[str, float]:
    """Return the peak memory of two gradients in MB, and what it was before them."""
    step_of(machine("loop", segment=1), 1, 1)()  # what torch imports at the first segment is not counted
    step = step_of(machine("loop", segment=segment), B, length)
    before = peak()
    for _ in range(2):
        step()
    return {"peak": peak(), "before": before}


def main() -> None:
    options = arguments(__doc__, part=True)
    if options.part:
        print(json.dumps(part_memory(**json.loads(options.options))))
        return
    import torch

    import kshot

    report = Report("ntm_step", [])
    loop, traced = machine("loop"), machine("traced")
    x = kshot.tasks("copy", length=10).sample("train", range(2)).query.x
    with torch.no_grad():
        assert torch.allclose(cells(loop, x), loop.answer(x), atol=1e-4)
    rounds = 2 if options.quick else 15
    seconds: dict[tuple[str, int], float] = {}
    for B in (1, 32):
        steps = {
            "one cell after another": step_of(loop, B, 10, reference=True),
            "ntm, loop": step_of(loop, B, 10),
            "ntm, traced": step_of(traced, B, 10),
        }
        for step in steps.values():
            step()
            step()  # records the trace
        for name, values in alternate(steps, rounds, clock=time.process_time).items():
            seconds[name, B] = spread(values)[0]
            row = {"step": f"{name}, batch {B}, length 10", "ms": 1e3 * seconds[name, B]}
            report.rows.append({**row, "sequences per second": B / seconds[name, B], "MB": ""})
    for B in (1, 32):
        for name in ("ntm, loop", "ntm, traced"):
            ratio = seconds["one cell after another", B] / seconds[name, B]
            report.ratios.append((ratio, f"batch {B}: {name} is {{}} times as fast as one cell after another"))
    for name in ("ntm, loop", "ntm, traced"):
        ratio = 32 * seconds[name, 1] / seconds[name, 32]
        report.ratios.append((ratio, f"{name}: batch 32 has {{}} times the sequences per second of batch 1"))
    for what, pairs in {
        "length": {f"length {n}": (machine("loop"), n) for n in (20, 80)},
        "slots": {f"{n} slots": (machine("loop", slots=n), 10) for n in (512, 2048)},
    }.items():
        steps = {name: step_of(learner, 16, length) for name, (learner, length) in pairs.items()}
        measured = alternate(steps, max(2, rounds // 3), clock=time.process_time)
        small, large = (spread(values)[0] for values in measured.values())
        report.ratios.append((large / small, f"four times the {what} (batch 16) takes {{}} times as long"))
    length, B = (20, 4) if options.quick else (100, 32)
    peaks = {}
    for segment in (0, 15):
        found = fresh(__file__, "memory", segment=segment, length=length, B=B)
        peaks[segment] = found["peak"] - found["before"]
        row = {"step": f"ntm, loop, batch {B}, length {length}, segment {segment}", "ms": ""}
        report.rows.append({**row, "sequences per second": "", "MB": peaks[segment]})
    answer = f"with segments of 15 steps, length {length}, batch {B}, the memory of a step is {{}} of that without"
    report.ratios.append((peaks[15] / max(peaks[0], 1), answer))
    report.finish(options)


if __name__ == "__main__":
    main()
