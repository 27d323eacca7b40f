"""Wrong tasks of all kinds, each with one fault that a plugin's author may make."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import attrs
import numpy as np
import shelf
import torch
from attrs import frozen
from torch import Tensor

from kshot import Episode, Rollout, TaskSpec
from kshot.episode import Objective, Policy, register_value
from kshot.randomness import as_tensor, episode_keys
from kshot.testing import sample_tasks

caught_by = partial(shelf.caught_by, group="tasks")
survives = partial(shelf.survives, group="tasks")
right = partial(shelf.right, group="tasks")


class View:
    """A right view of right tasks; a wrong one changes one method."""

    build: Callable[..., Any] = staticmethod(sample_tasks.classification)
    options: dict[str, Any] = {}

    def __init__(self, seed: int = 0) -> None:
        self.of: Any = type(self).build(seed=seed, **self.options)
        self.seed = seed
        self.spec: TaskSpec = self.of.spec

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        return self.change(self.of.sample(split, indices))

    def change(self, episode: Episode) -> Episode:
        return episode


@right()
class Blobs(View):
    """Right tasks of classification."""


@right()
class Unlabelled(View):
    """Right tasks of classification with unlabelled and external examples."""

    options = {"unlabelled": 12, "external": 6}


@right()
class Lines(View):
    """Right tasks of regression."""

    build = staticmethod(sample_tasks.Lines)


@right()
class Stream(View):
    """Right tasks of the kind sequence."""

    build = staticmethod(sample_tasks.LabelStream)


@right()
class Points(View):
    """Right tasks of control."""

    build = staticmethod(sample_tasks.Points)


@right()
class Quadratics(View):
    """Right objectives."""

    build = staticmethod(sample_tasks.Quadratics)


def with_support(episode: Episode, **fields: Any) -> Episode:
    return attrs.evolve(episode, support=attrs.evolve(episode.support, **fields))


def with_query(episode: Episode, **fields: Any) -> Episode:
    return attrs.evolve(episode, query=attrs.evolve(episode.query, **fields))


def with_origin(episode: Episode, **fields: Any) -> Episode:
    return attrs.evolve(episode, origin=attrs.evolve(episode.origin, **fields))


def permuted(episode: Episode, order: np.ndarray[Any, Any]) -> Episode:
    """Return the queries of each task in another order [B, n]."""
    rows, columns = torch.arange(episode.size)[:, None], torch.from_numpy(order)
    query = attrs.evolve(episode.query, x=episode.query.x[rows, columns], y=episode.query.y[rows, columns])
    ids = np.take_along_axis(episode.origin.query_ids, order, 1)
    return with_origin(attrs.evolve(episode, query=query), query_ids=ids)


# --- Seeds, splits and numbers ---------------------------------------------------------------------


@caught_by("other-seed-other-episodes")
class KeyWithoutSeed(View):
    """Has keys that depend on the number of the episode alone."""

    def change(self, episode: Episode) -> Episode:
        return with_support(episode, key=as_tensor(episode_keys(0, episode.origin.split, episode.origin.indices)))


@caught_by("other-seed-other-episodes")
class TestWithoutSeed(View):
    """Uses its seed for training, and the seed 0 for all other splits."""

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        if split == "train":
            return super().sample(split, indices)
        return with_origin(sample_tasks.classification().sample(split, indices), seed=self.seed)


@caught_by("splits-have-own-episodes")
class TestRepeatsTraining(View):
    """Has the same lines in all splits."""

    build = staticmethod(sample_tasks.Lines)

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        self.of.sample(split, indices)  # refuse unknown splits
        return with_origin(self.of.sample("train", indices), split=split)


@caught_by("splits-have-own-episodes")
class KeyWithoutSplit(View):
    """Has the same keys in all splits, so that learners draw the same numbers in training and test."""

    def change(self, episode: Episode) -> Episode:
        return with_support(episode, key=as_tensor(episode_keys(self.seed, "train", episode.origin.indices)))


@caught_by("splits-have-own-episodes")
class AlwaysTheFirst(View):
    """Has the same line in every episode, because it passes the wrong variable."""

    build = staticmethod(sample_tasks.Lines)

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        first = self.of.sample(split, [0] * len(indices))
        keys = as_tensor(episode_keys(self.seed, split, indices))
        return with_origin(with_support(first, key=keys), indices=tuple(indices))


@caught_by("same-episodes")
class SeedsOncePerBatch(View):
    """Draws noise for all tasks of a meta-batch from the number of the first."""

    def change(self, episode: Episode) -> Episode:
        draw = torch.Generator().manual_seed(int(episode.support.key[0]) & 0xFFFF)
        x = episode.query.x
        return with_query(episode, x=x + 0.1 * torch.randn(x.shape, generator=draw))


@caught_by("process-is-left-alone")
class SeedsNumpy(View):
    """Seeds numpy's global generator with the episode's key, and draws from it."""

    def change(self, episode: Episode) -> Episode:
        noise = []
        for key in episode.support.key.tolist():
            np.random.seed(key & 0xFFFF)
            noise.append(torch.from_numpy(np.random.randn(*episode.query.x.shape[1:])).float())
        return with_query(episode, x=episode.query.x + 0.1 * torch.stack(noise))


@caught_by("process-is-left-alone")
class SeedsRandom(View):
    """Seeds Python's global generator, to shuffle examples of the support."""

    def change(self, episode: Episode) -> Episode:
        random.seed(0)
        order = list(range(episode.support.x.shape[1]))
        random.shuffle(order)
        x, y = episode.support.x[:, order], episode.support.y[:, order]
        return with_origin(with_support(episode, x=x, y=y), support_ids=episode.origin.support_ids[:, order])


