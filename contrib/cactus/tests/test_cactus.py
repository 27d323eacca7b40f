"""CACTUs: its partitions are those of the embeddings, its training uses no label, and its tests are untouched."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor, nn

import kshot
from kshot import ClassificationTasks, Pool
from kshot.errors import DataError, MisfitError, OptionError
from kshot.testing import sample_tasks
from kshot_cactus import Cactus
from kshot_cactus.partitions import (
    OUTSIDE,
    check_points,
    hyperplane_partitions,
    kmeans_partitions,
    plane,
    planes_for,
    random_partitions,
    scalings,
    sides,
    standardised,
)

CLASSES, EACH = 12, 10


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test compute its own partitions."""
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path))


def one_hot(splits: tuple[str, ...] = ("train", "val", "test"), **options: Any) -> ClassificationTasks:
    """Make tasks whose inputs are the one-hot vectors of their labels, in a random order."""
    y = np.random.default_rng(0).permutation(np.repeat(np.arange(CLASSES), EACH))
    pools = {split: Pool.of(np.eye(CLASSES, dtype=np.float32)[y], y) for split in splits}
    return ClassificationTasks(pools, **options)


def over(x: np.ndarray[Any, Any], **options: Any) -> Cactus:
    """Make the view of given inputs [n, D] as the training split, labelled by turns."""
    y = np.arange(len(x)) % 4
    tasks = ClassificationTasks({split: Pool.of(x, y) for split in ("train", "val", "test")})
    return Cactus(tasks, **{"way": 2, "query": 1, "clusters": 4, **options})


