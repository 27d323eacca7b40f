"""The tasks of Ren et al., "Meta-learning for semi-supervised few-shot classification", 2018 (1803.00676), section 3.

Letters: B meta-batch, N way, K shot, Q queries per class, D distractor classes, M unlabelled examples per class,
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
from kshot.sampling import check_split, class_name, pooled, shape_of_block
from kshot.spec import bounds
from kshot_semi_supervised.division import Divided, choose_others, shuffled

MEASURED = "test"
"""The only split whose queries may be examples of the unlabelled part, because nothing learns from its labels."""


class SemiSupervised:
    """A view of classification tasks in which most examples have no label.

    The examples of every class are divided once, by a function of seed and example, into a labelled and an unlabelled
    part. The support of an episode is K labelled examples of each of its N classes. Its unlabelled examples are M
    examples from the unlabelled part of each of these classes and of D other classes, the distractors, in random
    order. Queries are labelled examples that are not in the support. In the test split, whose labels only measure,
    queries may also come from the unlabelled part, once all labelled examples are used and as far as the episode does
    not show them. So nothing that is trained or fitted on another split ever sees a label of the unlabelled part.

    The classes, support and queries of an episode do not depend on ``unlabelled`` and ``distractors``, so results with
    and without them are measured on the same queries.

    Args:
        of: the tasks that the examples are taken from; they must have a pool of labelled examples. Their own seed,
            way, shot and query have no effect.
        way, shot, block: options of the episodes, see ``kshot.ClassificationTasks``.
        query: queries per class; by default the number that shot leaves of the labelled part of the smallest class.
        seed: fixes the division and all episodes.
        labelled: size of the labelled part of each class: a fraction (at least one example), or a number of examples.
        unlabelled: M, the number of unlabelled examples of each class; 0 gives purely supervised episodes.
        distractors: D, the number of further classes that have unlabelled examples in the episode.

    Raises:
        OptionError: a number is negative, or a fraction is not within (0, 1].
        MisfitError: ``of`` are not classification tasks, or have no pool.
        DataError: at ``sample``: the split is unknown, way + distractors exceeds the number of classes, or a class is
            too small.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> from kshot_semi_supervised import SemiSupervised
        >>> tasks = SemiSupervised(sample_tasks.classification(), way=3, labelled=4, unlabelled=5, distractors=2)
        >>> tasks.sample("train", [0]).support.unlabelled.shape  # 5 examples of 3 + 2 classes
        torch.Size([1, 25, 6])
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
        """Return the labelled part of a split (ability ``Pooled``)."""
        divided = self._of(split)
        is_labelled = np.arange(divided.pool.rows.shape[1]) < divided.labelled[:, None]
        rows = np.where(is_labelled, divided.rows, -1)[:, : int(divided.labelled.max())]
        return attrs.evolve(divided.pool, rows=rows, counts=divided.labelled)

    def prepare(self, raw: Any) -> Tensor:
        """Turn raw examples into inputs as the tasks below do (ability ``Pooled``)."""
        return self.of.prepare(raw)

    @property
    def preparation(self) -> Preparation | None:
        """The preparation of the tasks below, as a value (ability ``Portable``); None if they have none."""
        return self.of.preparation if isinstance(self.of, Portable) else None

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Return episodes ``indices`` of ``split``: support [B, N K], unlabelled [B, U] and query [B, N Q].

        The support is ordered by class; unlabelled examples and queries are in random order.
        """
        divided = self._of(split)
        shape = shape_of_block(self.spec, self.seed, split, indices)
        N, K, Q = shape["way"] or 0, shape["shot"] or 0, shape["query"] or 0
        D, M, B = self.distractors, self.unlabelled, len(indices)
        check_enough(split, divided, N, K, Q, D, M)
        # Choose the classes of each episode, and its distractors among the other classes.
        keys = episode_keys(self.seed, split, indices)
        classes = choose(keys, "classes", divided.pool.classes, N)  # [B, N]
        others = choose_others(keys, "distractors", divided.pool.classes, classes, D)  # [B, D]
        # Draw the examples of both, and shuffle queries and unlabelled examples.
        support, query, unlabelled = divided.draw(keys, np.concatenate([classes, others], 1), N, (K, Q, M))
        query, query_y = shuffled(keys, "query order", query, np.arange(N).repeat(Q))
        truth = np.append(np.arange(N), np.full(D, -1)).repeat(M)
        unlabelled, unlabelled_y = shuffled(keys, "unlabelled order", unlabelled, truth)
        x = divided.pool.gather(np.concatenate([support, query, unlabelled], 1))
        x_support, x_query, x_unlabelled = torch.split(x, [N * K, N * Q, (N + D) * M], 1)
        semantics = divided.pool.semantics
        return Episode(
            support=Support(
                x=x_support,
                y=torch.from_numpy(np.arange(N).repeat(K)[None].repeat(B, 0)),
                unlabelled=x_unlabelled if M else None,
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
                unlabelled_ids=unlabelled if M else None,
                unlabelled_y=unlabelled_y if M else None,
            ),
        )

    def _of(self, split: str) -> Divided:
        check_split(split, self.spec)
        return self._divided[split]


def check_options(labelled: int | float, unlabelled: int, distractors: int) -> None:
    """Raise OptionError if a number is out of its range, or distractors have no unlabelled examples."""
    if not (labelled >= 1 if isinstance(labelled, int) else 0 < labelled <= 1):
        raise OptionError(
            f"semi-supervised: got labelled {labelled}, expected a fraction of each class (0.1) or a number "
            "of examples of each class (2)"
        )
    if unlabelled < 0 or distractors < 0:
        raise OptionError(
            f"semi-supervised: got unlabelled {unlabelled} and distractors {distractors}, expected 0 or more of each"
        )
    if distractors and not unlabelled:
        raise OptionError(
            f"semi-supervised: got distractors {distractors} and unlabelled 0, expected unlabelled examples of the "
            "distractors; raise unlabelled, or set distractors to 0"
        )


def check_enough(split: str, divided: Divided, N: int, K: int, Q: int, D: int, M: int) -> None:
    """Raise DataError if a split has too few classes, or a class has too few examples, for such episodes."""
    pool, labelled = divided.pool, divided.labelled
    if pool.classes < N + D:
        raise DataError(
            f"semi-supervised: got way + distractors {N} + {D}, but split {split!r} has {pool.classes} classes; lower "
            "way or distractors"
        )

    def refuse(too_small: NDArray[np.bool_], message: str) -> None:
        """Raise an error about the first class that is too small, if there is one."""
        if too_small.any():
            c = int(too_small.argmax())
            has = f"{labelled[c]} labelled of {pool.counts[c]} examples"
            raise DataError(f"semi-supervised: class {class_name(pool, c)} of split {split!r} has {has}, but {message}")

    shown = K + Q
    refuse(labelled > pool.counts, "got a larger number for labelled; lower labelled, or drop small classes")
    refuse(labelled < K, f"got shot {K}; lower shot or raise labelled")
    if split != MEASURED:
        refuse(
            labelled < shown,
            f"got shot + query {K} + {Q}, and outside the test split queries must be labelled examples; lower query "
            "(training.query, if only training has so many) or raise labelled",
        )
    refuse(
        pool.counts - np.maximum(labelled, shown) < M,
        f"got unlabelled {M} in addition to shot + query {K} + {Q}; lower unlabelled or query",
    )