@caught_by("same-episodes")
class GlobalNoise(View):
    """Draws noise from torch's global generator."""

    def change(self, episode: Episode) -> Episode:
        return with_support(episode, x=episode.support.x + 0.1 * torch.randn(episode.support.x.shape))


@caught_by("data-immutable")
class LendsItsCache(View):
    """Returns the episodes of its cache, and not copies of them."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.cache: dict[Any, Episode] = {}

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        return self.cache.setdefault((split, tuple(indices)), super().sample(split, indices))


@caught_by("unknown-split-refused")
class AnythingIsTest(View):
    """Takes every name that it does not know for the test split."""

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        return super().sample(split if split in ("train", "val") else "test", indices)


# --- What an episode tells -------------------------------------------------------------------------


@caught_by("inputs-hide-labels")
class LabelInInput(View):
    """Leaves the column of labels in the table of inputs."""

    def change(self, episode: Episode) -> Episode:
        def shown(x: Tensor, y: Tensor) -> Tensor:
            return torch.cat([x[..., :-1], y[..., None].to(x)], -1)

        episode = with_support(episode, x=shown(episode.support.x, episode.support.y))
        return with_query(episode, x=shown(episode.query.x, episode.query.y))


@caught_by("inputs-hide-labels")
class BrighterByLabel(View):
    """Scales images by their label, such as by a colour map that is chosen for each class."""

    options = {"input_shape": (1, 16, 16)}

    def change(self, episode: Episode) -> Episode:
        x, y = episode.query.x, episode.query.y
        return with_query(episode, x=x * (0.7 + 0.1 * y.to(x))[..., None, None, None])


@caught_by("inputs-hide-labels")
class TargetInInput(View):
    """Leaves the target among the inputs of a regression."""

    build = staticmethod(sample_tasks.Lines)

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.spec = attrs.evolve(self.spec, input_range=None)

    def change(self, episode: Episode) -> Episode:
        def shown(x: Tensor, y: Tensor) -> Tensor:
            return torch.cat([x[..., :1], y], -1)

        episode = with_support(episode, x=shown(episode.support.x, episode.support.y))
        return with_query(episode, x=shown(episode.query.x, episode.query.y))


@caught_by("inputs-hide-labels")
class StreamShowsItsLabel(View):
    """Shows each label at its own step of a stream, and not at the next one."""

    build = staticmethod(sample_tasks.LabelStream)

    def change(self, episode: Episode) -> Episode:
        x, y = episode.query.x.clone(), episode.query.y
        x[..., 4:] = torch.nn.functional.one_hot(y, 3).to(x)
        return with_query(episode, x=x)


@caught_by("queries-shuffled")
class QueriesByClass(View):
    """Has its queries in the order of their labels."""

    def change(self, episode: Episode) -> Episode:
        return permuted(episode, episode.query.y.argsort(dim=1, stable=True).numpy())


@caught_by("queries-shuffled")
class QueriesByClassNumber(View):
    """Has its queries in the order of the class numbers of its pool, class after class."""

    def change(self, episode: Episode) -> Episode:
        classes = np.take_along_axis(episode.origin.classes, episode.query.y.numpy(), 1)
        return permuted(episode, np.argsort(classes, 1, kind="stable"))


@caught_by("queries-shuffled")
class QueriesInTurn(View):
    """Has its queries in turn: one of each class, then the next of each class."""

    def change(self, episode: Episode) -> Episode:
        by_class = episode.query.y.argsort(dim=1, stable=True).numpy()
        N = episode.support.way or 1
        return permuted(episode, by_class.reshape(len(by_class), N, -1).swapaxes(1, 2).reshape(len(by_class), -1))


@caught_by("labels-uniform")
class SortedLabels(View):
    """Numbers the classes of an episode in the order of their numbers in the pool."""

    def change(self, episode: Episode) -> Episode:
        rank = torch.from_numpy(episode.origin.classes.argsort(1).argsort(1))
        episode = with_support(episode, y=rank.gather(1, episode.support.y))
        episode = with_query(episode, y=rank.gather(1, episode.query.y))
        return with_origin(episode, classes=np.sort(episode.origin.classes, 1))


@caught_by("classes-differ")
class ClassTwice(View):
    """Draws the classes of an episode with replacement, so that two labels may stand for one class."""

    def change(self, episode: Episode) -> Episode:
        classes = episode.origin.classes.copy()
        x, y = episode.support.x.clone(), episode.support.y
        twice = (episode.support.key % 3 == 0).numpy()
        for b in np.flatnonzero(twice):
            x[b, y[b] == 1] = x[b, y[b] == 0] + 0.01
            classes[b, 1] = classes[b, 0]
        return with_origin(with_support(episode, x=x), classes=classes)


@caught_by("labels-uniform")
class WrongClasses(View):
    """Names the classes of an episode in sorted order, whatever their labels."""

    def change(self, episode: Episode) -> Episode:
        return with_origin(episode, classes=np.sort(episode.origin.classes, 1))


# --- Overlaps --------------------------------------------------------------------------------------


def repeated(episode: Episode) -> tuple[Tensor, np.ndarray[Any, Any]]:
    """Return query inputs whose first example of each class is one of the support, and their true identities."""
    x, ids = episode.query.x.clone(), episode.origin.query_ids.copy()
    for b in range(episode.size):
        for label in range(episode.support.way or 0):
            q = int((episode.query.y[b] == label).nonzero()[0])
            s = int((episode.support.y[b] == label).nonzero()[0])
            x[b, q], ids[b, q] = episode.support.x[b, s], episode.origin.support_ids[b, s]
    return x, ids


@caught_by("support-and-query-disjoint")
class QueryInSupport(View):
    """Has examples of the support among the queries."""

    def change(self, episode: Episode) -> Episode:
        x, ids = repeated(episode)
        return with_origin(with_query(episode, x=x), query_ids=ids)


@caught_by("support-and-query-disjoint")
class WrongIdentities(View):
    """Numbers examples from 0 in each episode, which hides that some are in support and query."""

    def change(self, episode: Episode) -> Episode:
        x, _ = repeated(episode)
        B, S, n = episode.size, episode.support.x.shape[1], x.shape[1]
        fields = {"support_ids": np.arange(S)[None].repeat(B, 0), "query_ids": np.arange(S, S + n)[None].repeat(B, 0)}
        return with_origin(with_query(episode, x=x), **fields)


@caught_by("support-and-query-disjoint")
class NoIdentities(View):
    """Has no identities, which hides that some examples are in support and query."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.spec = attrs.evolve(self.spec, provides=self.spec.provides - {"identities"})

    def change(self, episode: Episode) -> Episode:
        x, _ = repeated(episode)
        return with_origin(with_query(episode, x=x), support_ids=None, query_ids=None)


