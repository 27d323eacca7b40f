"""The tasks have the distribution of the paper, and are the functions that the origin names."""

import numpy as np
import pytest
import torch

import kshot
from kshot.errors import DataError, OptionError
from kshot_harmonics import Harmonics


def covariance(x1, x2):
    """Return E y(x1) y(x2) [n, m] over all tasks: the mean over w of (cos(w d) + cos(2 w d)) / 2, with d = x1 - x2.

    Phases are uniform and amplitudes have variance 1, so only the distance matters. The mean of cos(h w d) over w
    uniform in [5, 7] is (sin(7 h d) - sin(5 h d)) / (2 h d).
    """
    d = x1[:, None] - x2
    d = np.where(np.abs(d) < 1e-9, 1e-9, d)
    return sum((np.sin(7 * h * d) - np.sin(5 * h * d)) / (4 * h * d) for h in (1, 2))


def kriging_errors(episode, noise=1e-4):
    """Return the squared errors [B] of the best linear prediction from the support, given the true covariance."""
    parts = (episode.support.x, episode.support.y, episode.query.x, episode.query.y)
    errors = []
    for xs, ys, x, y in zip(*(part[..., 0].double().numpy() for part in parts), strict=True):
        weights = np.linalg.solve(covariance(xs, xs) + noise * np.eye(len(xs)), ys)
        errors.append(np.mean((covariance(x, xs) @ weights - y) ** 2))
    return np.array(errors)


def test_targets_are_the_waves_that_the_origin_tells():
    """numpy computes the same y = a1 sin(w x + b1) + a2 sin(2 w x + b2), and inputs are around the centre."""
    episode = Harmonics(query=200).sample("test", range(50))
    f = episode.origin.fields
    (a1, a2), (b1, b2), w = f["amplitude"].T[..., None], f["phase"].T[..., None], f["frequency"][:, None]
    for part in (episode.support, episode.query):
        x = part.x[..., 0].double().numpy()
        y = a1 * np.sin(w * x + b1) + a2 * np.sin(2 * w * x + b2)
        assert np.allclose(y, part.y[..., 0].numpy(), atol=1e-4)
    away = episode.query.x[..., 0].numpy() - f["centre"][:, None]
    # 10,000 standard normal numbers, within four standard errors.
    assert away.mean() == pytest.approx(0, abs=0.04)
    assert away.std() == pytest.approx(1, abs=0.03)


def test_numbers_of_a_task_have_the_papers_distribution():
    """Over 20,000 tasks, amplitudes are standard normal, and the others uniform in their ranges, all uncorrelated."""
    fields = Harmonics(shot=1, query=1).sample("train", range(20_000)).origin.fields
    columns = [*fields["amplitude"].T, *fields["phase"].T, fields["frequency"], fields["centre"]]
    assert np.abs(np.corrcoef(columns) - np.eye(6)).max() < 4.5 / np.sqrt(20_000)
    for a in columns[:2]:
        # Moments of a standard normal number: 0, 1 and 3, within four standard errors (of variances 1, 2 and 96).
        moments = [np.mean(a**p) for p in (1, 2, 4)]
        assert np.abs(np.subtract(moments, (0, 1, 3))).max() < 4 * np.sqrt(96 / 20_000)
        assert np.abs(np.subtract(moments, (0, 1, 3)))[:2].max() < 4 * np.sqrt(2 / 20_000)
    ranges = ((0, 2 * np.pi), (0, 2 * np.pi), (5, 7), (-4, 4))
    for values, (least, greatest) in zip(columns[2:], ranges, strict=True):
        scaled = (values - least) / (greatest - least)
        assert 0 <= scaled.min() < 0.001 < 0.999 < scaled.max() < 1
        # A uniform number has mean 1/2 and variance 1/12, and x^2 has variance 1/5 - 1/9.
        assert scaled.mean() == pytest.approx(1 / 2, abs=4 * np.sqrt(1 / 12 / 20_000))
        assert np.mean(scaled**2) == pytest.approx(1 / 3, abs=4 * np.sqrt(4 / 45 / 20_000))


