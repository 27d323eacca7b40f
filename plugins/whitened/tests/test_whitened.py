"""The map has the properties of whitening, and the view shows the episodes below with mapped inputs."""

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
    """Draw n rows of D correlated numbers, with a mean far from 0."""
    return draws(n, D, seed=seed) @ draws(D, D, seed=seed + 1) + 7


def tasks(**options: Any) -> ClassificationTasks:
    """Make tasks with images of 8 classes in train and 4 in test, in one table of bytes."""
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
    """This holds for either of the two matrices, without a floor."""
    x = correlated(n, D)
    z = whitening(x, 8, 0.0)(x)
    assert torch.allclose(z.mean(0), torch.zeros(8, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(z.T @ z / n, torch.eye(8, dtype=torch.float64), atol=1e-8)


def test_distances_are_mahalanobis() -> None:
    """With all components and no floor, they are (a - b)^T C^-1 (a - b), where C is the covariance."""
    x, new = correlated(50, 6), correlated(5, 6, seed=9)
    z = whitening(x, 6, 0.0)(new)
    inverse = np.linalg.inv(np.cov(x.numpy().T, bias=True))
    apart = (new[:, None] - new[None]).numpy()
    expected = np.sqrt(np.einsum("abi,ij,abj->ab", apart, inverse, apart))
    assert np.allclose(torch.cdist(z, z).numpy(), expected)


@pytest.mark.parametrize(("n", "D"), [(30, 7), (7, 30)])
def test_components_are_those_of_a_singular_value_decomposition(n: int, D: int) -> None:
    """numpy's decomposition gives the same, up to the signs; the largest number of each direction is positive."""
    x = correlated(n, D)
    mean, directions, variances = principal_components(x, 5)
    _, s, v = np.linalg.svd((x - x.mean(0)).numpy(), full_matrices=False)
    assert torch.equal(mean, x.mean(0))
    assert np.allclose(variances.numpy(), s[:5] ** 2 / n)
    assert np.allclose(np.abs(directions.numpy().T), np.abs(v[:5]))
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    assert (largest > 0).all()


def test_the_floor_by_hand() -> None:
    """The variances 9 and 1 have the mean 5; a floor of 0.4 adds 2, so they are divided by 11 and 3."""
    x = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [3.0, 0.0], [-3.0, 0.0]], dtype=torch.float64)
    x = x + torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, -1.0], [0.0, -1.0]])
    z = whitening(x, 2, 0.4)(x)
    assert torch.allclose(z.square().mean(0), torch.tensor([9 / 11, 1 / 3], dtype=torch.float64))


# --- The view --------------------------------------------------------------------------------------------------------


def test_episodes_are_those_below_by_the_map_of_the_training_split() -> None:
    """Only the inputs change, in the test split too by the map that was fitted on the training split."""
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
    """The rows of the pool, prepared pixels and the queries of an episode agree."""
    view, below = Whitened(tasks(), 4), tasks()
    e = view.sample("test", range(4))
    assert torch.allclose(view.pool("test").gather(e.origin.query_ids), e.query.x, atol=1e-6)
    assert view.pool("test").names == tuple("ijkl")
    pixels = below.pool("test").gather(e.origin.query_ids[0])
    assert torch.allclose(view.prepare(pixels), e.query.x[0], atol=1e-6)


class More(sample_tasks.WithMore):
    """A view with unlabelled and external examples that has a pool too."""

    def __init__(self) -> None:
        super().__init__(tasks(), unlabelled=5, external=4)
        self.pool, self.prepare = self.of.pool, self.of.prepare


def test_the_preparation_can_be_stored_and_read_again() -> None:
    """It has the components and the preparation of the tasks below; with a closure below there is none."""
    of = ClassificationTasks({"train": tasks().pool("train")}, way=3, query=3)
    view = Whitened(of, 4)
    again = registry.preparation(view.preparation.to_dict())
    pixels = of.pool("train").gather(of.pool("train").rows[0, :2])
    assert torch.equal(again(pixels), view.prepare(pixels))
    assert Whitened(tasks(), 4).preparation is None


def test_unlabelled_and_external_examples_and_class_vectors_come_along() -> None:
    """The view works over other views, and over zero-shot tasks, whose support is empty."""
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
    """Another value of any of the options gives another fingerprint and other inputs."""
    plain = Whitened(tasks(), 4)
    for options in ({"fit": "test"}, {"examples": 20}, {"floor": 0.5}, {"components": 3}):
        other = Whitened(tasks(), **{"components": 4, **options})
        assert other.fingerprint != plain.fingerprint
        k = other.spec.input_shape[0]
        assert not torch.allclose(other.sample("test", [0]).query.x, plain.sample("test", [0]).query.x[..., :k])


class Nearest(nn.Module):
    """Predict the class of the nearest support example, with one example per class."""

    needs = Needs(variable_way=True)

    def adapt(self, support: Support) -> Any:
        return lambda x: -torch.cdist(x, support.x)


def test_a_distance_sees_in_it_what_pixels_hide() -> None:
    """Classes differ in six directions of small variance; two directions of large variance are noise."""
    x = torch.cat([0.1 * draws(40, 6).repeat_interleave(10, 0) + 0.01 * draws(400, 6), draws(400, 2, seed=1)], 1)
    y = np.repeat(np.arange(20), 10)
    of = ClassificationTasks(
        {"train": Pool.of(x[:200].float(), y), "test": Pool.of(x[200:].float(), y)}, way=5, shot=1, query=5
    )
    accuracy = {}
    for name, view in (("plain", of), ("whitened", Whitened(of, 8, floor=0.0))):
        accuracy[name] = kshot.Engine(Nearest(), view).evaluate(100).mean
    assert accuracy["whitened"] > accuracy["plain"] + 0.3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"components": 0}, OptionError, "got components 0 and examples 2000"),
        ({"examples": 1}, OptionError, "examples 1, expected at least 1 and at least 2"),
        ({"floor": -0.1}, OptionError, "got floor -0.1, expected a share"),
        ({"floor": float("nan")}, OptionError, "got floor nan"),
        ({"fit": "val"}, DataError, "got fit 'val', expected one of the splits train, test"),
        ({"components": 13}, DataError, "expected at most 12 for 80 examples of 12 numbers .split 'train'.; lower"),
        ({"components": 9, "examples": 9}, DataError, "expected at most 8 for 9 examples of 12 numbers"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    """The error says what was given and what was expected."""
    with pytest.raises(error, match=message):
        Whitened(tasks(), **{"components": 4, **options})


def test_examples_that_are_too_similar_are_refused() -> None:
    """Examples that vary in one direction have one component, not three."""
    x = torch.ones(20, 6)
    x[:, 0] = torch.arange(20.0)
    of = ClassificationTasks({"train": Pool.of(x, np.repeat([0, 1], 10))}, way=2, query=2)
    with pytest.raises(DataError, match="vary in fewer directions"):
        Whitened(of, 3, floor=0.0)
    assert Whitened(of, 1).spec.input_shape == (1,)


def test_other_tasks_are_refused() -> None:
    """Regression tasks have no pool of labelled examples."""
    with pytest.raises(MisfitError, match="are regression tasks"):
        Whitened(sample_tasks.Lines())  # type: ignore[arg-type]
