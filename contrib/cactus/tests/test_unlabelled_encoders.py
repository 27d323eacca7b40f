"""Encoders that learn without labels: SimCLR and autoencoders, and the distortions of inputs."""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kshot
from kshot import Episode
from kshot.errors import OptionError
from kshot.testing import sample_tasks
from kshot_cactus import Autoencoder, SimCLR
from kshot_cactus.augment import affine_maps, distorted, picture_view, vector_view
from kshot_cactus.simclr import nt_xent_logits

LEARNERS: list[Any] = [SimCLR, Autoencoder]


def episodes(count: int = 2) -> Episode:
    """Sample tasks of pictures in float64."""
    tasks = sample_tasks.classification(input_shape=(1, 16, 16))
    e = tasks.sample("train", range(count))
    support, query = (attrs.evolve(part, x=part.x.double()) for part in (e.support, e.query))
    return attrs.evolve(e, support=support, query=query)


def gradients(learner: Any, e: Episode) -> dict[str, Tensor]:
    """Return the gradients of a meta-batch."""
    learner.zero_grad()
    learner.train()
    learner.meta_gradient(e)
    return {name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("build", LEARNERS)
def test_labels_have_no_effect_in_training(build: Any) -> None:
    """The gradient is bit for bit the same with other labels."""
    e = episodes()
    learner = build(sample_tasks.classification(input_shape=(1, 16, 16)).spec, width=4).double()
    other = attrs.evolve(
        e,
        support=attrs.evolve(e.support, y=e.support.y.flip(1)),
        query=attrs.evolve(e.query, y=torch.zeros_like(e.query.y)),
    )
    first, second = gradients(learner, e), gradients(learner, other)
    assert first
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_loss_is_that_of_a_naive_implementation() -> None:
    """Equation 1 of Chen et al. (2020) in loops over the 2n views of each episode, in float64."""
    torch.manual_seed(0)
    z = torch.randn(2, 6, 3, dtype=torch.float64)
    logits, partner = nt_xent_logits(z, 0.5)
    loss = F.cross_entropy(logits.flatten(0, 1), partner.repeat(2))
    total = 0.0
    for b in range(2):
        for i in range(6):
            j = i + 3 if i < 3 else i - 3
            cosines = [float(F.cosine_similarity(z[b, i], z[b, k], dim=0)) for k in range(6)]
            below = sum(math.exp(cosines[k] / 0.5) for k in range(6) if k != i)
            total -= math.log(math.exp(cosines[j] / 0.5) / below)
    assert float(loss) == pytest.approx(total / 12, abs=1e-12)


def test_simclr_compares_two_views_of_the_examples() -> None:
    """With an encoder that keeps inputs, the loss is that of the two views that the keys of the episodes determine."""
    e = episodes()
    spec = sample_tasks.classification(input_shape=(1, 16, 16)).spec
    learner = SimCLR(spec, encoder=nn.Flatten(), projection=5, temperature=0.2).double()
    metrics = learner.meta_gradient(e)
    x = torch.cat([e.support.x, e.query.x], 1)
    views = []
    for purpose in ("first view", "second view"):
        sources = [kshot.generator(key, purpose) for key in e.support.key]
        views.append(torch.stack([learner.view(x[b], sources[b]) for b in range(2)]))
    assert not torch.equal(views[0], views[1])
    logits, partner = nt_xent_logits(learner.head(torch.cat(views, 1).flatten(2)), 0.2)
    expected = F.cross_entropy(logits.flatten(0, 1), partner.repeat(2)).item()
    assert metrics["loss"].item() == pytest.approx(expected)


def test_the_autoencoder_s_loss_is_the_mean_squared_error_of_the_clean_inputs() -> None:
    """The corruption is for the encoder only, and reaches the given share of the numbers."""
    e = episodes()
    spec = sample_tasks.classification(input_shape=(1, 16, 16)).spec
    learner = Autoencoder(spec, encoder=nn.Flatten(), corruption=0.25, width=4).double()
    x = torch.cat([e.support.x, e.query.x], 1)
    noisy = learner.corrupted(x, e.support.key)
    changed = noisy != x
    assert bool((noisy[changed] == 0).all())
    assert float(changed.double().mean()) == pytest.approx(0.25, abs=4 * math.sqrt(0.19 / x.numel()))
    expected = (learner.decoder(noisy.flatten(0, 1).flatten(1)).view(x.shape) - x).square().mean()
    assert float(learner.meta_gradient(e)["loss"]) == pytest.approx(expected.item())


@pytest.mark.parametrize("build", LEARNERS)
def test_a_query_is_of_the_class_of_the_nearest_mean_embedding(build: Any) -> None:
    """A naive implementation for one episode; SimCLR's embeddings have length 1."""
    e = episodes(1)
    learner = build(sample_tasks.classification(input_shape=(1, 16, 16)).spec, width=4).double().eval()
    logits = learner.adapt(e.support)(e.query.x)[0]
    z, q = learner.embed(e.support.x)[0], learner.embed(e.query.x)[0]
    means = torch.stack([z[e.support.y[0] == c].mean(0) for c in range(3)])
    assert torch.allclose(logits, -torch.cdist(q, means).square())
    if build is SimCLR:
        assert torch.allclose(z.norm(dim=1), torch.ones(len(z), dtype=torch.float64))


@pytest.mark.parametrize(("build", "least"), [(SimCLR, 0.6), (Autoencoder, 0.4)])
def test_the_loss_falls_in_training(build: Any, least: float) -> None:
    """Classes of random centres: the loss of other episodes of the same examples falls in a short training."""
    tasks = sample_tasks.classification(way=10, shot=2, query=2, input_shape=(12,))
    with kshot.randomness.seeded("encoders without labels", 0):
        learner = build(tasks.spec, width=16)
    engine = kshot.Engine(learner, tasks, meta_batch=1, optimizer={"lr": 1e-2, "schedule": "constant"})

    def loss() -> float:
        return sum(learner.meta_gradient(tasks.sample("train", [1000 + i]))["loss"].item() for i in range(5))

    before = loss()
    learner.zero_grad()
    engine.train(iterations=60)
    assert loss() < least * before


# --- Distortions --------------------------------------------------------------------------------------------------


def test_an_affine_map_turns_and_shifts_by_hand() -> None:
    """A quarter turn of a picture is torch's rot90, and a shift by a pixel moves the picture by a pixel."""
    x = torch.rand(1, 1, 6, 6)
    turn = torch.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]])
    turned = distorted(x, turn)
    assert torch.allclose(turned, x.rot90(-1, (2, 3)), atol=1e-5) or torch.allclose(
        turned, x.rot90(1, (2, 3)), atol=1e-5
    )
    shift = torch.tensor([[[1.0, 0.0, 2 / 6], [0.0, 1.0, 0.0]]])  # a picture is 2 wide
    assert torch.allclose(distorted(x, shift)[..., :-1], x[..., 1:], atol=1e-5)
    assert float(distorted(x, shift)[..., -1].abs().max()) < 1e-5


