"""``kshot_mil``: the paper's equations against second implementations, and that a demonstration adapts the policy."""

import copy

import attrs
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kshot
from kshot import Engine, Episode, Support, TaskSpec
from kshot.episode import map_tensors
from kshot.errors import DataError, MisfitError, OptionError, TrainingError
from kshot.inner import State
from kshot.testing import sample_tasks
from kshot_mil import MIL
from kshot_mil.policy import Policy, biased

TASKS = sample_tasks.Demonstrations(shot=2)
LR = 0.1


def in_float64(episode: Episode) -> Episode:
    return map_tensors(lambda t: t.double() if t.is_floating_point() else t, episode)


def smooth(spec: TaskSpec = TASKS.spec, *, cls=MIL, **options):
    """Return a float64 learner whose network has derivatives everywhere."""
    torch.manual_seed(1)
    outputs = spec.way or spec.target_shape[0]
    net = nn.Sequential(nn.Linear(spec.input_shape[0], 9), nn.Tanh(), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, outputs))
    return cls(spec, network=net, inner_lr=LR, **options).double()


def gradient_of(learner, episodes: Episode) -> dict[str, Tensor]:
    learner.zero_grad()
    learner.meta_gradient(episodes)
    return {name: p.grad.clone() for name, p in learner.named_parameters()}


def output(theta: dict[str, Tensor], x: Tensor, head: str) -> Tensor:
    """Compute the network of ``smooth`` in plain tensor operations, with the bias transformation and a choice of head.

    Names are those of the learner's parameters, shortened.
    """
    bias = theta["0.bias"] + (theta["z_weight"] @ theta["z"] if "z" in theta else 0)
    h = torch.tanh(x @ theta["0.weight"].T + bias)
    h = torch.tanh(h @ theta["2.weight"].T + theta["2.bias"])
    return h @ theta[f"{head}.weight"].T + theta[f"{head}.bias"]


def naive(learner: MIL, episodes: Episode, steps: int, inner_head: str, observed: bool) -> dict[str, Tensor]:
    """Compute the meta-gradient by a loop over tasks with torch.autograd.grad, from the paper's equations."""
    short = lambda name: name.removeprefix("policy.").removeprefix("net.")  # noqa: E731
    first = {short(n): p.detach().clone().requires_grad_() for n, p in learner.policy.named_parameters()}
    classes = learner.kind == "classification"
    total = torch.zeros((), dtype=torch.float64)
    for b in range(episodes.size):
        theta = dict(first)
        for _ in range(steps):
            actions = output(theta, episodes.support.x[b], inner_head)
            if observed:
                inner = actions.pow(2).sum() / actions.numel()
            elif classes:
                inner = -torch.log_softmax(actions, -1)[range(len(actions)), episodes.support.y[b]].mean()
            else:
                inner = (actions - episodes.support.y[b]).pow(2).sum() / actions.numel()
            gradients = torch.autograd.grad(inner, list(theta.values()), create_graph=True, allow_unused=True)
            theta = {n: p if g is None else p - LR * g for (n, p), g in zip(theta.items(), gradients, strict=True)}
        actions, y = output(theta, episodes.query.x[b], "4"), episodes.query.y[b]
        total = total + (F.cross_entropy(actions, y) if classes else (actions - y).pow(2).mean()) / episodes.size
    gradients = torch.autograd.grad(total, list(first.values()))
    names = {f"net.net.{n}" if n[0].isdigit() else f"net.{n}": n for n in first}
    found = dict(zip(first, gradients, strict=True))
    return {f"policy.{name.removeprefix('net.')}": found[n] for name, n in names.items()}


@pytest.mark.parametrize("strategy", ["vmap", "loop"])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(
    "options",
    [{}, {"two_heads": True}, {"bias": 4}, {"two_heads": True, "bias": 4}, {"demonstrations": "observations"}],
)
def test_the_meta_gradient_is_that_of_a_naive_loop(options, steps, strategy):
    """All options, in float64, with actions that are numbers; z is not 0, so that each part has a gradient."""
    learner = smooth(inner_steps=steps, strategy=strategy, **options)
    disturb(learner)
    episodes = in_float64(TASKS.sample("train", range(3)))
    observed = "demonstrations" in options
    expected = naive(learner, episodes, steps, "inner_head" if observed or options.get("two_heads") else "4", observed)
    actual = gradient_of(learner, episodes)
    assert set(actual) == set(expected)
    for name in expected:
        assert torch.allclose(actual[name], expected[name], atol=1e-10, rtol=1e-8), name
        assert expected[name].abs().max() > 1e-6, name


