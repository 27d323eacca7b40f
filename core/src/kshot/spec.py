"""What tasks are and what a learner needs, as plain values: compared before anything is built or computed."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import attrs
from attrs import frozen

from kshot._kind_names import KIND_NAMES as KIND_NAMES
from kshot._kind_names import KindName as KindName
from kshot._shown import differing
from kshot.errors import DataError

Count = int | tuple[int, int]
"""A number, or a range (least, greatest) from which each block of episodes draws."""

PROVISIONS: tuple[str, ...] = ("unlabelled", "semantics", "external", "identities", "stream", "environment")
"""What tasks may provide beyond examples, see ``TaskSpec.provides``."""


# Converters leave a value that they can't convert as it is, for the checks of ``TaskSpec`` and ``Needs`` to refuse.


def _shape(value: Any) -> Any:
    """Convert lengths of any integer type to a tuple of ints."""
    try:
        return tuple(operator.index(v) for v in value)
    except TypeError:
        return value


def _strings(value: Any) -> Any:
    """Convert several names to a tuple; one name alone is left to the checks."""
    try:
        return tuple(value) if not isinstance(value, str | bytes) else value
    except TypeError:
        return value


def _set(value: Any) -> Any:
    """Convert several names to a set; one name alone is left to the checks."""
    try:
        return frozenset(_strings(value))
    except TypeError:
        return value


def _range(value: Any) -> Any:
    """Convert the least and the greatest of some numbers to a pair of floats."""
    try:
        low, high = value
        return (float(low), float(high)) if not isinstance(value, str | bytes) else value
    except (TypeError, ValueError, OverflowError):
        return value


def _count(value: Any) -> Any:
    """Convert whole numbers of any type, numpy's included, to int."""
    if isinstance(value, list | tuple):
        return tuple(_count(v) for v in value)
    try:
        return operator.index(value)
    except TypeError:
        return value


