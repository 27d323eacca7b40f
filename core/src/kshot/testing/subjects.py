"""The component under test, and how fresh ones of its like are made: what a rule is given."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from kshot.episode import Episode, map_tensors
from kshot.errors import KshotError, OptionError
from kshot.protocols import TaskDistribution
from kshot.randomness import seeded
from kshot.registry import SINGULAR, Plugin, Registry, default
from kshot.spec import KIND_NAMES, Needs, TaskSpec
from kshot.testing import sample_tasks
from kshot.testing.rulebook.rule import broken


@functools.cache
def _private() -> tuple[Registry, Iterator[int]]:
    """A registry for classes and factories under test, in which they disturb nothing, and their numbers."""
    return Registry(), itertools.count()


class Source:
    """A component's name, class, factory or the thing itself, with options: makes fresh ones.

    Args:
        group: the registry's group.
        given: a name, a class or factory, or (tasks and backends) an object that is already built.
        options: of the factory.

    Raises:
        OptionError: what was given is none of these, or it is built and there are options.
    """

    def __init__(self, group: str, given: Any, options: Mapping[str, Any]) -> None:
        self.group, self.given, self.options = group, given, dict(options)
        built_by = {"tasks": "sample", "backends": "place"}.get(group)
        self.is_built = not isinstance(given, str | type) and built_by is not None and hasattr(given, built_by)
        if self.is_built and options:
            raise OptionError(f"suite: options {', '.join(options)} came for {SINGULAR[group]} that are already built")
        if not (isinstance(given, str) or callable(given) or self.is_built):
            raise OptionError(f"suite: {SINGULAR[group]} is {given!r}, expected a plugin's name, a class or a factory")

    @property
    def who(self) -> str:
        name = self.given if isinstance(self.given, str) else getattr(self.given, "__qualname__", None)
        return f"{SINGULAR[self.group]} {name or type(self.given).__qualname__}"

    @functools.cached_property
    def _registered(self) -> tuple[Registry, str]:
        """Where it is built by name: a plugin in the process's registry, a factory in one of the kit's own, so that
        its options are checked as a plugin's are."""
        if isinstance(self.given, str):
            return default, self.given
        registry, numbers = _private()
        name = f"under-test-{next(numbers)}"
        registry.register(self.given, name=name, group=self.group)
        return registry, name

    @property
    def plugin(self) -> Plugin | None:
        """As the registry lists it; None where it was not asked for by name."""
        return default.find(self.given, self.group) if isinstance(self.given, str) else None

    @property
    def factory(self) -> Callable[..., Any]:
        """What builds it. Raises PluginError, Unavailable."""
        return default.load(self.given, self.group) if isinstance(self.given, str) else self.given

    def takes(self, option: str) -> bool:
        """Whether the factory has this option."""
        return not self.is_built and option in inspect.signature(self.factory).parameters

    def build(self, *leading: Any, **changed: Any) -> Any:
        """A fresh component (the same object where it was given built)."""
        if self.is_built:
            return self.given
        registry, name = self._registered
        return getattr(registry, SINGULAR[self.group])(name, *leading, **{**self.options, **changed})


# --- Tasks ----------------------------------------------------------------------------------------


class TasksSubject:
    """Tasks under test."""

    def __init__(self, source: Source) -> None:
        self.source = source

    @functools.cached_property
    def tasks(self) -> TaskDistribution:
        """One of them, kept: data may take seconds to load."""
        made: TaskDistribution = self.source.build()
        return made

    @property
    def spec(self) -> TaskSpec:
        spec = self.tasks.spec
        if not isinstance(spec, TaskSpec):
            broken(f"spec is {type(spec).__name__}, expected a kshot.TaskSpec")
        return spec

    def block(self, first: int = 0, most: int = 4) -> range:
        """Numbers of episodes that may be sampled together, from ``first`` on."""
        return block_of(self.spec, first, most)

    def many(self, split: str, episodes: int) -> Iterator[Episode]:
        """The first ``episodes`` of a split, in meta-batches."""
        done = 0
        while done < episodes:
            indices = self.block(done, min(64, episodes - done))
            yield self.tasks.sample(split, indices)
            done = indices.stop


