"""The learner ``concept``: its joint gradient, its limits, what it refuses, and how it goes on with more classes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kshot
from kshot import Episode, Examples, Needs, Pool, TaskSpec
from kshot.episode import map_tensors
from kshot.errors import DataError, MisfitError, RunError
from kshot.randomness import generator
from kshot.testing import sample_learner, sample_tasks
from kshot_concept import Concept, WithExternal
from kshot_concept.discriminator import Discriminator, decode, encode
from kshot_concept.meta import concept_spec

TASKS = sample_tasks.classification(external=8)


def in_float64(episode: Episode) -> Episode:
    return map_tensors(lambda t: t.double() if t.is_floating_point() else t, episode)


def plain(name: str, **options: Any) -> dict[str, Any]:
    """Return the options of a meta-learner whose package is installed."""
    pytest.importorskip(f"kshot_{name}")
    return {"name": name, **options}


def built(meta: Any, spec: TaskSpec = TASKS.spec, **options: Any) -> Concept:
    learner: Any = kshot.learner("concept", spec, meta=meta, **options)
    return learner.double().train()


def gradients(learner: nn.Module, episodes: Episode) -> list[Tensor]:
    learner.zero_grad()
    learner.meta_gradient(episodes)
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in learner.parameters()]


class Adapting(nn.Module):
    """MAML with one inner step of rate 0.5 for a linear layer, by plain autograd."""

    needs = Needs(kinds=("classification",), exact_gradient=True)

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__()
        self.layer = nn.Linear(spec.input_shape[0], int(spec.way or 0))  # type: ignore[call-overload]

    def adapted(self, support: Any) -> tuple[Tensor, Tensor]:
        weight, bias = self.layer.weight, self.layer.bias
        loss = F.cross_entropy(F.linear(support.x, weight, bias), support.y)
        slopes = torch.autograd.grad(loss, (weight, bias), create_graph=True)
        return weight - 0.5 * slopes[0], bias - 0.5 * slopes[1]

    @kshot.per_episode
    def meta_gradient(self, episode: Any) -> Tensor:
        return F.cross_entropy(F.linear(episode.query.x, *self.adapted(episode.support)), episode.query.y)

    @kshot.per_episode
    def adapt(self, support: Any) -> Any:
        with torch.enable_grad():
            weight, bias = (p.detach() for p in self.adapted(support))
        return lambda x: F.linear(x, weight, bias)


def joint_loss(learner: Concept, episodes: Episode, rate: float, weight: float) -> Tensor:
    """Compute the joint loss with one step of MAML of this rate by plain autograd, task by task."""
    g, d = learner.generator.net, learner.discriminator.net.net  # type: ignore[union-attr]
    layers = [m for m in learner.meta.modules() if isinstance(m, nn.Linear)]
    theta = [p for m in layers for p in (m.weight, m.bias)]

    def net(z: Tensor, theta: list[Tensor]) -> Tensor:
        for i in range(0, len(theta), 2):
            z = F.linear(F.relu(z) if i else z, theta[i], theta[i + 1])
        return z

    losses = []
    for b in range(episodes.size):
        support, query, external = episodes.support, episodes.query, episodes.external
        assert external is not None
        inner = F.cross_entropy(net(g(support.x[b]), theta), support.y[b])
        slopes = torch.autograd.grad(inner, theta, create_graph=True)
        adapted = [p - rate * s for p, s in zip(theta, slopes, strict=True)]
        outer = F.cross_entropy(net(g(query.x[b]), adapted), query.y[b])
        losses.append(outer + weight * F.cross_entropy(d(g(external.x[b])), external.y[b]))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("weight", [1.0, 0.25])
@pytest.mark.parametrize("meta", ["adapting", "maml"])
def test_the_gradient_is_that_of_the_joint_loss(meta: str, weight: float) -> None:
    """Theta_G, theta_M and theta_D have the gradient of a second implementation, to 1e-12 in float64."""
    chosen: Any = Adapting if meta == "adapting" else plain("maml", hidden=[6], inner_lr=0.5)
    learner = built(chosen, width=5, discriminator_weight=weight)
    episodes = in_float64(TASKS.sample("train", range(3)))
    got = gradients(learner, episodes)
    loss = joint_loss(learner, episodes, 0.5, weight)
    expected = torch.autograd.grad(loss, list(learner.parameters()))
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(got, expected, strict=True))
    assert min(float(g.abs().max()) for g in expected) > 1e-6
    metrics = learner.meta_gradient(episodes)
    assert float(metrics["loss"]) == pytest.approx(float(loss.detach()))
    assert float(metrics["loss"]) == pytest.approx(
        float(metrics["meta_loss"]) + weight * float(metrics["discriminator_loss"])
    )


def test_the_accuracy_is_that_of_the_discriminator() -> None:
    """It is the share of the external examples that D finds, of all episodes."""
    learner = built(Adapting, width=5)
    episodes = in_float64(TASKS.sample("train", range(4)))
    external = episodes.external
    assert external is not None
    assert learner.discriminator is not None
    logits = learner.discriminator(learner.generator(external.x))
    relabelled = attrs.evolve(episodes, external=Examples(external.x, logits.argmax(-1)))
    assert float(learner.meta_gradient(relabelled)["discriminator_accuracy"]) == 1.0
    wrong = attrs.evolve(episodes, external=Examples(external.x, (logits.argmax(-1) + 1) % 10))
    assert float(learner.meta_gradient(wrong)["discriminator_accuracy"]) == 0.0


@pytest.mark.parametrize("shape", [(6,), (1, 16, 16)])
@pytest.mark.parametrize("name", ["maml", "metasgd"])
def test_lambda_0_with_the_identity_is_the_plain_meta_learner(name: str, shape: tuple[int, ...]) -> None:
    """Parameters, meta-gradients, metrics and predictions are the same to the bit, also for images."""
    tasks = sample_tasks.classification(input_shape=shape, external=8)
    options = {"hidden": [8]} if len(shape) == 1 else {"width": 4}
    learner = built(plain(name, **options), tasks.spec, generator="identity", discriminator_weight=0.0, seed=5)
    alone: Any = kshot.learner(name, tasks.spec, seed=5, **options).double().train()
    assert not learner.needs.external
    assert learner.needs == alone.needs
    for first in (0, 4):
        episodes = in_float64(tasks.sample("train", range(first, first + 4)))
        assert all(map(torch.equal, gradients(learner, episodes), gradients(alone, episodes)))
        predictions = (m.eval().adapt(episodes.support)(episodes.query.x) for m in (learner, alone))
        assert torch.equal(*predictions)
        assert learner.train().meta_gradient(episodes)["loss"] == alone.train().meta_gradient(episodes)["loss"]


@pytest.mark.parametrize("name", ["maml", "metasgd", "reptile", "protonet", "anil"])
def test_the_generator_learns_from_the_tasks_of_each_meta_learner(name: str) -> None:
    """With lambda 0 the generator has a gradient from the tasks alone, in the hundredth iteration too."""
    options = {"strategy": "traced"} if name in ("maml", "metasgd", "anil") else {}
    learner = built(plain(name, **options), width=5, discriminator_weight=0.0)
    episodes = in_float64(TASKS.sample("train", range(2)))
    first, *_, last = [gradients(learner, episodes) for _ in range(5)]
    sizes = [
        float(g.abs().max()) for g, (n, _) in zip(first, learner.named_parameters(), strict=True) if "generator" in n
    ]
    assert len(sizes) == 6
    assert min(sizes) > 1e-8
    assert all(map(torch.equal, first, last))


def test_the_generator_under_reptile_has_the_gradient_of_the_adapted_net() -> None:
    """Reptile's direction for theta_M is the gradient of no loss. Theta_G has that of the queries under theta~."""
    learner = built(plain("reptile", hidden=[6], inner_optimizer="sgd", inner_lr=0.5, inner_steps=2), width=5)
    learner.weight, learner.discriminator = 0.0, None
    episodes = in_float64(TASKS.sample("train", range(2)))
    got = gradients(learner, episodes)[: len(list(learner.generator.parameters()))]
    concepts = attrs.evolve(
        episodes,
        external=None,
        support=attrs.evolve(episodes.support, x=learner.generator(episodes.support.x).detach()),
        query=attrs.evolve(episodes.query, x=learner.generator(episodes.query.x).detach()),
    )
    away, _ = learner.meta.displacement(concepts)
    losses = []
    for b in range(2):
        own = {n: (p - away[n][b]).detach() for n, p in learner.meta.net.state().parameters.items()}
        z = learner.generator.net(episodes.query.x[b])
        losses.append(F.cross_entropy(torch.func.functional_call(learner.meta.net.net, own, (z,)), episodes.query.y[b]))
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(learner.generator.parameters()))
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(got, expected, strict=True))
    assert learner.training_defaults.optimizer == "adam"  # not Reptile's SGD with a rate of 1


