"""``kshot_digit_nets``: the losses against torch's modules, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kshot.errors import DataError, MisfitError, OptionError
from kshot.testing import sample_tasks
from kshot_digit_nets import DigitNets, PooledNets
from kshot_digit_nets.digits import digits

MODULES: dict[str, Any] = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU, "tanh": nn.Tanh}


@pytest.mark.parametrize("activation", ["sigmoid", "relu", "tanh"])
def test_losses_and_gradients_are_those_of_torch_modules(activation):
    """Two convolutions and two hidden layers, whose parameters are the pieces of the point in torch's order."""
    tasks = DigitNets((7, 6), (3, 4), activation, images=12, steps=3)
    objective = tasks.sample("train", [0, 5]).support.source
    loss, gradient = objective.loss_and_gradient(objective.initial)
    for b in range(2):
        act = MODULES[activation]
        net = nn.Sequential(
            *(nn.Conv2d(1, 3, 3, padding=1), act(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 3, padding=1), act()),
            *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 7), act(), nn.Linear(7, 6), act(), nn.Linear(6, 10)),
        )
        nn.utils.vector_to_parameters(objective.initial[b], net.parameters())
        x, y = (t[b] for t in objective.data)
        expected = F.cross_entropy(net(x), y)
        expected.backward()
        assert torch.allclose(loss[b], expected.detach(), atol=1e-6)
        slopes = torch.cat([p.grad.flatten() for p in net.parameters()])
        assert torch.allclose(gradient[b], slopes, atol=1e-6)


def test_tasks_have_their_own_images_and_initial_points_of_variance_one_over_fan_in():
    """Images come from the range of the split, without repetition; biases start at 0."""
    tasks = DigitNets((50,), images=100, steps=3)
    objective = tasks.sample("test", [0, 1]).support.source
    known, _ = digits()
    rows = [(known.flatten(1) == x.flatten()).all(1).nonzero()[0].item() for x in objective.data[0][0]]
    assert min(rows) >= 1300
    assert len(set(rows)) == 100
    assert not torch.equal(objective.data[0][0], objective.data[0][1])
    weights, biases = objective.initial[:, : 64 * 50], objective.initial[:, 64 * 50 : 65 * 50]
    assert float(weights.std()) == pytest.approx(1 / 8, rel=0.05)
    assert not biases.any()


def test_the_score_counts_from_its_first_step():
    """Weights are 0 before ``score_from``."""
    query = DigitNets(steps=5, score_from=3).sample("val", [0]).query
    assert query.x.tolist() == [[1, 2, 3, 4, 5]]
    assert query.y.tolist() == [[0, 0, 1, 1, 1]]


def test_pooled_nets_have_classes_of_the_split_of_the_tasks_below():
    """Each class has as many images, and images are those of the pool."""
    below = sample_tasks.classification(input_shape=(1, 8, 8))
    tasks = PooledNets(below, way=3, images=2, channels=(2,), hidden=(), steps=4)
    x, y = tasks.sample("val", [0, 1]).support.source.data
    assert y.sort(1).values.tolist() == [[0, 0, 1, 1, 2, 2]] * 2
    pool = tasks.of.pool("val")
    everything = pool.gather(torch.arange(len(pool.x))[None].numpy())[0].flatten(1)
    assert all(bool((everything == image.flatten()).all(1).any()) for image in x[0])
    assert not torch.equal(x[0], x[1])


def test_bad_options_are_refused():
    """The message names the option and what was expected."""
    for wrong in ({"hidden": (0,)}, {"channels": (2,) * 4}, {"activation": "gelu"}):
        with pytest.raises(OptionError, match=r"digit-nets: got channels .* expected positive sizes"):
            DigitNets(**wrong)
    with pytest.raises(OptionError, match=r"digit-nets: got images 301, expected 1 to 300"):
        DigitNets(images=301)
    with pytest.raises(OptionError, match=r"got steps 5 and score_from 6, expected 1 <= score_from <= steps"):
        DigitNets(steps=5, score_from=6)
    with pytest.raises(MisfitError, match=r"pooled-nets: got inputs of shape \(6,\), expected images"):
        PooledNets(sample_tasks.classification(), way=3, images=2)
    with pytest.raises(DataError, match=r"pooled-nets: got way 3 and images 1000, but split 'train' has"):
        PooledNets(sample_tasks.classification(input_shape=(1, 8, 8)), way=3, images=1000)
