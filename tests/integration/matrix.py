"""Every learner on all tasks, with every memory: run for two iterations and an evaluation, or refused with a reason.

    python tests/integration/matrix.py                              (one process)
    torchrun --nproc-per-node 2 tests/integration/matrix.py distributed

Made from the registry alone: what a learner or a view can be composed with, its options say. Prints the table, and as
its last line a JSON object {"learner | tasks | memory": outcome}. Exits with 1 where one neither runs nor is refused.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

import attrs
import torch

import kshot
from kshot.errors import MisfitError

OF = "toy"
"""What views are views of."""


@attrs.frozen
class Cell:
    """One combination: the options that compose it, and how it is called."""

    learner: str
    tasks: str
    memory: str
    learner_options: dict[str, Any]
    tasks_options: dict[str, Any]


def nested(name: str) -> dict[str, str]:
    """The options of a plugin that take another plugin, by the protocol they ask for."""
    found = {}
    for option in kshot.info(name).options:
        for protocol in ("Learner", "TaskDistribution", "Memory"):
            if protocol in option.type:
                found[protocol] = option.name
    return found


def cells() -> Iterator[Cell]:
    """All combinations of what is installed."""
    by_group: dict[str, list[str]] = {}
    for plugin in kshot.plugins():
        if plugin.state == "ok":
            by_group.setdefault(plugin.group, []).append(plugin.name)
    learners = []
    for name in by_group.get("learners", []):
        options = nested(name)
        if "Learner" in options:
            inner = [n for n in by_group["learners"] if "Learner" not in nested(n)]
            learners += [(f"{name}({n})", name, "", {options["Learner"]: {"name": n}}) for n in inner]
        elif "Memory" in options:
            memories = by_group.get("memories", [])
            learners += [(name, name, m, {options["Memory"]: {"name": m}}) for m in memories]
        else:
            learners.append((name, name, "", {}))
    for called, name, memory, learner_options in learners:
        for tasks in by_group.get("tasks", []):
            view = nested(tasks).get("TaskDistribution")
            tasks_options = {view: {"name": OF}} if view else {}
            yield Cell(
                called, f"{tasks}({OF})" if view else tasks, memory, {"": name, **learner_options}, tasks_options
            )


def reason_of(misfit: MisfitError) -> str:
    """The first mismatch, without who and whom."""
    first, *mismatches = str(misfit).splitlines()
    return mismatches[0].strip(" -") if mismatches else first.partition("fit these tasks: ")[2] or first


def outcome(cell: Cell, backend: Any) -> str:
    """``ran``, or ``refused: `` and why; anything else raises."""
    tasks = kshot.tasks(cell.tasks.partition("(")[0], **cell.tasks_options)
    options = dict(cell.learner_options)
    try:
        learner = kshot.learner(options.pop(""), tasks.spec, **options)
        engine = kshot.Engine(learner, tasks, meta_batch=2, backend=backend, hooks=())
    except MisfitError as misfit:
        return f"refused: {reason_of(misfit)}"
    before = [p.detach().clone() for p in learner.parameters()]
    engine.train(2)
    result = engine.evaluate(2, split="test" if "test" in tasks.spec.splits else tasks.spec.splits[-1])
    if not all(bool(torch.isfinite(p).all()) for p in learner.parameters()):
        raise ArithmeticError("a parameter is not finite after two iterations")
    if before and all(torch.equal(p, b) for p, b in zip(learner.parameters(), before, strict=True)):
        raise ArithmeticError("no parameter moved in two iterations")
    return f"ran: {result}"


def main(backend_name: str) -> int:
    backend = kshot.backend(backend_name)
    speaks = backend.world.rank == 0
    found, failed = {}, 0
    for cell in cells():
        name = " | ".join(part for part in (cell.learner, cell.tasks, cell.memory) if part)
        started = time.perf_counter()
        try:
            found[name] = outcome(cell, backend)
        except Exception as error:
            failed += 1
            found[name] = f"FAILED: {type(error).__name__}: {error}"
            traceback.print_exc()
        if speaks:
            print(f"{name:<60} {time.perf_counter() - started:5.1f} s  {found[name]}", flush=True)
    if speaks:
        print(json.dumps(found))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "cpu"))
