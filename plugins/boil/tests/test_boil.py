"""``kshot_boil``: its identities, a second implementation of its meta-gradient, and that it learns."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kshot
from kshot import ClassificationTasks, Engine, Episode, Pool, TaskSpec
from kshot.episode import map_tensors
from kshot.errors import DataError, MisfitError, OptionError, TrainingError
from kshot.inner import State, descend
from kshot.randomness import episode_keys, normal
from kshot.testing import sample_tasks
from kshot_boil import BOIL


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


def smooth(**options) -> BOIL:
    """Build a float64 learner with a net of Tanh, whose derivatives exist everywhere; its head has the path ``2``."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 5))
    return BOIL(SPEC, **{"network": net, **options}).double()


def gradient_of(learner: nn.Module, batch: Episode) -> Tensor:
    learner.zero_grad()
    learner.meta_gradient(batch)
    return torch.cat([p.grad.flatten() for p in learner.parameters()])


def by_hand(learner: BOIL, batch: Episode, steps: int, second_order: bool = True) -> Tensor:
    """Compute the meta-gradient task by task with torch.autograd alone, for a net of two linear layers and Tanh."""
    leaves = [p.detach().clone().requires_grad_() for p in learner.net.net.parameters()]
    v, c, w, b = leaves
    total = 0
    for t in range(batch.size):
        v_t, c_t = v, c
        for _ in range(steps):
            logits = torch.tanh(batch.support.x[t] @ v_t.T + c_t) @ w.T + b
            loss = F.cross_entropy(logits, batch.support.y[t])
            g_v, g_c = torch.autograd.grad(loss, [v_t, c_t], create_graph=True)
            if not second_order:
                g_v, g_c = g_v.detach(), g_c.detach()
            v_t, c_t = v_t - learner.inner_lr * g_v, c_t - learner.inner_lr * g_c
        logits = torch.tanh(batch.query.x[t] @ v_t.T + c_t) @ w.T + b
        total = total + F.cross_entropy(logits, batch.query.y[t]) / batch.size
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, leaves)])


@pytest.mark.parametrize("order", ["second", "first"])
@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("strategy", ["vmap", "loop"])
def test_the_meta_gradient_is_that_of_a_second_implementation(order, steps, strategy):
    """In float64, through no, one and three inner steps of the body, for the body and the head."""
    learner = smooth(order=order, inner_steps=steps, strategy=strategy)
    expected = by_hand(learner, episodes(), steps, order == "second")
    assert torch.allclose(gradient_of(learner, episodes()), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("head", [None, "0"])
def test_it_is_maml_with_a_rate_of_zero_for_the_head(head):
    """The paper states BOIL in this way; here by ``descend`` with a rate for each parameter."""
    learner = smooth(inner_steps=3, head=head)
    prefix = "2." if head is None else "0."
    rates = {n: 0.0 if n.startswith(prefix) else 0.5 for n, _ in learner.net.net.named_parameters()}
    batch, total = episodes(), 0
    for t in range(batch.size):
        support = batch.support.x[t], batch.support.y[t]
        end, _ = descend(
            lambda state, data: F.cross_entropy(state.call(learner.net.net, data[0]), data[1]),
            State.of(learner.net.net),
            support,
            lr=rates,
            steps=3,
        )
        outputs = end.call(learner.net.net, batch.query.x[t])
        total = total + F.cross_entropy(outputs, batch.query.y[t]) / batch.size
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(total, list(learner.parameters()))])
    assert torch.allclose(gradient_of(learner, batch), expected, rtol=0, atol=1e-12)


