"""The tasks of Ren et al., "Meta-learning for semi-supervised few-shot classification", 2018 (1803.00676), section 3.

Letters: B meta-batch, N way, K shot, Q queries a class, D distractor classes, M unlabelled examples a class,
U = (N + D) M, C classes of a split.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kshot import Episode, Examples, Origin, Pool, Support, TaskDistribution
from kshot.errors import DataError, OptionError
from kshot.preparing import Preparation
from kshot.protocols import Pooled, Portable
from kshot.randomness import as_tensor, choose, episode_keys
from kshot.sampling import pooled, shape_of_block
from kshot.spec import bounds
from kshot_semi_supervised.division import Divided, choose_others, shuffled

MEASURED = "test"
"""The split whose queries may be examples of the unlabelled part: no one learns from their labels."""


class SemiSupervised:
    """A view of classification tasks in which most examples have lost their labels.

    The examples of every class are divided once, as a function of seed and example, into a labelled and an unlabelled
    part. An episode's support is K labelled examples of each of N classes; its unlabelled examples are M of the
    unlabelled part of each of these classes and of each of D other ones, the distractors, in random order. Queries are
    labelled examples that are not in the support; in the test split, where labels only measure, they may also be
    unlabelled ones that the episode does not show, after all labelled ones are used. So nothing that is trained or
    fitted on another split ever meets a label of the unlabelled part.

    Classes, support and queries of an episode are the same whatever ``unlabelled`` and ``distractors`` are, so that
    results with and without them are of the same queries.

    Args:
        of: the tasks whose examples these are; they must have a pool of labelled examples. Their seed, way, shot and
            query have no say.
        way, shot, block: of the episodes, see ``kshot.ClassificationTasks``.
        query: queries a class; by default as many as shot leaves of the labelled part of the smallest class.
        seed: fixes the division and all episodes.
        labelled: the labelled part of each class: a fraction (at least one example), or a number.
        unlabelled: M, unlabelled examples of each class; 0 gives purely supervised episodes.
        distractors: D, further classes with unlabelled examples in the episode.

    Raises:
        OptionError: a number is negative, or a fraction not within (0, 1].
        MisfitError: ``of`` is no classification, or has no pool.
        DataError: at ``sample``: an unknown split, more way + distractors than classes, or a class too small.
    """

    def __init__(
        self,
        of: TaskDistribution,
        way: int | tuple[int, int] = 5,
        shot: int | tuple[int, int] = 1,
        query: int | tuple[int, int] | None = None,
        seed: int = 0,
        *,
        labelled: int | float = 0.1,
        unlabelled: int = 5,
        distractors: int = 0,
        block: int = 1,
    ) -> None:
        self.of: Pooled = pooled(of, "semi-supervised")
        check_options(labelled, unlabelled, distractors)
        self.seed = seed
        self.labelled, self.unlabelled, self.distractors = labelled, unlabelled, distractors
        self.fingerprint = str(getattr(of, "fingerprint", ""))
        self._divided = {split: Divided.of(self.of.pool(split), labelled, seed) for split in of.spec.splits}
        least = min(int(d.labelled.min()) for d in self._divided.values())
        self.spec = attrs.evolve(
            of.spec,
            way=way,
            shot=shot,
            query=max(1, least - (bounds(shot)[1] or 0)) if query is None else query,
            block=block,
            provides=(of.spec.provides & {"semantics"}) | {"identities", *(["unlabelled"] if unlabelled else [])},
        )

    def pool(self, split: str) -> Pool:
        """The labelled part of a split (ability ``Pooled``)."""
        divided = self._of(split)
        held = np.arange(divided.pool.rows.shape[1]) < divided.labelled[:, None]
        rows = np.where(held, divided.rows, -1)[:, : int(divided.labelled.max())]
        return attrs.evolve(divided.pool, rows=rows, counts=divided.labelled)

    def prepare(self, raw: Any) -> Tensor:
        """Raw examples as inputs, as the tasks below do it (ability ``Pooled``)."""
        return self.of.prepare(raw)

    @property
    def preparation(self) -> Preparation | None:
        """That of the tasks below, as a value (ability ``Portable``)."""
        return self.of.preparation if isinstance(self.of, Portable) else None

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Episodes ``indices`` of ``split``: support [B, N K], ordered by class, unlabelled [B, U], query [B, N Q]."""
        divided = self._of(split)
        shape = shape_of_block(self.spec, self.seed, split, indices)
        N, K, Q = shape["way"] or 0, shape["shot"] or 0, shape["query"] or 0
        D, M, B = self.distractors, self.unlabelled, len(indices)
        check_enough(split, divided, N, K, Q, D, M)
        keys = episode_keys(self.seed, split, indices)
        classes = choose(keys, "classes", divided.pool.classes, N)  # [B, N]
        others = choose_others(keys, "distractors", divided.pool.classes, classes, D)  # [B, D]
        support, query, more = divided.draw(keys, np.concatenate([classes, others], 1), N, (K, Q, M))
        query, query_y = shuffled(keys, "query order", query, np.arange(N).repeat(Q))
        truth = np.append(np.arange(N), np.full(D, -1)).repeat(M)
        more, more_y = shuffled(keys, "unlabelled order", more, truth)
        x = divided.pool.gather(np.concatenate([support, query, more], 1))
        x_support, x_query, x_more = torch.split(x, [N * K, N * Q, (N + D) * M], 1)
        semantics = divided.pool.semantics
        return Episode(
            support=Support(
                x=x_support,
                y=torch.from_numpy(np.arange(N).repeat(K)[None].repeat(B, 0)),
                unlabelled=x_more if M else None,
                semantics=None if semantics is None else semantics[torch.from_numpy(classes)],
                key=as_tensor(keys),
                way=N,
            ),
            query=Examples(x_query, torch.from_numpy(query_y)),
            origin=Origin(
                split=split,
                indices=tuple(indices),
                seed=self.seed,
                way=N,
                shot=K,
                query=Q,
                classes=classes,
                names=divided.pool.names,
                support_ids=support,
                query_ids=query,
                unlabelled_ids=more if M else None,
                unlabelled_y=more_y if M else None,
            ),
        )

    def _of(self, split: str) -> Divided:
        if split not in self._divided:
            raise DataError(f"unknown split {split!r}; these tasks have {', '.join(self._divided)}")
        return self._divided[split]


