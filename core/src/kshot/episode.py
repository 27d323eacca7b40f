"""The values that travel: ``Examples``, ``Support``, ``Episode`` and where an episode came from.

Letters: B meta-batch, N way, K shot, Q queries a class, n examples, A attributes, T time. Every tensor carries B;
one task is B = 1, and the named constructors add it. Values are frozen, compare by identity, and are pytrees, so that
``torch.func.vmap`` and ``tree_map`` take them. They are checked by the named constructors and by ``check_episode``
at the engine's door, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import attrs
import numpy as np
import torch
from attrs import frozen
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

from kshot.errors import DataError

IGNORED = -100
"""An int64 target that is not scored (a step of a sequence without an answer); among float targets it is NaN."""

T = TypeVar("T")


@frozen(eq=False)
class Examples:
    """Inputs and targets.

    Attributes:
        x: inputs [B, n, *input], float32 in the spec's ``input_range``. In a sequence n = T.
        y: targets [B, n] or [B, n, *target]; class labels are int64, 0..N-1, given to classes at random.
        source: what scores a prediction where no target does: an ``Environment`` or ``Objective`` of its own.
    """

    x: Tensor
    y: Tensor
    source: Any = None


@frozen(eq=False)
class Support:
    """What an honest learner may see of a task while adapting.

    Attributes:
        x, y: labelled examples [B, S, *input] and [B, S]; S = 0 in zero-shot and sequence tasks.
        unlabelled: inputs without labels [B, U, *input].
        semantics: one vector a class [B, N, A]; row c describes label c.
        query_x: the query inputs [B, n, *input], present only where the learner's needs say ``queries="at_adapt"``.
        source: what to act on where a task is no table of examples: an ``Environment`` or an ``Objective``.
        key: the episode's own randomness [B], int64; chance comes only from ``kshot.generator(key[b], purpose)``.
        way: N, or None where the kind has no classes.
    """

    x: Tensor
    y: Tensor
    unlabelled: Tensor | None = None
    semantics: Tensor | None = None
    query_x: Tensor | None = None
    source: Any = None
    key: Tensor = attrs.field(factory=lambda: torch.zeros(1, dtype=torch.int64))
    way: int | None = None

    @classmethod
    def of(cls, x: ArrayLike | Tensor, y: ArrayLike | Tensor, **more: Any) -> Support:
        """A single user's support set: ``x`` [S, *input], ``y`` [S] with labels 0..N-1; B = 1 is added.

        Inputs are taken as float32; uint8 images become [0, 1]. ``more`` are the other fields, without B.

        Raises:
            DataError: lengths differ, there are no examples, labels are not 0..N-1, or an input is not finite.
        """
        inputs = as_inputs(x)
        labels = torch.as_tensor(np.asarray(y) if not isinstance(y, Tensor) else y)
        if inputs.shape[:1] != labels.shape[:1]:
            raise DataError(
                f"Support.of got {tuple(inputs.shape)} inputs and {tuple(labels.shape)} labels; "
                "expected one label for each input along the first axis"
            )
        way: int | None = None
        if labels.ndim == 1 and not labels.is_floating_point():
            labels = labels.to(torch.int64)
            way = check_labels(labels, "Support.of")
        fields: dict[str, Any] = {"way": way, **more}
        for name in fields.keys() & {"unlabelled", "semantics", "query_x"}:
            fields[name] = as_inputs(fields[name])[None]
        return cls(x=inputs[None], y=labels[None], **fields)


_ORIGIN_ARRAYS = ("classes", "support_ids", "query_ids", "unlabelled_ids", "unlabelled_y")


@frozen(eq=False)
class Origin:
    """Where a meta-batch came from: with the tasks' own options, enough to rebuild it exactly.

    Attributes:
        split, seed: of the tasks.
        indices: the episodes' numbers, length B.
        way, shot, query: the shape of these episodes (None where the kind has none).
        classes: class numbers within the split [B, N], or None.
        names: the names of the split's classes.
        support_ids, query_ids: identities of the examples [B, S] and [B, n] within the split (rows of its pool), or
            None; no number is in both.
        unlabelled_ids: identities of the unlabelled examples [B, U], or None; none is in support or query.
        unlabelled_y: the label that each of them would have [B, U], -1 for an example of another class, or None: for
            plots and scores only. Learners are given ``Support``, which has neither.
        fields: anything else a view wants to say.
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
        """What it says of each task: the arrays that are there, by name; each begins with B."""
        found = {name: getattr(self, name) for name in _ORIGIN_ARRAYS}
        return {name: array for name, array in found.items() if array is not None}

    @property
    def class_names(self) -> tuple[tuple[str, ...], ...]:
        """The name of each label of each episode [B][N]; empty where the tasks have no names."""
        if self.classes is None or not self.names:
            return ()
        return tuple(tuple(self.names[c] for c in row) for row in self.classes.tolist())