@frozen(repr=False)
class TaskSpec:
    """Describe the shape of a task distribution; round-trips through JSON.

    Attributes:
        kind: one of ``KIND_NAMES``; determines what an episode is and how predictions are scored.
        input_shape: of one input, without B and n, e.g. (1, 28, 28).
        target_shape: of one target; () for class labels and scalars. In a sequence of labels, (L,) means that each
            label is a string of L characters, of which there are ``way``.
        input_range: least and greatest value of an input, or None if unbounded.
        target_range: least and greatest value of a target that is a number (in control: of a continuous action), or
            None if unbounded.
        way: N, or a range; None if the kind has no classes. In control: the number of discrete actions, or None if
            actions are continuous.
        shot: labelled examples per class (or per task, if there are no classes). In control: trajectories per rollout.
        query: queries per class (or per task). In control: trajectories by which a policy is judged. If the classes
            are actions of demonstrations, shot and query are None: a demonstration has any number of each action.
        rollouts: control: how many rollouts, of ``shot`` trajectories each, a learner may play while adapting; None
            for any number.
        block: if a count is a range, episodes i with the same i // block have the same shape.
        splits: names of the splits.
        split_by: what no two splits share: classes, examples, or only episode indices.
        provides: any of unlabelled, semantics, external, identities, stream (a sequence whose input at t + 1 shows
            the target of t, and no earlier input the target of t), and environment (classification and regression:
            the examples are observations and actions of demonstrations, and the query has an environment, in which
            the adapted predictor plays).
        semantics_shape: of one class's vector, (A,), if semantics are provided.
        external_classes: the names of the classes of external examples, in the order of their labels, if they are
            provided; () if they are unknown.

    Example:
        >>> spec = TaskSpec(kind="classification", input_shape=(1, 28, 28), way=5, shot=1, query=15)
        >>> TaskSpec.from_json(spec.to_json()) == spec
        True
    """

    kind: KindName
    input_shape: tuple[int, ...] = attrs.field(converter=_shape)
    target_shape: tuple[int, ...] = attrs.field(default=(), converter=_shape)
    input_range: tuple[float, float] | None = attrs.field(default=None, converter=_range)
    target_range: tuple[float, float] | None = attrs.field(default=None, converter=_range)
    way: Count | None = attrs.field(default=None, converter=_count)
    shot: Count | None = attrs.field(default=None, converter=_count)
    query: Count | None = attrs.field(default=None, converter=_count)
    rollouts: int | None = attrs.field(default=None, converter=_count)
    block: int = attrs.field(default=1, converter=_count)
    splits: tuple[str, ...] = attrs.field(default=("train", "val", "test"), converter=_strings)
    split_by: Literal["class", "example", "index"] = "class"
    provides: frozenset[str] = attrs.field(default=frozenset(), converter=_set)
    semantics_shape: tuple[int, ...] | None = attrs.field(default=None, converter=attrs.converters.optional(_shape))
    external_classes: tuple[str, ...] = attrs.field(default=(), converter=_strings)

    def __repr__(self) -> str:
        return differing(self, attrs.fields(TaskSpec))

    def __attrs_post_init__(self) -> None:
        who = "TaskSpec"
        _check_choice(who, "kind", self.kind, KIND_NAMES)
        _check_choice(who, "split_by", self.split_by, ("class", "example", "index"))
        _check_choices(who, "provides", self.provides, frozenset, PROVISIONS)
        for name in ("input_shape", "target_shape", "semantics_shape"):
            _check_shape(who, name, getattr(self, name), optional=name == "semantics_shape")
        for name in ("input_range", "target_range"):
            _check_range(who, name, getattr(self, name))
        for name in ("way", "shot", "query"):
            value = getattr(self, name)
            if (
                not all(_is_int(v) for v in value) or len(value) != 2
                if type(value) is tuple
                else not _is_int(value, True)
            ):
                raise DataError(
                    f"{who}: got {name} {value!r}, expected a whole number, or the least and the greatest of a range; "
                    "convert it, e.g. int(...)"
                )
        if not _is_int(self.rollouts, True) or (self.rollouts or 0) < 0:
            raise DataError(f"{who}: got rollouts {self.rollouts!r}, expected a number >= 0, or None for any number")
        if not _is_int(self.block) or self.block < 1:
            raise DataError(f"{who}: got block {self.block!r}, expected a whole number of episodes, at least 1")
        if not self.splits:
            raise DataError(f"{who}: got splits (), expected their names, such as ('train', 'val', 'test')")
        _check_names(who, "splits", self.splits)
        _check_names(who, "external_classes", self.external_classes)
        if self.kind == "control" and self.way is not None and (not isinstance(self.way, int) or self.target_shape):
            raise DataError(
                f"TaskSpec: got way {self.way} and target_shape {self.target_shape}, expected for discrete actions "
                "their number and (), for continuous ones None and an action's shape"
            )
        # With one class every prediction is right, and a score of 100 % says nothing.
        least_way = 2 if self.kind == "classification" else 1
        for name, least in (("way", least_way), ("shot", 0), ("query", 0)):
            low, high = bounds(getattr(self, name))
            if low is not None and high is not None and not least <= low <= high:
                raise DataError(
                    f"TaskSpec: got {name} {getattr(self, name)}, expected a number >= {least} or a range of them"
                )

    @cached_property
    def varies(self) -> bool:
        """Whether episodes of different blocks may have different shapes."""
        return any(isinstance(c, tuple) for c in (self.way, self.shot, self.query))

    def to_json(self) -> str:
        """Return the spec as JSON."""
        import json  # here and below, as listing plugins imports this module and needs no JSON

        return json.dumps(self.to_dict(), sort_keys=True)

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as plain values: lists, numbers, strings, None."""
        values = attrs.asdict(self, value_serializer=lambda _, __, v: sorted(v) if isinstance(v, frozenset) else v)
        if not self.external_classes:
            del values["external_classes"]  # so that runs that were stored before this field existed stay equal
        import json

        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain

    @classmethod
    def from_json(cls, text: str) -> TaskSpec:
        """Read the result of ``to_json``."""
        import json

        try:
            values = json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise DataError(f"TaskSpec: got text that is not JSON ({error}), expected the result of to_json") from error
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TaskSpec:
        """Read the result of ``to_dict``.

        Raises:
            DataError: a field is unknown, missing or wrong.
        """
        fields = attrs.fields_dict(cls)
        if not isinstance(values, Mapping) or not {"kind", "input_shape"} <= set(values) <= set(fields):
            given = (
                f"the fields {', '.join(map(str, values))}" if isinstance(values, Mapping) else type(values).__name__
            )
            raise DataError(
                f"TaskSpec: got {given}, expected kind, input_shape and any of {', '.join([*fields][2:])}; give the "
                "result of to_dict"
            )
        return cls(**values)


def bounds(count: Count | None) -> tuple[int | None, int | None]:
    """Return the least and the greatest value of a count.

    Example:
        >>> bounds(5), bounds((2, 5)), bounds(None)
        ((5, 5), (2, 5), (None, None))
    """
    if isinstance(count, tuple):
        return count
    return count, count


def _is_int(value: Any, none: bool = False) -> bool:
    """Return whether a value is an int and no boolean; or None, if ``none``."""
    return (none and value is None) or (isinstance(value, int) and not isinstance(value, bool))


def _check_choice(who: str, name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise DataError unless a value is one of some names."""
    if not isinstance(value, str) or value not in choices:
        raise DataError(f"{who}: got {name} {value!r}, expected one of {', '.join(choices)}")


