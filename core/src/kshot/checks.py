"""Check, before any compute, whether a learner fits its tasks and whether an episode is what its spec says."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kshot.arrays import check_finite
from kshot.episode import Environment, Episode, Examples, Support
from kshot.errors import DataError, MisfitError
from kshot.spec import Needs, TaskSpec, bounds

__all__ = ["check", "check_class_labels", "check_episode", "mismatches"]


def check(learner: Any, tasks: Any, backend: Any = None, *, built_for: TaskSpec | None = None) -> None:
    """Raise MisfitError if a learner, tasks and a backend do not fit; the message lists every mismatch.

    Args:
        learner: a learner, its class or factory: anything with ``needs``.
        tasks: a task distribution, or its spec.
        backend: a backend whose device must exist, or None.
        built_for: the spec that the learner was built with, if it differs from that of ``tasks``.

    Example:
        >>> class MyLearner:
        ...     needs = Needs(kinds=("regression",))
        >>> check(MyLearner, TaskSpec(kind="classification", input_shape=(3,), way=5, shot=1, query=2))
        Traceback (most recent call last):
        kshot.errors.MisfitError: MyLearner: got tasks that do not fit:
          - the tasks are classification, the learner learns regression
    """
    spec = tasks if isinstance(tasks, TaskSpec) else getattr(tasks, "spec", None)
    if not isinstance(spec, TaskSpec):
        raise MisfitError(
            f"tasks: got {_described(tasks)}, expected tasks such as kshot.tasks(NAME) or kshot.ClassificationTasks, "
            "with a spec"
        )
    if not isinstance(getattr(learner, "needs", None), Needs):
        raise MisfitError(
            f"learner: got {_described(learner)}, expected a learner such as kshot.learner(NAME, tasks.spec), with "
            "needs; pass a network as an option of a learner, and a learner without a wrapper"
        )
    if backend is not None and not hasattr(backend, "device"):
        raise MisfitError(f"backend: got {_described(backend)}, expected a backend such as kshot.backend('cpu')")
    reasons = mismatches(learner.needs, spec, built_for=built_for)
    if backend is not None and torch.device(backend.device).type == "cuda" and not torch.cuda.is_available():
        reasons.append(f"the backend's device is {backend.device}, this machine has none")
    if reasons:
        who = getattr(learner, "__name__", type(learner).__name__)
        lines = "\n".join(f"  - {reason}" for reason in reasons)
        raise MisfitError(f"{who}: got tasks that do not fit:\n{lines}")


def _described(value: Any) -> str:
    """Return what a value is, for a message."""
    if isinstance(value, str):
        return f"the text {value!r:.40}"
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def mismatches(needs: Needs, spec: TaskSpec, *, built_for: TaskSpec | None = None) -> list[str]:
    """Return every reason why a learner with ``needs`` can't learn tasks with ``spec``; empty if it can.

    Args:
        needs: of the learner.
        spec: of the tasks.
        built_for: the spec the learner was built with, if it differs from ``spec`` (evaluation on other tasks).

    Example:
        >>> mismatches(Needs(), TaskSpec(kind="classification", input_shape=(3,), way=(2, 5), shot=1, query=2))
        ['the way varies (2 to 5), the learner takes one fixed way']
    """
    reasons = []
    if spec.kind not in needs.kinds:
        reasons.append(f"the tasks are {spec.kind}, the learner learns {', '.join(needs.kinds)}")
    for name in ("unlabelled", "semantics"):
        if getattr(needs, name) == "required" and name not in spec.provides:
            reasons.append(f"the learner requires {name}, the tasks provide none (a view may add it)")
    if needs.external and "external" not in spec.provides:
        reasons.append("the learner requires external examples, the tasks provide none (a view may add them)")
    low, high = bounds(spec.way)
    if low != high and not needs.variable_way:
        reasons.append(f"the way varies ({low} to {high}), the learner takes one fixed way")
    if spec.kind == "classification" and bounds(spec.shot)[0] == 0 and not needs.zero_shot:
        reasons.append("shot may be 0, the learner can't do without labelled examples")
    if spec.kind == "classification" and bounds(spec.shot)[0] == 0 and "semantics" not in spec.provides:
        reasons.append("shot may be 0, but the tasks provide no semantics to distinguish the classes by")
    if spec.kind == "classification" and "environment" in spec.provides and not needs.absent_labels:
        reasons.append("labels are actions of demonstrations, the learner can't do without an example of each label")
    if needs.input_range is not None:
        if spec.input_range is None:
            reasons.append(f"the learner takes inputs in {list(needs.input_range)}, the tasks' are unbounded")
        elif spec.input_range[0] < needs.input_range[0] or spec.input_range[1] > needs.input_range[1]:
            reasons.append(
                f"the learner takes inputs in {list(needs.input_range)}, the tasks' lie in {list(spec.input_range)}"
            )
    if spec.kind == "control":
        reasons += _control_mismatches(needs, spec)
    if built_for is not None:
        reasons += _changes(needs, spec, built_for)
    return reasons


def _control_mismatches(needs: Needs, spec: TaskSpec) -> list[str]:
    """Return why a learner's policies can't play in these tasks, and whether its rollouts exceed the budget."""
    reasons = []
    if needs.actions != "any" and (needs.actions == "discrete") != (spec.way is not None):
        reasons.append(f"the learner's policies take {needs.actions} actions, the tasks have {_actions(spec)}")
    if spec.rollouts is not None and needs.rollouts > spec.rollouts:
        reasons.append(
            f"the learner plays {needs.rollouts} rollouts while adapting, the tasks allow {spec.rollouts}; use fewer "
            "updates, or give the tasks more (tasks.rollouts)"
        )
    return reasons


def _changes(needs: Needs, spec: TaskSpec, built_for: TaskSpec) -> list[str]:
    """Return in what sizes these tasks differ from those that the learner was built for."""
    both_control = spec.kind == built_for.kind == "control"
    # In control, target_shape and way describe actions, which _actions compares together. In objective tasks it is the
    # number of parameters, which a learner may leave open.
    open_target = both_control or (spec.kind == built_for.kind == "objective" and needs.variable_parameters)
    names = ("input_shape", *(() if open_target else ("target_shape",)), "semantics_shape")
    reasons = [
        f"the learner was built for {name} {getattr(built_for, name)}, the tasks have {getattr(spec, name)}"
        for name in names
        if getattr(built_for, name) != getattr(spec, name)
    ]
    if both_control:
        if _actions(built_for) != _actions(spec):
            reasons.append(f"the learner was built for {_actions(built_for)}, the tasks have {_actions(spec)}")
    elif not needs.variable_way and built_for.way != spec.way:
        reasons.append(f"the learner was built for {built_for.way} ways, the tasks have {spec.way}")
    return reasons


def _actions(spec: TaskSpec) -> str:
    if spec.way is not None:
        return f"{spec.way} discrete actions"
    bounded = "" if spec.target_range is None else f" in {list(spec.target_range)}"
    return f"continuous actions of shape {list(spec.target_shape)}{bounded}"


def check_episode(episode: Episode, spec: TaskSpec, who: str) -> None:
    """Check that a meta-batch is what the spec says and can be computed with; the engine calls it once per split.

    Args:
        episode: a meta-batch.
        spec: of the tasks that it is from.
        who: the tasks' name, for messages.

    Raises:
        DataError: wrong shapes or types, labels other than 0..N-1, values that are not finite or out of range.

    Example:
        >>> from kshot.episode import Examples, Support
        >>> support = Support.of([[0.0], [1.0]], [0, 1])
        >>> episode = Episode(support, Examples(torch.tensor([[[0.5]]]), torch.tensor([[1]])))
        >>> spec = TaskSpec(kind="classification", input_shape=(1,), way=2, shot=1, query=1)
        >>> check_episode(episode, spec, "my tasks")
    """
    if not (
        isinstance(episode, Episode) and isinstance(episode.support, Support) and isinstance(episode.query, Examples)
    ):
        raise DataError(
            f"{who}: got {type(episode).__name__}, expected an Episode of a Support and Examples; return "
            "kshot.Episode(kshot.Support(...), kshot.Examples(...))"
        )
    support, query = episode.support, episode.query
    fields = {"support.x": support.x, "support.y": support.y, "query.x": query.x, "query.y": query.y}
    for name, value in {**fields, "support.key": support.key}.items():
        _check_tensor(value, f"{who}: {name}")
    _check_inputs(support.x, spec, episode.size, f"{who}: support.x")
    _check_inputs(query.x, spec, episode.size, f"{who}: query.x")
    if support.unlabelled is not None:
        _check_tensor(support.unlabelled, f"{who}: support.unlabelled")
        _check_inputs(support.unlabelled, spec, episode.size, f"{who}: support.unlabelled")
    if episode.external is not None:
        _check_external(episode.external, spec, episode.size, f"{who}: external")
    if support.semantics is not None:
        _check_tensor(support.semantics, f"{who}: support.semantics")
        check_finite(support.semantics, f"{who}: support.semantics")
    sources = {"support": support.source, "query": query.source} if spec.kind == "control" else {}
    for name, source in ({"query": query.source} if "environment" in spec.provides else sources).items():
        if not isinstance(source, Environment):
            raise DataError(
                f"{who}: {name}.source: got {type(source).__name__}, expected an environment: an object with "
                "rollout(policy, number=0), see kshot.episode.Environment"
            )
    if spec.kind == "classification":
        check_class_labels(episode, who)
    elif spec.kind == "regression":
        _check_targets(support.y, support.x, spec, f"{who}: support.y")
        _check_targets(query.y, query.x, spec, f"{who}: query.y")
        check_finite(support.y, f"{who}: support.y")
        check_finite(query.y, f"{who}: query.y")
    elif spec.kind == "sequence":
        _check_targets(query.y, query.x, spec, f"{who}: query.y")


def _check_tensor(value: Any, who: str) -> None:
    """Raise DataError unless a field of an episode is a strided tensor that has values and an axis B."""
    if not isinstance(value, Tensor):
        given = f"{type(value).__name__}"
    elif value.is_nested or value.is_meta or value.is_quantized or value.layout != torch.strided:
        words = {"nested": value.is_nested, "meta": value.is_meta, "quantised": value.is_quantized}
        given = f"a tensor that is {next((word for word in words if words[word]), str(value.layout))}"
    elif value.ndim == 0:
        given = "a tensor without axes"
    else:
        return
    raise DataError(f"{who}: got {given}, expected a dense tensor [B, ...]; convert when sampling")


def _check_inputs(x: Tensor, spec: TaskSpec, B: int, who: str) -> None:
    """Raise DataError unless ``x`` [B, n, *input] is float32, finite, and of the spec's shape and range."""
    if x.numel() == 0:
        return
    if x.ndim < 2 or x.shape[0] != B or tuple(x.shape[2:]) != spec.input_shape:
        raise DataError(
            f"{who}: got shape {tuple(x.shape)}, expected [{B}, n, {', '.join(map(str, spec.input_shape))}] by the "
            f"spec's input_shape {spec.input_shape}"
        )
    if x.dtype != torch.float32:
        raise DataError(f"{who}: got {x.dtype}, expected torch.float32; convert when sampling")
    check_finite(x, who)
    if spec.input_range is not None:
        low, high = float(x.min()), float(x.max())
        if low < spec.input_range[0] - 1e-6 or high > spec.input_range[1] + 1e-6:
            raise DataError(
                f"{who}: got values in [{low:.4g}, {high:.4g}], expected them in the spec's input_range "
                f"{list(spec.input_range)}; scale the inputs or correct the spec"
            )


