"""The adapter plays what gymnasium plays, and refuses what does not fit."""

import copy
import pickle

import attrs
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv

import kshot
from kshot.errors import DataError, MisfitError, OptionError
from kshot_gymnasium import CartPole, Family, GymnasiumTasks, OneOf, Pendulum, Registered, Uniform
from kshot_gymnasium.families import seeds_of


class Counter(gymnasium.Env):
    """Observe the number of steps and reward it times ``gain``; terminate after ``last`` steps."""

    observation_space = spaces.Box(0.0, 100.0, (1,))
    action_space = spaces.Box(-1.0, 1.0, (2,))

    def __init__(self, broken=None):
        self.gain, self.last, self.broken, self.got, self.word = 1.0, 100, broken, [], "text"

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.t = seed, 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        self.got.append(action.copy())
        reward = np.nan if self.broken == "reward" and self.t == 3 else self.gain * self.t
        seen = np.inf if self.broken == "observation" and self.t == 2 else self.t
        return np.full(1, seen, np.float32), reward, self.t >= self.last, False, {}


def counters(broken=None, **parameters):
    make = lambda n: SyncVectorEnv([lambda: Counter(broken)] * n)  # noqa: E731
    return Family("counters", make, parameters or {"gain": Uniform(1.0, 2.0)})


def tasks_of(family, **options):
    return GymnasiumTasks(family, **{"shot": 3, "query": 2, "horizon": 5, **options})


def still(x):
    return x.new_zeros(*x.shape[:2], 2)


def test_every_trajectory_has_its_tasks_parameters_and_its_own_seed():
    """Rewards are those of the task's own gain, and the seeds depend on the key of the rollout alone."""
    tasks = tasks_of(counters())
    e = tasks.sample("train", [4, 7])
    played = e.support.source.rollout(still)
    gain = torch.from_numpy(e.origin.fields["gain"])
    expected = gain[:, None, None] * torch.arange(1, 6)
    assert torch.allclose(played.rewards, expected.expand(2, 3, 5))
    assert torch.equal(played.observations[0, 0, :, 0], torch.arange(5.0))
    assert bool((gain >= 1).all() & (gain <= 2).all())
    assert gain[0] != gain[1]
    of_two = [env.unwrapped.seed for env in tasks.family.vector(6).envs]
    assert len(set(of_two)) == 6
    tasks.sample("train", [7]).support.source.rollout(still)
    assert [env.unwrapped.seed for env in tasks.family.vector(3).envs] == of_two[3:]
    e.support.source.rollout(still, 1)
    assert not set(of_two) & {env.unwrapped.seed for env in tasks.family.vector(6).envs}
    assert seeds_of(np.array([1, 2], np.uint64), 4).max() < 2**63


def test_actions_are_clipped_for_the_environment_and_recorded_as_they_were():
    """The rollout has them as the policy chose them."""
    tasks = tasks_of(counters())
    played = tasks.sample("train", [0]).support.source.rollout(lambda x: 3 * torch.ones(1, 3, 2))
    assert bool((played.actions == 3).all())
    assert all((a == 1).all() and a.dtype == np.float32 for a in tasks.family.vector(3).envs[0].unwrapped.got)


def test_a_trajectory_ends_when_its_environment_does():
    """Each task has its own end; rewards after it are 0, also those of the next episode of the environment."""
    tasks = tasks_of(counters(last=OneOf((2.0, 4.0))))
    e = tasks.sample("train", range(6))
    played = e.support.source.rollout(still)
    last = torch.from_numpy(e.origin.fields["last"])
    assert set(last.tolist()) == {2.0, 4.0}
    assert torch.equal(played.running.sum(-1), last.long()[:, None].expand(6, 3))
    assert torch.equal(played.rewards.sum(-1), (last * (last + 1) / 2)[:, None].expand(6, 3))


