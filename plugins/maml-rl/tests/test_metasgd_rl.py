"""Meta-SGD for policies: its gradients by enumeration, and MAML as the case of equal step sizes."""

import pytest
import torch

import kshot
from kshot import Engine, TaskSpec
from kshot.errors import OptionError
from kshot.inner import State
from kshot.testing import sample_tasks
from kshot_maml_rl import MetaSGDRL, trust_region
from kshot_maml_rl.steps import Batch

CHANCES = torch.tensor([0.3, 0.8], dtype=torch.float64)
BANDIT = TaskSpec(kind="control", input_shape=(1,), way=2, shot=4, query=4, rollouts=8)


def in_float64(episode):
    return kshot.episode.map_tensors(lambda t: t.double() if t.is_floating_point() else t, episode)


def learner_of(**options):
    return kshot.learner("metasgd-rl", BANDIT, hidden=(3,), **{"initial_alpha": (0.5, 2.0), **options}).double()


def probabilities(parameters):
    """Compute the probabilities of both arms by a net that is written out; the observation is always 1."""
    h = torch.tanh(parameters["weight0"][:, 0] + parameters["bias0"])
    return (parameters["weight1"] @ h + parameters["bias1"]).softmax(-1)


def enumerated(learner, parameters):
    """Return the data of both pulls, with advantages such that the mean over them is the exact return."""
    chance = probabilities(parameters).detach()
    ones = torch.ones(2, 1, dtype=torch.float64)
    # Arm a is played with the probability pi(a) instead of 1 / 2, and pays CHANCES[a].
    advantages = (2 * chance * CHANCES)[:, None]
    return Batch(ones[..., None], torch.tensor([[0], [1]]), advantages, ones, chance.log()[:, None])


def named(learner, prefix=""):
    return {n: learner.net[prefix + n].detach().clone() for n in learner.theta().parameters}


@pytest.mark.parametrize("rates", ["element", "tensor"])
@pytest.mark.parametrize("steps", [1, 2])
def test_both_meta_gradients_are_those_of_the_exact_objective(rates, steps):
    """They equal differences of the enumerated J(theta + alpha o grad J(theta)), by theta and by alpha."""
    options = {"rates": rates, "inner_steps": steps, "outer": "reinforce", "later_share": 0.7}
    learner = learner_of(**options)
    theta, alpha = named(learner), named(learner, "alpha_")
    assert alpha["weight0"].shape == (theta["weight0"].shape if rates == "element" else ())

    def update(theta, alpha, k):
        tied = {n: p.detach().clone().requires_grad_() for n, p in theta.items()}
        slopes = torch.autograd.grad(probabilities(tied) @ CHANCES, list(tied.values()))
        share = 0.7 if k else 1.0
        return {n: theta[n] + share * alpha[n] * g for n, g in zip(tied, slopes, strict=True)}

    def objective(theta, alpha):
        for k in range(steps):
            theta = update(theta, alpha, k)
        return float(probabilities(theta) @ CHANCES)

    states = [theta]
    for k in range(steps):
        states.append(update(states[-1], alpha, k))
    batches = [enumerated(learner, state) for state in states]
    stacked = kshot.episode.map_tensors(lambda t: t[None], batches)
    learner.lift.mean_gradient(learner.task, learner.theta(), stacked[:-1], stacked[-1])
    generator, h = torch.Generator().manual_seed(1), 1e-5
    for changed, prefix in ((theta, ""), (alpha, "alpha_")):
        for _ in range(3):
            along = {n: torch.randn(p.shape, generator=generator, dtype=torch.float64) for n, p in changed.items()}
            ends = [{n: p + sign * h * along[n] for n, p in changed.items()} for sign in (1, -1)]
            values = [objective(theta, end) if prefix else objective(end, alpha) for end in ends]
            slope = (values[0] - values[1]) / (2 * h)
            claimed = -sum(float((learner.net[prefix + n].grad * along[n]).sum()) for n in changed)
            assert abs(slope) > 1e-5
            assert claimed == pytest.approx(slope, rel=1e-5)