def disturb(learner: MIL) -> None:
    """Move all parameters a little, so that z is not 0 and the two heads differ."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in learner.parameters():
            p += 0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype)


@pytest.mark.parametrize("options", [{}, {"two_heads": True}, {"bias": 4}, {"demonstrations": "observations"}])
def test_the_adapted_policy_is_that_of_a_naive_loop(options):
    """It acts with its own head and with the bias transformation, after as many steps as asked for."""
    learner = smooth(inner_steps=1, test_steps=2, **options)
    disturb(learner)
    e = in_float64(TASKS.sample("test", range(2)))
    first = {n.removeprefix("net."): p.detach() for n, p in learner.policy.named_parameters()}
    observed = "demonstrations" in options
    head = "inner_head" if observed or "two_heads" in options else "4"
    for steps, policy in ((2, learner.adapt(e.support)), (1, learner.adapt(e.support, steps=1))):
        played = policy(e.query.x)
        for b in range(2):
            theta = {n: p.clone().requires_grad_() for n, p in first.items()}
            for _ in range(steps):
                actions = output(theta, e.support.x[b], head)
                inner = actions.pow(2).mean() if observed else (actions - e.support.y[b]).pow(2).mean()
                gradients = torch.autograd.grad(inner, list(theta.values()), allow_unused=True)
                moved = zip(theta.items(), gradients, strict=True)
                theta = {n: (p if g is None else p - LR * g).detach().requires_grad_() for (n, p), g in moved}
            assert torch.allclose(played[b], output(theta, e.query.x[b], "4"), atol=1e-10)


def test_a_trace_has_the_rollouts_after_each_number_of_steps():
    """They are those that the query's environment plays; arrays for a picture are those of the environment."""
    for discrete in (False, True):
        tasks = sample_tasks.Demonstrations(discrete=discrete, shot=2)
        learner = MIL(tasks.spec, hidden=(8,), test_steps=2, inner_lr=1.0)
        e = tasks.sample("test", range(3))
        traced = learner.trace(e)
        for k in range(3):
            adapted = MIL(tasks.spec, hidden=(8,), test_steps=k, inner_lr=1.0)
            adapted.load_state_dict(learner.state_dict())
            policy = adapted.adapt(e.support)
            played = e.query.source.rollout(lambda x, p=policy, d=discrete: p(x).argmax(-1) if d else p(x))
            assert torch.equal(traced["observations"][:, k], played.observations)
            assert torch.equal(traced["actions"][:, k], played.actions)
            assert torch.equal(traced["rewards"][:, k], played.rewards)
        assert not torch.equal(traced["rewards"][:, 0], traced["rewards"][:, 2])
        assert "paths" not in traced
    with pytest.raises(DataError, match="got an episode without an environment"):
        learner.trace(attrs.evolve(e, query=attrs.evolve(e.query, source=None)))


def test_a_trace_of_reach2d_shows_its_demonstrations():
    """The environment says what a picture shows: paths of the rollouts and of each demonstration, and the target."""
    pytest.importorskip("kshot_reach2d")
    tasks = kshot.tasks("reach2d", demonstrations=2, horizon=7, trajectories=4)
    learner = MIL(tasks.spec, hidden=(8,))
    e = tasks.sample("test", range(3))
    traced = learner.trace(e)
    assert tuple(traced["paths"].shape) == (3, 2, 4, 7, 2)
    assert torch.equal(traced["targets"][:, 1], e.query.source.scene().target)
    shown = traced["shown_paths"]
    assert tuple(shown.shape) == (3, 2, 7, 2)
    assert torch.allclose(shown[:, 1, 1:], 0.1 * e.support.y[:, 7:-1].cumsum(1), atol=1e-5)
    # A support of other lengths has no picture of its demonstrations.
    part = attrs.evolve(e, support=attrs.evolve(e.support, x=e.support.x[:, :10], y=e.support.y[:, :10]))
    assert "shown_paths" not in learner.trace(part)
    seen = kshot.tasks("reach2d", support="observations", horizon=7)
    observer = MIL(seen.spec, hidden=(8,), demonstrations="observations")
    assert tuple(observer.trace(seen.sample("test", [0]))["shown_paths"].shape) == (1, 1, 7, 2)


def test_actions_that_are_classes_have_the_cross_entropy():
    """The meta-gradient for discrete actions is that of a naive loop, and some actions may not be demonstrated."""
    tasks = sample_tasks.Demonstrations(discrete=True)
    learner = smooth(tasks.spec, inner_steps=2, two_heads=True)
    disturb(learner)
    episodes = in_float64(tasks.sample("train", range(3)))
    assert all(len(y.unique()) == 1 for y in episodes.support.y)
    expected = naive(learner, episodes, 2, "inner_head", False)
    for name, gradient in gradient_of(learner, episodes).items():
        assert torch.allclose(gradient, expected[name], atol=1e-10), name