def _check_choices(who: str, name: str, values: Any, sort: Any, choices: Sequence[str]) -> None:
    """Raise DataError unless values, a tuple or a set as ``sort`` says, are some of these names."""
    if type(values) is not sort or not all(isinstance(value, str) and value in choices for value in values):
        shown = sorted(map(str, values)) if type(values) is frozenset else values
        raise DataError(f"{who}: got {name} {shown!r}, expected some of {', '.join(choices)}, as a {sort.__name__}")


def _check_shape(who: str, name: str, shape: Any, optional: bool = False) -> None:
    """Raise DataError unless a shape consists of lengths."""
    if shape is None and optional:
        return
    if type(shape) is not tuple or not all(type(length) is int and length >= 0 for length in shape):
        raise DataError(f"{who}: got {name} {shape!r}, expected whole numbers >= 0, such as (1, 28, 28)")


def _check_names(who: str, name: str, names: Any) -> None:
    """Raise DataError unless names are different texts that are not empty."""
    if type(names) is not tuple or not all(isinstance(value, str) and value for value in names):
        raise DataError(f"{who}: got {name} {names!r}, expected their names, such as ('train', 'val', 'test')")
    if len(set(names)) < len(names):
        raise DataError(f"{who}: got {name} {names!r}, expected each name once")


def _check_range(who: str, name: str, limits: Any) -> None:
    """Raise DataError unless limits are None, or a number and one that is not less."""
    if limits is not None and not (type(limits) is tuple and len(limits) == 2 and limits[0] <= limits[1]):
        raise DataError(f"{who}: got {name} {limits!r}, expected the least and the greatest value, such as (0.0, 1.0)")


