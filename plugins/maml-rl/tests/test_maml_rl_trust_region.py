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


def test_differences_of_a_linear_slope_are_exact():
    """The product does not depend on the length of the offset; damping is added."""
    a = matrix()
    product = trust_region.differences(lambda offset: a @ offset, 1e-3, 0.1)
    for v in (torch.ones(6, dtype=torch.float64), 1e6 * torch.arange(6, dtype=torch.float64)):
        assert torch.allclose(product(v), a @ v + 0.1 * v, rtol=1e-9)


def test_a_quadratic_region_is_left_by_its_rim():
    """For gain g.x and divergence x.A.x / 2 the step is sqrt(2 delta / g.A^-1.g) A^-1 g, the best within the region."""
    a, g = matrix(), torch.arange(1, 7, dtype=torch.float64)
    judge = lambda x: (float(g @ x), float(x @ a @ x) / 2 * (1 - 1e-9))  # noqa: E731
    found = trust_region.step(g, lambda v: a @ v, judge, radius=0.02)
    natural = torch.linalg.solve(a, g)
    assert torch.allclose(found, (2 * 0.02 / (g @ natural)).sqrt() * natural, atol=1e-8)


def test_steps_that_fail_are_made_shorter_and_at_last_given_up():
    """The step is halved until the gain increases within the region."""
    a, g = torch.eye(2, dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)
    tried = []

    def judge(x):
        tried.append(float(x[0]))
        return (1.0, 0.5) if len(tried) < 3 else (1.0, 0.001) if len(tried) == 4 else (-1.0, 0.001)

    found = trust_region.step(g, lambda v: a @ v, judge, radius=0.02)
    assert tried == pytest.approx([0.2, 0.1, 0.05, 0.025])
    assert float(found[0]) == pytest.approx(0.025)
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


def test_the_step_is_the_natural_gradient_within_the_region():
    """The step equals that of the dense, equally damped Fisher matrix by autograd, in float64 for one task."""
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
    # ten conjugate gradient steps don't solve for all parameters: the same ten, which tell differences from the matrix
    direction = trust_region.conjugate_gradient(lambda v: fisher @ v, g)
    whole = (2 * 0.01 / (direction @ fisher @ direction)).sqrt() * direction
    scale = float(found.norm() / whole.norm())
    assert torch.allclose(found, scale * whole, atol=5e-3 * float(found.norm()))
    assert min(abs(scale - 0.5**k) for k in range(4)) < 5e-3
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
