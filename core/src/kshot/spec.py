"""What tasks are and what a learner needs, as plain values: compared before anything is built or computed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, get_args

import attrs
from attrs import frozen

from kshot.errors import DataError

Count = int | tuple[int, int]
"""A number, or the least and the greatest of a range from which each block of episodes draws."""

KindName = Literal["classification", "regression", "sequence", "control", "objective"]
"""The kinds of tasks; ``kshot.kinds`` has their scorers."""

KIND_NAMES: tuple[KindName, ...] = get_args(KindName)

PROVISIONS: tuple[str, ...] = ("unlabelled", "semantics", "external", "identities", "stream")
"""What tasks may provide beyond examples, see ``TaskSpec.provides``."""


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(int(v) for v in value)


def _strings(value: Iterable[str]) -> tuple[str, ...]:
    return tuple(value)


def _set(value: Iterable[str]) -> frozenset[str]:
    return frozenset(value)


def _range(value: Sequence[float] | None) -> tuple[float, float] | None:
    return None if value is None else (float(value[0]), float(value[1]))


def _count(value: Any) -> Any:
    return tuple(int(v) for v in value) if isinstance(value, list | tuple) else value


@frozen
class TaskSpec:
    """The shape of a task distribution; round-trips through JSON.

    Attributes:
        kind: one of the five kinds; fixes the episode's meaning and its scorer.
        input_shape: of one input, without B and n, e.g. (1, 28, 28).
        target_shape: of one target; () for class labels and scalars.
        input_range: least and greatest value of an input, or None where unbounded.
        target_range: least and greatest value of a target that is a number (in control: of a continuous action), or
            None where unbounded.
        way: N, or a range; None where the kind has no classes. In control: the number of discrete actions, or None
            where actions are continuous.
        shot: labelled examples a class (or a task, where there are no classes). In control: trajectories of a rollout.
        query: queries a class (or a task). In control: trajectories by which a policy is judged.
        rollouts: control: how many rollouts, of ``shot`` trajectories each, a learner may play while adapting; None
            for any number.
        block: where a count is a range, episodes i with the same i // block have the same shape.
        splits: names of the splits.
        split_by: what no two splits share: classes, examples, or only episode indices.
        provides: any of unlabelled, semantics, external, identities, and stream (a sequence whose input at t + 1
            shows the target of t, and no earlier one the target of t).
        semantics_shape: of one class's vector, (A,), where semantics are provided.
    """

    kind: KindName
    input_shape: tuple[int, ...] = attrs.field(converter=_shape)
    target_shape: tuple[int, ...] = attrs.field(default=(), converter=_shape)
    input_range: tuple[float, float] | None = attrs.field(default=None, converter=_range)
    target_range: tuple[float, float] | None = attrs.field(default=None, converter=_range)
    way: Count | None = attrs.field(default=None, converter=_count)
    shot: Count | None = attrs.field(default=None, converter=_count)
    query: Count | None = attrs.field(default=None, converter=_count)
    rollouts: int | None = None
    block: int = 1
    splits: tuple[str, ...] = attrs.field(default=("train", "val", "test"), converter=_strings)
    split_by: Literal["class", "example", "index"] = "class"
    provides: frozenset[str] = attrs.field(default=frozenset(), converter=_set)
    semantics_shape: tuple[int, ...] | None = attrs.field(default=None, converter=attrs.converters.optional(_shape))

    def __attrs_post_init__(self) -> None:
        if self.kind not in KIND_NAMES:
            raise DataError(f"TaskSpec: kind is {self.kind!r}, expected one of {', '.join(KIND_NAMES)}")
        if unknown := self.provides - set(PROVISIONS):
            raise DataError(f"TaskSpec: provides {sorted(unknown)}, expected some of {', '.join(PROVISIONS)}")
        if self.rollouts is not None and self.rollouts < 0:
            raise DataError(f"TaskSpec: rollouts is {self.rollouts}, expected a number >= 0, or None for any number")
        if self.kind == "control" and self.way is not None and (not isinstance(self.way, int) or self.target_shape):
            raise DataError(
                f"TaskSpec: way is {self.way} and target_shape {self.target_shape}; expected for discrete actions "
                "their number and (), for continuous ones None and an action's shape"
            )
        for name, least in (("way", 1), ("shot", 0), ("query", 0)):
            low, high = bounds(getattr(self, name))
            if low is not None and high is not None and not least <= low <= high:
                raise DataError(
                    f"TaskSpec: {name} is {getattr(self, name)}, expected a number >= {least} or a range of them"
                )

    @cached_property
    def varies(self) -> bool:
        """Whether episodes of different blocks may have different shapes."""
        return any(isinstance(c, tuple) for c in (self.way, self.shot, self.query))

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), sort_keys=True)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: lists, numbers, strings, None."""
        made = attrs.asdict(self, value_serializer=lambda _, __, v: sorted(v) if isinstance(v, frozenset) else v)
        plain: dict[str, Any] = json.loads(json.dumps(made))
        return plain

    @classmethod
    def from_json(cls, text: str) -> TaskSpec:
        return cls.from_dict(json.loads(text))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TaskSpec:
        return cls(**values)