@frozen(eq=False)
class Episode:
    """A stacked meta-batch of B tasks.

    Attributes:
        support: what the learner may adapt to.
        query: other examples of the same tasks, on which it is judged.
        external: labelled examples from outside the tasks, filled by a view.
        origin: where it came from.
    """

    support: Support
    query: Examples
    external: Examples | None = None
    origin: Origin | None = None

    @property
    def size(self) -> int:
        """B, the number of tasks."""
        return int(self.support.key.shape[0])

    def for_adapting(self, queries: str) -> Support:
        """The support as a learner sees it at evaluation: with the query inputs if ``queries`` is ``at_adapt``, and
        with an environment whose budget is whole, and counted."""
        support = self.support
        if isinstance(support.source, Environment):
            support = attrs.evolve(support, source=Metered(support.source))
        return attrs.evolve(support, query_x=self.query.x) if queries == "at_adapt" else support


class Predictor(Protocol):
    """What ``Learner.adapt`` returns: a function of the query inputs, judged by the kind's scorer."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """``x`` [B, n, *input] -> classification: logits [B, n, N]; regression: values [B, n, *target];
        sequences: logits [B, T, *target]; control: actions, see ``Policy``; objective: iterates [B, n, P] at steps
        ``x``."""


@runtime_checkable
class Policy(Protocol):
    """What plays in an ``Environment``; the predictor of a control task is one.

    A plain function is a policy without chance or memory. One that draws its actions, or remembers what it saw, has
    the ability ``Begins`` too; called as a function it then gives its most likely action.
    """

    def __call__(self, observation: Tensor, /) -> Tensor:
        """``observation`` [B, E, *o] -> actions [B, E, *a] of E trajectories a task.

        Where the spec's ``way`` is a number, actions are discrete: int64 [B, E] in 0..way-1, and ``target_shape`` is
        (). Else they are real numbers, [B, E, *target_shape]; what an environment does with those outside the spec's
        ``target_range`` (it cuts them off, as a rule) is its own affair, and is not seen in the ``Rollout``.
        """


@runtime_checkable
class Begins(Protocol):
    """A policy with chance or memory of its own: each rollout plays what ``begin`` returns, instead of the policy."""

    def begin(self, key: Tensor, shape: tuple[int, int], /) -> Callable[[Tensor], Tensor]:
        """Called once before the first step of a rollout of ``shape`` (E, T).

        ``key`` [B] is this rollout's own: of the task, of support or query, and of the rollout's number. A policy's
        chance comes only from ``kshot.generator(key[b], purpose)`` (``kshot.control.normals`` and ``uniforms`` draw for
        all tasks), so that B tasks play as each does alone. What is returned is asked once a step, in order, with
        [B, E, *o], and may keep state until the rollout ends.
        """


@runtime_checkable
class Environment(Protocol):
    """The ``source`` of a control task: B environments, played together. A value, which playing does not change.

    A rollout is E trajectories a task, of at most T steps: E is the spec's ``shot`` in the support and its ``query`` in
    the query. Rollouts are numbered from 0, and each number has chance of its own, a function of the task's key and
    the number: whoever plays rollout 2 of an episode plays under the same chance. While adapting, numbers 0 to
    ``spec.rollouts - 1`` can be played, each once; that is the whole budget, so a method that updates k times on fresh
    trajectories needs ``rollouts >= k`` (``Needs.rollouts``). The query's environment is the same task under other
    chance and without a budget: training may play it as often as it likes, and judgement plays its rollout 0.

    Register the class with ``kshot.episode.register_value``, so that it is moved, sliced and cast with its episode;
    what lies in it may begin with B or, for one task (``one_task``), not: then rollouts have no B either.
    """

    def rollout(self, policy: Policy, number: int = 0) -> Rollout:
        """Play ``policy`` from the start: trajectories as data, without a graph.

        Raises:
            DataError: ``number`` lies beyond the budget, or was played already while adapting.
            TrainingError: the policy's actions have another shape or type than these tasks', or are not finite.
        """


@frozen(eq=False)
class Rollout:
    """Trajectories, E a task, of T steps.

    Attributes:
        observations: what the policy saw before each action [B, E, T, *o].
        actions: what it answered, before the environment cut anything off [B, E, T, *a].
        rewards: of each step [B, E, T]; 0 once the trajectory has ended.
        running: whether the step was taken [B, E, T], bool: false once the trajectory has ended. Observations and
            actions after the end mean nothing.
        scores: what else the environment judges, {name: [B, E]}: success, regret. Reported beside the return.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    running: Tensor = attrs.field(
        default=attrs.Factory(lambda self: torch.ones_like(self.rewards, dtype=torch.bool), takes_self=True)
    )
    scores: Mapping[str, Tensor] = attrs.field(factory=dict)


