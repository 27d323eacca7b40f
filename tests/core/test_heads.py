"""``kshot.nn.heads``: which parameters are the head of a net, and when the head can be called alone."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from kshot import TaskSpec
from kshot.errors import OptionError
from kshot.inner import State
from kshot.nn import Head, find_head, network


class Functional(nn.Module):
    """A net that uses the weight of its layer and does not call the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.layer.weight.T


def names(net: nn.Module, head: Head) -> list[str]:
    """List the names of the parameters of the head."""
    return [name for name, _ in net.named_parameters() if name in head]


class HeadFirst(nn.Module):
    """A net that defines its head before its body."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def small() -> nn.Sequential:
    """Build a net of two linear layers, whose head has the path ``2``."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


@pytest.mark.parametrize(
    ("choice", "spec", "path"),
    [
        ("conv4", TaskSpec(kind="classification", input_shape=(1, 28, 28), way=5, shot=1, query=1), "5"),
        ("mlp", TaskSpec(kind="classification", input_shape=(6,), way=5, shot=1, query=1), "5"),
        ("mlp", TaskSpec(kind="regression", input_shape=(2,), target_shape=(3, 2), shot=1, query=1), "5"),
    ],
)
def test_the_head_of_the_usual_networks_is_their_last_linear_layer(choice, spec, path):
    """A layer without parameters that follows, such as the one that shapes the values, is not the head."""
    net = network(choice, spec, width=4).net
    head = find_head(net, spec.input_shape)
    assert head.path == path
    assert isinstance(head.module(net), nn.Linear)
    assert names(net, head) == [f"{path}.weight", f"{path}.bias"]


def test_the_last_layer_is_the_one_called_last_and_not_the_one_defined_last():
    """The order of definition says nothing about what a net computes."""
    assert find_head(HeadFirst(), (3,)).path == "head"


def test_finding_the_head_changes_nothing():
    """Modes, running statistics, the global random state and the hooks of the net are what they were."""
    net = HeadFirst()
    net.body[1].eval()
    before, random = {n: b.clone() for n, b in net.named_buffers()}, torch.get_rng_state()
    find_head(net, (3,))
    assert [m.training for m in net.modules()] == [True, True, True, True, False, True]
    assert all(torch.equal(b, before[n]) for n, b in net.named_buffers())
    assert torch.equal(random, torch.get_rng_state())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in net.modules())


def test_a_layer_that_is_the_net_is_the_head():
    """Then there is no body, and all names are in the head."""
    net = nn.Linear(3, 2)
    head = find_head(net, (3,))
    assert (head.path, names(net, head)) == ("", ["weight", "bias"])


def test_a_parametrised_layer_is_one_layer():
    """The parameters of a weight norm are in a module of their own, but belong to the layer."""
    net = nn.Sequential(nn.Linear(3, 4), parametrizations.weight_norm(nn.Linear(4, 2)))
    head = find_head(net, (3,))
    assert head.path == "1"
    assert len(names(net, head)) == 3


def test_the_layers_inside_torch_s_transformer_are_seen():
    """Without gradients and without hooks torch computes them together, without calling them."""
    net = nn.Sequential(nn.Unflatten(1, (2, 4)), nn.TransformerEncoderLayer(4, 2, 8, batch_first=True))
    assert find_head(net, (8,)).path == "1.norm2"


def test_a_frozen_layer_is_no_head():
    """Only trainable parameters can adapt."""
    net = small()
    net[2].requires_grad_(False)
    assert find_head(net, (3,)).path == "0"
    with pytest.raises(OptionError, match=r"got head '2', expected .*: '0', or one"):
        find_head(net, (3,), "2")


def test_a_named_module_may_contain_several_layers_or_have_a_second_name():
    """Parameters have the name under which their module was registered first."""
    net = HeadFirst()
    net.alias = net.body
    assert names(net, find_head(net, (3,), "alias")) == ["body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias"]
    assert names(net, find_head(net, (3,), "")) == [name for name, _ in net.named_parameters()]