def test_targets_have_the_moments_that_follow():
    """E y = 0, E y^2 = 1 and E y^4 = 3.75 at every x, and the covariance at two points is that of the frequencies.

    E a^2 sin^2 = 1/2 and E a^4 sin^4 = 3 * 3/8 for each wave, so E y^4 = 2 * 9/8 + 6 * 1/4.
    """
    query = Harmonics(shot=1, query=2).sample("train", range(40_000)).query
    x, y = query.x[..., 0].double().numpy(), query.y[..., 0].double().numpy()
    assert x.mean() == pytest.approx(0, abs=0.06)
    assert x.var() == pytest.approx(1 + 8**2 / 12, rel=0.02)
    for sign in (x[:, 0] > 0, x[:, 0] < 0):
        assert [np.mean(y[sign, 0] ** p) for p in (1, 2, 4)] == pytest.approx((0, 1, 3.75), abs=0.3)
        assert [np.mean(y[sign, 0] ** p) for p in (1, 2)] == pytest.approx((0, 1), abs=0.05)
    # Pairs whose distance is about that of the first trough, zero and peak of the covariance.
    d = np.abs(x[:, 0] - x[:, 1])
    for least, greatest in ((0.0, 0.05), (0.1, 0.2), (0.25, 0.35), (0.45, 0.55), (0.9, 1.1)):
        near = (d > least) & (d < greatest)
        expected = np.mean(np.diagonal(covariance(x[near, 0][:500], x[near, 1][:500])))
        product = y[near, 0] * y[near, 1]
        assert product.mean() == pytest.approx(expected, abs=4.5 * product.std() / np.sqrt(near.sum()))


def test_ranges_and_noise_are_options():
    """Ranges set frequency and centre; noise adds a normal error of the given size to support and query."""
    fields = Harmonics(frequency=(2, 2), centre=(1, 3)).sample("train", range(500)).origin.fields
    assert set(fields["frequency"]) == {2.0}
    assert (fields["centre"].min(), fields["centre"].max()) == pytest.approx((1, 3), abs=0.05)
    clean, noisy = (Harmonics(noise=n, query=100).sample("val", range(100)) for n in (0.0, 0.3))
    assert torch.equal(clean.query.x, noisy.query.x)
    errors = [n.y - c.y for n, c in ((noisy.query, clean.query), (noisy.support, clean.support))]
    assert [float(e.std()) for e in errors] == pytest.approx([0.3, 0.3], rel=0.1)
    assert abs(float(torch.corrcoef(torch.stack([e[:, :16].flatten() for e in errors]))[0, 1])) < 0.1


def test_support_and_query_do_not_depend_on_each_others_number():
    """Learners with different shots are compared on the same queries of the same functions."""
    few, many = Harmonics(shot=3, query=9).sample("test", [4]), Harmonics(shot=8, query=5).sample("test", [4])
    assert torch.equal(few.support.x, many.support.x[:, :3])
    assert torch.equal(few.query.y[:, :5], many.query.y)
    assert not torch.equal(few.support.x, few.query.x[:, :3])


def test_what_a_predictor_that_knows_the_distribution_reaches():
    """The README's figures: predicting 0 has an error of 1, and the best linear prediction those in its table."""
    episode = Harmonics(shot=16).sample("test", range(500))
    assert float(episode.query.y.square().mean()) == pytest.approx(1.0, abs=0.15)
    errors = kriging_errors(episode)
    assert errors.mean() == pytest.approx(0.025, abs=4 * errors.std() / np.sqrt(500))


def test_numbers_of_points_may_vary_between_blocks():
    """A range draws one shape for each block, as in the paper, whose tasks have different numbers of points."""
    tasks = kshot.tasks("harmonics", shot=(2, 40), query=5, block=4)
    shots = {tasks.sample("train", range(4 * b, 4 * b + 4)).support.x.shape[1] for b in range(30)}
    assert len(shots) > 10
    assert 2 <= min(shots) <= max(shots) <= 40


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"frequency": (7, 5)}, r"got frequency \(7, 5\)"),
        ({"centre": (float("nan"), 1)}, r"got centre \(nan, 1\)"),
        ({"noise": -1.0}, "got noise -1.0"),
        ({"noise": float("inf")}, "got noise inf"),
    ],
)
def test_bad_options_are_refused(wrong, message):
    """The error says what was given and what was expected, when the tasks are built."""
    with pytest.raises(OptionError, match=message):
        Harmonics(**wrong)


@pytest.mark.parametrize("wrong", [{"shot": -1}, {"query": (5, 2)}, {"block": 0}])
def test_impossible_shapes_are_refused(wrong):
    """The spec checks the numbers of examples when the tasks are built."""
    with pytest.raises(DataError, match=f"got {next(iter(wrong))}"):
        Harmonics(**wrong)


def test_unknown_splits_are_refused():
    """The error names the splits that there are."""
    with pytest.raises(DataError, match="got unknown split 'dev', expected one of train, val, test"):
        Harmonics().sample("dev", [0])
