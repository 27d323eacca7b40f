"""Values compared: which tensors an episode holds, where two differ, and what a learner holds."""

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
    """Every tensor within a value, by the path to it; each begins with B."""

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
    """A policy that always takes the action 0."""
    return lambda x: torch.zeros(*x.shape[:2], *shape, dtype=dtype)


def facts(episode: Episode, target_shape: tuple[int, ...]) -> Facts:
    """All that can be observed of an episode: its tensors, what its environments answer to standing still, and the
    loss at the initial points of its objectives."""
    found = named_tensors(episode)
    for name, source in (("support", episode.support.source), ("query", episode.query.source)):
        if isinstance(source, Objective):
            with contextlib.suppress(Exception):  # a broken one is told by a rule of its own
                found[f"{name}.source.loss"] = source.loss(source.initial)
        if not hasattr(source, "rollout"):
            continue
        for dtype in (torch.float32, torch.int64):
            try:
                played = source.rollout(standing_still(target_shape, dtype))
            except Exception:
                continue  # an environment with other actions: its tensors are compared, its behaviour is not
            found.update(named_tensors(played, f"{name}.source.rollout"))
            break
    return found


def tolerance(dtype: torch.dtype) -> float:
    """How far two ways to compute one thing may differ, against its greatest value."""
    return 1e-7 if dtype == torch.float64 else 2e-3 if dtype == torch.float32 else 5e-2


def gap(a: Tensor, b: Tensor) -> float:
    """The greatest difference, against the greatest value of either; infinite where NaNs are elsewhere."""
    a, b = a.detach().double(), b.detach().double()
    if a.numel() == 0:
        return 0.0
    if not torch.equal(a.isnan(), b.isnan()):
        return float("inf")
    a, b = a.nan_to_num(0, 1e300, -1e300), b.nan_to_num(0, 1e300, -1e300)
    largest = max(float(a.abs().max()), float(b.abs().max()), 1e-30)
    return float((a - b).abs().max()) / largest


def difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor], within: float | None = None) -> str | None:
    """Where two sets of tensors differ, in words, or None.

    Args:
        within: relative tolerance of floating-point tensors; None takes their precision's, 0 wants the same bits.
    """
    if a.keys() != b.keys():
        return f"{sorted(a.keys() ^ b.keys())} is there in one and not in the other"
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


def rows(found: Mapping[str, Tensor], b: int) -> Facts:
    """Task ``b`` alone, with B = 1."""
    return {name: t[b : b + 1] for name, t in found.items()}


def clones(found: Mapping[str, Tensor]) -> Facts:
    return {name: t.detach().clone() for name, t in found.items()}


def held(module: nn.Module) -> dict[str, Any]:
    """What ``adapt`` must leave as it is: parameters, buffers, gradients, modes and the states of all generators."""
    found: dict[str, Any] = {}
    for name, p in module.named_parameters():
        found[f"parameter {name}"] = p.detach().clone()
        found[f"gradient of {name}"] = None if p.grad is None else p.grad.detach().clone()
        found[f"requires_grad of {name}"] = p.requires_grad
    for name, b in module.named_buffers():
        found[f"buffer {name}"] = b.detach().clone()
    for name, m in module.named_modules():
        found[f"mode (training) of {name or 'the learner'}"] = m.training
    found["torch's random state"] = torch.default_generator.get_state()
    found["random's state"] = random.getstate()
    found["numpy's random state"] = [
        part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state(legacy=True)
    ]
    return found


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Names of what is not as it was, bit for bit."""

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())
        return bool(a == b) if not isinstance(a, Tensor) and not isinstance(b, Tensor) else False

    return [n for n in {**before, **after} if n not in before or n not in after or not same(before[n], after[n])]
