"""Bernoulli bandits have the right payments, observations and regret."""

import math

import numpy as np
import pytest
import torch

import kshot
from kshot.errors import DataError, OptionError, TrainingError
from kshot_bandits import Bandits


def always(arm):
    return lambda x: torch.full(x.shape[:2], arm)


def test_an_arm_pays_with_its_own_probability():
    """Every payment is 0 or 1, and the means over 20,000 pulls of each arm are within four standard errors."""
    e = Bandits(arms=3, query=2000, horizon=10).sample("test", [0, 1])
    chances = torch.from_numpy(e.origin.fields["chances"])
    for arm in range(3):
        rewards = e.query.source.rollout(always(arm)).rewards
        assert set(rewards.unique().tolist()) <= {0.0, 1.0}
        error = (chances[:, arm] * (1 - chances[:, arm]) / 20000).sqrt()
        assert ((rewards.mean((1, 2)) - chances[:, arm]).abs() < 4 * error).all()


def test_payments_of_different_pulls_are_independent():
    """This holds for trajectories, steps, rollouts, and for support and query."""
    e = Bandits(arms=2, shot=50, query=50, horizon=50, rollouts=2).sample("test", [3])
    played = [e.support.source.rollout(always(0), n) for n in (0, 1)] + [e.query.source.rollout(always(0))]
    flat = torch.stack([p.rewards.flatten() for p in played])
    assert np.abs(np.corrcoef(flat.numpy())[np.triu_indices(3, 1)]).max() < 4 / math.sqrt(2500)
    first = played[0].rewards[0]
    assert abs(np.corrcoef(first[:-1].flatten(), first[1:].flatten())[0, 1]) < 4 / math.sqrt(2450)
    assert abs(np.corrcoef(first[:, :-1].flatten(), first[:, 1:].flatten())[0, 1]) < 4 / math.sqrt(2450)


def test_regret_is_what_the_best_arm_would_pay_more():
    """It is a sum of differences of probabilities, not of payments, computed here by hand."""
    e = Bandits(arms=4, horizon=6).sample("train", [0, 7])
    chances = torch.from_numpy(e.origin.fields["chances"])
    arms = torch.tensor([0, 3, 3, 1, 2, 0])
    steps = iter(arms)
    played = e.query.source.rollout(lambda x: next(steps).expand(x.shape[:2]))
    for b in range(2):
        by_hand = sum(float(chances[b].max() - chances[b, a]) for a in arms.tolist())
        assert torch.allclose(played.scores["regret"][b], torch.tensor(by_hand), atol=1e-6)


def test_chances_are_uniform():
    """They have mean 1/2 and variance 1/12, and the best of five arms has mean 5/6."""
    chances = Bandits(arms=5).sample("val", range(4000)).support.source.chances
    assert float(chances.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(chances.var()) == pytest.approx(1 / 12, abs=0.002)
    assert float(chances.amax(1).mean()) == pytest.approx(5 / 6, abs=4 * 0.141 / math.sqrt(4000))


def test_observations_tell_nothing_or_the_last_pull():
    """They are 1 by default, and with ``history`` the previous arm, one-hot, and its payment."""
    plain = Bandits(arms=3).sample("train", [0])
    assert (plain.query.source.rollout(always(1)).observations == 1).all()
    t = Bandits(arms=3, history=True, horizon=5)
    assert t.spec.input_shape == (4,)
    steps = iter([0, 2, 1, 1, 0])
    played = t.sample("train", [0, 1]).query.source.rollout(lambda x: torch.full(x.shape[:2], next(steps)))
    assert (played.observations[:, :, 0] == 0).all()
    for step, arm in enumerate([0, 2, 1, 1]):
        seen = played.observations[:, :, step + 1]
        assert (seen[..., :3] == torch.eye(3)[arm]).all()
        assert torch.equal(seen[..., 3], played.rewards[:, :, step])


def test_wrong_arms_options_and_splits_are_refused():
    """The error says what was given and what was expected."""
    e = Bandits(arms=3).sample("train", [0])
    with pytest.raises(TrainingError, match="got actions from 3 to 3, expected numbers from 0 to 2"):
        e.query.source.rollout(always(3))
    with pytest.raises(OptionError, match="got arms 1, expected at least 1, and at least 2 arms"):
        Bandits(arms=1)
    with pytest.raises(DataError, match="unknown split 'dev'"):
        kshot.tasks("bandits").sample("dev", [0])
    with pytest.raises(DataError, match="got a request for rollout 3, expected 0 to 2"):
        e.support.source.rollout(always(0), 3)


def test_only_live_arms_pay_and_lie_at_random_places():
    """The chances of live arms are those of the same bandit with all arms; every arm is live equally often."""
    some, every = Bandits(arms=8, live=3), Bandits(arms=8)
    chances = some.sample("train", range(2000)).support.source.chances
    alike = chances == every.sample("train", range(2000)).support.source.chances
    assert ((chances > 0).sum(-1) == 3).all()
    assert torch.equal(alike, chances > 0)
    share = (chances > 0).float().mean(0)
    assert (share - 3 / 8).abs().max() < 4 * (3 / 8 * 5 / 8 / 2000) ** 0.5
    assert torch.equal(
        Bandits(arms=8, live=8).sample("test", [0]).query.source.chances, every.sample("test", [0]).query.source.chances
    )
    with pytest.raises(OptionError, match="bandits: got 9 live arms, expected 1 to 8"):
        Bandits(arms=8, live=9)
    with pytest.raises(OptionError, match="bandits: got 0 live arms"):
        Bandits(arms=8, live=0)
