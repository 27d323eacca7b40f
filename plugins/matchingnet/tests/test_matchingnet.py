"""Tests of matching networks: attention by hand, full context step by step, and that training works."""

from __future__ import annotations

import doctest
import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kshot
from kshot import ClassificationTasks, Engine, Pool, Support
from kshot.errors import OptionError
from kshot.randomness import episode_keys, normal
from kshot.testing import sample_tasks
from kshot_matchingnet import MatchingNet
from kshot_matchingnet.full_context import lstm_step
from kshot_matchingnet.matchingnet import cosine_similarities, log_attention, log_class_sums

PLANE = kshot.TaskSpec(kind="classification", input_shape=(2,), way=2, shot=1, query=1)


def tasks(**shape: int) -> ClassificationTasks:
    """Build tasks of classes that differ in 4 of 12 directions; the other 8 directions contain stronger noise."""

    def pool(split: str) -> Pool:
        keys = episode_keys(0, split, range(120))
        centres = np.zeros((120, 12))
        centres[:, :4] = normal(keys, "centre", 4)
        noise = normal(keys, "noise", 30 * 12).reshape(120, 30, 12) * np.where(np.arange(12) < 4, 0.3, 1.5)
        return Pool.of((centres[:, None] + noise).reshape(-1, 12).astype(np.float32), np.repeat(np.arange(120), 30))

    return ClassificationTasks({s: pool(s) for s in ("train", "val", "test")}, **{"way": 5, "shot": 1, **shape})


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Draw standard normal numbers in float64; equal seeds give equal numbers."""
    return torch.from_numpy(normal(episode_keys(seed, "numbers", [0]), "x", math.prod(shape))).view(shape)


def in_float64(episode: kshot.Episode) -> kshot.Episode:
    """Convert the floating-point tensors of an episode to float64."""
    return kshot.episode.map_tensors(lambda t: t.double() if t.is_floating_point() else t, episode)


def plain(**options: Any) -> MatchingNet:
    """Build a learner whose embeddings are the inputs, to test the attention alone."""
    return MatchingNet(PLANE, encoder=nn.Flatten(), **options).eval()


def probabilities(learner: MatchingNet, support: Support, x: list[list[float]]) -> list[list[float]]:
    """Compute the class probabilities of the queries ``x``."""
    with torch.no_grad():
        found: list[list[float]] = learner.adapt(support)(torch.tensor([x])).exp()[0].tolist()
    return found


# --- By hand ------------------------------------------------------------------------------------------------------


def test_cosines_by_hand() -> None:
    """Cosines do not depend on lengths; the angles are those of 3-4-5 triangles, opposite vectors and right angles."""
    a = torch.tensor([[3.0, 4.0], [0.0, -2.0]])
    b = torch.tensor([[1.0, 0.0], [0.0, 7.0], [-30.0, -40.0]])
    assert cosine_similarities(a, b).tolist() == [pytest.approx([0.6, 0.8, -1.0]), pytest.approx([0.0, -1.0, 0.8])]


def test_a_zero_vector_has_cosine_0_and_a_finite_gradient() -> None:
    """An encoder that ends in a ReLU can return zeros, and NaN from 0 / 0 would spoil all parameters."""
    a, b = torch.zeros(1, 3, requires_grad=True), torch.zeros(2, 3, requires_grad=True)
    c = cosine_similarities(a, torch.cat([b, torch.ones(1, 3)]))
    c.sum().backward()
    assert c.tolist() == [[0.0, 0.0, 0.0]]
    for t in (a, b):
        assert t.grad is not None
        assert bool(t.grad.isfinite().all())


def test_two_ways_by_hand() -> None:
    """At T = 1, cosines 1 and 0 give e / (e + 1), and cosines .6 and .8 the logistic function of their difference."""
    support = Support.of([[5.0, 0.0], [0.0, 0.5]], [0, 1])
    found = probabilities(plain(temperature=1.0), support, [[2.0, 0.0], [3.0, 4.0]])
    e = math.e
    assert found[0] == pytest.approx([e / (e + 1), 1 / (e + 1)])
    assert found[1] == pytest.approx([1 / (1 + math.exp(0.2)), 1 / (1 + math.exp(-0.2))])


def test_temperature_divides_the_cosines() -> None:
    """At T = 1/2, cosines 1 and 0 give e^2 / (e^2 + 1)."""
    support = Support.of([[5.0, 0.0], [0.0, 0.5]], [0, 1])
    (found,) = probabilities(plain(temperature=0.5), support, [[2.0, 0.0]])
    assert found == pytest.approx([math.e**2 / (math.e**2 + 1), 1 / (math.e**2 + 1)])


def test_a_class_has_the_sum_of_its_examples_attention() -> None:
    """Class 0 has one example at cosine 1, class 1 two at 0 and -1, so class 0 has e / (e + 1 + 1/e)."""
    support = Support.of([[0.0, 3.0], [1.0, 0.0], [-1.0, 0.0]], [1, 0, 1])
    (found,) = probabilities(plain(temperature=1.0), support, [[2.0, 0.0]])
    total = math.e + 1 + 1 / math.e
    assert found == pytest.approx([math.e / total, (1 + 1 / math.e) / total])


def test_without_a_temperature_the_probability_is_capped() -> None:
    """For 5 ways with orthogonal other classes it is at most e / (e + 4) = 0.40, as the docstring says."""
    spec = kshot.TaskSpec(kind="classification", input_shape=(5,), way=5, shot=1, query=1)
    support = Support.of(torch.eye(5), list(range(5)))
    for temperature, expected in ((1.0, math.e / (math.e + 4)), (0.1, math.exp(10) / (math.exp(10) + 4))):
        learner = MatchingNet(spec, encoder=nn.Flatten(), temperature=temperature).eval()
        found = torch.tensor(probabilities(learner, support, torch.eye(5).tolist()))
        assert found.diagonal().tolist() == pytest.approx([expected] * 5)
    assert math.e / (math.e + 4) == pytest.approx(0.40, abs=0.005)


def test_class_sums_are_those_of_the_definition() -> None:
    """A naive loop over log sum_i a_i y_i gives the same, for classes of different sizes."""
    log_a = log_attention(numbers(2, 4, 7), 0.3)
    y = torch.tensor([[0, 2, 1, 1, 0, 2, 1], [1, 0, 0, 2, 2, 2, 2]])
    found = log_class_sums(log_a, y, 3)
    for b in range(2):
        for q in range(4):
            naive = [sum(math.exp(log_a[b, q, i]) for i in range(7) if y[b, i] == c) for c in range(3)]
            assert found[b, q].exp().tolist() == pytest.approx(naive, rel=1e-12)


def test_an_improbable_class_keeps_its_digits() -> None:
    """At T = 1/200 and opposite cosines the attention is e^-400, 0 in float32, but the loss must not be infinite."""
    log_p = log_class_sums(log_attention(torch.tensor([[1.0, -1.0, -1.0]]), 1 / 200), torch.tensor([0, 1, 1]), 3)
    assert log_p[0, :2].tolist() == pytest.approx([0.0, -400 + math.log(2)])
    assert float(log_p[0, 2]) == -math.inf  # a class without examples has probability 0


# --- The learner ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("full_context", [False, True])
@pytest.mark.parametrize("temperature", ["learned", 1.0])
def test_rows_sum_to_one(full_context: bool, temperature: Any) -> None:
    """The outputs are logarithms of probabilities, so a scorer that expects logits can take them unchanged."""
    t = tasks(shot=3)
    learner = kshot.learner("matchingnet", t.spec, full_context=full_context, temperature=temperature).double()
    e = in_float64(t.sample("test", range(3)))
    with torch.no_grad():
        log_p = learner.adapt(e.support)(e.query.x)
    assert torch.allclose(log_p.exp().sum(-1), torch.ones(3, 75).double(), rtol=0, atol=1e-12)
    assert torch.allclose(log_p.log_softmax(-1), log_p, rtol=0, atol=1e-12)


def test_the_training_loss_is_the_papers() -> None:
    """A naive loop gives the same loss (-log of the attention to the query's class, averaged) and gradient."""
    t = tasks(shot=2, query=3)
    learner = kshot.learner("matchingnet", t.spec, seed=1).double()
    episodes = in_float64(t.sample("train", range(3)))
    reported = learner.train().meta_gradient(episodes)
    gradients = [p.grad.clone() for p in learner.parameters()]
    learner.zero_grad()
    total: Any = 0.0
    f = learner.encoder.net
    for b in range(3):
        sx, sy, qx, qy = (v[b] for v in (episodes.support.x, episodes.support.y, episodes.query.x, episodes.query.y))
        for x, y in zip(qx, qy, strict=True):
            z = f(x[None])[0]
            c = torch.stack([z @ g / (z.norm() * g.norm()) for g in f(sx)])
            a = (c / learner.log_temperature.exp()).softmax(0)
            total = total - a[sy == y].sum().log() / (3 * len(qx))
    total.backward()
    assert float(reported["loss"]) == pytest.approx(float(total.detach()), rel=1e-10)
    assert float(reported["temperature"]) == pytest.approx(0.1)
    for mine, p in zip(gradients, learner.parameters(), strict=True):
        assert torch.allclose(mine, p.grad, atol=1e-10)


def test_training_reports_the_predictions_for_whole_episodes() -> None:
    """In training, batch norm sees support and queries together, so the figures are those of ``transductive``."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 6), nn.BatchNorm1d(6))
    learner = MatchingNet(tasks().spec, encoder=net, normalisation="transductive").double()
    e = in_float64(tasks(shot=2, query=3).sample("train", range(3)))
    logits = learner.eval().adapt(e.support)(e.query.x).detach()
    reported = learner.train().meta_gradient(e)
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), e.query.y.flatten())
    assert float(reported["loss"]) == pytest.approx(float(expected), rel=1e-10)
    share = (logits.argmax(-1) == e.query.y).float().mean()
    assert float(reported["accuracy"]) == pytest.approx(float(share))
    assert share != 0.5


def test_another_way_than_it_was_built_for() -> None:
    """A learner built for 5 ways predicts for 12 and for 2: attention has no output layer of a fixed size."""
    learner = kshot.learner("matchingnet", tasks().spec, full_context=True)
    for way in (12, 2):
        e = tasks(way=way).sample("test", [0, 1])
        assert learner.adapt(e.support)(e.query.x).shape == (2, 15 * way, way)


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.inf, math.nan, "cold"])
def test_an_impossible_temperature_is_refused(wrong: Any) -> None:
    """Training with each of these values would raise no error and learn nothing."""
    with pytest.raises(OptionError, match=f"got temperature={wrong!r}, expected 'learned' or a positive number"):
        MatchingNet(PLANE, temperature=wrong)


def test_zero_processing_steps_are_refused() -> None:
    """Without a step, the embedding of every query would be 0."""
    with pytest.raises(OptionError, match="got steps=0, expected at least 1"):
        MatchingNet(PLANE, full_context=True, steps=0)


# --- Full context ---------------------------------------------------------------------------------------------------


def sigmoid(v: np.ndarray) -> np.ndarray:
    """Compute the logistic function."""
    return 1 / (1 + np.exp(-v))


def naive_lstm(x: np.ndarray, state: np.ndarray, c: np.ndarray, w: Any, u: Any, b: Any) -> tuple[Any, Any]:
    """Compute one step for one vector, with the gates in torch's order: input, forget, candidate, output."""
    i, f, g, o = np.split(w @ x + u @ state + b, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


@pytest.mark.parametrize("steps", [1, 3])
def test_full_context_is_the_papers(steps: int) -> None:
    """Appendix A, one vector at a time in numpy: both directions, the skip connections and the input [h, r]."""
    learner = plain(full_context=True, steps=steps).double()
    assert learner.context is not None
    own_g, own_f = numbers(1, 4, 2, seed=1), numbers(1, 3, 2, seed=2)
    with torch.no_grad():
        g = learner.context.g(own_g)
        f = learner.context.f(own_f, g)
    lstm = learner.context.support
    p = {n: v.detach().numpy() for n, v in learner.context.named_parameters()}
    expected = own_g[0].numpy().copy()
    for suffix, order in (("", range(4)), ("_reverse", reversed(range(4)))):
        w, u, b, b_u = (p[f"support.{n}_l0{suffix}"] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        h, c = np.zeros(2), np.zeros(2)
        for i in order:
            h, c = naive_lstm(own_g[0, i].numpy(), h, c, w, u, b + b_u)
            expected[i] += h
    assert lstm.bidirectional
    assert np.allclose(g[0].numpy(), expected, rtol=0, atol=1e-12)
    for q in range(3):
        own, h, c = own_f[0, q].numpy(), np.zeros(2), np.zeros(2)
        for _ in range(steps):
            a = np.exp(expected @ h)
            r = (a / a.sum()) @ expected
            out, c = naive_lstm(own, np.concatenate([h, r]), c, p["see.weight"], p["recall.weight"], p["see.bias"])
            h = out + own
        assert np.allclose(f[0, q].numpy(), h, rtol=0, atol=1e-12)


def test_lstm_step_by_hand() -> None:
    """An open input gate with candidate atanh(1/2) adds 1/2, and a shut forget gate removes the cell's value 3."""
    open_, shut, half = 100.0, -100.0, math.atanh(0.5)
    h, c = lstm_step(torch.tensor([open_, shut, half, open_]), torch.tensor([3.0]))
    assert (float(c), float(h)) == pytest.approx((0.5, math.tanh(0.5)))
    h, c = lstm_step(torch.tensor([open_, open_, half, shut]), torch.tensor([3.0]))
    assert (float(c), float(h)) == pytest.approx((3.5, 0.0))


def test_full_context_with_zero_weights_is_the_plain_attention() -> None:
    """If all weights of the LSTMs are 0, only the skip connections remain."""
    support, x = Support.of(numbers(6, 2), [0, 1, 0, 1, 1, 0]), numbers(1, 4, 2, seed=3).float()
    learner = plain(full_context=True)
    assert learner.context is not None
    for p in learner.context.parameters():
        nn.init.zeros_(p)
    assert torch.equal(learner.adapt(support)(x), plain().adapt(support)(x))


def test_the_order_of_the_support_matters_in_full_context_only() -> None:
    """The learner's needs say so in both cases."""
    t = sample_tasks.classification(shot=3)
    e = in_float64(t.sample("test", [0, 1]))
    for full_context, invariant in ((False, {"labels", "order"}), (True, {"labels"})):
        learner = kshot.learner("matchingnet", t.spec, full_context=full_context).double()
        order = torch.tensor([4, 0, 8, 2, 6, 1, 7, 3, 5])
        shuffled = Support(e.support.x[:, order], e.support.y[:, order], key=e.support.key, way=3)
        with torch.no_grad():
            before, after = learner.adapt(e.support)(e.query.x), learner.adapt(shuffled)(e.query.x)
        same = torch.allclose(before, after, rtol=0, atol=1e-10)
        assert same == (not full_context)
        assert learner.needs.invariant == invariant


# --- That it learns -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "iterations", "least"),
    [({}, 300, 0.912), ({"temperature": 1.0}, 300, 0.862), ({"full_context": True}, 100, 0.866)],
)
def test_it_learns_to_tell_unseen_classes_apart(options: dict[str, Any], iterations: int, least: float) -> None:
    """The bounds are means of 5 seeds less 3 sigma: 91.7 % (sigma 0.12), 86.9 % (0.21) and 87.8 % (0.39).

    The cosine of the inputs reaches 36.8 %; chance is 20 %.
    """
    t = tasks()
    engine = Engine(kshot.learner("matchingnet", t.spec, seed=0, **options), tasks(way=20, query=5))
    engine.train(iterations)
    raw = Engine(MatchingNet(t.spec, encoder=nn.Flatten()), t).evaluate(300)
    assert raw.mean < 0.40
    assert engine.evaluate(300, tasks=t).mean > least


def test_a_learned_temperature_falls_and_sharpens_probabilities() -> None:
    """At T = 1, the probability of the right class stays below e / (e + 4 / e) = 0.65 for 5 ways."""
    t = tasks()
    nll = {}
    for temperature in ("learned", 1.0):
        learner = kshot.learner("matchingnet", t.spec, seed=0, temperature=temperature)
        engine = Engine(learner, tasks(way=20, query=5))
        engine.train(300)
        nll[temperature] = float(engine.evaluate(300, tasks=t).scores["nll"].mean())
        if temperature == "learned":
            assert float(learner.temperature.detach()) < 0.1
    assert nll[1.0] > math.log((math.e + 4 / math.e) / math.e)
    assert nll["learned"] < nll[1.0] / 2


def test_the_examples_in_docstrings_run() -> None:
    """A wrong example is worse than none."""
    for module in ("kshot_matchingnet.full_context", "kshot_matchingnet.matchingnet"):
        result = doctest.testmod(sys.modules[module])
        assert (result.failed, result.attempted > 0) == (0, True)
