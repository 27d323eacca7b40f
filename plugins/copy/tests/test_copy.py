"""The sequences of copying, repeated copying and associative recall have the right content at every step."""

import pytest
import torch

import kshot
from kshot.errors import DataError, OptionError
from kshot_copy import AssociativeRecall, Copy, RepeatCopy


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


def test_copies_follow_each_other_and_an_end_mark_follows_them():
    """The number is in its own channel after the bits, normalised; the bits are the targets again and again."""
    e = RepeatCopy(length=2, repeats=3, bits=4, known=(1, 4)).sample("train", [0, 1, 5])
    x, y = e.query.x, e.query.y
    assert (tuple(x.shape), tuple(y.shape)) == ((3, 10, 5), (3, 10, 5))
    shown = x[:, :2, :4]
    assert set(shown.flatten().tolist()) == {0.0, 1.0}
    # The numbers 1, 2, 3, 4 have mean 2.5 and variance 1.25.
    assert torch.allclose(x[:, 2, 4], torch.tensor(0.5 / 1.25**0.5))
    assert x[:, 3:].abs().sum() == x[:, :2, 4].abs().sum() == x[:, 2, :4].abs().sum() == 0
    assert y[:, :3].isnan().all()
    for copy in range(3):
        assert torch.equal(y[:, 3 + 2 * copy : 5 + 2 * copy, :4], shown)
    assert y[:, :, 4].nan_to_num(-1).tolist() == [[-1, -1, -1, 0, 0, 0, 0, 0, 0, 1]] * 3
    assert y[:, 9, :4].abs().sum() == 0
    assert e.origin.query == 7


def test_lengths_and_numbers_of_copies_vary_independently():
    """Every pair of the two ranges occurs about equally often, and episodes of a block have one shape."""
    tasks = RepeatCopy(length=(1, 2), repeats=(3, 5), block=4)
    pairs = []
    for b in range(600):
        x = tasks.sample("train", range(4 * b, 4 * b + 4)).query.x
        length = int(x[0, :, -1].nonzero()[0]) if x[0, :, -1].any() else None
        pairs.append((length, x.shape[1]))
    # T = length (repeats + 1) + 2, and of the numbers 3, 4 and 5 none is shown as 0.
    counts = [pairs.count((n, n * (k + 1) + 2)) for n in (1, 2) for k in (3, 4, 5)]
    assert sum(counts) == 600
    assert all(64 <= c <= 136 for c in counts)  # 100, within four standard errors
    assert tasks.spec.query == (4, 11)


def test_more_copies_than_in_training_are_shown_on_the_same_scale():
    """Six copies are the same input whether a range of numbers or one number is asked for."""
    values = {
        round(float(RepeatCopy(length=2, repeats=repeats, block=1).sample("test", [i]).query.x[0, 2, -1]), 5)
        for i in range(20)
        for repeats in (6, (6, 7))
    }
    mean, deviation = 5.5, 8.25**0.5
    assert values == {round((n - mean) / deviation, 5) for n in (6, 7)}
    twelve = RepeatCopy(length=2, repeats=12).sample("test", [0]).query.x[0, 2, -1]
    assert float(twelve) == pytest.approx((12 - mean) / deviation)


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


@pytest.mark.parametrize("make", [Copy, RepeatCopy, AssociativeRecall])
def test_another_seed_gives_other_lengths_and_other_bits(make):
    """The seed fixes everything that is drawn: the lengths of the blocks too."""
    lengths = [[make(block=1, seed=seed).sample("train", [i]).origin.query for i in range(30)] for seed in (0, 1)]
    assert lengths[0] != lengths[1]
    fixed = {"items": 4} if make is AssociativeRecall else {"length": 6}
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
        ("repeat-copy", {"length": 0}, "repeat-copy: got length 0, expected a number of at least 1"),
        ("repeat-copy", {"repeats": (0, 3)}, r"repeat-copy: got repeats \(0, 3\)"),
        ("repeat-copy", {"known": (4, 4)}, r"got known \(4, 4\), expected a range .* at least two numbers of copies"),
        ("associative-recall", {"items": 1}, "associative-recall: got items 1, expected a number of at least 2"),
        ("associative-recall", {"length": 0}, "got length 0"),
    ],
)
def test_sequences_without_anything_to_remember_are_refused(name, options, message):
    """A sequence of length 0 has no step to score, and its error would be 0 / 0."""
    with pytest.raises(OptionError, match=message):
        kshot.tasks(name, **options)


@pytest.mark.parametrize("tasks", [Copy(length=4), RepeatCopy(length=4, repeats=2), AssociativeRecall(items=3)])
def test_splits_and_episodes_have_sequences_of_their_own(tasks):
    """No test sequence is a training sequence: 32 bits are equal by chance once in 4 billion."""
    sampled = torch.cat([tasks.sample(split, range(16)).query.x for split in ("train", "val", "test")])
    assert len(torch.unique(sampled.flatten(1), dim=0)) == 48


@pytest.mark.parametrize("name", ["copy", "repeat-copy", "associative-recall"])
def test_unknown_splits_are_refused(name):
    """All tasks refuse them."""
    with pytest.raises(DataError, match="unknown split 'dev'"):
        kshot.tasks(name).sample("dev", [0])
