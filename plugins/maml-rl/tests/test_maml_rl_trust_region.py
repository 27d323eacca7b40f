"""``kshot_maml_rl.trust_region``: known answers for each function, and that the step stays in the region."""

import pytest
import torch

import kshot
from kshot import Engine, TaskSpec
from kshot.errors import OptionError
from kshot.inner import State
from kshot.testing import sample_tasks
from kshot_maml_rl import MamlRL, trust_region


def in_float64(episode):
    return kshot.episode.map_tensors(lambda t: t.double() if t.is_floating_point() else t, episode)


def matrix(n=6):
    a = torch.randn(n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return a @ a.T + torch.eye(n, dtype=torch.float64)


def test_conjugate_gradients_solve_in_as_many_steps_as_there_are_dimensions():
    """The solution equals that of a direct solver."""
    a, b = matrix(), torch.arange(6, dtype=torch.float64)
    assert torch.allclose(trust_region.conjugate_gradient(lambda v: a @ v, b), torch.linalg.solve(a, b), atol=1e-8)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("tasks", [sample_tasks.Points, sample_tasks.Corridors])
@pytest.mark.parametrize(
    "options", [{}, {"inner_steps": 2, "adapt_std": False}, {"strategy": "loop"}, {"order": "first"}]
)
def test_products_with_the_hessian_are_torchs(tasks, activation, options, monkeypatch):
    """H v equals ``torch.autograd.functional.hvp`` of the mean divergence through the inner steps, in float64.

    With biases of zero and a start at the origin, every trajectory begins at the kink of every relu, of which
    differences of gradients would be wrong. Trajectories of the corridors end early, and count up to their end.
    """
    t = tasks(shot=6, query=6)
    learner = kshot.learner(
        "maml-rl", t.spec, hidden=(5, 4), activation=activation, inner_lr=0.4, outer="trpo", **options
    )
    learner.double()
    episodes = in_float64(t.sample("train", [0, 1]))
    states, batches, judged, _ = learner.played(episodes)
    judged.observations[:, :, 0] = 0
    caught = {}

    def no_step(gradient, product, judge, *, radius):
        caught["product"] = product
        return torch.zeros_like(gradient)

    monkeypatch.setattr(trust_region, "step", no_step)
    trust_region.outer_step(learner, batches, judged, states[-1], radius=0.01)
    start = torch.cat([p.detach().flatten() for p in learner.net.values()])

    def divergence(values):
        total = torch.zeros((), dtype=torch.float64)
        for b in range(2):
            pieces = values.split([p.numel() for p in learner.net.values()])
            named = {n: v.view_as(p) for (n, p), v in zip(learner.net.items(), pieces, strict=True)}
            after, _ = learner.adapted(learner.theta(named), [kshot.episode.one_task(batch, b) for batch in batches])
            old = {n: p[b] for n, p in {**states[-1].parameters, **states[-1].buffers}.items()}
            apart = learner.family.divergence(old, {**after.parameters, **after.buffers}, judged.observations[b])
            total = total + apart[judged.running[b] > 0].mean() / 2
        return total

    v = torch.randn(len(start), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    _, expected = torch.autograd.functional.hvp(divergence, start, v)
    assert expected.norm() > 1e-2
    assert torch.allclose(caught["product"](v), expected + trust_region.DAMPING * v, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_the_metrics_say_whether_a_step_was_taken(activation, monkeypatch):
    """``step_taken`` is 1 with the number of backtracks, or 0 after all of them, and then nothing moves."""
    t = sample_tasks.Points(shot=6, query=6)
    episodes = in_float64(t.sample("train", [0, 1]))
    learner = kshot.learner("maml-rl", t.spec, hidden=(5,), activation=activation, outer="trpo").double()
    (metrics,) = learner.meta_gradient(episodes)
    assert metrics["step_taken"] == 1
    assert 0 <= metrics["backtracks"] < 15
    assert torch.cat([p.grad.flatten() for p in learner.parameters()]).norm() > 1e-3
    search = trust_region.step

    def fails(gradient, product, judge, *, radius):
        """Search in a gain that falls with every step."""
        return search(gradient, product, lambda offset: (-judge(offset)[1], 0.0), radius=radius, backtracks=7)

    monkeypatch.setattr(trust_region, "step", fails)
    learner.zero_grad()
    (metrics,) = learner.meta_gradient(episodes)
    assert (metrics["step_taken"], metrics["backtracks"]) == (0, 6)
    assert not torch.cat([p.grad.flatten() for p in learner.parameters()]).any()


def test_a_quadratic_region_is_left_by_its_rim():
    """For gain g.x and divergence x.A.x / 2 the step is sqrt(2 delta / g.A^-1.g) A^-1 g, the best within the region."""
    a, g = matrix(), torch.arange(1, 7, dtype=torch.float64)
    judge = lambda x: (float(g @ x), float(x @ a @ x) / 2 * (1 - 1e-9))  # noqa: E731
    found = trust_region.step(g, lambda v: a @ v, judge, radius=0.02)
    natural = torch.linalg.solve(a, g)
    assert torch.allclose(found, (2 * 0.02 / (g @ natural)).sqrt() * natural, atol=1e-8)


def test_steps_that_fail_are_made_shorter_and_at_last_given_up():
    """The step is made shorter until the gain increases within the region, by 0.8 at most 14 times as in the paper."""
    a, g = torch.eye(2, dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)
    tried = []

    def judge(x):
        tried.append(float(x[0]))
        return (1.0, 0.5) if len(tried) < 3 else (1.0, 0.001) if len(tried) == 4 else (-1.0, 0.001)

    found = trust_region.step(g, lambda v: a @ v, judge, radius=0.02, shrink=0.5)
    assert tried == pytest.approx([0.2, 0.1, 0.05, 0.025])
    assert float(found[0]) == pytest.approx(0.025)
    trials = []
    trust_region.step(g, lambda v: a @ v, lambda x: (trials.append(float(x[0])) or -1.0, 0.0), radius=0.02)
    assert trials == pytest.approx([0.2 * 0.8**k for k in range(15)])
    never = trust_region.step(g, lambda v: a @ v, lambda x: (-1.0, 0.0), radius=0.02, backtracks=3)
    assert never.tolist() == [0, 0]
    assert trust_region.step(g, lambda v: -a @ v, judge, radius=0.02).tolist() == [0, 0]


@pytest.mark.parametrize("tasks", [sample_tasks.Points, sample_tasks.Corridors])
def test_the_divergence_is_torchs(tasks):
    """The divergence is right for normal and for categorical policies, in nats."""
    spec = tasks().spec
    learner = MamlRL(spec, hidden=(4,)).double()
    generator = torch.Generator().manual_seed(0)
    old, new = (
        {n: 0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64) for n, p in learner.net.items()}
        for _ in range(2)
    )
    x = torch.randn(3, 5, *spec.input_shape, generator=generator, dtype=torch.float64)

    def distribution(p):
        out = torch.tanh(x @ p["weight0"].T + p["bias0"]) @ p["weight1"].T + p["bias1"]
        if spec.way is not None:
            return torch.distributions.Categorical(logits=out)
        return torch.distributions.Independent(torch.distributions.Normal(out, p["log_std"].exp()), 1)

    expected = torch.distributions.kl_divergence(distribution(old), distribution(new))
    assert torch.allclose(learner.family.divergence(old, new, x), expected, atol=1e-12)


def test_the_step_is_the_natural_gradient_within_the_region(monkeypatch):
    """The step equals that of the dense, equally damped Fisher matrix by autograd, in float64 for one task."""
    monkeypatch.setattr(trust_region, "DAMPING", 1e-2)  # so that conjugate gradients amplify the rounding little
    t = sample_tasks.Points(shot=6, query=6)
    options = {"hidden": (3,), "inner_steps": 0, "initial_std": 1.0, "outer": "trpo", "radius": 0.01}
    learner = kshot.learner("maml-rl", t.spec, **options).double()
    episode = in_float64(t.sample("train", [0]))
    (metrics,) = learner.train().meta_gradient(episode)
    found = -torch.cat([p.grad.flatten() for p in learner.net.values()])
    states, _, _ = learner.play(episode.support, 0)
    judged = kshot.episode.one_task(
        learner.batch(states[0], episode.query.source.rollout(learner.policy(states[0]))), 0
    )
    sizes = [p.numel() for p in learner.net.values()]
    start = torch.cat([p.detach().flatten() for p in learner.net.values()])

    def named(values):
        parts = values.split(sizes)
        return {n: v.view_as(p) for (n, p), v in zip(learner.net.items(), parts, strict=True)}

    def gain(values):
        ratio = learner.family.log_probability(State(named(values), {}), judged.observations, judged.actions)
        return ((ratio - judged.log_probability).exp() * judged.advantages).mean()

    def divergence(values):
        return learner.family.divergence(named(start), named(values), judged.observations).mean()

    g = torch.func.grad(gain)(start)
    damping = trust_region.DAMPING * torch.eye(len(start), dtype=torch.float64)
    fisher = torch.autograd.functional.hessian(divergence, start) + damping
    # Ten conjugate gradient steps do not solve for all parameters. Take the same ten with the dense matrix.
    direction = trust_region.conjugate_gradient(lambda v: fisher @ v, g)
    whole = (2 * 0.01 / (direction @ fisher @ direction)).sqrt() * direction
    shorter = whole * trust_region.SHRINK ** float(metrics["backtracks"])
    assert torch.allclose(found, shorter, atol=1e-4 * float(found.norm()))
    assert float(divergence(start + found)) <= 0.01
    assert float(gain(start + found)) > float(gain(start))
    assert float(metrics["loss"]) == pytest.approx(-float(gain(start)), abs=1e-10)


def test_it_is_trained_by_plain_steps_of_whole_meta_batches():
    """``.grad`` is minus one step for all tasks together, and the mean gain on the rollouts increases."""
    t = sample_tasks.Points()
    learner = kshot.learner("maml-rl", t.spec, hidden=(8,), outer="trpo")
    assert learner.needs.couples_tasks
    with pytest.raises(OptionError, match="expected a step that is a sum over tasks"):
        learner.task_losses(t.sample("train", [0]))
    engine = Engine(learner, t, meta_batch=4)
    assert (engine.outer.name, engine.outer.lr) == ("sgd", 1.0)
    with pytest.raises(kshot.errors.MisfitError, match="couples the tasks"):
        Engine(learner, t, meta_batch=4, chunk=2)
    before = [p.detach().clone() for p in learner.parameters()]
    engine.train(2)
    assert any(not torch.equal(a, b) for a, b in zip(before, learner.parameters(), strict=True))
    assert MamlRL(TaskSpec(kind="control", input_shape=(1,), way=2)).training_defaults.optimizer == "adam"
