"""Fine-tuning: both stages by naive second implementations, the choice of the number of steps, and limits."""

import copy
import doctest
import math
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kshot
from kshot import Engine, Support, TaskSpec
from kshot.errors import OptionError
from kshot.functional import class_folds
from kshot.testing import sample_tasks
from kshot_fine_tune import FineTune
from kshot_fine_tune.fine_tune import shifted
from kshot_fine_tune.head import best_steps

WAY, D = 3, 10


def learner(encoder="identity", **options):
    """Return a learner in float64, for which the inputs are the embeddings unless an encoder is given."""
    spec = TaskSpec(kind="classification", input_shape=(D,), way=WAY, shot=2, query=2)
    return FineTune(spec, encoder=encoder, **options).double().eval()


def support(B=2, shot=4, seed=0, spread=1.0):
    """Return the support of B tasks of blobs, and queries [B, n, D]."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(WAY).repeat(shot).expand(B, -1)
    means = torch.randn(B, WAY, D, generator=generator, dtype=torch.float64)
    x, x_q = (
        means.gather(1, y.unsqueeze(-1).expand(-1, -1, D))
        + spread * torch.randn(B, y.shape[1], D, generator=generator, dtype=torch.float64)
        for _ in range(2)
    )
    return Support(x=x, y=y, key=torch.arange(B), way=WAY), x_q


def start(z, y):
    """Return the prototypes of vectors of length 1, scaled to length 1."""
    return torch.stack([F.normalize(z[y == c].mean(0), dim=0) for c in range(WAY)])


def naive_loss(z, y, W):
    """Compute the mean cross-entropy of ten times the cosine."""
    return F.cross_entropy(10 * F.cosine_similarity(z.unsqueeze(1), W.unsqueeze(0), dim=-1), y)


def naive_descent(z, y, steps, lr):
    """Return the head after each number of steps, from 0 to ``steps``, by autograd in all dimensions."""
    W = start(z, y).requires_grad_()
    heads = [W.detach().clone()]
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(naive_loss(z, y, W), W)
        W = (W - lr * gradient).detach().requires_grad_()
        heads.append(W.detach().clone())
    return heads


def test_without_steps_it_is_a_prototypical_network_by_cosine():
    """The prototype of a class is the mean of its vectors of length 1."""
    s, x = support()
    logits = learner(head_steps=0, steps=0).adapt(s)(x)
    for b in range(2):
        W = start(F.normalize(s.x[b], dim=-1), s.y[b])
        assert torch.allclose(logits[b], 10 * F.normalize(x[b], dim=-1) @ W.T, atol=1e-10)


def test_the_head_descends_for_the_number_of_steps_that_is_best_on_left_out_examples():
    """A naive loop over tasks, folds and steps, in all dimensions, chooses the same number and has the same head."""
    chosen = []
    for seed, spread in ((0, 0.5), (1, 2.0), (2, 4.0)):
        s, x = support(seed=seed, spread=spread)
        mine = learner(head_steps=12, head_lr=2.0).adapt(s)(x)
        fold = class_folds(s.y, s.x.norm(dim=-1), 5)
        for b in range(2):
            z, y = F.normalize(s.x[b], dim=-1), s.y[b]
            total = torch.zeros(13, dtype=torch.float64)
            for f in fold[b].unique():
                out = fold[b] == f
                heads = naive_descent(z[~out], y[~out], 12, 2.0)
                total += torch.stack([naive_loss(z[out], y[out], W) * out.sum() for W in heads])
            best = int(total.argmin())
            chosen.append(best)
            W = naive_descent(z, y, best, 2.0)[best]
            assert torch.allclose(mine[b], 10 * F.cosine_similarity(x[b, :, None], W[None], dim=-1), atol=1e-8)
    assert len(set(chosen)) > 2  # the data decide


def test_one_example_a_class_has_a_fixed_number_of_steps():
    """Nothing can be left out, so nothing is estimated; the number is never more than ``head_steps``."""
    s, x = support(shot=1)
    one = learner(alone=3).adapt(s)(x)
    W = naive_descent(F.normalize(s.x[0], dim=-1), s.y[0], 3, 0.1)[3]
    assert torch.allclose(one[0], 10 * F.cosine_similarity(x[0, :, None], W[None], dim=-1), atol=1e-8)
    assert torch.equal(learner(alone=9, head_steps=3).adapt(s)(x), one)


def test_classes_of_one_example_are_never_left_out():
    """In a mixed support the others decide."""
    z = F.normalize(torch.randn(1, 5, D, generator=torch.Generator().manual_seed(0)), dim=-1)
    y = torch.tensor([[0, 1, 1, 2, 2]])
    fold = class_folds(y, z[..., 0], 5)
    assert fold[0, 0] == -1
    steps = best_steps(z, y, WAY, fold, 5, scale=10.0, lr=0.1, most=4, alone=4)
    assert steps.shape == (1,)
    only = best_steps(z[:, 1:], y[:, 1:] - 1, WAY - 1, fold[:, 1:], 5, scale=10.0, lr=0.1, most=4, alone=4)
    assert only.shape == (1,)


@pytest.mark.parametrize("part", ["all", "last"])
def test_the_second_stage_is_that_of_torch_on_encoder_and_head(part):
    """torch's Adam on a copy of the network and on the head has the same logits. Frozen weights stay."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, 6)).double()
    if part == "last":
        net[0].requires_grad_(False)
    s, x = support()
    mine = learner(net, head_steps=4, steps=5, lr=0.01)
    before = {name: t.clone() for name, t in mine.state_dict().items()}
    logits = mine.adapt(s)(x)
    W = mine.head(s)
    for b in range(2):
        own, head = copy.deepcopy(net), W[b].clone().requires_grad_()
        optimizer = torch.optim.Adam([*(p for p in own.parameters() if p.requires_grad), head], lr=0.01)
        for _ in range(5):
            optimizer.zero_grad()
            naive_loss(own(s.x[b]), s.y[b], head).backward()
            optimizer.step()
        expected = 10 * F.cosine_similarity(own(x[b])[:, None], head[None], dim=-1)
        assert torch.allclose(logits[b], expected, atol=1e-8)
        assert not torch.allclose(own[2].weight, net[2].weight)
    assert all(torch.equal(t, before[name]) for name, t in mine.state_dict().items())