def check_options(labelled: int | float, unlabelled: int, distractors: int) -> None:
    """Raises OptionError where the numbers make no sense."""
    if not (labelled >= 1 if isinstance(labelled, int) else 0 < labelled <= 1):
        raise OptionError(
            f"semi-supervised: labelled is {labelled}, expected a fraction of each class (0.1) or a number of examples "
            "of each class (2)"
        )
    if unlabelled < 0 or distractors < 0:
        raise OptionError(
            f"semi-supervised: unlabelled is {unlabelled} and distractors {distractors}, expected none negative"
        )
    if distractors and not unlabelled:
        raise OptionError(
            f"semi-supervised: {distractors} distractors without unlabelled examples of them; raise unlabelled"
        )


def check_enough(split: str, divided: Divided, N: int, K: int, Q: int, D: int, M: int) -> None:
    """Raises DataError where a split has too few classes, or a class too few examples, for such episodes."""
    pool, labelled = divided.pool, divided.labelled
    if pool.classes < N + D:
        asked = f"way + distractors is {N} + {D}"
        raise DataError(f"semi-supervised: split {split!r} has {pool.classes} classes, but {asked}; lower them")

    def refuse(where: NDArray[np.bool_], message: str) -> None:
        if where.any():
            c = int(where.argmax())
            name = repr(pool.names[c]) if pool.names else f"number {c}"
            has = f"{labelled[c]} labelled of {pool.counts[c]} examples"
            raise DataError(f"semi-supervised: split {split!r}: class {name} has {has}, but {message}")

    shown = K + Q
    refuse(labelled > pool.counts, "labelled asks for more; lower labelled, or drop small classes")
    refuse(labelled < K, f"shot is {K}; lower shot or raise labelled")
    if split != MEASURED:
        refuse(
            labelled < shown,
            f"shot + query is {K} + {Q}, and outside the test split queries are labelled examples; lower query "
            "(training.query, where only training asks for so many) or raise labelled",
        )
    refuse(
        pool.counts - np.maximum(labelled, shown) < M,
        f"{M} unlabelled ones are asked for beside {K} + {Q} of support and query; lower unlabelled or query",
    )
