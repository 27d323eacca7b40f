"""``kshot.control``, and control tasks in the core: budgets, keys, actions, ends, and what fits a policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from attrs import frozen
from torch import Tensor, nn

import kshot
from kshot import Needs, Rollout, TaskSpec, control
from kshot.checks import mismatches
from kshot.episode import Environment, Metered, Policy, map_tensors, one_task, register_value, slice_tasks, stack
from kshot.errors import DataError, MisfitError, TrainingError
from kshot.kinds import KINDS
from kshot.sampling import check_episode
from kshot.testing import sample_tasks

KEY = torch.tensor([3, -5, 2**62])


def still(x: Tensor) -> Tensor:
    """Return actions of zeros."""
    return torch.zeros_like(x)


# --- Budget and random numbers ----------------------------------------------------------------------------


def test_rollouts_beyond_the_budget_are_refused() -> None:
    """The message gives the requested number and the budget."""
    assert control.rollout_key(KEY, 1, 2).shape == (3,)
    with pytest.raises(DataError, match="got a request for rollout 2, expected 0 to 1, a budget of 2"):
        control.rollout_key(KEY, 2, 2)
    with pytest.raises(DataError, match="got a request for rollout -1, expected a number from 0 on"):
        control.rollout_key(KEY, -1)


def test_keys_of_rollouts_are_their_own_and_each_tasks_own() -> None:
    """No two numbers, tasks or purposes share a key, and the key of a task does not depend on its neighbours."""
    keys = [control.rollout_key(control.own_key(KEY, p), n) for p in ("support", "query") for n in range(4)]
    assert len(set(torch.cat(keys).tolist())) == 24
    assert torch.equal(control.rollout_key(KEY[1:2], 3), control.rollout_key(KEY, 3)[1:2])
    assert torch.equal(control.rollout_key(KEY[1], 3), control.rollout_key(KEY, 3)[1])


@pytest.mark.parametrize("draw", [control.normals, control.uniforms])
def test_noise_is_each_tasks_own(draw: Callable[..., Tensor]) -> None:
    """The numbers of each task equal those drawn from ``kshot.generator``."""
    numbers = draw(KEY, "actions", 4, 5)
    assert numbers.shape == (3, 4, 5)
    by_hand = torch.randn if draw is control.normals else torch.rand
    for b in range(3):
        assert torch.equal(numbers[b], by_hand(4, 5, generator=kshot.generator(KEY[b], "actions")))
        assert torch.equal(numbers[b], draw(KEY[b], "actions", 4, 5))
    assert not torch.equal(numbers, draw(KEY, "other", 4, 5))


def test_while_adapting_each_number_is_played_once() -> None:
    """This also holds after other numbers were played, and a refused request changes nothing."""
    episode = sample_tasks.Points(rollouts=2).sample("train", [0])
    source = episode.for_adapting("independent").source
    assert isinstance(source, Environment)
    source.rollout(still, 0)
    source.rollout(still, 1)
    with pytest.raises(DataError, match=r"got rollout 0 a second time.*rollout\(policy, 2\)"):
        source.rollout(still, 0)
    with pytest.raises(DataError, match="budget of 2"):
        source.rollout(still, 2)


def test_an_episode_may_be_adapted_to_twice() -> None:
    """An episode is a value: each adaptation has the full budget and the same random numbers."""
    episode = sample_tasks.Points(rollouts=1).sample("train", [0])
    first, second = (episode.for_adapting("independent").source.rollout(still) for _ in range(2))
    assert torch.equal(first.rewards, second.rewards)


def test_slices_of_a_metered_environment_are_counted_apart() -> None:
    """A learner that is lifted by a loop plays rollout 0 of each task."""
    support = sample_tasks.Points().sample("train", [0, 1]).for_adapting("independent")
    parts = [one_task(support, b).source for b in range(2)]
    assert all(isinstance(part, Metered) for part in parts)
    for part in parts:
        assert part.rollout(still).rewards.shape == (4, 5)
    with pytest.raises(DataError, match="a second time"):
        parts[0].rollout(still)


def test_environments_travel_with_their_episodes() -> None:
    """Environments are cast, sliced, stacked and cut to one task as tensors are."""
    tasks = sample_tasks.Points()
    episodes = tasks.sample("test", [0, 1, 2])
    rewards = episodes.query.source.rollout(still).rewards
    double = map_tensors(lambda t: t.double() if t.is_floating_point() else t, episodes)
    assert double.query.source.goal.dtype == torch.float64
    assert double.query.source.rollout(still).rewards.dtype == torch.float64
    assert torch.equal(slice_tasks(episodes, 1, 3).query.source.rollout(still).rewards, rewards[1:])
    assert torch.equal(one_task(episodes, 2).query.source.rollout(still).rewards, rewards[2])
    stacked = stack([tasks.sample("test", [i]) for i in range(3)])
    assert torch.equal(stacked.query.source.rollout(still).rewards, rewards)


def test_other_sources_stay_as_they_are() -> None:
    """A source that is not registered can't be sliced; it is passed on unchanged."""

    @frozen(eq=False)
    class Simulator:
        goal: Tensor

        def rollout(self, policy: Policy, number: int = 0) -> Rollout:
            raise NotImplementedError

    episode = sample_tasks.Points().sample("train", [0, 1])
    simulator = Simulator(torch.zeros(2))
    episode = attrs.evolve(episode, support=attrs.evolve(episode.support, source=simulator))
    assert slice_tasks(episode, 0, 1).support.source is simulator
    register_value(Simulator, "goal")
    assert slice_tasks(episode, 0, 1).support.source.goal.shape == (1,)