def test_predictions_are_those_of_the_meta_learner_on_concepts() -> None:
    """Supports, unlabelled examples and queries go through G in evaluation mode, in that of its running statistics."""
    tasks = sample_tasks.classification(input_shape=(1, 16, 16), external=8)
    learner: Any = kshot.learner("concept", tasks.spec, meta=Adapting, generator="conv4", width=4)
    learner.train()
    learner.meta_gradient(tasks.sample("train", range(8)))
    episodes = tasks.sample("test", range(3))
    before = copy.deepcopy(learner.state_dict())
    got = learner.adapt(episodes.support)(episodes.query.x)
    assert all(torch.equal(before[name], t) for name, t in learner.state_dict().items())
    assert learner.training
    learner.eval()
    z = [learner.generator.net(x.flatten(0, 1)).view(3, -1, 4) for x in (episodes.support.x, episodes.query.x)]
    expected = learner.meta.adapt(attrs.evolve(episodes.support, x=z[0].detach()))(z[1])
    assert torch.allclose(got, expected, atol=1e-5)
    assert learner.embed(episodes.query.x).shape == (3, episodes.query.x.shape[1], 4)


class External(Adapting):
    needs = Needs(external=True)


class Values(Adapting):
    needs = Needs(kinds=("regression",))


class Several(Adapting):
    def meta_gradient(self, episodes: Any) -> Any:  # type: ignore[override]
        yield {"loss": 0.0}


