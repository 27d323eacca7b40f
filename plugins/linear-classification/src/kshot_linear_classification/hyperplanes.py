"""Two classes on the two sides of a random hyperplane, whose normal lies in or near a subspace common to all tasks.

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
    """Binary classification tasks: label 1 on one side of a hyperplane through the origin, label 0 on the other.

    The normal of a task's hyperplane is w = (u + spread * v) / sqrt(1 + spread^2) [D]: u is a uniformly random unit
    vector in an r-dimensional subspace that all tasks of all splits share, and v one that is orthogonal to it. So
    -w is as probable as w, so no label belongs to one side. Inputs are standard normal (and then pushed away from
    the hyperplane if there is a margin), with equal numbers of both labels in support and query. The support is ordered
    by label, the query is shuffled.

    ``normal`` in the origin's fields is w of each task [B, D].

    Args:
        shot: K, support examples per class, or a range (least, greatest).
        query: Q, queries per class, or a range.
        seed: fixes all episodes, but not the subspace.
        dimensions: D, the length of an input.
        subspace: r, the dimension of the common subspace; D for hyperplanes that have nothing in common.
        spread: tangent of the angle between w and the subspace; 0 for normals in the subspace.
        margin: distance from the hyperplane within which there are no inputs.
        noise: probability that an example is on the other side than its label says.
        subspace_seed: fixes the common subspace.
        block: episodes with the same i // block have the same numbers of examples, if these are ranges.

    Raises:
        OptionError: a number is out of its range, or there is no direction outside of the subspace for ``spread``.
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
                f"{who}: got subspace {subspace} and dimensions {dimensions}, expected 1 <= subspace <= dimensions"
            )
        if not (0 <= spread < np.inf and 0 <= margin < np.inf and 0 <= noise < 0.5):
            raise OptionError(
                f"{who}: got spread {spread}, margin {margin} and noise {noise}, expected spread >= 0, margin >= 0 and "
                "0 <= noise < 0.5"
            )
        if spread and subspace == dimensions:
            raise OptionError(
                f"{who}: got spread {spread} and a subspace of all {dimensions} dimensions, expected a smaller "
                "subspace, or spread 0"
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
        # Labels come first, K and Q of each; then every example gets an input on the side of its label.
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
    # The signs of q are a convention of the library; those that make the diagonal of r positive are unique.
    basis: Array = q * np.where(np.diag(r) < 0, -1.0, 1.0)
    return basis


def _unit(vectors: Array) -> Array:
    """Scale vectors [B, D] to length 1."""
    scaled: Array = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled
