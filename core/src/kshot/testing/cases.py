"""A learner on one task distribution, and its counterpart in float64."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import Tensor

from kshot.episode import Episode, map_tensors
from kshot.protocols import TaskDistribution
from kshot.spec import Needs, TaskSpec
from kshot.testing.outer_steps import gradient, restore, state_of, take_step
from kshot.testing.rulebook.rule import broken
from kshot.testing.source import Source


def block_of(spec: TaskSpec, first: int, most: int) -> range:
    """Return at most ``most`` episode numbers, from ``first`` on, that lie within one block."""
    end = first + most
    return range(first, min(end, (first // spec.block + 1) * spec.block) if spec.varies else end)


def floats_of(learner: Any) -> torch.dtype:
    """Return the floating-point type of a learner's parameters; float32 if it has none."""
    return next((p.dtype for p in learner.parameters() if p.is_floating_point()), torch.float32)


@attrs.define(eq=False, slots=False)
class Case:
    """A learner on one task distribution.

    Attributes:
        name: the tasks in words.
        tasks: the tasks.
        source: builds the learner.

    Example:
        >>> from kshot.testing.sample_tasks import LabelStream
        >>> case = Case("a stream", LabelStream(), Source("learners", lambda spec: None, {}))
        >>> case.kind, case.size, case.training
        ('sequence', 3, 'train')
    """

    name: str
    tasks: TaskDistribution
    source: Source

    @property
    def kind(self) -> str:
        """The kind of the tasks."""
        return self.tasks.spec.kind

    @functools.cached_property
    def needs(self) -> Needs:
        """The needs of a learner that was built for these tasks."""
        needs: Needs = self.build().needs
        return needs

    def build(self, seed: int = 0) -> Any:
        """Build a freshly initialised learner, in evaluation mode."""
        learner = self.source.build(self.tasks.spec, seed=seed)
        return learner.eval()

    def trained(self) -> Any:
        """Build a learner and train it for three outer steps, so that no tensor is 0 or 1 just by initialisation."""
        learner = self.build()
        for step in range(3):
            episode = self.episode(first=step * self.tasks.spec.block * 3, split=self.training)
            gradient(learner, episode, seed=step)
            take_step(learner)
        return learner

    @functools.cached_property
    def _trained(self) -> dict[str, Tensor]:
        return state_of(self.trained())

    def warmed(self) -> Any:
        """Build a learner and give it the state that ``trained`` leads to, without training again."""
        learner = self.build()
        restore(learner, self._trained)
        return learner

    @property
    def size(self) -> int:
        """The number of tasks in a meta-batch of the kit: three, or fewer if blocks are smaller."""
        return len(block_of(self.tasks.spec, 0, 3))

    @property
    def training(self) -> str:
        """The split on which gradients are computed: the first one."""
        return self.tasks.spec.splits[0]

    def episode(self, tasks: int | None = None, first: int = 0, split: str | None = None) -> Episode:
        """Sample a new copy of a meta-batch, so that its environments still have their full budget."""
        split = split or self.tasks.spec.splits[-1]
        return self.tasks.sample(split, block_of(self.tasks.spec, first, tasks or self.size))

    def single(self, index: int, split: str | None = None) -> Episode:
        """Sample one episode alone (B = 1)."""
        return self.tasks.sample(split or self.tasks.spec.splits[-1], [index])

    def probe(self, episode: Episode) -> Tensor:
        """Return the inputs of a predictor: the query inputs, or in control a few random observations."""
        if self.kind != "control":
            return episode.query.x
        B = episode.size
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(1, 5, *self.tasks.spec.input_shape, generator=generator)
        return x.expand(B, *x.shape[1:]).to(episode.support.key.device)

    def predict(self, learner: Any, episode: Episode, x: Tensor | None = None, queries: Tensor | None = None) -> Tensor:
        """Adapt and predict as the engine does when it evaluates.

        Args:
            learner: the learner to adapt.
            episode: the task to adapt to.
            x: inputs to predict instead of the query inputs.
            queries: inputs that a learner with ``queries="at_adapt"`` sees instead of ``x``.
        """
        x = self.probe(episode).to(floats_of(learner)) if x is None else x
        if x.is_floating_point():
            x = x.to(floats_of(learner))
        with torch.no_grad():
            support = episode.for_adapting("independent")
            if learner.needs.queries == "at_adapt":
                support = attrs.evolve(support, query_x=x if queries is None else queries)
            predictions = learner.adapt(support)(x)
        if not isinstance(predictions, Tensor):
            broken(f"on {self.name}: got {type(predictions).__name__} from the predictor, expected a tensor")
        return predictions.detach()


def doubled(value: Any) -> Any:
    """Convert the floating-point tensors of a value to float64."""
    return map_tensors(lambda t: t.double() if t.is_floating_point() else t, value)


def precise(case: Case) -> tuple[Any, Callable[[Episode], Episode], torch.dtype]:
    """Build a warmed learner in float64.

    Returns:
        The learner, the function that converts its episodes, and the precision in which the learner really computes.
        A learner that can't compute in float64 (or an environment that stays in float32) is returned unchanged. A
        learner that rounds to float32 inside is recognised because its predictions do not follow changes of 1e-10.
    """
    learner = case.warmed()
    try:
        learner.double()
        state = state_of(learner)
        metrics = gradient(learner, doubled(case.episode(split=case.training)))
        restore(learner, state)
        for p in learner.parameters():
            p.grad = None
        smooth = _follows_small_changes(case, learner)
    except Exception:
        return case.warmed(), lambda episode: episode, torch.float32
    loss = metrics.get("loss")
    exact = smooth and not (isinstance(loss, Tensor) and loss.dtype != torch.float64)
    return learner, doubled, torch.float64 if exact else torch.float32


def _follows_small_changes(case: Case, learner: Any) -> bool:
    """Say whether twice the change of parameters and inputs changes the predictions twice as much."""
    state = state_of(learner)
    names = [n for n, p in learner.named_parameters() if p.is_floating_point()]
    predictions = []
    for step in (0, 1, 2):
        generator = torch.Generator().manual_seed(13)

        def moved(t: Tensor, step: int = step, generator: torch.Generator = generator) -> Tensor:
            if not t.is_floating_point() or not t.numel():
                return t
            noise = torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t)
            return t + step * 1e-10 * noise

        restore(learner, {**state, **{n: moved(state[n]) for n in names}})
        predictions.append(case.predict(learner, map_tensors(moved, doubled(case.episode()))))
    restore(learner, state)
    once, twice = predictions[1] - predictions[0], predictions[2] - predictions[0]
    return bool(once.norm() > 0) and bool((twice - 2 * once).norm() < 1e-2 * once.norm())