def test_alphas_gradient_is_the_product_of_both_gradients():
    """After one update it is -grad L_query(theta') o grad L_support(theta), also if inner gradients are constants."""
    learner = learner_of(outer="reinforce", order="first")
    first = enumerated(learner, named(learner))
    after, _ = learner.adapted(learner.theta().detach(), [first])
    last = enumerated(learner, after.parameters)
    stacked = kshot.episode.map_tensors(lambda t: t[None], [first, last])
    learner.lift.mean_gradient(learner.task, learner.theta(), stacked[:1], stacked[1])

    def slopes(theta, batch):
        tied = {n: p.detach().clone().requires_grad_() for n, p in theta.items()}
        return torch.autograd.grad(learner.inner_loss(State(tied, {}), batch), list(tied.values()))

    for name, before, then in zip(
        learner.theta().parameters, slopes(named(learner), first), slopes(after.parameters, last), strict=True
    ):
        assert torch.allclose(learner.net["alpha_" + name].grad, -before * then, atol=1e-12)


@pytest.mark.parametrize("outer", ["ppo", "trpo"])
@pytest.mark.parametrize("adapt_std", [True, False])
def test_with_equal_step_sizes_policies_are_those_of_maml(outer, adapt_std):
    """Adapted policies are equal, and for a sum over tasks the gradient of theta too."""
    t = sample_tasks.Points(shot=6, query=6)
    episodes = in_float64(t.sample("train", [0, 1]))
    shared = {"hidden": (5,), "outer": outer, "inner_steps": 2, "adapt_std": adapt_std, "seed": 3}
    maml = kshot.learner("maml-rl", t.spec, inner_lr=0.3, **shared).double()
    meta = kshot.learner("metasgd-rl", t.spec, initial_alpha=(0.3, 0.3), **shared).double()
    for name, p in maml.net.items():
        assert torch.equal(meta.net[name], p)
    x = torch.zeros(2, 3, 2, dtype=torch.float64)
    assert torch.allclose(meta.adapt(episodes.support)(x), maml.adapt(episodes.support)(x), atol=1e-7)
    assert ("alpha_log_std" in meta.net) == adapt_std
    for learner in (maml, meta):
        for _ in learner.meta_gradient(episodes):
            pass
    norm = torch.cat([p.grad.flatten() for n, p in meta.net.items() if n.startswith("alpha_")]).norm()
    assert norm > 1e-5
    if outer == "ppo":
        for name, p in maml.net.items():
            assert torch.allclose(meta.net[name].grad, p.grad, rtol=1e-4, atol=1e-8)


def test_the_trust_region_is_one_of_theta_and_alpha(monkeypatch):
    """H equals the dense Hessian of the mean divergence in float64, for a relu policy from the kink of every unit."""
    t = sample_tasks.Points(shot=4, query=4)
    options = {"hidden": (3,), "activation": "relu", "outer": "trpo", "initial_alpha": (0.2, 0.5)}
    learner = kshot.learner("metasgd-rl", t.spec, **options).double()
    episodes = in_float64(t.sample("train", [0]))
    states, batches, judged, _ = learner.played(episodes)
    judged.observations[:, :, 0] = 0
    caught = {}

    def no_step(gradient, product, judge, *, radius):
        caught["product"] = product
        return torch.zeros_like(gradient)

    monkeypatch.setattr(trust_region, "step", no_step)
    trust_region.outer_step(learner, batches, judged, states[-1], radius=0.01)
    start = torch.cat([p.detach().flatten() for p in learner.net.values()])
    first, last = (kshot.episode.one_task(batch, 0) for batch in (batches[0], judged))
    old = {n: p[0] for n, p in states[-1].parameters.items()}

    def divergence(values):
        pieces = values.split([p.numel() for p in learner.net.values()])
        cut = {n: v.view_as(p) for (n, p), v in zip(learner.net.items(), pieces, strict=True)}
        after, _ = learner.adapted(learner.theta(cut), [first])
        return learner.family.divergence(old, after.parameters, last.observations).mean()

    hessian = torch.autograd.functional.hessian(divergence, start)
    ours = torch.stack([caught["product"](row) for row in torch.eye(len(start), dtype=torch.float64)])
    ours = ours - trust_region.DAMPING * torch.eye(len(start), dtype=torch.float64)
    assert hessian.norm() > 1e-2
    assert torch.allclose(ours, hessian, rtol=1e-6, atol=1e-6)
    by_alpha = [i for n, p in learner.net.items() for i in [n.startswith("alpha_")] * p.numel()]
    assert hessian[by_alpha].norm() > 1e-3


