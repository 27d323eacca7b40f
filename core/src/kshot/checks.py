"""Does this learner fit these tasks? Compared by values alone, before any compute, all mismatches at once."""

from __future__ import annotations

from typing import Any

import torch

from kshot.errors import MisfitError
from kshot.spec import Needs, TaskSpec, bounds


def mismatches(needs: Needs, spec: TaskSpec, *, built_for: TaskSpec | None = None) -> list[str]:
    """Every reason why a learner with ``needs`` can't learn tasks with ``spec``; empty where it can.

    Args:
        built_for: the spec the learner was built with, where it differs from ``spec`` (evaluation on other tasks).
    """
    found = []
    if spec.kind not in needs.kinds:
        found.append(f"the tasks are {spec.kind}, the learner learns {', '.join(needs.kinds)}")
    for name in ("unlabelled", "semantics"):
        if getattr(needs, name) == "required" and name not in spec.provides:
            found.append(f"the learner requires {name}, the tasks provide none (a view may add it)")
    if needs.external and "external" not in spec.provides:
        found.append("the learner requires external examples, the tasks provide none (a view may add them)")
    low, high = bounds(spec.way)
    if low != high and not needs.variable_way:
        found.append(f"the way varies ({low} to {high}), the learner takes one fixed way")
    if spec.kind == "classification" and bounds(spec.shot)[0] == 0 and not needs.zero_shot:
        found.append("shot may be 0, the learner can't do without labelled examples")
    if spec.kind == "classification" and bounds(spec.shot)[0] == 0 and "semantics" not in spec.provides:
        found.append("shot may be 0, but the tasks provide no semantics to tell the classes by")
    if needs.input_range is not None:
        if spec.input_range is None:
            found.append(f"the learner takes inputs in {list(needs.input_range)}, the tasks' are unbounded")
        elif spec.input_range[0] < needs.input_range[0] or spec.input_range[1] > needs.input_range[1]:
            found.append(
                f"the learner takes inputs in {list(needs.input_range)}, the tasks' lie in {list(spec.input_range)}"
            )
    if spec.kind == "control":
        found += _control_mismatches(needs, spec)
    if built_for is not None:
        both_control = spec.kind == built_for.kind == "control"
        for name in ("input_shape", *(() if both_control else ("target_shape",)), "semantics_shape"):
            if getattr(built_for, name) != getattr(spec, name):
                found.append(
                    f"the learner was built for {name} {getattr(built_for, name)}, the tasks have {getattr(spec, name)}"
                )
        if both_control:
            if _actions(built_for) != _actions(spec):
                found.append(f"the learner was built for {_actions(built_for)}, the tasks have {_actions(spec)}")
        elif not needs.variable_way and built_for.way != spec.way:
            found.append(f"the learner was built for {built_for.way} ways, the tasks have {spec.way}")
    return found


def _actions(spec: TaskSpec) -> str:
    if spec.way is not None:
        return f"{spec.way} discrete actions"
    bounded = "" if spec.target_range is None else f" in {list(spec.target_range)}"
    return f"continuous actions of shape {list(spec.target_shape)}{bounded}"


def _control_mismatches(needs: Needs, spec: TaskSpec) -> list[str]:
    """What a policy can't play, and rollouts beyond the budget."""
    found = []
    if needs.actions != "any" and (needs.actions == "discrete") != (spec.way is not None):
        found.append(f"the learner's policies take {needs.actions} actions, the tasks have {_actions(spec)}")
    if spec.rollouts is not None and needs.rollouts > spec.rollouts:
        found.append(
            f"the learner plays {needs.rollouts} rollouts while adapting, the tasks allow {spec.rollouts}; take fewer "
            "updates, or give the tasks more (tasks.rollouts)"
        )
    return found


def check(learner: Any, tasks: Any, backend: Any = None, *, built_for: TaskSpec | None = None) -> None:
    """Raises MisfitError that lists every mismatch of a learner (or its class), tasks and backend; else returns.

    Args:
        learner: a learner, its class or factory: anything with ``needs``.
        tasks: a task distribution, or its spec.
        backend: a backend whose device must exist, or None.
    """
    spec = tasks if isinstance(tasks, TaskSpec) else tasks.spec
    found = mismatches(learner.needs, spec, built_for=built_for)
    if backend is not None and torch.device(backend.device).type == "cuda" and not torch.cuda.is_available():
        found.append(f"the backend's device is {backend.device}, and this machine has none")
    if found:
        who = getattr(learner, "__name__", type(learner).__name__)
        lines = "\n".join(f"  - {reason}" for reason in found)
        raise MisfitError(f"{who} and these tasks don't fit:\n{lines}")
