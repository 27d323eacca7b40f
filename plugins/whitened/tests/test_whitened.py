"""The map by its identities and a second implementation; the view shows the episodes below by it, and no others."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kshot
from kshot import ClassificationTasks, Needs, Pool, Support, registry
from kshot.errors import DataError, MisfitError, OptionError
from kshot.testing import sample_tasks
from kshot_whitened import Whitened
from kshot_whitened.whitening import principal_components, whitening


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def correlated(n: int, D: int, seed: int = 0) -> Tensor:
    """Rows whose numbers are mixed from one another, far from 0."""
    return draws(n, D, seed=seed) @ draws(D, D, seed=seed + 1) + 7


def tasks(**options: Any) -> ClassificationTasks:
    """Images of 8 classes in train, of 4 in test, by one table of bytes."""
    x = (correlated(12 * 10, 12).sigmoid() * 255).to(torch.uint8).view(-1, 1, 3, 4)
    rows = np.arange(120).reshape(12, 10)
    pools = {
        name: Pool(x, rows[a:b], np.full(b - a, 10), names=tuple("abcdefghijkl"[a:b]), input_range=(0.0, 1.0))
        for name, a, b in (("train", 0, 8), ("test", 8, 12))
    }
    return ClassificationTasks(pools, prepare=lambda raw: torch.as_tensor(raw), **{"query": 3, "way": 3, **options})


# --- The map ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "D"), [(40, 9), (9, 40)])
def test_components_have_variance_1_and_no_correlation(n: int, D: int) -> None:
    """By either of the two matrices, without a floor."""
    x = correlated(n, D)
    z = whitening(x, 8, 0.0)(x)
    assert torch.allclose(z.mean(0), torch.zeros(8, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(z.T @ z / n, torch.eye(8, dtype=torch.float64), atol=1e-8)


def test_distances_are_mahalanobis() -> None:
    """With all components and no floor: (a - b)^T C^-1 (a - b), C the covariance."""
    x, new = correlated(50, 6), correlated(5, 6, seed=9)
    z = whitening(x, 6, 0.0)(new)
    inverse = np.linalg.inv(np.cov(x.numpy().T, bias=True))
    apart = (new[:, None] - new[None]).numpy()
    expected = np.sqrt(np.einsum("abi,ij,abj->ab", apart, inverse, apart))
    assert np.allclose(torch.cdist(z, z).numpy(), expected)


@pytest.mark.parametrize(("n", "D"), [(30, 7), (7, 30)])
def test_components_are_those_of_a_singular_value_decomposition(n: int, D: int) -> None:
    """A second way to them, by numpy; up to their signs, which are settled."""
    x = correlated(n, D)
    mean, directions, variances = principal_components(x, 5)
    _, s, v = np.linalg.svd((x - x.mean(0)).numpy(), full_matrices=False)
    assert torch.equal(mean, x.mean(0))
    assert np.allclose(variances.numpy(), s[:5] ** 2 / n)
    assert np.allclose(np.abs(directions.numpy().T), np.abs(v[:5]))
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    assert (largest > 0).all()


def test_the_floor_by_hand() -> None:
    """Variances 9 and 1, mean 5; with a floor of 0.4 they are divided by 11 and 3."""
    x = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [3.0, 0.0], [-3.0, 0.0]], dtype=torch.float64)
    x = x + torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, -1.0], [0.0, -1.0]])
    z = whitening(x, 2, 0.4)(x)
    assert torch.allclose(z.square().mean(0), torch.tensor([9 / 11, 1 / 3], dtype=torch.float64))


# --- The view --------------------------------------------------------------------------------------------------------


def test_episodes_are_those_below_by_the_map_of_the_training_split() -> None:
    """Inputs alone are changed, and the test split's by what was fitted on the training split."""
    below, view = tasks(), Whitened(tasks(), 4)
    pool = below.pool("train")
    expected = whitening(pool.gather(pool.table()[0]).flatten(1), 4, 0.1)
    for split in ("train", "test"):
        e, plain = view.sample(split, range(3)), below.sample(split, range(3))
        for part, old in ((e.support, plain.support), (e.query, plain.query)):
            assert torch.equal(part.y, old.y)
            assert torch.allclose(part.x, expected(old.x).view(3, -1, 4))
        assert e.origin is not None
        assert np.array_equal(e.origin.support_ids, plain.origin.support_ids)
    assert view.spec == attrs.evolve(below.spec, input_shape=(4,), input_range=None)


def test_pool_and_prepared_examples_are_what_episodes_show() -> None:
    """Row by row."""
    view, below = Whitened(tasks(), 4), tasks()
    e = view.sample("test", range(4))
    assert torch.allclose(view.pool("test").gather(e.origin.query_ids), e.query.x, atol=1e-6)
    assert view.pool("test").names == tuple("ijkl")
    pixels = below.pool("test").gather(e.origin.query_ids[0])
    assert torch.allclose(view.prepare(pixels), e.query.x[0], atol=1e-6)


