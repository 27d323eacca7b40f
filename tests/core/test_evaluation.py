"""Test which episodes an evaluation scores, with which learner, and what its result records."""

import numpy as np
import pytest
import torch
from torch import nn

import kshot
from kshot import ClassificationTasks, Engine, Needs, Pool, registry
from kshot._engine.evaluation import join
from kshot.errors import DataError, MisfitError, RunError
from kshot.testing import sample_learner


def tasks(way: object = 2, **options: object) -> ClassificationTasks:
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    pools = {split: Pool.of(x, np.repeat(np.arange(6), 10)) for split in ("train", "val", "test")}
    return ClassificationTasks(pools, way=way, shot=1, query=3, **options)  # type: ignore[arg-type]


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch):
    """Return a function that builds the sample learner by name."""
    monkeypatch.setattr(registry.default, "_registered", dict(registry.default._registered))
    kshot.register(sample_learner.NearestMean, name="nearest-of-this-test")
    return lambda **options: kshot.learner("nearest-of-this-test", tasks().spec, **options)


class Indices(nn.Module):
    """A learner that notes what it is given, and always predicts class 0."""

    needs = Needs(variable_way=True)

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, int]] = []

    def meta_gradient(self, episodes):
        return {"loss": 0.0}

    def adapt(self, support):
        self.sizes.append((len(support.key), support.way))
        return lambda x: torch.eye(support.way)[0].expand(*x.shape[:2], support.way)


@pytest.mark.parametrize("batch", [1, 3, 4, None])
def test_every_episode_is_scored_once_whatever_the_batches(batch):
    """Also those of the last batch, which is smaller."""
    plain = Engine(Indices(), tasks(), hooks=()).evaluate(10, batch=batch)
    alone = [Engine(Indices(), tasks(), hooks=()).evaluate(n, batch=1).scores["nll"][-1] for n in (1, 5, 10)]
    assert plain.episodes == 10
    np.testing.assert_allclose(plain.scores["nll"][[0, 4, 9]], alone)


def test_no_batch_reaches_over_the_end_of_a_block():
    """Episodes of two blocks have different shapes, which can't be stacked."""
    learner = Indices()
    assert Engine(learner, tasks(way=(2, 5), block=6), hooks=(), meta_batch=2).evaluate(18, batch=4).episodes == 18
    assert len({way for _, way in learner.sizes}) > 1


def test_a_variant_of_a_learner_has_its_parameters(built):
    """Other options change how it adapts, not what it has learned."""
    engine = Engine(built(width=4, seed=1), tasks(), hooks=())
    engine.train(5)
    same = engine.evaluate(10, learner_options={"width": 4})
    np.testing.assert_array_equal(same.scores["nll"], engine.evaluate(10).scores["nll"])


def test_both_seeds_are_recorded(built):
    """That of the learner is the default of training."""
    result = Engine(built(seed=5), tasks(), hooks=()).evaluate(2)
    assert (result.seed, result.learner_seed) == (5, 5)
    result = Engine(built(seed=5), tasks(), hooks=(), seed=7).evaluate(2)
    assert (result.seed, result.learner_seed) == (7, 5)
    assert Engine(Indices(), tasks(), hooks=()).evaluate(2).learner_seed is None


def test_tasks_to_evaluate_on_are_compared_with_the_learner_before_training():
    """A mismatch that is found after hours of training comes too late."""

    class Fixed(Indices):
        needs = Needs()

    with pytest.raises(MisfitError, match="built for 2 ways, the tasks have 5"):
        Engine(Fixed(), tasks(), validate_on=tasks(5), hooks=())


def test_an_engine_that_loaded_parameters_to_evaluate_does_not_train(built, tmp_path):
    """Its optimizer would be that of other parameters."""
    engine = Engine(built(), tasks(), hooks=())
    engine.train(1)
    path = engine.save(tmp_path / "c.pt")
    other = Engine(built(), tasks(), hooks=())
    assert other.load(path) == 1
    with pytest.raises(RunError, match="ready to evaluate only"):
        other.train(2)


def test_a_training_does_not_start_from_another_run_once_it_has_begun(built, tmp_path):
    """The optimizer has a state by then, which is not of those parameters."""
    engine = Engine(built(), tasks(), hooks=())
    engine.train(1)
    path = engine.save(tmp_path / "c.pt")
    with pytest.raises(RunError, match="got 1 iterations taken already, expected a new engine"):
        engine.init_from(path)
    assert Engine(built(seed=3), tasks(), hooks=()).init_from(path).iteration == 1


def test_malformed_episodes_are_refused_before_anything_is_computed():
    """In training, in validation and in an evaluation, with the split in the message."""

    class Broken(ClassificationTasks):
        def sample(self, split, indices):
            episode = super().sample(split, indices)
            if split == "val":
                episode.query.x[:, 0] = torch.nan
            return episode

    broken = Broken({split: tasks().pool(split) for split in ("train", "val")}, way=2, shot=1, query=3)
    learner = Indices()
    with pytest.raises(DataError, match=r"Broken, split 'val': query\.x: got"):
        Engine(learner, broken, hooks=()).train(3, validate_every=1)
    assert learner.sizes == []
    with pytest.raises(DataError, match=r"Broken, split 'val': query\.x: got"):
        Engine(learner, broken, hooks=()).evaluate(3, split="val")
    assert learner.sizes == []


def test_shorter_curves_are_padded_with_nothing():
    """A zero would count in their mean."""
    joined = join([torch.ones(2, 3), torch.ones(1, 2)])
    np.testing.assert_array_equal(joined, [[1, 1, 1], [1, 1, 1], [1, 1, np.nan]])
