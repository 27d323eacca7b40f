"""Whose statistics normalise what, for nets that are not made of torch's usual layers alone."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, weight_norm

import kshot
from kshot import ClassificationTasks, Engine, Needs, Pool
from kshot.errors import DataError, MisfitError, OptionError
from kshot.functional import class_means, prototypical_logits
from kshot.nn import Encoder, Network
from kshot.nn.dependence import check_queries, depends_on_batch
from kshot.nn.normalisation import folded, with_statistics_of
from kshot.testing import sample_learner, sample_tasks

# --- Folding ------------------------------------------------------------------------------------------------------


class Residual(nn.Sequential):
    """Adds its input."""

    def forward(self, x):
        return x + super().forward(x)


class Doubling(nn.Conv2d):
    """A convolution whose output is doubled."""

    def forward(self, x):
        return 2 * super().forward(x)


class Shifting(nn.BatchNorm2d):
    """A batch norm whose output is shifted."""

    def forward(self, x):
        return super().forward(x) + 1


def with_hook(conv):
    """Double the outputs of a convolution by a hook."""
    conv.register_forward_hook(lambda _, inputs, out: 2 * out)
    return conv


def with_method(conv):
    """Replace ``forward`` of one convolution."""
    conv.forward = lambda x: 2 * nn.Conv2d.forward(conv, x)
    return conv


def conv(**options):
    """Build a convolution that keeps the size of images with 3 channels."""
    return nn.Conv2d(3, 3, 3, padding=1, **options)


def hooked_sequence():
    """Build an nn.Sequential whose output is doubled by a hook."""
    return with_hook(nn.Sequential(conv(), nn.BatchNorm2d(3)))


def used_twice():
    """Build a net that applies one convolution, and one ReLU, twice."""
    shared, relu = conv(), nn.ReLU()
    return nn.Sequential(shared, nn.BatchNorm2d(3), relu, shared, relu)


NETS = {
    "a subclass of Sequential": lambda: Residual(conv(), nn.BatchNorm2d(3)),
    "a subclass inside": lambda: nn.Sequential(Residual(conv(), nn.BatchNorm2d(3)), nn.ReLU()),
    "a hook on the Sequential": hooked_sequence,
    "a subclass of Conv2d": lambda: nn.Sequential(Doubling(3, 3, 3), nn.BatchNorm2d(3)),
    "a subclass of BatchNorm2d": lambda: nn.Sequential(conv(), Shifting(3)),
    "a hook": lambda: nn.Sequential(with_hook(conv()), nn.BatchNorm2d(3)),
    "a hook on the norm": lambda: nn.Sequential(conv(), with_hook(nn.BatchNorm2d(3))),
    "a replaced method": lambda: nn.Sequential(with_method(conv()), nn.BatchNorm2d(3)),
    "used twice": used_twice,
    "weight norm": lambda: nn.Sequential(parametrizations.weight_norm(conv()), nn.BatchNorm2d(3)),
    "spectral norm": lambda: nn.Sequential(parametrizations.spectral_norm(conv()), nn.BatchNorm2d(3)),
    "pruned": lambda: nn.Sequential(prune.random_unstructured(conv(), "weight", 0.5), nn.BatchNorm2d(3)),
    "reflected borders": lambda: nn.Sequential(conv(padding_mode="reflect"), nn.BatchNorm2d(3)),
    "groups": lambda: nn.Sequential(conv(groups=3), nn.BatchNorm2d(3)),
    "no bias, no scale": lambda: nn.Sequential(conv(bias=False), nn.BatchNorm2d(3, affine=False)),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(3, 3, 3), nn.BatchNorm2d(3)),
}


@pytest.mark.parametrize("name", NETS)
def test_a_folded_net_computes_the_same_function(name):
    """Only layers that surely compute what their class computes are folded, and the net itself is not changed."""
    torch.manual_seed(0)
    net = NETS[name]().double()
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    for _ in range(3):
        net(x)  # statistics that are not 0 and 1
    net.eval()
    encoder = Encoder(nn.Sequential(net, nn.Flatten())).eval()
    with torch.no_grad():
        expected = net(x)
        torch.testing.assert_close(folded(net)(x), expected, rtol=1e-10, atol=1e-10)
        z = encoder.given(x[None])(x[None])[1]
    torch.testing.assert_close(z[0], expected.flatten(1), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(encoder.given(x[None])(x[None])[1], z, rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
def test_the_older_weight_norm_is_not_folded():
    """Its weight is computed by a hook before each call and can't be copied."""
    net = nn.Sequential(weight_norm(conv()), nn.BatchNorm2d(3)).eval()
    assert folded(net)[0] is net[0]


