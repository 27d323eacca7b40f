"""``kshot_taml.taml``: MAML without the term, the meta-gradient by a naive implementation, and that it learns."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import kshot
from kshot import Engine, Episode, TaskSpec
from kshot.checks import mismatches
from kshot.episode import map_tensors
from kshot.errors import DataError, MisfitError, OptionError, TrainingError
from kshot.testing import sample_tasks
from kshot_taml import TAML

LINES = sample_tasks.Lines(shot=5, query=4)
VECTORS = sample_tasks.classification()
INEQUALITIES = ("gini", "theil", "variance-of-logs", "atkinson", "generalised-entropy")


def in_float64(episode: Episode) -> Episode:
    return map_tensors(lambda t: t.double() if t.is_floating_point() else t, episode)


def smooth(spec: TaskSpec, **options) -> TAML:
    """Return a float64 net with Tanh, whose derivatives exist everywhere."""
    torch.manual_seed(1)
    inputs = math.prod(spec.input_shape)
    outputs = spec.way if spec.kind == "classification" else math.prod(spec.target_shape)
    net = nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs))
    return TAML(spec, network=net, inner_lr=0.1, **options).double()


def gradient_of(learner: TAML, episodes: Episode) -> Tensor:
    learner.zero_grad()
    learner.meta_gradient(episodes)
    return torch.cat([p.grad.flatten() for p in learner.parameters()])


def naive(learner: TAML, episodes: Episode, steps: int, term) -> Tensor:
    """Compute the gradient of mean L(theta') + lambda term, task by task, by torch.autograd.grad alone.

    ``term`` gets the losses before and after [B], and the entropies before and after [B].
    """
    net, classify = learner.net.net, learner.kind == "classification"
    loss_of = F.cross_entropy if classify else F.mse_loss
    theta = dict(net.named_parameters())
    rows = []
    for b in range(episodes.size):
        (sx, sy), (qx, qy) = ((part.x[b], part.y[b]) for part in (episodes.support, episodes.query))
        now = dict(theta)
        for _ in range(steps):
            gradients = torch.autograd.grad(
                loss_of(functional_call(net, now, (sx,)), sy), list(now.values()), create_graph=True
            )
            now = {n: p - 0.1 * g for (n, p), g in zip(now.items(), gradients, strict=True)}
        before, after = (functional_call(net, state, (qx,)) for state in (theta, now))
        entropies = [-(o.softmax(1) * o.log_softmax(1)).sum(1).mean() for o in (before, after)]
        rows.append(torch.stack([loss_of(before, qy), loss_of(after, qy), *entropies]))
    l0, l1, h0, h1 = torch.stack(rows).unbind(1)
    total = l1.mean() + learner.weight * term(l0, l1, h0, h1)
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, list(theta.values()))])


def unequal(measure: str, x: Tensor) -> Tensor:
    """Compute an inequality of losses by the formula of the paper."""
    M, m = len(x), x.mean()
    if measure == "gini":
        return sum((a - b).abs() for a in x for b in x) / (2 * M * x.sum())
    if measure == "theil":
        return ((x / m) * (x / m).log()).sum() / M
    if measure == "variance-of-logs":
        return ((x.log() - x.prod().pow(1 / M).log()) ** 2).sum() / M
    if measure == "atkinson":  # epsilon 0.5
        return 1 - (x.sqrt().sum() / M) ** 2 / m
    return ((x / m) ** 2 - 1).sum() / (M * 2)  # alpha 2


# --- The meta-gradient ----------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("measure", ["entropy", *INEQUALITIES])
def test_without_the_term_it_is_maml(measure, steps):
    """With lambda 0 the gradient is that of a naive MAML, to 1e-12 in float64."""
    learner = smooth(VECTORS.spec, measure=measure, weight=0.0, inner_steps=steps)
    episodes = in_float64(VECTORS.sample("train", range(4)))
    expected = naive(learner, episodes, steps, lambda l0, l1, h0, h1: 0.0)
    assert float(expected.norm()) > 1e-3
    assert torch.allclose(gradient_of(learner, episodes), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("strategy", ["vmap", "loop"])
def test_entropy_is_high_before_and_low_after(steps, strategy):
    """The loss is L(theta') + lambda (H(theta') - H(theta)), and its gradient that of a naive implementation."""
    learner = smooth(VECTORS.spec, measure="entropy", weight=0.7, inner_steps=steps, strategy=strategy)
    episodes = in_float64(VECTORS.sample("train", range(4)))
    expected = naive(learner, episodes, steps, lambda l0, l1, h0, h1: (h1 - h0).mean())
    assert torch.allclose(gradient_of(learner, episodes), expected, rtol=0, atol=1e-12)
    metrics = learner.meta_gradient(episodes)
    term = 0.7 * (metrics["entropy_after"] - metrics["entropy_before"])
    assert float(metrics["loss"]) == pytest.approx(float(metrics["query_loss"] + term), rel=1e-12)


@pytest.mark.parametrize("tasks", [LINES, VECTORS], ids=["regression", "classification"])
@pytest.mark.parametrize("losses", ["before", "after"])
@pytest.mark.parametrize("measure", INEQUALITIES)
def test_an_inequality_is_of_the_losses_before_or_after(measure, losses, tasks):
    """The gradient is that of mean L(theta') + lambda I, by a naive implementation, through both."""
    for steps, strategy in ((1, "vmap"), (3, "loop")):
        learner = smooth(
            tasks.spec, measure=measure, losses=losses, weight=0.7, inner_steps=steps, strategy=strategy, chunk=2
        )
        episodes = in_float64(tasks.sample("train", range(4)))
        expected = naive(
            learner, episodes, steps, lambda l0, l1, h0, h1: unequal(measure, l0 if losses == "before" else l1)
        )
        assert torch.allclose(gradient_of(learner, episodes), expected, rtol=0, atol=1e-12)


def test_the_options_of_the_measures_count():
    """epsilon and alpha reach their measure."""
    episodes = LINES.sample("train", range(4))
    for measure, name in (("atkinson", "epsilon"), ("generalised-entropy", "alpha")):
        values = [float(smooth(LINES.spec, measure=measure, **{name: v}).float().meta_gradient(episodes)["inequality"])
                  for v in (0.0, 0.3, 1.0)]  # fmt: skip
        assert len(set(values)) == 3


def test_a_single_task_is_maml():
    """One loss is equal to itself: the inequality is 0 and adds nothing to the gradient."""
    episodes = in_float64(LINES.sample("train", [3]))
    learner = smooth(LINES.spec, weight=5.0)
    expected = naive(learner, episodes, 1, lambda l0, l1, h0, h1: 0.0)
    assert torch.allclose(gradient_of(learner, episodes), expected, rtol=0, atol=1e-12)
    assert float(learner.meta_gradient(episodes)["inequality"]) == 0


@pytest.mark.parametrize("steps", [0, 1])
def test_the_predictions_before_adapting_leave_running_statistics_alone(steps):
    """With inductive normalisation the statistics move by the adapted network, as in MAML; also without a step."""
    images = sample_tasks.classification(input_shape=(1, 16, 16))
    episodes = images.sample("train", range(2))
    buffers = []
    for options in ({"losses": "after"}, {"losses": "before"}, {"measure": "entropy"}):
        torch.manual_seed(0)
        learner = TAML(
            images.spec, width=4, normalisation="inductive", weight=0.0, inner_steps=steps, **options
        ).train()
        start = torch.cat([b.flatten().float() for b in learner.buffers()])
        learner.meta_gradient(episodes)
        buffers.append(torch.cat([b.flatten().float() for b in learner.buffers()]))
        assert not torch.allclose(buffers[-1], start)
    assert torch.allclose(buffers[0], buffers[1])
    assert torch.allclose(buffers[0], buffers[2])


# --- What it asks for -----------------------------------------------------------------------------


def test_inequalities_couple_the_tasks_and_entropy_does_not():
    """The losses of a chunk would be compared among themselves, so chunks are refused."""
    assert TAML(VECTORS.spec).needs.couples_tasks
    assert not TAML(VECTORS.spec, measure="entropy").needs.couples_tasks
    with pytest.raises(MisfitError, match=r"TAML couples the tasks .* chunks of 2; leave chunk out"):
        Engine(TAML(VECTORS.spec), VECTORS, meta_batch=4, chunk=2)
    whole, parts = (kshot.learner("taml", VECTORS.spec, measure="entropy", seed=0) for _ in range(2))
    for learner, chunk in ((whole, None), (parts, 2)):
        engine = Engine(learner, VECTORS, meta_batch=4, chunk=chunk, backend=kshot.Cpu(precision="float32"), hooks=())
        engine.train(3)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_entropy_is_for_classification_only():
    """A number that is predicted has no entropy."""
    with pytest.raises(MisfitError, match="got measure 'entropy' for regression tasks, expected classification"):
        TAML(LINES.spec, measure="entropy")
    assert mismatches(TAML(VECTORS.spec, measure="entropy").needs, LINES.spec)


def test_bad_input_is_refused():
    """The message gives what was given, what was expected and what to do."""
    with pytest.raises(OptionError, match="inner_steps: got -1"):
        TAML(LINES.spec, inner_steps=-1)
    with pytest.raises(OptionError, match=r"measure: got 'ginni'.*did you mean 'gini'"):
        kshot.learner("taml", LINES.spec, measure="ginni")
    with pytest.raises(OptionError, match=r"weight: got -1.*at least 0"):
        kshot.learner("taml", LINES.spec, weight=-1)
    varying = TaskSpec(kind="classification", input_shape=(4,), way=(2, 5), shot=1, query=1, block=4)
    with pytest.raises(DataError, match="expected one number"):
        TAML(varying)
    learner = TAML(LINES.spec, inner_lr=1e18, inner_steps=3)
    with pytest.raises(TrainingError, match=r"taml: got inner loss .* of episode 0 of split 'train'"):
        learner.meta_gradient(LINES.sample("train", range(2)))


# --- It learns ------------------------------------------------------------------------------------


def trained(measure: str, weight: float, seed: int) -> tuple[Engine, dict[str, float]]:
    """Train for some seconds; return the engine, and the metrics on 100 validation tasks."""
    options = {"losses": "after"} if measure != "entropy" else {}
    learner = kshot.learner(
        "taml", VECTORS.spec, seed=seed, hidden=(32,), measure=measure, weight=weight, inner_lr=0.4, **options
    )
    engine = Engine(learner, VECTORS, meta_batch=8, hooks=(), optimizer={"lr": 3e-3})
    engine.train(100)
    return engine, {name: float(v) for name, v in learner.meta_gradient(VECTORS.sample("val", range(100))).items()}


def test_it_learns_and_makes_the_losses_of_tasks_more_equal():
    """Bounds are mean - 3 sigma and mean + 3 sigma of 5 seeds (accuracy 84.2 and 2.0 %, Theil 0.070 and 0.009).

    Without the term these seeds had 0.112 (sigma 0.025), and the same accuracy, 83.0 % (sigma 2.8).
    """
    engine, metrics = trained("theil", 2.0, seed=1)
    assert engine.evaluate(100).mean > 0.782
    assert metrics["inequality"] < 0.097
    _, without = trained("theil", 0.0, seed=1)
    assert metrics["inequality"] < 0.8 * without["inequality"]


def test_entropy_makes_adapted_predictions_more_decided():
    """Over 5 seeds the entropy after adapting fell from 0.577 to 0.541, in each of them by at least 0.016."""
    (engine, metrics), (_, without) = (trained("entropy", weight, seed=0) for weight in (1.0, 0.0))
    assert engine.evaluate(100).mean > 0.72  # mean - 3 sigma of 5 seeds (81.1 and 2.7 %)
    assert metrics["entropy_after"] < without["entropy_after"] - 0.016


def test_training_takes_the_inner_steps_whatever_the_test_steps_are():
    """``test_steps`` is for evaluation and use."""
    batch = in_float64(sample_tasks.Lines().sample("train", range(3)))
    spec = sample_tasks.Lines().spec
    few, many = (gradient_of(smooth(spec, inner_steps=2, test_steps=k), batch) for k in (2, 5))
    assert torch.equal(few, many)


def test_a_network_without_trainable_parameters_is_refused():
    """By a message of kshot, not one of autograd."""
    tasks = sample_tasks.classification()
    learner = TAML(tasks.spec, hidden=(8,))
    learner.requires_grad_(False)
    with pytest.raises(TrainingError, match="without trainable parameters"):
        learner.meta_gradient(tasks.sample("train", range(2)))
