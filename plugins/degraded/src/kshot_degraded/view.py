"""Tasks in which a recorded share of the examples is degraded, as Fort did with Omniglot (1708.02735, section 5).

Letters: B meta-batch, N way, K shot, Q queries per class, S = N K, U unlabelled examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import attrs
import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray
from torch import Tensor

from kshot import ClassificationTasks, Episode, Pool, TaskDistribution
from kshot.errors import DataError, MisfitError, OptionError
from kshot.preparing import Preparation
from kshot.protocols import Pooled, Portable
from kshot.randomness import episode_keys, uniform
from kshot.sampling import pooled
from kshot_degraded.ways import WAYS, How


@frozen(eq=False, kw_only=True)
class DegradedPool(Pool):
    """A pool whose ``gather`` degrades the marked examples; ``x`` has all of them undegraded.

    Attributes:
        under: the pool that gathers the undegraded examples.
        how, fraction, strength, seed: as in ``Degraded``.
    """

    under: Pool
    how: How
    fraction: float
    strength: float
    seed: int

    def marked(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell which of the rows ``ids`` [...] are degraded [...]: a function of a hash of seed and row only."""
        keys = episode_keys(self.seed, "degraded", ids.reshape(-1))  # type: ignore[arg-type]
        marked: NDArray[np.bool_] = (uniform(keys, "marked", 1)[:, 0] < self.fraction).reshape(ids.shape)
        return marked

    def gather(self, ids: NDArray[np.int64]) -> Tensor:
        """Return rows ``ids`` [.., n] as float32 inputs [.., n, *input], the marked ones degraded within the range."""
        x = self.under.gather(ids)
        marked = self.marked(ids)
        if marked.any():
            where = torch.from_numpy(marked)
            keys = episode_keys(self.seed, "degraded", ids[marked])  # type: ignore[arg-type]
            degraded = WAYS[self.how].apply(x[where], keys, self.strength)
            x[where] = degraded if self.input_range is None else degraded.clamp(*self.input_range)
        return x