# --- Actions and ends -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "space", "message"),
    [
        (torch.zeros(3, 4), {"target_shape": (2,)}, r"float32 of shape \[3, 4\], expected real numbers .* \[3, 4, 2\]"),
        (torch.zeros(3, 4, 2).long(), {"target_shape": (2,)}, "got actions that are torch.int64"),
        (torch.zeros(3, 4), {"way": 2}, r"got actions that are torch.float32 .* expected int64 of shape \[3, 4\]"),
        (torch.full((3, 4), 2), {"way": 2}, "got actions from 2 to 2, expected numbers from 0 to 1"),
        (torch.full((3, 4), -1), {"way": 2}, "got actions from -1 to -1, expected numbers from 0 to 1"),
    ],
)
def test_wrong_actions_are_refused(action: Tensor, space: dict[str, Any], message: str) -> None:
    """They are refused at the first step, before an indexing error deep in an environment."""
    act = control.playing(lambda x: action, KEY, (4, 5), **space)
    with pytest.raises(TrainingError, match=message):
        act(torch.zeros(3, 4, 1))


def test_a_policy_that_begins_plays_what_begin_returns() -> None:
    """``begin`` gets the rollout's key and shape; a policy without ``begin`` plays itself."""

    class Beginning:
        def __call__(self, x: Tensor) -> Tensor:
            raise AssertionError

        def begin(self, key: Tensor, shape: tuple[int, int]) -> Callable[[Tensor], Tensor]:
            assert key is KEY
            assert shape == (4, 5)
            return lambda x: torch.ones(3, 4)

    assert control.playing(Beginning(), KEY, (4, 5))(torch.zeros(3, 4, 1)).sum() == 12
    assert control.playing(lambda x: torch.zeros(3, 4), KEY, (4, 5))(torch.zeros(3, 4, 1)).sum() == 0


def test_nothing_counts_after_the_end() -> None:
    """The step that ends a trajectory counts; the steps after its first end do not."""
    rewards = torch.tensor([[[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]]])
    ended = torch.tensor([[[False, True, False, True], [False] * 4]])
    played = control.recorded(rewards[..., None], rewards, rewards, ended)
    assert played.running.tolist() == [[[True, True, False, False], [True] * 4]]
    assert played.rewards.tolist() == [[[1, 2, 0, 0], [1, 2, 3, 4]]]


def test_rewards_after_the_end_may_be_anything() -> None:
    """They are replaced by 0, also if they are NaN or infinite; a product with 0 would be NaN."""
    rewards = torch.tensor([[[1.0, torch.nan, -torch.inf]]])
    ended = torch.tensor([[[True, False, False]]])
    assert control.recorded(rewards[..., None], torch.zeros(1, 1, 3), rewards, ended).rewards.tolist() == [[[1, 0, 0]]]


