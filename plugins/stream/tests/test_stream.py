"""Streams show each label one step late, leak no label early, and refuse tasks that cannot be streamed."""

import attrs
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import kshot
from kshot import ClassificationTasks, Pool
from kshot.errors import DataError, MisfitError, OptionError
from kshot.kinds import KINDS
from kshot.testing import sample_tasks
from kshot_stream import Stream


def numbered(classes: int = 8, examples: int = 6, **shape: int) -> ClassificationTasks:
    """Make tasks in which example j of class c is the image [[100 c + j, 0]], so that an input names its example."""
    x = torch.zeros(classes * examples, 1, 1, 2)
    x[:, 0, 0, 0] = (100 * torch.arange(classes)[:, None] + torch.arange(examples)).flatten()
    pool = Pool.of(x, np.repeat(np.arange(classes), examples), names=[f"c{c}" for c in range(classes)])
    return ClassificationTasks({"train": pool, "test": pool}, fingerprint="numbered", **shape)


def test_a_step_shows_an_example_and_the_label_of_the_one_before():
    """x_t is the flattened example and the one-hot y_{t-1}; the first step has no label. Checked step by step."""
    e = Stream(numbered(), way=3, instances=4).sample("test", [5, 6])
    assert e.query.x.shape == (2, 12, 2 + 3)
    for x, y in zip(e.query.x, e.query.y, strict=True):
        for t in range(12):
            before = [0.0, 0.0, 0.0]
            if t > 0:
                before[int(y[t - 1])] = 1.0
            assert x[t, 2:].tolist() == before
    assert e.support.x.shape == (2, 0, 5)
    assert e.support.way == 3


