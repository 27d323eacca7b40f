"""The sources of tasks that are no table of examples: an ``Environment`` to act in, an ``Objective`` to minimise.

They stand in ``Support.source`` and ``Examples.source``. Everything here can also be imported from ``kshot.episode``.

Letters: B tasks, E trajectories per task, T steps, P parameters of a point.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import attrs
import torch
from attrs import frozen
from torch import Tensor

from kshot.arrays import check_finite
from kshot.errors import DataError
from kshot.pytrees import register_value

# --- Control ---------------------------------------------------------------------------------------------------------


@runtime_checkable
class Policy(Protocol):
    """A function that plays in an ``Environment``; the predictor of a control task is one.

    A plain function is a policy without randomness or memory. A policy that draws its actions, or remembers what it
    saw, also has the optional ability ``Begins``; called as a function it then returns its most likely action.
    """

    def __call__(self, observation: Tensor, /) -> Tensor:
        """Choose actions [B, E, *a] for E trajectories per task from their ``observation`` [B, E, *o].

        If the spec's ``way`` is a number, actions are discrete: int64 [B, E] in 0..way-1, and ``target_shape`` is ().
        Otherwise they are real numbers, [B, E, *target_shape]. An environment decides what to do with those outside
        the spec's ``target_range`` (usually it clips them); the ``Rollout`` has them as the policy chose them.
        """


@runtime_checkable
class Begins(Protocol):
    """A policy with randomness or memory: each rollout plays the function that ``begin`` returns."""

    def begin(self, key: Tensor, shape: tuple[int, int], /) -> Callable[[Tensor], Tensor]:
        """Return the function that plays one rollout of ``shape`` (E, T); called before its first step.

        ``key`` [B] belongs to this rollout alone: it is made from the task, from whether this is support or query, and
        from the rollout's number. A policy draws only from ``kshot.generator(key[b], purpose)``
        (``kshot.control.normals`` and ``uniforms`` draw for all tasks), so that B tasks play as each does alone. The
        returned function is called once per step, in order, with observations [B, E, *o], and may keep state until
        the rollout ends.
        """


@runtime_checkable
class Environment(Protocol):
    """The ``source`` of a control task: B environments that are played together. Playing does not change it.

    A rollout is E trajectories per task of at most T steps: E is the spec's ``shot`` in the support and its ``query``
    in the query. Rollouts are numbered from 0, and the randomness of each is a function of the task's key and the
    number: rollout 2 of an episode has the same randomness for everyone. While adapting, numbers 0 to
    ``spec.rollouts - 1`` can be played, each once. That is the budget, so a method that updates k times on fresh
    trajectories needs ``rollouts >= k`` (``Needs.rollouts``). The query's environment is the same task with other
    randomness and without a budget: training may play it as often as it likes, and evaluation plays its rollout 0.

    Register the class with ``kshot.episode.register_value``, so that it is moved, sliced and cast with its episode.
    Its tensors begin with B or, for one task (``one_task``), do not; then rollouts have no B either.
    """

    def rollout(self, policy: Policy, number: int = 0) -> Rollout:
        """Play ``policy`` from the start and return the trajectories as data, without a graph.

        Raises:
            DataError: ``number`` is beyond the budget, or was already played while adapting.
            TrainingError: the policy's actions have another shape or type than these tasks', or are not finite.
        """


@frozen(eq=False)
class Rollout:
    """Store E trajectories per task, of T steps.

    Attributes:
        observations: what the policy saw before each action [B, E, T, *o].
        actions: what the policy chose, before the environment clipped anything [B, E, T, *a].
        rewards: of each step [B, E, T]; 0 once the trajectory has ended.
        running: whether the step was taken [B, E, T], bool: false once the trajectory has ended. Observations and
            actions after the end have no meaning.
        scores: further scores by the environment, {name: [B, E]}, such as success or regret; reported with the return.

    Example:
        >>> rollout = Rollout(torch.zeros(1, 2, 5, 3), torch.zeros(1, 2, 5), torch.ones(1, 2, 5))
        >>> rollout.rewards.sum(-1)
        tensor([[5., 5.]])
        >>> bool(rollout.running.all())
        True
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
    """Represent a support's environment during one adaptation: each rollout can be played once.

    ``Episode.for_adapting`` makes it.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> support = sample_tasks.example("control").sample("test", [0]).for_adapting("independent")
        >>> isinstance(support.source, Metered)
        True
    """

    environment: Any
    _played: set[int] = attrs.field(factory=set, init=False)

    def rollout(self, policy: Policy, number: int = 0) -> Rollout:
        """Play the environment's rollout ``number``.

        Raises:
            DataError: this number was played before.
        """
        if number in self._played:
            raise DataError(
                f"support: got rollout {number} a second time, expected each number once while adapting; learn from "
                f"the first result, or ask for rollout(policy, {max(self._played) + 1}) if the tasks allow more"
            )
        self._played.add(number)
        rollout: Rollout = self.environment.rollout(policy, number)
        return rollout


# --- Objectives ------------------------------------------------------------------------------------------------------