def test_without_trainable_weights_only_the_head_is_fitted():
    """A frozen encoder gives what its embeddings give."""
    torch.manual_seed(0)
    net = nn.Linear(D, 6).double().requires_grad_(False)
    s, x = support()
    frozen = learner(net).adapt(s)(x)
    spec = TaskSpec(kind="classification", input_shape=(6,), way=WAY, shot=2, query=2)
    on_embeddings = FineTune(spec, encoder="identity").double().eval()
    embedded = Support(x=net(s.x), y=s.y, key=s.key, way=WAY)
    assert torch.allclose(frozen, on_embeddings.adapt(embedded)(net(x)), atol=1e-9)


def test_batch_norm_uses_the_running_statistics():
    """The statistics of five pictures would ruin a pretrained encoder, so each example is embedded alone."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(D, 6), nn.BatchNorm1d(6)).double()
    net[1].running_mean.fill_(0.5)
    net[1].running_var.fill_(2.0)
    s, x = support()
    plain = nn.Sequential(copy.deepcopy(net[0]), nn.Linear(6, 6)).double()  # the same function, without batch norm
    with torch.no_grad():
        plain[1].weight.copy_(torch.eye(6) / math.sqrt(2.0 + net[1].eps))
        plain[1].bias.fill_(-0.5 / math.sqrt(2.0 + net[1].eps))
    plain[1].requires_grad_(False)
    net[1].requires_grad_(False)
    one, other = (learner(each, steps=3).train().adapt(s)(x) for each in (net, plain))
    assert torch.allclose(one, other, atol=1e-7)


def test_pictures_are_shifted_anew_in_each_step():
    """The shifts depend on the key of the episode, are at most the given part of a side, and do not move the edges."""
    spec = TaskSpec(kind="classification", input_shape=(1, 16, 24), way=2, shot=1, query=1)
    mine = FineTune(spec, width=4, steps=200, shift=0.125)
    s = Support(x=torch.zeros(2, 2, 1, 16, 24), y=torch.tensor([[0, 1], [0, 1]]), key=torch.tensor([3, 4]), way=2)
    offsets = mine.offsets(s)
    assert offsets.shape == (2, 200, 2, 2)
    assert offsets.abs().amax((0, 1, 2)).tolist() == [2, 3]
    assert offsets.double().mean().abs() < 0.2
    assert not torch.equal(offsets[0], offsets[1])
    assert torch.equal(mine.offsets(s), offsets)
    x = torch.arange(12.0).view(1, 1, 3, 4)
    assert shifted(x, torch.tensor([[1, -1]]))[0, 0].tolist() == [[1, 2, 3, 3], [1, 2, 3, 3], [5, 6, 7, 7]]
    assert learner().shift == 0.0  # vectors are not pictures


def test_training_is_that_of_a_prototypical_network_by_cosine():
    """The loss and the gradient are those of a naive loop in float64; nothing is fine-tuned while training."""
    t = sample_tasks.classification(way=3, shot=2, query=2)
    torch.manual_seed(0)
    mine = FineTune(t.spec, encoder="linear", width=4).double().train()
    e = kshot.episode.map_tensors(lambda v: v.double() if v.is_floating_point() else v, t.sample("train", range(2)))
    reported = mine.meta_gradient(e)
    gradients = [p.grad.clone() for p in mine.parameters()]
    mine.zero_grad()
    f, total = mine.encoder.net, 0.0
    for b in range(2):
        W = torch.stack([f(e.support.x[b][e.support.y[b] == c]).mean(0) for c in range(3)])
        for x, y in zip(e.query.x[b], e.query.y[b], strict=True):
            scores = mine.scale * F.cosine_similarity(f(x[None]), W, dim=-1)
            total = total - scores.log_softmax(0)[y] / (2 * e.query.x.shape[1])
    total.backward()
    assert float(reported["loss"]) == pytest.approx(float(total.detach()), rel=1e-10)
    for gradient, p in zip(gradients, mine.parameters(), strict=True):
        assert torch.allclose(gradient, p.grad, atol=1e-10)


def test_fine_tuning_helps_on_tasks_of_other_features():
    """An untrained network of four units sees little of the blobs; its weights adapt. The gain is paired, 100 tasks."""
    s, x = support(B=100, shot=5, spread=0.7)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(D, 4), nn.Tanh()).double()
    y = torch.arange(WAY).repeat(5)
    right = [
        (learner(net, lr=0.01, **options).adapt(s)(x).argmax(-1) == y).double().mean(1)
        for options in ({"steps": 40}, {"steps": 0}, {"steps": 0, "head_steps": 0})
    ]
    gain = right[0] - right[1]
    assert float(gain.mean()) > 4 * float(gain.std()) / 10
    assert float((right[1] - right[2]).mean()) > 0


def test_it_trains_and_tests_by_the_engine():
    """On embeddings there is the scale to train."""
    t = sample_tasks.classification(way=3, shot=2, query=2)
    engine = Engine(kshot.learner("fine-tune", t.spec, encoder="identity"), t)
    engine.train(20)
    assert engine.evaluate(50).mean > 0.5


@pytest.mark.parametrize("wrong", [{"steps": -1}, {"folds": 1}, {"lr": math.nan}, {"shift": 1.5}, {"scale": -1.0}])
def test_wrong_options_are_refused(wrong):
    """Before anything is computed, with what was expected."""
    with pytest.raises(OptionError, match=r"fine-tune: got .*, expected"):
        learner(**wrong)


@pytest.mark.parametrize("module", ["fine_tune", "head"])
def test_the_examples_in_docstrings_run(module):
    """A wrong example is worse than none."""
    result = doctest.testmod(sys.modules[f"kshot_fine_tune.{module}"])
    assert (result.failed, result.attempted > 0) == (0, True)