@pytest.mark.parametrize(("name", "step"), [("reward", 2), ("observation", 2)])
def test_numbers_that_are_not_finite_are_refused(name, step):
    """The message names environment, step and trajectory."""
    with pytest.raises(DataError, match=f"counters: got a NaN or infinite {name} in step {step} of trajectory 0 of t"):
        tasks_of(counters(name)).sample("train", [0, 1]).support.source.rollout(still)
    # A policy that computes with an infinite observation is not blamed for it.
    if name == "observation":
        with pytest.raises(DataError, match="counters: got a NaN or infinite observation in step 2"):
            tasks_of(counters(name)).sample("train", [0]).support.source.rollout(lambda x: x.expand(1, 3, 2) - x)
    # After the end of a trajectory they mean nothing.
    ends = tasks_of(counters(name, last=OneOf((2.0,))))
    assert ends.sample("train", [0]).support.source.rollout(still).rewards.isfinite().all()


def test_cart_poles_are_those_of_gymnasium():
    """Each step equals that of gymnasium's ``CartPoleEnv`` with the length and force of the task, in float64."""
    from gymnasium.envs.classic_control.cartpole import CartPoleEnv

    e = CartPole(shot=2, query=1, horizon=60, actions="exchanged", seed=1).sample("train", range(8))
    e = kshot.episode.map_tensors(lambda x: x.double() if x.is_floating_point() else x, e)
    played = e.support.source.rollout(lambda x: (x[..., 2] + x[..., 3] > 0).long())
    falls, signs = 0, set()
    for b in range(8):
        env = CartPoleEnv()
        fields = {name: float(values[b]) for name, values in e.origin.fields.items()}
        signs.add(fields["sign"])
        env.length, env.force_mag = fields["length"], fields["force"]
        env.polemass_length = env.masspole * env.length
        for i in range(2):
            env.reset()
            env.state = played.observations[b, i, 0].numpy()
            for t in range(int(played.running[b, i].sum())):
                action = int(played.actions[b, i, t])
                seen, reward, terminated, _, _ = env.step(action if fields["sign"] > 0 else 1 - action)
                assert reward == float(played.rewards[b, i, t])
                last = t == 59 or not bool(played.running[b, i, t + 1])
                assert terminated <= last
                falls += terminated
                if not last:
                    assert np.allclose(seen, played.observations[b, i, t + 1].numpy(), atol=1e-6)
    assert falls > 0
    assert signs == {-1.0, 1.0}
    assert float(played.observations[:, :, 0].abs().max()) <= 0.05


def test_pendulums_are_those_of_gymnasium():
    """Each step equals that of gymnasium's ``PendulumEnv`` with the mass of the task, torques above 2 included."""
    from gymnasium.envs.classic_control.pendulum import PendulumEnv

    e = Pendulum(shot=2, query=1, horizon=40, seed=1).sample("train", range(3))
    noise = 3 * torch.randn(40, 3, 2, 1, generator=torch.Generator().manual_seed(0))
    steps = iter(noise)
    played = e.support.source.rollout(lambda x: next(steps))
    for b in range(3):
        env = PendulumEnv()
        env.m = float(e.origin.fields["m"][b])
        for i in range(2):
            env.reset()
            cos, sin, speed = played.observations[b, i, 0].tolist()
            env.state = np.array([np.arctan2(sin, cos), speed])
            for t in range(40):
                seen, reward, *_ = env.step(played.actions[b, i, t].numpy())
                assert reward == pytest.approx(float(played.rewards[b, i, t]), abs=1e-3)
                if t < 39:
                    assert np.allclose(seen, played.observations[b, i, t + 1].numpy(), atol=1e-4)


def test_the_cost_of_a_torque_is_that_of_the_torque_which_acts():
    """The environment itself clips the torque too, as gymnasium's does, for users who step it without the adapter."""
    vector = Pendulum(horizon=1).family.vector(2)
    at, _ = vector.reset(seed=[0, 1])
    rewards = vector.step(np.array([[3.0], [-5.0]]))[1]
    angle = np.arctan2(at[:, 1].astype(float), at[:, 0])
    assert np.allclose(rewards, -(angle**2 + 0.1 * at[:, 2] ** 2 + 0.001 * 2.0**2), atol=1e-5)


def test_starts_are_those_of_their_seeds():
    """They are uniform, and do not depend on the neighbours; one number gives each environment its own seed."""
    vector = Pendulum(horizon=1).family.vector(2000)
    both, _ = vector.reset(seed=list(range(2000)))
    alone, _ = Pendulum(shot=1).family.vector(1).reset(seed=[3])
    assert np.array_equal(both[3], alone[0])
    angle = np.arctan2(both[:, 1], both[:, 0])
    assert abs(angle.mean()) < 4 * 1.81 / 2000**0.5
    assert np.abs(both[:, 2]).max() <= 1
    from_zero, _ = vector.reset(seed=0)
    assert np.array_equal(from_zero, both)
    unseeded, _ = vector.reset()
    assert not np.array_equal(unseeded, both)