class Degraded:
    """A view of classification tasks in which a part of the examples is degraded.

    Whether an example is degraded, and its noise, is a function of the seed and the example's row in the pool. So it
    is the same in every episode and in every split that has the example, in support and query. ``truth`` states which
    examples are degraded.

    Episodes are those of ``kshot.ClassificationTasks`` over the pool of the tasks below. Their classes and examples do
    not depend on ``how``, ``fraction`` and ``strength``; a larger fraction degrades the same examples and more.

    Args:
        of: the tasks that the examples are taken from; they must have a pool of labelled examples. Their own seed,
            way, shot and query have no effect.
        way, shot, query, block: options of the episodes, see ``kshot.ClassificationTasks``.
        seed: fixes which examples are degraded, and all episodes.
        how: ``downsample`` (reduce and enlarge), ``noise``, ``blur``, ``occlude`` (a rectangle is 0), ``drop`` (single
            values are 0) or ``contrast``; vectors can have noise, drop and contrast.
        fraction: the probability that an example is degraded.
        strength: strength of the degradation: for noise a standard deviation in the unit of the inputs, for blur a
            standard deviation in pixels, otherwise a share. None is 0.75 for downsample and contrast, 0.5 for noise
            and drop, 0.25 for occlude and 2 for blur.
        where: ``all``, or ``support``: then queries are not degraded, and the view has no ``pool``, because whether an
            example is degraded depends on its place in the episode.

    Raises:
        OptionError: a fraction outside [0, 1], or a strength out of its range.
        MisfitError: ``of`` are not classification tasks or have no pool; or ``how`` is for images and the inputs are
            vectors.
        DataError: at ``sample``: the split is unknown, has too few classes, or has a class that is too small.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> from kshot_degraded import Degraded
        >>> tasks = Degraded(sample_tasks.classification(), way=3, query=4, how="noise", fraction=0.5)
        >>> tasks.truth(tasks.sample("train", [0]))["query"].shape
        (1, 12)
    """

    pool: Callable[[str], Pool]
    """Return the labelled examples of a split, degraded when gathered (``Pooled``); not with where="support"."""

    def __init__(
        self,
        of: TaskDistribution,
        way: int | tuple[int, int] = 5,
        shot: int | tuple[int, int] = 1,
        query: int | tuple[int, int] = 15,
        seed: int = 0,
        *,
        how: How = "downsample",
        fraction: float = 0.5,
        strength: float | None = None,
        where: Literal["all", "support"] = "all",
        block: int = 1,
    ) -> None:
        self.of: Pooled = pooled(of, "degraded")
        check_options(how, fraction, strength, where)
        if WAYS[how].images and len(of.spec.input_shape) != 3:
            vectors = ", ".join(name for name, way_ in WAYS.items() if not way_.images)
            raise MisfitError(
                f"degraded: got how {how!r} for inputs of shape {of.spec.input_shape}, expected images (channels, "
                f"height, width); use one of {vectors}"
            )
        self.how: How = how
        self.seed, self.fraction, self.where = seed, fraction, where
        self.strength = WAYS[how].usual if strength is None else strength
        self.fingerprint = str(getattr(of, "fingerprint", ""))
        self._pools = {split: self._over(self.of.pool(split)) for split in of.spec.splits}
        self._tasks = ClassificationTasks(self._pools, way=way, shot=shot, query=query, block=block, seed=seed)
        self.spec = attrs.evolve(self._tasks.spec, split_by=of.spec.split_by)
        if where == "all":
            self.pool = self._tasks.pool

    def _over(self, pool: Pool) -> DegradedPool:
        """Return the pool whose examples are degraded when they are gathered."""
        fields: dict[str, Any] = {field.name: getattr(pool, field.name) for field in attrs.fields(Pool)}
        return DegradedPool(
            **fields, under=pool, how=self.how, fraction=self.fraction, strength=self.strength, seed=self.seed
        )

    def prepare(self, raw: Any) -> Tensor:
        """Turn raw examples into inputs as the tasks below do, without degrading them (ability ``Pooled``)."""
        return self.of.prepare(raw)

    @property
    def preparation(self) -> Preparation | None:
        """The preparation of the tasks below, as a value (ability ``Portable``); None if they have none."""
        return self.of.preparation if isinstance(self.of, Portable) else None

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Return episodes ``indices`` of ``split``: support [B, N K, *input] and query [B, N Q, *input]."""
        episode = self._tasks.sample(split, indices)
        if self.where == "all" or episode.origin is None or episode.origin.query_ids is None:
            return episode
        # With where="support", replace the queries by the same examples, undegraded.
        untouched = self._pools[split].under.gather(episode.origin.query_ids)
        return attrs.evolve(episode, query=attrs.evolve(episode.query, x=untouched))

    def marked(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell which examples are degraded [...], by their rows ``ids`` in the pool [...]."""
        return next(iter(self._pools.values())).marked(np.asarray(ids, np.int64))

    def truth(self, episode: Episode) -> dict[str, NDArray[np.bool_]]:
        """Tell which of an episode's examples are degraded, for plots and analyses; learners must not use it.

        Returns:
            ``support`` [B, S], ``query`` [B, N Q], and ``unlabelled`` [B, U] if the episode has unlabelled examples,
            because it is one of another view over these tasks.

        Raises:
            DataError: the episode's origin does not name its examples.
        """
        shown = {} if episode.origin is None else episode.origin.arrays()
        if "support_ids" not in shown:
            raise DataError(
                "degraded: got an episode whose origin has no support_ids, expected an episode of these tasks or of a "
                "view over them, which names its examples"
            )
        places = {name: shown[f"{name}_ids"] for name in ("support", "query", "unlabelled") if f"{name}_ids" in shown}
        degraded = {name: self.marked(ids) for name, ids in places.items()}
        if self.where == "support":
            degraded["query"] = np.zeros_like(degraded["query"])
        return degraded


def check_options(how: str, fraction: float, strength: float | None, where: str) -> None:
    """Raise OptionError if a choice is unknown or a number is out of its range."""
    for name, value, known in (("how", how, tuple(WAYS)), ("where", where, ("all", "support"))):
        if value not in known:
            raise OptionError(f"degraded: got {name} {value!r}, expected one of {', '.join(known)}")
    if not 0 <= fraction <= 1:
        raise OptionError(f"degraded: got fraction {fraction}, expected a share of the examples, from 0 to 1")
    if strength is not None and not 0 < strength <= (1 if WAYS[how].share else float("inf")):
        expected = "a share greater than 0, up to 1" if WAYS[how].share else "a standard deviation greater than 0"
        raise OptionError(f"degraded: got strength {strength}, expected {expected} for how={how!r}")