@frozen(eq=False)
class Objective:
    """The ``source`` of an objective task: B functions that are to be minimised, each from an initial point.

    The steps ``x`` [B, T] of an objective task count updates: at step 0 an optimizer is still at ``initial``. ``y``
    [B, T] weighs the loss at each step in the score and is never negative (w_t of Andrychowicz et al. 2016,
    arXiv:1606.04474, eq. 3).

    Attributes:
        initial: where optimisation starts [B, P].
        data: what distinguishes the functions: tensors that begin with B.
        function: (point [P], the data of one task) -> loss []; written for one task, mapped over B by ``vmap``.

    Example:
        >>> objective = Objective(torch.zeros(1, 2), (torch.tensor([3.0]),), lambda p, d: (p - d[0]).square().sum())
        >>> objective.loss(objective.initial)
        tensor([18.])
    """

    initial: Tensor
    data: tuple[Tensor, ...]
    function: Callable[..., Tensor]

    def loss(self, point: Tensor) -> Tensor:
        """Return the loss [B] at ``point`` [B, P], in the point's precision.

        Autocast is switched off: it is meant for learners, not for the problems that they solve.

        Raises:
            DataError: ``point`` and data differ in B, or the function's result is not a scalar.
        """
        if any(t.shape[:1] != point.shape[:1] for t in self.data):
            raise DataError(
                f"Objective: got points of shape {list(point.shape)} and data of shapes "
                f"{[list(t.shape) for t in self.data]}, expected the same B first everywhere; pass as many initial "
                "points as each tensor of data has tasks"
            )
        per_task: Callable[..., Tensor] = torch.func.vmap(self.function)
        with torch.autocast(point.device.type, enabled=False):
            loss = per_task(point, self.data)
        if loss.shape != point.shape[:1]:
            raise DataError(
                f"Objective: got a loss of shape {list(loss.shape[1:])} for the point of one task, expected a "
                "scalar, []; reduce it, e.g. loss.sum()"
            )
        return loss

    def loss_and_gradient(self, point: Tensor, *, create_graph: bool = False) -> tuple[Tensor, Tensor]:
        """Return the loss [B] at ``point`` [B, P] and its gradient [B, P] there; works under ``no_grad`` too.

        If ``point`` requires a gradient, the loss can be differentiated through it, and with ``create_graph`` so can
        the gradient (second derivatives). Otherwise both are constants and no graph is kept.

        Raises:
            DataError: as ``loss``, or the function ignores its point.
        """
        follow = point.requires_grad and torch.is_grad_enabled()
        with torch.enable_grad():
            at = point if follow else point.detach().requires_grad_()
            loss = self.loss(at)
            gradient = None
            if loss.requires_grad:
                # Tasks do not affect each other, so the gradient of the sum has each task's own gradient as a row.
                create_graph = create_graph and follow
                (gradient,) = torch.autograd.grad(
                    loss.sum(), at, retain_graph=follow, create_graph=create_graph, allow_unused=True
                )
        if gradient is None:
            raise DataError(
                "Objective: got a loss that does not depend on the point, so there is nothing to minimise, expected a "
                "function of its first argument; look for a detach(), a no_grad() or a point that is never used"
            )
        return (loss, gradient) if follow else (loss.detach(), gradient)


def check_objective(objective: Any, tasks: int, shape: tuple[int, ...], who: str) -> None:
    """Raise DataError unless ``objective`` is ``tasks`` functions, finite with their gradients at the initial points.

    Args:
        objective: a source that should be a ``kshot.Objective``.
        tasks: B.
        shape: of a point, (P,).
        who: whose source it is, for messages.

    Example:
        >>> objective = Objective(torch.ones(2, 3), (), lambda p, d: p.square().sum())
        >>> check_objective(objective, tasks=2, shape=(3,), who="my tasks")
    """
    if not isinstance(objective, Objective):
        raise DataError(f"{who}: got a source of type {type(objective).__name__}, expected a kshot.Objective")
    if tuple(objective.initial.shape) != (tasks, *shape):
        raise DataError(
            f"{who}: got initial of shape {list(objective.initial.shape)}, expected {[tasks, *shape]}: B, then the "
            "spec's target_shape (P,)"
        )
    check_finite(objective.initial, f"{who}: initial")
    for i, values in enumerate(objective.data):
        check_finite(values, f"{who}: data[{i}]")
    loss, gradient = objective.loss_and_gradient(objective.initial)
    check_finite(loss, f"{who}: the loss at the initial points")
    check_finite(gradient, f"{who}: the gradient at the initial points")


def check_weights(y: Tensor, x: Tensor, who: str) -> None:
    """Raise DataError unless ``y`` [B, T] has a weight for each of an objective's steps ``x`` [B, T].

    No weight may be negative, and each task needs one that is positive.

    Example:
        >>> check_weights(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0]]), "my tasks")
    """
    one_each = y.shape == x.shape and y.ndim == 2 and y.numel() > 0
    if not (one_each and bool((y.isfinite() & (y >= 0)).all() & (y.sum(1) > 0).all())):
        raise DataError(
            f"{who}: got y of shape {list(y.shape)} with values {y.flatten()[:4].tolist()}... for steps of shape "
            f"{list(x.shape)}, expected a weight for each step [B, T], T > 0: none negative, one positive per task"
        )


# The names are those under which these classes were first registered; stored values refer to them.
register_value(Rollout, "observations", "actions", "rewards", "running", "scores", name="kshot.episode.Rollout")
register_value(Metered, "environment", name="kshot.episode.Metered")
register_value(Objective, "initial", "data", name="kshot.episode.Objective")
