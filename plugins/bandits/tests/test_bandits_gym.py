"""The gymnasium environment passes gymnasium's checks and has the dynamics of the vectorised one."""

import math

import numpy as np
import pytest
import torch

from kshot_bandits import Bandits

gymnasium = pytest.importorskip("gymnasium")
gym = pytest.importorskip("kshot_bandits.gym")


@pytest.fixture(params=[False, True])
def env(request):
    gym.register()
    made = gymnasium.make(gym.ID, arms=3, horizon=20, history=request.param)
    yield made
    made.close()


def test_gymnasium_accepts_it(env):
    """gymnasium's checker tests spaces, seeding, determinism and types."""
    from gymnasium.utils.env_checker import check_env

    check_env(env.unwrapped)


def test_it_pays_and_shows_what_the_vectorised_one_does(env):
    """Over 4,000 pulls of each arm payments have the same distribution; observations follow from them exactly."""
    history = env.unwrapped.history
    source = Bandits(arms=3, horizon=20, query=600, history=history).sample("test", [2]).query.source
    chances = source.chances[0].numpy()
    arms = [0, 1, 2] * 6 + [0, 1]
    steps = iter(arms)
    played = source.rollout(lambda x: torch.full(x.shape[:2], next(steps)))
    paid = np.zeros((600, 20))
    for i in range(600):
        seen, info = env.reset(seed=i, options={"chances": chances})
        assert np.allclose(info["chances"], chances)
        for step, arm in enumerate(arms):
            expected = np.ones(1)
            if history:
                expected = np.zeros(4)
                if step:
                    expected[arms[step - 1]], expected[3] = 1, paid[i, step - 1]
            assert np.array_equal(seen, expected)
            seen, paid[i, step], terminated, truncated, _ = env.step(arm)
            assert not terminated
            assert truncated == (step == 19)
    vectorised = played.rewards[0].numpy()
    for arm in range(3):
        mine, theirs = paid[:, np.array(arms) == arm], vectorised[:, np.array(arms) == arm]
        error = math.sqrt(2 * chances[arm] * (1 - chances[arm]) / mine.size)
        assert abs(mine.mean() - theirs.mean()) < 4 * error
    if history:
        assert (played.observations[0, :, 1:, 3].numpy() == vectorised[:, :-1]).all()


def test_chances_come_from_its_own_generator(env):
    """The same seed gives the same bandit, and registering the environment again is harmless."""
    gym.register()
    chances = [env.reset(seed=s)[1]["chances"] for s in (3, 3, 4)]
    assert np.array_equal(chances[0], chances[1])
    assert not np.array_equal(chances[0], chances[2])