def test_numbers_that_are_not_finite_are_refused_with_their_place() -> None:
    """The message gives task, trajectory and step, and names what was wrong first; after the end nothing is checked."""
    fine, rewards = torch.zeros(2, 3, 4, 2), torch.zeros(2, 3, 4)
    actions, late = fine.clone(), rewards.clone()
    actions[1, 2, 3], late[0, 1, 3], late[1, 2, 2:] = torch.nan, torch.inf, torch.nan
    with pytest.raises(TrainingError, match="policy: got a NaN or infinite action in step 3 of trajectory 2 of task 1"):
        control.recorded(fine, actions, rewards)
    with pytest.raises(TrainingError, match="in step 3 of trajectory 2, expected finite numbers;"):
        control.recorded(fine[1], actions[1], rewards[1])
    with pytest.raises(DataError, match="mine: got a NaN or infinite reward in step 2 of trajectory 2 of task 1,"):
        control.recorded(fine, actions, late, who="mine")
    # In the same step, the observation is before the action, and the action before the reward.
    with pytest.raises(DataError, match="environment: got a NaN or infinite observation in step 3 of trajectory 2 of"):
        control.recorded(actions, actions, late.nan_to_num(posinf=0))
    with pytest.raises(TrainingError, match="action in step 3 of trajectory 2,"):
        control.recorded(fine[1], actions[1], actions[1, ..., 0])
    ended = torch.zeros(2, 3, 4, dtype=torch.bool)
    ended[..., 1] = True
    assert not control.recorded(actions, actions, late, ended).running[..., 2:].any()
    # A sum of finite numbers that overflows is no fault.
    control.recorded(fine, fine, torch.full((2, 3, 4), 3e38))


def test_a_rollout_runs_to_its_end_by_default() -> None:
    """Simple environments need not give ends."""
    played = Rollout(torch.zeros(1, 2, 3, 1), torch.zeros(1, 2, 3), torch.zeros(1, 2, 3))
    assert played.running.all()
    assert played.running.shape == (1, 2, 3)


def test_the_score_is_the_mean_return_and_what_the_environment_judges() -> None:
    """Two trajectories with undiscounted returns 3 and 5 have the mean 4."""

    class Fixed:
        def rollout(self, policy: Policy, number: int = 0) -> Rollout:
            assert number == 0
            rewards = torch.tensor([[[1.0, 2.0], [2.0, 3.0]]])
            return Rollout(rewards[..., None], rewards, rewards, scores={"success": torch.tensor([[True, False]])})

    episode = sample_tasks.Points().sample("train", [0])
    episode = attrs.evolve(episode, query=attrs.evolve(episode.query, source=Fixed()))
    scores = KINDS["control"].score(still, episode)
    assert {name: values.tolist() for name, values in scores.items()} == {"return": [4.0], "success": [0.5]}


@pytest.mark.parametrize("part", ["support", "query"])
def test_an_episode_without_environments_is_refused_at_the_door(part: str) -> None:
    """It is refused before a learner asks for a rollout."""
    tasks = sample_tasks.Points()
    episode = tasks.sample("train", [0])
    check_episode(episode, tasks.spec, "points")
    spoilt = attrs.evolve(episode, **{part: attrs.evolve(getattr(episode, part), source=None)})
    with pytest.raises(DataError, match=f"points: {part}.source: got NoneType, expected an environment"):
        check_episode(spoilt, tasks.spec, "points")


# --- What fits ------------------------------------------------------------------------------------


def spec(**fields: Any) -> TaskSpec:
    return TaskSpec(**{"kind": "control", "input_shape": (2,), "target_shape": (2,), "shot": 4, "query": 3, **fields})


def test_updates_beyond_the_budget_do_not_fit() -> None:
    """The mismatch is found before any compute, and the message gives both numbers."""
    needs = Needs(kinds=("control",), rollouts=3)
    (mismatch,) = mismatches(needs, spec(rollouts=2))
    assert "plays 3 rollouts while adapting, the tasks allow 2" in mismatch
    assert mismatches(needs, spec(rollouts=3)) == []
    assert mismatches(needs, spec(rollouts=None)) == []
    other_kind = Needs(kinds=("classification",), rollouts=3)
    plain = TaskSpec(kind="classification", input_shape=(2,), way=3, shot=1, query=1, rollouts=0)
    assert mismatches(other_kind, plain) == []


@pytest.mark.parametrize(
    ("takes", "fits"), [("any", (True, True)), ("discrete", (True, False)), ("continuous", (False, True))]
)
def test_a_policy_for_one_sort_of_actions_fits_only_those(takes: Any, fits: tuple[bool, bool]) -> None:
    """A learner that computes a value for each action can't take real numbers as actions."""
    needs = Needs(kinds=("control",), actions=takes)
    for tasks, fit in zip((spec(way=3, target_shape=()), spec()), fits, strict=True):
        problems = mismatches(needs, tasks)
        assert (problems == []) == fit
        if not fit:
            assert f"policies take {takes} actions" in problems[0]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"input_shape": (3,)}, r"built for input_shape \(2,\), the tasks have \(3,\)"),
        ({"target_shape": (3,)}, r"built for continuous actions of shape \[2\], the tasks have .* of shape \[3\]"),
        ({"target_shape": (), "way": 4}, r"built for continuous actions of shape \[2\], the tasks have 4 discrete"),
        ({"target_range": (-1, 1)}, r"the tasks have continuous actions of shape \[2\] in \[-1\.0, 1\.0\]"),
    ],
)
def test_an_environment_with_other_spaces_does_not_fit_a_policy(other: dict[str, Any], message: str) -> None:
    """Evaluating a learner on other tasks than it was built for gives one message, in the terms of control."""

    class Any_(nn.Module):
        needs = Needs(kinds=("control",), variable_way=True)

    with pytest.raises(MisfitError, match=message) as raised:
        kshot.check(Any_(), spec(**other), built_for=spec())
    assert str(raised.value).count("\n  - ") == 1