def block_of(spec: TaskSpec, first: int, most: int) -> range:
    """At most ``most`` episode numbers from ``first`` on that lie within one block."""
    end = first + most
    return range(first, min(end, (first // spec.block + 1) * spec.block) if spec.varies else end)


# --- Learners -------------------------------------------------------------------------------------


@attrs.define(eq=False, slots=False)
class Case:
    """A learner on one task distribution.

    Attributes:
        name: what the tasks are.
        tasks: the tasks.
        source: makes the learner.
    """

    name: str
    tasks: TaskDistribution
    source: Source

    @property
    def kind(self) -> str:
        return self.tasks.spec.kind

    @functools.cached_property
    def needs(self) -> Needs:
        """The needs of a learner that was built for these tasks."""
        needs: Needs = self.build().needs
        return needs

    def build(self, seed: int = 0) -> Any:
        """A freshly initialised learner, in evaluation mode."""
        learner = self.source.build(self.tasks.spec, seed=seed)
        return learner.eval()

    def trained(self) -> Any:
        """A learner after three outer steps, so that nothing is 0 or 1 by its initialisation only."""
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
        """A fresh learner in the state that a few outer steps lead to."""
        learner = self.build()
        restore(learner, self._trained)
        return learner

    @property
    def size(self) -> int:
        """Tasks in a meta-batch of the kit: three, or fewer where blocks are smaller."""
        return len(block_of(self.tasks.spec, 0, 3))

    @property
    def training(self) -> str:
        """The split on which gradients are computed: the first."""
        return self.tasks.spec.splits[0]

    def episode(self, tasks: int | None = None, first: int = 0, split: str | None = None) -> Episode:
        """A fresh meta-batch: environments have their whole budget."""
        split = split or self.tasks.spec.splits[-1]
        return self.tasks.sample(split, block_of(self.tasks.spec, first, tasks or self.size))

    def single(self, index: int, split: str | None = None) -> Episode:
        return self.tasks.sample(split or self.tasks.spec.splits[-1], [index])

    def probe(self, episode: Episode) -> Tensor:
        """What a predictor is asked: the query inputs; of a policy, a few observations."""
        if self.kind != "control":
            return episode.query.x
        B = episode.size
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(1, 5, *self.tasks.spec.input_shape, generator=generator)
        return x.expand(B, *x.shape[1:]).to(episode.support.key.device)

    def predict(self, learner: Any, episode: Episode, x: Tensor | None = None, queries: Tensor | None = None) -> Tensor:
        """Adapt and predict as the engine does at evaluation.

        Args:
            x: what to predict instead of the query inputs.
            queries: what ``at_adapt`` learners see instead of ``x``.
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
            broken(f"on {self.name}: the predictor returned {type(predictions).__name__}, expected a tensor")
        return predictions.detach()


def floats_of(learner: Any) -> torch.dtype:
    """The precision of a learner's parameters."""
    return next((p.dtype for p in learner.parameters() if p.is_floating_point()), torch.float32)


OUTER_STEPS = 3
"""So many outer steps on one meta-batch are looked at, of a learner whose ``meta_gradient`` is a generator."""


def outer_steps(learner: Any, episode: Episode, seed: int = 0) -> Iterator[Mapping[str, Any]]:
    """Call ``meta_gradient`` as the engine does: after each of at most ``OUTER_STEPS`` outer steps, its metrics.

    Gradients are in ``.grad``; to clear them, and to step the parameters in between, is the caller's part.
    """
    answer: Any = None
    for step in range(OUTER_STEPS):
        learner.train()
        try:
            with seeded("conformance", seed, step):
                if step == 0:
                    answer = learner.meta_gradient(episode)
                metrics = next(answer, None) if isinstance(answer, Iterator) else answer
        finally:
            learner.eval()
        if metrics is None and step:
            return
        if not isinstance(metrics, Mapping):
            broken(
                f"meta_gradient gave {type(metrics).__name__}, expected a mapping of scalars, or a generator of them"
            )
        yield metrics
        if not isinstance(answer, Iterator):
            return


def gradient(learner: Any, episode: Episode, seed: int = 0) -> Mapping[str, Any]:
    """The metrics of the first outer step on a meta-batch; its gradient is added to ``.grad``."""
    return next(outer_steps(learner, episode, seed))


def clear(learner: Any) -> None:
    """No gradient anywhere, as the engine leaves it before each outer step."""
    for p in learner.parameters():
        p.grad = None


def take_step(learner: Any, gradients: Mapping[str, Tensor] | None = None) -> None:
    """A small outer step along ``gradients``, or along ``.grad``, which is cleared: a twentieth of each parameter."""
    if gradients is not None:
        for n, p in learner.named_parameters():
            p.grad = gradients[n].clone() if n in gradients else None
    with torch.no_grad():
        for p in learner.parameters():
            if p.requires_grad and p.grad is not None:
                p -= 0.05 * p.norm().clamp_min(0.1) * p.grad / p.grad.norm().clamp_min(1e-12)
    clear(learner)


def grads(learner: Any) -> dict[str, Tensor]:
    """The gradients there are, by parameter."""
    return {n: p.grad.detach().clone() for n, p in learner.named_parameters() if p.grad is not None}


def gradients_of(learner: Any, *parts: Episode, seed: int = 0) -> list[dict[str, Tensor]]:
    """The mean gradient over ``parts`` at each outer step on them; the learner's state is restored.

    Their generators advance together, as those of the engine's chunks do: each part sees the same parameters and the
    same buffers at an outer step, and afterwards the parameters are stepped along the mean.
    """
    before = state_of(learner)
    running = [outer_steps(learner, part, seed) for part in parts]
    found: list[dict[str, Tensor]] = []
    while True:
        start = state_of(learner)
        own: list[dict[str, Tensor]] = []
        for steps in running:
            restore(learner, start)
            clear(learner)
            if next(steps, None) is not None:
                own.append(grads(learner))
        if len(own) < len(running):
            if own:
                broken(
                    f"on {len(own)} of {len(running)} tasks it takes more than {len(found)} outer steps, on the others "
                    "it does not; expected as many on each, so that chunks of a meta-batch advance together"
                )
            restore(learner, before)
            clear(learner)
            return found
        names = {n for each in own for n in each}
        mean = {n: sum((each[n] for each in own if n in each), torch.zeros(())) / len(own) for n in sorted(names)}
        found.append(mean)
        restore(learner, start)
        take_step(learner, mean)


def after(learner: Any, episode: Episode, taken: Sequence[Mapping[str, Tensor]]) -> Iterator[Mapping[str, Any]]:
    """``outer_steps``, after the first ones, whose gradients were ``taken``: the learner is as ``gradients_of`` had it
    then."""
    steps = outer_steps(learner, episode)
    for gradients in taken:
        start = state_of(learner)
        next(steps)
        restore(learner, start)
        take_step(learner, gradients)
    return steps


def state_of(learner: Any) -> dict[str, Tensor]:
    """Parameters and all buffers, copied."""
    both = [*learner.named_parameters(), *learner.named_buffers()]
    return {name: t.detach().clone() for name, t in both}


def restore(learner: Any, state: Mapping[str, Tensor]) -> None:
    """Put parameters and buffers back, in place."""
    with torch.no_grad():
        for name, t in [*learner.named_parameters(), *learner.named_buffers()]:
            if name in state:
                t.copy_(state[name])


def doubled(value: Any) -> Any:
    """Floating-point tensors of a value in float64."""
    return map_tensors(lambda t: t.double() if t.is_floating_point() else t, value)


def precise(case: Case) -> tuple[Any, Callable[[Episode], Episode], torch.dtype]:
    """A warmed learner in float64, how to cast its episodes, and the precision it really computes in.

    A learner that can't (or an environment that stays in float32) is taken as it is. One that rounds to float32
    somewhere within is known by its steps: its predictions don't follow changes of a size of 1e-10.
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
    """Whether twice the change of parameters and inputs changes the predictions twice as much."""
    state = state_of(learner)
    names = [n for n, p in learner.named_parameters() if p.is_floating_point()]
    found = []
    for step in (0, 1, 2):
        generator = torch.Generator().manual_seed(13)

        def moved(t: Tensor, step: int = step, generator: torch.Generator = generator) -> Tensor:
            if not t.is_floating_point() or not t.numel():
                return t
            noise = torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t)
            return t + step * 1e-10 * noise

        restore(learner, {**state, **{n: moved(state[n]) for n in names}})
        found.append(case.predict(learner, map_tensors(moved, doubled(case.episode()))))
    restore(learner, state)
    once, twice = found[1] - found[0], found[2] - found[0]
    return bool(once.norm() > 0) and bool((twice - 2 * once).norm() < 1e-2 * once.norm())


class LearnerSubject:
    """A learner under test, with what it is tried on.

    Args:
        source: makes the learner.
        tasks: what the user gave to try it on; none for the kit's own.
    """

    def __init__(self, source: Source, tasks: Sequence[Source] = ()) -> None:
        self.source = source
        self.given = tuple(tasks)

    @functools.cached_property
    def declared(self) -> Needs | None:
        """The class's needs, where what builds the learner is its class."""
        needs = getattr(self.source.factory, "needs", None)
        return needs if isinstance(needs, Needs) else None

    @functools.cached_property
    def cases(self) -> tuple[Case, ...]:
        """Every task distribution it is tried on: the given ones, else the kit's for each kind it declares."""
        if self.given:
            built = [(s.who, s.build()) for s in self.given]
            return tuple(Case(name, tasks, self.source) for name, tasks in built)
        kinds = self.declared.kinds if self.declared is not None else KIND_NAMES
        found, refused = [], {}
        for kind in kinds:
            accepted = False
            for name, choices in sample_tasks.choices(kind, self.declared or Needs()):
                answer = self._first_accepted(name, choices)
                if isinstance(answer, Case):
                    found.append(answer)
                    accepted = True
                else:
                    refused[name] = answer
            if not accepted and self.declared is not None:
                tried = "; ".join(f"{name}: {why}" for name, why in refused.items())
                broken(
                    f"needs.kinds has {kind!r}, but the learner refuses all the kit's tasks of that kind ({tried}); "
                    "correct its needs, or say what it can learn: suite(learner=..., tasks=...)"
                )
        if not found:
            broken(f"the learner refuses all the kit's tasks: {'; '.join(f'{n}: {why}' for n, why in refused.items())}")
        if self.declared is None:  # a factory told nothing: the learner it made says what it needs
            seen = {case.name for case in found}
            for kind in {case.kind for case in found}:
                for name, choices in sample_tasks.choices(kind, found[0].needs):
                    more = self._first_accepted(name, choices) if name not in seen else ""
                    if isinstance(more, Case):
                        found.append(more)
        return tuple(found)

    def _first_accepted(self, name: str, choices: Sequence[sample_tasks.Factory]) -> Case | str:
        why = ""
        for make in choices:
            case = Case(name, make(), self.source)
            try:
                needs = case.needs
            except KshotError as refusal:
                why = why or str(refusal)
                continue
            if case.kind in needs.kinds:
                return case
            why = f"this instance needs {', '.join(needs.kinds)}"
        return why


# --- Memories and backends ------------------------------------------------------------------------


class MemorySubject:
    """A memory under test."""

    SIZES = (6, 4, 2)

    def __init__(self, source: Source) -> None:
        self.source = source

    def build(self) -> Any:
        """A fresh memory of 6 slots of width 4 with 2 read heads, or the sizes among the user's options."""
        with seeded("conformance", "memory"):
            return self.source.build()(*self.SIZES).eval()

    def interfaces(self, memory: Any, steps: int = 3, B: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
        """What a controller might say: [steps, B, interface_size]."""
        generator = torch.Generator().manual_seed(7)
        return torch.randn(steps, B, memory.interface_size, generator=generator).to(dtype)


class BackendSubject:
    """A backend under test."""

    def __init__(self, source: Source) -> None:
        self.source = source

    @functools.cached_property
    def backend(self) -> Any:
        return self.source.build()