def test_a_stream_has_the_same_number_of_different_examples_of_each_class():
    """The inputs themselves name their examples, and the origin names the same ones."""
    stream = Stream(numbered(), way=3, instances=4)
    e = stream.sample("train", range(20))
    for b in range(20):
        shown = e.query.x[b, :, 0].int()
        assert len(set(shown.tolist())) == 12
        classes = e.origin.classes[b]
        assert [int(v) // 100 for v in shown] == [classes[label] for label in e.query.y[b]]
        assert torch.bincount(e.query.y[b]).tolist() == [4, 4, 4]
        rows = stream.of.pool("train").x[torch.from_numpy(e.origin.query_ids[b])]
        assert torch.equal(rows.flatten(1), e.query.x[b, :, :2])
    assert e.origin.class_names[0] == tuple(f"c{c}" for c in e.origin.classes[0])


def test_the_spec_says_it_is_a_stream():
    """It has kind, way, length and provides of a stream, a range that contains 0 and 1, and the data's fingerprint."""
    stream = Stream(numbered(), way=4, instances=3)
    assert stream.fingerprint == "numbered"
    spec = stream.spec
    assert (spec.kind, spec.way, spec.query, spec.input_shape) == ("sequence", 4, 12, (6,))
    assert spec.provides == {"stream", "identities"}
    assert spec.input_range is None
    pictures = sample_tasks.classification(input_shape=(1, 4, 4))
    assert Stream(pictures, way=2, instances=2).spec.input_range == (0.0, 1.0)


def test_the_range_of_the_inputs_contains_examples_and_labels():
    """A learner or a check that trusts the range must not meet a label beyond it."""
    pool = Pool.of(torch.rand(12, 1, 2, 2) - 0.6, np.repeat(np.arange(3), 4))
    for given, expected in (((-0.6, 0.4), (-0.6, 1.0)), ((0.25, 3.0), (0.0, 3.0))):
        of = ClassificationTasks({"train": attrs.evolve(pool, input_range=given)}, way=2, query=1)
        assert Stream(of, way=2, instances=2).spec.input_range == expected


def test_labels_may_be_strings():
    """Each class has one string of five characters of an alphabet of five, different from those of the others."""
    stream = Stream(numbered(), way=6, instances=3, labels="strings")
    spec = stream.spec
    assert (spec.way, spec.target_shape, spec.input_shape, spec.query) == (5, (5,), (2 + 25,), 18)
    e = stream.sample("test", range(40))
    x, y = e.query.x, e.query.y
    assert (tuple(x.shape), tuple(y.shape), e.support.way) == ((40, 18, 27), (40, 18, 5), 5)
    for b in range(40):
        of_class = {}
        for t in range(18):
            string = tuple(y[b, t].tolist())
            assert of_class.setdefault(int(x[b, t, 0]) // 100, string) == string
            # The characters of the step before, one-hot and one after another.
            shown = x[b, t, 2:].view(5, 5)
            expected = torch.zeros(5, 5) if t == 0 else F.one_hot(y[b, t - 1], 5).float()
            assert torch.equal(shown, expected)
        assert len(set(of_class.values())) == 6
    # The same examples in the same order as with numbers.
    plain = Stream(numbered(), way=6, instances=3).sample("test", range(40))
    assert torch.equal(plain.query.x[..., :2], x[..., :2])


def test_every_character_of_a_string_is_equally_frequent():
    """Over 2,400 strings, each of the five characters is at each place within four standard errors of 1/5."""
    y = Stream(numbered(), way=6, instances=1, labels="strings").sample("train", range(400)).query.y
    shares = F.one_hot(y.flatten(0, 1), 5).float().mean(0)
    assert (shares - 0.2).abs().max() < 4 * (0.2 * 0.8 / 2400) ** 0.5


def test_each_split_draws_its_own_streams():
    """Episode i of two splits differs even if both have the same classes and examples."""
    stream = Stream(numbered(), way=3, instances=2)
    train, test = (stream.sample(split, range(5)) for split in ("train", "test"))
    assert not np.array_equal(train.origin.classes, test.origin.classes)
    assert not torch.equal(train.query.y, test.query.y)


class Oracle:
    """Predict with a perfect memory: know the class of each example, and guess the smallest label not yet shown."""

    def __init__(self, way: int) -> None:
        self.way = way

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        said = torch.zeros(*x.shape[:2], self.way)
        for b, steps in enumerate(x.tolist()):
            known: dict[int, int] = {}
            last = -1
            for t, (example, _, *before) in enumerate(steps):
                if t > 0:
                    known[last] = before.index(1.0)
                last = int(example) // 100
                unseen = [label for label in range(self.way) if label not in known.values()]
                said[b, t, known[last] if last in known else unseen[0]] = 1.0
        return said


def test_a_perfect_memory_knows_no_more_than_the_labels_left():
    """It is right at the first step with probability 1/N, and at first instances with probability
    (1/5 + 1/4 + 1/3 + 1/2 + 1) / 5 = 45.7 %, within four standard errors. More would mean that labels leak. It
    knows every later instance.
    """
    e = Stream(numbered(), way=5, instances=3, seed=1).sample("test", range(1500))
    scores = KINDS["sequence"].score(Oracle(5), e)
    first = 1 - scores["error_by_step"][:, 0]
    assert abs(float(first.mean()) - 0.2) < 4 * float(first.std()) / 1500**0.5
    instances = scores["accuracy_by_instance"]
    assert abs(float(instances[:, 0].mean()) - 0.4567) < 4 * float(instances[:, 0].std()) / 1500**0.5
    assert torch.equal(instances[:, 1:], torch.ones(1500, 2))


def test_classes_have_no_order_and_no_label_of_their_own():
    """Each class gets each label equally often, and each step shows each label equally often, within four sigma."""
    e = Stream(numbered(classes=4), way=4, instances=2).sample("train", range(1200))
    table = np.zeros((4, 4))
    for row in e.origin.classes:
        table[row, np.arange(4)] += 1
    assert np.abs(table - 300).max() < 4 * (1200 * 0.25 * 0.75) ** 0.5
    by_step = F.one_hot(e.query.y, 4).sum(0)
    assert (by_step - 300).abs().max() < 4 * (1200 * 0.25 * 0.75) ** 0.5


def test_the_seed_is_the_views_own():
    """The seed, way and shot of the tasks below change no stream; another seed of the view changes all of them."""
    plain = Stream(numbered(), way=3, instances=2).sample("test", range(3))
    other = Stream(numbered(seed=9, way=2, shot=3), way=3, instances=2).sample("test", range(3))
    assert torch.equal(plain.query.x, other.query.x)
    assert not torch.equal(
        plain.query.x, Stream(numbered(), way=3, instances=2, seed=1).sample("test", range(3)).query.x
    )


def test_it_is_built_by_name_over_tasks_by_name():
    """The command line builds it so from --tasks.of=toy --tasks.of.features=6."""
    pytest.importorskip("kshot_toy")
    stream = kshot.tasks("stream", of={"name": "toy", "features": 6}, way=2, instances=3)
    assert stream.sample("val", [0]).query.x.shape == (1, 6, 8)


class Unpooled:
    spec = sample_tasks.classification().spec

    def sample(self, split, indices):
        raise AssertionError("not asked for")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Stream(numbered(), way=1), OptionError, "got way 1, expected at least 2"),
        (lambda: Stream(numbered(), instances=0), OptionError, "got instances 0"),
        (lambda: Stream(numbered(), labels="words"), OptionError, "labels: got 'words', expected one of 'one-hot'"),
        (
            lambda: Stream(numbered(), way=3126, labels="strings"),
            OptionError,
            "got way 3126, expected at most 3125 classes, as many as there are strings",
        ),
        (
            lambda: Stream(numbered(), way=5, instances=7),
            DataError,
            "got instances 7, but class 'c0' of split 'train'",
        ),
        (lambda: Stream(numbered(), way=9, instances=2), DataError, "got way 9, but split 'train' has 8 classes"),
        (lambda: Stream(sample_tasks.Lines()), MisfitError, "stream: .*Lines.* regression"),
        (lambda: Stream(Unpooled()), MisfitError, "stream: .*Unpooled"),
        (lambda: Stream(numbered(), 2, 2).sample("dev", [0]), DataError, "unknown split 'dev'"),
        (lambda: Stream(numbered(), 2, 2).sample("test", []), DataError, "expected at least one"),
    ],
)
def test_options_and_tasks_that_make_no_stream_are_refused(make, error, message):
    """The error comes before anything is computed, and says what was given and what was expected."""
    with pytest.raises(error, match=message):
        make()
