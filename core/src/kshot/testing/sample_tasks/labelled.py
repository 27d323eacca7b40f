"""Sample tasks whose episodes are tables of labelled examples: classification and regression."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np
import torch
from numpy.typing import NDArray

from kshot.episode import Episode, Examples, Origin, Support
from kshot.protocols import TaskDistribution
from kshot.randomness import as_tensor, episode_keys, uniform
from kshot.sampling import ClassificationTasks, Pool
from kshot.spec import Count, TaskSpec
from kshot.testing.sample_tasks.drawing import normals, origin_of


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
    """Build classification tasks with ten classes per split; each class is a centre with noise around it.

    Args:
        way, shot, query, seed, block: see ``kshot.ClassificationTasks``.
        input_shape: (n,) for vectors; (channels, height, width) for images, whose values are in [0, 1].
        semantics: length A of the vector that describes a class (a linear function of its centre), or None.
        unlabelled, external: how many unlabelled examples, and how many labelled examples from outside the episode,
            to add to each task.

    Example:
        >>> tasks = classification(way=2, shot=1, query=1, unlabelled=4)
        >>> tuple(tasks.sample("test", [7]).support.unlabelled.shape)
        (1, 4, 6)
    """
    image, size, examples = len(input_shape) == 3, int(np.prod(input_shape)), 12
    pools = {}
    for split in ("train", "val", "test"):
        # The data do not depend on ``seed``, which only chooses the episodes.
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
    """A view of classification tasks that adds unlabelled inputs, external examples, or both, from the same split.

    Args:
        of: the tasks to add to.
        unlabelled, external: how many examples of each to add to a task; 0 adds none.

    Example:
        >>> tasks = WithMore(classification(), unlabelled=5, external=0)
        >>> sorted(tasks.spec.provides)
        ['identities', 'unlabelled']
    """

    def __init__(self, of: ClassificationTasks, unlabelled: int, external: int) -> None:
        self.of, self.unlabelled, self.external = of, unlabelled, external
        self.seed = of.seed
        more = [name for name, n in (("unlabelled", unlabelled), ("external", external)) if n]
        # Each split has as many classes, so one list of names is right for all of them.
        names = tuple(f"class {c}" for c in range(of.pool(of.spec.splits[0]).classes)) if external else ()
        self.spec = attrs.evolve(of.spec, provides={*of.spec.provides, *more}, external_classes=names)

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Sample episodes with unlabelled inputs [B, U, *input] and external examples [B, E, *input].

        The added examples belong to the split and are neither in the support nor in the query.
        """
        episode = self.of.sample(split, indices)
        pool, origin, n = self.of.pool(split), episode.origin, self.unlabelled
        ids, y = pool.table()
        # Put the examples of the pool in random order [B, examples], those of support and query last.
        keys = episode_keys(self.seed, f"{split}/more", indices)
        order = uniform(keys, "rows", len(ids))
        assert origin is not None
        shown = np.concatenate([origin.support_ids, origin.query_ids], 1)
        order[(ids[None, :, None] == shown[:, None]).any(-1)] = 1
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
        """Return the label within the episode of each example in ``chosen`` [B, U]; -1 for other classes."""
        same = y[chosen, None] == origin.classes[:, None]  # type: ignore[index]
        return np.where(same.any(-1), same.argmax(-1), -1)


class Lines:
    """Regression tasks: y = w x + b with x in [-1, 1]^2, where w and b belong to the task.

    Args:
        shot, query: number of examples in support and query.
        seed: determines all episodes.

    Example:
        >>> episode = Lines(shot=5, query=4).sample("train", [0, 1, 2])
        >>> tuple(episode.support.x.shape), tuple(episode.query.y.shape)
        ((3, 5, 2), (3, 4, 1))
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
        """Sample episodes with support x [B, K, 2] and y [B, K, 1], and a query of the same layout."""
        origin = origin_of(self.spec, self.seed, split, indices)
        keys = episode_keys(self.seed, split, indices)
        x = torch.from_numpy(2 * uniform(keys, "x", 2 * self._examples) - 1).float().view(len(keys), -1, 2)
        w = normals(keys, "line", 1, 3)  # the first two numbers are w, the third is b
        y = (x * w[..., :2]).sum(-1, keepdim=True) + w[..., 2:]
        k = self._shot
        return Episode(Support(x[:, :k], y[:, :k], key=as_tensor(keys)), Examples(x[:, k:], y[:, k:]), origin=origin)
