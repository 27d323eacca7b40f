"""Toy tasks are what they say: blobs whose signal lies in a few directions, and sine waves."""

import numpy as np
import pytest
import torch

import kshot
from kshot.errors import DataError
from kshot_toy import Sinusoids, blobs


def test_blobs_differ_between_classes_in_the_signal_only():
    """Class means spread like standard normals in the signal directions, like the noise's mean elsewhere."""
    pool = blobs(classes=200, examples=50, features=10, signal=3, spread=0.2, noise=2.0).pool("train")
    x = pool.x.reshape(200, 50, 10)
    between = x.mean(1).std(0)
    assert torch.allclose(between[:3], torch.ones(3), atol=0.2)
    assert between[3:].max() < 2.0 / np.sqrt(50) * 1.3
    within = x.std(1).mean(0)
    assert torch.allclose(within, torch.tensor([0.2] * 3 + [2.0] * 7), rtol=0.05)


def test_blobs_of_different_splits_are_different_classes():
    """No centre of one split is near any of another."""
    t = blobs(signal=4, noise=0.0, spread=0.0, examples=2, shot=1, query=1)
    centres = [t.pool(s).x[::2] for s in ("train", "val", "test")]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert torch.cdist(centres[a], centres[b]).min() > 1e-3


def test_attributes_are_a_linear_view_of_the_centre():
    """Rank of the attribute table is the number of signal directions."""
    pool = blobs(attributes=6, signal=3).pool("test")
    assert pool.semantics is not None
    assert int(torch.linalg.matrix_rank(pool.semantics, rtol=1e-4)) == 3


def test_sinusoids_are_sine_waves_of_their_amplitude_and_phase():
    """Against numpy, from what the origin says."""
    e = Sinusoids(shot=4, query=6, seed=3).sample("val", [0, 5, 9])
    a, p = e.origin.fields["amplitude"], e.origin.fields["phase"]
    assert ((a >= 0.1) & (a <= 5) & (p >= 0) & (p <= np.pi)).all()
    for part in (e.support, e.query):
        expected = a[:, None] * np.sin(part.x[..., 0].numpy() - p[:, None])
        assert np.allclose(part.y[..., 0].numpy(), expected, atol=1e-5)
        assert part.x.abs().max() <= 5


def test_their_targets_have_the_known_second_moment():
    """E[y^2] = E[a^2] E[sin^2(x - p)] = 4.25 for amplitudes of [0.1, 5] (Finn et al. 2017 leave it unsaid)."""
    y = Sinusoids(shot=20, query=0).sample("train", range(4000)).support.y
    assert float(y.square().mean()) == pytest.approx(4.24, abs=0.15)


def test_unknown_splits_are_refused():
    """By both."""
    for tasks in (kshot.tasks("toy"), kshot.tasks("toy-sinusoids")):
        with pytest.raises(DataError, match="unknown split 'dev'"):
            tasks.sample("dev", [0])
