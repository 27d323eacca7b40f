"""``kshot_mann.steps``: how supports, queries and sequences become the steps that a recurrent learner sees."""

import attrs
import torch

import kshot
from kshot import Support
from kshot.testing import sample_tasks
from kshot_mann.steps import Steps


def test_a_support_becomes_a_stream_in_random_order():
    """Each example is shown once, with the label of the one before it, in an order drawn from the episode's key."""
    x = torch.arange(12.0).view(1, 6, 2)
    support = Support(x, torch.tensor([[0, 0, 1, 1, 2, 2]]), key=torch.tensor([7]), way=3)
    spec = kshot.TaskSpec(kind="classification", input_shape=(2,), way=3, shot=2, query=1)
    steps = Steps(spec, standardise=False)
    shown, label = steps.of_support(support)
    places = [int(row[0]) // 2 for row in shown[0]]
    assert sorted(places) == [0, 1, 2, 3, 4, 5]
    assert places != [0, 1, 2, 3, 4, 5]
    labels = [place // 2 for place in places]
    assert shown[0, :, 2:].argmax(-1).tolist()[1:] == labels[:-1]
    assert shown[0, 0, 2:].tolist() == [0, 0, 0]
    assert label[0].tolist() == [float(c == labels[-1]) for c in range(3)]
    queries = steps.of_queries(torch.ones(1, 4, 2), label)
    assert torch.equal(queries[0, :, 2:], label.expand(4, 3))
    other, _ = steps.of_support(attrs.evolve(support, key=torch.tensor([8])))
    assert [int(row[0]) // 2 for row in other[0]] != places


def test_examples_are_standardised_and_labels_are_not():
    """An example's own numbers get mean 0 and variance 1; the last N numbers of a stream's step, and bits, do not."""
    stream = sample_tasks.LabelStream(way=3)
    x = stream.sample("test", [0]).query.x
    shown = Steps(stream.spec).of_sequence(x)
    assert torch.allclose(shown[..., :4].mean(-1), torch.zeros(1, 8), atol=1e-6)
    assert torch.allclose(shown[..., :4].var(-1, unbiased=False), torch.ones(1, 8), atol=1e-2)
    assert torch.equal(shown[..., 4:], x[..., 4:])
    bits = sample_tasks.Copying()
    x = bits.sample("test", [0]).query.x
    assert torch.equal(Steps(bits.spec).of_sequence(x), x)