def bounds(count: Count | None) -> tuple[int | None, int | None]:
    """The least and the greatest of a count."""
    if isinstance(count, tuple):
        return count
    return count, count


@frozen
class Needs:
    """What a learner asks of tasks and engine; declared on the class, narrowed by an instance where options matter.

    Every default is harmless: a learner that says only its kinds is judged as the plainest of learners.

    Attributes:
        kinds: the kinds of tasks it learns.
        queries: ``independent`` (one by one equals together), ``joint`` (they interact, as under transductive
            batch norm) or ``at_adapt`` (their inputs are needed while adapting).
        unlabelled, semantics: ``no``, ``optional`` or ``required``.
        external: whether it needs examples from outside the tasks.
        couples_tasks: its meta-gradient is not a mean over tasks; it sees whole meta-batches, never chunks.
        variable_way: it takes any way, other than that of the spec it was built for too.
        zero_shot: it takes a support without examples (S = 0), from semantics.
        input_range: the least and greatest input value it can take, or None.
        actions: control: ``discrete`` or ``continuous`` where it takes only one sort.
        rollouts: control: the most rollouts it plays while adapting.
        exact_gradient: it claims that ``.grad`` is the derivative of ``metrics["loss"]``; the kit tests it.
        invariant: any of ``labels`` (renumbering the classes renumbers the predictions) and ``order``
            (of the support); claims that the kit tests.
    """

    kinds: tuple[str, ...] = ("classification",)
    queries: Literal["independent", "joint", "at_adapt"] = "independent"
    unlabelled: Literal["no", "optional", "required"] = "no"
    semantics: Literal["no", "optional", "required"] = "no"
    external: bool = False
    couples_tasks: bool = False
    variable_way: bool = False
    zero_shot: bool = False
    input_range: tuple[float, float] | None = None
    actions: Literal["any", "discrete", "continuous"] = "any"
    rollouts: int = 1
    exact_gradient: bool = False
    invariant: frozenset[str] = attrs.field(default=frozenset(), converter=_set)


@frozen
class Training:
    """A method's own way of being trained, by its paper: what the engine does where the user says nothing.

    Attributes:
        optimizer, lr: the outer optimizer's name and rate.
        schedule, every, factor, warmup: see ``kshot._engine.optimizer.Schedule``.
        meta_batch: B, tasks an iteration.
        iterations: outer steps of a first, moderate run.
        clip: the greatest gradient norm, or None.
        tasks: options of the tasks that differ while training, e.g. {"way": 20, "query": 5}.
    """

    optimizer: str = "adam"
    lr: float = 1e-3
    schedule: str = "constant"
    every: int = 2000
    factor: float = 0.5
    warmup: int = 0
    meta_batch: int = 1
    iterations: int = 1000
    clip: float | None = None
    tasks: Mapping[str, Any] = attrs.field(factory=dict)
