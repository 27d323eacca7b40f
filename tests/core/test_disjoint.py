"""Test episodes that share no example with each other."""

import logging

import numpy as np
import pytest
import torch

import kshot
from kshot import ClassificationTasks, Engine, Pool
from kshot._engine.disjoint import Disjoint, number_of
from kshot.errors import DataError, MisfitError
from kshot.runs.embedded import Embedded
from kshot.testing import sample_learner, sample_tasks


def tasks(counts: list[int], way: int = 3, shot: int = 1, query: int = 2, seed: int = 0, **more) -> ClassificationTasks:
    """Make tasks of one split in which class c has counts[c] examples, whose inputs are (class, number)."""
    x = np.array([[c, i] for c, n in enumerate(counts) for i in range(n)], np.float32)
    pool = Pool.of(x, np.repeat(np.arange(len(counts)), counts))
    return ClassificationTasks({"test": pool}, way=way, shot=shot, query=query, seed=seed, **more)


def examples(episode, b: int) -> list[tuple[float, ...]]:
    """Return the examples of episode b of a meta-batch, as (class, number)."""
    return [tuple(row) for x in (episode.support.x[b], episode.query.x[b]) for row in x.tolist()]


@pytest.mark.parametrize("counts", [[9] * 6, [3, 3, 3], [20, 9, 3, 3, 4, 2, 6], [60, 30, 4, 4], [3, 3, 30]])
def test_no_example_is_in_two_episodes_and_no_more_episodes_are_possible(counts):
    """Each class is once in an episode, its label is the same in support and query, and groups are used up."""
    view = Disjoint(tasks(counts))
    number = view.number("test")
    assert number == number_of(np.array(counts), 3, 3)
    episode = view.sample("test", range(number))
    used = [e for b in range(number) for e in examples(episode, b)]
    assert len(set(used)) == len(used) == number * 9
    for b in range(number):
        classes = episode.support.x[b, :, 0]
        assert len(set(classes.tolist())) == 3
        assert torch.equal(classes[episode.query.y[b]], episode.query.x[b, :, 0])
    with pytest.raises(DataError, match=f"expected some of 0 to {number - 1}"):
        view.sample("test", [number])


def test_an_episode_depends_on_its_number_and_the_seed_alone():
    """Also if other episodes are asked for with it, or before it."""
    one, other = Disjoint(tasks([9] * 6)), Disjoint(tasks([9] * 6, seed=1))
    both = one.sample("test", [3, 1])
    assert torch.equal(Disjoint(tasks([9] * 6)).sample("test", [1]).query.x[0], both.query.x[1])
    assert not torch.equal(other.sample("test", [1]).query.x[0], both.query.x[1])
    assert both.origin is not None
    assert both.origin.indices == (3, 1)


def test_labels_and_the_order_of_queries_are_random():
    """A class has each label about equally often, and queries are not in the order of labels."""
    episode = Disjoint(tasks([300, 300, 300])).sample("test", range(100))
    assert 15 < int((episode.support.x[:, 0, 0] == 0).sum()) < 55
    assert len({tuple(row) for row in episode.query.y.tolist()}) > 20


def test_number_of_is_the_greatest():
    """Against trying all ways to use up small groups."""

    def most(groups: tuple[int, ...], way: int) -> int:
        able = sorted(range(len(groups)), key=lambda c: -groups[c])[:way]
        if len(groups) < way or groups[able[-1]] == 0:
            return 0
        import itertools

        return 1 + max(
            most(tuple(g - (c in chosen) for c, g in enumerate(groups)), way)
            for chosen in itertools.combinations([c for c in range(len(groups)) if groups[c]], way)
        )

    for groups in [(1, 1, 1), (3, 1, 1), (2, 2, 1, 1), (4, 2, 2, 1), (0, 0, 2), (3, 3, 3)]:
        assert number_of(np.array(groups), 2, 1) == most(groups, 2)


def test_an_evaluation_says_how_many_disjoint_episodes_there_were(caplog):
    """They are fewer than asked for; the result says so, and can be read again, and is not of ordinary episodes."""
    given = tasks([9] * 4, query=2)
    engine = Engine(sample_learner.NearestMean(given.spec), given, hooks=())
    with caplog.at_level(logging.WARNING, "kshot.runs"):
        result = engine.evaluate(50, disjoint=True)
    assert "has examples for 4 disjoint episodes, fewer than the 50" in caplog.text
    assert (result.episodes, result.disjoint, len(result.classes)) == (4, True, 4)
    assert "(4 disjoint episodes, test, 3-way 1-shot" in str(result)
    assert kshot.Result.from_json(result.to_json()).disjoint
    assert set(result.other_episodes(engine.evaluate(4))) == {"disjoint"}
    caplog.clear()
    assert engine.evaluate(2, disjoint=True).episodes == 2
    assert not caplog.text


def test_a_split_without_a_single_disjoint_episode_is_refused():
    """The message says how many classes have enough examples."""
    given = tasks([9] * 2 + [2] * 2)
    with pytest.raises(DataError, match=r"got 2 classes with at least shot \+ query = 1 \+ 2 = 3 examples"):
        Engine(sample_learner.NearestMean(given.spec), given, hooks=()).evaluate(5, disjoint=True)


def test_tasks_that_are_not_drawn_from_a_pool_are_refused():
    """So are those whose shape varies."""
    with pytest.raises(MisfitError, match="of varying way, shot or query"):
        Disjoint(tasks([9] * 4, way=(2, 3), block=4))
    with pytest.raises(MisfitError, match="expected classification tasks whose episodes are drawn from a pool"):
        Disjoint(sample_tasks.Lines())


def test_embedded_tasks_have_the_disjoint_episodes_of_the_tasks_below(tmp_path):
    """With the embeddings as inputs."""
    below = tasks([9] * 4)
    view = Disjoint(Embedded(below, torch.nn.Linear(2, 2, bias=False), cache=tmp_path))
    plain = Disjoint(below).sample("test", [2])
    embedded = view.sample("test", [2])
    assert embedded.origin is not None
    assert plain.origin is not None
    assert np.array_equal(embedded.origin.query_ids, plain.origin.query_ids)
    assert torch.allclose(embedded.query.x, view._of.embed(plain.query.x[0])[None], atol=1e-5)


def test_runs_are_tested_on_disjoint_episodes(monkeypatch, tmp_path):
    """By the option of a run, and when it is tested again."""
    from kshot import registry

    monkeypatch.chdir(tmp_path)

    monkeypatch.setattr(registry.default, "_registered", dict(registry.default._registered))
    kshot.register(sample_learner.NearestMean, name="disjoint-learner")
    kshot.register(lambda way=3: tasks([9] * 4, way), name="disjoint-tasks", group="tasks")
    run = kshot.runs.train(
        "disjoint-learner", "disjoint-tasks", iterations=0, run="runs/disjoint", evaluate={"disjoint": True}, quiet=True
    )
    assert (run.result.episodes, run.result.disjoint) == (4, True)
    again = kshot.runs.evaluate("runs/disjoint", tasks={"way": 2}, evaluate={"disjoint": False}, quiet=True)
    assert (again.result.episodes, again.result.disjoint) == (600, False)
