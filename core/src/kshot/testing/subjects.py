"""Represent what a rule receives: the component under test, and the tasks or the learner with which it is tested."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kshot.episode import Episode, Origin
from kshot.errors import KshotError
from kshot.protocols import TaskDistribution
from kshot.randomness import seeded
from kshot.spec import KIND_NAMES, Needs, TaskSpec
from kshot.testing import sample_tasks
from kshot.testing.cases import Case, block_of
from kshot.testing.rulebook.rule import broken
from kshot.testing.source import Source

Labels = tuple[NDArray[np.int64], int, "Origin | None"]
"""Labels of queries [B, n], the way, and the origin."""


class TasksSubject:
    """Tasks under test.

    Args:
        source: builds the tasks.

    Example:
        >>> subject = TasksSubject(Source("tasks", sample_tasks.classification, {"way": (2, 4), "block": 4}))
        >>> subject.block(first=2)  # episodes 4 and 5 are in another block
        range(2, 4)
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._labels: list[Labels] | None = None

    @functools.cached_property
    def tasks(self) -> TaskDistribution:
        """The tasks, built once, because loading their data may take seconds."""
        tasks: TaskDistribution = self.source.build()
        return tasks

    @property
    def spec(self) -> TaskSpec:
        """The spec of the tasks, checked to be a ``TaskSpec``."""
        spec = self.tasks.spec
        if not isinstance(spec, TaskSpec):
            broken(f"spec: got {type(spec).__name__}, expected a kshot.TaskSpec")
        return spec

    def block(self, first: int = 0, most: int = 4) -> range:
        """Return the numbers of episodes, from ``first`` on, that may be sampled together."""
        return block_of(self.spec, first, most)

    def labels(self, episodes: int) -> list[Labels]:
        """Return what the first ``episodes`` episodes of the first split say of labels, without their inputs."""
        if self._labels is None:
            self._labels = [
                (e.query.y.numpy().copy(), e.support.way or 0, e.origin)
                for e in self.many(self.spec.splits[0], episodes)
            ]
        return self._labels

    def many(self, split: str, episodes: int, at_once: int = 64) -> Iterator[Episode]:
        """Sample the first ``episodes`` episodes of a split, as meta-batches of at most ``at_once``."""
        done = 0
        while done < episodes:
            indices = self.block(done, min(at_once, episodes - done))
            yield self.tasks.sample(split, indices)
            done = indices.stop


class LearnerSubject:
    """A learner under test, with the tasks on which it is tried.

    Args:
        source: builds the learner.
        tasks: the tasks that the user gave; if there are none, the kit's own are used.

    Example:
        >>> lines = Source("tasks", sample_tasks.Lines(), {})
        >>> [case.kind for case in LearnerSubject(Source("learners", lambda spec: None, {}), [lines]).cases]
        ['regression']
    """

    def __init__(self, source: Source, tasks: Sequence[Source] = ()) -> None:
        self.source = source
        self.given = tuple(tasks)

    @functools.cached_property
    def declared(self) -> Needs | None:
        """The needs of the class, or None if the learner is built by a function."""
        needs = getattr(self.source.factory, "needs", None)
        return needs if isinstance(needs, Needs) else None

    @functools.cached_property
    def cases(self) -> tuple[Case, ...]:
        """The learner on each task distribution: those given, or the kit's own for each kind that it declares."""
        if self.given:
            built = [(s.who, s.build()) for s in self.given]
            return tuple(Case(name, tasks, self.source) for name, tasks in built)
        kinds = self.declared.kinds if self.declared is not None else KIND_NAMES
        accepted: list[Case] = []
        refused: dict[str, str] = {}
        for kind in kinds:
            accepts_kind = False
            for name, choices in sample_tasks.choices(kind, self.declared or Needs()):
                answer = self._first_accepted(name, choices)
                if isinstance(answer, Case):
                    accepted.append(answer)
                    accepts_kind = True
                else:
                    refused[name] = answer
            if not accepts_kind and self.declared is not None:
                tried = "; ".join(f"{name}: {why}" for name, why in refused.items())
                broken(
                    f"needs.kinds has {kind!r}, but the learner refuses all the kit's tasks of that kind ({tried}); "
                    "correct its needs, or give tasks that it can learn: suite(learner=..., tasks=...)"
                )
        if not accepted:
            reasons = "; ".join(f"{name}: {why}" for name, why in refused.items())
            broken(
                f"the learner refuses all the kit's tasks ({reasons}); give tasks that it can learn: "
                "suite(learner=..., tasks=...)"
            )
        if self.declared is None:
            # A function declares no needs. The learner that it built does, and may ask for more tasks.
            seen = {case.name for case in accepted}
            for kind in {case.kind for case in accepted}:
                for name, choices in sample_tasks.choices(kind, accepted[0].needs):
                    more = self._first_accepted(name, choices) if name not in seen else ""
                    if isinstance(more, Case):
                        accepted.append(more)
        return tuple(accepted)

    def _first_accepted(self, name: str, choices: Sequence[sample_tasks.Factory]) -> Case | str:
        """Return the first case that the learner accepts, or the reason why it refuses the first of the tasks."""
        why = ""
        for factory in choices:
            case = Case(name, factory(), self.source)
            try:
                needs = case.needs
            except KshotError as refusal:
                why = why or str(refusal)
                continue
            if case.kind in needs.kinds:
                return case
            why = f"this instance needs {', '.join(needs.kinds)}"
        return why


