"""MAML for reinforcement learning: Finn, Abbeel & Levine 2017 (1703.03400), algorithm 3.

Letters: B meta-batch, E trajectories per task, T steps. Functions of one task have no B; ``Lift`` runs them for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from kshot import Episode, Lift, Metrics, Needs, Predictor, Rollout, Support, TaskSpec, Training
from kshot.errors import OptionError
from kshot.inner import State, Strategy, check_descent, descend
from kshot_maml_rl import surrogates, trust_region
from kshot_maml_rl.explain import rollouts_by_update
from kshot_maml_rl.options import Estimator, Order, Outer, check_options
from kshot_maml_rl.policy import Activation, Family, Policy, repeated
from kshot_maml_rl.steps import Batch, step_weights, taken


class MamlRL(nn.Module):
    """A learner of a policy from which a policy gradient step on a few trajectories of a task leads to a good one.

    Args:
        spec: the specification of the tasks.
        hidden, activation: units of the policy's hidden layers, and ``tanh``, or ``relu`` as in the paper.
        initial_std: the initial standard deviation of continuous actions, in units of half their range; 1 in the paper.
        adapt_std: whether the inner steps change it too, as in the paper.
        inner_lr: alpha, for surrogates that are a mean over steps.
        later_lr: alpha from the second update on; None is half of the first, as in the paper's appendix A.2.
        inner_steps: updates in training, each on a new rollout; 0 trains one policy for all tasks.
        test_steps: updates at evaluation and use; None is ``inner_steps``.
        greedy: whether adapted policies take their most likely actions instead of drawing them as in the paper.
        outer: ``ppo`` takes ``epochs`` steps on the clipped surrogate, ``reinforce`` one policy gradient step, ``trpo``
            one within a trust region, as in the paper, to be taken by plain gradient descent at a rate of 1.
        epochs: outer steps on one meta-batch's trajectories; the inner steps are repeated in each.
        clip, radius: of the clipped surrogate; the greatest mean divergence of the trust region.
        estimator: the surrogate of inner steps, ``lvc``, ``dice``, or ``log_likelihood`` as in the paper's code.
        order: ``second`` differentiates through the inner steps; ``first`` treats the inner gradients as constants.
        discount, gae, normalise: gamma and lambda of advantages, and whether to normalise them for each task.
        strategy: how the tasks of a meta-batch run, see ``kshot.Lift``: ``auto`` chooses what is fast and exact.

    Raises:
        OptionError: negative steps, no epoch, no standard deviation, or an unknown choice.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> tasks = sample_tasks.Points()
        >>> policy = MamlRL(tasks.spec, hidden=(8,), greedy=True).adapt(tasks.sample("test", [0, 1]).support)
        >>> tuple(policy(torch.zeros(2, 4, 2)).shape)
        (2, 4, 2)
    """

    name = "maml-rl"
    needs = Needs(kinds=("control",), rollouts=0)
    training_defaults = Training(lr=2e-3, schedule="linear", meta_batch=20, iterations=100)

    def __init__(
        self,
        spec: TaskSpec,
        *,
        hidden: tuple[int, ...] = (100, 100),
        activation: Activation = "tanh",
        initial_std: float = 0.5,
        adapt_std: bool = True,
        inner_lr: float = 0.1,
        later_lr: float | None = None,
        inner_steps: int = 1,
        test_steps: int | None = None,
        greedy: bool = False,
        outer: Outer = "ppo",
        epochs: int = 4,
        clip: float = 0.2,
        radius: float = 0.01,
        estimator: Estimator = "lvc",
        order: Order = "second",
        discount: float = 0.99,
        gae: float = 1.0,
        normalise: bool = True,
        strategy: Strategy = "auto",
    ) -> None:
        super().__init__()
        choices = {"activation": activation, "outer": outer, "estimator": estimator, "order": order}
        check_options(self.name, inner_steps, test_steps, epochs, initial_std, **choices)
        self.family = Family(spec, activation, len(hidden) + 1)
        self.net = self.family.net(hidden, initial_std)
        self.inner_lr, self.later_lr = inner_lr, inner_lr / 2 if later_lr is None else later_lr
        self.adapt_std, self.second_order = adapt_std, order == "second"
        self.inner_steps, self.test_steps = inner_steps, inner_steps if test_steps is None else test_steps
        self.outer, self.epochs, self.radius = outer, epochs if outer == "ppo" else 1, radius
        self.gain = partial(surrogates.clipped, clip=clip) if outer == "ppo" else surrogates.lvc
        self.estimator = surrogates.ESTIMATORS[estimator]
        self.advantages: Any = {"discount": discount, "gae": gae, "normalise": normalise}
        self.greedy, self.lift = greedy, Lift(strategy)
        self.needs = attrs.evolve(type(self).needs, rollouts=self.test_steps, couples_tasks=outer == "trpo")
        if outer == "trpo":
            self.training_defaults = attrs.evolve(type(self).training_defaults, optimizer="sgd", lr=1.0)

    def theta(self, parameters: Mapping[str, Tensor] | None = None) -> State:
        """Return the state that adapts; parameters that do not adapt are its buffers."""
        return self.family.state(parameters or dict(self.net.named_parameters()), self.adapt_std)

    def policy(self, theta: State) -> Policy:
        """Return the policies of B tasks with the parameters theta [B, *]."""
        return Policy(self.family, {**theta.parameters, **theta.buffers})

    def batch(self, theta: State, played: Rollout) -> Batch:
        """Return the data to learn from, of a rollout that the policies theta [B, *] played."""
        played = taken(played)
        seen, done, running = played.observations, played.actions, played.running
        old = self.lift.map(self.family.log_probability, theta, seen, done)
        advantages = surrogates.advantages(seen, played.rewards, running, **self.advantages)
        return Batch(seen, done, advantages.to(old), step_weights(running).to(old), old)

    def log_ratio(self, theta: State, batch: Batch) -> Tensor:
        """Compute log pi_theta - log pi_played of one task's steps [E, T]; 0 after the end."""
        now = self.family.log_probability(theta, batch.observations, batch.actions)
        return (now - batch.log_probability) * (batch.running > 0)

    def inner_loss(self, theta: State, batch: Batch) -> Tensor:
        """Compute L of one task (eq. 4): minus the surrogate, whose gradient is the policy gradient."""
        return -self.estimator(self.log_ratio(theta, batch), batch.advantages, running=batch.running)

    def alpha(self, theta: State, k: int) -> float | Mapping[str, Tensor]:
        """Return the rate of update k, which is smaller after the first."""
        return self.later_lr if k else self.inner_lr

    def adapted(self, theta: State, batches: list[Batch], first: int = 0) -> tuple[State, Tensor]:
        """Compute theta' (line 7) of one task on ``batches``, of updates ``first``, ...; also return the losses."""
        losses: list[Tensor] = []
        for k, batch in enumerate(batches, first):
            lr, exact = self.alpha(theta, k), self.second_order  # theta <- theta - alpha grad L(theta)
            theta, loss = descend(self.inner_loss, theta, batch, lr=lr, steps=1, second_order=exact)
            losses.append(loss)
        return theta, torch.cat(losses) if losses else torch.zeros(0)

    @torch.no_grad()
    def play(self, support: Support, steps: int) -> tuple[list[State], list[Batch], list[Rollout]]:
        """Play and update B tasks (lines 5 to 7); return all policies [B, *], and each update's data and rollout."""
        states, batches, rollouts = [repeated(self.theta().detach(), len(support.key))], [], []
        for number in range(steps):
            # Lines 5 to 7: rollout k with the policies of step k, and update k.
            rollouts.append(support.source.rollout(self.policy(states[-1]), number))
            batches.append(self.batch(states[-1], rollouts[-1]))
            update = lambda theta, batch, k=number: self.adapted(theta, [batch], k)  # noqa: E731
            after, losses = self.lift.map(update, states[-1], batches[-1])
            check_descent(losses, self.name)
            states.append(after.detach())
        return states, batches, rollouts

    def task(self, theta: State, batches: list[Batch], judged: Batch, *_: Any) -> tuple[Mapping[str, Tensor], State]:
        """Compute the outer loss of one task: that of theta' on trajectories that theta' played (line 10)."""
        after, losses = self.adapted(theta, batches)
        gain = self.gain(self.log_ratio(after, judged), judged.advantages, running=judged.running)
        return {"loss": -gain, "inner": losses}, after

    def played(self, episodes: Episode) -> tuple[list[State], list[Batch], Batch, Metrics]:
        """Run lines 5 to 8: return policies, data of the updates, data of the adapted policies, and mean returns."""
        states, batches, rollouts = self.play(episodes.support, self.inner_steps)
        last = episodes.query.source.rollout(self.policy(states[-1]))  # line 8: the adapted policies play
        each = {"return": last, "return_before": (*rollouts, last)[0]}
        returns = {name: rollout.rewards.sum(-1).mean() for name, rollout in each.items()}
        return states, batches, self.batch(states[-1], last), returns

    def meta_gradient(self, episodes: Episode) -> Iterator[Metrics]:
        """Play, update, play again, and yield after each of ``epochs`` outer steps; each computes theta' again.

        Metrics are the outer loss, the mean returns before and after the updates, and those of ``trust_region``.
        """
        states, batches, judged, returns = self.played(episodes)
        for _ in range(self.epochs):  # line 10: outer steps on the same trajectories
            if self.outer == "trpo":
                metrics = trust_region.outer_step(self, batches, judged, states[-1], radius=self.radius)
            else:
                each, _ = self.lift.mean_gradient(self.task, self.theta(), batches, judged)
                check_descent(each["inner"], self.name, episodes.origin)
                metrics = {"loss": each["loss"].mean()}
            yield {**metrics, **returns}

    def task_losses(self, episodes: Episode) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the outer losses [B] with their graph, and theta - theta' of each task (ability ``PerTask``)."""
        if self.outer == "trpo":
            raise OptionError(f"{self.name}: got outer 'trpo', expected a step that is a sum over tasks; change it")
        _, batches, judged, _ = self.played(episodes)
        metrics, after = self.lift.map(self.task, self.theta(), batches, judged)
        return metrics["loss"], after.away_from(self.theta())

    def adapt(self, support: Support) -> Predictor:
        """Make ``test_steps`` updates, each on a new rollout; return the adapted policies."""
        policy = self.policy(self.play(support, self.test_steps)[0][-1])
        return policy.__call__ if self.greedy else policy

    def trace(self, episode: Episode) -> Mapping[str, Any]:
        """Return the query's rollout 0 after 0 to ``test_steps`` updates (ability ``Explains``)."""
        return rollouts_by_update(self, episode)
