"""Tiny task distributions of every kind, on which the kit tries learners. Good for any test of a learner.

Letters: B meta-batch, N way, T time, P parameters of an optimizee, E trajectories a task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import attrs
import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray
from torch import Tensor

from kshot import control
from kshot.episode import Episode, Examples, Objective, Origin, Policy, Rollout, Support, register_value
from kshot.errors import DataError
from kshot.protocols import TaskDistribution
from kshot.randomness import U64, as_tensor, episode_keys, normal, uniform
from kshot.sampling import ClassificationTasks, Pool
from kshot.spec import Count, Needs, TaskSpec

Factory = Callable[[], TaskDistribution]

INPUT_SHAPES = ((6,), (1, 16, 16), (1, 28, 28), (3, 32, 32))
"""What classification learners are tried on, in this order: vectors where they take them, else images."""


def normals(keys: U64, purpose: str, *shape: int) -> Tensor:
    """Standard normal float32 numbers [B, *shape]."""
    return torch.from_numpy(normal(keys, purpose, int(np.prod(shape)))).float().view(len(keys), *shape)


def origin_of(spec: TaskSpec, seed: int, split: str, indices: Sequence[int]) -> Origin:
    """The origin of episodes without classes or example identities.

    Raises:
        DataError: the split is unknown, or there are no indices.
    """
    if split not in spec.splits:
        raise DataError(f"unknown split {split!r}; these tasks have {', '.join(spec.splits)}")
    if not len(indices):
        raise DataError("sample: no indices came, expected at least one")
    return Origin(split, tuple(indices), seed)


# --- Classification -------------------------------------------------------------------------------


def classification(
    way: Count = 3,
    shot: Count = 2,
    query: Count = 3,
    seed: int = 0,
    *,
    input_shape: tuple[int, ...] = (6,),
    semantics: int | None = None,
    unlabelled: int = 0,
    external: int = 0,
    block: int = 1,
) -> TaskDistribution:
    """Ten classes a split, each a centre with noise around it.

    Args:
        way, shot, query, seed, block: see ``kshot.ClassificationTasks``.
        input_shape: (n,) for vectors; (channels, height, width) for images, whose values are in [0, 1].
        semantics: length A of a class's vector (a linear view of its centre), or None.
        unlabelled, external: examples without labels, and labelled ones from outside, that a view adds.
    """
    image, size, examples = len(input_shape) == 3, int(np.prod(input_shape)), 12
    pools = {}
    for split in ("train", "val", "test"):
        keys = episode_keys(0, f"sample/{split}", range(10))
        centres = normals(keys, "centre", 1, size)
        x = (centres + 0.4 * normals(keys, "examples", examples, size)).view(-1, *input_shape)
        mixing = normals(episode_keys(0, "sample/mixing", [0]), "mixing", size, semantics or 1)[0] / size**0.5
        pools[split] = Pool.of(
            torch.sigmoid(x) if image else x,
            np.repeat(np.arange(10), examples),
            names=[f"{split} {c}" for c in range(10)],
            semantics=None if semantics is None else centres[:, 0] @ mixing,
            input_range=(0.0, 1.0) if image else None,
        )
    tasks = ClassificationTasks(pools, way=way, shot=shot, query=query, block=block, seed=seed)
    return WithMore(tasks, unlabelled, external) if unlabelled or external else tasks


class WithMore:
    """A view of classification tasks that adds unlabelled inputs, external examples, or both, of the same split.

    Args:
        of: the tasks to add to.
        unlabelled, external: how many examples of each to add; 0 adds none.
    """

    def __init__(self, of: ClassificationTasks, unlabelled: int, external: int) -> None:
        self.of, self.unlabelled, self.external = of, unlabelled, external
        self.seed = of.seed
        more = [name for name, n in (("unlabelled", unlabelled), ("external", external)) if n]
        self.spec = attrs.evolve(of.spec, provides={*of.spec.provides, *more})

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Episodes of the tasks below, with unlabelled [B, U, *input] and external [B, E, *input]: examples of the
        split that are neither in support nor in query."""
        episode = self.of.sample(split, indices)
        pool, origin, n = self.of.pool(split), episode.origin, self.unlabelled
        ids, y = pool.table()
        keys = episode_keys(self.seed, f"{split}/more", indices)
        order = uniform(keys, "rows", len(ids))
        assert origin is not None
        shown = np.concatenate([origin.support_ids, origin.query_ids], 1)
        order[(ids[None, :, None] == shown[:, None]).any(-1)] = 1  # last of all
        chosen = order.argsort(1)[:, : n + self.external]
        x, labels = pool.gather(ids[chosen]), torch.from_numpy(y[chosen])
        if self.external:
            episode = attrs.evolve(episode, external=Examples(x[:, n:], labels[:, n:]))
        if n:
            episode = attrs.evolve(episode, support=attrs.evolve(episode.support, unlabelled=x[:, :n]))
            truth = self._truth(y, chosen[:, :n], origin)
            origin = attrs.evolve(origin, unlabelled_ids=ids[chosen[:, :n]], unlabelled_y=truth)
        return attrs.evolve(episode, origin=origin)

    @staticmethod
    def _truth(y: NDArray[np.int64], chosen: NDArray[np.int64], origin: Origin) -> NDArray[np.int64]:
        """The label in the episode of each example ``chosen`` [B, U], or -1."""
        same = y[chosen, None] == origin.classes[:, None]  # type: ignore[index]
        return np.where(same.any(-1), same.argmax(-1), -1)


