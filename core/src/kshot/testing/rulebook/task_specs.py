"""Rules for tasks: episodes are what the spec, the manifest and the preparation say."""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch
from torch import Tensor

from kshot import registry
from kshot.episode import Episode, Objective, check_finite
from kshot.errors import RunError
from kshot.protocols import Portable
from kshot.sampling import check_episode
from kshot.spec import Count, TaskSpec, bounds
from kshot.testing.rulebook.rule import broken
from kshot.testing.rulebook.task_rule import shapes, tasks_rule
from kshot.testing.subjects import TasksSubject


@tasks_rule()
def spec_is_true(subject: TasksSubject) -> None:
    """Episodes are what the spec says: shapes, types, ranges, way, shot, query, and what the tasks provide. The spec
    can be written to JSON and read back. Shapes vary only if counts are ranges, and then only between blocks. The
    origin names the split and the indices. Keys are int64 [B], a different one for each episode.
    """
    spec = subject.spec
    if TaskSpec.from_json(spec.to_json()) != spec:
        broken(f"spec: got {TaskSpec.from_json(spec.to_json())} after writing and reading it as JSON, expected {spec}")
    seen = set()
    for split in spec.splits:
        for first in (0, 1000 * spec.block):
            indices = list(subject.block(first, 3))
            episode = subject.tasks.sample(split, indices)
            _check_counts(episode, spec, split, indices)
            check_episode(episode, spec, f"split {split!r}")
            _check_provided(episode, spec, split)
            for i in indices:
                alone = shapes(subject.tasks.sample(split, [i]))
                if alone != shapes(episode):
                    broken(
                        f"episode {i} of split {split!r}: got the shapes {alone} when sampled alone, expected those of "
                        f"its block, {shapes(episode)}"
                    )
            seen.add(tuple(sorted(shapes(episode).items())))
    if not spec.varies and len(seen) > 1:
        broken(f"got the shapes {sorted(seen)}, expected one, because the spec's counts are not ranges")
    if hasattr(subject.tasks, "pool"):
        for split in spec.splits:
            shape = tuple(subject.tasks.pool(split).x.shape[1:])
            if shape != spec.input_shape:
                broken(f"pool({split!r}): got inputs of shape {shape}, expected the spec's {spec.input_shape}")
    if subject.tasks.spec != spec:
        broken("the spec changed while sampling, expected it to stay the same")


def _check_counts(episode: Episode, spec: TaskSpec, split: str, indices: list[int]) -> None:
    support, query, B = episode.support, episode.query, len(indices)
    where = f"split {split!r}, episodes {indices}"
    # What all kinds have in common: keys, no query inputs in the support, the origin, and B as first axis.
    if support.key.dtype != torch.int64 or tuple(support.key.shape) != (B,):
        broken(f"{where}: got support.key {support.key.dtype} {tuple(support.key.shape)}, expected int64 ({B},)")
    if len(set(support.key.tolist())) < B:
        broken(f"{where}: got support.key {support.key.tolist()}, expected a different number for each episode")
    if support.query_x is not None:
        broken(f"{where}: got a support.query_x, expected None; the engine adds it for learners that need it")
    if episode.origin is None or episode.origin.split != split or list(episode.origin.indices) != indices:
        broken(f"{where}: got the origin {episode.origin}, expected one with this split and these indices")
    for name, x in (
        ("support.x", support.x),
        ("support.y", support.y),
        ("query.x", query.x),
        ("query.y", query.y),
    ):
        if len(x) != B:
            broken(f"{where}: got {name} of shape {tuple(x.shape)}, expected B = {B} as first axis")
    # What depends on the kind.
    if spec.kind == "classification":
        low, high = bounds(spec.way)
        if low is None or high is None or support.way is None or not low <= support.way <= high:
            broken(f"{where}: got support.way {support.way}, expected the spec's {spec.way}")
        for name, y, count in (("shot", support.y, spec.shot), ("query", query.y, spec.query)):
            _check_each_class(y, support.way, count, f"{where}: {name}")
    elif spec.kind == "regression":
        for name, y, count in (("shot", support.y, spec.shot), ("query", query.y, spec.query)):
            if not _within(y.shape[1], count):
                broken(f"{where}: got {y.shape[1]} examples, expected the spec's {name} = {count}")
            if tuple(y.shape[2:]) != spec.target_shape:
                broken(
                    f"{where}: got targets of shape {tuple(y.shape[2:])}, expected the spec's target_shape "
                    f"{spec.target_shape}"
                )
    elif spec.kind == "sequence":
        if support.x.shape[1]:
            broken(f"{where}: got {support.x.shape[1]} examples in the support, expected none in a sequence")
        if query.x.shape[:2] != query.y.shape[:2] or tuple(query.y.shape[2:]) != spec.target_shape:
            broken(
                f"{where}: got targets {tuple(query.y.shape)} for inputs {tuple(query.x.shape)}, expected one target "
                f"of shape {spec.target_shape} per step"
            )
    elif spec.kind == "control":
        for name, source in (("support", support.source), ("query", query.source)):
            if not hasattr(source, "rollout"):
                broken(f"{where}: got {type(source).__name__} as {name}.source, expected an Environment")
    elif not (isinstance(support.source, Objective) and isinstance(query.source, Objective)):
        broken(
            f"{where}: got the sources {type(support.source).__name__} and {type(query.source).__name__}, "
            "expected kshot.Objective"
        )