@caught_by("unlabelled-disjoint")
class QueriesUnlabelled(View):
    """Adds the queries as unlabelled examples, without identities."""

    options = {"unlabelled": 12}

    def change(self, episode: Episode) -> Episode:
        x = episode.support.unlabelled.clone()
        x[:, : episode.query.x.shape[1]] = episode.query.x
        return with_origin(with_support(episode, unlabelled=x), unlabelled_ids=None, unlabelled_y=None)


@caught_by("splits-disjoint")
class ValidationIsTraining(View):
    """Samples validation from the classes of training, which it gives other names."""

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        from_split = "train" if split == "val" else split
        shifted = [i + 100_000 for i in indices] if split == "val" else list(indices)
        episode = self.of.sample(from_split, shifted)
        names = [f"{split} {c}" for c in range(10)]
        key = as_tensor(episode_keys(self.seed, split, indices))
        return with_origin(with_support(episode, key=key), split=split, indices=tuple(indices), names=names)


@caught_by("splits-disjoint")
class TwoClassesShared(View):
    """Has two of ten classes of the test split in training too, under other names."""

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        episode = super().sample(split, indices)
        if split != "test":
            return episode
        pools = [self.of.pool(s) for s in ("train", "test")]
        x = {"support": episode.support.x.clone(), "query": episode.query.x.clone()}
        for part, ids in (("support", episode.origin.support_ids), ("query", episode.origin.query_ids)):
            shared = torch.from_numpy(ids < 24)  # the first two classes, which have twelve examples each
            x[part][shared] = pools[0].x[torch.from_numpy(ids)][shared]
        return with_query(with_support(episode, x=x["support"]), x=x["query"])


