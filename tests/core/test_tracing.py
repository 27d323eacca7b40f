"""A trace has the operations of a function, its inputs, and nothing of the call in which it was made."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from kshot.inner.guards import Untraceable
from kshot.inner.tracing import interpreter, trace


@pytest.mark.parametrize("run", [lambda graph: graph, interpreter], ids=["python", "torchscript"])
def test_a_trace_is_the_function_of_its_inputs_and_of_outer_tensors(run):
    """Of the numbers that they have at the time, with second derivatives and operations in place."""
    w = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))

    def function(x):
        x = x.detach().requires_grad_()
        (first,) = torch.autograd.grad((w * x).pow(3).sum(), x, create_graph=True)
        total = torch.zeros(2, dtype=torch.float64)
        total.add_(first.detach())
        count = torch.tensor(1.0, dtype=torch.float64)
        count.add_(x.detach().sum())
        return [*torch.autograd.grad(first.sum(), [x, w]), total, count * total]

    x = torch.tensor([3.0, 4.0], dtype=torch.float64)
    replay = run(trace(function, [x], [w]))
    for _ in range(4):
        x = x + 1
        w.data = w.data + 1
        with torch.no_grad():
            got = replay(x, w)
        assert all(map(torch.equal, got, function(x)))


@pytest.mark.parametrize("run", [lambda graph: graph, interpreter], ids=["python", "torchscript"])
def test_running_statistics_that_a_norm_writes_to_are_replayed(run):
    """The operation's signature hides that it writes, so equal copies of the statistics would be taken for one."""
    mean, var, x = torch.zeros(3), torch.ones(3), torch.randn(5, 3, generator=torch.Generator().manual_seed(0))

    def function(x):
        kept = mean.clone(), var.clone()
        F.batch_norm(x, *kept, training=True, momentum=0.0)
        replaced = mean.clone(), var.clone()
        F.batch_norm(x, *replaced, training=True, momentum=1.0)
        return [F.batch_norm(x, *kept), F.batch_norm(x, *replaced)]

    expected = function(x)
    replay = run(trace(function, [x], [mean, var]))
    for _ in range(4):
        assert all(map(torch.equal, replay(x, mean, var), expected))
    assert torch.equal(mean, torch.zeros(3))


def test_operations_that_nobody_needs_are_left_out():
    """Also views that show their argument as it is."""
    graph = trace(lambda a: [a.view(2, 2).expand(2, 2).detach().exp(), (a + 1).sin()][:1], [torch.ones(2, 2)])
    assert [str(n.target) for n in graph.graph.nodes if n.op == "call_function"] == ["aten.exp.default"]


def test_one_tensor_that_is_two_inputs_stays_two():
    """Later calls pass two tensors."""
    a = torch.ones(2)
    graph = trace(lambda x, y: [x - 2 * y], [a, a])
    assert graph(torch.tensor([5.0]), torch.tensor([1.0]))[0].item() == 3.0


@pytest.mark.parametrize(
    "function",
    [
        lambda x: [x * x.sum().item()],
        lambda x: [x if x.sum() > 0 else -x],
        lambda x: [x[x > 0]],
        lambda x: [x.nonzero()],
    ],
)
def test_what_depends_on_numbers_is_refused(function):
    """In Python's decisions or in the shape of a result."""
    with pytest.raises(Untraceable, match="decides by the numbers in a tensor"):
        trace(function, [torch.ones(3)])


@pytest.mark.parametrize(
    "function", [lambda x: [x * sum(x.tolist())], lambda x: [x * float(x.numpy()[0])], lambda x: [x * np.asarray(x)[0]]]
)
def test_numbers_that_python_reads_without_an_operation_are_refused(function):
    """A trace would have the numbers of its first inputs built in."""
    with pytest.raises(Untraceable, match="takes the numbers out of a tensor"):
        trace(function, [torch.ones(3)])


def test_convolutions_norms_and_random_numbers_are_run_by_torchscript():
    """They have arguments of many types."""
    conv, norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)

    def function(x, mean, variance, *weights):
        weights = [w.detach().requires_grad_() for w in weights]
        y = F.max_pool2d(F.batch_norm(F.conv2d(x, weights[0]), mean, variance, weights[1], None, True), 2)
        return [*torch.autograd.grad(F.dropout(y).square().sum(), weights), mean]

    inputs = [torch.rand(2, 1, 6, 6), torch.zeros(2), torch.ones(2), conv.weight, norm.weight]
    run = interpreter(trace(lambda x, m, v, *w: function(x, m.clone(), v.clone(), *w), inputs))
    assert not isinstance(run, fx.GraphModule)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        got = run(*inputs)
        torch.manual_seed(0)
        with torch.enable_grad():
            expected = function(inputs[0], torch.zeros(2), torch.ones(2), *inputs[3:])
    assert all(map(torch.equal, got, expected))


def test_sums_of_matrix_products_are_rounded_as_in_the_function():
    """TorchScript would compute the gradient of a weight that several steps use as one larger product."""
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(64, 9, generator=generator), torch.randn(9, 9, generator=generator) / 3

    def function(x, w):
        w = w.detach().requires_grad_()
        h = x
        for _ in range(6):
            h = torch.tanh(h @ w)
        return torch.autograd.grad(h.sum(), [w])

    run = interpreter(trace(function, [x, w]))
    for _ in range(4):
        with torch.no_grad():
            got = run(x, w)
        assert torch.equal(got[0], function(x, w)[0])


def test_a_trace_that_is_dropped_leaves_no_type_behind():
    """torch keeps what it knows of a scripted module for good: some megabytes for each trace."""
    types = torch.jit._recursive.concrete_type_store.type_store
    before = len(types)
    run = interpreter(trace(lambda a: [2 * a], [torch.ones(2)]))
    assert not isinstance(run, fx.GraphModule)
    assert len(types) == before
