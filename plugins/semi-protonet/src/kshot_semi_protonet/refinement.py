"""The refinement of prototypes by unlabelled examples: Ren et al. 2018 (1803.00676), section 3.

Letters: N way, U unlabelled examples, D embedding; j is an unlabelled example and c a class. The functions accept any
leading axes, usually B (meta-batch).
"""

from __future__ import annotations

import torch
from torch import Tensor


def soft_assignments(distances: Tensor) -> Tensor:
    """Assign each unlabelled example to the classes by soft k-means (section 3.1.1).

    Squared distances [..., U, N] give the shares of each example [..., U, N], which sum to 1 over the classes.
    """
    return (-distances).softmax(-1)


def cluster_assignments(distances: Tensor, z: Tensor, log_radius: Tensor) -> Tensor:
    """Assign each unlabelled example to the classes or to a distractor cluster (section 3.1.2).

    The centre of the distractor cluster is the origin and its radius r is learned; the radius of the classes is 1.

    Args:
        distances: squared distances to the prototypes [..., U, N].
        z: embeddings [..., U, D].
        log_radius: log r [].

    Returns:
        The shares of the classes [..., U, N]. What is missing to a sum of 1 is the share of the distractor cluster.
    """
    # The logits are -d / r^2 - A(r) with A(r) = log(2 pi) / 2 + log r. The term log(2 pi) / 2 is common to all clusters
    # and cancels in the softmax, and log r is 0 for the classes.
    distractors = -z.square().sum(-1, keepdim=True) * (-2 * log_radius).exp() - log_radius
    return torch.cat([-distances, distractors], -1).softmax(-1)[..., :-1]


def normalised_distances(distances: Tensor) -> Tensor:
    """Compute d~_jc = d_jc / (mean over j of d_jc) [..., U, N] for masking (section 3.1.3).

    It is 0 if all distances to a prototype are 0.
    """
    mean = distances.mean(-2, keepdim=True)
    return distances / mean.where(mean > 0, torch.ones_like(mean))


def statistics(normalised: Tensor) -> Tensor:
    """Compute minimum, maximum, variance, skewness and kurtosis of the distances to each prototype.

    Normalised distances [..., U, N] give statistics over j [..., N, 5]. The kurtosis of the normal distribution is 3.
    Skewness and kurtosis are 0 if all distances are equal.
    """
    centred = normalised - normalised.mean(-2, keepdim=True)
    second, third, fourth = (centred.pow(k).mean(-2) for k in (2, 3, 4))
    spread = second.where(second > 0, torch.ones_like(second))
    moments = (second, third / spread**1.5, fourth / spread**2)
    return torch.stack([normalised.amin(-2), normalised.amax(-2), *moments], -1)


def soft_mask(normalised: Tensor, beta: Tensor, gamma: Tensor) -> Tensor:
    """Compute the masks m_jc = sigmoid(-gamma_c (d~_jc - beta_c)) [..., U, N].

    A mask is above 1/2 for examples nearer than the threshold beta_c.

    Args:
        normalised: normalised distances d~ [..., U, N].
        beta: thresholds [..., N].
        gamma: slopes [..., N].
    """
    return (-gamma.unsqueeze(-2) * (normalised - beta.unsqueeze(-2))).sigmoid()


def refined(prototypes: Tensor, counts: Tensor, z: Tensor, weights: Tensor) -> Tensor:
    """Compute the refined prototypes p~_c [..., N, D].

    They are means over the support of the class, each example with weight 1, and over all unlabelled examples, each
    with its own weight.

    Args:
        prototypes: means of the support [..., N, D].
        counts: support examples of each class [..., N].
        z: embeddings of the unlabelled examples [..., U, D].
        weights: of each unlabelled example for each class [..., U, N].
    """
    # Not a matrix product, because autocast would compute that in half precision.
    sums = (weights.unsqueeze(-1) * z.unsqueeze(-2)).sum(-3)
    total = counts + weights.sum(-2)
    return (prototypes * counts.unsqueeze(-1) + sums) / total.clamp_min(torch.finfo(z.dtype).tiny).unsqueeze(-1)