# --- What the spec says ----------------------------------------------------------------------------


@caught_by("spec-is-true")
class Bytes(View):
    """Has images from 0 to 255."""

    options = {"input_shape": (1, 16, 16)}

    def change(self, episode: Episode) -> Episode:
        return with_query(with_support(episode, x=episode.support.x * 255), x=episode.query.x * 255)


@caught_by("spec-is-true")
class ChannelsLast(View):
    """Has images [height, width, channels]."""

    options = {"input_shape": (1, 16, 16)}

    def change(self, episode: Episode) -> Episode:
        moved = with_support(episode, x=episode.support.x.movedim(-3, -1))
        return with_query(moved, x=episode.query.x.movedim(-3, -1))


@caught_by("spec-is-true")
class FloatLabels(View):
    """Has labels of type float."""

    def change(self, episode: Episode) -> Episode:
        return with_query(with_support(episode, y=episode.support.y.float()), y=episode.query.y.float())


@caught_by("spec-is-true")
class GlobalLabels(View):
    """Has the numbers of classes in the pool as labels."""

    def change(self, episode: Episode) -> Episode:
        classes = torch.from_numpy(episode.origin.classes)
        return with_query(
            with_support(episode, y=classes.gather(1, episode.support.y)), y=classes.gather(1, episode.query.y)
        )