def test_affine_maps_are_within_their_bounds() -> None:
    """Each option alone: angles, scales and shears of 500 maps are uniform within the bounds."""

    def maps(**bounds: float) -> Tensor:
        options = {"rotation": 0.0, "scale": 0.0, "shear": 0.0, "shift": 0.0, **bounds}
        return affine_maps(500, **options, generator=torch.Generator().manual_seed(0))

    still = maps()
    assert torch.allclose(still, torch.tensor([[1.0, 0, 0], [0, 1, 0]]).expand(500, 2, 3))
    angle = torch.atan2(maps(rotation=30.0)[:, 1, 0], maps(rotation=30.0)[:, 0, 0]).rad2deg()
    assert 29 < float(angle.max()) <= 30
    assert -30 <= float(angle.min()) < -29
    scales = maps(scale=0.5)[:, 0, 0].log()
    assert 0.48 < float(scales.max()) <= 0.5
    assert 0.29 < float(maps(shear=0.3)[:, 0, 1].max()) <= 0.3
    assert 0.19 < float(maps(shift=0.1)[:, 0, 2].max()) <= 0.2  # of a picture that is 2 wide


def test_views_depend_on_the_generator_alone_and_differ_between_examples() -> None:
    """The same generator gives the same view; equal pictures in a batch are distorted differently."""
    x = torch.rand(1, 1, 12, 12).expand(3, -1, -1, -1)
    options = {"rotation": 15.0, "scale": 0.2, "shear": 0.3, "shift": 0.1, "bend": 0.1}
    first, again, other = (picture_view(x, torch.Generator().manual_seed(s), **options) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.allclose(first[0], first[1])


def test_noise_is_as_strong_as_asked_for() -> None:
    """In each dimension it is a share of the standard deviation."""
    x = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 10.0])
    added = vector_view(x, torch.Generator().manual_seed(1), noise=0.5) - x
    assert (added.std(0) / x.std(0)).tolist() == pytest.approx([0.5, 0.5], rel=0.05)


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (SimCLR, {"temperature": 0.0}),
        (SimCLR, {"rotation": 181.0}),
        (SimCLR, {"bend": -1.0}),
        (Autoencoder, {"corruption": 1.0}),
    ],
)
def test_options_out_of_range_are_refused(build: Any, options: dict[str, float]) -> None:
    """The error names the option."""
    (name,) = options
    with pytest.raises(OptionError, match=name):
        build(sample_tasks.classification().spec, **options)
