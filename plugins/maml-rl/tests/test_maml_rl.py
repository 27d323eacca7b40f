"""``kshot_maml_rl``: exact identities on bandits by enumeration, advantages by hand, and that it learns."""

import itertools
import math

import attrs
import numpy as np
import pytest
import torch

import kshot
from kshot import Engine, Rollout, TaskSpec
from kshot.errors import DataError, MisfitError, OptionError, TrainingError
from kshot.inner import State
from kshot.testing import sample_tasks
from kshot_maml_rl import MamlRL, surrogates, trust_region
from kshot_maml_rl.steps import step_weights
from kshot_maml_rl.surrogates import Batch

CHANCES = (0.8, 0.3)
BANDIT = TaskSpec(kind="control", input_shape=(3,), way=2, shot=4, query=4)


# --- A two-armed bandit, exactly ------------------------------------------------------------------
# The policy sees its last arm and what it paid, so that earlier actions lead to later states.


def every_trajectory(T, blind=False):
    """Enumerate all courses of T pulls.

    Returns observations [E, T, 3], actions [E, T], payments [E, T], and the probability of each course's payments [E].
    """
    rows = []
    for arms in itertools.product((0, 1), repeat=T):
        for paid in itertools.product((0.0, 1.0), repeat=T):
            seen, chance, last = [], 1.0, [0.0, 0.0, 0.0]
            for arm, pay in zip(arms, paid, strict=True):
                seen.append([1.0, 1.0, 1.0] if blind else last)
                chance *= CHANCES[arm] if pay else 1 - CHANCES[arm]
                last = [float(arm == 0), float(arm == 1), pay]
            rows.append((seen, list(arms), list(paid), chance))
    observations, actions, payments, shares = zip(*rows, strict=True)
    as_double = lambda v: torch.tensor(v, dtype=torch.float64)  # noqa: E731
    return as_double(observations), torch.tensor(actions), as_double(payments), as_double(shares)


def learner_of(**options):
    return kshot.learner("maml-rl", BANDIT, hidden=(3,), **{"estimator": "dice", **options}).double()


def log_pi(learner, parameters, observations, actions):
    """Compute log-probabilities with torch.distributions and a net that is written out."""
    h = torch.tanh(observations @ parameters["weight0"].T + parameters["bias0"])
    logits = h @ parameters["weight1"].T + parameters["bias1"]
    return torch.distributions.Categorical(logits=logits).log_prob(actions)


def exact_return(learner, parameters, T, blind=False):
    """Compute E[sum of payments] as the sum over all courses, differentiable any number of times."""
    observations, actions, payments, shares = every_trajectory(T, blind)
    likelihood = shares * log_pi(learner, parameters, observations, actions).sum(-1).exp()
    assert float(likelihood.detach().sum()) == pytest.approx(1, abs=1e-12)
    return (likelihood * payments.sum(-1)).sum()


def exact_batch(learner, parameters, T, baseline=0.0, blind=False):
    """Return all courses as a batch of one task, whose mean is the expectation under ``parameters``."""
    observations, actions, payments, shares = every_trajectory(T, blind)
    logp = log_pi(learner, parameters, observations, actions).detach()
    weight = shares * logp.sum(-1).exp() * len(shares)
    advantages = surrogates.rewards_to_go(payments, 1.0) - baseline * (1 + observations.sum(-1) + torch.arange(T))
    return Batch(observations, actions, weight[:, None] * advantages, torch.ones_like(payments, dtype=torch.bool), logp)


def flat(tensors):
    return torch.cat([t.reshape(-1) for t in tensors])


def derivatives(learner, function, direction):
    """Return the gradient of ``function``, and its Hessian times ``direction``."""
    theta = {n: p.detach().clone().requires_grad_() for n, p in learner.net.items()}
    gradient = torch.autograd.grad(function(theta), list(theta.values()), create_graph=True)
    product = torch.autograd.grad((flat(gradient) * direction).sum(), list(theta.values()))
    return flat(gradient).detach(), flat(product)


@pytest.mark.parametrize("baseline", [0.0, 0.7])
@pytest.mark.parametrize("estimator", ["dice", "lvc", "log_likelihood"])
def test_the_surrogates_gradient_is_that_of_the_return(estimator, baseline):
    """The gradient equals enumeration for any baseline of the observations; a mean over steps is the return over T."""
    learner = learner_of(estimator=estimator)
    direction = torch.ones(sum(p.numel() for p in learner.parameters()), dtype=torch.float64)
    batch = exact_batch(learner, learner.net, 3, baseline)
    mine, _ = derivatives(learner, lambda theta: -learner.inner_loss(State(theta, {}), batch), direction)
    exact, _ = derivatives(learner, lambda theta: exact_return(learner, theta, 3) / 3, direction)
    assert exact.norm() > 1e-3
    assert torch.allclose(mine, exact, atol=1e-12)