class MemorySubject:
    """A memory under test.

    Args:
        source: builds the memory's factory.
    """

    SIZES = (6, 4, 2)

    def __init__(self, source: Source) -> None:
        self.source = source

    def build(self) -> Any:
        """Build a memory of 6 slots of width 4 with 2 read heads, or of the sizes among the user's options."""
        with seeded("conformance", "memory"):
            return self.source.build()(*self.SIZES).eval()

    def interfaces(self, memory: Any, steps: int = 3, B: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw interface vectors [steps, B, interface_size], which stand for a controller's outputs."""
        generator = torch.Generator().manual_seed(7)
        return torch.randn(steps, B, memory.interface_size, generator=generator).to(dtype)


class BackendSubject:
    """A backend under test.

    Args:
        source: builds the backend.
    """

    def __init__(self, source: Source) -> None:
        self.source = source

    @functools.cached_property
    def backend(self) -> Any:
        """The backend, built once."""
        return self.source.build()


class EncoderSubject:
    """An encoder under test, and the inputs that it embeds.

    Args:
        source: builds the encoder.
        tasks: the tasks that the user gave, of which the first is used. If there are none, the inputs are random
            numbers of the first of ``SHAPES`` that the encoder accepts.

    Example:
        >>> from torch import nn
        >>> EncoderSubject(Source("encoders", lambda spec: nn.Flatten(), {})).inputs(2).shape
        torch.Size([2, 3, 32, 32])
    """

    SHAPES = ((3, 32, 32), (1, 32, 32), (1, 16000), (16000,), (6,))

    def __init__(self, source: Source, tasks: Sequence[Source] = ()) -> None:
        self.source = source
        self.given = tuple(tasks)

    @functools.cached_property
    def spec(self) -> TaskSpec:
        """The spec of the tasks whose inputs it embeds."""
        if self.given:
            spec = self.given[0].build().spec
            assert isinstance(spec, TaskSpec)
            return spec
        refused = []
        for shape in self.SHAPES:
            spec = TaskSpec(kind="classification", input_shape=shape, input_range=(0.0, 1.0), way=2, shot=1, query=1)
            try:
                self.source.build(spec)
            except KshotError as refusal:
                refused.append(f"{list(shape)}: {refusal}")
            else:
                return spec
        return broken(
            f"the encoder refuses inputs of all shapes that the kit tries ({'; '.join(refused)}); give tasks whose "
            "inputs it embeds: suite(encoder=..., tasks=...)"
        )

    def build(self, **changed: Any) -> Any:
        """Build a new encoder."""
        return self.source.build(self.spec, **changed)

    def inputs(self, n: int) -> Tensor:
        """Return n inputs [n, *input]: those of an episode of the tasks, or random numbers from 0 to 1."""
        if not self.given:
            return torch.rand(n, *self.spec.input_shape, generator=torch.Generator().manual_seed(n))
        tasks: TaskDistribution = self.given[0].build()
        x: list[Tensor] = []
        while sum(map(len, x)) < n:
            episode = tasks.sample(self.spec.splits[0], [len(x)])
            x.append(torch.cat([episode.support.x, episode.query.x], 1)[0])
        return torch.cat(x)[:n].clone()


class HookSubject:
    """A hook under test.

    Args:
        source: builds the hook.

    Example:
        >>> HookSubject(Source("hooks", "progress", {"seconds": 60})).build().seconds
        60.0
    """

    def __init__(self, source: Source) -> None:
        self.source = source

    def build(self) -> Any:
        """Build a new object of the hook, so that no rule sees what another one left in it."""
        return self.source.build()