def _check_external(external: Examples, spec: TaskSpec, B: int, who: str) -> None:
    """Raise DataError unless external examples have the tasks' inputs, and labels of the classes in the spec."""
    x, y, classes = external.x, external.y, len(spec.external_classes)
    _check_tensor(x, f"{who}.x")
    _check_tensor(y, f"{who}.y")
    _check_inputs(x, spec, B, f"{who}.x")
    if not classes:
        return  # their targets are of a sort that the spec does not describe
    if y.dtype != torch.int64 or y.shape != x.shape[:2]:
        raise DataError(
            f"{who}.y: got {y.dtype} of shape {tuple(y.shape)}, expected int64 of shape {tuple(x.shape[:2])}"
        )
    if y.numel() and (int(y.min()) < 0 or int(y.max()) >= classes):
        raise DataError(
            f"{who}.y: got labels {int(y.min())}..{int(y.max())}, expected 0..{classes - 1} for the {classes} names of "
            "the spec's external_classes"
        )


def _check_targets(y: Tensor, x: Tensor, spec: TaskSpec, who: str) -> None:
    """Raise DataError unless targets are [B, n, *target] beside inputs [B, n, *input], by the spec's target_shape."""
    expected = (*x.shape[:2], *spec.target_shape)
    if tuple(y.shape) != expected:
        raise DataError(
            f"{who}: got shape {tuple(y.shape)}, expected {expected} beside inputs of shape {tuple(x.shape)} by the "
            f"spec's target_shape {spec.target_shape}; reshape the targets or correct the spec"
        )
    if spec.kind == "regression" and not y.is_floating_point():
        raise DataError(f"{who}: got {y.dtype}, expected torch.float32; convert the targets when sampling")


