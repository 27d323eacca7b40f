"""The sequences of copying and associative recall have the right content at every step."""

import pytest
import torch

import kshot
from kshot.errors import DataError, OptionError
from kshot_copy import AssociativeRecall, Copy


def test_a_sequence_is_bits_a_delimiter_and_empty_steps():
    """The delimiter has its own channel, the targets of the empty steps are the bits, and no other step is scored."""
    e = Copy(length=3, bits=2).sample("train", [0, 1, 5])
    x, y = e.query.x, e.query.y
    assert (tuple(x.shape), tuple(y.shape)) == ((3, 7, 3), (3, 7, 2))
    assert set(x[:, :3, :2].flatten().tolist()) == {0.0, 1.0}
    assert x[:, :, 2].tolist() == [[0, 0, 0, 1, 0, 0, 0]] * 3
    assert x[:, 4:].abs().sum() == 0
    assert y[:, :4].isnan().all()
    assert torch.equal(y[:, 4:], x[:, :3, :2])
    assert (e.support.x.shape[1], e.support.way, e.origin.query) == (0, None, 3)


@pytest.mark.parametrize("tasks", [Copy(length=5, bits=8), AssociativeRecall(items=5)])
def test_bits_are_fair_and_independent(tasks):
    """Means and correlations are within 5 standard errors of 1/2 and 0: a bias could be learned without a memory."""
    y = tasks.sample("train", range(4000)).query.y
    answers = y[:, ~y[0, :, 0].isnan()].flatten(1)
    assert (answers.mean(0) - 0.5).abs().max() < 5 * 0.5 / 4000**0.5
    correlation = torch.corrcoef(answers.T) - torch.eye(answers.shape[1])
    assert correlation.abs().max() < 5 / 4000**0.5


def test_lengths_vary_by_block_over_the_whole_range():
    """A meta-batch has one length, and every length of the range occurs about equally often."""
    tasks = Copy(length=(2, 4), block=4)
    lengths = [tasks.sample("train", range(4 * b, 4 * b + 4)).origin.query for b in range(300)]
    counts = [lengths.count(n) for n in (2, 3, 4)]
    assert sum(counts) == 300
    assert all(70 <= c <= 130 for c in counts)
    assert tasks.sample("train", [9]).query.x.shape[1] == 2 * lengths[2] + 1
    assert lengths != [tasks.sample("test", [4 * b]).origin.query for b in range(300)]


@pytest.mark.parametrize("make", [Copy, AssociativeRecall])
def test_another_seed_gives_other_lengths_and_other_bits(make):
    """The seed fixes everything that is drawn: the lengths of the blocks too."""
    lengths = [[make(block=1, seed=seed).sample("train", [i]).origin.query for i in range(30)] for seed in (0, 1)]
    assert lengths[0] != lengths[1]
    fixed = {"length": 6} if make is Copy else {"items": 4}
    first, second = (make(seed=seed, **fixed).sample("train", [0]).query.x for seed in (0, 1))
    assert not torch.equal(first, second)


def test_longer_sequences_begin_with_the_shorter_ones():
    """Episode i has the same bits at every length, so that only the length differs in a table of lengths."""
    short, long = (Copy(length=n).sample("test", [3]).query.x for n in (4, 9))
    assert torch.equal(short[:, :4], long[:, :4])


def test_an_item_is_asked_for_by_the_one_before_it():
    """Items follow their delimiters, the query is between its own two, and the next item of the list is the target."""
    e = AssociativeRecall(items=4, length=2, bits=5).sample("train", range(64))
    x, y = e.query.x, e.query.y
    assert tuple(x.shape) == (64, 6 * 3, 7)
    places = set()
    for b in range(64):
        assert x[b, :, 5].nonzero().flatten().tolist() == [0, 3, 6, 9]
        assert x[b, :, 6].nonzero().flatten().tolist() == [12, 15]
        items = [x[b, t + 1 : t + 3, :5].tolist() for t in (0, 3, 6, 9)]
        question, answer = x[b, 13:15, :5].tolist(), y[b, 16:].tolist()
        asked = [k for k in range(3) if items[k] == question and items[k + 1] == answer]
        assert asked
        places |= set(asked)
    assert places == {0, 1, 2}
    assert x[:, 16:].abs().sum() == 0
    assert x[:, :, :5].sum(-1)[:, [0, 3, 6, 9, 12, 15]].abs().sum() == 0
    assert y[:, :16].isnan().all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("copy", {"length": 0}, "copy: got length 0, expected a number of at least 1"),
        ("copy", {"length": (0, 4)}, r"got length \(0, 4\)"),
        ("copy", {"length": (5, 2)}, r"got length \(5, 2\), expected .* a range \(least, greatest\)"),
        ("copy", {"bits": 0}, "got bits 0"),
        ("copy", {"block": 0}, "got block 0"),
        ("associative-recall", {"items": 1}, "associative-recall: got items 1, expected a number of at least 2"),
        ("associative-recall", {"length": 0}, "got length 0"),
    ],
)
def test_sequences_without_anything_to_remember_are_refused(name, options, message):
    """A sequence of length 0 has no step to score, and its error would be 0 / 0."""
    with pytest.raises(OptionError, match=message):
        kshot.tasks(name, **options)


@pytest.mark.parametrize("tasks", [Copy(length=4), AssociativeRecall(items=3)])
def test_splits_and_episodes_have_sequences_of_their_own(tasks):
    """No test sequence is a training sequence: 32 bits are equal by chance once in 4 billion."""
    sampled = torch.cat([tasks.sample(split, range(16)).query.x for split in ("train", "val", "test")])
    assert len(torch.unique(sampled.flatten(1), dim=0)) == 48


@pytest.mark.parametrize("name", ["copy", "associative-recall"])
def test_unknown_splits_are_refused(name):
    """Both tasks refuse them."""
    with pytest.raises(DataError, match="unknown split 'dev'"):
        kshot.tasks(name).sample("dev", [0])