class Silent(Adapting):
    def meta_gradient(self, episodes: Any) -> Any:  # type: ignore[override]
        return {"loss": 0.0}


def test_a_meta_learner_that_does_not_fit_is_refused() -> None:
    """Each message says why; a generator that could learn nothing from the tasks would otherwise go unnoticed."""
    for meta, message in (
        (External, "does not fit tasks of concepts: the learner requires external"),
        (Values, "does not fit tasks of concepts: the tasks are classification, the learner learns regression"),
        (Several, "several outer steps"),
    ):
        with pytest.raises(MisfitError, match=message):
            Concept(TASKS.spec, meta=meta)
    with pytest.raises(MisfitError, match=r"Silent that computes no gradient .*, as the generator learns from it"):
        Concept(TASKS.spec, meta=Silent).meta_gradient(TASKS.sample("train", [0]))


def test_tasks_without_external_classes_are_refused() -> None:
    """The message names the view that adds them, and how to do without."""
    tasks = sample_tasks.classification()
    with pytest.raises(MisfitError, match=r"got tasks with 0 external classes, .* with-external\), or discriminator"):
        Concept(tasks.spec, meta=Adapting)
    learner = Concept(TASKS.spec, meta=Adapting)
    with pytest.raises(MisfitError, match="requires external examples"):
        kshot.check(learner, tasks)
    with pytest.raises(DataError, match=r"outputs of shape \(3,\) from the discriminator, expected \(10,\)"):
        Concept(TASKS.spec, meta=Adapting, width=4, discriminator=nn.Linear(4, 3))


def test_the_meta_learner_is_built_for_concepts() -> None:
    """Its inputs have the shape and range of concepts, and no external examples."""
    spec = concept_spec(attrs.evolve(TASKS.spec, input_range=(0.0, 1.0)), (5,))
    assert (spec.input_shape, spec.input_range, spec.external_classes) == ((5,), None, ())
    assert "external" not in spec.provides
    assert concept_spec(attrs.evolve(spec, input_range=(0.0, 1.0)), (5,), same=True).input_range == (0.0, 1.0)


# --- more classes ----------------------------------------------------------------------------------------------------


def tasks_with(names: list[str]) -> WithExternal:
    """Return tasks with an external set of these classes: points around a place that depends on the name alone."""
    places = [torch.randn(6, generator=generator(sum(map(ord, name)), "place")) for name in names]
    x = torch.stack(places).repeat_interleave(6, 0) + 0.1 * torch.randn(len(names) * 6, 6, generator=generator(0, "x"))
    pool = Pool.of(x, torch.arange(len(names)).repeat_interleave(6), names=names)
    return WithExternal(sample_tasks.classification(), kshot.ClassificationTasks({"train": pool}, way=2), examples=6)


def trained(names: list[str], run: Path | None, start: Path | None = None, iterations: int = 3) -> Any:
    tasks = tasks_with(names)
    learner: Any = kshot.learner("concept", tasks.spec, meta=sample_learner.NearestMean, width=8)
    engine = kshot.Engine(learner, tasks, run=run, meta_batch=4, optimizer={"lr": 1e-2})
    if start is not None:
        engine.init_from(start)
    if iterations:
        engine.train(iterations=iterations)
    return learner