@frozen(eq=False)
class Metered:
    """A support's environment during one adaptation: each rollout can be played once. See ``Episode.for_adapting``."""

    environment: Any
    _played: set[int] = attrs.field(factory=set, init=False)

    def rollout(self, policy: Policy, number: int = 0) -> Rollout:
        """The environment's own, or DataError where this number was played before."""
        if number in self._played:
            raise DataError(
                f"rollout {number} of the support was played already, and adapting may play each number once; learn "
                f"from what was seen, or ask for rollout(policy, {max(self._played) + 1}) where tasks allow more"
            )
        self._played.add(number)
        rollout: Rollout = self.environment.rollout(policy, number)
        return rollout


@frozen(eq=False)
class Objective:
    """The ``source`` of an optimizee: B functions to be minimised, from B points on.

    The steps ``x`` [B, T] of an objective task count updates: at step 0 an optimizer is still at ``initial``. How much
    the loss at each of them counts in the score is ``y`` [B, T], never negative (the w_t of 1606.04474, eq. 3).

    Attributes:
        initial: where optimization starts [B, P].
        data: what tells one function from another: tensors that begin with B.
        function: (point [P], the data of one task) -> loss []; one episode, lifted over B by ``vmap``.
    """

    initial: Tensor
    data: tuple[Tensor, ...]
    function: Callable[..., Tensor]

    def loss(self, point: Tensor) -> Tensor:
        """``point`` [B, P] -> loss [B], in the point's own precision: autocast is for learners, not for problems.

        Raises:
            DataError: ``point`` and data differ in B, or the function's answer is no scalar.
        """
        if any(t.shape[:1] != point.shape[:1] for t in self.data):
            raise DataError(
                f"Objective: the points have shape {list(point.shape)} and the data "
                f"{[list(t.shape) for t in self.data]}; expected one B first everywhere: as many initial "
                "points as each tensor of data has tasks"
            )
        lifted: Callable[..., Tensor] = torch.func.vmap(self.function)
        with torch.autocast(point.device.type, enabled=False):
            loss = lifted(point, self.data)
        if loss.shape != point.shape[:1]:
            raise DataError(
                f"Objective: the function gave shape {list(loss.shape[1:])} for the point of one task, expected a "
                "scalar, []; reduce it, e.g. loss.sum()"
            )
        return loss

    def loss_and_gradient(self, point: Tensor, *, create_graph: bool = False) -> tuple[Tensor, Tensor]:
        """``point`` [B, P] -> loss [B] and its gradient [B, P] there; under ``no_grad`` too.

        Where ``point`` requires a gradient, the loss can be differentiated through it, and with ``create_graph`` so can
        the gradient (second derivatives); otherwise both are constants and no graph is kept.

        Raises:
            DataError: as ``loss``, or the function ignores its point.
        """
        follow = point.requires_grad and torch.is_grad_enabled()
        with torch.enable_grad():
            at = point if follow else point.detach().requires_grad_()
            loss = self.loss(at)
            gradient = None
            if loss.requires_grad:
                create_graph = create_graph and follow
                (gradient,) = torch.autograd.grad(
                    loss.sum(), at, retain_graph=follow, create_graph=create_graph, allow_unused=True
                )
        if gradient is None:
            raise DataError(
                "Objective: the loss does not depend on the point, so there is nothing to minimise; expected a "
                "function of its first argument: look for a detach(), a no_grad() or a point that was never used"
            )
        return (loss, gradient) if follow else (loss.detach(), gradient)