@pytest.mark.parametrize("change", [{"running_mean": None}, {"training": True}])
def test_a_norm_that_uses_batch_statistics_is_not_folded(change):
    """It has no running statistics, or is in training mode within a net that is not."""
    net = nn.Sequential(conv(), nn.BatchNorm2d(3)).eval()
    for name, value in change.items():
        setattr(net[1], name, value)
    assert len(folded(net)) == 2


# --- Nets whose examples see each other ---------------------------------------------------------------------------


class Centred(nn.Module):
    """Subtracts the mean over the batch, always."""

    def forward(self, x):
        return x - x.mean(0)


class OwnNorm(nn.Module):
    """A batch norm that is no batch norm of torch."""

    def __init__(self, size):
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))

    def forward(self, x):
        if not self.training:
            return x - self.mean
        mean = x.mean(0)
        self.mean.lerp_(mean.detach(), 0.1)
        return x - mean


class Noisy(nn.Module):
    """Adds random numbers, also at evaluation."""

    def forward(self, x):
        return x + torch.randn_like(x)


UNTRACKED = {
    "untracked": lambda: nn.BatchNorm1d(3, track_running_stats=False),
    "centred": Centred,
    "attention over the batch": lambda: nn.TransformerEncoderLayer(3, 1, 4, dropout=0.0),
}


@pytest.mark.parametrize("owner", [Encoder, Network])
@pytest.mark.parametrize("policy", ["inductive", "support"])
@pytest.mark.parametrize("name", UNTRACKED)
def test_a_net_that_always_mixes_examples_is_refused(owner, policy, name):
    """Otherwise a result would say that its queries are independent."""
    with pytest.raises(OptionError, match=f"{owner.__name__}: got normalisation='{policy}' and a net whose output"):
        owner(nn.Sequential(nn.Linear(3, 3), UNTRACKED[name]()), policy, (3,))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["untracked", "centred"])
def test_a_net_that_mixes_examples_never_mixes_episodes(name, training):
    """Under ``transductive`` it is allowed, queries are joint, and each episode is computed alone."""
    torch.manual_seed(0)
    encoder = Encoder(nn.Sequential(nn.Linear(3, 3), UNTRACKED[name]()).double(), "transductive", (3,)).train(training)
    assert encoder.queries == "joint"
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    alone = torch.cat([encoder(x[:1]), encoder(x[1:])])
    torch.testing.assert_close(encoder(x), alone)
    both = encoder.given(x)(x + 1)[1]
    torch.testing.assert_close(both, torch.cat([encoder.given(e)(e + 1)[1] for e in (x[:1], x[1:])]))