class More(sample_tasks.WithMore):
    """With a pool."""

    def __init__(self) -> None:
        super().__init__(tasks(), unlabelled=5, external=4)
        self.pool, self.prepare = self.of.pool, self.of.prepare


def test_what_prepares_examples_can_be_written_down() -> None:
    """With the components, and what the tasks below do; a closure can't be."""
    of = ClassificationTasks({"train": tasks().pool("train")}, way=3, query=3)
    view = Whitened(of, 4)
    again = registry.preparation(view.preparation.to_dict())
    pixels = of.pool("train").gather(of.pool("train").rows[0, :2])
    assert torch.equal(again(pixels), view.prepare(pixels))
    assert Whitened(tasks(), 4).preparation is None


def test_unlabelled_and_external_examples_and_class_vectors_come_along() -> None:
    """A view of other views, and of zero-shot tasks, whose support is empty."""
    below, e = More().sample("train", [0, 1]), Whitened(More(), 4).sample("train", [0, 1])
    to = Whitened(tasks(), 4).components
    assert torch.equal(e.support.unlabelled, to(below.support.unlabelled).view(2, 5, 4))
    assert torch.equal(e.external.x, to(below.external.x).view(2, 4, 4))
    assert torch.equal(e.external.y, below.external.y)
    zero = sample_tasks.classification(semantics=3, shot=0)
    e = Whitened(zero, 2).sample("test", [0, 1])
    assert e.support.x.shape[1:] == (0, 2)
    assert torch.equal(e.support.semantics, zero.sample("test", [0, 1]).support.semantics)


def test_the_split_to_fit_on_and_the_number_of_examples_matter_and_are_in_the_fingerprint() -> None:
    plain = Whitened(tasks(), 4)
    for options in ({"fit": "test"}, {"examples": 20}, {"floor": 0.5}, {"components": 3}):
        other = Whitened(tasks(), **{"components": 4, **options})
        assert other.fingerprint != plain.fingerprint
        k = other.spec.input_shape[0]
        assert not torch.allclose(other.sample("test", [0]).query.x, plain.sample("test", [0]).query.x[..., :k])


class Nearest(nn.Module):
    """The class of the nearest example, one a class."""

    needs = Needs(variable_way=True)

    def adapt(self, support: Support) -> Any:
        return lambda x: -torch.cdist(x, support.x)


def test_a_distance_sees_in_it_what_pixels_hide() -> None:
    """Classes differ in six directions of little variance; two others have much and say nothing."""
    x = torch.cat([0.1 * draws(40, 6).repeat_interleave(10, 0) + 0.01 * draws(400, 6), draws(400, 2, seed=1)], 1)
    y = np.repeat(np.arange(20), 10)
    of = ClassificationTasks(
        {"train": Pool.of(x[:200].float(), y), "test": Pool.of(x[200:].float(), y)}, way=5, shot=1, query=5
    )
    found = {}
    for name, view in (("plain", of), ("whitened", Whitened(of, 8, floor=0.0))):
        found[name] = kshot.Engine(Nearest(), view).evaluate(100).mean
    assert found["whitened"] > found["plain"] + 0.3


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"components": 0}, OptionError, "components is 0 and examples 2000"),
        ({"examples": 1}, OptionError, "examples 1; expected at least 1 and at least 2"),
        ({"floor": -0.1}, OptionError, "floor is -0.1, expected a share"),
        ({"floor": float("nan")}, OptionError, "floor is nan"),
        ({"fit": "val"}, DataError, "fit is 'val', but these tasks have the splits train, test"),
        ({"components": 13}, DataError, "80 examples of 12 numbers .split 'train'. have at most 12; ask for fewer"),
        ({"components": 9, "examples": 9}, DataError, "9 examples of 12 numbers .split 'train'. have at most 8"),
    ],
)
def test_what_cannot_be_is_told(options: dict[str, Any], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        Whitened(tasks(), **{"components": 4, **options})


def test_examples_that_are_too_much_alike_are_told() -> None:
    """Copies vary in no direction."""
    x = torch.ones(20, 6)
    x[:, 0] = torch.arange(20.0)
    of = ClassificationTasks({"train": Pool.of(x, np.repeat([0, 1], 10))}, way=2, query=2)
    with pytest.raises(DataError, match="vary in fewer directions"):
        Whitened(of, 3, floor=0.0)
    assert Whitened(of, 1).spec.input_shape == (1,)


def test_other_tasks_are_refused() -> None:
    with pytest.raises(MisfitError, match="are regression tasks"):
        Whitened(sample_tasks.Lines())  # type: ignore[arg-type]