@caught_by("semantics-move-with-labels")
class SemanticsByNumber(View):
    """Has semantic vectors in the order of class numbers, not of labels."""

    options = {"semantics": 4}

    def change(self, episode: Episode) -> Episode:
        order = torch.from_numpy(episode.origin.classes.argsort(1))
        s = episode.support.semantics
        return with_support(episode, semantics=s.gather(1, order[..., None].expand_as(s)))


# --- Control and objectives ------------------------------------------------------------------------


class Played(View):
    """Right tasks of control whose environments a wrong one wraps."""

    build = staticmethod(sample_tasks.Points)
    wrap: Any = None

    def change(self, episode: Episode) -> Episode:
        wrap = type(self).wrap
        episode = with_support(episode, source=wrap(episode.support.source))
        return with_query(episode, source=wrap(episode.query.source))


@frozen(eq=False)
class Slippery:
    """An environment with noise from torch's global generator."""

    of: Any

    def rollout(self, policy: Policy, number: int = 0) -> Rollout:
        played = self.of.rollout(policy, number)
        return attrs.evolve(played, rewards=played.rewards + 0.1 * torch.randn(played.rewards.shape))


@frozen(eq=False)
class PerStep:
    """An environment that has a score per step."""

    of: Any

    def rollout(self, policy: Policy, number: int = 0) -> Rollout:
        played = self.of.rollout(policy, number)
        return attrs.evolve(played, scores={"distance": -played.rewards})


@frozen(eq=False)
class FirstRolloutOnly:
    """An environment that plays the same rollout whatever its number."""

    of: Any

    def rollout(self, policy: Policy, number: int = 0) -> Rollout:
        self.of.rollout(policy, number)  # refuse numbers beyond the budget
        return self.of.rollout(policy, 0)


for wrapper in (Slippery, PerStep, FirstRolloutOnly):
    register_value(wrapper, "of")


@caught_by("rollouts-are-values")
class SlipperyPoints(Played):
    """Has rewards with noise from torch's global generator."""

    wrap = Slippery


@caught_by("rollouts-as-specified")
class ScoresPerStep(Played):
    """Has a score for each step instead of each trajectory."""

    wrap = PerStep


@caught_by("rollouts-have-own-chance")
class SameStarts(Played):
    """Has the same starts in all rollouts of a task."""

    wrap = FirstRolloutOnly


class Minimised(View):
    """Right objectives whose function a wrong one replaces."""

    build = staticmethod(sample_tasks.Quadratics)
    function: Any = None

    def change(self, episode: Episode) -> Episode:
        old = episode.query.source
        source = Objective(old.initial, old.data, type(self).function)
        return with_query(with_support(episode, source=source), source=source)


def half_detached(point: Tensor, data: tuple[Tensor, Tensor]) -> Tensor:
    """Compute the loss with a part of the point detached."""
    matrix, target = data
    return 0.5 * ((matrix @ point - target) * (matrix @ point - target).detach()).sum()


@survives("A straight-through estimator detaches a part of its loss on purpose.")
class HalfSlope(Minimised):
    """Has a loss whose gradient is half the slope, because a factor is detached."""

    function = staticmethod(half_detached)


@caught_by("objectives-can-be-minimised")
class NegativeWeights(View):
    """Has negative weights for some steps."""

    build = staticmethod(sample_tasks.Quadratics)

    def change(self, episode: Episode) -> Episode:
        return with_query(episode, y=episode.query.y - 1.5)


@survives("Whether episodes of a split share their function can't be told from functions that are known at few points.")
class OneLine(View):
    """Has the same line in every episode, at other points."""

    build = staticmethod(sample_tasks.Lines)

    def change(self, episode: Episode) -> Episode:
        def line(x: Tensor) -> Tensor:
            return x.sum(-1, keepdim=True)

        return with_query(with_support(episode, y=line(episode.support.x)), y=line(episode.query.x))
