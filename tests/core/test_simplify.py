"""A simplified trace has fewer operations, and computes the same numbers to the bit."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kshot.inner.simplify import simplify
from kshot.inner.tracing import trace


def repeated(a: Tensor) -> list[Tensor]:
    return [(a * 3).sum(0) + (a * 3).exp().sum(0), a.transpose(0, 1).transpose(0, 1) + 1]


def written(a: Tensor) -> list[Tensor]:
    total = a * 2
    first = (total + 1).exp()
    total.add_(a)
    return [first, (total + 1).exp()]


def written_through_a_view(a: Tensor) -> list[Tensor]:
    total = a * 2
    first = total.sum(0)
    total.view(9)[0].mul_(5)
    return [first, total.sum(0), total.t().t() + 1]


def written_by_batch_norm(a: Tensor) -> list[Tensor]:
    mean, var = a.mean(0), a.mean(0) + 1
    before = mean * 2
    normal = F.batch_norm(a, mean, var, training=True)
    return [before, normal, mean * 2, var * 2]


def transposed_by_other_axes(a: Tensor) -> list[Tensor]:
    b = a.view(3, 3, 1)
    return [b.transpose(0, 1).transpose(0, 2) + 1, b.transpose(0, 1).transpose(0, 1) * 2]


@pytest.mark.parametrize(
    ("function", "removed"),
    [
        (repeated, 3),
        (written, 0),
        (written_through_a_view, 0),
        (written_by_batch_norm, 0),
        (transposed_by_other_axes, 2),
    ],
)
def test_what_is_there_already_is_not_computed_again(function, removed):
    """Unless something was written in between."""
    x = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    graph = trace(function, [x])
    before = len(graph.graph.nodes)
    simplify(graph)
    assert before - len(graph.graph.nodes) == removed
    assert all(torch.equal(a, b) for a, b in zip(graph(x), function(x), strict=True))