def test_adaptation_moves_the_body_and_not_the_head():
    """Predictions are those of SGD on the parameters of the body alone; nothing in the learner changes."""
    learner = smooth(inner_steps=1, test_steps=4).eval()
    before = copy.deepcopy(learner.state_dict())
    batch = episodes("test", 2)
    predictions = learner.adapt(batch.support)(batch.query.x)
    assert all(torch.equal(before[n], t) for n, t in learner.state_dict().items())
    for t in range(2):
        net = copy.deepcopy(learner.net.net)
        sgd = torch.optim.SGD(net[0].parameters(), lr=learner.inner_lr)
        for _ in range(4):
            sgd.zero_grad()
            F.cross_entropy(net(batch.support.x[t]), batch.support.y[t]).backward()
            sgd.step()
        assert torch.equal(net[2].weight, learner.net.net[2].weight)
        assert torch.allclose(predictions[t], net(batch.query.x[t]), atol=1e-12)


def test_the_head_is_learned_in_the_outer_loop():
    """An outer step moves it, although no inner step does."""
    learner = smooth()
    before = learner.net.net[2].weight.detach().clone()
    Engine(learner.float(), tasks(), meta_batch=2).train(1)
    assert float((learner.net.net[2].weight.detach() - before).abs().min()) > 0


def test_losses_taken_apart_have_the_gradient_of_their_mean():
    """The displacement of a task is that of its body alone (ability ``PerTask``)."""
    learner = smooth(inner_steps=2)
    whole = gradient_of(learner, episodes())
    learner.zero_grad()
    losses, away = learner.task_losses(episodes())
    losses.mean().backward()
    assert torch.allclose(whole, torch.cat([p.grad.flatten() for p in learner.parameters()]), atol=1e-12)
    assert sorted(away) == ["0.bias", "0.weight"]
    assert all(float(d.detach().abs().max()) > 1e-3 for d in away.values())


def test_rates_and_meta_batches_are_the_authors():
    """Those of their network of four convolutions; the paper has no regression, which has MAML's."""
    learner = BOIL(SPEC)
    assert (learner.inner_lr, learner.inner_steps, learner.test_steps) == (0.5, 1, 1)
    assert learner.training_defaults.meta_batch == 4
    lines = BOIL(sample_tasks.Lines().spec)
    assert (lines.inner_lr, lines.training_defaults.meta_batch) == (0.01, 25)


def test_bad_input_is_refused_before_any_compute():
    """The message gives what was given, what was expected and what to do."""
    with pytest.raises(OptionError, match=r"boil: got head 'fc', expected .*: '1', '3', '5', or one that contains"):
        BOIL(SPEC, head="fc")
    with pytest.raises(OptionError, match=r"boil: got a network whose head '' has all .*, expected a body that"):
        BOIL(SPEC, network=nn.Linear(12, 5))
    with pytest.raises(OptionError, match="test_steps: got -1"):
        BOIL(SPEC, test_steps=-1)
    with pytest.raises(DataError, match="expected one number: the last layer has an output for each class"):
        BOIL(tasks(way=(2, 5), block=4).spec)
    with pytest.raises(MisfitError, match="sequence"):
        kshot.check(BOIL(SPEC), TaskSpec(kind="sequence", input_shape=(1,), target_shape=(1,), query=3))


def test_a_diverging_inner_loop_names_task_and_step():
    """A NaN is reported in the inner loop where it arises, not as a NaN loss of the meta-batch."""
    learner = BOIL(sample_tasks.Lines().spec, inner_lr=1e30, inner_steps=3)
    with pytest.raises(TrainingError, match=r"boil: got inner loss .* of episode 0 of split 'train' .* step \d of 3"):
        learner.meta_gradient(sample_tasks.Lines().sample("train", range(2)))


def test_it_learns():
    """The accuracy of a short training is at least mean - 3 sigma of 5 seeds (84.8 and 0.5 %); chance is 20 %."""
    engine = Engine(kshot.learner("boil", SPEC, seed=0, inner_steps=3), tasks(), meta_batch=8)
    engine.train(300)
    assert engine.evaluate(200).mean > 0.83


def test_training_takes_the_inner_steps_whatever_the_test_steps_are():
    """``test_steps`` is for evaluation and use."""
    batch = episodes()
    few, many = (gradient_of(smooth(inner_steps=2, test_steps=k), batch) for k in (2, 5))
    assert torch.equal(few, many)