def test_step_sizes_are_drawn_from_their_range_by_the_seed_and_learned():
    """By default all are the rate of maml-rl."""
    spec = sample_tasks.Points().spec
    drawn = kshot.learner("metasgd-rl", spec, initial_alpha=(0.005, 0.1), seed=1).net["alpha_weight1"].detach()
    assert 0.005 <= float(drawn.min()) < 0.01
    assert 0.09 < float(drawn.max()) <= 0.1
    again = kshot.learner("metasgd-rl", spec, initial_alpha=(0.005, 0.1), seed=1).net["alpha_weight1"].detach()
    assert torch.equal(drawn, again)
    t = sample_tasks.Points()
    learner = kshot.learner("metasgd-rl", t.spec, hidden=(4,))
    assert bool((learner.net["alpha_bias0"] == 0.1).all())
    Engine(learner, t, meta_batch=4).train(2)
    assert bool((learner.net["alpha_bias1"] != 0.1).any())


def test_bad_options_are_refused():
    """The message has the name of the learner, the value, and what was expected."""
    spec = sample_tasks.Points().spec
    with pytest.raises(OptionError, match=r"metasgd-rl: got initial_alpha \(0.2, 0.1\), expected two finite numbers"):
        MetaSGDRL(spec, initial_alpha=(0.2, 0.1))
    with pytest.raises(OptionError, match="metasgd-rl: got initial_alpha"):
        MetaSGDRL(spec, initial_alpha=(0.0, float("nan")))
    with pytest.raises(OptionError, match="metasgd-rl: got rates 'row', expected 'element' or 'tensor'"):
        MetaSGDRL(spec, rates="row")
    with pytest.raises(OptionError, match="metasgd-rl: got inner_steps -1"):
        MetaSGDRL(spec, inner_steps=-1)
    with pytest.raises(OptionError, match="later_share"):
        kshot.learner("metasgd-rl", spec, later_share=-1.0)
    t = sample_tasks.Points()
    with pytest.raises(OptionError, match="metasgd-rl: got outer 'trpo'"):
        MetaSGDRL(t.spec, outer="trpo").task_losses(t.sample("train", [0]))


def test_it_is_above_maml_after_one_update():
    """With a first rate that is too small, learned step sizes gain what MAML's can't."""
    t = sample_tasks.Points(shot=20, query=20)
    scores = {}
    for name, options in (("maml-rl", {"inner_lr": 0.02}), ("metasgd-rl", {"initial_alpha": (0.02, 0.02)})):
        learner = kshot.learner(name, t.spec, hidden=(20,), seed=0, **options)
        engine = Engine(learner, t, meta_batch=20, optimizer={"lr": 1e-2})
        engine.train(30)
        scores[name] = engine.evaluate(100).mean
    assert scores["metasgd-rl"] > scores["maml-rl"] + 0.1


def test_the_order_is_that_of_the_option():
    """First-order gradients do not go through the inner step."""
    assert not learner_of(order="first").second_order
    assert learner_of(order="second").second_order
