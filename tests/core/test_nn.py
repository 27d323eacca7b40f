"""Tests of kshot.nn: encoders, and the policy that says whose statistics normalise which examples."""

import doctest
import importlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kshot.errors import DataError, OptionError
from kshot.nn import Encoder, Network, conv4, encoder, infer_output_shape, network, strided_conv4
from kshot.nn.normalisation import folded, own_statistics
from kshot.spec import TaskSpec


def small_net() -> nn.Sequential:
    """Build a net in float64 with one batch norm layer, always with the same parameters."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh()).double()


def normalised_by_hand(net: nn.Sequential, x: torch.Tensor, by: torch.Tensor, unbiased: bool) -> torch.Tensor:
    """Compute the net's outputs for ``x`` with the mean and the variance of ``by`` in its batch norm layer."""
    h, ref = net[0](x), net[0](by)
    return torch.tanh((h - ref.mean(0)) / (ref.var(0, unbiased=unbiased) + net[1].eps).sqrt())


def test_training_normalises_each_episode_by_itself():
    """Statistics are never taken over B: two episodes together give the same embeddings as each of them alone."""
    net = small_net()
    x = torch.randn(2, 6, 3, dtype=torch.float64) * torch.tensor([1.0, 5.0], dtype=torch.float64)[:, None, None]
    z = Encoder(net).train()(x)
    for b in range(2):
        assert torch.allclose(z[b], normalised_by_hand(net, x[b], x[b], unbiased=False), atol=1e-12)


def test_running_statistics_move_once_by_the_mean_over_episodes():
    """The rule is r <- 0.9 r + 0.1 mean_b(statistics of b), so that the chunks of a meta-batch can be averaged."""
    net = small_net()
    x = torch.randn(3, 6, 3, dtype=torch.float64)
    h = net[0](x).detach()
    expected = 0.9 * net[1].running_mean + 0.1 * h.mean(1).mean(0)
    expected_var = 0.9 * net[1].running_var + 0.1 * h.var(1).mean(0)
    Encoder(net).train()(x)
    assert torch.allclose(net[1].running_mean, expected, atol=1e-12)
    assert torch.allclose(net[1].running_var, expected_var, atol=1e-12)


