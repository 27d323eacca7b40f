"""Functions for writers of environments and policies: keys of rollouts, checks of actions, ends, and noise.

An environment of B tasks is a loop over T steps; ``kshot.episode.Environment`` states its contract:

    @torch.no_grad()
    def rollout(self, policy, number=0):
        key = rollout_key(self.key, number, self.rollouts)
        act = playing(policy, key, (self.trajectories, self.horizon), target_shape=(2,))
        at, seen, taken = ..., [], []
        for _ in range(self.horizon):
            seen.append(at)
            taken.append(act(at))
            at = at + taken[-1]
        return recorded(torch.stack(seen, -2), torch.stack(taken, -2), rewards)

Letters: B tasks, E trajectories per task, T steps. For an environment of one task, all tensors are without B.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from kshot.arrays import as_inputs
from kshot.episode import Begins, Environment, Episode, Examples, Origin, Policy, Rollout, Support
from kshot.errors import DataError, TrainingError
from kshot.randomness import as_tensor, draws, generator
from kshot.spec import TaskSpec


def own_key(key: Tensor, purpose: str) -> Tensor:
    """Return keys [B] derived from ``key`` [B] for one purpose, such as the environments of the support.

    Different purposes give independent random numbers; the key of a task does not depend on its neighbours.

    Example:
        >>> key = torch.tensor([1, 2])
        >>> support, query = own_key(key, "support"), own_key(key, "query")
        >>> bool((support == query).any()), torch.equal(own_key(key[1:], "query"), query[1:])
        (False, True)
    """
    words = key.reshape(-1).cpu().numpy().view(np.uint64)
    return as_tensor(draws(words, purpose, 1)[:, 0]).reshape(key.shape).to(key.device)


def episode(support: Environment, query: Environment, key: Tensor, origin: Origin, spec: TaskSpec) -> Episode:
    """Return an episode of B control tasks, which have environments instead of examples.

    Args:
        support: the environment to adapt in, whose rollouts are limited.
        query: the environment in which the adapted policy is judged; it has other random numbers.
        key: of the episodes [B].
        origin: where the episodes are from.
        spec: the specification of the tasks.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> points = sample_tasks.Points()
        >>> sampled = points.sample("train", [0, 1])
        >>> environments = sampled.support.source, sampled.query.source
        >>> made = episode(*environments, sampled.support.key, sampled.origin, points.spec)
        >>> made.size, tuple(made.support.x.shape)
        (2, (2, 0, 2))
    """
    x = torch.zeros(len(key), 0, *spec.input_shape)
    y = torch.zeros(len(key), 0, *spec.target_shape, dtype=torch.float32 if spec.way is None else torch.int64)
    return Episode(Support(x, y, source=support, key=key), Examples(x, y, source=query), origin=origin)


def rollout_key(key: Tensor, number: int, rollouts: int | None = None) -> Tensor:
    """Return the keys [B] of rollout ``number``, from which all its random numbers are drawn.

    Args:
        key: of the environments [B].
        number: of the rollout, from 0 on.
        rollouts: the budget of the environments, or None for an unlimited one.

    Raises:
        DataError: the number is negative, or not below the budget.

    Example:
        >>> tuple(rollout_key(torch.tensor([1, 2]), 0, rollouts=3).shape)
        (2,)
    """
    if number < 0 or (rollouts is not None and number >= rollouts):
        expected = "a number from 0 on" if rollouts is None else f"0 to {rollouts - 1}, a budget of {rollouts}"
        raise DataError(
            f"environment: got a request for rollout {number}, expected {expected}; learn from the rollouts played so "
            "far, take fewer updates, or raise the tasks' rollouts"
        )
    return own_key(key, f"rollout {number}")


def playing(
    policy: Policy, key: Tensor, shape: tuple[int, int], *, target_shape: tuple[int, ...] = (), way: int | None = None
) -> Callable[[Tensor], Tensor]:
    """Return the function from observations to actions that plays one rollout, with each action checked.

    It is the policy itself, or the result of its ``begin`` if it has one.

    Args:
        policy: maps observations [B, E, *o] to actions [B, E, *a].
        key: the key of the rollout [B], from ``rollout_key``.
        shape: (E, T).
        target_shape: the shape of a continuous action.
        way: the number of discrete actions, or None if they are continuous.

    Raises:
        TrainingError: (by the returned function) actions have another shape or type, or are not in 0 to ``way`` - 1.

    Example:
        >>> act = playing(lambda x: -x, torch.tensor([1]), (4, 10), target_shape=(2,))
        >>> tuple(act(torch.zeros(1, 4, 2)).shape)
        (1, 4, 2)
    """
    # A policy that draws its actions gets the rollout's key and length before the first step.
    act = policy.begin(key, shape) if isinstance(policy, Begins) else policy
    expected = torch.Size([*key.shape, shape[0], *target_shape])
    sort = "real numbers" if way is None else "int64"

    def checked(observation: Tensor) -> Tensor:
        action = act(observation)
        right = action.dtype == torch.int64 if way is not None else action.is_floating_point()
        if action.shape != expected or not right:
            raise TrainingError(
                f"policy: got actions that are {action.dtype} of shape {list(action.shape)}, expected {sort} of shape "
                f"{list(expected)}, one action per trajectory; see kshot.episode.Policy"
            )
        if way is not None:
            least, greatest = (int(end) for end in action.aminmax())
            if least < 0 or greatest >= way:
                raise TrainingError(
                    f"policy: got actions from {least} to {greatest}, expected numbers from 0 to {way - 1}; return the "
                    "index of an action"
                )
        return action

    return checked


def recorded(
    observations: Tensor,
    actions: Tensor,
    rewards: Tensor,
    ended: Tensor | None = None,
    scores: Mapping[str, Tensor] | None = None,
    *,
    who: str = "environment",
) -> Rollout:
    """Return the rollout of T steps with the rewards after the end of each trajectory set to 0.

    Args:
        observations, actions, rewards: of all T steps, including those after the end [B, E, T, ...].
        ended: whether the step was its trajectory's last [B, E, T], or None if all trajectories take T steps.
        scores: further scores by the environment [B, E], by name.
        who: the name of the environment, for messages.

    Raises:
        TrainingError: an action before the end is NaN or infinite; the message gives its task, trajectory and step.
        DataError: likewise an observation or a reward. Of several, the first one in time is reported.

    Example:
        The step that ends a trajectory still counts:

        >>> rewards, ended = torch.ones(1, 1, 3), torch.tensor([[[False, True, False]]])
        >>> recorded(rewards[..., None], rewards, rewards, ended).rewards
        tensor([[[1., 1., 0.]]])
    """
    running = torch.ones_like(rewards, dtype=torch.bool)
    if ended is not None:
        # A step is taken if no step before it ended its trajectory.
        running = ended.cumsum(-1) - ended.long() == 0
        # Replaced instead of multiplied by 0, because rewards after the end may be anything, NaN too.
        rewards = torch.where(running, rewards, 0)
    _check_numbers({"observation": observations, "action": actions, "reward": rewards}, running, who)
    return Rollout(observations, actions, rewards, running, dict(scores or {}))


def _check_numbers(values: Mapping[str, Tensor], running: Tensor, who: str) -> None:
    """Check that the numbers of the steps that were taken are finite.

    Args:
        values: observations, actions and rewards [B, E, T, ...] by name, in the order in which a step has them.
        running: whether the step was taken [B, E, T].
        who: the name of the environment.
    """
    # One sum decides the usual case; numbers after the end mean nothing and may be anything.
    if all(bool(torch.isfinite(numbers.sum())) for numbers in values.values()):
        return
    found = []
    for order, (name, numbers) in enumerate(values.items()):
        bad = ~torch.isfinite(numbers.reshape(*running.shape, -1)).all(-1) & running
        if len(places := bad.nonzero()):
            place = places[places[:, -1].argmin()].tolist()
            found.append((place[-1], order, name, place))
    if not found:
        return
    # What is wrong first is the cause: a wrong observation makes a wrong action, and that a wrong reward.
    step, _, name, (*task, trajectory, _) = min(found)
    where = f"in step {step} of trajectory {trajectory}{f' of task {task[0]}' if task else ''}"
    if name == "action":
        raise TrainingError(
            f"policy: got a NaN or infinite action {where}, expected finite numbers; lower the learning rates, or "
            "look at the policy's parameters"
        )
    raise DataError(
        f"{who}: got a NaN or infinite {name} {where}, expected finite numbers; correct the environment, or choose "
        "other parameters for it"
    )


def demonstrations(trajectories: Sequence[tuple[ArrayLike | Tensor, ArrayLike | Tensor]], spec: TaskSpec) -> Support:
    """Return the support of one task from demonstrations: pairs of observations [T, *o] and actions [T, *a].

    The examples are the steps of all demonstrations. Their lengths T may differ, and nothing is padded.

    Args:
        trajectories: at least one demonstration.
        spec: of the tasks, of kind regression (actions are numbers) or classification (actions are 0 to way - 1).

    Raises:
        DataError: there is no step; observations and actions differ in length; they have another shape than those of
            the tasks, as from another environment; an action does not exist; or a number is NaN or infinite.

    Example:
        >>> spec = TaskSpec(kind="regression", input_shape=(2,), target_shape=(1,), provides={"environment"})
        >>> long, short = (([[0.0, 1.0]] * steps, [[0.5]] * steps) for steps in (5, 3))
        >>> tuple(demonstrations([long, short], spec).x.shape)
        (1, 8, 2)
    """
    who = "demonstrations"
    observations, actions = [], []
    way = spec.way if spec.kind == "classification" and isinstance(spec.way, int) else None
    for i, (seen, taken) in enumerate(trajectories):
        x = as_inputs(seen, f"{who}: observations of demonstration {i}", copy=True)
        taken = taken if isinstance(taken, Tensor) else np.asarray(taken)
        # The numbers of actions in uint8 are not scaled to [0, 1], as those of pictures are.
        if str(taken.dtype).endswith("uint8"):
            taken = taken.astype(np.int64) if isinstance(taken, np.ndarray) else taken.long()
        y = as_inputs(taken, f"{who}: actions of demonstration {i}", copy=True)
        for name, values, shape in (("observations", x, spec.input_shape), ("actions", y, spec.target_shape)):
            if values.shape != (len(x), *shape):
                raise DataError(
                    f"{who}: got {name} of shape {tuple(values.shape)} in demonstration {i}, expected "
                    f"{(len(x), *shape)}: one for each step, as in the tasks of the spec; give demonstrations of their "
                    "environment"
                )
        observations.append(x)
        actions.append(y)
    if not sum(len(x) for x in observations):
        raise DataError(f"{who}: got no step, expected at least one; give a demonstration")
    x, y = torch.cat(observations), torch.cat(actions)
    if way is not None:
        if not bool(((y == y.floor()) & (y >= 0) & (y < way)).all()):
            raise DataError(
                f"{who}: got actions from {float(y.min()):g} to {float(y.max()):g}, expected whole numbers from 0 to "
                f"{way - 1}; give the numbers of actions"
            )
        y = y.long()
    return Support(x[None], y[None], way=way)


def normals(key: Tensor, purpose: str, *shape: int) -> Tensor:
    """Draw standard normal numbers [B, *shape], float32.

    Those of task b are drawn from ``kshot.generator(key[b], purpose)``, independently of its neighbours.

    Example:
        >>> key = torch.tensor([1, 2])
        >>> torch.equal(normals(key, "noise", 3)[1:], normals(key[1:], "noise", 3))
        True
    """
    return _drawn(key, purpose, lambda chance: torch.randn(shape, generator=chance))


def uniforms(key: Tensor, purpose: str, *shape: int) -> Tensor:
    """Draw uniform numbers from [0, 1), [B, *shape], float32.

    Those of task b are drawn from ``kshot.generator(key[b], purpose)``, independently of its neighbours.

    Example:
        >>> tuple(uniforms(torch.tensor([1, 2]), "noise", 3).shape)
        (2, 3)
    """
    return _drawn(key, purpose, lambda chance: torch.rand(shape, generator=chance))


def _drawn(key: Tensor, purpose: str, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
    """Draw numbers for each key from its own generator, and stack them along B."""
    numbers = [draw(generator(k, purpose)) for k in key.reshape(-1).cpu()]
    return torch.stack(numbers).reshape(*key.shape, *numbers[0].shape).to(key.device)
