"""The toy tasks are what their documentation says: blobs whose signal lies in a few features."""

import numpy as np
import pytest
import torch

import kshot
from kshot.errors import DataError
from kshot_toy import blobs


def test_blobs_differ_between_classes_in_the_signal_only():
    """Class means spread like standard normals in the signal features, and like means of noise in the others."""
    pool = blobs(classes=200, examples=50, features=10, signal=3, spread=0.2, noise=2.0).pool("train")
    x = pool.x.reshape(200, 50, 10)
    between = x.mean(1).std(0)
    assert torch.allclose(between[:3], torch.ones(3), atol=0.2)
    assert between[3:].max() < 2.0 / np.sqrt(50) * 1.3
    within = x.std(1).mean(0)
    assert torch.allclose(within, torch.tensor([0.2] * 3 + [2.0] * 7), rtol=0.05)


def test_blobs_of_different_splits_are_different_classes():
    """No class centre of one split equals a centre of another split."""
    t = blobs(signal=4, noise=0.0, spread=0.0, examples=2, shot=1, query=1)
    centres = [t.pool(s).x[::2] for s in ("train", "val", "test")]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert torch.cdist(centres[a], centres[b]).min() > 1e-3


def test_attributes_are_a_linear_view_of_the_centre():
    """The rank of the table of attributes is the number of signal features."""
    pool = blobs(attributes=6, signal=3).pool("test")
    assert pool.semantics is not None
    assert int(torch.linalg.matrix_rank(pool.semantics, rtol=1e-4)) == 3


def test_unknown_splits_are_refused():
    """The error names the split that was asked for."""
    with pytest.raises(DataError, match="unknown split 'dev'"):
        kshot.tasks("toy").sample("dev", [0])