def check_class_labels(episode: Episode, who: str) -> None:
    """Raise DataError unless support labels are exactly 0..N-1 (if there are any) and query labels are among them.

    If labels are the actions of an environment (of the query), some may be absent from the support.

    Example:
        >>> from kshot.episode import Examples, Support
        >>> support = Support.of([[0.0], [1.0]], [0, 1])
        >>> check_class_labels(Episode(support, Examples(torch.zeros(1, 1, 1), torch.tensor([[1]]))), "my tasks")
    """
    support, query, way = episode.support, episode.query, episode.support.way
    if not isinstance(way, int) or isinstance(way, bool) or way < 1:
        raise DataError(f"{who}: got support.way {way!r}, expected N, an int, for a classification episode")
    for name, y, x in (("support.y", support.y, support.x), ("query.y", query.y, query.x)):
        if y.dtype != torch.int64 or y.shape != x.shape[:2]:
            raise DataError(
                f"{who}: {name}: got {y.dtype} of shape {tuple(y.shape)}, expected int64 of shape {tuple(x.shape[:2])}"
            )
        if y.numel() and (int(y.min()) < 0 or int(y.max()) >= way):
            raise DataError(
                f"{who}: {name}: got labels {int(y.min())}..{int(y.max())}, expected 0..{way - 1} for {way} ways"
            )
    if support.y.shape[1] and not isinstance(query.source, Environment):
        present = torch.zeros(episode.size, way, dtype=torch.bool).scatter_(1, support.y.cpu(), True)
        if not bool(present.all()):
            b, c = (~present).nonzero()[0].tolist()
            raise DataError(
                f"{who}: support: got no example of label {c} in task {b}, expected one of each of 0..{way - 1}"
            )
