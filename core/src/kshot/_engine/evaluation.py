"""Evaluate a learner: adapt to the support of each episode, score the predictions on its queries, and report.

Letters: B episodes of a batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kshot._engine.attack import Attack
from kshot._engine.modes import evaluating
from kshot._engine.processes import exchange
from kshot._engine.provenance import describe, initial_seed, versions
from kshot._engine.result import Result
from kshot.devices import sample_on
from kshot.episode import Episode, Examples, Predictor
from kshot.errors import TrainingError
from kshot.kinds import KINDS
from kshot.nn.dependence import check_queries
from kshot.protocols import Backend, EngineView, TaskDistribution, World
from kshot.registry import rebuild
from kshot.spec import TaskSpec

CLASSES = "classes of the split"
"""The name under which the classes of each episode [B, N] are passed on with its scores."""

Perturb = Callable[[Predictor, Examples], Examples]
"""A function from (predictor, query examples) to the examples that are predicted instead."""

BUDGET = 700_000
"""Numbers in the inputs of one evaluation batch: about 900 drawings of 28 x 28, whose activations in a network of four
convolutions fit into a processor's caches."""


def score_episodes(
    learner: Any,
    tasks: TaskDistribution,
    split: str,
    batches: Sequence[range],
    backend: Backend,
    perturb: Perturb | None = None,
    attack: Attack | None = None,
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Yield for each batch of episode indices (number of episodes done, scores {name: [B, ...]}), and their classes.

    The learner sees the support only, and query inputs if it declares that it needs them. Only the scorer of the kind
    sees query labels.
    """
    score = KINDS[tasks.spec.kind].score

    def adapt(episode: Episode) -> Predictor:
        """Adapt: what the learner gets has no query labels in it."""
        predictor: Predictor = learner.adapt(episode.for_adapting(learner.needs.queries))
        return predictor

    for indices in batches:
        episode = sample_on(backend, tasks, split, indices)
        check_queries(learner, episode, tasks.spec.kind)  # once for each learner
        with torch.no_grad(), backend.autocast():
            # 1. Adapt, to an attacked support if asked.
            if attack is not None:
                episode = attack.support(adapt, episode, tasks.spec)
            predictor = adapt(episode)
            # 2. Perturb or attack the queries, if asked. A learner that adapts to queries adapts to the attacked ones.
            if perturb is not None:
                episode = attrs.evolve(episode, query=perturb(predictor, episode.query))
            if attack is not None:
                episode = attack.query(predictor, episode, tasks.spec)
                predictor = adapt(episode) if learner.needs.queries == "at_adapt" else predictor
            # 3. Predict and score. NaN would be scored too: as the first class, or left out of the mean.
            tabular = tasks.spec.kind in ("classification", "regression", "sequence")
            checked = _without_nan(predictor, split, indices) if tabular else predictor
            scores = score(checked, episode)
        rows = {name: values.detach().cpu().double() for name, values in scores.items()}
        if episode.origin is not None and episode.origin.classes is not None:
            rows[CLASSES] = torch.as_tensor(episode.origin.classes)
        yield indices[-1] + 1, rows


def _without_nan(predictor: Predictor, split: str, indices: range) -> Predictor:
    """Return a predictor that raises TrainingError if a prediction is NaN."""

    def checked(x: Tensor) -> Tensor:
        predictions = predictor(x)
        if bool(predictions.isnan().any()):
            raise TrainingError(
                f"the predictor: got NaN predictions on episodes {indices[0]}..{indices[-1]} of split {split!r}, "
                "expected numbers; the learner has diverged, or divides by 0 on these episodes: lower the learning "
                "rates, or look at tasks.sample(split, indices)"
            )
        return predictions

    return checked


def evaluated(
    learner: Any,
    tasks: TaskDistribution,
    split: str,
    batches: Sequence[range],
    backend: Backend,
    world: World,
    perturb: Perturb | None,
    attack: Attack | None,
    progress: Callable[[int], None],
) -> dict[str, list[Tensor]]:
    """Evaluate this rank's share of the batches and exchange the scores: every rank returns those of all batches.

    Args:
        progress: called after each batch with the number of episodes done.

    Returns:
        For each score, and for the classes, the values [B, ...] on every batch, in the order of the batches.
    """
    own: list[dict[str, Tensor]] = []  # scores of the batches r, r + size, r + 2 size, ... of rank r
    with evaluating(learner):
        own_batches = batches[world.rank :: world.size]
        for done, scores in score_episodes(learner, tasks, split, own_batches, backend, perturb, attack):
            own.append(scores)
            progress(done)
    # Put the batches back in order: batch i is number i // size of rank i % size.
    shares = exchange(world, own)
    rows: dict[str, list[Tensor]] = {}
    for i in range(len(batches)):
        for name, values in shares[i % world.size][i // world.size].items():
            rows.setdefault(name, []).append(values)
    return rows


def batches_of(episodes: int, first: Episode, tasks: TaskDistribution, batch: int | None) -> list[range]:
    """Divide the indices of ``episodes`` episodes into batches.

    Args:
        first: the first episode, from which the size of all is judged.
        batch: episodes per batch; None for as many as ``BUDGET`` allows, at most 64.
    """
    size = batch or min(64, max(1, BUDGET // max(1, first.support.x[0].numel() + first.query.x[0].numel())))
    # Episodes of different shapes can't be stacked, so a batch must not reach over the end of a block of one shape.
    if tasks.spec.varies:
        size = math.gcd(size, tasks.spec.block)
    return [range(i, min(i + size, episodes)) for i in range(0, episodes, size)]


def with_options(learner: Any, spec: TaskSpec, backend: Backend, options: Mapping[str, Any]) -> Any:
    """Return a learner with the same parameters and other options, or the learner itself if no options are given."""
    if not options:
        return learner
    other = backend.place(rebuild(learner, spec, **options))
    other.load_state_dict(learner.state_dict())
    return other


def result_of(
    engine: EngineView,
    rows: Mapping[str, Sequence[Tensor]],
    learner: Any,
    tasks: TaskDistribution,
    split: str,
    *,
    perturb: Perturb | None,
    attack: Attack | None,
    disjoint: bool = False,
    started: float,
) -> Result:
    """Return a ``Result``: the scores, and everything that is needed to interpret them.

    Args:
        rows: for each score, and for the classes, the values [B, ...] on every batch.
        started: when the evaluation began, by ``time.perf_counter``.
    """
    spec = tasks.spec.to_dict()
    classes = rows.get(CLASSES, ())
    return Result(
        scores={name: join(values) for name, values in rows.items() if name != CLASSES},
        classes=torch.cat(list(classes)).numpy() if len({t.shape[1:] for t in classes}) == 1 else None,
        kind=tasks.spec.kind,
        split=split,
        tasks_seed=int(getattr(tasks, "seed", 0)),
        seed=engine.seed,
        learner_seed=initial_seed(learner),
        shape={n: spec[n] for n in ("way", "shot", "query")},
        normalisation=normalisation_of(learner),
        queries=learner.needs.queries,
        learner=describe(learner),
        tasks=describe(tasks),
        backend=dict(engine.backend.describe()),
        versions=versions(learner, tasks, engine.backend),
        data=str(getattr(tasks, "fingerprint", "")),
        iteration=engine.parameters_iteration,
        perturbed=perturb is not None or (attack is not None and attack.on != "support"),
        attack={} if attack is None else attack.plain(),
        disjoint=disjoint,
        wall=time.perf_counter() - started,
    )


def join(values: Sequence[Tensor]) -> NDArray[np.float64]:
    """Concatenate the batches of one score into one array [episodes, ...]; shorter curves are padded with NaN."""
    arrays = [v.numpy() for v in values]
    if len({a.shape[1:] for a in arrays}) > 1:
        longest = max(a.shape[1] for a in arrays)
        arrays = [np.pad(a, [(0, 0), (0, longest - a.shape[1])], constant_values=np.nan) for a in arrays]
    return np.concatenate(arrays)


def normalisation_of(learner: Any) -> str:
    """Return the policy of the learner's encoders, or ``none`` if nothing is normalised by batch statistics."""
    policies = {m.normalisation for m in learner.modules() if getattr(m, "has_batch_norm", False)}
    return "+".join(sorted(policies)) if policies else "none"
