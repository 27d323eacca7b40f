"""``kshot_gradient_agreement.agreement``: the weights by hand, and wrappers of MAML, Reptile and another learner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

import kshot
from kshot import Engine, Episode, Needs, Support, TaskSpec, Training
from kshot.checks import mismatches
from kshot.errors import MisfitError, OptionError
from kshot.protocols import PerTask
from kshot.testing import sample_tasks, suite
from kshot_gradient_agreement import GradientAgreement, agreement

LINES = sample_tasks.Lines(shot=5, query=4)


class OneStep(nn.Module):
    """A linear model with one first-order gradient step, by hand; ``task_losses`` is all that a wrapper needs."""

    needs = Needs(kinds=("regression",), exact_gradient=True, invariant={"order"})
    training_defaults = Training(lr=0.02, meta_batch=4, iterations=7)

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*spec.input_shape, 1))
        self.offset = nn.Parameter(torch.zeros(()))

    def step(self, support: Support) -> dict[str, Tensor]:
        errors = (support.x @ self.weight + self.offset - support.y).detach()
        slope = (support.x.transpose(1, 2) @ errors) / support.x.shape[1]
        return {"weight": 0.2 * slope, "offset": 0.2 * errors.flatten(1).mean(1)}

    def predictions(self, away: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return x @ (self.weight - away["weight"]) + (self.offset - away["offset"])[:, None, None]

    def task_losses(self, episodes: Episode) -> tuple[Tensor, Mapping[str, Tensor]]:
        away = self.step(episodes.support)
        wrong = self.predictions(away, episodes.query.x) - episodes.query.y
        return wrong.square().flatten(1).mean(1), away

    def meta_gradient(self, episodes: Episode) -> dict[str, Any]:
        losses, _ = self.task_losses(episodes)
        losses.mean().backward()
        return {"loss": losses.mean().detach()}

    def adapt(self, support: Support) -> Callable[[Tensor], Tensor]:
        away = self.step(support)
        return lambda x: self.predictions(away, x).detach()


def around(inner: Any, spec: TaskSpec = LINES.spec) -> GradientAgreement:
    return GradientAgreement(spec, inner=inner)


conformance = suite(learner=lambda spec: around(OneStep(spec), spec), tasks=LINES)


def doubled(episode: Episode) -> Episode:
    return kshot.episode.map_tensors(lambda t: t.double() if t.is_floating_point() else t, episode)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- The weights ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_identical_tasks_count_alike(dtype):
    """Identical tasks have w = 1/T, which is the mean that the wrapped learner takes."""
    g = torch.tensor([0.3, -2.0, 1.1], dtype=dtype).expand(4, 3)
    assert torch.allclose(agreement(g), torch.full((4,), 0.25, dtype=dtype))


def test_a_task_that_goes_the_other_way_counts_negative():
    """For (g, g, -g) the sum is g, so the weights are g.g, g.g and -g.g over three times g.g (section 3)."""
    g = torch.tensor([1.0, 2.0])
    assert torch.allclose(agreement(torch.stack([g, g, -g])), torch.tensor([1.0, 1.0, -1.0]) / 3)


def test_the_weights_of_three_tasks_by_hand():
    """The sum is (2, 2), so the weights are 2, 2 and 4 over 8; a task orthogonal to the sum has weight 0."""
    g = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert agreement(g).tolist() == [0.25, 0.25, 0.5]
    assert agreement(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, -1.0]])).tolist() == [0.5, 0.5, 0.0]


def test_the_weights_are_the_papers_double_sum():
    """The weights equal loops over the equation, and sum |w| = 1, so that rates compare with those of a mean."""
    g = rand(6, 11, seed=3)
    together = [sum(float(g[i] @ g[j]) for j in range(6)) for i in range(6)]
    naive = [t / sum(abs(t) for t in together) for t in together]
    assert agreement(g).tolist() == pytest.approx(naive, rel=1e-12)
    assert float(agreement(g).abs().sum()) == pytest.approx(1)
    assert min(naive) < 0 < max(naive)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e30])
def test_the_scale_of_the_gradients_does_not_matter(scale):
    """The scale of the inner rate does not matter, and nothing overflows in float32."""
    g = rand(4, 5, seed=1).float()
    assert torch.allclose(agreement(g * scale), agreement(g), rtol=1e-4)


def test_tasks_that_cancel_count_alike():
    """A denominator of zero, or of rounding errors alone, gives equal weights."""
    for dtype in (torch.float32, torch.float64):
        g = rand(1, 500, seed=2).to(dtype)
        third = rand(1, 500, seed=4).to(dtype)
        for tasks in (torch.cat([g, -g]), torch.zeros(2, 3, dtype=dtype), torch.cat([g, third, -(g + third)])):
            assert torch.equal(agreement(tasks), torch.full((len(tasks),), 1 / len(tasks), dtype=dtype))
    assert agreement(torch.ones(1, 3)).tolist() == [1.0]


# --- The meta-gradient ----------------------------------------------------------------------------


def test_the_gradient_is_the_weighted_sum_of_the_tasks_own():
    """The gradient is sum_i w_i grad L_i with constant w, from each task's own gradient, in float64."""
    learner, e = around(OneStep(LINES.spec)).double(), doubled(LINES.sample("train", range(5)))
    metrics = learner.meta_gradient(e)
    grads = [p.grad for p in learner.parameters()]
    slopes, gradients, losses = [], [], []
    for b in range(5):
        loss, away = learner.inner.task_losses(doubled(LINES.sample("train", [b])))
        slopes.append(torch.autograd.grad(loss[0], list(learner.parameters())))
        gradients.append(torch.cat([away["weight"].flatten(), away["offset"].flatten()]))
        losses.append(loss.item())
    together = [sum(gradients[i] @ gradients[j] for j in range(5)) for i in range(5)]
    weights = [t / sum(t.abs() for t in together) for t in together]
    for k, grad in enumerate(grads):
        expected = sum(w * slope[k] for w, slope in zip(weights, slopes, strict=True))
        assert torch.allclose(grad, expected, rtol=0, atol=1e-12)
    assert metrics["loss"].item() == pytest.approx(sum(losses) / 5)
    assert metrics["least_weight"].item() == pytest.approx(min(weights).item())
    assert metrics["greatest_weight"].item() == pytest.approx(max(weights).item())