def check_objective(objective: Any, tasks: int, shape: tuple[int, ...], who: str) -> None:
    """Raises DataError unless these are ``tasks`` finite functions, of points of ``shape`` (P,), to be minimised."""
    if not isinstance(objective, Objective):
        raise DataError(f"{who}: the source is {type(objective).__name__}, expected a kshot.Objective")
    if tuple(objective.initial.shape) != (tasks, *shape):
        raise DataError(
            f"{who}: initial has shape {list(objective.initial.shape)}, expected {[tasks, *shape]}: B, then the spec's "
            "target_shape (P,)"
        )
    check_finite(objective.initial, f"{who}: initial")
    for i, values in enumerate(objective.data):
        check_finite(values, f"{who}: data[{i}]")
    loss, gradient = objective.loss_and_gradient(objective.initial)
    check_finite(loss, f"{who}: the loss at the initial points")
    check_finite(gradient, f"{who}: the gradient at the initial points")


def check_weights(y: Tensor, x: Tensor, who: str) -> None:
    """Raises DataError unless ``y`` says how much each of an objective's steps ``x`` [B, T] counts in its score."""
    fit = y.shape == x.shape and y.ndim == 2 and y.numel() > 0
    if not (fit and bool((y.isfinite() & (y >= 0)).all() & (y.sum(1) > 0).all())):
        raise DataError(
            f"{who}: y has shape {list(y.shape)} with values {y.flatten()[:4].tolist()}..., for steps of shape "
            f"{list(x.shape)}; expected a weight for each step [B, T], T > 0: none negative, one positive in each task"
        )


def register_value(cls: type[Any], *children: str) -> None:
    """Make an attrs class a value that travels: moved, cast, sliced and stacked with the episode that holds it.

    Args:
        children: its fields that hold tensors, or values of tensors; so does a field ``source`` by itself, where what
            it holds is a registered value. All other fields are the same for all tasks.
    """
    names = tuple(f.name for f in attrs.fields(cls) if f.init)

    def flatten(value: Any) -> tuple[list[Any], Any]:
        fields = {n: getattr(value, n) for n in names}
        known = type(fields.get("source")) in pytree.SUPPORTED_NODES
        held = {n: v for n, v in fields.items() if (n in children and v is not None) or (n == "source" and known)}
        rest = {n: v for n, v in fields.items() if n not in held}
        return list(held.values()), (tuple(held), rest)

    def unflatten(values: Any, context: Any) -> Any:
        present, rest = context
        return cls(**dict(zip(present, values, strict=True)), **rest)

    name = f"{cls.__module__}.{cls.__qualname__}"
    pytree.register_pytree_node(cls, flatten, unflatten, serialized_type_name=name)


register_value(Examples, "x", "y")
register_value(Support, "x", "y", "unlabelled", "semantics", "query_x", "key")
register_value(Episode, "support", "query", "external")
register_value(Rollout, "observations", "actions", "rewards", "running", "scores")
register_value(Metered, "environment")
register_value(Objective, "initial", "data")