@pytest.mark.parametrize("order", ["second", "first"])
def test_without_options_it_is_maml(order):
    """The meta-gradient, the losses and the predictions are those of MAML, to the bit in float64."""
    maml = pytest.importorskip("kshot_maml").MAML
    options = {"inner_steps": 2, "test_steps": 3, "order": order, "strategy": "loop"}
    mine, theirs = smooth(**options), smooth(cls=maml, **options)
    e = in_float64(TASKS.sample("train", range(3)))
    assert mine.needs.exact_gradient == theirs.needs.exact_gradient == (order == "second")
    for a, b in zip(gradient_of(mine, e).values(), gradient_of(theirs, e).values(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(mine.adapt(e.support)(e.query.x), theirs.adapt(e.support)(e.query.x))
    for a, b in zip(mine.task_losses(e)[1].values(), theirs.task_losses(e)[1].values(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(mine.task_losses(e)[0], theirs.task_losses(e)[0])


def test_a_bias_transformation_changes_the_bias_as_its_formula_says():
    """One inner step moves the bias to b - a g + (W2 - a g z^T)(z - a W2^T g), where g = dL/db."""
    learner = smooth(bias=4)
    disturb(learner)
    e = in_float64(TASKS.sample("train", [0]))
    theta = {n: p.detach() for n, p in learner.policy.named_parameters()}
    short = {n.removeprefix("net."): p for n, p in theta.items()}
    b = (short["0.bias"]).clone().requires_grad_()
    inner = F.mse_loss(output({**short, "0.bias": b}, e.support.x[0], "4"), e.support.y[0])
    (g,) = torch.autograd.grad(inner, b)
    expected = biased(short["0.bias"], short["z"], short["z_weight"], g, LR)
    support = kshot.episode.one_task(learner.demonstrated(e.support), 0)
    state, _ = learner.adapted(learner.net.state(), support, 1)
    actual = learner.policy.acting(state).parameters["net.0.bias"]
    assert torch.allclose(actual, expected, atol=1e-12)
    # Without z, the bias would only follow its own gradient.
    assert not torch.allclose(actual, short["0.bias"] - LR * g + short["z_weight"] @ short["z"], atol=1e-4)


def test_a_bias_transformation_starts_as_the_net():
    """z is 0 at first, and W2 is not, so that the transformation can be learned."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 2))
    policy = Policy(net, (2,), bias=3)
    x = torch.randn(4, 2)
    state = policy.acting(State.of(policy))
    assert torch.equal(state.call(policy, x), net(x))
    assert policy.first == "net.1.bias"
    assert policy.z.abs().max() == 0
    assert policy.z_weight.abs().min() > 0
    assert policy.z_weight.abs().max() <= 3**-0.5


def test_the_inner_loop_changes_its_own_head_alone():
    """With two heads the acting head stays as it is in the inner loop, and the body and the inner head move."""
    learner = smooth(two_heads=True)
    disturb(learner)
    e = in_float64(TASKS.sample("train", range(2)))
    moved = learner.task_losses(e)[1]
    for name, away in moved.items():
        assert (away.abs().max() == 0) == name.startswith("net.4."), name
    # The inner head does not act: predictions do not depend on it except through the inner loop.
    still = smooth(two_heads=True, test_steps=0)
    before = still.adapt(e.support)(e.query.x)
    with torch.no_grad():
        still.policy.inner_head.weight.add_(1)
    assert torch.equal(still.adapt(e.support)(e.query.x), before)
    assert not torch.equal(still.policy.inner_head.weight, still.policy.net[4].weight)


@pytest.mark.parametrize("strategy", ["vmap", "loop"])
def test_observations_alone_adapt_without_the_actions(strategy):
    """Demonstrated actions change nothing, and observations may be unlabelled examples of the support."""
    learner = smooth(demonstrations="observations", strategy=strategy)
    disturb(learner)
    assert learner.needs.unlabelled == "optional"
    e = in_float64(TASKS.sample("test", range(2)))
    adapted = learner.adapt(e.support)(e.query.x)
    assert not torch.allclose(adapted, smooth_unadapted(learner, e))
    hidden = attrs.evolve(e.support, y=torch.full_like(e.support.y, torch.nan))
    assert torch.equal(learner.adapt(hidden)(e.query.x), adapted)
    unlabelled = attrs.evolve(e.support, x=e.support.x[:, :0], y=e.support.y[:, :0], unlabelled=e.support.x)
    assert torch.equal(learner.adapt(unlabelled)(e.query.x), adapted)
    both = attrs.evolve(e.support, x=e.support.x[:, :2], y=e.support.y[:, :2], unlabelled=e.support.x[:, 2:])
    assert torch.equal(learner.adapt(both)(e.query.x), adapted)
    whole = gradient_of(learner, e)
    for name, gradient in gradient_of(learner, attrs.evolve(e, support=unlabelled)).items():
        assert torch.allclose(gradient, whole[name], atol=1e-12)


def smooth_unadapted(learner: MIL, e: Episode) -> Tensor:
    return torch.stack([learner.policy(x) for x in e.query.x])


def test_a_support_without_actions_is_refused_by_a_policy_that_needs_them():
    """The message names the option."""
    e = TASKS.sample("test", range(2))
    empty = attrs.evolve(e.support, x=e.support.x[:, :0], y=e.support.y[:, :0], unlabelled=e.support.x)
    learner = MIL(TASKS.spec)
    with pytest.raises(DataError, match=r"support without actions, .* by demonstrations='observations'"):
        learner.adapt(empty)
    with pytest.raises(DataError, match="support without actions"):
        learner.meta_gradient(attrs.evolve(e, support=empty))
    with pytest.raises(DataError, match="support without observations"):
        MIL(TASKS.spec, demonstrations="observations").adapt(attrs.evolve(empty, unlabelled=None))


def test_bad_demonstrations_are_refused():
    """Actions of another length, or of another environment, and NaN have a message each."""
    learner = MIL(TASKS.spec, hidden=(8,))
    x = torch.zeros(1, 6, 2)
    with pytest.raises(DataError, match=r"actions of shape \(6, 3\) beside the policy's, of shape \(6, 2\)"):
        learner.adapt(Support(x, torch.zeros(1, 6, 3)))
    with pytest.raises(DataError, match=r"actions of shape \(5, 2\)"):
        learner.adapt(Support(x, torch.zeros(1, 5, 2)))
    with pytest.raises(DataError, match=r"got inputs of shape \(6, 3\), expected \[n, 2\]"):
        learner.adapt(Support(torch.zeros(1, 6, 3), torch.zeros(1, 6, 2)))
    with pytest.raises(TrainingError, match="mil: got inner loss nan of task 0 before step 1"):
        learner.adapt(Support(x, torch.full((1, 6, 2), torch.nan)))
    discrete = MIL(sample_tasks.Demonstrations(discrete=True).spec, hidden=(8,))
    with pytest.raises(DataError, match=r"actions of shape \(3, 1\) beside"):
        discrete.adapt(Support(torch.zeros(1, 3, 1), torch.zeros(1, 3, 1, dtype=torch.int64), way=2))


def test_bad_options_are_refused():
    """The message gives what was given and what was expected."""
    with pytest.raises(OptionError, match="inner_steps: got -1"):
        MIL(TASKS.spec, inner_steps=-1)
    with pytest.raises(OptionError, match="got bias 3 for a network without a linear layer whose bias is trained"):
        MIL(TASKS.spec, network=nn.Sequential(nn.Linear(2, 2, bias=False)), bias=3)
    with pytest.raises(MisfitError, match="control"):
        kshot.check(MIL(TASKS.spec), sample_tasks.Points().spec)


def test_adapting_changes_nothing_and_drops_nothing():
    """Dropout is for training alone, and the learner keeps its parameters and its mode."""
    net = nn.Sequential(nn.Linear(2, 50), nn.Dropout(0.5), nn.Linear(50, 2))
    learner = MIL(TASKS.spec, network=net, strategy="loop", bias=2, two_heads=True).train()
    before = copy.deepcopy(learner.state_dict())
    e = TASKS.sample("test", range(2))
    first, second = (learner.adapt(e.support)(e.query.x) for _ in range(2))
    assert torch.equal(first, second)
    assert learner.policy.net.training
    assert all(torch.equal(t, before[n]) for n, t in learner.state_dict().items())


def test_it_learns_to_follow_a_demonstration():
    """After a short training one demonstration brings the return far above that without adaptation."""
    learner = kshot.learner("mil", TASKS.spec, seed=0, hidden=(40, 40), inner_lr=0.1, bias=5)
    engine = Engine(learner, TASKS, meta_batch=10)
    engine.train(300)
    after = engine.evaluate(200)
    before = engine.evaluate(200, learner_options={"test_steps": 0})
    assert list(after.scores) == ["mse", "return"]
    assert after.means("return") > before.means("return") + 1.5, (after.means("return"), before.means("return"))
