"""Test simple methods on the episodes of a test of a folder, so that its score can be judged.

With few examples a training may be worse than no training. The baselines are the nearest mean of the raw inputs, the
learner without training, and the nearest mean of the embeddings of a pretrained encoder.

Letters: B episodes, n queries, S support size.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch.nn.functional as F
from attrs import frozen
from torch import Tensor, nn

from kshot import registry
from kshot._engine.engine import Engine
from kshot._engine.result import Difference, Result
from kshot.data.folder_tasks import FolderTasks
from kshot.episode import Predictor, Support
from kshot.errors import KshotError, PluginError
from kshot.functional import class_means, prototypical_logits
from kshot.kinds import KINDS
from kshot.protocols import Embeds
from kshot.registry.conversion import Raw, parse_literal
from kshot.runs.chosen import chosen_encoder
from kshot.runs.embedded import Embedded
from kshot.runs.fitting import SUGGESTED
from kshot.runs.plan import Parts, Plan, build_learner, component
from kshot.runs.recipe import Table
from kshot.spec import Needs

log = logging.getLogger("kshot.runs")

MOST = 2000
"""Examples of a folder, beyond which a pretrained encoder is not tested, because that would take minutes."""


@frozen
class Baseline:
    """Store the result of a simple method on the episodes of a test.

    Attributes:
        test: label of the test.
        name: the method in words.
        result: its result.
        difference: the learner's headline score minus that of the method, paired by episode.
    """

    test: str
    name: str
    result: Result
    difference: Difference

    def to_dict(self, episodes: bool = True) -> Table:
        """Return plain values; without ``episodes`` not the scores of every episode."""
        result = self.result.to_dict(episodes)
        return {"test": self.test, "name": self.name, "difference": self.difference.to_dict(), "result": result}

    def __str__(self) -> str:
        percent = KINDS[self.result.kind].percent
        factor, unit, points = (100, " %", " points") if percent else (1, "", "")
        mean, gap, half = (factor * n for n in (self.result.mean, self.difference.mean, self.difference.interval))
        return f"  {self.name}: {mean:.2f}{unit}; the learner: {gap:+.2f} ± {half:.2f}{points} on the same episodes"


class NearestMean(nn.Module):
    """Classify a query by the nearest mean of the inputs of a class; nothing is trained.

    Args:
        unit_length: whether inputs are scaled to unit length first.

    Example:
        >>> import torch
        >>> predict = NearestMean().adapt(Support.of([[0.0, 0.0], [3.0, 4.0]], [0, 1]))
        >>> predict(torch.tensor([[[0.0, 0.0]]])).tolist()
        [[[-0.0, -25.0]]]
    """

    needs = Needs(kinds=("classification",), variable_way=True)

    def __init__(self, unit_length: bool = False) -> None:
        super().__init__()
        self.unit_length = unit_length

    def meta_gradient(self, episodes: Any) -> Mapping[str, float]:
        """Return a loss without a gradient, because there is nothing to train."""
        return {"loss": 0.0}

    def adapt(self, support: Support) -> Predictor:
        """Return a function from queries [B, n, *input] to logits [B, n, N]."""
        means = class_means(self._vectors(support.x), support.y, support.way or 0)
        return lambda x: prototypical_logits(self._vectors(x), means)

    def _vectors(self, x: Tensor) -> Tensor:
        """Return inputs [B, n, *input] as vectors [B, n, D]."""
        flat = x.flatten(2).float()
        return F.normalize(flat, dim=-1) if self.unit_length else flat


def baselines(plan: Plan, parts: Parts, results: Mapping[int, Result], labels: Mapping[int, str]) -> list[Baseline]:
    """Test the baselines of each test of images or sounds of a folder.

    Args:
        plan, parts: of the run.
        results: for the number of each test the result of the learner, without an attack.
        labels: for the number of each test its label.
    """
    found = []
    for number, result in results.items():
        for name, other in _results(plan, parts, number, result):
            found.append(Baseline(labels[number], name, other, result.difference_from(other)))
    return found


def folder_below(tasks: Any) -> FolderTasks | None:
    """Return the tasks of a folder that embedded tasks are made of, or the tasks themselves; None for other tasks."""
    below = tasks.of if isinstance(tasks, Embedded) else tasks
    return below if isinstance(below, FolderTasks) else None


def _results(plan: Plan, parts: Parts, number: int, result: Result) -> Iterator[tuple[str, Result]]:
    """Yield the name and the result of each baseline of one test."""
    tasks = parts.tests[number]
    folder = folder_below(tasks)
    if folder is None:
        return
    how: Any = {"split": result.split, "disjoint": result.disjoint, "batch": plan.evaluate.get("batch")}

    def tested(learner: Any, on: Any) -> Result:
        """Return the result of a learner on the episodes of ``result``."""
        return Engine(learner, on, backend=parts.backend, hooks=(), seed=plan.seed).evaluate(result.episodes, **how)

    # 1. The raw inputs.
    yield "nearest mean of raw inputs", tested(NearestMean(), folder)
    # 2. The learner as it was initialised, if it has an encoder, which training has changed.
    if result.iteration and isinstance(parts.learner, Embeds):
        untrained = build_learner(plan, parts.training.spec)
        if own := plan.test_learners[number]:
            untrained = registry.rebuild(untrained, parts.training.spec, **own)
        engine = Engine(untrained, parts.training, backend=parts.backend, hooks=(), seed=plan.seed)
        yield f"{plan.learner['name']} without training", engine.evaluate(result.episodes, tasks=tasks, **how)
    # 3. The pretrained encoder for such files, if it is installed and not the learner's own.
    below = plan.tests[number]
    below = below["of"] if isinstance(tasks, Embedded) else below
    encoder = SUGGESTED.get(str(below["name"]))
    own_encoder = chosen_encoder(plan.learner)
    embeds = tasks.encoder if isinstance(tasks, Embedded) else None
    built = None if embeds is None else registry.built(embeds)
    if encoder is None or encoder in {own_encoder and own_encoder.encoder["name"], built and built.name}:
        return
    if sum(int(folder.pool(split).counts.sum()) for split in folder.spec.splits if split != "trainval") > MOST:
        return
    try:
        yield f"nearest mean of {encoder}", tested(NearestMean(unit_length=True), _embedded(below, encoder))
    except PluginError:  # it is not installed
        return
    except KshotError as error:
        log.info("note: the encoder %s was not tested beside the learner: %s", encoder, error)


def _embedded(tasks: Table, encoder: str) -> Embedded:
    """Return tasks of a folder with the inputs of an encoder, embedded by it.

    Raises:
        KshotError: the plugin can't be used, or the tasks can't be built.
    """
    suits = getattr(registry.load(encoder, "encoders"), "task_options", {})
    suits = dict(suits() if callable(suits) else suits)
    plain = {name: parse_literal(value) if isinstance(value, Raw) else value for name, value in tasks.items()}
    of = component("tasks", {**plain, **suits})
    return Embedded(of, registry.encoder(encoder, of.spec))
