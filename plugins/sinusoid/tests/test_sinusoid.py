"""The sine waves have the ranges and moments of the paper, and are those that the origin names."""

import numpy as np
import pytest
import torch

from kshot.errors import DataError, OptionError
from kshot_sinusoid import Sinusoid


def test_targets_are_the_wave_that_the_origin_tells():
    """numpy computes the same y = a sin(x - p) from the amplitude and phase in the origin."""
    episode = Sinusoid().sample("test", range(50))
    a, p = np.split(episode.origin.fields["wave"], 2, 1)
    for part in (episode.support, episode.query):
        assert part.x.shape == part.y.shape == (50, 10, 1)
        y = a * np.sin(part.x[..., 0].numpy() - p)
        assert np.allclose(y, part.y[..., 0].numpy(), atol=1e-5)


def test_waves_have_the_moments_of_the_papers_ranges():
    """Over 20,000 tasks E y^2 = 4.25, and the best predictor without adaptation has E (y - E[y | x])^2 = 3.00.

    E[y | x] is estimated in bins of x.
    """
    episode = Sinusoid(shot=1, query=1).sample("train", range(20000))
    x, y = episode.query.x.flatten().numpy(), episode.query.y.flatten().numpy()
    assert np.mean(y**2) == pytest.approx(4.25, abs=0.1)
    bins = np.digitize(x, np.linspace(-5, 5, 51)[1:-1])
    means = np.array([y[bins == b].mean() for b in range(50)])
    assert np.mean((y - means[bins]) ** 2) == pytest.approx(3.00, abs=0.1)
    a, p = episode.origin.fields["wave"].T
    assert (a.min(), a.max(), p.min(), p.max()) == pytest.approx((0.1, 5, 0, np.pi), abs=0.01)
    assert (x.min(), x.max()) == pytest.approx((-5, 5), abs=0.01)


def test_ranges_and_noise_are_options():
    """Ranges set the waves; noise adds a normal error of the given size to support and query."""
    wide = Sinusoid(amplitude=(7, 7), phase=(1, 1)).sample("train", [3])
    assert torch.allclose(wide.query.y, 7 * torch.sin(wide.query.x - 1), atol=1e-5)
    clean, noisy = (Sinusoid(noise=n, query=200).sample("val", range(100)) for n in (0.0, 0.3))
    assert torch.equal(clean.query.x, noisy.query.x)
    assert float((noisy.query.y - clean.query.y).std()) == pytest.approx(0.3, abs=0.01)
    assert float((noisy.support.y - clean.support.y).std()) == pytest.approx(0.3, abs=0.03)


def test_outliers_come_in_training_alone_and_can_not_be_learned():
    """Every n-th training episode has targets independent of x; other episodes and splits do not change."""
    plain, mixed = Sinusoid(query=500), Sinusoid(query=500, outlier_every=4)
    for split, expected in (("train", [True, False, False, False, True, False]), ("test", [False] * 6)):
        with_, without = mixed.sample(split, range(6)), plain.sample(split, range(6))
        assert [not torch.equal(a, b) for a, b in zip(with_.query.y, without.query.y, strict=True)] == expected
    outlier = mixed.sample("train", [4]).query
    assert float(outlier.y.abs().max()) <= 5
    assert float(outlier.y.square().mean()) == pytest.approx(25 / 3, rel=0.15)
    assert abs(float(torch.corrcoef(torch.stack([outlier.x.flatten(), outlier.y.flatten()]))[0, 1])) < 0.15


def test_bad_options_are_refused():
    """The error says what was given and what was expected."""
    with pytest.raises(OptionError, match=r"amplitude \(3, 1\)"):
        Sinusoid(amplitude=(3, 1))
    with pytest.raises(OptionError, match="got outlier_every 0"):
        Sinusoid(outlier_every=0)
    with pytest.raises(DataError, match="got unknown split 'dev', expected one of train, val, test"):
        Sinusoid().sample("dev", [0])