def test_dice_has_the_returns_second_derivative_and_lvc_only_if_actions_do_not_lead_to_other_states():
    """The meta-gradient needs these; for policies that ignore observations both estimators are exact.

    That of the paper's code is wrong for both, because it lacks the product of the score with itself.
    """
    generator = torch.Generator().manual_seed(3)
    for estimator, blind in itertools.product(("dice", "lvc", "log_likelihood"), (False, True)):
        learner = learner_of(estimator=estimator)
        size = sum(p.numel() for p in learner.parameters())
        direction = torch.randn(size, generator=generator, dtype=torch.float64)
        batch = exact_batch(learner, learner.net, 3, 0.7, blind)
        gain = lambda theta, a=learner, b=batch: -a.inner_loss(State(theta, {}), b)  # noqa: E731
        truth = lambda theta, a=learner, b=blind: exact_return(a, theta, 3, b) / 3  # noqa: E731
        mine, exact = (derivatives(learner, f, direction)[1] for f in (gain, truth))
        assert exact.norm() > 1e-3
        apart = float((mine - exact).norm() / exact.norm())
        exactly = estimator == "dice" or (estimator == "lvc" and blind)
        assert apart < 1e-10 if exactly else apart > 0.05


def test_the_papers_estimator_is_the_mean_of_log_pi_times_advantage():
    """Gradient and second derivative equal those of -mean(log pi . A), written out over all courses."""
    learner = learner_of(estimator="log_likelihood")
    size = sum(p.numel() for p in learner.parameters())
    direction = torch.randn(size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    batch = exact_batch(learner, learner.net, 3, 0.7)

    def naive(theta):
        return -(log_pi(learner, theta, batch.observations, batch.actions) * batch.advantages).mean()

    mine = derivatives(learner, lambda theta: learner.inner_loss(State(theta, {}), batch), direction)
    for computed, expected in zip(mine, derivatives(learner, naive, direction), strict=True):
        assert torch.allclose(computed, expected, atol=1e-12)


@pytest.mark.parametrize("outer", ["ppo", "reinforce"])
@pytest.mark.parametrize("steps", [1, 2])
def test_the_meta_gradient_is_that_of_the_exact_meta_objective(outer, steps):
    """The meta-gradient equals differences of the enumerated J(theta + alpha grad J(theta)); two updates too."""
    T, rates = 2, (2.0, 1.5)
    learner = learner_of(inner_lr=rates[0], later_lr=rates[1], inner_steps=steps, outer=outer, epochs=1)
    names = list(learner.net)

    def update(parameters, alpha):
        tied = {n: p.detach().clone().requires_grad_() for n, p in parameters.items()}
        slopes = torch.autograd.grad(exact_return(learner, tied, T) / T, [tied[n] for n in names])
        return {n: tied[n].detach() + alpha * g for n, g in zip(names, slopes, strict=True)}

    def objective(parameters):
        for alpha in rates[:steps]:
            parameters = update(parameters, alpha)
        return float(exact_return(learner, parameters, T) / T)

    theta = {n: p.detach().clone() for n, p in learner.net.items()}
    states = [theta]
    for alpha in rates[:steps]:
        states.append(update(states[-1], alpha))
    batches = [exact_batch(learner, s, T, baseline=0.4) for s in states]
    stacked = kshot.episode.map_tensors(lambda t: t[None], batches)
    learner.lift.mean_gradient(learner.task, learner.theta(), stacked[:-1], stacked[-1])
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        along = {n: torch.randn(p.shape, generator=generator, dtype=torch.float64) for n, p in theta.items()}
        h = 1e-5
        values = [objective({n: theta[n] + sign * h * along[n] for n in names}) for sign in (1, -1)]
        slope = (values[0] - values[1]) / (2 * h)
        claimed = -sum(float((learner.net[n].grad * along[n]).sum()) for n in names)
        assert abs(slope) > 1e-4
        assert claimed == pytest.approx(slope, rel=1e-6)


def test_sampled_gradients_are_right_on_average():
    """The frequencies of 40,000 played trajectories agree with the log-probabilities."""
    t = kshot.tasks("bandits", arms=2, shot=40000, horizon=2, history=True) if _has("bandits") else None
    if t is None:
        pytest.skip("kshot-bandits is not here")
    learner = kshot.learner("maml-rl", t.spec, hidden=(3,), normalise=False, discount=1.0, seed=2).double()
    e = kshot.episode.map_tensors(lambda x: x.double() if x.is_floating_point() else x, t.sample("train", [0]))
    e.support.source.chances[:] = torch.tensor(CHANCES, dtype=torch.float64)
    _, batches, _ = learner.play(e.support, 1)
    batch = kshot.episode.one_task(batches[0], 0)
    direction = torch.ones(sum(p.numel() for p in learner.parameters()), dtype=torch.float64)
    mine, _ = derivatives(learner, lambda theta: -learner.inner_loss(State(theta, {}), batch), direction)
    exact, _ = derivatives(learner, lambda theta: exact_return(learner, theta, 2) / 2, direction)
    assert float((mine - exact).norm() / exact.norm()) < 0.05


def _has(name):
    return any(p.name == name for p in kshot.plugins())


# --- Policies -------------------------------------------------------------------------------------


def test_log_probabilities_are_those_of_torch_distributions():
    """Densities are in units of half the range, a constant factor from those of the action itself."""
    spec = TaskSpec(kind="control", input_shape=(2,), target_shape=(3,), target_range=(-0.1, 0.3), shot=2, query=2)
    learner = MamlRL(spec, hidden=(5,), activation="relu", initial_std=0.4).double()
    generator = torch.Generator().manual_seed(0)
    x, a = (torch.randn(4, 6, n, generator=generator, dtype=torch.float64) for n in (2, 3))
    p = learner.net
    means = 0.1 + 0.2 * (torch.relu(x @ p["weight0"].T + p["bias0"]) @ p["weight1"].T + p["bias1"])
    expected = torch.distributions.Normal(means, 0.2 * p["log_std"].exp()).log_prob(a).sum(-1) + 3 * math.log(0.2)
    assert torch.allclose(learner.family.log_probability(learner.theta(), x, a), expected, atol=1e-10)


@pytest.mark.parametrize("tasks", [sample_tasks.Points, sample_tasks.Corridors])
def test_stacked_policies_are_each_tasks_own(tasks):
    """One product for all tasks gives the same as one net after another."""
    spec = tasks().spec
    learner = MamlRL(spec, hidden=(7, 5)).double()
    generator = torch.Generator().manual_seed(0)
    stacked = {n: torch.randn(3, *p.shape, generator=generator, dtype=torch.float64) for n, p in learner.net.items()}
    x = torch.randn(3, 4, *spec.input_shape, generator=generator, dtype=torch.float64)
    together = learner.family.distribution(stacked, x)
    for b in range(3):
        alone = learner.family.distribution({n: p[b] for n, p in stacked.items()}, x[b])
        assert torch.allclose(together[b], alone, atol=1e-12)


def test_drawn_actions_have_the_policys_distribution():
    """Means and deviations are in the action's own units; discrete actions have the right frequencies."""
    spec = TaskSpec(kind="control", input_shape=(1,), target_shape=(2,), target_range=(-0.1, 0.1), shot=1, query=1)
    learner = MamlRL(spec, initial_std=0.5)
    states, _, _ = learner.play(kshot.Support(torch.zeros(2, 0, 1), torch.zeros(2, 0), key=torch.tensor([1, 2])), 0)
    policy = learner.policy(states[0])
    x = torch.ones(2, 20000, 1)
    act = policy.begin(torch.tensor([5, 6]), (20000, 1))
    drawn = act(x)
    assert torch.allclose(drawn.std(1), torch.full((2, 2), 0.05), rtol=0.03)
    assert torch.allclose(drawn.mean(1), policy(x)[:, 0], atol=4 * 0.05 / math.sqrt(20000))
    spec = TaskSpec(kind="control", input_shape=(1,), way=3, shot=1, query=1)
    learner = MamlRL(spec)
    with torch.no_grad():
        learner.net["bias2"] += torch.tensor([0.0, 1.0, -1.0])
    policy = learner.policy(learner.play(kshot.Support(torch.zeros(1, 0, 1), torch.zeros(1, 0)), 0)[0][0])
    drawn = policy.begin(torch.tensor([7]), (20000, 1))(x[:1])
    share = torch.bincount(drawn[0], minlength=3) / 20000
    expected = learner.family.distribution(learner.net, x[0, :1]).softmax(-1)[0]
    assert torch.allclose(share, expected, atol=4 * 0.5 / math.sqrt(20000))
    assert (policy(x[:1]) == expected.argmax()).all()


def test_policies_are_never_evaluated_in_half_precision():
    """Under autocast, ratios of probabilities near 1 would otherwise be lost in rounding."""
    t = sample_tasks.Points()
    learner = MamlRL(t.spec)
    x, a = torch.randn(2, 4, 6, 2, generator=torch.Generator().manual_seed(0))
    plain = learner.family.log_probability(learner.theta(), x, a)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(learner.family.log_probability(learner.theta(), x, a), plain)


def test_greedy_policies_take_their_most_likely_actions():
    """A greedy policy takes its most likely actions also in a rollout."""
    t = sample_tasks.Points()
    learner, greedy = (kshot.learner("maml-rl", t.spec, greedy=g) for g in (False, True))
    e = t.sample("test", [0, 1])
    played = e.query.source.rollout(greedy.adapt(e.support))
    adapted = learner.adapt(e.support)
    assert torch.allclose(played.actions[:, :, 3], adapted(played.observations[:, :, 3]), atol=1e-6)
    assert not torch.allclose(e.query.source.rollout(adapted).actions, played.actions)


# --- Advantages -----------------------------------------------------------------------------------


def test_rewards_to_go_by_hand():
    """Rewards are discounted from each step on."""
    found = surrogates.rewards_to_go(torch.tensor([1.0, 2.0, 4.0]), 0.5)
    assert found.tolist() == [1 + 1 + 1, 2 + 2, 4]


def trajectories(generator, B=2, E=3, T=7):
    """Return random rollouts, of which one ends early."""
    observations = torch.randn(B, E, T, 2, generator=generator, dtype=torch.float64)
    rewards = torch.randn(B, E, T, generator=generator, dtype=torch.float64)
    running = torch.ones(B, E, T, dtype=torch.bool)
    running[1, 2, 4:] = False
    return observations, rewards * running, running


def test_the_baseline_is_numpys_least_squares():
    """The baseline equals a fit task by task with the features written out; steps after the end are not used."""
    observations, rewards, running = trajectories(torch.Generator().manual_seed(0))
    targets = surrogates.rewards_to_go(rewards, 0.9)
    found = surrogates.linear_baseline(observations, targets, running)
    for b in range(2):
        rows, y = [], []
        for i, step in running[b].nonzero().tolist():
            o, t = observations[b, i, step].clamp(-10, 10).tolist(), step / 100
            rows.append([*o, *(v * v for v in o), t, t * t, t**3, 1.0])
            y.append(float(targets[b, i, step]))
        a = np.array(rows)
        weights = np.linalg.solve(a.T @ a + 1e-5 * np.eye(a.shape[1]), a.T @ np.array(y))
        assert np.allclose(found[b][running[b]].numpy(), a @ weights, atol=1e-7)


@pytest.mark.parametrize("gae", [1.0, 0.8])
def test_advantages_are_a_naive_recursion(gae):
    """A_t = delta_t + gamma lambda A_{t+1}, backwards, and 0 after the end; with lambda 1, return minus baseline."""
    observations, rewards, running = trajectories(torch.Generator().manual_seed(1))
    found = surrogates.advantages(observations, rewards, running, discount=0.9, gae=gae, normalise=False)
    values = surrogates.linear_baseline(observations, surrogates.rewards_to_go(rewards, 0.9), running)
    for b, i in itertools.product(range(2), range(3)):
        ahead, after = 0.0, 0.0
        for t in reversed(range(int(running[b, i].sum()))):
            delta = float(rewards[b, i, t]) + 0.9 * after - float(values[b, i, t])
            ahead, after = delta + 0.9 * gae * ahead, float(values[b, i, t])
            assert float(found[b, i, t]) == pytest.approx(ahead, abs=1e-10)
    assert (found[~running] == 0).all()
    if gae == 1:
        to_go = surrogates.rewards_to_go(rewards, 0.9)
        assert torch.allclose(found[running], (to_go - values)[running], atol=1e-10)


def test_normalised_advantages_are_each_tasks_own():
    """Mean 0 and deviation 1 over the taken steps remove the scale and the shift of a task's rewards."""
    observations, rewards, running = trajectories(torch.Generator().manual_seed(2))
    options = {"discount": 0.9, "gae": 1.0, "normalise": True}
    found = surrogates.advantages(observations, rewards, running, **options)
    for b in range(2):
        taken = found[b][running[b]]
        assert float(taken.mean()) == pytest.approx(0, abs=1e-9)
        assert float(taken.std(correction=0)) == pytest.approx(1, abs=1e-6)
    assert (found[~running] == 0).all()
    alone = surrogates.advantages(observations[:1], 5 * rewards[:1], running[:1], **options)
    assert torch.allclose(alone[0], found[0], atol=1e-6)


def test_the_clipped_surrogate_by_hand():
    """With ratios 0.5 and 2 and clip 0.2, gains are limited and losses are not."""
    ratio = torch.tensor([0.5, 0.5, 2.0, 2.0]).log()
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
    assert float(surrogates.clipped(ratio, advantage, 0.2)) == pytest.approx((0.5 - 0.8 + 1.2 - 2.0) / 4)


# --- The learner ----------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class Watched:
    """An environment that records the numbers of the requested rollouts."""

    of: object
    asked: list

    def rollout(self, policy, number=0) -> Rollout:
        self.asked.append(number)
        return self.of.rollout(policy, number)


kshot.episode.register_value(Watched, "of")


def watched(episode):
    """Return an episode, and the rollouts requested of its support and of its query."""
    support, query = Watched(episode.support.source, []), Watched(episode.query.source, [])
    made = attrs.evolve(
        episode,
        support=attrs.evolve(episode.support, source=support),
        query=attrs.evolve(episode.query, source=query),
    )
    return made, support.asked, query.asked


def test_epochs_use_the_trajectories_of_the_first():
    """Each update plays once, the result plays once, and ``epochs`` outer steps use these rollouts."""
    t = sample_tasks.Points()
    learner = kshot.learner("maml-rl", t.spec, inner_steps=2, epochs=3)
    episodes, support, query = watched(t.sample("train", range(3)))
    losses = []
    for metrics in learner.train().meta_gradient(episodes):
        losses.append(float(metrics["loss"]))
        with torch.no_grad():
            for p in learner.parameters():
                p -= 0.005 * p.grad
                p.grad = None
    assert (len(losses), support, query) == (3, [0, 1], [0])
    assert losses[0] == pytest.approx(0, abs=1e-5)  # advantages have mean 0, ratios are 1
    assert losses[2] < losses[1] < losses[0]
    episodes, _, _ = watched(t.sample("train", range(3)))
    assert len(list(kshot.learner("maml-rl", t.spec, outer="reinforce").meta_gradient(episodes))) == 1


def test_an_update_goes_up_the_policy_gradient():
    """The update is theta' = theta + alpha grad (mean of log pi times advantages) on the task's trajectories.

    From the second update on, the rate is half of alpha (appendix A.2).
    """
    t = sample_tasks.Points()
    learner = kshot.learner("maml-rl", t.spec, inner_lr=0.3, hidden=(6,)).double()
    e = kshot.episode.map_tensors(lambda x: x.double() if x.is_floating_point() else x, t.sample("test", [0, 1]))
    states, batches, rollouts = learner.play(e.support, 3)
    for b, (k, alpha) in itertools.product(range(2), enumerate((0.3, 0.15, 0.15))):
        theta = {n: p[b].detach().clone().requires_grad_() for n, p in states[k].parameters.items()}
        h = torch.tanh(rollouts[k].observations[b] @ theta["weight0"].T + theta["bias0"])
        normal = torch.distributions.Normal(h @ theta["weight1"].T + theta["bias1"], theta["log_std"].exp())
        logp = normal.log_prob(rollouts[k].actions[b]).sum(-1)
        slopes = torch.autograd.grad((logp * batches[k].advantages[b]).mean(), list(theta.values()))
        for (n, p), slope in zip(theta.items(), slopes, strict=True):
            assert torch.allclose(states[k + 1].parameters[n][b], p + alpha * slope, atol=1e-10)


def test_each_update_is_played_by_the_policy_before_it():
    """Rollout k is played by the policy after k updates."""
    t = sample_tasks.Points()
    learner = kshot.learner("maml-rl", t.spec, inner_lr=0.5)
    support = t.sample("test", [0, 1]).support
    states, _, rollouts = learner.play(support, 3)
    for k, played in enumerate(rollouts):
        again = support.source.rollout(learner.policy(states[k]), k)
        assert torch.equal(again.actions, played.actions)
        assert not torch.equal(support.source.rollout(learner.policy(states[k + 1]), k).actions, played.actions)


def test_steps_after_the_end_count_nowhere():
    """Steps after the end count neither in ratios nor in advantages."""
    t = sample_tasks.Corridors(shot=20)
    learner = kshot.learner("maml-rl", t.spec)
    support = t.sample("train", [0]).support
    states, batches, _ = learner.play(support, 1)
    ended = batches[0].running == 0
    assert ended.any()
    assert (batches[0].advantages[ended] == 0).all()
    other = State({n: p[0] + 0.1 for n, p in states[0].parameters.items()}, {})
    ratio = learner.log_ratio(other, kshot.episode.one_task(batches[0], 0))
    assert (ratio[ended[0]] == 0).all()
    assert (ratio[~ended[0]] != 0).all()


@attrs.frozen(eq=False)
class Padded:
    """An environment whose rollouts have more steps, which are after the end and without meaning."""

    of: object
    steps: int

    def rollout(self, policy, number=0) -> Rollout:
        played = self.of.rollout(policy, number)
        discrete = played.actions.dtype == torch.int64
        after = (torch.nan, -1 if discrete else torch.nan, 0.0, False)
        fields = (played.observations, played.actions, played.rewards, played.running)
        longer = [
            torch.cat([t, torch.full_like(t[:, :, :1], value).repeat_interleave(self.steps, 2)], 2)
            for t, value in zip(fields, after, strict=True)
        ]
        return Rollout(*longer, played.scores)


kshot.episode.register_value(Padded, "of")


@pytest.mark.parametrize("tasks", [sample_tasks.Points, sample_tasks.Corridors])
@pytest.mark.parametrize(
    "options",
    [
        {"outer": "ppo", "epochs": 1},
        {"outer": "reinforce", "estimator": "dice", "inner_steps": 2},
        {"outer": "reinforce", "estimator": "log_likelihood", "gae": 0.9},
        {"outer": "trpo"},
    ],
)
def test_a_longer_horizon_in_which_nothing_happens_changes_nothing(tasks, options, monkeypatch):
    """Means are over the steps that were taken: updates, outer losses, steps and metrics are the same if padded.

    Observations and actions after the end are NaN, or the number of no action, and are never looked at.
    """
    monkeypatch.setattr(trust_region, "DAMPING", 1.0)  # so that conjugate gradients amplify the rounding little
    t = tasks(shot=6, query=5)
    cast = lambda x: x.double() if x.is_floating_point() else x  # noqa: E731
    episodes = kshot.episode.map_tensors(cast, t.sample("train", range(2)))
    longer = attrs.evolve(
        episodes,
        support=attrs.evolve(episodes.support, source=Padded(episodes.support.source, 40)),
        query=attrs.evolve(episodes.query, source=Padded(episodes.query.source, 40)),
    )
    results = []
    for given in (episodes, longer):
        learner = kshot.learner("maml-rl", t.spec, hidden=(6,), inner_lr=0.5, **options).double()
        metrics = next(iter(learner.meta_gradient(given)))
        adapted = learner.adapt(given.support).parameters
        results.append([*(p.grad for p in learner.parameters()), *metrics.values(), *adapted.values()])
    assert max(float(p.abs().max()) for p in results[0][: len(learner.net)]) > 1e-3
    for short, padded in zip(*results, strict=True):
        assert torch.allclose(short, padded, rtol=1e-6, atol=1e-6 if options["outer"] == "trpo" else 1e-10)


def test_means_are_over_the_steps_that_were_taken():
    """Surrogates of two taken steps are half their sum, whatever the horizon; weights say the same."""
    ratio, advantage = torch.tensor([[0.5, 0.0, 0.0, 0.0]]), torch.tensor([[1.0, 3.0, 0.0, 0.0]])
    running = torch.tensor([[True, True, False, False]])
    assert step_weights(running).tolist() == [[2.0, 2.0, 0.0, 0.0]]  # the mean over all steps is 1
    for mask in (running, step_weights(running)):
        expected = {"lvc": (math.exp(0.5) + 3) / 2, "dice": (math.exp(0.5) - 1) / 2, "log_likelihood": 0.25}
        for name, value in expected.items():
            assert float(surrogates.ESTIMATORS[name](ratio, advantage, mask)) == pytest.approx(value)
        assert float(surrogates.clipped(ratio, advantage, 0.2, mask)) == pytest.approx((1.2 + 3) / 2)


@pytest.mark.parametrize("steps", [0, 2])
def test_training_reports_the_returns_before_and_after_the_updates(steps):
    """Before is the support's rollout 0, or without updates the query's; after is the query's."""
    t = sample_tasks.Points()
    learner = kshot.learner("maml-rl", t.spec, seed=0, hidden=(6,), inner_steps=steps)
    e = t.sample("train", [0, 1])
    states = learner.play(e.support, steps)[0]
    metrics = next(iter(learner.meta_gradient(e)))
    first = (e.support if steps else e.query).source.rollout(learner.policy(states[0]))
    last = e.query.source.rollout(learner.policy(states[-1]))
    assert float(metrics["return_before"]) == pytest.approx(float(first.rewards.sum(-1).mean()), rel=1e-6)
    assert float(metrics["return"]) == pytest.approx(float(last.rewards.sum(-1).mean()), rel=1e-6)
    assert (float(metrics["return"]) == float(metrics["return_before"])) == (steps == 0)


def test_without_updates_it_is_a_policy_for_all_tasks():
    """With inner_steps=0 the support is not played, and the gradient is the plain policy gradient on the query."""
    t = sample_tasks.Points(rollouts=0)
    learner = kshot.learner("maml-rl", t.spec, inner_steps=0, hidden=(6,)).double()
    assert learner.needs.rollouts == 0
    cast = lambda x: x.double() if x.is_floating_point() else x  # noqa: E731
    episodes, support, _ = watched(kshot.episode.map_tensors(cast, t.sample("train", range(2))))
    next(iter(learner.train().meta_gradient(episodes)))
    assert support == []
    states, _, _ = learner.play(episodes.support, 0)
    judged = learner.batch(states[0], episodes.query.source.of.rollout(learner.policy(states[0])))
    theta = {n: p.detach().clone().requires_grad_() for n, p in learner.net.items()}
    logp = torch.stack(
        [learner.family.log_probability(State(theta, {}), judged.observations[b], judged.actions[b]) for b in (0, 1)]
    )
    slopes = torch.autograd.grad(-(logp * judged.advantages).mean(), list(theta.values()))
    for (n, p), slope in zip(learner.net.items(), slopes, strict=True):
        assert torch.allclose(p.grad, slope, atol=1e-10), n


def test_losses_can_be_taken_apart_by_task():
    """The mean of the losses has the gradient of the first outer step; the displacement is that of the updates."""
    t = sample_tasks.Points()
    learner = kshot.learner("maml-rl", t.spec, inner_steps=2, hidden=(5,)).double()
    cast = lambda x: x.double() if x.is_floating_point() else x  # noqa: E731
    episodes = kshot.episode.map_tensors(cast, t.sample("train", range(3)))
    next(iter(learner.meta_gradient(episodes)))
    whole = {n: p.grad.clone() for n, p in learner.net.items()}
    learner.zero_grad()
    losses, away = learner.task_losses(episodes)
    assert losses.shape == (3,)
    losses.mean().backward()
    states, _, _ = learner.play(episodes.support, 2)
    for n, p in learner.net.items():
        assert torch.allclose(p.grad, whole[n], atol=1e-10)
        assert torch.allclose(away[n].detach(), p.detach() - states[-1].parameters[n], atol=1e-10)


def test_first_order_takes_inner_gradients_as_constants():
    """The first-order meta-gradient is the outer gradient at theta'."""
    t = sample_tasks.Points()
    found = {}
    for order in ("first", "second"):
        learner = kshot.learner("maml-rl", t.spec, order=order, inner_lr=0.5, epochs=1).double()
        e = kshot.episode.map_tensors(lambda x: x.double() if x.is_floating_point() else x, t.sample("train", [0]))
        next(iter(learner.train().meta_gradient(e)))
        found[order] = {n: p.grad.clone() for n, p in learner.net.items()}
    states, _, _ = learner.play(e.support, 1)
    judged = kshot.episode.one_task(learner.batch(states[1], e.query.source.rollout(learner.policy(states[1]))), 0)
    after = {n: p[0].detach().clone().requires_grad_() for n, p in states[1].parameters.items()}
    ratio = learner.log_ratio(State(after, {}), judged)
    slopes = torch.autograd.grad(-(ratio.exp() * judged.advantages).mean(), list(after.values()))
    for n, slope in zip(after, slopes, strict=True):
        assert torch.allclose(found["first"][n], slope, atol=1e-10)
    assert any(not torch.allclose(found["first"][n], found["second"][n], rtol=1e-3) for n in after)


def test_the_deviation_may_stay_out_of_the_inner_steps():
    """The deviation is then the same before and after an update, and is still learned by outer steps."""
    t = sample_tasks.Points()
    for adapt_std in (True, False):
        learner = kshot.learner("maml-rl", t.spec, adapt_std=adapt_std)
        policy = learner.adapt(t.sample("test", [0, 1]).support)
        same = torch.equal(policy.parameters["log_std"], learner.net["log_std"].expand(2, 2))
        assert same != adapt_std
        next(iter(learner.train().meta_gradient(t.sample("train", [0, 1]))))
        assert learner.net["log_std"].grad.abs().sum() > 0


def test_training_makes_the_inner_steps_whatever_the_test_steps_are():
    """``test_steps`` changes neither the returns that training reports nor the meta-gradient."""
    t = sample_tasks.Points()
    seen = []
    for test_steps in (1, 3):
        learner = kshot.learner("maml-rl", t.spec, seed=0, hidden=(4,), inner_steps=1, test_steps=test_steps)
        metrics = next(iter(learner.meta_gradient(t.sample("train", [0, 1]))))
        seen.append([*map(float, metrics.values()), *flat(p.grad for p in learner.parameters()).tolist()])
    assert seen[0] == seen[1]


def test_more_updates_than_the_budget_are_refused_before_any_compute():
    """``check`` refuses it with both numbers, also if only the test needs more."""
    t = sample_tasks.Points(rollouts=2)
    Engine(kshot.learner("maml-rl", t.spec, inner_steps=2), t)
    with pytest.raises(MisfitError, match="plays 3 rollouts while adapting, the tasks allow 2"):
        Engine(kshot.learner("maml-rl", t.spec, inner_steps=3), t)
    engine = Engine(kshot.learner("maml-rl", t.spec), t)
    with pytest.raises(MisfitError, match="plays 3 rollouts while adapting, the tasks allow 2"):
        engine.evaluate(1, learner_options={"test_steps": 3})


def test_an_environment_with_other_spaces_does_not_fit_the_policy():
    """The mismatch is reported before any compute."""
    points, corridors = sample_tasks.Points(), sample_tasks.Corridors()
    engine = Engine(kshot.learner("maml-rl", points.spec), points)
    with pytest.raises(MisfitError, match="the learner was built for continuous actions of shape"):
        engine.evaluate(1, tasks=corridors)


def test_bad_options_are_refused():
    """The message gives the value and what was expected."""
    spec = sample_tasks.Points().spec
    for name, value in {"inner_steps": -1, "test_steps": -2, "epochs": 0, "initial_std": 0.0}.items():
        with pytest.raises(OptionError, match=f"got .*{name} {value}.*, expected steps >= 0, epochs >= 1"):
            MamlRL(spec, **{name: value})
    for name in ("activation", "outer", "estimator", "order"):
        with pytest.raises(OptionError, match=f"got {name} 'magic', expected one of '.*; choose one of them"):
            MamlRL(spec, **{name: "magic"})


def test_numbers_that_are_not_finite_are_reported_with_task_and_step():
    """Both diverged parameters and rewards that are not finite are refused."""
    t = sample_tasks.Points()
    learner = kshot.learner("maml-rl", t.spec)
    with torch.no_grad():
        learner.net["bias2"][0] = torch.nan
    with pytest.raises(TrainingError, match="got a NaN or infinite action in step 0 of trajectory 0 of task 0"):
        learner.adapt(t.sample("test", [0]).support)
    learner = kshot.learner("maml-rl", t.spec)
    support = t.sample("test", [0, 1]).support
    support.source.goal[1] = torch.nan
    with pytest.raises(DataError, match="got a NaN or infinite reward in step 0 of trajectory 0 of task 1"):
        learner.adapt(support)


def test_the_trace_shows_each_update():
    """The first trajectories are those of the unadapted policy, the last those that are judged."""
    t = sample_tasks.Points()
    learner = kshot.learner("maml-rl", t.spec, test_steps=2)
    e = t.sample("test", [0, 1])
    seen = learner.trace(e)
    assert seen["observations"].shape == (2, 3, 3, 5, 2)
    judged = e.query.source.rollout(learner.adapt(e.support))
    assert torch.equal(seen["rewards"][:, 2], judged.rewards)
    before = e.query.source.rollout(learner.policy(learner.play(e.support, 0)[0][0]))
    assert torch.equal(seen["observations"][:, 0], before.observations)
    assert torch.equal(seen["trajectories"], seen["observations"])  # these points never stop
    corridors = sample_tasks.Corridors()
    other = kshot.learner("maml-rl", corridors.spec).trace(corridors.sample("test", [0]))
    assert "trajectories" not in other
    assert other["actions"].dtype == torch.int64


def test_a_trace_ends_where_the_trajectory_does_and_names_the_goal():
    """Nothing is drawn that was not played."""
    navigation2d = pytest.importorskip("kshot_navigation2d")
    t = navigation2d.Navigation2D(shot=2, query=2, horizon=5)
    e = t.sample("test", [0])
    e.query.source.goal[:] = 0.0  # reached at once by standing still
    learner = kshot.learner("maml-rl", t.spec, initial_std=1e-3)
    with torch.no_grad():
        learner.net["weight2"].zero_()
    seen = learner.trace(e)
    assert seen["goal"].shape == (1, 2)
    assert seen["trajectories"][:, 0, :, 1:].isnan().all()
    assert not seen["trajectories"][:, 0, :, 0].isnan().any()


def test_it_learns_to_learn():
    """The return is at least mean - 3 sigma of 5 seeds (-3.23, sigma 0.01); before the update it is -5.9."""
    t = sample_tasks.Points(shot=20, query=20)
    engine = Engine(kshot.learner("maml-rl", t.spec, hidden=(20,), seed=0), t, meta_batch=20, optimizer={"lr": 1e-2})
    engine.train(30)
    before, after = (engine.evaluate(100, learner_options={"test_steps": k}).mean for k in (0, 1))
    assert before < -5.5
    assert after > -3.27
