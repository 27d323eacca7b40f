"""The tasks have the hyperplanes, margins and noise of their options, and share a subspace."""

import numpy as np
import pytest
import torch

import kshot
from kshot.errors import DataError, OptionError
from kshot_linear_classification import LinearClassification


def distances(episode, part="query"):
    """Return x . w of each input of a part [B, n], and the side +1 or -1 of its label."""
    examples = getattr(episode, part)
    w = torch.from_numpy(episode.origin.fields["normal"])
    return torch.einsum("bnd,bd->bn", examples.x.double(), w).numpy(), 2 * examples.y.numpy() - 1


def test_labels_are_the_sides_of_the_hyperplane():
    """Without noise, label 1 is on the side of the normal, in support and query, and no input is within the margin."""
    for margin in (0.0, 0.4):
        episode = LinearClassification(margin=margin).sample("test", range(50))
        for part in ("support", "query"):
            d, side = distances(episode, part)
            assert (d * side > margin - 1e-5).all()


def test_noise_puts_examples_on_the_other_side():
    """The given share of the inputs of each label is on the other side, in support and query."""
    episode = LinearClassification(shot=50, query=50, noise=0.2, dimensions=5).sample("train", range(200))
    for part in ("support", "query"):
        d, side = distances(episode, part)
        for label in (-1, 1):
            # 10,000 examples, within four standard errors.
            assert np.mean((d * side < 0)[side == label]) == pytest.approx(0.2, abs=4 * np.sqrt(0.16 / 10_000))


def test_inputs_are_standard_normal_and_pushed_by_the_margin_along_the_normal_only():
    """Together, the inputs of both labels are N(0, I); with a margin, |x . w| is the margin plus |normal|."""
    episode = LinearClassification(query=50, dimensions=6).sample("train", range(400))
    x = episode.query.x.flatten(0, 1).double()
    assert torch.allclose(torch.cov(x.T), torch.eye(6, dtype=torch.float64), atol=4 * np.sqrt(2 / 40_000))
    assert float(x.mean(0).abs().max()) < 4 / np.sqrt(40_000)
    episode = LinearClassification(query=50, dimensions=6, margin=0.7).sample("train", range(400))
    d, _ = distances(episode)
    assert np.mean(np.abs(d)) == pytest.approx(0.7 + np.sqrt(2 / np.pi), abs=0.02)
    assert np.mean((np.abs(d) - 0.7) ** 2) == pytest.approx(1, abs=0.03)
    w = torch.from_numpy(episode.origin.fields["normal"])[:, None]
    across = episode.query.x.double() - torch.from_numpy(d)[..., None] * w
    assert float(across.square().sum(-1).mean()) == pytest.approx(5, rel=0.01)


@pytest.mark.parametrize(("subspace", "spread"), [(1, 0.0), (3, 0.0), (1, 0.5), (3, 2.0), (12, 0.0)])
def test_normals_are_at_the_angle_of_the_spread_to_the_common_subspace(subspace, spread):
    """All splits and seeds have one subspace; the part of w outside of it is ``spread`` times the part inside."""
    normals = []
    for seed, split in ((0, "train"), (0, "test"), (5, "val")):
        tasks = LinearClassification(seed=seed, dimensions=12, subspace=subspace, spread=spread)
        normals.append(tasks.sample(split, range(200)).origin.fields["normal"])
    w = np.concatenate(normals)
    assert np.allclose(np.linalg.norm(w, axis=1), 1)
    basis = LinearClassification(dimensions=12, subspace=subspace).basis
    assert np.allclose(basis.T @ basis, np.eye(subspace))
    inside = w @ basis
    outside = np.linalg.norm(w - inside @ basis.T, axis=1)
    assert np.allclose(outside, spread * np.linalg.norm(inside, axis=1))
    # All directions in the subspace are equally probable, so those of inside have mean 0 and covariance I / r.
    inside /= np.linalg.norm(inside, axis=1, keepdims=True)
    assert np.abs(inside.mean(0)).max() < 4 / np.sqrt(600)
    assert np.allclose(inside.T @ inside / 600, np.eye(subspace) / subspace, atol=4 / np.sqrt(600))


def test_another_subspace_has_another_seed():
    """The seed of the subspace changes the normals; the seed of the episodes does not change the subspace."""
    first, again, other = (LinearClassification(seed=s, subspace_seed=u) for s, u in ((0, 0), (1, 0), (0, 1)))
    assert np.array_equal(first.basis, again.basis)
    assert np.linalg.svd(first.basis.T @ other.basis)[1].max() < 0.9


def test_labels_are_balanced_and_the_query_is_shuffled():
    """Every part has equal numbers of both labels; the support is ordered by label."""
    episode = LinearClassification(shot=3, query=4).sample("train", range(100))
    assert episode.support.y[0].tolist() == [0, 0, 0, 1, 1, 1]
    assert set(episode.query.y.sum(1).tolist()) == {4}
    assert len({tuple(row) for row in episode.query.y.tolist()}) > 30


def test_support_and_query_do_not_depend_on_each_others_number():
    """Learners with different shots are compared on the same queries of the same hyperplanes."""
    few, many = (LinearClassification(shot=k, query=6, noise=0.1).sample("test", [4]) for k in (1, 8))
    assert torch.equal(few.query.x, many.query.x)
    assert torch.equal(few.query.y, many.query.y)
    assert np.array_equal(few.origin.fields["normal"], many.origin.fields["normal"])


def test_numbers_of_examples_may_vary_between_blocks():
    """A range draws one shape for each block; the episodes of a block can form a meta-batch."""
    tasks = kshot.tasks("linear-classification", shot=(1, 20), query=3, block=4)
    shots = {tasks.sample("train", range(4 * b, 4 * b + 4)).support.x.shape[1] for b in range(30)}
    assert len(shots) > 10
    assert 2 <= min(shots) <= max(shots) <= 40


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"subspace": 51}, "got subspace 51 and dimensions 50"),
        ({"subspace": 0}, "got subspace 0"),
        ({"noise": 0.5}, "noise 0.5, expected"),
        ({"margin": -1.0}, "margin -1.0"),
        ({"spread": float("nan")}, "got spread nan"),
        ({"subspace": 4, "dimensions": 4, "spread": 0.1}, "a subspace of all 4 dimensions"),
    ],
)
def test_bad_options_are_refused(wrong, message):
    """The error says what was given and what was expected, when the tasks are built."""
    with pytest.raises(OptionError, match=message):
        LinearClassification(**wrong)


@pytest.mark.parametrize("wrong", [{"shot": -1}, {"query": (5, 2)}, {"block": 0}])
def test_impossible_shapes_are_refused(wrong):
    """The spec checks the numbers of examples when the tasks are built."""
    with pytest.raises(DataError, match=f"got {next(iter(wrong))}"):
        LinearClassification(**wrong)


def test_unknown_splits_are_refused():
    """The error names the split that was asked for."""
    with pytest.raises(DataError, match="unknown split 'dev'"):
        kshot.tasks("linear-classification").sample("dev", [0])
