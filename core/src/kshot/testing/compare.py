"""Compare values: the tensors in an episode, where two sets of tensors differ, and the state of a module."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from kshot.episode import Episode, Objective, Origin

Facts = dict[str, Tensor]


def named_tensors(value: Any, name: str = "") -> Facts:
    """Return every tensor within a value, named by the path to it; each begins with B.

    Example:
        >>> from kshot.testing.sample_tasks import Lines
        >>> list(named_tensors(Lines().sample("train", [0]).query))
        ['x', 'y']
    """

    def within(key: Any) -> str:
        return f"{name}.{key}" if name else str(key)

    if isinstance(value, Tensor):
        return {name: value}
    if isinstance(value, Origin):
        return {within(n): torch.from_numpy(np.array(a)) for n, a in value.arrays().items()}
    if attrs.has(type(value)) and type(value) in pytree.SUPPORTED_NODES:
        children: Mapping[Any, Any] = {f.name: getattr(value, f.name) for f in attrs.fields(type(value))}
    elif isinstance(value, Mapping):
        children = value
    elif isinstance(value, tuple | list):
        children = dict(enumerate(value))
    else:
        return {}
    return {path: t for key, child in children.items() for path, t in named_tensors(child, within(key)).items()}


def standing_still(shape: tuple[int, ...], dtype: torch.dtype) -> Any:
    """Return a policy that always takes the action 0."""
    return lambda x: torch.zeros(*x.shape[:2], *shape, dtype=dtype)


def facts(episode: Episode, target_shape: tuple[int, ...]) -> Facts:
    """Return everything that can be observed of an episode, as named tensors.

    These are its own tensors, the rollouts of its environments under the action 0, and the losses of its objectives
    at their initial points.
    """
    observations = named_tensors(episode)
    for name, source in (("support", episode.support.source), ("query", episode.query.source)):
        if isinstance(source, Objective):
            with contextlib.suppress(Exception):  # another rule reports a broken objective
                observations[f"{name}.source.loss"] = source.loss(source.initial)
        if not hasattr(source, "rollout"):
            continue
        for dtype in (torch.float32, torch.int64):
            try:
                played = source.rollout(standing_still(target_shape, dtype))
            except Exception:
                continue  # an environment with other actions: its tensors are compared, but not its behaviour
            observations.update(named_tensors(played, f"{name}.source.rollout"))
            break
    return observations


def tolerance(dtype: torch.dtype) -> float:
    """Return how far two ways to compute the same may differ, relative to the greatest value."""
    return 1e-7 if dtype == torch.float64 else 2e-3 if dtype == torch.float32 else 5e-2


def gap(a: Tensor, b: Tensor) -> float:
    """Return the greatest difference, relative to the greatest absolute value of either tensor.

    Returns infinity if the NaNs of the two are in different places.

    Example:
        >>> gap(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 3.0]))
        0.25
    """
    a, b = a.detach().double(), b.detach().double()
    if a.numel() == 0:
        return 0.0
    if not torch.equal(a.isnan(), b.isnan()):
        return float("inf")
    a, b = a.nan_to_num(0, 1e300, -1e300), b.nan_to_num(0, 1e300, -1e300)
    largest = max(float(a.abs().max()), float(b.abs().max()), 1e-30)
    return float((a - b).abs().max()) / largest


def difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor], within: float | None = None) -> str | None:
    """Say in words where two sets of tensors differ, or return None if they are the same.

    Args:
        a, b: tensors by name.
        within: relative tolerance for floating-point tensors; None takes the tolerance of their precision, 0 demands
            the same bits.

    Example:
        >>> difference({"y": torch.tensor([1, 2])}, {"y": torch.tensor([1, 3])})
        'y differs, first at (1,): 2 and 3'
    """
    if a.keys() != b.keys():
        return f"{sorted(a.keys() ^ b.keys())} is in one of them only"
    for name in a:
        first, second = a[name], b[name]
        if first.shape != second.shape:
            return f"{name} has shape {tuple(first.shape)} and {tuple(second.shape)}"
        if first.dtype != second.dtype:
            return f"{name} is {first.dtype} and {second.dtype}"
        if first.is_floating_point():
            allowed = tolerance(first.dtype) if within is None else within
            far = gap(first, second)
            if far > allowed:
                return f"{name} differs by {far:.2g} of its greatest value (allowed: {allowed:.2g})"
        elif not torch.equal(first, second):
            place = tuple((first != second).nonzero()[0].tolist())
            return f"{name} differs, first at {place}: {first[place].item()} and {second[place].item()}"
    return None


def rows(tensors: Mapping[str, Tensor], b: int) -> Facts:
    """Return the tensors of task ``b`` alone, with B = 1."""
    return {name: t[b : b + 1] for name, t in tensors.items()}


def clones(tensors: Mapping[str, Tensor]) -> Facts:
    """Copy tensors, without their graph."""
    return {name: t.detach().clone() for name, t in tensors.items()}


def watched(module: nn.Module) -> dict[str, Any]:
    """Return what ``adapt`` must not change: parameters, buffers, gradients, modes, and states of random generators."""
    state: dict[str, Any] = {}
    for name, p in module.named_parameters():
        state[f"parameter {name}"] = p.detach().clone()
        state[f"gradient of {name}"] = None if p.grad is None else p.grad.detach().clone()
        state[f"requires_grad of {name}"] = p.requires_grad
    for name, b in module.named_buffers():
        state[f"buffer {name}"] = b.detach().clone()
    for name, m in module.named_modules():
        state[f"mode (training) of {name or 'the learner'}"] = m.training
        state[f"number of hooks of {name or 'the learner'}"] = len(m._forward_hooks) + len(m._forward_pre_hooks)
    state["torch's random state"] = torch.default_generator.get_state()
    state["random's state"] = random.getstate()
    state["numpy's random state"] = [
        field.tolist() if isinstance(field, np.ndarray) else field for field in np.random.get_state(legacy=True)
    ]
    return state


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the names of the values that differ in any bit."""

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())
        return bool(a == b) if not isinstance(a, Tensor) and not isinstance(b, Tensor) else False

    return [n for n in {**before, **after} if n not in before or n not in after or not same(before[n], after[n])]
