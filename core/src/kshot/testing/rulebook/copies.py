"""Rules for learners, memories and tasks: they can be pickled and copied, so that they can be kept and sent."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from kshot.testing.cases import Case
from kshot.testing.compare import difference, gap
from kshot.testing.other_process import importable as buildable
from kshot.testing.outer_steps import gradient
from kshot.testing.rulebook.learner_rule import learner_rule
from kshot.testing.rulebook.memories import memory_rule, run
from kshot.testing.rulebook.rule import broken
from kshot.testing.rulebook.task_rule import observed, tasks_rule
from kshot.testing.subjects import MemorySubject, TasksSubject


def copies_of(component: Any, when: str, pickled: bool = True) -> Iterator[tuple[str, Any]]:
    """Yield what the copy is and the copy itself: deep, and pickled if the classes can be imported.

    Args:
        component: what to copy.
        when: before or after use, for the message.
        pickled: whether to pickle it too.
    """
    ways: dict[str, Callable[[Any], Any]] = {"deep-copied": copy.deepcopy}
    if pickled and importable(component):
        ways["pickled"] = lambda value: pickle.loads(pickle.dumps(value))
    for what, way in ways.items():
        try:
            yield f"{what} {when}", way(component)
        except Exception as raised:
            broken(
                f"got {type(raised).__name__} ({raised}) when {what} {when}, expected a copy; keep no local function, "
                "lambda, code object or generator on the component, or leave it out in __getstate__"
            )


def importable(component: Any) -> bool:
    """Say whether pickle finds the classes of a component and its submodules; not if they are local to a function."""
    modules = component.modules() if isinstance(component, nn.Module) else [component]
    try:
        pickle.dumps({type(m) for m in modules} | {type(component)})
    except Exception:
        return False
    return True


@learner_rule()
def copies_predict_alike(case: Case) -> None:
    """A learner can be pickled and deep-copied, before and after it has trained and predicted, and the copy gives the
    same predictions, bit for bit. If its class or that of one of its modules is local to a function, it is only copied.
    """
    for when in ("before use", "after use"):
        learner = case.build()
        if when == "after use":
            gradient(learner, case.episode(split=case.training))
            for p in learner.parameters():
                p.grad = None
            case.predict(learner, case.episode())
        pairs = list(copies_of(learner, when))
        expected = case.predict(learner, case.episode())
        for what, other in pairs:
            if (far := gap(expected, case.predict(other, case.episode()))) > 0:
                broken(
                    f"got predictions that differ by {far:.2g} of the greatest one from a learner {what}, expected the "
                    "same"
                )


@memory_rule()
def copies_read_alike(subject: MemorySubject) -> None:
    """A memory can be pickled and deep-copied, before and after use, and the copy gives the same reads, bit for bit."""
    memory = subject.build()
    interfaces = subject.interfaces(memory)
    for when in ("before use", "after use"):
        pairs = list(copies_of(memory, when))
        with torch.no_grad():
            expected, _ = run(memory, interfaces)
            for what, other in pairs:
                if (far := gap(expected, run(other, interfaces)[0])) > 0:
                    broken(
                        f"got reads that differ by {far:.2g} of the greatest one from a memory {what}, expected the "
                        "same"
                    )


@tasks_rule()
def copies_sample_alike(subject: TasksSubject) -> None:
    """Tasks can be pickled and deep-copied, before and after an episode was sampled, and the copy has the same
    episodes. Tasks that another process can't build, because they were given built or by a local factory, are only
    copied: they may contain local functions of the user's.
    """
    pickled = buildable(subject.source) is None
    tasks = subject.tasks if subject.source.is_built else subject.source.build()
    split = subject.spec.splits[0]
    for when in ("before use", "after use"):
        for what, other in copies_of(tasks, when, pickled):
            if where := difference(observed(subject, split, [0], tasks), observed(subject, split, [0], other)):
                broken(f"got another episode 0 of split {split!r} from tasks {what}, expected the same: {where}")