def test_a_normaliser_of_ones_own_is_recognised_by_trying():
    """In training each episode has its own statistics, and the running ones move once, by their mean."""
    encoder = Encoder(OwnNorm(3).double(), "inductive", (3,)).train()
    assert encoder.has_batch_norm
    assert encoder.queries == "independent"
    x = torch.randn(3, 5, 3, dtype=torch.float64) + torch.arange(3.0, dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(encoder(x), x - x.mean(1, keepdim=True))
    torch.testing.assert_close(encoder.net.mean, 0.1 * x.mean((0, 1)))
    for owner in (Encoder, Network):
        with pytest.raises(OptionError, match="is no batch norm of torch"):
            owner(OwnNorm(3), "transductive", (3,))


@pytest.mark.parametrize("net", [Noisy(), nn.LayerNorm(3), nn.Dropout(0.5), nn.Embedding(4, 3), nn.Tanh()])
def test_other_nets_are_let_alone(net):
    """Nets that draw random numbers, or that can't take random inputs, can't be tried."""
    state = torch.get_rng_state()
    assert not depends_on_batch(nn.Sequential(nn.Sequential(net)), (3,), training=False)
    assert not depends_on_batch(net, (3,), training=True)
    assert torch.equal(state, torch.get_rng_state())


def test_trying_a_net_changes_nothing():
    """Neither its modes nor its running statistics, even if its parts are in different modes."""
    net = nn.Sequential(OwnNorm(3), nn.BatchNorm1d(3).eval())
    net[0].forward = net[0].forward
    before = copy.deepcopy(net.state_dict())
    Encoder(net, "inductive", (3,))
    assert net.training
    assert net[0].training
    assert not net[1].training
    assert all(torch.equal(before[n], b) for n, b in net.state_dict().items())


def test_lazy_layers_are_initialised_or_refused():
    """A batch norm that is not yet initialised would be overlooked."""
    net = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten())
    with pytest.raises(DataError, match=r"Encoder: got a net whose 0\.weight is lazily initialised"):
        Encoder(net)
    encoder = Encoder(net, "transductive", (1, 6, 6))
    assert encoder.has_batch_norm
    assert encoder.queries == "joint"


def test_statistics_over_processes_are_refused():
    """Each episode is normalised by its own statistics."""
    with pytest.raises(OptionError, match=r"nn\.SyncBatchNorm"):
        Encoder(nn.SyncBatchNorm(3))


# --- Counters -----------------------------------------------------------------------------------------------------


def test_a_cumulative_mean_counts_meta_batches():
    """With momentum=None each move divides by the counter, so a counter of episodes would depend on the chunk."""
    net = nn.BatchNorm1d(2, momentum=None).double()
    encoder = Encoder(net).train()
    x = torch.randn(3, 4, 6, 2, dtype=torch.float64)
    for episodes in x:
        encoder(episodes)
    assert int(net.num_batches_tracked) == 3
    torch.testing.assert_close(net.running_var, x.var(2).mean((0, 1)))


def test_constant_buffers_keep_their_bits():
    """They are not running statistics, and a mean of three equal numbers need not be that number."""
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Tanh())
    net.register_buffer("scale", torch.tensor([0.1, 1 / 3, float("inf")]))
    before = net.scale.clone()
    Encoder(net).train()(torch.randn(3, 4, 3))
    assert torch.equal(net.scale, before)


def test_an_inner_loop_leaves_counters_alone():
    """MAML's running statistics move by the queries alone, so only these count."""
    network = Network(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, momentum=None)).double(), "inductive").train()
    state = network.state()
    state = kshot.inner.State(state.parameters, {n: b.clone() for n, b in state.buffers.items()})
    x = torch.randn(2, 6, 2, dtype=torch.float64)
    for _ in range(3):
        network.on_support(state, x[0])
    assert int(state.buffers["1.num_batches_tracked"]) == 0
    network.on_query(state, x[1], x[0])
    torch.testing.assert_close(state.buffers["1.running_var"], network.net[0](x[1]).var(0))


# --- Learners -----------------------------------------------------------------------------------------------------


class Means(nn.Module):
    """Prototypical networks with a batch norm of their own, which kshot.nn never sees."""

    def __init__(self, track):
        super().__init__()
        self.needs = Needs()
        self.norm = nn.BatchNorm1d(4, track_running_stats=track)

    def logits(self, support, x):
        z, zs = (self.norm(t.flatten(0, 1)).view(t.shape) for t in (x, support.x))
        return prototypical_logits(z, class_means(zs, support.y, support.way))

    def meta_gradient(self, episodes):
        return {"loss": 0 * sum(p.sum() for p in self.parameters()).detach()}

    def adapt(self, support):
        return lambda x: self.logits(support, x)


