"""A trace that TorchScript runs computes what the same graph computes in Python."""

import pytest
import torch
from torch import fx

from kshot.inner.scripts import scripted
from kshot.inner.tracing import interpreter, trace

aten = torch.ops.aten


def test_arguments_of_all_types():
    """Tensors, lists with and without tensors, numbers, types, devices, layouts, formats, and what is left out."""
    weight, other = torch.randn(4, 2, 3, 3), torch.tensor([2, 0])

    def function(x, rows):
        first, _, third = x.unbind(1)
        pairs = torch.stack([first, third], 1).contiguous(memory_format=torch.channels_last)
        y = torch.nn.functional.conv2d(pairs, weight, padding=1)
        y = torch.nn.functional.batch_norm(y, torch.zeros(4), torch.ones(4), training=True, momentum=0)
        counts = torch.arange(2, device="cpu", dtype=torch.float64, layout=torch.strided)
        empty = torch.cat([x.new_empty([]).new_zeros(()).expand(1), x.flatten()])
        return [
            y,
            y[:, other],
            y[rows, other],
            2 * counts + 1,
            0.5 - counts.long(),
            x > 0,
            empty.max(0)[1],
            y.to(torch.float64).sum([]),
        ]

    inputs = [torch.randn(2, 3, 5, 5), torch.tensor([1, 1])]
    graph = trace(function, inputs)
    for _ in range(3):
        inputs[0] = inputs[0] + 1
        assert all(map(torch.equal, scripted(graph)(*inputs), graph(*inputs)))
    assert all(map(torch.equal, graph(*inputs), function(*inputs)))


def test_tensors_that_a_trace_keeps_are_read_anew():
    table = torch.zeros(2)
    run = scripted(trace(lambda x: [x + table], [torch.ones(2)]))
    table += 3
    assert run(torch.ones(2))[0].tolist() == [4, 4]


def subtracting(target):
    graph = fx.Graph()
    a, b = graph.placeholder("a"), graph.placeholder("b")
    graph.output([graph.call_function(target, (a, b))])
    return fx.GraphModule(torch.nn.Module(), graph)


def test_another_overload_is_refused():
    """TorchScript would choose the subtraction of tensors, because both are tensors."""
    assert scripted(subtracting(aten.sub.Tensor))(torch.ones(1), torch.ones(1))[0] == 0
    with pytest.raises(ValueError, match=r"TorchScript runs aten::sub.Tensor.* in the place of aten::sub.Scalar"):
        scripted(subtracting(aten.sub.Scalar))


def test_what_torchscript_does_not_know_is_run_by_python():
    graph = subtracting(lambda a, b: a - b)
    assert interpreter(graph) is graph


@pytest.mark.parametrize("optimise", [True, False])
def test_other_scripts_are_optimised_as_before(optimise):
    """Also after an error."""
    run = scripted(trace(lambda a, b: [a + b], [torch.ones(2), torch.ones(2)]))
    with torch.jit.optimized_execution(optimise):
        run(torch.ones(2), torch.ones(2))
        with pytest.raises(RuntimeError):
            run(torch.ones(2), torch.ones(3))
        assert torch._C._get_graph_executor_optimize() == optimise
