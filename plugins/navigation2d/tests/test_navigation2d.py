"""2-D navigation has the dynamics of a second implementation, and the tasks of the paper."""

import math

import numpy as np
import pytest
import torch

import kshot
from kshot.errors import DataError, OptionError
from kshot_navigation2d import Navigation2D


def scripted(actions: torch.Tensor):
    """Make a policy that returns ``actions`` [B, E, T, 2] step by step, whatever it observes."""
    steps = iter(actions.unbind(-2))
    return lambda x: next(steps)


def by_hand(goal: np.ndarray, actions: np.ndarray) -> tuple[list, list, list]:
    """Play one trajectory in plain Python floats: positions before each move, rewards, and whether it still ran."""
    x = y = 0.0
    positions, rewards, running, over = [], [], [], False
    for dx, dy in actions.tolist():
        positions.append((x, y))
        running.append(not over)
        x += max(-0.1, min(0.1, dx))
        y += max(-0.1, min(0.1, dy))
        rewards.append(0.0 if over else -math.sqrt((x - goal[0]) ** 2 + (y - goal[1]) ** 2))
        over = over or (abs(x - goal[0]) < 0.01 and abs(y - goal[1]) < 0.01)
    return positions, rewards, running


def test_the_dynamics_are_those_of_a_naive_loop():
    """Moves are clipped to 0.1 per coordinate, and rewards are minus the distance after the move, in float64."""
    t = Navigation2D(shot=3, query=2, horizon=30, seed=1)
    e = kshot.episode.map_tensors(lambda x: x.double() if x.is_floating_point() else x, t.sample("val", [0, 4]))
    generator = torch.Generator().manual_seed(0)
    for source, E in ((e.support.source, 3), (e.query.source, 2)):
        actions = 0.15 * torch.randn(2, E, 30, 2, generator=generator, dtype=torch.float64)
        played = source.rollout(scripted(actions))
        assert torch.equal(played.actions, actions)
        for b in range(2):
            for i in range(E):
                positions, rewards, running = by_hand(source.goal[b].numpy(), actions[b, i].numpy())
                assert running == played.running[b, i].tolist()
                assert np.allclose(played.observations[b, i].numpy(), positions, atol=1e-12)
                assert np.allclose(played.rewards[b, i].numpy(), rewards, atol=1e-12)


def test_a_trajectory_ends_near_the_goal():
    """The step that comes within 0.01 in both coordinates is the last one, and the score ``reached`` is true."""
    t = Navigation2D(shot=2, query=1)
    e = t.sample("train", range(8))
    goal = e.support.source.goal
    straight = lambda x: goal[:, None] - x  # noqa: E731
    played = e.support.source.rollout(straight)
    steps = (goal.abs().amax(-1) / 0.1 - 0.1).ceil()  # the last step may fall short by 0.01
    assert (played.running.sum(-1) == steps[:, None]).all()
    assert played.scores["reached"].all()
    assert (played.rewards[~played.running] == 0).all()
    aside = e.support.source.rollout(lambda x: (goal + torch.tensor([0.0, 0.011]))[:, None] - x)
    assert not aside.scores["reached"].any()
    assert aside.running.all()


def test_standing_still_has_the_return_of_a_uniform_goal():
    """It is minus the mean distance in the unit square to its centre, (sqrt 2 + ln(1 + sqrt 2)) / 6, times 100."""
    e = Navigation2D(query=1).sample("test", range(4000))
    returns = e.query.source.rollout(torch.zeros_like).rewards.sum(-1)
    expected = -100 * (math.sqrt(2) + math.log(1 + math.sqrt(2))) / 6
    assert expected == pytest.approx(-38.26, abs=0.01)
    # a point that starts within 0.01 of its goal ends at once: one task in 2,500
    assert float(returns.mean()) == pytest.approx(expected, abs=4 * 14.2 / math.sqrt(4000))


def test_goals_are_uniform_and_the_origin_tells_them():
    """They are uniform in [-0.5, 0.5]^2, and query and support have the same goal."""
    e = Navigation2D().sample("train", range(2000))
    goal = e.query.source.goal
    assert torch.equal(goal, e.support.source.goal)
    assert np.array_equal(goal.numpy(), e.origin.fields["goal"])
    assert goal.abs().max() <= 0.5
    assert torch.allclose(goal.mean(0), torch.zeros(2), atol=4 * 0.2887 / math.sqrt(2000))
    assert torch.allclose(goal.std(0), torch.full((2,), 12**-0.5), atol=0.02)


def test_rollouts_count_trajectories_and_have_a_budget():
    """The support has ``shot`` trajectories, the query has ``query``, and ``rollouts`` is the budget of the support."""
    t = kshot.tasks("navigation2d", shot=4, query=3, rollouts=2, horizon=7)
    e = t.sample("train", [0, 1])
    assert e.support.source.rollout(torch.zeros_like, 1).rewards.shape == (2, 4, 7)
    assert e.query.source.rollout(torch.zeros_like, 9).rewards.shape == (2, 3, 7)
    with pytest.raises(DataError, match="got a request for rollout 2, expected 0 to 1"):
        e.support.source.rollout(torch.zeros_like, 2)
    assert (t.spec.shot, t.spec.query, t.spec.rollouts, t.spec.target_range) == (4, 3, 2, (-0.1, 0.1))


def test_bad_options_and_splits_are_refused():
    """The error says what was given and what was expected."""
    with pytest.raises(OptionError, match="got shot 0, horizon -1, expected at least 1"):
        Navigation2D(shot=0, horizon=-1)
    with pytest.raises(DataError, match="unknown split 'dev'"):
        Navigation2D().sample("dev", [0])
