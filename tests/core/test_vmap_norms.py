"""``kshot.inner.vmap_norms``: normalisation layers under vmap, in half precision too.

That their second derivatives are right is tested with all strategies in ``test_lifting.py``.
"""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot import Lift
from kshot.inner import State, descend, vmap_norms


def rand(*shape: int, seed: int = 0) -> Tensor:
    """Return reproducible standard normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(3), nn.InstanceNorm2d(3, affine=True), nn.GroupNorm(1, 3)])
@pytest.mark.parametrize("training", [True, False])
def test_normalisation_is_vmapped_in_half_precision_too(norm, training):
    """Under bfloat16 autocast vmap and loop agree to the three digits of bfloat16, without a warning."""
    net = nn.Sequential(nn.Conv2d(2, 3, 3), norm, nn.Flatten(), nn.Linear(3 * 16, 2)).train(training)
    x, y = rand(4, 5, 2, 6, 6).float(), rand(4, 5, 2, seed=1).float()

    def task(state, x, y):
        def loss(s, _):
            return (torch.func.functional_call(net, (s.parameters, s.buffers), (x,)).float() - y).square().mean()

        end, _ = descend(loss, state, None, lr=0.1, steps=2, second_order=True)
        return {"loss": loss(end, None)}, end

    results = {}
    for strategy in ("loop", "vmap"):
        net.zero_grad()
        with warnings.catch_warnings(), torch.autocast("cpu", torch.bfloat16):
            warnings.simplefilter("error")
            metrics, _ = Lift(strategy).mean_gradient(task, State.of(net), x, y)
        results[strategy] = torch.cat([p.grad.flatten() for p in net.parameters()]), metrics["loss"]
    for looped, vmapped in zip(*results.values(), strict=True):
        assert float((looped - vmapped).norm() / looped.norm()) < 0.05


@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_normalisation_apart_from_its_weights_is_that_of_torch(eps):
    """With every option of the layers; by torch's own functions."""
    x, weight, bias = rand(5, 3, 4), rand(3, seed=1), rand(3, seed=2)
    mean, var = rand(3, seed=3), rand(3, seed=4).square() + 1
    for training in (True, False):
        options = {"training": training, "momentum": 0.0, "eps": eps}
        found = vmap_norms.batch_norm(x, mean, var, weight, bias, **options)
        torch.testing.assert_close(found, F.batch_norm(x, mean, var, weight, bias, **options))
    found = vmap_norms.instance_norm(x, weight=weight, bias=bias, eps=eps)
    torch.testing.assert_close(found, F.instance_norm(x, weight=weight, bias=bias, eps=eps))
    weight, bias = rand(3, 4, seed=5), rand(3, 4, seed=6)
    found = vmap_norms.layer_norm(x, (3, 4), weight, bias, eps)
    torch.testing.assert_close(found, F.layer_norm(x, (3, 4), weight, bias, eps))