@pytest.mark.parametrize("fields", [{"way": (2, 3), "target_shape": ()}, {"way": 2}, {"rollouts": -1}])
def test_a_spec_of_actions_that_can_not_be_is_refused(fields: dict[str, Any]) -> None:
    """Actions are either discrete or continuous, and a budget is not negative."""
    with pytest.raises(DataError, match="TaskSpec: "):
        spec(**fields)


def test_a_control_spec_survives_json() -> None:
    """Checkpoints store and compare the specification as JSON."""
    made = spec(target_range=(-0.1, 0.1), rollouts=3)
    assert TaskSpec.from_json(made.to_json()) == made


# --- Demonstrations ---------------------------------------------------------------------------------------


def test_demonstrations_of_any_lengths_are_one_support() -> None:
    """The examples are the steps of all demonstrations, in order, copied; nothing is padded."""
    spec = TaskSpec(kind="regression", input_shape=(2,), target_shape=(1,))
    seen = [torch.randn(T, 2) for T in (3, 5)]
    taken = [torch.randn(T, 1).numpy() for T in (3, 5)]
    support = control.demonstrations(list(zip(seen, taken, strict=True)), spec)
    assert torch.equal(support.x[0], torch.cat(seen))
    assert torch.equal(support.y[0], torch.cat([torch.from_numpy(y) for y in taken]))
    seen[0].zero_()
    assert support.x[0, :3].abs().min() > 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_demonstrated_classes_are_numbers_of_actions(dtype: torch.dtype) -> None:
    """Actions of any type become int64, and bytes are no pixels; some may be absent."""
    spec = sample_tasks.Demonstrations(discrete=True).spec
    support = control.demonstrations([(torch.zeros(3, 1), torch.ones(3, dtype=dtype))], spec)
    assert support.y.tolist() == [[1, 1, 1]]
    assert (support.y.dtype, support.way) == (torch.int64, 2)
    for wrong in ([0, 1, 2], [0, 0.5, 1], [-1, 0, 0]):
        with pytest.raises(DataError, match="expected whole numbers from 0 to 1"):
            control.demonstrations([(torch.zeros(3, 1), wrong)], spec)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ((4, 2), (3, 1), r"got actions of shape \(3, 1\) in demonstration 1, expected \(4, 1\)"),
        ((4, 3), (4, 1), r"got observations of shape \(4, 3\) in demonstration 1, expected \(4, 2\)"),
        ((4, 2), (4, 2), r"got actions of shape \(4, 2\)"),
    ],
)
def test_demonstrations_of_another_environment_are_refused(x: Any, y: Any, message: str) -> None:
    """The message names the demonstration, what it has and what the tasks have."""
    spec = TaskSpec(kind="regression", input_shape=(2,), target_shape=(1,))
    right = torch.zeros(2, 2), torch.zeros(2, 1)
    with pytest.raises(DataError, match=message):
        control.demonstrations([right, (torch.zeros(x), torch.zeros(y))], spec)


def test_demonstrations_that_are_empty_or_not_finite_are_refused() -> None:
    """NaN is named with its place, before anything is computed."""
    spec = TaskSpec(kind="regression", input_shape=(2,), target_shape=(1,))
    with pytest.raises(DataError, match="demonstrations: got no step, expected at least one"):
        control.demonstrations([], spec)
    bad = torch.zeros(2, 2)
    bad[1, 0] = torch.nan
    with pytest.raises(DataError, match=r"observations of demonstration 0: got 1 of 4 values that are NaN"):
        control.demonstrations([(bad, torch.zeros(2, 1))], spec)
    with pytest.raises(DataError, match=r"actions of demonstration 0: got 2 of 2 values"):
        control.demonstrations([(torch.zeros(2, 2), torch.full((2, 1), torch.inf))], spec)
