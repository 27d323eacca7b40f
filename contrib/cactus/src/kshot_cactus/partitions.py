"""Divide embeddings into clusters: functions of embeddings z [n, D] and a generator of random numbers.

A partition gives each example the number of its cluster, or OUTSIDE. Letters: n examples, D numbers of an embedding,
P partitions.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from kshot.errors import DataError

Floats = NDArray[np.float32]
Labels = NDArray[np.int32]

OUTSIDE = -1
"""The label of an example that is in no cluster."""

ATTEMPTS = 1000
"""How many random planes, or combinations of planes, are tried for one partition."""

PLACE = 0.8
"""Coordinates of the point through which a plane goes are uniform in [-PLACE, PLACE], as in the authors' code."""


def check_points(z: Floats, clusters: int, where: str) -> None:
    """Raise an error unless embeddings [n, D] are finite, and enough of them are different.

    Raises:
        DataError: an embedding is NaN or infinite, or there are fewer different embeddings than clusters.
    """
    if not np.isfinite(z).all():
        bad = int((~np.isfinite(z)).any(1).sum())
        raise DataError(
            f"cactus: got {bad} of {len(z)} embeddings of {where} that are NaN or infinite, expected finite numbers; "
            "use another encoder"
        )
    if len(z) < clusters:
        raise DataError(
            f"cactus: got {len(z)} examples in {where}, expected at least as many as clusters, {clusters}; lower "
            "clusters"
        )
    if (different := len(np.unique(z, axis=0))) < max(2, clusters):
        what = "all embeddings the same" if different == 1 else f"{different} different embeddings"
        raise DataError(
            f"cactus: got {what} for the {len(z)} examples of {where}, expected at least {max(2, clusters)} different "
            "ones; lower clusters, or use another encoder"
        )


def scalings(D: int, partitions: int, rng: np.random.Generator) -> Floats:
    """Draw the factor of each dimension for each partition [P, D]: 1 for the first one, uniform in [0, 1) for others.

    Section 2.3 of the paper scales the dimensions at random, so that each partition emphasises other properties. That
    the first partition is not scaled is from the authors' code.
    """
    factors = rng.uniform(size=(partitions, D)).astype(np.float32)
    factors[0] = 1
    return factors


def kmeans(z: Floats, clusters: int, restarts: int, rng: np.random.Generator) -> Labels:
    """Divide embeddings [n, D] by k-means with the start of k-means++, the best of several restarts: labels [n].

    Equation 1 of the paper: the clusters C_c and centres mu_c minimise sum_c sum_(z in C_c) ||z - mu_c||^2.
    """
    seed = int(rng.integers(2**31))
    labels: Labels = KMeans(clusters, n_init=restarts, random_state=seed).fit(z).labels_.astype(np.int32)
    return labels


def kmeans_partitions(z: Floats, partitions: int, clusters: int, restarts: int, rng: np.random.Generator) -> Labels:
    """Divide embeddings [n, D] by k-means several times, each time with other scales of the dimensions: [P, n]."""
    factors = scalings(z.shape[1], partitions, rng)
    return np.stack([kmeans(z * factor, clusters, restarts, rng) for factor in factors])


def standardised(z: Floats) -> Floats:
    """Give each dimension of embeddings [n, D] the mean 0 and the variance 1; dimensions that do not vary are 0."""
    centred = z - z.mean(0)
    deviation = centred.std(0)
    scaled: Floats = centred / np.where(deviation > 0, deviation, 1).astype(np.float32)
    return scaled


def plane(z: Floats, rng: np.random.Generator) -> Floats:
    """Return the signed distances [n] of embeddings [n, D] from a random plane.

    As in the authors' code, the normal is a vector with coordinates uniform in [-1, 1], scaled to length 1, and the
    plane goes through a point with coordinates uniform in [-PLACE, PLACE].
    """
    normal = rng.uniform(-1, 1, size=(z.shape[1],)).astype(np.float32)
    normal /= np.linalg.norm(normal)
    point = rng.uniform(-PLACE, PLACE, size=(z.shape[1],)).astype(np.float32)
    distances: Floats = ((z - point) @ normal).astype(np.float32)
    return distances


def sides(distances: Floats, margin: float) -> Labels:
    """Return the side of each example [n]: 1 beyond the margin, 0 beyond it on the other side, OUTSIDE within it."""
    side = np.full(len(distances), OUTSIDE, np.int32)
    side[distances >= margin] = 1
    side[distances <= -margin] = 0
    return side


def hyperplane_partitions(
    z: Floats, partitions: int, planes: int, margin: float, least: int, smallest: int, rng: np.random.Generator
) -> Labels:
    """Divide standardised embeddings [n, D] by random hyperplanes, several times: labels [P, n].

    A cluster is the set of examples that are on the same sides of all planes. Examples that are nearer to one of the
    planes than the margin are in no cluster. As in the authors' code, a plane is drawn again if it leaves few examples
    on one side (fewer than 10 times ``smallest``; here at most a tenth of the examples), and a partition is drawn again
    if it has fewer than ``least`` clusters of at least ``smallest`` examples.

    Args:
        z: embeddings whose dimensions have the mean 0 and the variance 1.
        partitions: number of partitions.
        planes: number of planes of each partition.
        margin: the least distance of an example from a plane.
        least: the least number of clusters of a partition.
        smallest: the least size of a cluster.
        rng: the source of random numbers.

    Raises:
        DataError: no such partition was found.
    """
    enough = min(10 * smallest, len(z) // 10)

    def cut() -> Labels:
        for _ in range(ATTEMPTS):
            side = sides(plane(z, rng), margin)
            if min(int((side == 0).sum()), int((side == 1).sum())) >= enough:
                return side
        raise DataError(
            f"cactus: got a margin of {margin}, with which none of {ATTEMPTS} random planes leaves {enough} of "
            f"{len(z)} examples on each side; lower margin, or use another encoder"
        )

    def partition() -> Labels:
        for _ in range(ATTEMPTS):
            cuts = np.stack([cut() for _ in range(planes)])
            # The sides of an example are the binary digits of its cluster's number.
            labels = np.where((cuts == OUTSIDE).any(0), OUTSIDE, (cuts << np.arange(planes)[:, None]).sum(0))
            if int((np.bincount(labels[labels >= 0], minlength=1) >= smallest).sum()) >= least:
                return labels.astype(np.int32)
        raise DataError(
            f"cactus: got {planes} planes with a margin of {margin}, which gave fewer than {least} clusters of "
            f"{smallest} examples in each of {ATTEMPTS} trials; lower margin, way, shot or query, or raise planes"
        )

    return np.stack([partition() for _ in range(partitions)])


def random_partitions(n: int, partitions: int, clusters: int, rng: np.random.Generator) -> Labels:
    """Divide n examples at random into clusters of equal size, up to one example: labels [P, n]."""
    return np.stack([rng.permutation(n) % clusters for _ in range(partitions)]).astype(np.int32)


def planes_for(way: int) -> int:
    """Return the least number of planes that can separate ``way`` classes, as in the authors' code.

    Example:
        >>> planes_for(5), planes_for(20)
        (3, 5)
    """
    return max(1, math.ceil(math.log2(way)))