def _within(n: int, count: Count | None) -> bool:
    low, high = bounds(count)
    return low is None or high is None or low <= n <= high


def _check_each_class(y: Tensor, way: int, count: Count | None, where: str) -> None:
    """Check that every label has as many examples as the spec says."""
    if y.is_floating_point() or (y.numel() and (int(y.min()) < 0 or int(y.max()) >= way)):
        return  # check_episode reports this with a better message
    for b, row in enumerate(y):
        for label, n in enumerate(torch.bincount(row, minlength=way).tolist()):
            if not _within(n, count):
                broken(f"{where}: got {n} examples of label {label} in task {b}, expected the spec's {count}")


def _check_provided(episode: Episode, spec: TaskSpec, split: str) -> None:
    support, origin = episode.support, episode.origin
    there = {
        "semantics": support.semantics is not None,
        "unlabelled": support.unlabelled is not None,
        "external": episode.external is not None,
        "identities": origin is not None and origin.support_ids is not None and origin.query_ids is not None,
    }
    for name, present in there.items():
        if name in spec.provides and not present:
            broken(f"split {split!r}: got episodes without {name}, expected them to have it, as spec.provides says")
    if support.semantics is not None and "semantics" in spec.provides:
        expected = (episode.size, support.way, *(spec.semantics_shape or ()))
        if tuple(support.semantics.shape) != expected:
            broken(f"split {split!r}: got semantics of shape {tuple(support.semantics.shape)}, expected {expected}")
    if support.unlabelled is not None:
        _check_unlabelled(support.unlabelled, spec, f"split {split!r}: unlabelled inputs", episode.size)


def _check_unlabelled(x: Tensor, spec: TaskSpec, what: str, B: int) -> None:
    if x.shape[0] != B or tuple(x.shape[2:]) != spec.input_shape or x.dtype != torch.float32:
        shape = (B, "U", *spec.input_shape)
        broken(f"{what}: got {x.dtype} of shape {tuple(x.shape)}, expected torch.float32 of shape {shape}")
    check_finite(x, what)
    if spec.input_range is not None and x.numel():
        low, high = float(x.min()), float(x.max())
        if low < spec.input_range[0] - 1e-6 or high > spec.input_range[1] + 1e-6:
            broken(
                f"{what}: got values in [{low:.4g}, {high:.4g}], expected the spec's input_range "
                f"{list(spec.input_range)}"
            )


@tasks_rule(lambda subject: None if subject.source.plugin is not None else "they were not given by a plugin's name")
def manifest_is_true(subject: TasksSubject) -> None:
    """If the plugin's manifest states kinds, the kind of the tasks is one of them."""
    plugin = subject.source.plugin
    if plugin is not None and plugin.kinds and subject.spec.kind not in plugin.kinds:
        broken(f"got spec.kind {subject.spec.kind}, expected one of the manifest's kinds: {', '.join(plugin.kinds)}")


def _no_preparation(subject: TasksSubject) -> str | None:
    preparation = subject.tasks.preparation if isinstance(subject.tasks, Portable) else None
    return "they have no preparation that could be stored" if preparation is None else None


@tasks_rule(_no_preparation)
def preparation_travels(subject: TasksSubject) -> None:
    """``preparation`` consists of names, numbers and tensors, and of functions that another process can look up
    because they are registered as preparing inputs.
    """
    tasks: Any = subject.tasks
    file = io.BytesIO()
    torch.save(tasks.preparation.to_dict(), file)
    file.seek(0)
    try:
        assert callable(registry.preparation(torch.load(file, weights_only=True)))
    except pickle.UnpicklingError as error:
        broken(
            "preparation: got options that can't be stored, expected names, numbers, tensors and preparations "
            f"({str(error)[-200:]})"
        )
    except RunError as error:
        broken(str(error))