def test_a_wrong_name_lists_the_layers():
    """The message gives what was given and all that could be meant; of a deep net the last twenty."""
    with pytest.raises(OptionError, match=r"^anil: got head 'fc', expected .* trainable parameters: '0', '2', or one"):
        find_head(small(), (3,), "fc", "anil")
    with pytest.raises(OptionError, match="got head '1'"):
        find_head(small(), (3,), "1")  # the Tanh, which has no parameters
    deep = nn.Sequential(*[nn.Linear(2, 2) for _ in range(25)])
    with pytest.raises(OptionError, match=r"parameters: 5 layers, '5', '6', .*'24', or one"):
        find_head(deep, (2,), "fc")


def test_a_net_whose_last_layer_can_not_be_found_is_refused():
    """The user is asked for a name, with a list."""

    with pytest.raises(OptionError, match=r"is called as a module, .*; name its head: 'layer'"):
        find_head(Functional(), (3,))
    assert find_head(Functional(), (3,), "layer").path == "layer"
    with pytest.raises(OptionError, match="can't be called with one input of zeros of shape \\(7,\\)"):
        find_head(small(), (7,))


def test_a_parameter_is_not_part_of_head_and_body():
    """With tied weights the head could not adapt while the body stays as it is."""
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    for path in (None, "0"):
        with pytest.raises(OptionError, match=r"head '[01]' that shares a parameter with the rest .*'0', '1'"):
            find_head(net, (3,), path)
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    net.append(nn.Sequential(net[0], nn.Linear(3, 3)))  # a layer that is used twice, inside and outside the head
    with pytest.raises(OptionError, match="head '2' that shares a parameter"):
        find_head(net, (3,), "2")


def test_from_its_inputs_the_head_alone_computes_the_outputs():
    """The head is called with the tensors of a state under their names in the head."""
    net = small()
    net[2].bias.requires_grad_(False)  # a frozen parameter is among the buffers of the state
    head, x = find_head(net, (3,)), torch.ones(5, 3, dtype=torch.float64)
    state = State.of(net)
    features = head.inputs(net, lambda: state.call(net, x))
    assert torch.equal(features, net[1](net[0](x)))
    alone = head.alone(state)
    assert (list(alone.parameters), list(alone.buffers)) == (["weight"], ["bias"])
    moved = State({"weight": alone.parameters["weight"] + 1}, alone.buffers)
    expected = features @ (net[2].weight + 1).T + net[2].bias
    assert torch.allclose(moved.call(net[2], features), expected)
    assert torch.allclose(head.replaced(state, moved).call(net, x), expected)
    assert list(head.parameters(state).parameters) == ["2.weight"]
    assert not net[2]._forward_hooks


class Twice(nn.Module):
    """A net that calls its head twice."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.head(x))


class Scaled(nn.Linear):
    """A layer with a second argument."""

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return super().forward(x) * scale


class ByKeyword(nn.Module):
    """A net that calls its head with a named argument."""

    def __init__(self) -> None:
        super().__init__()
        self.head = Scaled(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x, scale=2.0)


@pytest.mark.parametrize(
    ("net", "path"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.Softplus()), "1"),
        (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.ReLU(inplace=True)), "1"),
        (nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))), "1"),
        (nn.Linear(3, 2), ""),
        (Twice(), "head"),
        (ByKeyword(), "head"),
        (Functional(), "layer"),
    ],
    ids=[
        "an operation follows",
        "in place",
        "buffers",
        "the net itself",
        "called twice",
        "named argument",
        "not called",
    ],
)
def test_a_head_that_is_not_all_that_follows_the_body_has_no_inputs(net, path):
    """Then the complete net must be computed in each step, also where vmap computes it."""
    head, x = find_head(net, (3,), path), torch.ones(2, 5, 3)
    assert head.inputs(net, lambda: net(x[0])) is None
    answers = []

    def run(x: Tensor) -> Tensor:
        answers.append(head.inputs(net, lambda: net(x)))
        return x

    torch.func.vmap(run)(x)
    assert answers == [None]
    assert not net._forward_hooks
