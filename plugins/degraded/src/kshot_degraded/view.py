"""Tasks in which a known part of the examples is degraded, as Fort did to Omniglot (1708.02735, section 5).

Letters: B meta-batch, N way, K shot, Q queries a class, S = N K, U unlabelled examples.
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
    """A pool whose ``gather`` gives the marked examples degraded; ``x`` holds them all as they were.

    Attributes:
        under: the pool that gives them as they were.
        how, fraction, strength, seed: as in ``Degraded``.
    """

    under: Pool
    how: How
    fraction: float
    strength: float
    seed: int

    def marked(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the rows ``ids`` [...] are degraded [...]: by a hash of seed and row, and nothing else."""
        keys = episode_keys(self.seed, "degraded", ids.reshape(-1))  # type: ignore[arg-type]
        made: NDArray[np.bool_] = (uniform(keys, "marked", 1)[:, 0] < self.fraction).reshape(ids.shape)
        return made

    def gather(self, ids: NDArray[np.int64]) -> Tensor:
        """Rows ``ids`` [.., n] as float32 inputs [.., n, *input], the marked ones degraded, within the input range."""
        x = self.under.gather(ids)
        marked = self.marked(ids)
        if marked.any():
            where = torch.from_numpy(marked)
            keys = episode_keys(self.seed, "degraded", ids[marked])  # type: ignore[arg-type]
            made = WAYS[self.how].apply(x[where], keys, self.strength)
            x[where] = made if self.input_range is None else made.clamp(*self.input_range)
        return x


class Degraded:
    """A view of classification tasks in which a part of the examples is degraded.

    Whether an example is degraded, and by which noise, is a function of the seed and its row in the pool: it is the
    same in every episode and in every split that has it, of whatever class, in support and query. ``truth`` says which.

    Episodes are those of ``kshot.ClassificationTasks`` over the pool of the tasks below, with the same classes and
    examples whatever ``how``, ``fraction`` and ``strength`` are; a greater fraction degrades further examples.

    Args:
        of: the tasks whose examples these are; they must have a pool of labelled examples. Their seed, way, shot and
            query have no say.
        way, shot, query, block: of the episodes, see ``kshot.ClassificationTasks``.
        seed: fixes which examples are degraded, and all episodes.
        how: ``downsample`` (fewer pixels, and back), ``noise``, ``blur``, ``occlude`` (part of the image is 0),
            ``drop`` (values are 0) or ``contrast``; vectors take noise, drop and contrast.
        fraction: the probability that an example is degraded.
        strength: of the degradation: a share, but the standard deviation of noise, in the inputs' unit, and of blur,
            in pixels. None is 0.75 for downsample and contrast, 0.5 for noise and drop, 0.25 for occlude, 2 for blur.
        where: ``all``, or ``support``: queries are as they were, and there is no ``pool``, because what is degraded
            then depends on an example's place in the episode.

    Raises:
        OptionError: a fraction outside [0, 1], or a strength that makes no sense.
        MisfitError: ``of`` is no classification or has no pool, or ``how`` is for images and inputs are none.
        DataError: at ``sample``: an unknown split, too few classes, or a class too small.
    """

    pool: Callable[[str], Pool]
    """The labelled examples of a split, degraded as they are gathered (ability ``Pooled``); not where="support"."""

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
                f"degraded: how is {how!r}, which is for images (channels, height, width), and these inputs have shape "
                f"{of.spec.input_shape}; for these there are {vectors}"
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
        fields: dict[str, Any] = {field.name: getattr(pool, field.name) for field in attrs.fields(Pool)}
        return DegradedPool(
            **fields, under=pool, how=self.how, fraction=self.fraction, strength=self.strength, seed=self.seed
        )

    def prepare(self, raw: Any) -> Tensor:
        """Raw examples as inputs, as the tasks below do it: not degraded (ability ``Pooled``)."""
        return self.of.prepare(raw)

    @property
    def preparation(self) -> Preparation | None:
        """That of the tasks below, as a value (ability ``Portable``)."""
        return self.of.preparation if isinstance(self.of, Portable) else None

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Episodes ``indices`` of ``split``: support [B, N K, *input] and query [B, N Q, *input]."""
        episode = self._tasks.sample(split, indices)
        if self.where == "all" or episode.origin is None or episode.origin.query_ids is None:
            return episode
        untouched = self._pools[split].under.gather(episode.origin.query_ids)
        return attrs.evolve(episode, query=attrs.evolve(episode.query, x=untouched))

    def marked(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which examples are degraded, by their rows in the pool ``ids`` [...]: [...]."""
        return next(iter(self._pools.values())).marked(np.asarray(ids, np.int64))

    def truth(self, episode: Episode) -> dict[str, NDArray[np.bool_]]:
        """Which of an episode's examples are degraded: ``support`` [B, S], ``query`` [B, N Q], and ``unlabelled``
        [B, U] where there are any, as in an episode of a view over these tasks. For people and plots, not for learners.

        Raises:
            DataError: the episode does not say which examples it shows.
        """
        shown = {} if episode.origin is None else episode.origin.arrays()
        if "support_ids" not in shown:
            raise DataError("degraded: the episode's origin has no support_ids, by which degraded examples are known")
        places = {name: shown[f"{name}_ids"] for name in ("support", "query", "unlabelled") if f"{name}_ids" in shown}
        found = {name: self.marked(ids) for name, ids in places.items()}
        if self.where == "support":
            found["query"] = np.zeros_like(found["query"])
        return found


def check_options(how: str, fraction: float, strength: float | None, where: str) -> None:
    """Raises OptionError where a choice is unknown or a number makes no sense."""
    for name, value, known in (("how", how, tuple(WAYS)), ("where", where, ("all", "support"))):
        if value not in known:
            raise OptionError(f"degraded: {name} is {value!r}, expected one of {', '.join(known)}")
    if not 0 <= fraction <= 1:
        raise OptionError(f"degraded: fraction is {fraction}, expected a share of the examples, from 0 to 1")
    if strength is not None and not 0 < strength <= (1 if WAYS[how].share else float("inf")):
        expected = "a share greater than 0, up to 1" if WAYS[how].share else "a standard deviation greater than 0"
        raise OptionError(f"degraded: strength is {strength}, expected {expected} for how={how!r}")
