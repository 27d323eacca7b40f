"""Any registered environment of gymnasium, with one attribute that differs by task."""

from __future__ import annotations

from functools import partial

import gymnasium

from kshot.errors import DataError, OptionError
from kshot_gymnasium.adapter import GymnasiumTasks
from kshot_gymnasium.families import Family, Uniform, Vector


def registered(id: str, n: int) -> Vector:
    """Make n environments ``id`` that ``SyncVectorEnv`` steps one after another, without a limit of time.

    Raises:
        OptionError: no environment is registered under this name, or it names a module to be imported.
        DataError: gymnasium can't make the environment.

    Example:
        >>> registered("Pendulum-v1", 2).num_envs
        2
    """
    if id not in gymnasium.registry:
        raise OptionError(
            f"gymnasium: got the environment {id!r}, expected the full name of a registered one, such as "
            "'Pendulum-v1'; register it by gymnasium.register before"
        )
    try:
        # max_episode_steps=-1 switches off gymnasium's limit of time: the tasks have their own horizon.
        return gymnasium.make_vec(
            id, n, vectorization_mode="sync", vector_kwargs={}, max_episode_steps=-1, disable_env_checker=True
        )
    except gymnasium.error.Error as error:
        raise DataError(
            f"gymnasium: got {type(error).__name__} ({error}) when the environment {id!r} was made, expected an "
            "environment; install what it needs"
        ) from error


class Registered(GymnasiumTasks):
    """Control tasks from a registered environment, of which one attribute differs by task.

    Environments are stepped one after another, so these tasks are slower than ``cartpole`` and ``pendulum``.

    Args:
        shot: number of trajectories in a rollout, from which a learner makes one update.
        query: number of trajectories by which an adapted policy is scored.
        seed: fixes all episodes.
        environment: the name under which it is registered, such as ``Acrobot-v1``.
        parameter: the attribute of the environment that differs by task; a number.
        range: the least and the greatest value of the parameter; it is uniform between them.
        rollouts: number of rollouts that a learner may play while it adapts: one for each update.
        horizon: T, the greatest number of steps in a trajectory.

    Raises:
        OptionError: a number is below 1, the range is empty, or no such environment is registered.
        DataError: the environment can't be made, has spaces that no policy of kshot fits, or lacks the attribute.

    Example:
        >>> tasks = Registered(query=3, horizon=7, environment="Pendulum-v1", parameter="l", range=(0.5, 1.5))
        >>> tasks.sample("test", [0, 1]).query.source.rollout(lambda x: -x[..., 1:2]).rewards.shape
        torch.Size([2, 3, 7])
    """

    def __init__(
        self,
        shot: int = 20,
        query: int = 20,
        seed: int = 0,
        *,
        environment: str = "Pendulum-v1",
        parameter: str = "g",
        range: tuple[float, float] = (5.0, 15.0),
        rollouts: int = 3,
        horizon: int = 200,
    ) -> None:
        if not parameter.isidentifier() or parameter.startswith("_"):
            raise OptionError(
                f"gymnasium: got the parameter {parameter!r}, expected the name of a public attribute; choose another"
            )
        family = Family(f"gymnasium: {environment}", partial(registered, environment), {parameter: Uniform(*range)})
        super().__init__(family, shot, query, seed, rollouts=rollouts, horizon=horizon)