# --- Regression -----------------------------------------------------------------------------------


class Lines:
    """Regression: y = w x + b with x in [-1, 1]^2 and w, b of the task.

    Args:
        shot, query: examples of support and query.
        seed: fixes all episodes.
    """

    def __init__(self, shot: int = 5, query: int = 4, seed: int = 0) -> None:
        self.seed = seed
        self.spec = TaskSpec(
            kind="regression",
            input_shape=(2,),
            target_shape=(1,),
            input_range=(-1.0, 1.0),
            shot=shot,
            query=query,
            split_by="index",
        )
        self._shot, self._examples = shot, shot + query

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """x [B, K, 2] and y [B, K, 1]; queries alike."""
        origin = origin_of(self.spec, self.seed, split, indices)
        keys = episode_keys(self.seed, split, indices)
        x = torch.from_numpy(2 * uniform(keys, "x", 2 * self._examples) - 1).float().view(len(keys), -1, 2)
        w = normals(keys, "line", 1, 3)
        y = (x * w[..., :2]).sum(-1, keepdim=True) + w[..., 2:]
        k = self._shot
        return Episode(Support(x[:, :k], y[:, :k], key=as_tensor(keys)), Examples(x[:, k:], y[:, k:]), origin=origin)


# --- Sequences ------------------------------------------------------------------------------------


class LabelStream:
    """A stream of noisy examples of ``way`` classes; each step shows the label of the step before, one-hot.

    The answer y_t thus comes with x_{t+1}: only what was seen before helps at step t.

    Args:
        way: classes in an episode.
        length: T, steps.
        seed: fixes all episodes.
    """

    def __init__(self, way: int = 3, length: int = 8, seed: int = 0) -> None:
        self.seed = seed
        self.spec = TaskSpec(
            kind="sequence",
            input_shape=(4 + way,),
            way=way,
            query=length,
            split_by="index",
            provides={"stream"},
        )
        self._way, self._length = way, length

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """x [B, T, 4 + N], y [B, T] int64; the support is empty."""
        origin = origin_of(self.spec, self.seed, split, indices)
        keys = episode_keys(self.seed, split, indices)
        B, N, T = len(keys), self._way, self._length
        y = torch.from_numpy((uniform(keys, "labels", T) * N).astype(np.int64))
        centres = normals(keys, "centres", N, 4)
        shown = centres[torch.arange(B)[:, None], y] + 0.1 * normals(keys, "noise", T, 4)
        before = torch.nn.functional.one_hot(y, N).float().roll(1, 1)
        before[:, 0] = 0
        x = torch.cat([shown, before], -1)
        support = Support(x[:, :0], y[:, :0], key=as_tensor(keys), way=N)
        return Episode(support, Examples(x, y), origin=origin)