VALUES: tuple[type[Any], ...] = (Examples, Support, Episode, Rollout, Objective)


def map_tensors(function: Callable[[Tensor], Tensor], value: T) -> T:
    """The value with ``function`` applied to each of its tensors."""
    mapped: T = pytree.tree_map_only(Tensor, function, value)
    return mapped


def slice_tasks(value: T, first: int, last: int) -> T:
    """Tasks ``first`` to ``last - 1`` of a value whose tensors all begin with B."""
    mapped = map_tensors(lambda t: t[first:last], value)
    if isinstance(mapped, Episode) and mapped.origin is not None:
        mapped = attrs.evolve(mapped, origin=_slice_origin(mapped.origin, first, last))
    return mapped


def _slice_origin(origin: Origin, first: int, last: int) -> Origin:
    arrays: dict[str, Any] = {name: array[first:last] for name, array in origin.arrays().items()}
    return attrs.evolve(origin, indices=origin.indices[first:last], **arrays)


def one_task(value: T, b: int) -> T:
    """Task ``b`` of a value, without B: what a function written for one episode takes."""
    mapped: T = map_tensors(lambda t: t[b], value)
    return mapped


def as_inputs(x: ArrayLike | Tensor) -> Tensor:
    """Anything array-like as finite float32 inputs; uint8 (images) is divided by 255.

    Raises:
        DataError: an element is NaN or infinite.
    """
    tensor = x if isinstance(x, Tensor) else torch.as_tensor(np.asarray(x))
    tensor = tensor.to(torch.float32) / 255 if tensor.dtype == torch.uint8 else tensor
    tensor = tensor.to(torch.float32)
    check_finite(tensor, "inputs")
    return tensor


def check_finite(x: Tensor, who: str) -> None:
    """Raises DataError where an element is NaN or infinite, and says the first place."""
    if x.is_floating_point() and not bool(torch.isfinite(x.sum())):
        bad = (~torch.isfinite(x)).nonzero()
        if len(bad):
            place = tuple(bad[0].tolist())
            raise DataError(
                f"{who}: {len(bad)} of {x.numel()} values are NaN or infinite, the first at {place} "
                f"of shape {tuple(x.shape)}; expected finite numbers: mend or drop these examples"
            )


def check_labels(y: Tensor, who: str, way: int | None = None) -> int:
    """The way N of labels that are exactly 0..N-1, each present.

    Raises:
        DataError: a label is missing, negative or too large; says which labels came.
    """
    present = torch.unique(y).tolist()
    expected = list(range(way if way is not None else len(present)))
    if present != expected or not expected:
        shown = ", ".join(map(str, present[:12])) + (", ..." if len(present) > 12 else "")
        raise DataError(
            f"{who}: labels are {{{shown}}}, expected exactly 0..{max(len(expected) - 1, 0)}; "
            "renumber them, e.g. numpy.unique(labels, return_inverse=True)[1]"
        )
    return len(expected)


def stack(episodes: Iterator[Episode] | Sequence[Episode]) -> Episode:
    """Episodes of B = 1 or more into one meta-batch; all must have the same shapes."""
    parts = list(episodes)
    flat = [pytree.tree_flatten(p) for p in parts]
    leaves = [torch.cat(ts) for ts in zip(*(f[0] for f in flat), strict=True)]
    whole: Episode = pytree.tree_unflatten(leaves, flat[0][1])
    origins = [p.origin for p in parts]
    if any(o is None for o in origins):
        return attrs.evolve(whole, origin=None)
    known = [o for o in origins if o is not None]

    held = [o.arrays() for o in known]
    joined: dict[str, Any] = {
        name: np.concatenate([arrays[name] for arrays in held]) if all(name in arrays for arrays in held) else None
        for name in _ORIGIN_ARRAYS
    }
    origin = attrs.evolve(known[0], indices=tuple(i for o in known for i in o.indices), **joined)
    return attrs.evolve(whole, origin=origin)