@frozen(repr=False)
class Needs:
    """Declare what a learner accepts, what it asks for, and what it promises.

    ``kshot check`` and the engine compare this declaration with the tasks before anything is computed. The attribute
    ``needs`` of a learner's class is the declaration. If options of the learner change it, an instance has a ``needs``
    of its own. The defaults are right for a simple learner, which needs to declare only its kinds.

    Attributes (what the learner accepts):
        kinds: the kinds of tasks that it can learn, see ``KIND_NAMES``.
        variable_way: whether it accepts any number of classes (way), also another than in the spec that it was built
            for. If False, the way is fixed when the learner is built.
        zero_shot: whether it accepts a support without examples (S = 0), in which a semantic vector describes each
            class.
        input_range: the least and the greatest input value that it accepts; None if it accepts any.
        actions: in control tasks, the actions that it accepts: ``any``, ``discrete`` or ``continuous``.
        absent_labels: whether it accepts a support without examples of some labels, such as a demonstration in which
            not every discrete action is taken.
        variable_parameters: whether it accepts objectives with any number of parameters, also another than in the spec
            that it was built for. If False, the number is fixed when the learner is built.

    Attributes (what the learner asks for):
        unlabelled: examples without labels in the support: ``no`` (they are ignored), ``optional`` (they are used if
            the tasks provide them) or ``required``.
        semantics: a vector that describes each class, with the same three values.
        external: whether it requires labelled examples from outside the tasks.
        queries: ``at_adapt`` asks for the inputs of the queries while adapting. ``independent`` and ``joint`` do not.
            ``independent`` promises that predicting queries one by one gives the same as predicting them together.
            ``joint`` says that they affect each other's predictions, as by transductive batch norm.
        couples_tasks: whether it asks for complete meta-batches, because its meta-gradient is not a mean over tasks.
            The engine then never divides a meta-batch into chunks.
        rollouts: in control tasks, the greatest number of rollouts that it plays while adapting.

    Attributes (what the learner promises; the conformance kit tests it):
        exact_gradient: whether ``.grad`` is the derivative of the metric ``loss`` that ``meta_gradient`` returns.
        invariant: a set of ``labels`` (if the classes are numbered differently, the predictions change in the same
            manner and not otherwise) and ``order`` (the order of the support examples does not matter).

    Example:
        >>> Needs(kinds=("classification", "regression"), exact_gradient=True).queries
        'independent'
    """

    kinds: tuple[str, ...] = attrs.field(default=("classification",), converter=_strings)
    queries: Literal["independent", "joint", "at_adapt"] = "independent"
    unlabelled: Literal["no", "optional", "required"] = "no"
    semantics: Literal["no", "optional", "required"] = "no"
    external: bool = False
    couples_tasks: bool = False
    variable_way: bool = False
    zero_shot: bool = False
    input_range: tuple[float, float] | None = attrs.field(default=None, converter=_range)
    actions: Literal["any", "discrete", "continuous"] = "any"
    rollouts: int = attrs.field(default=1, converter=_count)
    exact_gradient: bool = False
    invariant: frozenset[str] = attrs.field(default=frozenset(), converter=_set)
    absent_labels: bool = False
    variable_parameters: bool = False

    def __repr__(self) -> str:
        return differing(self, attrs.fields(Needs))

    def __attrs_post_init__(self) -> None:
        who = "Needs"
        _check_choices(who, "kinds", self.kinds, tuple, KIND_NAMES)
        _check_choices(who, "invariant", self.invariant, frozenset, ("labels", "order"))
        _check_choice(who, "queries", self.queries, ("independent", "joint", "at_adapt"))
        _check_choice(who, "actions", self.actions, ("any", "discrete", "continuous"))
        for name in ("unlabelled", "semantics"):
            _check_choice(who, name, getattr(self, name), ("no", "optional", "required"))
        flags = ("external", "couples_tasks", "variable_way", "variable_parameters", "zero_shot", "exact_gradient")
        for name in flags:
            if not isinstance(getattr(self, name), bool):
                raise DataError(f"{who}: got {name} {getattr(self, name)!r}, expected True or False")
        _check_range(who, "input_range", self.input_range)
        if not _is_int(self.rollouts) or self.rollouts < 0:
            raise DataError(f"{who}: got rollouts {self.rollouts!r}, expected a whole number >= 0")


@frozen(repr=False)
class Training:
    """Describe how a method is trained if the user does not say otherwise.

    These defaults give a first good result in minutes. They are often not the settings of the paper, which usually
    trains for much longer; recipes for the papers' settings are in the folder ``recipes`` of the repository.

    Attributes:
        optimizer: name of the outer optimizer: adam, adamw, sgd, rmsprop or adagrad.
        lr: its learning rate, the highest of the schedule.
        schedule: how the learning rate changes: ``constant``; ``step`` (multiplied by ``factor`` after every ``every``
            iterations); ``linear`` or ``cosine`` (both fall to 0 at the last iteration).
        every: for the schedule ``step``, the number of iterations between two changes.
        factor: for the schedule ``step``, the factor of each change.
        warmup: number of iterations in which the learning rate rises linearly from 0.
        meta_batch: number of tasks per iteration (B).
        iterations: number of iterations. An iteration is the work on one meta-batch, usually one outer step.
        clip: the greatest norm of the gradient, to which a longer gradient is scaled down; None for no limit.
        tasks: options of the tasks that differ from the test while training. For example, {"way": 20, "query": 5}
            trains on 20 classes with 5 queries each.

    Example:
        >>> Training(lr=1e-3, schedule="step", every=500, tasks={"way": 20}).meta_batch
        1
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

    def __repr__(self) -> str:
        return differing(self, attrs.fields(Training))