@pytest.mark.parametrize("inner", [None, "maml", "reptile"])
def test_around_identical_tasks_it_is_the_wrapped_learner(inner):
    """The same task three times gives the gradient of mean-reduced MAML, or of Reptile, to rounding in float64."""
    if inner is not None:
        pytest.importorskip(f"kshot_{inner}")
    plain = OneStep(LINES.spec) if inner is None else kshot.learner(inner, LINES.spec, seed=1)
    learner = around(plain).double().train()
    e = doubled(LINES.sample("train", [4, 4, 4]))
    plain.meta_gradient(e)
    own = [p.grad.clone() for p in plain.parameters()]
    learner.zero_grad()
    learner.meta_gradient(e)
    assert max(float(g.abs().max()) for g in own) > 1e-6
    for p, grad in zip(plain.parameters(), own, strict=True):
        assert torch.allclose(p.grad, grad, rtol=1e-9, atol=1e-12)


def test_around_reptile_it_weighs_displacements():
    """Around Reptile the step is theta + eps * sum w_i (theta'_i - theta), the paper's second form."""
    pytest.importorskip("kshot_reptile")
    learner = around(kshot.learner("reptile", LINES.spec, inner_lr=0.1)).double().train()
    e = doubled(LINES.sample("train", range(4)))
    away, _ = learner.inner.displacement(e)
    weights = agreement(torch.cat([d.flatten(1) for d in away.values()], 1))
    learner.meta_gradient(e)
    for name, p in learner.inner.net.net.named_parameters():
        expected = sum(w * d for w, d in zip(weights, away[name], strict=True))
        assert torch.allclose(p.grad, expected, rtol=0, atol=1e-12)


# --- A learner around a learner -------------------------------------------------------------------


