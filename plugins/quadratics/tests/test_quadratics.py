"""The objectives have the right losses and the right distributions, and their options set the scored steps."""

import math
import sys

import numpy as np
import pytest
import torch

import kshot
from kshot.errors import DataError, OptionError, Unavailable
from kshot_quadratics import DigitsMlp, Quadratics
from kshot_quadratics.digits import digits, mlp_loss
from kshot_quadratics.quadratics import quadratic


def test_a_quadratic_is_the_squared_length_of_its_residual():
    """W theta - y = (1 + 2 - 0, 3 + 4 - 5) = (3, 2), so the loss is 9 + 4 = 13, neither halved nor averaged."""
    W, y = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0.0, 5.0])
    assert quadratic(torch.ones(2), (W, y)).item() == 13.0


def test_every_task_has_its_own_quadratic():
    """numpy computes the same losses from the tensors of the episode, and two tasks have different W."""
    source = Quadratics(dimension=4).sample("val", [0, 5]).query.source
    point = torch.arange(8.0).view(2, 4)
    W, y = (t.double().numpy() for t in source.data)
    expected = [np.square(W[b] @ point[b].numpy() - y[b]).sum() for b in range(2)]
    assert np.allclose(source.loss(point), expected, rtol=1e-5)
    assert not torch.equal(source.data[0][0], source.data[0][1])


@pytest.mark.parametrize("make", [Quadratics, DigitsMlp])
def test_another_seed_gives_other_functions_and_other_beginnings(make):
    """The seed fixes all that is drawn, not only the keys of the episodes."""
    first, second = (make(seed=seed).sample("train", [0]).support.source for seed in (0, 1))
    assert not torch.equal(first.initial, second.initial)
    assert not torch.equal(first.data[0], second.data[0])
    assert not torch.equal(first.data[1], second.data[1])


def test_its_numbers_are_standard_normal_and_it_starts_near_zero():
    """Over 500 tasks of 10 dimensions this holds within four standard errors; the loss begins at E|y|^2 = 10."""
    source = Quadratics().sample("train", range(500)).support.source
    W, y = source.data
    for values, deviation in ((W, 1.0), (y, 1.0), (source.initial, 0.01)):
        n = values.numel()
        assert abs(float(values.mean())) < 4 * deviation / math.sqrt(n)
        assert float(values.std()) == pytest.approx(deviation, rel=4 / math.sqrt(2 * n))
    for a, b in ((y, source.initial), (y, W[:, 0]), (source.initial, W[:, 0])):
        assert abs(np.corrcoef(a.flatten(), b.flatten())[0, 1]) < 4 / math.sqrt(a.numel())
    assert float(source.loss(source.initial).mean()) == pytest.approx(10.0, abs=4 * math.sqrt(20 / 500))


@pytest.mark.parametrize("make", [Quadratics, DigitsMlp])
def test_steps_from_score_from_on_count_alike(make):
    """The query gives the weight of each step, and the score is the weighted mean over the steps."""
    query = make(steps=5, score_from=3).sample("test", [0, 1]).query
    assert query.x.tolist() == [[1.0, 2.0, 3.0, 4.0, 5.0]] * 2
    assert query.y.tolist() == [[0.0, 0.0, 1.0, 1.0, 1.0]] * 2


@pytest.mark.parametrize("make", [Quadratics, DigitsMlp])
@pytest.mark.parametrize("wrong", [{"steps": 0}, {"steps": 5, "score_from": 6}, {"score_from": 0}])
def test_steps_that_can_not_be_scored_are_refused(make, wrong):
    """The error comes when the tasks are built, not after the optimization."""
    with pytest.raises(OptionError, match=r"expected 1 <= score_from <= steps"):
        make(**wrong)


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (Quadratics, {"dimension": 0}),
        (Quadratics, {"start": -1.0}),
        (DigitsMlp, {"hidden": 0}),
        (DigitsMlp, {"images": 301}),
    ],
)
def test_sizes_out_of_range_are_refused(make, wrong):
    """The error says what was given and what was expected."""
    with pytest.raises(OptionError, match=r"got .* expected"):
        make(**wrong)


@pytest.mark.parametrize("name", ["quadratics", "digits-mlp"])
def test_unknown_splits_and_empty_batches_are_refused(name):
    """Both tasks, built by name, refuse them."""
    tasks = kshot.tasks(name)
    with pytest.raises(DataError, match="unknown split 'dev'"):
        tasks.sample("dev", [0])
    with pytest.raises(DataError, match="got no indices"):
        tasks.sample("train", [])


# --- Digits ---------------------------------------------------------------------------------------


def test_a_network_s_loss_is_that_of_the_same_torch_modules():
    """They agree in float64, with the parameters of the modules copied from the point."""
    generator = torch.Generator().manual_seed(0)
    H = 3
    point = torch.randn(64 * H + H + 10 * H + 10, generator=generator, dtype=torch.float64)
    x, y = torch.rand(7, 64, generator=generator, dtype=torch.float64), torch.arange(7)
    net = torch.nn.Sequential(torch.nn.Linear(64, H), torch.nn.Sigmoid(), torch.nn.Linear(H, 10)).double()
    with torch.no_grad():
        net[0].weight.copy_(point[: 64 * H].view(64, H).T)
        net[0].bias.copy_(point[64 * H : 65 * H])
        net[2].weight.copy_(point[65 * H : 75 * H].view(H, 10).T)
        net[2].bias.copy_(point[75 * H :])
        expected = torch.nn.functional.cross_entropy(net(x), y)
    assert mlp_loss(point, (x, y), H).item() == pytest.approx(expected.item(), rel=1e-12)


def test_images_are_real_digits_of_the_split_and_no_image_comes_twice():
    """Each image is one of scikit-learn's images of the split, with its label, and occurs once in a task."""
    x, y = digits()
    assert (x.min(), x.max(), len(x)) == (0, 1, 1797)
    tasks = DigitsMlp(images=50)
    for split, (first, last) in {"train": (0, 1000), "val": (1000, 1300), "test": (1300, 1797)}.items():
        images, labels = tasks.sample(split, [3]).query.source.data
        for image, label in zip(images[0], labels[0], strict=True):
            rows = (x[first:last] == image).all(1).nonzero().flatten()
            assert len(rows) >= 1
            assert label in y[first:last][rows]
        assert len({tuple(image.tolist()) for image in images[0]}) == 50


def test_networks_begin_like_untrained_ones():
    """Weights have variance 1 / fan-in and biases are 0, so the loss is slightly above ln 10, a uniform guess."""
    tasks = DigitsMlp()
    source = tasks.sample("train", range(20)).query.source
    assert tasks.spec.target_shape == source.initial.shape[1:] == (1510,)
    W1, b1, W2, b2 = source.initial.split([1280, 20, 200, 10], 1)
    assert float(W1.std()) == pytest.approx(64**-0.5, rel=0.05)
    assert float(W2.std()) == pytest.approx(20**-0.5, rel=0.1)
    assert not torch.cat([b1, b2], 1).any()
    assert math.log(10) < float(source.loss(source.initial).mean()) < math.log(10) + 0.3


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    """scikit-learn is an extra, because the quadratics do not need it."""
    digits.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(Unavailable, match=r"pip install 'kshot-quadratics\[digits\]'"):
        kshot.tasks("digits-mlp")
