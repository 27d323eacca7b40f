"""``kshot_gradient_agreement.outliers``: only query labels of training tasks change, and always the same ones."""

from __future__ import annotations

import pytest
import torch

from kshot.errors import MisfitError, OptionError
from kshot.testing import sample_tasks
from kshot_gradient_agreement import Outliers

OF = sample_tasks.classification()


def test_only_every_nth_training_episode_differs_and_only_by_its_query_labels() -> None:
    made, plain = Outliers(OF, every=3).sample("train", range(7)), OF.sample("train", range(7))
    assert torch.equal(made.support.x, plain.support.x)
    assert torch.equal(made.support.y, plain.support.y)
    assert torch.equal(made.query.x, plain.query.x)
    differs = (made.query.y != plain.query.y).any(1)
    assert differs.tolist() == [True, False, False, True, False, False, True]
    assert made.origin is not None
    assert made.origin.fields["outlier"].tolist() == differs.tolist()
    for split in ("val", "test"):
        assert torch.equal(Outliers(OF, every=1).sample(split, range(4)).query.y, OF.sample(split, range(4)).query.y)


def test_labels_are_shuffled_and_do_not_follow_the_truth() -> None:
    y, truth = (t.sample("train", range(400)).query.y for t in (Outliers(OF, every=1), OF))
    way = OF.spec.way
    assert isinstance(way, int)
    assert torch.equal(y.sort(1).values, truth.sort(1).values)
    four_deviations = 4 * (way - 1) ** 0.5 / way / y.numel() ** 0.5
    assert abs(float((y == truth).double().mean()) - 1 / way) < four_deviations


def test_an_episode_is_the_same_alone_and_among_others() -> None:
    tasks = Outliers(OF, every=2)
    assert torch.equal(tasks.sample("train", [4]).query.y[0], tasks.sample("train", range(8)).query.y[4])


def test_what_it_does_not_take() -> None:
    with pytest.raises(MisfitError, match=r"got regression tasks .* expected classification"):
        Outliers(sample_tasks.Lines())
    with pytest.raises(OptionError, match="got every 0, expected at least 1"):
        Outliers(OF, every=0)