def test_a_learner_is_tried_before_its_first_evaluation():
    """It says that its queries are independent; the result would repeat it."""
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0)).numpy()
    pool = Pool.of(x, [i // 5 for i in range(40)])
    tasks = ClassificationTasks({"train": pool, "test": pool}, way=3, shot=1, query=2)
    assert Engine(Means(True), tasks, hooks=()).evaluate(5).queries == "independent"
    state = torch.get_rng_state()
    with pytest.raises(MisfitError, match="Means: got predictions for a query that depend on the other queries"):
        Engine(Means(False), tasks, hooks=()).evaluate(5)
    assert torch.equal(state, torch.get_rng_state())


def test_statistics_of_one_support_are_those_of_the_layer():
    """The buffers that ``with_statistics_of`` returns are the net's, not a mixture with earlier ones."""
    net = nn.BatchNorm1d(2, momentum=None)
    net(torch.randn(5, 2) + 9)
    x = torch.randn(6, 2)
    torch.testing.assert_close(with_statistics_of(net, x)[1]["running_mean"], x.mean(0))


def test_trying_a_net_or_a_learner_seeds_no_other_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """``torch.manual_seed`` would reseed every accelerator, and nothing would restore the others."""

    class Centred(nn.Module):
        def forward(self, x):
            return x - x.mean(0)

    def refused(seed: int) -> None:
        raise AssertionError("all devices were seeded")

    tasks = sample_tasks.classification()
    learner = sample_learner.NearestMean(tasks.spec)
    state = torch.get_rng_state()
    monkeypatch.setattr(torch, "manual_seed", refused)
    assert depends_on_batch(Centred(), (3,), training=False)
    check_queries(learner, tasks.sample("test", [0]), "classification")
    assert torch.equal(state, torch.get_rng_state())


class Tokens(nn.Module):
    """Takes its inputs for indices, so it raises for negative ones; centres its outputs in training."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 8)

    def forward(self, x):
        z = self.table(x.long()).mean(1)
        return z - z.mean(0) if self.training else z


def test_a_net_that_takes_no_negative_inputs_is_tried_with_others():
    """Normal numbers make it raise, which says nothing."""
    assert depends_on_batch(Tokens(), (4,), training=True)
    assert not depends_on_batch(Tokens(), (4,), training=False)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
@pytest.mark.parametrize("wrapper", [Encoder, Network])
def test_a_net_of_torch_jit_is_refused(wrapper):
    """Its batch norm is of no class that can be found, and it can't be called with other parameters."""
    net = torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
    with pytest.raises(OptionError, match=r"got a net with a module of torch\.jit"):
        wrapper(nn.Sequential(net), input_shape=(3,))


class Returning(nn.Linear):
    """Returns what a function makes of the outputs of a linear layer."""

    def __init__(self, change):
        super().__init__(3, 2)
        self.change = change

    def forward(self, x):
        return self.change(super().forward(x))


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda z: (z, z), "tuple"),
        (lambda z: {"logits": z}, "dict"),
        (lambda z: z.mean(), r"a tensor of shape \(\)"),
        (lambda z: z[:1], r"a tensor of shape \(1, 2\)"),
        (lambda z: z[:, 0], r"a tensor of shape \(10,\)"),
    ],
)
def test_what_is_no_embedding_for_each_input_is_refused(change, got):
    """Libraries return tuples and mappings; the error names the net and not a line of torch."""
    encoder = Encoder(Returning(change), input_shape=(3,)).eval()
    message = rf"Encoder: got a net that returns {got} for 10 inputs, expected one tensor .* \[10, D, \.\.\.\]"
    for embed in (encoder, lambda x: encoder.given(x)):
        with pytest.raises(MisfitError, match=message):
            embed(torch.zeros(2, 5, 3))
    if not got.endswith("(10,\\)"):
        network = Network(Returning(change), input_shape=(3,))
        for compute in (
            lambda x: network.on_support(network.state(), x),
            lambda x: network.on_query(network.state(), x, x),
        ):
            with pytest.raises(MisfitError, match=rf"Network: got a net that returns {got} for 10 inputs"):
                compute(torch.zeros(10, 3))