@pytest.mark.parametrize("policy", ["inductive", "support", "transductive"])
def test_evaluation_does_not_depend_on_the_mode_a_module_happens_to_be_in(policy):
    """A new learner is in training mode. Even so, running statistics must not move and dropout must not act."""
    net = nn.Sequential(small_net(), nn.Dropout(0.5))
    e = Encoder(net, policy)
    support, query = torch.randn(2, 5, 3, dtype=torch.float64), torch.randn(2, 4, 3, dtype=torch.float64)
    before = {n: b.clone() for n, b in net.named_buffers()}
    fresh = e.train().given(support)(query)
    assert all(torch.equal(before[n], b) for n, b in net.named_buffers())
    assert all(m.training for m in e.modules())
    for a, b in zip(fresh, e.eval().given(support)(query), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("policy", ["inductive", "support", "transductive"])
def test_each_policy_uses_the_statistics_it_says(policy):
    """The statistics, worked out by hand, are running ones, the support's, or those of support and queries together."""
    net = small_net()
    e = Encoder(net, policy).eval()
    support, query = torch.randn(2, 5, 3, dtype=torch.float64), torch.randn(2, 4, 3, dtype=torch.float64) + 2
    before = {n: b.clone() for n, b in net.named_buffers()}
    z_support, z_query = e.given(support)(query)
    for b in range(2):
        both = torch.cat([support[b], query[b]])
        if policy == "inductive":
            expected_s, expected_q = (torch.tanh(net[0](x) / (1 + net[1].eps) ** 0.5) for x in (support[b], query[b]))
        elif policy == "support":
            expected_s = normalised_by_hand(net, support[b], support[b], unbiased=False)
            expected_q = normalised_by_hand(net, query[b], support[b], unbiased=True)
        else:
            expected_s, expected_q = (normalised_by_hand(net, x, both, unbiased=False) for x in (support[b], query[b]))
        assert torch.allclose(z_support[b], expected_s, atol=1e-12)
        assert torch.allclose(z_query[b], expected_q, atol=1e-12)
    assert all(torch.equal(before[n], b) for n, b in net.named_buffers())
    assert not net.training
    assert e.queries == ("joint" if policy == "transductive" else "independent")


@pytest.mark.parametrize("policy", ["inductive", "support", "transductive"])
def test_the_prediction_of_a_network_does_not_depend_on_its_mode(policy):
    """A new network is in training mode; batch norm must not take the queries' statistics then, nor dropout act."""
    net = Network(nn.Sequential(small_net(), nn.Dropout(0.5)), policy)
    x, support_x = torch.randn(4, 3, dtype=torch.float64) + 2, torch.randn(5, 3, dtype=torch.float64)
    before = {n: b.clone() for n, b in net.named_buffers()}
    fresh = net.train().predict(net.state(), x, support_x)
    assert net.training
    assert all(torch.equal(before[n], b) for n, b in net.named_buffers())
    assert torch.equal(fresh, net.eval().predict(net.state(), x, support_x))


def test_gradients_reach_a_convolution_before_a_batch_norm_at_evaluation():
    """Folding the two is for predictions only."""
    e = encoder("conv4", (1, 16, 16), "inductive", width=2)
    _, z = e.given(torch.rand(1, 2, 1, 16, 16))(torch.rand(1, 3, 1, 16, 16))
    z.sum().backward()
    assert all(p.grad is not None for p in e.parameters())


def test_batch_norm_has_its_momentum_and_mode_again_after_the_block():
    """Otherwise its running statistics would move too far from then on."""
    layer = nn.BatchNorm1d(2, momentum=0.3).eval()
    with own_statistics(layer, momentum=1.0):
        assert (layer.training, layer.momentum) == (True, 1.0)
    assert (layer.training, layer.momentum) == (False, 0.3)


def test_the_sizes_of_a_network_are_those_that_were_asked_for():
    """Its hidden layers, its channels and its outputs."""
    spec = TaskSpec(kind="classification", input_shape=(6,), way=5, shot=1, query=1)
    layers = [m for m in network("mlp", spec, hidden=(7, 9)).modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in layers] == [(6, 7), (7, 9), (9, 5)]
    images = TaskSpec(kind="regression", input_shape=(3, 16, 16), target_shape=(2, 2), shot=1, query=1)
    made = network("conv4", images, width=3)
    assert [m.out_channels for m in made.modules() if isinstance(m, nn.Conv2d)] == [3] * 4
    assert made.net(torch.zeros(2, 3, 16, 16)).shape == (2, 2, 2)


def test_conv4_with_pooling_first_is_the_papers_conv4():
    """Max pooling and ReLU commute: the paper's order (conv, norm, ReLU, pool) gives the same numbers."""
    net = conv4((1, 28, 28)).double().train()
    x = torch.randn(4, 1, 28, 28, dtype=torch.float64)
    h = x
    for block in net[:4]:
        conv, norm = block[0], block[1]
        h = F.max_pool2d(F.relu(F.batch_norm(conv(h), None, None, norm.weight, norm.bias, training=True)), 2)
    assert net(x).shape == (4, 64)
    assert torch.allclose(net(x), h.flatten(1), atol=1e-10)


def test_strided_conv4_is_mamls_network_for_omniglot():
    """Convolutions of stride 2 with the parameters of conv4, each with norm and ReLU, then the mean over all places."""
    net = strided_conv4((1, 28, 28)).double().train()
    x = torch.randn(4, 1, 28, 28, dtype=torch.float64)
    h, sizes = x, []
    for block in net[:4]:
        conv, norm = block[0], block[1]
        every = F.conv2d(h, conv.weight, conv.bias, padding=1)[:, :, ::2, ::2]  # a stride of 2 keeps every second place
        h = F.relu(F.batch_norm(every, None, None, norm.weight, norm.bias, training=True))
        sizes.append(h.shape[-1])
    assert sizes == [14, 7, 4, 2]
    assert torch.allclose(net(x), h.mean((2, 3)), atol=1e-10)
    assert [p.shape for p in net.parameters()] == [p.shape for p in conv4((1, 28, 28)).parameters()]


def test_strided_conv4_is_chosen_by_its_name():
    """As an encoder it gives vectors of the width; as a network a linear layer follows; other inputs are refused."""
    images = TaskSpec(kind="classification", input_shape=(3, 16, 20), way=5, shot=1, query=1)
    made = network("strided-conv4", images, width=6)
    assert [m.stride for m in made.modules() if isinstance(m, nn.Conv2d)] == [(2, 2)] * 4
    assert made.net(torch.zeros(2, 3, 16, 20)).shape == (2, 5)
    embed = encoder("strided-conv4", (3, 16, 20), "transductive", width=6)
    assert (infer_output_shape(embed, (3, 16, 20)), embed.normalisation) == ((6,), "transductive")
    assert [m.stride for m in embed.modules() if isinstance(m, nn.Conv2d)] == [(2, 2)] * 4
    for shape in ((20,), (1, 15, 28)):
        with pytest.raises(DataError, match=r"strided_conv4: got .* expected \(channels, height >= 16"):
            encoder("strided-conv4", shape)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_folding_batch_norm_into_convolutions_changes_no_prediction(memory_format):
    """In float64, predictions are equal for any running statistics and scales, and the net is not changed."""
    net = conv4((1, 28, 28), width=5).double().to(memory_format=memory_format)
    for block in net[:4]:
        for name, b in block[1].named_buffers():
            if b.is_floating_point():
                b.copy_(torch.rand_like(b) + 0.5 if "var" in name else torch.randn_like(b))
        with torch.no_grad():
            block[1].weight.copy_(torch.randn(5))
    x = torch.randn(2, 3, 1, 28, 28, dtype=torch.float64)
    e = Encoder(net).eval()
    with torch.no_grad():
        quick = folded(net)
        assert not [m for m in quick.modules() if isinstance(m, nn.BatchNorm2d)]
        assert quick[0][0].weight.stride(1) == net[0][0].weight.stride(1)
        z, z_query = e.given(x)(x)
        assert torch.allclose(z, e(x), atol=1e-12)
        assert torch.allclose(z_query, e(x), atol=1e-12)
    with_gradient = e.given(x)(x)[1]
    with_gradient.sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize(
    ("shape", "has_norm"), [((1, 28, 28), True), ((3, 84, 84), True), ((20,), False), ((1, 8, 8), False)]
)
def test_auto_chooses_by_input_shape(shape, has_norm):
    """Images of at least 16 x 16 get conv4, all other inputs an mlp."""
    e = encoder("auto", shape).eval()
    assert e.has_batch_norm is has_norm
    assert e(torch.zeros(2, 3, *shape)).shape[:2] == (2, 3)


def test_a_linear_encoder_begins_at_the_distances_of_its_inputs():
    """Distances are equal if the output is long enough, and smaller otherwise (a projection). 0 is mapped to 0."""
    x = torch.randn(1, 6, 2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        whole, part = (encoder("linear", (2, 5), width=width).double() for width in (16, 4))
        assert torch.allclose(torch.cdist(whole(x), whole(x)), torch.cdist(x.flatten(2), x.flatten(2)), atol=1e-5)
        assert (torch.cdist(part(x), part(x)) <= torch.cdist(x.flatten(2), x.flatten(2)) + 1e-5).all()
        weight = part.net[1].weight
        assert torch.allclose(weight @ weight.T, torch.eye(4, dtype=torch.float64), atol=1e-5)
        assert not whole(0 * x).any()


def test_unusable_encoders_are_refused():
    """The error message says what was expected."""
    with pytest.raises(DataError, match=r"expected \(channels, height >= 16"):
        encoder("conv4", (20,))
    with pytest.raises(OptionError, match="expected 'auto', 'conv4', 'strided-conv4', 'mlp', 'linear', 'identity' or"):
        encoder("resnet", (1, 28, 28))  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="'inductive', 'support' or 'transductive'"):
        encoder("conv4", (1, 28, 28), "batch")  # type: ignore[arg-type]


def test_inputs_of_another_shape_are_refused_before_any_compute():
    """Examples are colour photographs for an encoder of grey drawings, and flat vectors for an encoder of images."""
    e = encoder("conv4", (1, 28, 28)).eval()
    for shape in ((1, 5, 3, 28, 28), (1, 5, 1, 32, 32), (1, 5, 784)):
        with pytest.raises(DataError, match=r"expected \[B, n, 1, 28, 28\]"):
            e(torch.zeros(shape))
        with pytest.raises(DataError, match="convert the inputs"):
            e.given(torch.zeros(shape))


# --- The shape of an embedding ------------------------------------------------------------------------------------


class Noisy(nn.Module):
    """Add random numbers to the inputs, in evaluation mode too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.randn_like(x)


def test_the_shape_of_an_embedding_is_inferred_for_vectors_and_maps():
    """A vector has the shape (D,), a map the shape (C, H, W)."""
    assert infer_output_shape(encoder("conv4", (3, 84, 84), width=8), (3, 84, 84)) == (200,)
    assert infer_output_shape(Encoder(nn.Conv2d(1, 4, 3)), (1, 8, 10)) == (4, 6, 8)
    with pytest.raises(DataError, match=r"expected \[B, n, 12\]"):
        infer_output_shape(encoder("mlp", (12,)), (13,))


@pytest.mark.parametrize("root_is_training", [True, False])
def test_inferring_the_shape_changes_no_mode(root_is_training):
    """Each submodule keeps its own mode, even if it differs from that of the encoder."""
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    e = Encoder(net)
    e.training = root_is_training
    net[1].training, net[2].training = False, True
    before = [m.training for m in e.modules()]
    assert infer_output_shape(e, (3,)) == (2,)
    assert [m.training for m in e.modules()] == before
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        infer_output_shape(e, (5,))
    assert [m.training for m in e.modules()] == before  # also if the net raises an error


@pytest.mark.parametrize("root_is_training", [True, False])
def test_inferring_the_shape_changes_no_running_statistics(root_is_training):
    """An input of zeros is not data: no buffer moves, also if a layer is in training mode by itself."""
    e = encoder("conv4", (1, 16, 16), width=4)
    e.training = root_is_training
    before = {n: b.clone() for n, b in e.named_buffers()}
    assert infer_output_shape(e, (1, 16, 16)) == (4,)
    assert before
    assert all(torch.equal(before[n], b) for n, b in e.named_buffers())


def test_inferring_the_shape_changes_no_random_state():
    """The parameters that are initialised next must not depend on whether an encoder draws random numbers."""
    e = Encoder(nn.Sequential(Noisy(), nn.Dropout(0.5), nn.Linear(3, 2)))
    before = torch.get_rng_state()
    assert infer_output_shape(e, (3,)) == (2,)
    assert torch.equal(torch.get_rng_state(), before)


# --- The examples of the documentation ----------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["encoders", "memories", "networks", "normalisation"])
def test_the_examples_in_docstrings_run(module):
    """A wrong example is worse than none."""
    result = doctest.testmod(importlib.import_module(f"kshot.nn.{module}"))
    assert result.attempted > 0
    assert result.failed == 0
