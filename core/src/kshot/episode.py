"""The values that travel: ``Examples``, ``Support``, ``Episode``, and the ``Origin`` that says how to rebuild one.

Letters: B meta-batch, N way, K shot, Q queries per class, n examples, A attributes, T time. Every tensor has the axis
B; one task is B = 1, and the named constructors add it. Values are frozen, compare by identity, and are pytrees, so
that ``torch.func.vmap`` and ``tree_map`` take them. They are checked by the named constructors and by
``kshot.checks.check_episode`` before the engine uses them, and nowhere else.

``kshot.sources`` has the values of tasks that are no table of examples, ``kshot.arrays`` the checks of what users pass
in, and ``kshot.pytrees`` the functions of values; all of their names can be imported from here too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import attrs
import numpy as np
import torch
from attrs import frozen
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

from kshot._shown import are_pictures, facts, grid, shape
from kshot.arrays import as_inputs as convert_inputs
from kshot.arrays import as_labels, check_finite, check_labels
from kshot.errors import DataError
from kshot.pytrees import T, map_tensors, one_task, register_value
from kshot.sources import (
    Begins,
    Environment,
    Metered,
    Objective,
    Policy,
    Rollout,
    check_objective,
    check_weights,
)

__all__ = [
    "IGNORED",
    "VALUES",
    "Begins",
    "Environment",
    "Episode",
    "Examples",
    "Metered",
    "Objective",
    "Origin",
    "Policy",
    "Predictor",
    "Rollout",
    "Support",
    "as_inputs",
    "check_finite",
    "check_labels",
    "check_objective",
    "check_weights",
    "map_inputs",
    "map_tensors",
    "one_task",
    "register_value",
    "slice_tasks",
    "stack",
]

IGNORED = -100
"""An int64 target that is not scored (a step of a sequence without an answer); among float targets it is NaN."""


@frozen(eq=False, repr=False)
class Examples:
    """Store inputs and targets.

    Attributes:
        x: inputs [B, n, *input], float32 in the spec's ``input_range``. In a sequence n = T.
        y: targets [B, n] or [B, n, *target]; class labels are int64, 0..N-1, assigned to classes at random.
        source: what scores predictions in tasks without targets: an ``Environment`` or an ``Objective``. Tasks of
            demonstrations have targets, the actions, and an ``Environment`` that scores them beside.

    Example:
        >>> query = Examples(torch.zeros(1, 4, 3), torch.tensor([[0, 1, 0, 1]]))
        >>> query.x.shape
        torch.Size([1, 4, 3])
    """

    x: Tensor
    y: Tensor
    source: Any = None

    def __repr__(self) -> str:
        return f"<Examples: x {shape(self.x)}, y {shape(self.y)}>"


@frozen(eq=False, repr=False)
class Support:
    """Store everything that a learner may see of its tasks while it adapts.

    Attributes:
        x, y: labelled examples [B, S, *input] and [B, S]; S = 0 in zero-shot and sequence tasks.
        unlabelled: inputs without labels [B, U, *input].
        semantics: a vector per class [B, N, A]; row c describes label c.
        query_x: the query inputs [B, n, *input], present only if the learner's needs say ``queries="at_adapt"``.
        source: what to act on in tasks that are no table of examples: an ``Environment`` or an ``Objective``.
        key: the randomness of each episode [B], int64; draw only from ``kshot.generator(key[b], purpose)``.
        way: N, or None if the kind has no classes.

    Example:
        >>> support = Support.of([[0.0, 0.0], [0.1, 0.0], [5.0, 5.0]], [0, 0, 1])
        >>> support.x.shape, support.way
        (torch.Size([1, 3, 2]), 2)
    """

    x: Tensor
    y: Tensor
    unlabelled: Tensor | None = None
    semantics: Tensor | None = None
    query_x: Tensor | None = None
    source: Any = None
    key: Tensor = attrs.field(factory=lambda: torch.zeros(1, dtype=torch.int64))
    way: int | None = None

    def __repr__(self) -> str:
        more = {name: getattr(self, name) for name in ("unlabelled", "semantics", "query_x")}
        present = "".join(f", {name} {shape(x)}" for name, x in more.items() if x is not None)
        way = "" if self.way is None else f"{self.way}-way, "
        return f"<Support: {way}x {shape(self.x)}, y {shape(self.y)}{present}>"

    @classmethod
    def of(cls, x: ArrayLike | Tensor, y: ArrayLike | Tensor, **more: Any) -> Support:
        """Make the support of one task from arrays; the axis B = 1 is added.

        All arrays are copied, without the graph of a tensor: later changes of them do not reach the support.

        Args:
            x: inputs [S, *input], taken as float32; uint8 images become [0, 1].
            y: class numbers 0..N-1 [S]; with ``way=None`` targets of regression [S, *target], taken as float32.
            more: other fields, ``unlabelled``, ``semantics`` and ``query_x`` without B. ``way`` is the number of
                different labels if it is not given.

        Raises:
            DataError: lengths differ, there are no examples, labels are not exactly 0..N-1, or a value is not a
                finite real number.

        Example:
            >>> Support.of([[0.0], [2.0]], [[0.5], [1.5]], way=None).y
            tensor([[[0.5000],
                     [1.5000]]])
        """
        who = "Support.of"
        inputs = convert_inputs(x, f"{who}: x", copy=True)
        if inputs.ndim == 0:
            raise DataError(f"{who}: got x without an axis, expected inputs [S, *input]")
        if "way" in more and more["way"] is None:
            labels = convert_inputs(y, f"{who}: y", copy=True)
            if labels.shape[:1] != inputs.shape[:1]:
                raise DataError(
                    f"{who}: got {len(inputs)} examples and targets of shape {tuple(labels.shape)}, expected a target "
                    "per example along the first axis"
                )
            if not len(inputs):
                raise DataError(f"{who}: got no examples, expected at least one; give some")
        else:
            labels = as_labels(y, who, way=more.get("way"), examples=len(inputs))
            more["way"] = int(labels.max()) + 1
        for name in more.keys() & {"unlabelled", "semantics", "query_x"}:
            more[name] = convert_inputs(more[name], f"{who}: {name}", copy=True)[None]
        return cls(x=inputs[None], y=labels[None], **more)


_ORIGIN_ARRAYS = ("classes", "support_ids", "query_ids", "unlabelled_ids", "unlabelled_y")


@frozen(eq=False, repr=False)
class Origin:
    """Record where a meta-batch is from: with the tasks' options, enough to rebuild it exactly.

    Attributes:
        split, seed: of the tasks.
        indices: the episodes' numbers, length B.
        way, shot, query: the shape of these episodes (None if the kind has none).
        classes: class numbers within the split [B, N], or None.
        names: the names of the split's classes.
        support_ids, query_ids: identities of the examples [B, S] and [B, n] within the split (rows of its pool), or
            None; no number is in both.
        unlabelled_ids: identities of the unlabelled examples [B, U], or None; none is in support or query.
        unlabelled_y: the label that each of them would have [B, U], -1 for an example of another class, or None. For
            plots and scores only: learners are given ``Support``, which has neither.
        fields: further plain values of a view.

    Example:
        >>> origin = Origin("test", (7,), seed=0, classes=np.array([[2, 0]]), names=("cat", "dog", "owl"))
        >>> origin.class_names
        (('owl', 'cat'),)
    """

    split: str
    indices: tuple[int, ...]
    seed: int
    way: int | None = None
    shot: int | None = None
    query: int | None = None
    classes: NDArray[np.int64] | None = None
    names: Sequence[str] = ()
    support_ids: NDArray[np.int64] | None = None
    query_ids: NDArray[np.int64] | None = None
    unlabelled_ids: NDArray[np.int64] | None = None
    unlabelled_y: NDArray[np.int64] | None = None
    fields: dict[str, Any] = attrs.field(factory=dict)

    def arrays(self) -> dict[str, NDArray[np.int64]]:
        """Return the arrays that are present, by name; each begins with B."""
        values = {name: getattr(self, name) for name in _ORIGIN_ARRAYS}
        return {name: array for name, array in values.items() if array is not None}

    @property
    def class_names(self) -> tuple[tuple[str, ...], ...]:
        """The name of each label of each episode [B][N]; empty if the tasks have no names."""
        if self.classes is None or not self.names:
            return ()
        return tuple(tuple(self.names[c] for c in row) for row in self.classes.tolist())

    def __repr__(self) -> str:
        numbers = ", ".join(map(str, self.indices[:4])) + (", ..." if len(self.indices) > 4 else "")
        return f"<Origin: {self.split}, seed {self.seed}, episodes {numbers}>"


@frozen(eq=False, repr=False)
class Episode:
    """Store a stacked meta-batch of B tasks.

    Attributes:
        support: what the learner may adapt to.
        query: other examples of the same tasks, on which the learner is judged.
        external: labelled examples from outside the tasks, filled by a view.
        origin: where the episodes are from, or None.

    Example:
        >>> support = Support.of([[0.0], [1.0]], [0, 1])
        >>> episode = Episode(support, Examples(torch.tensor([[[0.2]]]), torch.tensor([[0]])))
        >>> episode.size
        1
    """

    support: Support
    query: Examples
    external: Examples | None = None
    origin: Origin | None = None

    def __repr__(self) -> str:
        tasks = "1 task" if self.size == 1 else f"{self.size} tasks"
        return f"<Episode: {tasks}, support {shape(self.support.x)}, query {shape(self.query.x)}>"

    def _repr_html_(self) -> str:
        """Return the pictures of the first task, class by class, or the shapes if the inputs are no pictures."""
        import html

        support, query, way = self.support, self.query, self.support.way
        if way is None or not are_pictures(support.x[:1]) or query.y.ndim != 2:
            return facts(repr(self), {"support": repr(support), "query": repr(query), "origin": self.origin})
        names = self.origin.class_names[0] if self.origin and self.origin.class_names else range(way)
        rows = [(str(names[c]), support.x[0][support.y[0] == c], query.x[0][query.y[0] == c]) for c in range(way)]
        return f"<p>{html.escape(repr(self))}</p>{grid(rows)}"

    @property
    def size(self) -> int:
        """B, the number of tasks."""
        return int(self.support.key.shape[0])

    def for_adapting(self, queries: str) -> Support:
        """Return the support that a learner is given at evaluation.

        It has the query inputs if ``queries`` is ``at_adapt``, and an environment with its full budget, which counts.
        """
        support = self.support
        if isinstance(support.source, Environment):
            support = attrs.evolve(support, source=Metered(support.source))
        return attrs.evolve(support, query_x=self.query.x) if queries == "at_adapt" else support


def map_inputs(episode: Episode, function: Callable[[Tensor], Tensor]) -> Episode:
    """Return an episode whose inputs are replaced: those of the support, the queries, unlabelled and external examples.

    Args:
        episode: of examples with inputs.
        function: from inputs [B, n, *input] to other inputs [B, n, *].

    Example:
        >>> support = Support.of([[0.0], [1.0]], [0, 1])
        >>> episode = Episode(support, Examples(torch.tensor([[[0.2]]]), torch.tensor([[0]])))
        >>> map_inputs(episode, torch.neg).query.x
        tensor([[[-0.2000]]])
    """
    support, query, external = episode.support, episode.query, episode.external
    unlabelled = None if support.unlabelled is None else function(support.unlabelled)
    return attrs.evolve(
        episode,
        support=attrs.evolve(support, x=function(support.x), unlabelled=unlabelled),
        query=attrs.evolve(query, x=function(query.x)),
        external=None if external is None else attrs.evolve(external, x=function(external.x)),
    )


class Predictor(Protocol):
    """The result of ``Learner.adapt``: a function of the query inputs, judged by the kind's scorer.

    Example:
        >>> def always_first(x: Tensor) -> Tensor:
        ...     return torch.tensor([1.0, 0.0]).expand(*x.shape[:2], 2)
        >>> predictor: Predictor = always_first
        >>> predictor(torch.zeros(1, 3, 4)).argmax(-1)
        tensor([[0, 0, 0]])
    """

    def __call__(self, x: Tensor, /) -> Tensor:
        """Return the predictions for ``x`` [B, n, *input].

        Classification: logits [B, n, N]. Regression: values [B, n, *target]. Sequences: logits [B, T, *target].
        Control: actions, see ``Policy``. Objective: iterates [B, n, P] at steps ``x``.
        """


VALUES: tuple[type[Any], ...] = (Examples, Support, Episode, Rollout, Objective)
"""The values that plugins make and read."""

register_value(Examples, "x", "y")
register_value(Support, "x", "y", "unlabelled", "semantics", "query_x", "key")
register_value(Episode, "support", "query", "external")


def as_inputs(x: ArrayLike | Tensor) -> Tensor:
    """Return array-like ``x`` as finite float32 inputs; uint8 (images) is divided by 255. See ``kshot.arrays``.

    Tasks prepare raw examples by this function unless they say otherwise, and runs store its name.

    Raises:
        DataError: ``x`` is not an array of real numbers, or a number is NaN or infinite.

    Example:
        >>> as_inputs([[0, 1]])
        tensor([[0., 1.]])
    """
    return convert_inputs(x)


def slice_tasks(value: T, first: int, last: int) -> T:
    """Return tasks ``first`` to ``last - 1`` of a value whose tensors all begin with B.

    Example:
        >>> slice_tasks({"x": torch.arange(4)}, 1, 3)
        {'x': tensor([1, 2])}
    """
    mapped = map_tensors(lambda t: t[first:last], value)
    if isinstance(mapped, Episode) and mapped.origin is not None:
        mapped = attrs.evolve(mapped, origin=_slice_origin(mapped.origin, first, last))
    return mapped


def _slice_origin(origin: Origin, first: int, last: int) -> Origin:
    sliced: dict[str, Any] = {name: array[first:last] for name, array in origin.arrays().items()}
    return attrs.evolve(origin, indices=origin.indices[first:last], **sliced)


def stack(episodes: Iterator[Episode] | Sequence[Episode]) -> Episode:
    """Join episodes of B = 1 or more into one meta-batch; all must have the same shapes.

    Example:
        >>> episode = Episode(Support.of([[0.0]], [0]), Examples(torch.zeros(1, 1, 1), torch.tensor([[0]])))
        >>> stack([episode, episode]).support.x.shape
        torch.Size([2, 1, 1])
    """
    batches = list(episodes)
    flat = [pytree.tree_flatten(b) for b in batches]
    leaves = [torch.cat(ts) for ts in zip(*(f[0] for f in flat), strict=True)]
    # The first episode's context (way, names, functions) stands for all; only the origins have to be joined.
    stacked: Episode = pytree.tree_unflatten(leaves, flat[0][1])
    known = [b.origin for b in batches if b.origin is not None]
    if len(known) < len(batches):
        return attrs.evolve(stacked, origin=None)
    per_origin = [o.arrays() for o in known]
    joined: dict[str, Any] = {
        name: np.concatenate([a[name] for a in per_origin]) if all(name in a for a in per_origin) else None
        for name in _ORIGIN_ARRAYS
    }
    origin = attrs.evolve(known[0], indices=tuple(i for o in known for i in o.indices), **joined)
    return attrs.evolve(stacked, origin=origin)
