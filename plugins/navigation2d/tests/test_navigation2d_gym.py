"""The gymnasium environment passes gymnasium's checks and has the dynamics of the vectorised one."""

import numpy as np
import pytest
import torch

from kshot_navigation2d import Navigation2D

gymnasium = pytest.importorskip("gymnasium")
gym = pytest.importorskip("kshot_navigation2d.gym")


@pytest.fixture
def env():
    gym.register()
    made = gymnasium.make(gym.ID)
    yield made
    made.close()


def test_gymnasium_accepts_it(env):
    """gymnasium's checker tests spaces, seeding, determinism and types."""
    from gymnasium.utils.env_checker import check_env

    check_env(env.unwrapped)


def test_registering_twice_is_harmless():
    """Two libraries may both register the environment."""
    gym.register()
    gym.register()
    assert gymnasium.spec(gym.ID).entry_point == "kshot_navigation2d.gym:Navigation2DEnv"


def test_it_moves_as_the_vectorised_one(env):
    """Equal actions and goals give equal episodes up to float32 rounding, with clipped actions and goals reached."""
    e = Navigation2D(shot=4, query=1).sample("test", range(3))
    source = e.support.source
    generator = torch.Generator().manual_seed(0)
    noise = 0.2 * torch.randn(3, 4, 100, 2, generator=generator)
    noise[1] = 0.0  # the second of three tasks moves straight to its goal
    taken = []

    def policy(x):
        towards = (source.goal[:, None] - x) * torch.tensor([0.0, 1.0, 0.3])[:, None, None]
        taken.append((noise[:, :, len(taken)] + towards).clamp(-0.1, 0.1))
        return taken[-1]

    played = source.rollout(policy)
    ends = 0
    for b in range(3):
        for i in range(4):
            at, info = env.reset(options={"goal": source.goal[b].numpy()})
            assert np.array_equal(info["goal"], source.goal[b].numpy())
            for step in range(100):
                assert np.allclose(at, played.observations[b, i, step].numpy(), atol=1e-5)
                at, reward, terminated, truncated, _ = env.step(taken[step][b, i].numpy())
                assert reward == pytest.approx(float(played.rewards[b, i, step]), abs=1e-5)
                last = step == 99 or not bool(played.running[b, i, step + 1])
                assert (terminated or truncated) == last
                assert terminated == (last and bool(played.scores["reached"][b, i]))
                if last:
                    ends += terminated
                    break
    assert ends >= 4


def test_goals_come_from_its_own_generator(env):
    """The same seed gives the same goal, which lies in the unit square around the origin."""
    goals = [env.reset(seed=s)[1]["goal"] for s in (3, 3, 4)]
    assert np.array_equal(goals[0], goals[1])
    assert not np.array_equal(goals[0], goals[2])
    assert np.abs(goals).max() <= 0.5