def test_it_needs_what_its_inner_learner_needs_and_whole_meta_batches():
    """Kinds, queries and invariances are those of the inner learner; the gradient is no longer that of a loss."""
    inner = OneStep(LINES.spec)
    learner = around(inner)
    assert learner.needs == attrs.evolve(inner.needs, couples_tasks=True, exact_gradient=False)
    assert learner.training_defaults == inner.training_defaults
    assert Engine(learner, LINES).meta_batch == 4
    bare = OneStep(LINES.spec)
    bare.needs = Needs(kinds=("regression",), queries="at_adapt", rollouts=3)
    assert around(bare).needs.queries == "at_adapt"


@pytest.mark.parametrize("kind", ["classification", "regression", "sequence", "control", "objective"])
def test_the_class_refuses_no_tasks(kind):
    """What it can learn depends on the inner learner, which does not exist when classes are checked."""
    spec = sample_tasks.example(kind).spec
    assert mismatches(GradientAgreement.needs, spec) == []
    if kind == "classification":
        zero_shot = attrs.evolve(spec, way=(2, 5), shot=(0, 2), provides={"semantics"}, semantics_shape=(4,))
        assert mismatches(GradientAgreement.needs, zero_shot) == []
    if kind == "control":
        assert mismatches(GradientAgreement.needs, attrs.evolve(spec, rollouts=0)) == []


def test_chunks_are_refused():
    """Chunks are refused, because the tasks of a chunk would agree among themselves."""
    with pytest.raises(MisfitError, match=r"GradientAgreement couples the tasks .* chunks of 2; leave chunk out"):
        Engine(around(OneStep(LINES.spec)), LINES, meta_batch=4, chunk=2)


@pytest.mark.parametrize("inner", [nn.Linear(2, 1), "maml", None])
def test_an_inner_learner_that_does_not_part_by_task_is_refused(inner):
    """The message gives the inner learner, what was expected, and examples of suitable learners."""
    with pytest.raises(MisfitError, match=rf"got an inner {type(inner).__name__} without task_losses.*maml or reptile"):
        around(inner)


def test_it_predicts_as_its_inner_learner_does():
    """Adaptation and parameters are those of the inner learner."""
    inner = OneStep(LINES.spec)
    learner, e = around(inner), LINES.sample("test", [0, 1])
    assert torch.equal(learner.adapt(e.support)(e.query.x), inner.adapt(e.support)(e.query.x))
    assert [*learner.state_dict()] == ["inner.weight", "inner.offset"]


def test_the_inner_learner_is_named_with_its_options():
    """This is ``--learner.inner=maml --learner.inner.inner_lr=0.05``; the options can be changed for a test."""
    pytest.importorskip("kshot_maml")
    options = {"name": "maml", "inner_lr": 0.05, "hidden": (8,)}
    learner = kshot.learner("gradient-agreement", LINES.spec, seed=3, inner=options)
    assert isinstance(learner.inner, PerTask)
    assert learner.inner.inner_lr == 0.05
    assert learner.training_defaults == learner.inner.training_defaults
    alike = kshot.learner("maml", LINES.spec, seed=3, inner_lr=0.05, hidden=(8,))
    assert all(torch.equal(a, b) for a, b in zip(learner.parameters(), alike.parameters(), strict=True))
    engine = Engine(learner, LINES, meta_batch=3, hooks=())
    engine.train(2)
    one, five = (engine.evaluate(4, learner_options={"inner": {"test_steps": steps}}) for steps in (1, 5))
    assert one.mean != five.mean
    with pytest.raises(OptionError, match=r"gradient-agreement.*inner"):
        kshot.learner("gradient-agreement", LINES.spec)


def test_a_result_says_the_inner_learner_s_normalisation():
    """A result records transductive normalisation also if a wrapper is around the learner."""
    pytest.importorskip("kshot_maml")
    images = sample_tasks.classification(input_shape=(1, 16, 16))
    inner = {"name": "maml", "width": 4, "normalisation": "transductive"}
    learner = kshot.learner("gradient-agreement", images.spec, inner=inner)
    result = Engine(learner, images).evaluate(2)
    assert (result.normalisation, result.queries) == ("transductive", "joint")
    assert result.learner["options"]["inner"]["name"] == "maml"