class Copying:
    """Bits to remember: ``length`` random vectors are shown, and after a mark they are to be said again.

    Args:
        length: vectors to copy; the sequence has T = 2 length + 1 steps.
        bits: of one vector.
        seed: fixes all episodes.
    """

    def __init__(self, length: int = 3, bits: int = 2, seed: int = 0) -> None:
        self.seed = seed
        self.spec = TaskSpec(
            kind="sequence",
            input_shape=(bits + 1,),
            target_shape=(bits,),
            input_range=(0.0, 1.0),
            query=2 * length + 1,
            split_by="index",
        )
        self._length, self._bits = length, bits

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """x [B, T, bits + 1], y [B, T, bits] with NaN where no answer is asked; the support is empty."""
        origin = origin_of(self.spec, self.seed, split, indices)
        keys = episode_keys(self.seed, split, indices)
        B, n, bits = len(keys), self._length, self._bits
        shown = torch.from_numpy(uniform(keys, "bits", n * bits) < 0.5).float().view(B, n, bits)
        x = torch.zeros(B, 2 * n + 1, bits + 1)
        y = torch.full((B, 2 * n + 1, bits), torch.nan)
        x[:, :n, :bits], x[:, n, bits], y[:, n + 1 :] = shown, 1, shown
        return Episode(Support(x[:, :0], y[:, :0], key=as_tensor(keys)), Examples(x, y), origin=origin)


# --- Control --------------------------------------------------------------------------------------


@frozen(eq=False)
class PointEnvironment:
    """Points in the plane, each to be moved to its task's goal.

    Attributes:
        goal: [B, 2], unseen by the policy.
        key: of the environment's chance [B].
        trajectories, horizon: E and T of one rollout.
        rollouts: the budget, or None for any number.
    """

    goal: Tensor
    key: Tensor
    trajectories: int
    horizon: int
    rollouts: int | None = None

    @torch.no_grad()
    def rollout(self, policy: Policy, number: int = 0) -> Rollout:
        """Actions are displacements [B, E, 2], cut to [-1, 1]; the reward is minus the distance to the goal."""
        key = control.rollout_key(self.key, number, self.rollouts)
        act = control.playing(policy, key, (self.trajectories, self.horizon), target_shape=(2,))
        at = 0.1 * control.normals(key, "start", self.trajectories, 2).to(self.goal)
        seen, done, rewards = [], [], []
        for _ in range(self.horizon):
            seen.append(at)
            done.append(act(at))
            at = at + 0.3 * done[-1].clamp(-1, 1)
            rewards.append(-(at - self.goal[..., None, :]).norm(dim=-1))
        return control.recorded(torch.stack(seen, -2), torch.stack(done, -2), torch.stack(rewards, -1))


@frozen(eq=False)
class CorridorEnvironment:
    """Walkers that step left (0) or right (1); the trajectory ends at its task's end of the corridor.

    Attributes:
        end: where the rewarded end is, 3 or -3 [B], unseen by the policy.
        key: of the environment's chance [B].
        trajectories, horizon: E and T of one rollout.
        rollouts: the budget, or None for any number.
    """

    end: Tensor
    key: Tensor
    trajectories: int
    horizon: int
    rollouts: int | None = None

    @torch.no_grad()
    def rollout(self, policy: Policy, number: int = 0) -> Rollout:
        """Each step costs 0.1, the last one, three places from the middle, brings 1; one walker in ten slips."""
        key = control.rollout_key(self.key, number, self.rollouts)
        E, T = self.trajectories, self.horizon
        act = control.playing(policy, key, (E, T), way=2)
        slips = control.uniforms(key, "slips", E, T) < 0.1
        at = self.end.new_zeros(*key.shape, E)
        seen, done, ended = [], [], []
        for t in range(T):
            seen.append(at[..., None] / 3)
            done.append(act(seen[-1]))
            step = torch.where(slips[..., t], 1 - done[-1], done[-1])
            at = at + 2 * step - 1
            ended.append(at == self.end[..., None])
        over = torch.stack(ended, -1)
        rewards = torch.where(over, 1.0, -0.1).to(self.end)
        scores = {"reached": over.any(-1)}
        return control.recorded(torch.stack(seen, -2), torch.stack(done, -1), rewards, over, scores)


register_value(PointEnvironment, "goal", "key")
register_value(CorridorEnvironment, "end", "key")