def true_labels(tasks: Any, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the true class of rows of the training pool."""
    rows, y = tasks.pool("train").table()
    return np.asarray(y[np.argsort(rows)][np.searchsorted(np.sort(rows), ids)])


# --- Clusters and classes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("partitions", [1, 4])
def test_one_hot_embeddings_give_back_the_labelled_tasks(partitions: int) -> None:
    """Each partition is the true one, also with scaled dimensions, and every episode has one true class per label."""
    of = one_hot()
    tasks = Cactus(of, way=5, shot=2, query=3, clusters=CLASSES, partitions=partitions)
    truth = true_labels(of, tasks.clustering.examples("train"))
    for labels in tasks.clustering.labels("train"):
        assert adjusted_rand_score(truth, labels) == 1
    episode = tasks.sample("train", range(6))
    for b in range(6):
        classes = [set(episode.support.x[b][episode.support.y[b] == c].argmax(1).tolist()) for c in range(5)]
        assert [len(each) for each in classes] == [1] * 5
        assert len(set.union(*classes)) == 5
        for x, c in zip(episode.query.x[b], episode.query.y[b], strict=True):
            assert int(x.argmax()) in classes[int(c)]


def test_an_encoder_s_embeddings_are_clustered_and_not_the_inputs() -> None:
    """An encoder that adds pairs of classes makes six clusters of them, and inputs stay as they are."""
    of = one_hot()

    class Pairs(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(len(x), CLASSES // 2, 2).sum(2)

    tasks = Cactus(of, way=5, query=3, clusters=CLASSES // 2, encoder=Pairs())
    truth = true_labels(of, tasks.clustering.examples("train"))
    (labels,) = tasks.clustering.labels("train")
    assert adjusted_rand_score(truth // 2, labels) == 1
    assert tasks.sample("train", [0]).support.x.shape == (1, 5, CLASSES)


def test_labelled_splits_are_those_of_the_tasks_below() -> None:
    """Validation and test episodes have the classes, examples and queries that they have without the view."""
    of = sample_tasks.classification(way=4, shot=2, query=3, seed=7)
    tasks = Cactus(of, way=4, shot=2, query=3, seed=7, clusters=8)
    for split in ("val", "test"):
        plain, own = of.sample(split, range(5)), tasks.sample(split, range(5))
        assert torch.equal(plain.support.x, own.support.x)
        assert torch.equal(plain.query.x, own.query.x)
        assert torch.equal(plain.query.y, own.query.y)
        assert np.array_equal(plain.origin.classes, own.origin.classes)
        assert plain.origin.names == own.origin.names


def test_training_episodes_do_not_depend_on_labels() -> None:
    """Other labels of the same examples change no training episode."""
    x = np.random.default_rng(1).normal(size=(60, 3)).astype(np.float32)
    shuffled = np.random.default_rng(2).permutation(np.arange(60) % 5)
    for how in ("kmeans", "hyperplanes", "random"):
        episodes = []
        for y in (np.arange(60) % 5, shuffled):
            of = ClassificationTasks({"train": Pool.of(x, y), "test": Pool.of(x, y)})
            options: Any = {"how": how, "clusters": 6, "margin": 0.0, "partitions": 2}
            episodes.append(Cactus(of, way=2, query=2, **options).sample("train", range(4)))
        assert torch.equal(episodes[0].support.x, episodes[1].support.x)
        assert torch.equal(episodes[0].query.x, episodes[1].query.x)


def test_partitions_and_clusters_are_drawn_uniformly() -> None:
    """Each of 3 partitions and each cluster is as frequent as the others, within 4 standard deviations."""
    tasks = Cactus(one_hot(), way=3, query=2, clusters=CLASSES, partitions=3)
    classes = tasks.sample("train", range(1500)).origin.classes
    partition = classes // CLASSES
    assert (partition == partition[:, :1]).all()
    counts = np.bincount(partition[:, 0], minlength=3)
    assert np.abs(counts - 500).max() < 4 * np.sqrt(1500 * 2 / 9)
    often = np.bincount(classes.reshape(-1), minlength=3 * CLASSES)
    assert np.abs(often - 125).max() < 4 * np.sqrt(4500 / 36)
    names = tasks.sample("train", [0]).origin.names
    assert names[CLASSES].startswith("partition 1, cluster ")


def test_small_clusters_are_dropped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Of three groups of 9, 8 and 2 points, the last one is too small for 1 + 3 examples, and a note says so."""
    groups = np.repeat([0.0, 10.0, 20.0], [9, 8, 2])
    x = np.stack([groups + 0.01 * np.arange(19), groups], 1).astype(np.float32)
    tasks = over(x, clusters=3, query=3)
    with caplog.at_level(logging.WARNING):
        pool = tasks.pool("train")
    assert sorted(pool.counts.tolist()) == [8, 9]
    assert "split 'train' has 2 clusters in 1 partition, and 89.5 % of its 19 examples are in them" in caplog.text
    assert "1 smaller clusters, with fewer than 4 members, were dropped" in caplog.text
    assert sorted(over(x, clusters=3, query=3, smallest=2).pool("train").counts.tolist()) == [2, 8, 9]


def test_random_groups_have_nothing_in_common_and_equal_sizes() -> None:
    """Unsupervised learners train on them: their adjusted Rand index with the true classes is about 0."""
    labels = random_partitions(2000, 2, 20, np.random.default_rng(0))
    assert {int(size) for size in np.bincount(labels[0])} == {100}
    truth = np.arange(2000) // 100
    assert all(abs(adjusted_rand_score(truth, each)) < 0.02 for each in labels)
    assert abs(adjusted_rand_score(*labels)) < 0.02


def test_dimensions_are_scaled_at_random_except_in_the_first_partition() -> None:
    """The random scaling decides which of two dimensions forms the clusters; the first partition is not scaled."""
    factors = scalings(3, 5, np.random.default_rng(0))
    assert factors[0].tolist() == [1, 1, 1]
    assert 0 <= factors[1:].min() < factors[1:].max() < 1
    assert len(np.unique(factors[1:])) == 12
    z = np.array([(a, b) for a in (0, 1) for b in (0, 1) for _ in range(5)], np.float32)
    found = kmeans_partitions(z, 8, 2, 1, np.random.default_rng(0))
    by = [round(adjusted_rand_score(z[:, 0], each)) for each in found]
    assert set(by[1:]) == {0, 1}


# --- Hyperplanes --------------------------------------------------------------------------------------------------


def test_members_of_cells_keep_their_margin_from_every_plane() -> None:
    """The same planes are drawn again: each member is beyond the margin of all three, and on the side of its label."""
    z = standardised(np.random.default_rng(3).normal(size=(400, 5)).astype(np.float32))
    labels = hyperplane_partitions(z, 1, 3, 0.3, 4, 5, np.random.default_rng(0))[0]
    assert (labels == OUTSIDE).any()
    rng, kept = np.random.default_rng(0), []
    while len(kept) < 3:
        distances = plane(z, rng)
        if min((distances >= 0.3).sum(), (distances <= -0.3).sum()) >= 40:
            kept.append(distances)
    for bit, distances in enumerate(kept):
        members = labels != OUTSIDE
        assert float(np.abs(distances[members]).min()) >= 0.3
        assert np.array_equal(distances[members] > 0, (labels[members] >> bit) & 1 == 1)
    outside = np.abs(np.stack(kept)).min(0) < 0.3
    assert np.array_equal(labels == OUTSIDE, outside)


def test_a_plane_has_a_normal_of_length_one() -> None:
    """Distances are those of geometry: over two planes of the same draw, moving by v changes them by v . normal."""
    z = np.concatenate([np.zeros((1, 4)), np.eye(4)]).astype(np.float32)
    distances = plane(z, np.random.default_rng(5))
    assert float(np.square(distances[1:] - distances[0]).sum()) == pytest.approx(1, abs=1e-5)


def test_sides_by_hand() -> None:
    """The margin itself belongs to a side."""
    assert sides(np.array([-1.0, -0.5, -0.4, 0.4, 0.5], np.float32), 0.5).tolist() == [0, 0, OUTSIDE, OUTSIDE, 1]
    assert [planes_for(way) for way in (2, 3, 4, 5, 20)] == [1, 2, 2, 3, 5]


def test_standardised_embeddings_have_variance_one() -> None:
    """A dimension that does not vary stays 0 instead of NaN."""
    z = standardised(np.array([[1.0, 5.0], [3.0, 5.0]], np.float32))
    assert z.tolist() == [[-1, 0], [1, 0]]


def test_each_partition_by_hyperplanes_has_enough_clusters_for_the_way() -> None:
    """Otherwise some episodes could not be drawn."""
    tasks = Cactus(sample_tasks.classification(), way=4, query=2, how="hyperplanes", margin=0.2, partitions=6)
    assert len(tasks.clustering.pools("train")) == 6
    assert min(pool.classes for pool in tasks.clustering.pools("train")) >= 4
    assert min(pool.fewest for pool in tasks.clustering.pools("train")) >= 3
    assert not hasattr(tasks, "pool")  # an example may be in clusters of several partitions


# --- The cache ----------------------------------------------------------------------------------------------------


def test_a_partition_is_computed_once_for_the_same_data_weights_and_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other weights, another seed and another number of clusters are other partitions."""
    calls = []

    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        return kmeans_partitions(*arguments)

    monkeypatch.setattr("kshot_cactus.partitions.kmeans_partitions", counted)

    def labels(weight: float = 1.0, **options: Any) -> np.ndarray[Any, Any]:
        encoder = nn.Linear(6, 2)
        with torch.no_grad():
            encoder.weight.copy_(weight * torch.arange(12.0).view(2, 6).sin())
            encoder.bias.zero_()
        of = sample_tasks.classification()
        given = {"way": 2, "query": 2, "clusters": 5, **options}
        return Cactus(of, encoder=encoder, **given).clustering.labels("train")

    first = labels()
    assert np.array_equal(labels(), first)
    assert np.array_equal(labels(query=1, seed=3, way=3), first)  # options of the episodes
    assert len(calls) == 1
    for others in ({"weight": 2.0}, {"clusters": 6}, {"partition_seed": 1}, {"partitions": 2}, {"restarts": 2}):
        before = len(calls)
        labels(**others)
        assert len(calls) == before + 1, others


def test_the_fingerprint_names_data_encoder_and_options() -> None:
    """A result records it, so results on other partitions are distinguished."""
    of = sample_tasks.classification()
    prints = {
        Cactus(of, clusters=5).fingerprint,
        Cactus(of, clusters=6).fingerprint,
        Cactus(of, clusters=5, how="random").fingerprint,
        Cactus(of, clusters=5, encoder=nn.Linear(6, 2)).fingerprint,
        Cactus(one_hot(), clusters=5).fingerprint,
    }
    assert len(prints) == 5
    assert Cactus(of, clusters=5, seed=4).fingerprint in prints


# --- In use -------------------------------------------------------------------------------------------------------


def test_a_trained_run_is_the_encoder_and_a_learner_trains_on_its_clusters(tmp_path: Path) -> None:
    """Pretraining without labels, clusters, and a learner by the names of the plugins; nothing else is needed."""
    below = kshot.register(sample_tasks.classification, name="cactus-test-tasks", group="tasks")
    assert below is sample_tasks.classification
    hidden = {"name": "cactus", "of": "cactus-test-tasks", "how": "random", "clusters": 20, "way": 5, "query": 3}
    quiet: Any = {"evaluate": {"episodes": 20}, "quiet": True}
    training = {"way": 20, "query": 1}
    first = kshot.runs.train("simclr", hidden, training=training, iterations=30, run=tmp_path / "a", **quiet)
    encoder = {"name": "run", "run": str(first.folder)}
    clustered = {"name": "cactus", "of": "cactus-test-tasks", "encoder": encoder, "clusters": 10, "way": 3, "query": 4}
    training = {"way": 3, "query": 4}
    second = kshot.runs.train("autoencoder", clustered, training=training, iterations=5, run=tmp_path / "b", **quiet)
    assert second.results[0].mean > 0.6


# --- Errors -------------------------------------------------------------------------------------------------------


def normal(n: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: over(normal(20), clusters=21), "got 20 examples in split 'train', expected at least as many as clust"),
        (lambda: over(normal(20), clusters=21, how="random"), "got 20 examples in split 'train', expected at least as"),
        (
            lambda: over(np.ones((20, 3), np.float32)),
            "got all embeddings the same for the 20 examples of split 'train'",
        ),
        (lambda: over(np.ones((20, 3), np.float32), how="hyperplanes"), "got all embeddings the same for the 20 exam"),
        (lambda: over(np.eye(3, dtype=np.float32)[np.arange(20) % 3]), "got 3 different embeddings for the 20 exampl"),
        (lambda: over(normal(20), way=5), r"got way 5, expected at most \d, its number of classes; clusters with few"),
        (lambda: over(normal(20), way=2, query=19), "got way 2, expected at most 0, its number of classes"),
        (lambda: over(normal(60), how="hyperplanes", margin=9.0), "got a margin of 9.0, with which none of 1000 rand"),
        (
            lambda: over(normal(60), how="hyperplanes", way=4, query=30, margin=0.0),
            "got 2 planes with a margin of 0.0, which gave fewer than 4 clusters of 31 examples in each of 1000 trials",
        ),
    ],
)
def test_data_that_can_t_be_clustered_are_refused(make: Callable[[], Cactus], message: str) -> None:
    """The error is raised before an episode is drawn, and says what to change."""
    with pytest.raises(DataError, match=message):
        make().sample("train", [0])


def test_embeddings_that_are_not_finite_are_refused() -> None:
    """Those of an encoder are refused, and the labelled splits need no embeddings."""

    class Nan(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x > 0, x, torch.nan if len(x) > 1 else 0.0)

    tasks = over(normal(20), encoder=Nan())
    assert tasks.sample("test", [0]).support.x.shape == (1, 2, 3)
    with pytest.raises(DataError, match="NaN or infinite"):
        tasks.sample("train", [0])


def test_points_are_checked_by_themselves() -> None:
    """The number of embeddings that are not finite is in the message."""
    z = normal(5)
    z[1, 2], z[3, 0] = np.nan, np.inf
    with pytest.raises(DataError, match="got 2 of 5 embeddings of here that are NaN or infinite"):
        check_points(z, 2, "here")


def test_wrong_options_and_tasks_are_refused() -> None:
    """Before anything is clustered."""
    of = sample_tasks.classification()
    with pytest.raises(OptionError, match="got planes 2, which make 4 clusters at most, expected at least the way, 5"):
        Cactus(of, way=5, how="hyperplanes", planes=2)
    with pytest.raises(OptionError, match="got labelled tset, expected splits of the tasks: train, val, test"):
        Cactus(of, labelled=("tset",))
    with pytest.raises(OptionError, match="clusters: got 1"):
        Cactus(of, clusters=1)
    with pytest.raises(MisfitError, match="Lines are regression tasks without a pool"):
        Cactus(sample_tasks.Lines())
    with pytest.raises(DataError, match="unknown split 'trian'"):
        Cactus(of, clusters=5).sample("trian", [0])