def test_a_run_goes_on_with_more_external_classes(tmp_path: Path) -> None:
    """The rows of the old classes are kept, wherever the classes are now; those of new classes are new."""
    old = trained(["b", "a"], tmp_path / "a")
    new = trained(["a", "c", "b", "d"], None, tmp_path / "a", iterations=0)
    fresh = trained(["a", "c", "b", "d"], None, iterations=0)
    for part in ("weight", "bias"):
        theirs, own, first = (getattr(m.discriminator.net.net[1], part) for m in (old, new, fresh))
        assert torch.equal(own[[2, 0]], theirs)
        assert torch.equal(own[[1, 3]], first[[1, 3]])
        assert not torch.equal(first[[2, 0]], theirs)
    assert decode(new.discriminator.names) == ["a", "c", "b", "d"]
    assert all(map(torch.equal, old.generator.parameters(), new.generator.parameters()))
    # The logits of the old classes are what they were, and so are the predictions for tasks.
    tasks = tasks_with(["b", "a"])
    episodes = tasks.sample("test", [0, 1])
    assert episodes.external is not None
    logits = [m.eval().discriminator(m.generator(episodes.external.x)) for m in (old, new)]
    assert torch.allclose(logits[0], logits[1][..., [2, 0]], atol=1e-6)
    predictions = [m.adapt(episodes.support)(episodes.query.x) for m in (old, new)]
    assert torch.equal(*predictions)


def test_as_many_other_classes_do_not_take_the_rows_of_the_old_ones(tmp_path: Path) -> None:
    """By shape alone the last layers would match. Classes that are gone are reported."""
    old = trained(["b", "a"], tmp_path / "a")
    with pytest.warns(UserWarning, match="1 of the 2 external classes of the run are not among the 2 of these tasks"):
        new = trained(["c", "a"], None, tmp_path / "a", iterations=0)
    fresh = trained(["c", "a"], None, iterations=0)
    rows = [m.discriminator.net.net[1].weight for m in (old, new, fresh)]
    assert torch.equal(rows[1][1], rows[0][1])
    assert torch.equal(rows[1][0], rows[2][0])
    with pytest.warns(UserWarning, match="2 of the 2 external classes"):
        new = trained(["c", "d"], None, tmp_path / "a", iterations=0)
    assert torch.equal(
        new.discriminator.net.net[1].weight, trained(["c", "d"], None, iterations=0).discriminator.net.net[1].weight
    )


def test_a_run_without_a_discriminator_can_begin_one(tmp_path: Path) -> None:
    """A run with lambda 0 has no classes, and one that goes on with lambda 0 needs none."""
    tasks = tasks_with(["a", "b"])
    options: dict[str, Any] = {"meta": sample_learner.NearestMean, "width": 8}
    without: Any = kshot.learner("concept", tasks.spec, discriminator_weight=0.0, **options)
    kshot.Engine(without, tasks, run=tmp_path / "a").train(iterations=2)
    new = trained(["a", "b"], tmp_path / "b", tmp_path / "a", iterations=0)
    assert all(map(torch.equal, without.generator.parameters(), new.generator.parameters()))
    trained(["a", "b"], tmp_path / "c")
    again = kshot.Engine(kshot.learner("concept", tasks.spec, discriminator_weight=0.0, **options), tasks)
    assert any("discriminator" in name for name in again.init_from(tmp_path / "c").unused)


@pytest.mark.parametrize("wrong", [torch.tensor([1, 2], dtype=torch.uint8), encode(["a"])[:-1], torch.tensor([0.5])])
def test_names_that_can_not_be_read_are_refused(wrong: Tensor) -> None:
    """A damaged run is named, and nothing is copied from it."""
    discriminator = Discriminator(["a", "b"], (3,), "mlp", ())
    with pytest.raises(DataError, match="got names of external classes that can't be read"):
        discriminator.inherited({"d.names": wrong}, "d.")
    assert decode(encode(["é", "\n", "漢"])) == ["é", "\n", "漢"]


def test_a_run_of_another_learner_is_refused(tmp_path: Path) -> None:
    """Nothing of it matches by name and shape."""
    kshot.Engine(sample_learner.NearestMean(TASKS.spec), TASKS, run=tmp_path / "a").train(iterations=1)
    with pytest.raises(RunError, match="none of its parameters matches"):
        kshot.Engine(Concept(TASKS.spec, meta=Adapting), TASKS).init_from(tmp_path / "a")


def test_it_learns_and_so_does_the_discriminator() -> None:
    """Over 5 seeds, accuracy on unseen classes and of D on external ones, less 3 standard deviations."""
    scores = []
    for seed in range(5):
        tasks = tasks_with(list("abcdefgh"))
        learner: Any = kshot.learner("concept", tasks.spec, meta=sample_learner.NearestMean, width=16, seed=seed)
        engine = kshot.Engine(learner, tasks, meta_batch=4, optimizer={"lr": 1e-2}, seed=seed)
        last = engine.train(iterations=60)
        scores.append([engine.evaluate(split="test", episodes=50).mean, last["discriminator_accuracy"]])
    mean, deviation = torch.tensor(scores).mean(0), torch.tensor(scores).std(0)
    low = (mean - 3 * deviation).tolist()
    assert low[0] > 0.6
    assert low[1] > 0.6