class Points:
    """Control: reach a goal that only rewards tell of.

    Args:
        shot, query: trajectories of one rollout, in support and query.
        seed: fixes all episodes.
        rollouts: how many a learner may play while adapting.
    """

    def __init__(self, shot: int = 4, query: int = 3, seed: int = 0, rollouts: int = 8) -> None:
        self.seed = seed
        self.spec = TaskSpec(
            kind="control",
            input_shape=(2,),
            target_shape=(2,),
            target_range=(-1.0, 1.0),
            shot=shot,
            query=query,
            rollouts=rollouts,
            split_by="index",
        )
        self._shot, self._query = shot, query

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Environments as ``source`` of support and query; x and y are empty."""
        origin = origin_of(self.spec, self.seed, split, indices)
        keys = episode_keys(self.seed, split, indices)
        key, goal = as_tensor(keys), normals(keys, "goal", 2)
        support = PointEnvironment(goal, control.own_key(key, "support"), self._shot, 5, self.spec.rollouts)
        query = PointEnvironment(goal, control.own_key(key, "query"), self._query, 5)
        return control.episode(support, query, key, origin, self.spec)


class Corridors:
    """Control with discrete actions, and trajectories that end: walk to the end of the corridor that is rewarded.

    Args:
        shot, query: trajectories of one rollout, in support and query.
        seed: fixes all episodes.
        rollouts: how many a learner may play while adapting.
    """

    def __init__(self, shot: int = 4, query: int = 3, seed: int = 0, rollouts: int = 8) -> None:
        self.seed = seed
        self.spec = TaskSpec(
            kind="control", input_shape=(1,), way=2, shot=shot, query=query, rollouts=rollouts, split_by="index"
        )
        self._shot, self._query = shot, query

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Environments as ``source`` of support and query; x and y are empty."""
        origin = origin_of(self.spec, self.seed, split, indices)
        keys = episode_keys(self.seed, split, indices)
        key, end = as_tensor(keys), torch.where(torch.from_numpy(uniform(keys, "left", 1)[:, 0] < 0.5), -3.0, 3.0)
        support = CorridorEnvironment(end, control.own_key(key, "support"), self._shot, 6, self.spec.rollouts)
        query = CorridorEnvironment(end, control.own_key(key, "query"), self._query, 6)
        return control.episode(support, query, key, origin, self.spec)


# --- Objectives -----------------------------------------------------------------------------------


def quadratic(point: Tensor, data: tuple[Tensor, Tensor]) -> Tensor:
    """|A p - b|^2 / 2 of ``point`` [P] with ``data`` (A [P, P], b [P])."""
    matrix, target = data
    return 0.5 * (matrix @ point - target).square().sum()


class Quadratics:
    """Optimizees: quadratic functions of three parameters.

    Args:
        steps: T, how long an optimizer may run.
        seed: fixes all episodes.
    """

    def __init__(self, steps: int = 6, seed: int = 0) -> None:
        self.seed = seed
        self.spec = TaskSpec(kind="objective", input_shape=(), target_shape=(3,), query=steps, split_by="index")
        self._steps = steps

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """``source`` is the objective, of support and query; query.x [B, T] are the steps 1..T, which count alike."""
        origin = origin_of(self.spec, self.seed, split, indices)
        keys = episode_keys(self.seed, split, indices)
        B = len(keys)
        matrix = torch.eye(3) + 0.3 * normals(keys, "matrix", 3, 3)
        objective = Objective(normals(keys, "initial", 3), (matrix, normals(keys, "target", 3)), quadratic)
        steps = torch.arange(1.0, self._steps + 1).expand(B, -1)
        empty = torch.zeros(B, 0)
        support = Support(empty, empty, source=objective, key=as_tensor(keys))
        return Episode(support, Examples(steps, torch.ones(B, self._steps), source=objective), origin=origin)


# --- What a learner is tried on -------------------------------------------------------------------


def choices(kind: str, needs: Needs) -> list[tuple[str, list[Factory]]]:
    """What a learner with such needs is tried on: (what it is, makers of tasks: the first that the learner accepts)."""
    if kind == "classification":
        more: dict[str, Any] = {
            "semantics": None if needs.semantics == "no" else 4,
            "unlabelled": 0 if needs.unlabelled == "no" else 4,
            "external": 6 if needs.external else 0,
        }

        def shaped(**shape: Any) -> list[Factory]:
            return [partial(classification, input_shape=i, **{**more, **shape}) for i in INPUT_SHAPES]

        found = [("classification", shaped())]
        if needs.variable_way:
            found.append(("classification of varying way", shaped(way=(2, 4), block=4)))
        if needs.zero_shot:
            found.append(("zero-shot classification", shaped(shot=0, semantics=4)))
        return found
    single: dict[str, list[tuple[str, Factory]]] = {
        "regression": [("regression", Lines)],
        "sequence": [("a stream of labels", LabelStream), ("sequences of bits", Copying)],
        "control": [("control", Points), ("control with discrete actions", Corridors)],
        "objective": [("objectives", Quadratics)],
    }
    return [(name, [make]) for name, make in single[kind]]


def example(kind: str) -> TaskDistribution:
    """One small task distribution of a kind."""
    return choices(kind, Needs())[0][1][0]()
