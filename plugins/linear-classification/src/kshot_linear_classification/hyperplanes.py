"""Classify by a random hyperplane, whose normal lies in or near a subspace that is common to all tasks.

This is the setting of theory on learning a linear representation of several tasks: Du et al., "Few-shot learning via
learning the representation, provably", 2020 (2002.09434); Tripuraneni, Jin & Jordan, "Provable meta-learning of linear
representations", 2021 (2002.11684). With a subspace of one dimension, all normals are near a common direction.

Letters: B tasks, n examples, K shot, Q queries per class, D dimensions of an input, r dimensions of the subspace.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray

from kshot import Episode, Examples, Origin, Support, TaskSpec
from kshot.errors import OptionError
from kshot.randomness import U64, as_tensor, choose, episode_keys, normal, uniform
from kshot.registry import Range
from kshot.sampling import check_split, shape_of_block

Array = NDArray[np.float64]


class LinearClassification:
    """Sample binary classification tasks: label 1 on one side of a hyperplane through the origin, label 0 on the other.

    The normal of a task's hyperplane is w = (u + spread * v) / sqrt(1 + spread^2) [D]: u is a uniformly random unit
    vector in an r-dimensional subspace that all tasks of all splits share, and v is one that is orthogonal to this
    subspace. w and -w are equally probable, so no side has always the same label. Inputs are standard normal; if there
    is a margin, they are then moved away from the hyperplane. Support and query have equal numbers of both labels. The
    support is ordered by label, and the query is shuffled.

    ``origin.fields["normal"]`` of an episode is w of each task [B, D].

    Args:
        shot: K, support examples per class, or a range (least, greatest).
        query: Q, queries per class, or a range.
        seed: the seed of all episodes, but not of the subspace.
        dimensions: D, the length of an input.
        subspace: r, the dimension of the common subspace; D for hyperplanes that have nothing in common.
        spread: tangent of the angle between w and the subspace; 0 for normals in the subspace.
        margin: distance from the hyperplane within which there are no inputs, in the unit of the inputs.
        noise: probability that an example is on the wrong side of the hyperplane.
        subspace_seed: the seed of the common subspace.
        block: episodes with the same i // block have the same numbers of examples, if these are ranges.

    Raises:
        OptionError: a number is out of its range, or ``spread`` is not 0 and the subspace has all dimensions.
        DataError: a number of examples is negative, or a range of them is empty.

    Example:
        >>> from kshot_linear_classification import LinearClassification
        >>> episode = LinearClassification(shot=5, query=8).sample("test", [0, 1, 2])
        >>> episode.support.x.shape, episode.query.y.shape
        (torch.Size([3, 10, 50]), torch.Size([3, 16]))
    """

    def __init__(
        self,
        shot: int | tuple[int, int] = 5,
        query: int | tuple[int, int] = 15,
        seed: int = 0,
        *,
        dimensions: Annotated[int, Range(1, 10_000)] = 50,
        subspace: Annotated[int, Range(1, 10_000)] = 2,
        spread: Annotated[float, Range(0)] = 0.0,
        margin: Annotated[float, Range(0)] = 0.0,
        noise: Annotated[float, Range(0, below=0.5)] = 0.0,
        subspace_seed: int = 0,
        block: Annotated[int, Range(1)] = 1,
    ) -> None:
        who = "linear-classification"
        if not 1 <= subspace <= dimensions:
            raise OptionError(
                f"{who}: got subspace {subspace} and dimensions {dimensions}, expected 1 <= subspace <= dimensions; "
                "change one of them"
            )
        if not (0 <= spread < np.inf and 0 <= margin < np.inf and 0 <= noise < 0.5):
            raise OptionError(
                f"{who}: got spread {spread}, margin {margin} and noise {noise}, expected finite numbers with "
                "spread >= 0, margin >= 0 and 0 <= noise < 0.5; change them"
            )
        if spread and subspace == dimensions:
            raise OptionError(
                f"{who}: got spread {spread} and a subspace of all {dimensions} dimensions, expected a smaller "
                "subspace, or spread 0; change one of them"
            )
        self.dimensions, self.subspace = dimensions, subspace
        self.spread, self.margin, self.noise = spread, margin, noise
        self.basis = orthonormal(subspace_seed, dimensions, subspace)
        """Orthonormal vectors that span the common subspace [D, r]."""
        self.seed = seed
        self.spec = TaskSpec(
            kind="classification",
            input_shape=(dimensions,),
            way=2,
            shot=shot,
            query=query,
            block=block,
            split_by="index",
        )

    def normals(self, keys: U64) -> Array:
        """Draw the unit normal of a hyperplane for each of ``keys`` [B]: [B, D]."""
        w: Array = _unit(normal(keys, "inside", self.subspace)) @ self.basis.T
        if self.spread:
            v = normal(keys, "outside", self.dimensions)
            v = _unit(v - v @ self.basis @ self.basis.T)
            w = (w + self.spread * v) / np.sqrt(1 + self.spread**2)
        return w

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Return tasks ``indices`` of ``split``: support.x [B, 2K, D], support.y [B, 2K], and likewise with 2Q."""
        check_split(split, self.spec)
        shape = shape_of_block(self.spec, self.seed, split, indices)
        shot, query = int(shape["shot"] or 0), int(shape["query"] or 0)
        keys = episode_keys(self.seed, split, indices)
        w = self.normals(keys)
        # Draw the labels first, K and Q of each; then draw an input for every example on the side of its label.
        labels = {
            "support": np.tile(np.repeat([0, 1], shot), (len(keys), 1)),
            "query": choose(keys, "order", 2 * query, 2 * query) % 2,
        }
        parts = {name: (self._inputs(keys, name, w, y), torch.from_numpy(y)) for name, y in labels.items()}
        return Episode(
            support=Support(*parts["support"], key=as_tensor(keys), way=2),
            query=Examples(*parts["query"]),
            origin=Origin(split, tuple(indices), self.seed, way=2, shot=shot, query=query, fields={"normal": w}),
        )

    def _inputs(self, keys: U64, part: str, w: Array, y: NDArray[np.int64]) -> torch.Tensor:
        """Draw inputs [B, n, D] for labels y [B, n] of a part of the episodes."""
        B, n = y.shape
        side = 2.0 * y - 1
        if self.noise:
            side = np.where(uniform(keys, f"{part}/noise", n) < self.noise, -side, side)
        x = normal(keys, f"{part}/x", n * self.dimensions).reshape(B, n, self.dimensions)
        # Move x along w: mirror it if it is on the wrong side, and add the margin to its distance |x . w|.
        distance = np.einsum("bnd,bd->bn", x, w)
        x += (side * (self.margin + np.abs(distance)) - distance)[..., None] * w[:, None]
        return torch.from_numpy(x).float()


def orthonormal(seed: int, dimensions: int, count: int) -> Array:
    """Draw ``count`` orthonormal vectors [D, count] that span a uniformly random subspace.

    Example:
        >>> basis = orthonormal(0, 5, 2)
        >>> np.allclose(basis.T @ basis, np.eye(2))
        True
    """
    key = episode_keys(seed, "linear-classification/subspace", [0])
    vectors = normal(key, "basis", dimensions * count).reshape(dimensions, count)
    q, r = np.linalg.qr(vectors)
    # The signs of q depend on the library; those that make the diagonal of r positive are unique.
    basis: Array = q * np.where(np.diag(r) < 0, -1.0, 1.0)
    return basis


def _unit(vectors: Array) -> Array:
    """Scale vectors [B, D] to length 1."""
    scaled: Array = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled
