"""``kshot_anil``: its identities, a second implementation of its meta-gradient, and that it learns."""

import copy
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kshot
from kshot import ClassificationTasks, Engine, Episode, Pool, TaskSpec
from kshot.episode import map_tensors
from kshot.errors import DataError, MisfitError, OptionError, TrainingError
from kshot.nn import Head
from kshot.randomness import episode_keys, normal
from kshot.testing import sample_tasks
from kshot_anil import ANIL


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


def episodes(split: str = "train", count: int = 3) -> Episode:
    """Sample episodes in float64."""
    return map_tensors(lambda t: t.double() if t.is_floating_point() else t, tasks().sample(split, range(count)))


def smooth(**options) -> ANIL:
    """Build a float64 learner with a net of Tanh, whose derivatives exist everywhere; its head has the path ``2``."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 5))
    return ANIL(SPEC, **{"network": net, **options}).double()


def images(**options) -> tuple[ANIL, Episode]:
    """Build a float64 learner with batch norm, and episodes of images."""
    table = sample_tasks.classification(input_shape=(1, 16, 16))
    torch.manual_seed(2)
    learner = ANIL(table.spec, width=4, inner_steps=2, **options).double()
    return learner, map_tensors(lambda t: t.double() if t.is_floating_point() else t, table.sample("train", range(3)))


def gradient_of(learner: nn.Module, batch: Episode) -> Tensor:
    learner.zero_grad()
    learner.meta_gradient(batch)
    return torch.cat([p.grad.flatten() for p in learner.parameters()])


def by_hand(learner: ANIL, batch: Episode, steps: int, second_order: bool = True) -> Tensor:
    """Compute the meta-gradient task by task with torch.autograd alone, for a net of two linear layers and Tanh."""
    leaves = [p.detach().clone().requires_grad_() for p in learner.net.net.parameters()]
    v, c, w, b = leaves
    total = 0
    for t in range(batch.size):
        w_t, b_t = w, b
        for _ in range(steps):
            logits = torch.tanh(batch.support.x[t] @ v.T + c) @ w_t.T + b_t
            loss = F.cross_entropy(logits, batch.support.y[t])
            g_w, g_b = torch.autograd.grad(loss, [w_t, b_t], create_graph=True)
            if not second_order:
                g_w, g_b = g_w.detach(), g_b.detach()
            w_t, b_t = w_t - learner.inner_lr * g_w, b_t - learner.inner_lr * g_b
        logits = torch.tanh(batch.query.x[t] @ v.T + c) @ w_t.T + b_t
        total = total + F.cross_entropy(logits, batch.query.y[t]) / batch.size
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, leaves)])


@pytest.mark.parametrize("order", ["second", "first"])
@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("strategy", ["vmap", "loop"])
def test_the_meta_gradient_is_that_of_a_second_implementation(order, steps, strategy):
    """In float64, through no, one and three inner steps of the head, for the body and the head."""
    learner = smooth(order=order, inner_steps=steps, strategy=strategy)
    expected = by_hand(learner, episodes(), steps, order == "second")
    assert torch.allclose(gradient_of(learner, episodes()), expected, rtol=0, atol=1e-12)


def test_second_order_reaches_the_body_through_the_features_of_the_support():
    """The features are constant in the inner loop, but the outer gradient passes through them."""
    body = [gradient_of(smooth(inner_steps=3, order=order), episodes())[:104] for order in ("second", "first")]
    assert all(float(g.abs().max()) > 1e-3 for g in body)
    assert not torch.allclose(*body, atol=1e-4)


@pytest.mark.parametrize("head", [None, ""])
def test_it_is_maml_on_a_net_that_is_its_head(head):
    """MAML's meta-gradient, by torch.autograd for all parameters, and that of the plugin ``maml`` if it is installed.

    The net is one layer, or several layers that the option names as the head.
    """
    torch.manual_seed(3)
    net = nn.Linear(12, 5) if head is None else nn.Sequential(nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 5))
    learner = ANIL(SPEC, network=net, head=head, inner_steps=3).double()
    batch = episodes()
    leaves = {n: p.detach().clone().requires_grad_() for n, p in learner.net.net.named_parameters()}

    def loss(theta, x, y):
        return F.cross_entropy(torch.func.functional_call(learner.net.net, theta, (x,)), y)

    total = 0
    for t in range(batch.size):
        theta = dict(leaves)
        for _ in range(3):
            at = loss(theta, batch.support.x[t], batch.support.y[t])
            gradients = torch.autograd.grad(at, list(theta.values()), create_graph=True)
            theta = {n: p - 0.4 * g for (n, p), g in zip(theta.items(), gradients, strict=True)}
        total = total + loss(theta, batch.query.x[t], batch.query.y[t]) / batch.size
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(total, list(leaves.values()))])
    mine = gradient_of(learner, batch)
    assert torch.allclose(mine, expected, rtol=0, atol=1e-12)
    if find_spec("kshot_maml"):
        maml = kshot.learner("maml", SPEC, network=copy.deepcopy(learner.net.net), inner_steps=3).double()
        assert torch.allclose(mine, gradient_of(maml, batch), rtol=0, atol=1e-12)


def test_adaptation_moves_the_head_and_not_the_body():
    """Predictions are those of SGD on the parameters of the head alone; nothing in the learner changes."""
    learner = smooth(inner_steps=1, test_steps=4).eval()
    before = copy.deepcopy(learner.state_dict())
    batch = episodes("test", 2)
    predictions = learner.adapt(batch.support)(batch.query.x)
    assert all(torch.equal(before[n], t) for n, t in learner.state_dict().items())
    for t in range(2):
        net = copy.deepcopy(learner.net.net)
        sgd = torch.optim.SGD(net[2].parameters(), lr=learner.inner_lr)
        for _ in range(4):
            sgd.zero_grad()
            F.cross_entropy(net(batch.support.x[t]), batch.support.y[t]).backward()
            sgd.step()
        assert torch.equal(net[0].weight, learner.net.net[0].weight)
        assert torch.allclose(predictions[t], net(batch.query.x[t]), atol=1e-12)


def test_a_predictor_keeps_the_body_that_it_was_made_with():
    """Later training changes the learner in place, but not the predictor."""
    learner = smooth().eval()
    batch = episodes("test", 1)
    predict = learner.adapt(batch.support)
    before = predict(batch.query.x)
    with torch.no_grad():
        learner.net.net[0].weight.add_(1)
    assert torch.equal(before, predict(batch.query.x))


def test_the_support_passes_through_the_body_once():
    """One call for the support and one for the queries, whatever the number of inner steps."""
    learner = smooth(inner_steps=5, strategy="loop")
    calls = []
    learner.net.net[0].register_forward_hook(lambda *_: calls.append(1))
    learner.meta_gradient(episodes(count=1))
    assert len(calls) == 2


@pytest.mark.parametrize("normalisation", ["transductive", "support", "inductive"])
@pytest.mark.parametrize("order", ["second", "first"])
def test_features_that_are_computed_once_change_nothing(order, normalisation, monkeypatch):
    """The gradient, the running statistics and the predictions are those of the complete network in each step."""
    outcomes = []
    for once in (True, False):
        if not once:
            monkeypatch.setattr(Head, "inputs", lambda *_: None)
        learner, batch = images(order=order, normalisation=normalisation)
        outcomes.append([gradient_of(learner, batch), *learner.buffers()])
        outcomes[-1].append(learner.eval().adapt(batch.support)(batch.query.x))
    for a, b in zip(*outcomes, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize("normalisation", ["transductive", "support", "inductive"])
def test_a_traced_evaluation_predicts_the_same_to_the_bit(normalisation, recwarn):
    """Under ``support`` the predictor runs the support only for its statistics, and uses no other result of it."""
    traced, usual = (images(normalisation=normalisation, strategy=s, chunk=1)[0].eval() for s in ("traced", "loop"))
    batch = images()[1]
    for _ in range(3):
        assert torch.equal(*(m.adapt(batch.support)(batch.query.x) for m in (traced, usual)))
    works = traced.lift._replays._works.values()
    assert [len(work.traces) for work in works] == [3, 3]  # of adapting and of predicting, for each task
    assert not recwarn.list


def test_a_net_with_more_than_a_head_after_its_body_gives_the_same_gradient():
    """What follows the head is computed by the complete network: here a function that changes no logit."""

    class Same(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 1.0

    plain = smooth(inner_steps=3)
    longer = smooth(inner_steps=3, network=nn.Sequential(*copy.deepcopy(plain.net.net), Same()))
    assert torch.allclose(gradient_of(plain, episodes()), gradient_of(longer, episodes()), rtol=0, atol=1e-12)


def test_losses_taken_apart_have_the_gradient_of_their_mean():
    """The displacement of a task is that of its head alone (ability ``PerTask``)."""
    learner = smooth(inner_steps=2)
    whole = gradient_of(learner, episodes())
    learner.zero_grad()
    losses, away = learner.task_losses(episodes())
    losses.mean().backward()
    assert torch.allclose(whole, torch.cat([p.grad.flatten() for p in learner.parameters()]), atol=1e-12)
    assert sorted(away) == ["2.bias", "2.weight"]
    assert all(float(d.detach().abs().max()) > 1e-3 for d in away.values())


def test_rates_and_meta_batches_are_those_of_maml():
    """Only the inner loop differs, so the two can be compared."""
    shape = {"kind": "classification", "input_shape": (4,), "shot": 1, "query": 5}
    assert [ANIL(TaskSpec(way=way, **shape)).inner_lr for way in (5, 20)] == [0.4, 0.1]
    lines = ANIL(sample_tasks.Lines().spec)
    assert (lines.inner_lr, lines.training_defaults.meta_batch) == (0.01, 25)


def test_bad_input_is_refused_before_any_compute():
    """The message gives what was given, what was expected and what to do."""
    with pytest.raises(OptionError, match=r"anil: got head 'fc', expected .*: '1', '3', '5', or one that contains"):
        ANIL(SPEC, head="fc")
    with pytest.raises(OptionError, match="test_steps: got -1"):
        ANIL(SPEC, test_steps=-1)
    with pytest.raises(DataError, match="expected one number: the last layer has an output for each class"):
        ANIL(tasks(way=(2, 5), block=4).spec)
    with pytest.raises(MisfitError, match="sequence"):
        kshot.check(ANIL(SPEC), TaskSpec(kind="sequence", input_shape=(1,), target_shape=(1,), query=3))


def test_a_diverging_inner_loop_names_task_and_step():
    """A NaN is reported in the inner loop where it arises, not as a NaN loss of the meta-batch."""
    learner = ANIL(sample_tasks.Lines().spec, inner_lr=1e30, inner_steps=3)
    with pytest.raises(TrainingError, match=r"anil: got inner loss .* of episode 0 of split 'train' .* step \d of 3"):
        learner.meta_gradient(sample_tasks.Lines().sample("train", range(2)))


def test_it_learns():
    """The accuracy of a short training is at least mean - 3 sigma of 5 seeds (83.4 and 0.6 %); chance is 20 %."""
    engine = Engine(kshot.learner("anil", SPEC, seed=0, inner_steps=3), tasks(), meta_batch=8)
    engine.train(300)
    assert engine.evaluate(200).mean > 0.81


def test_training_takes_the_inner_steps_whatever_the_test_steps_are():
    """``test_steps`` is for evaluation and use."""
    batch = episodes()
    few, many = (gradient_of(smooth(inner_steps=2, test_steps=k), batch) for k in (2, 5))
    assert torch.equal(few, many)