def test_parameters_are_uniform_in_their_range():
    """Splits and episodes have different ones, and the origin tells them."""
    tasks = Pendulum(mass=(0.5, 1.5))
    mass = tasks.sample("train", range(2000)).origin.fields["m"]
    assert 0.5 <= mass.min() < 0.51
    assert 1.49 < mass.max() <= 1.5
    assert abs(mass.mean() - 1.0) < 4 * 0.289 / 2000**0.5
    assert not np.array_equal(mass[:5], tasks.sample("test", range(5)).origin.fields["m"])


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (spaces.MultiDiscrete([2, 3]), "got actions of the space MultiDiscrete.*expected a Discrete space or a Box"),
        (spaces.Discrete(3, start=1), "expected at least two, counted from 0"),
        (spaces.Discrete(1), "expected at least two"),
        (spaces.Box(0, 3, (2,), np.int64), "expected a Discrete space or a Box of real numbers"),
        (spaces.Box(np.float32([-1, -2]), np.float32([1, 2])), "same finite bounds.*RescaleAction"),
        (spaces.Box(-np.inf, np.inf, (2,)), "same finite bounds"),
    ],
)
def test_action_spaces_that_no_policy_fits_are_refused(space, expected):
    """The message says how to wrap the environment."""

    class Other(Counter):
        action_space = space

    make = lambda n: SyncVectorEnv([Other] * n)  # noqa: E731
    with pytest.raises(DataError, match=f"others: {'.*' if expected[0] != 'g' else ''}{expected}"):
        tasks_of(Family("others", make, {"gain": Uniform(0, 1)}))


def test_observation_spaces_that_no_policy_fits_are_refused():
    """A discrete observation has no numbers to compute with."""

    class Other(Counter):
        observation_space = spaces.Discrete(4)

    make = lambda n: SyncVectorEnv([Other] * n)  # noqa: E731
    with pytest.raises(DataError, match=r"others: got observations of the space Discrete\(4\), expected a Box; wrap"):
        tasks_of(Family("others", make, {"gain": Uniform(0, 1)}))


def test_a_policy_for_other_spaces_does_not_fit():
    """The mismatch is reported before anything is played."""
    cartpole, pendulum = CartPole(horizon=5), Pendulum(horizon=5)
    pytest.importorskip("kshot_maml_rl")
    engine = kshot.Engine(kshot.learner("maml-rl", cartpole.spec), cartpole)
    with pytest.raises(MisfitError):
        engine.evaluate(1, tasks=pendulum)


def test_bad_options_are_refused():
    """The message says what was given, what was expected, and what to do."""
    with pytest.raises(OptionError, match="cartpole: got shot 0, horizon -1, expected at least 1"):
        CartPole(shot=0, horizon=-1)
    with pytest.raises(OptionError, match="cartpole: got a least force of -5, expected more than 0"):
        CartPole(force=(-5, 5))
    with pytest.raises(OptionError, match="cartpole: got actions 'odd', expected 'fixed' or 'exchanged'"):
        CartPole(actions="odd")
    with pytest.raises(OptionError, match="pendulum: got a least mass of 0"):
        Pendulum(mass=(0, 1))
    for ends in ((2.0, 1.0), (1.0, float("inf")), (float("nan"), 1.0)):
        with pytest.raises(OptionError, match="gymnasium: got a range from"):
            Registered(range=ends)
    with pytest.raises(OptionError, match="got the environment 'NoSuch-v0', expected the full name of a registered"):
        Registered(environment="NoSuch-v0")
    with pytest.raises(OptionError, match="got the environment 'antigravity:CartPole-v1', expected the full name"):
        Registered(environment="antigravity:CartPole-v1")  # gymnasium would import the module
    with pytest.raises(OptionError, match="got the parameter '__class__', expected the name of a public attribute"):
        Registered(parameter="__class__")
    with pytest.raises(DataError, match="got the parameter 'weight', which its environments do not have"):
        Registered(parameter="weight")
    with pytest.raises(DataError, match="got the parameter 'word', whose value is 'text', expected an attribute"):
        tasks_of(counters(word=Uniform(0, 1)))


