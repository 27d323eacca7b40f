"""``kshot_protomaml``: its identities, a second implementation of its meta-gradient, and that it learns."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kshot
from kshot import ClassificationTasks, Engine, Episode, Pool
from kshot.episode import map_tensors
from kshot.errors import MisfitError, OptionError, TrainingError
from kshot.nn import Encoder
from kshot.randomness import episode_keys, normal
from kshot.testing import sample_tasks
from kshot_protomaml import ProtoMAML, prototypical_head


def tasks(**shape: int) -> ClassificationTasks:
    """Build tasks of classes that differ in 4 of 12 directions; the other 8 directions contain stronger noise."""

    def pool(split: str) -> Pool:
        keys = episode_keys(0, split, range(120))
        centres = np.zeros((120, 12))
        centres[:, :4] = normal(keys, "centre", 4)
        noise = normal(keys, "noise", 30 * 12).reshape(120, 30, 12) * np.where(np.arange(12) < 4, 0.3, 1.5)
        return Pool.of((centres[:, None] + noise).reshape(-1, 12).astype(np.float32), np.repeat(np.arange(120), 30))

    return ClassificationTasks({s: pool(s) for s in ("train", "val", "test")}, **{"way": 5, "shot": 2, **shape})


SPEC = tasks().spec


def episodes(split: str = "train", count: int = 3, **shape) -> Episode:
    """Sample episodes in float64."""
    sampled = tasks(**shape).sample(split, range(count))
    return map_tensors(lambda t: t.double() if t.is_floating_point() else t, sampled)


def smooth(**options) -> ProtoMAML:
    """Build a float64 learner with an encoder of Tanh, whose derivatives exist everywhere."""
    torch.manual_seed(1)
    encoder = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 6))
    return ProtoMAML(SPEC, **{"encoder": encoder, "inner_lr": 0.05, **options}).double()


def gradient_of(learner: nn.Module, batch: Episode) -> Tensor:
    learner.zero_grad()
    learner.meta_gradient(batch)
    return torch.cat([p.grad.flatten() for p in learner.parameters()])


def by_hand(learner: ProtoMAML, batch: Episode, steps: int, *, second_order: bool, through_head: bool = True) -> Tensor:
    """Compute the meta-gradient task by task with torch.autograd alone, for the encoder of ``smooth``.

    An inner gradient by theta is a partial derivative: the head, although made by theta, is then a variable of its own.
    """
    leaves = [p.detach().clone().requires_grad_() for p in learner.net.net.parameters()]

    def embed(parameters, x):
        v, c, w, b = parameters
        return torch.tanh(x @ v.T + c) @ w.T + b

    total = 0
    for t in range(batch.size):
        x, y = batch.support.x[t], batch.support.y[t]
        z = embed(leaves, x)
        prototypes = [z[y == c].mean(0) for c in range(5)]
        weight = torch.stack([2 * p for p in prototypes])
        bias = torch.stack([-(p @ p) for p in prototypes])
        if not through_head:
            weight, bias = weight.detach().requires_grad_(), bias.detach().requires_grad_()
        values = [*[p.clone() for p in leaves], weight, bias]  # gradients by a copy do not pass through the head
        for _ in range(steps):
            loss = F.cross_entropy(embed(values[:4], x) @ values[4].T + values[5], y)
            gradients = torch.autograd.grad(loss, values, create_graph=True)
            if not second_order:
                gradients = [g.detach() for g in gradients]
            values = [p - learner.inner_lr * g for p, g in zip(values, gradients, strict=True)]
        logits = embed(values[:4], batch.query.x[t]) @ values[4].T + values[5]
        total = total + F.cross_entropy(logits, batch.query.y[t]) / batch.size
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, leaves)])


@pytest.mark.parametrize("order", ["second", "first"])
@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("strategy", ["vmap", "loop"])
def test_the_meta_gradient_is_that_of_a_second_implementation(order, steps, strategy):
    """In float64, through no, one and three inner steps of encoder and head."""
    learner = smooth(order=order, inner_steps=steps, strategy=strategy)
    expected = by_hand(learner, episodes(), steps, second_order=order == "second")
    assert torch.allclose(gradient_of(learner, episodes()), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", ["second", "first"])
def test_gradients_flow_through_the_first_head(order):
    """As the paper asks, the prototypes are not constants, in first order neither."""
    learner = smooth(order=order, inner_steps=1)
    constant = by_hand(learner, episodes(), 1, second_order=order == "second", through_head=False)
    assert not torch.allclose(gradient_of(learner, episodes()), constant, atol=1e-3)


@pytest.mark.parametrize("shape", [{}, {"way": 3, "shot": 4}, {"shot": (1, 3), "block": 4}])
def test_without_inner_steps_it_is_a_prototypical_network(shape):
    """Its logits are minus the squared distances to the prototypes, up to a constant for each query."""
    learner = smooth(test_steps=0).eval()
    batch = episodes("test", 2, **shape)
    logits = learner.adapt(batch.support)(batch.query.x)
    f = learner.net.net
    for t in range(2):
        z, y, way = f(batch.support.x[t]), batch.support.y[t], batch.support.way
        distances = torch.stack([(f(batch.query.x[t]) - z[y == c].mean(0)).square().sum(1) for c in range(way)], 1)
        gap = logits[t] + distances
        assert torch.allclose(gap, gap[:, :1].expand(-1, way), atol=1e-10)


def test_a_head_is_made_for_each_task_of_any_way():
    """One learner adapts to and learns from tasks of two, three and seven classes, as a second implementation does."""
    learner = smooth(test_steps=3).eval()
    for way in (2, 3, 7):
        batch = episodes("test", 2, way=way)
        predictions = learner.adapt(batch.support)(batch.query.x)
        assert predictions.shape[-1] == way
        for t in range(2):
            net = copy.deepcopy(learner.net.net)
            x, y = batch.support.x[t], batch.support.y[t]
            p = torch.stack([net(x)[y == c].mean(0) for c in range(way)]).detach()
            head = nn.Linear(6, way).double()
            head.weight.data, head.bias.data = 2 * p, -(p * p).sum(1)
            sgd = torch.optim.SGD([*net.parameters(), *head.parameters()], lr=0.05)
            for _ in range(3):
                sgd.zero_grad()
                F.cross_entropy(head(net(x)), y).backward()
                sgd.step()
            assert torch.allclose(predictions[t], head(net(batch.query.x[t])), atol=1e-12)
    varying = tasks(way=(2, 6), block=4)
    Engine(kshot.learner("protomaml", varying.spec, width=8, inner_steps=1), varying, meta_batch=4).train(3)


def test_the_head_is_the_linear_form_of_squared_distances():
    """Section 3 of the paper: w_c = 2 p_c and b_c = -||p_c||^2."""
    weight, bias = prototypical_head(torch.tensor([[1.0, -2.0]]))
    assert (weight.tolist(), bias.tolist()) == ([[2.0, -4.0]], [-5.0])


def test_the_head_is_computed_in_full_precision():
    """Under autocast 2 p_c z and ||p_c||^2 would lose the digits in which classes differ: 2049 is 2048 in bfloat16."""
    learner = ProtoMAML(SPEC, encoder=nn.Flatten(), test_steps=0).eval()
    support = kshot.Support.of([[2049.0], [2050.0]], [0, 1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        learner.net.input_shape = (1,)
        logits = learner.adapt(support)(torch.tensor([[[1.0]]]))
    assert logits.tolist() == [[[2 * 2049.0 - 2049.0**2, 2 * 2050.0 - 2050.0**2]]]


def test_losses_taken_apart_have_the_gradient_of_their_mean():
    """The displacement of a task is that of its encoder; the head has no start that tasks share (``PerTask``)."""
    learner = smooth(inner_steps=2)
    whole = gradient_of(learner, episodes())
    learner.zero_grad()
    losses, away = learner.task_losses(episodes())
    losses.mean().backward()
    assert torch.allclose(whole, torch.cat([p.grad.flatten() for p in learner.parameters()]), atol=1e-12)
    assert sorted(away) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    assert all(float(d.detach().abs().max()) > 1e-4 for d in away.values())


def test_only_exact_gradients_are_declared_exact():
    """First order is exact without inner steps; batch statistics of the support count as constants."""
    assert not smooth().needs.exact_gradient
    assert smooth(order="second").needs.exact_gradient
    assert smooth(inner_steps=0).needs.exact_gradient
    norm = nn.Sequential(nn.Linear(12, 4), nn.BatchNorm1d(4))
    assert not smooth(order="second", encoder=norm, normalisation="support").needs.exact_gradient
    assert not smooth(order="second", encoder=Encoder(norm, "support")).needs.exact_gradient


def test_bad_input_is_refused_before_any_compute():
    """The message gives what was given, what was expected and what to do."""
    with pytest.raises(OptionError, match="test_steps: got -1"):
        ProtoMAML(SPEC, test_steps=-1)
    with pytest.raises(OptionError, match=r"'auto' \| 'conv4' \| 'strided-conv4' \| 'mlp' \| 'linear'"):
        ProtoMAML(SPEC, encoder="conv5")
    with pytest.raises(MisfitError, match="regression"):
        kshot.check(ProtoMAML(SPEC), sample_tasks.Lines().spec)


def test_a_diverging_inner_loop_names_task_and_step():
    """A NaN is reported in the inner loop where it arises, not as a NaN loss of the meta-batch."""
    learner = ProtoMAML(SPEC, inner_lr=1e30, inner_steps=3)
    with pytest.raises(TrainingError, match=r"protomaml: got inner loss .* of episode 0 .* step \d of 3"):
        learner.meta_gradient(tasks().sample("train", range(2)))


def test_it_learns():
    """The accuracy of a short training is at least mean - 3 sigma of 5 seeds (93.1 and 0.2 %); chance is 20 %."""
    engine = Engine(kshot.learner("protomaml", SPEC, seed=0), tasks(), meta_batch=8)
    engine.train(100)
    assert engine.evaluate(200).mean > 0.92


def test_training_takes_the_inner_steps_whatever_the_test_steps_are():
    """``test_steps`` is for evaluation and use."""
    batch = episodes()
    few, many = (gradient_of(smooth(inner_steps=2, test_steps=k), batch) for k in (2, 5))
    assert torch.equal(few, many)
