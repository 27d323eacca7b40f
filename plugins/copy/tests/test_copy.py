"""Copying and associative recall are what they say, step by step."""

import pytest
import torch

import kshot
from kshot.errors import DataError, OptionError
from kshot_copy import AssociativeRecall, Copy


def test_a_sequence_is_shown_marked_and_asked_for():
    """Bits, a mark on an input of its own, silence; the answers are the bits, and nothing else is scored."""
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
    """A bias could be learned without a memory: means and correlations within 5 standard errors of 1/2 and 0."""
    y = tasks.sample("train", range(4000)).query.y
    answers = y[:, ~y[0, :, 0].isnan()].flatten(1)
    assert (answers.mean(0) - 0.5).abs().max() < 5 * 0.5 / 4000**0.5
    correlation = torch.corrcoef(answers.T) - torch.eye(answers.shape[1])
    assert correlation.abs().max() < 5 / 4000**0.5


def test_lengths_vary_by_block_over_the_whole_range():
    """A meta-batch has one length, and every length of the range is met about equally often."""
    tasks = Copy(length=(2, 4), block=4)
    lengths = [tasks.sample("train", range(4 * b, 4 * b + 4)).origin.query for b in range(300)]
    counts = [lengths.count(n) for n in (2, 3, 4)]
    assert sum(counts) == 300
    assert all(70 <= c <= 130 for c in counts)
    assert tasks.sample("train", [9]).query.x.shape[1] == 2 * lengths[2] + 1
    assert lengths != [tasks.sample("test", [4 * b]).origin.query for b in range(300)]


def test_longer_sequences_begin_with_the_shorter_ones():
    """Episode i is the same sequence, cut at another length: what changes in a table of lengths is the length alone."""
    short, long = (Copy(length=n).sample("test", [3]).query.x for n in (4, 9))
    assert torch.equal(short[:, :4], long[:, :4])


def test_an_item_is_asked_for_by_the_one_before_it():
    """Read back as a person would: items after their marks, the question between its own, the next item the answer."""
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
    ("name", "options", "said"),
    [
        ("copy", {"length": 0}, "copy: length is 0, expected a number of at least 1"),
        ("copy", {"length": (0, 4)}, r"length is \(0, 4\)"),
        ("copy", {"length": (5, 2)}, r"length is \(5, 2\), expected .* a range \(least, greatest\)"),
        ("copy", {"bits": 0}, "bits is 0"),
        ("copy", {"block": 0}, "block is 0"),
        ("associative-recall", {"items": 1}, "associative-recall: items is 1, expected a number of at least 2"),
        ("associative-recall", {"length": 0}, "length is 0"),
    ],
)
def test_sequences_without_anything_to_remember_are_refused(name, options, said):
    """Length 0 has no answer to score, and its error is 0 / 0."""
    with pytest.raises(OptionError, match=said):
        kshot.tasks(name, **options)


@pytest.mark.parametrize("tasks", [Copy(length=4), AssociativeRecall(items=3)])
def test_splits_and_episodes_have_sequences_of_their_own(tasks):
    """What was trained on must not be what is tested: 32 bits are the same by chance once in 4 billion."""
    sampled = torch.cat([tasks.sample(split, range(16)).query.x for split in ("train", "val", "test")])
    assert len(torch.unique(sampled.flatten(1), dim=0)) == 48


@pytest.mark.parametrize("name", ["copy", "associative-recall"])
def test_unknown_splits_are_refused(name):
    """By both."""
    with pytest.raises(DataError, match="unknown split 'dev'"):
        kshot.tasks(name).sample("dev", [0])