def test_only_the_last_sizes_are_kept_and_a_copy_has_its_own_environments():
    """Environments that are not needed are closed."""
    family = Pendulum(shot=1).family
    first = family.vector(1)
    assert family.vector(1) is first
    for n in (2, 3, 4, 1, 5):
        family.vector(n)
    assert family.vector(1) is first  # it was used after the others
    assert len(family._kept) == 4
    for other in (copy.deepcopy(family), pickle.loads(pickle.dumps(family))):
        assert other.vector(1) is not first
        assert list(other.parameters) == ["m"]


def test_registered_environments_have_no_other_limit_of_time():
    """``Pendulum-v1`` is registered with 200 steps, and the horizon may be longer; its ``g`` differs by task."""
    tasks = Registered(shot=1, query=1, horizon=210)
    e = tasks.sample("train", [0])
    assert e.support.source.rollout(lambda x: x[..., :1]).running.all()
    assert tasks.family.vector(1).envs[0].unwrapped.g == pytest.approx(float(e.origin.fields["g"][0]))


class Runner(gymnasium.Env):
    """Run at a speed of 1.5, with a reward of its own."""

    observation_space, action_space = spaces.Box(-1.0, 1.0, (1,)), spaces.Box(-1.0, 1.0, (2,))

    def step(self, action):
        return np.zeros(1, np.float32), 100.0, False, False, {"x_velocity": 1.5}


@pytest.mark.parametrize(("kind", "goal", "reward"), [("velocity", 2.0, -0.5), ("direction", -1.0, -1.5)])
def test_the_reward_of_a_goal_replaces_that_of_the_environment(kind, goal, reward):
    """By hand: the distance to the speed or the speed in the direction, less 0.05 (0.6^2 + 0.8^2). No MuJoCo needed."""
    from kshot_gymnasium.half_cheetah import WithGoal

    env = WithGoal(Runner(), kind)
    env.goal = goal
    assert env.step(np.array([0.6, 0.8]))[1] == pytest.approx(reward - 0.05)


def test_half_cheetahs_are_rewarded_for_their_goal():
    """The reward is minus the distance to the speed, or the speed in the direction, minus the costs of the action."""
    pytest.importorskip("mujoco")
    pytest.importorskip("imageio")
    from kshot_gymnasium import HalfCheetah

    for goal in ("velocity", "direction"):
        e = HalfCheetah(shot=1, query=1, horizon=4, goal=goal).sample("train", range(3))
        played = e.support.source.rollout(lambda x: 0.5 * x.new_ones(3, 1, 6))
        goals = e.origin.fields["goal"]
        for b in range(3):
            env = gymnasium.make("HalfCheetah-v5")
            key = kshot.control.rollout_key(e.support.source.key, 0)
            env.reset(seed=int(seeds_of(key.numpy().view(np.uint64), 1)[b, 0]))
            for t in range(4):
                speed = env.step(np.full(6, 0.5, np.float32))[-1]["x_velocity"]
                expected = -abs(speed - goals[b]) if goal == "velocity" else goals[b] * speed
                assert float(played.rewards[b, 0, t]) == pytest.approx(expected - 0.05 * 6 * 0.25, abs=1e-5)
    with pytest.raises(OptionError, match="half-cheetah: got goal 'jump', expected 'velocity' or 'direction'"):
        HalfCheetah(goal="jump")


def test_without_mujoco_the_error_says_what_to_install(monkeypatch):
    """MuJoCo is an extra."""
    from kshot_gymnasium import HalfCheetah, half_cheetah

    monkeypatch.setattr(half_cheetah.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"got no module mujoco, expected MuJoCo.*kshot-gymnasium.mujoco."):
        HalfCheetah()


def test_environments_are_values():
    """Their tensors are moved and cast with their episode."""
    e = Pendulum(shot=1, query=1, horizon=3).sample("train", [0, 1])
    double = kshot.episode.map_tensors(lambda x: x.double() if x.is_floating_point() else x, e)
    assert double.support.source.rollout(lambda x: x[..., :1]).rewards.dtype == torch.float64
    assert attrs.fields_dict(type(e.support.source))["key"] is not None
