"""Rules for learners: what they may see and change, and how queries and tasks may affect each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import torch
from torch import Tensor

from kshot.randomness import seeded
from kshot.testing.cases import Case, precise
from kshot.testing.compare import changed, clones, difference, gap, named_tensors, tolerance, watched
from kshot.testing.outer_steps import gradient, gradients_of, restore, state_of
from kshot.testing.rulebook.learner_rule import TABLES, learner_rule, only
from kshot.testing.rulebook.process import left_alone, seed_all, seeded_by
from kshot.testing.rulebook.rule import broken

# --- What a learner sees --------------------------------------------------------------------------


def poisoned(y: Tensor, way: int | None, kind: str) -> Tensor:
    """Return labels that all differ from ``y``: other classes, other numbers (some NaN), or other weights of steps."""
    if kind == "objective":
        return 1 + 2 * y.flip(1)
    if y.is_floating_point():
        wrong = -1e3 * (y.nan_to_num() + 1)
        wrong.flatten()[::2] = torch.nan
        return wrong
    return (y + 1) % way if way and way > 1 else 1 - y


@learner_rule()
def query_labels_unseen(case: Case) -> None:
    """Query labels do not affect predictions. After ``meta_gradient`` on an episode with wrong query labels, and with
    the learner's state restored, ``adapt`` gives the same predictions, bit for bit, as after an episode with the true
    labels. In a stream, where the input of step t + 1 shows the label of step t, the label y_t does not affect
    predictions up to step t.
    """
    learner = case.warmed()
    state = state_of(learner)
    predictions = []
    for poison in (False, True):
        episode = case.episode(split=case.training)
        if poison:
            y = poisoned(episode.query.y, episode.support.way, case.kind)
            episode = attrs.evolve(episode, query=attrs.evolve(episode.query, y=y))
        gradient(learner, episode)
        restore(learner, state)
        predictions.append(case.predict(learner, case.episode(split=case.training)))
    if (far := gap(*predictions)) > 0:
        broken(
            f"got predictions that differ by {far:.2g} of the greatest one after meta_gradient with other query "
            "labels, expected the same bits; keep nothing of an episode on the learner"
        )
    if "stream" in case.tasks.spec.provides:
        _check_causal(case, learner)


def _check_causal(case: Case, learner: Any) -> None:
    """Replace a stream from step t + 1 on, which shows y_t, and compare the predictions up to step t."""
    episode, other = case.episode(), case.episode(first=case.tasks.spec.block * 7)
    x = episode.query.x
    T = min(x.shape[1], other.query.x.shape[1])
    original = case.predict(learner, episode, x[:, :T])
    for t in {0, T // 2, T - 2} - {-1}:
        later = torch.cat([x[:, : t + 1], other.query.x[: len(x), t + 1 : T]], 1)
        predictions = case.predict(learner, case.episode(), later)
        far = gap(original[:, : t + 1], predictions[:, : t + 1])
        if far > 1e-5:
            broken(
                f"got predictions up to step {t} that differ by {far:.2g} of the greatest one when the stream differs "
                f"from step {t + 1} on, which shows y_{t}, expected the same; use inputs of earlier steps only"
            )


@learner_rule()
def adapt_changes_nothing(case: Case) -> None:
    """``adapt`` and its predictor change nothing: neither parameters, buffers, gradients and ``requires_grad``, nor the
    mode and the hooks of any submodule, the tensors of the support and of the queries, or the states of the global
    random generators. This holds with gradients enabled and disabled. The learner is in evaluation mode.
    """
    learner = case.warmed()
    for p in learner.parameters():
        p.grad = torch.full_like(p, 0.5)
    for enabled in (False, True):
        episode = case.episode()
        shown = clones(named_tensors(episode.support))
        seed_all(1729 + enabled)  # a component that seeds them itself is then seen to change their states
        before = watched(learner)
        x = case.probe(episode)
        asked = x.clone()
        with torch.set_grad_enabled(enabled):
            learner.adapt(episode.for_adapting(learner.needs.queries))(x)
        if names := changed(before, watched(learner)):
            mode = "enabled" if enabled else "disabled"
            broken(f"with gradients {mode}: got changes in {', '.join(names[:5])}, expected adapt to change nothing")
        if where := difference(shown, named_tensors(episode.support), 0):
            broken(f"got changes in the support, expected adapt not to write to it: {where}")
        if not torch.equal(asked.nan_to_num(), x.nan_to_num()):
            broken(
                "got changes in the inputs that the predictor was given, expected none; replace operations in place, "
                "such as x.sub_(y), by x - y"
            )


@learner_rule()
def process_is_left_alone(case: Case) -> None:
    """Building a learner, ``meta_gradient`` and ``adapt`` change no setting of the process, such as torch's default
    dtype, its gradient mode or its number of threads, and seed none of the global random generators of torch, numpy
    and Python. ``meta_gradient`` may draw from torch's.
    """
    with left_alone("building it"):
        learner = case.build()

    def train() -> None:
        learner.train()
        answer = learner.meta_gradient(case.episode(split=case.training))
        if isinstance(answer, Iterator):
            next(answer)
        learner.eval()

    def adapt() -> None:
        episode = case.episode()
        learner.adapt(episode.for_adapting(learner.needs.queries))(case.probe(episode))

    for what, act in (("meta_gradient", train), ("adapt", adapt)):
        with torch.enable_grad():
            if names := seeded_by(act, what):
                broken(
                    f"{what}: got the same state of {', '.join(names)} from two different ones, expected none to be "
                    "seeded; draw from kshot.generator(support.key[b], purpose), or use the state that you are given"
                )


@learner_rule()
def predictors_are_values(case: Case) -> None:
    """A predictor gives the same answers each time, also after the learner has adapted to another task: what ``adapt``
    learns is kept by the predictor and not by the learner, and the predictor learns nothing from queries.
    """
    learner = case.warmed()
    far = case.tasks.spec.block * 5
    with torch.no_grad():
        first, second = case.episode(), case.episode(first=far)
        x = case.probe(first)
        expected = case.predict(learner, case.episode(), x)
        predictor = learner.adapt(first.for_adapting(learner.needs.queries))
        once, again = predictor(x), predictor(x)
        learner.adapt(second.for_adapting(learner.needs.queries))(case.probe(second))
        answers = predictor(x)
    if (far_off := gap(once, again)) > tolerance(again.dtype):
        broken(
            f"got answers of a predictor that differ by {far_off:.2g} of the greatest one when it was asked a second "
            "time, expected the same; keep nothing of the queries in the predictor"
        )
    if (far_off := gap(expected, answers)) > tolerance(answers.dtype):
        broken(
            f"got answers of a predictor that differ by {far_off:.2g} of the greatest one after the learner adapted to "
            "another task, expected the same; keep what adapt learns in the predictor"
        )


@learner_rule()
def deterministic(case: Case) -> None:
    """The same state and the same episode give the same predictions, whatever the global random state, and the same
    gradient from the same global random state. While adapting, random numbers come from
    ``kshot.generator(key, purpose)``.
    """
    learner = case.warmed()
    predictions = []
    for seed in (1, 2):
        with seeded("deterministic", seed):
            predictions.append(case.predict(learner, case.episode()))
    if (far := gap(*predictions)) > 1e-6:
        broken(
            f"got predictions that differ by {far:.2g} of the greatest one after adapting twice to one episode, "
            "expected the same; draw from kshot.generator(support.key[b], purpose)"
        )
    gradients = [gradients_of(learner, case.episode(split=case.training), seed=3) for _ in range(2)]
    for first, second in zip(*gradients, strict=True):
        if where := difference(first, second, within=1e-5):
            broken(f"got two gradients of one episode from the same random state, expected the same: {where}")


# --- Queries and batches --------------------------------------------------------------------------


@learner_rule(only(*TABLES))
def query_permutation(case: Case) -> None:
    """If the queries are permuted, so are the predictions. If ``needs.queries`` is ``independent``, each query alone
    gets the same prediction as together with the others.
    """
    learner, cast, dtype = precise(case)
    x = cast(case.episode()).query.x
    together = case.predict(learner, cast(case.episode()), x)
    order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(5))
    followed = case.predict(learner, cast(case.episode()), x[:, order])
    if (far := gap(together[:, order], followed)) > tolerance(dtype):
        broken(f"got predictions that differ by {far:.2g} of the greatest one with permuted queries, expected the same")
    if learner.needs.queries == "independent":
        alone = [case.predict(learner, cast(case.episode()), x[:, i : i + 1]) for i in range(x.shape[1])]
        if (far := gap(together, torch.cat(alone, 1))) > tolerance(dtype):
            broken(
                f"got predictions that differ by {far:.2g} of the greatest one for queries one by one, expected those "
                "of all queries together; or declare needs.queries = 'joint'"
            )


def _cannot_batch(case: Case) -> str | None:
    if case.needs.couples_tasks:
        return "it couples the tasks of a meta-batch"
    return "their blocks have one episode" if case.size < 2 else None


@learner_rule(_cannot_batch)
def batch_equals_singles(case: Case) -> None:
    """Several tasks together get the same predictions as each task alone, and their gradient is the mean of the
    gradients of each task alone (at each outer step, if ``meta_gradient`` is a generator), unless
    ``needs.couples_tasks``. This is checked in float64 if the learner can compute in it. The gradient is not compared
    if it depends on torch's global generator (dropout).
    """
    learner, cast, dtype = precise(case)
    indices = range(case.size)
    together = case.predict(learner, cast(case.episode()))
    alone = torch.cat([case.predict(learner, cast(case.single(i))) for i in indices])
    if (far := gap(together, alone)) > tolerance(dtype):
        broken(
            f"got predictions that differ by {far:.2g} of the greatest one for {case.size} tasks together, expected "
            "those of each task alone; or declare needs.couples_tasks"
        )
    both = [gradients_of(learner, cast(case.episode(split=case.training)), seed=seed) for seed in (1, 2)]
    if any(difference(one, other) for one, other in zip(*both, strict=True)):
        return  # the gradient depends on torch's generator, whose numbers differ between one task and several
    alone_each = gradients_of(learner, *(cast(case.single(i, case.training)) for i in indices))
    if len(both[0]) != len(alone_each):
        broken(
            f"got {len(both[0])} outer steps on {case.size} tasks together, expected {len(alone_each)} as on each "
            "task alone, so that chunks of a meta-batch can advance together"
        )
    for batch, mean in zip(both[0], alone_each, strict=True):
        _check_mean(case, batch, mean, dtype)


def _check_mean(case: Case, batch: dict[str, Tensor], mean: dict[str, Tensor], dtype: torch.dtype) -> None:
    largest = max((float(g.abs().max()) for g in mean.values() if g.numel()), default=0.0)
    for n in sorted(batch.keys() | mean.keys()):
        known = batch[n] if n in batch else mean[n]
        zero = torch.zeros_like(known)
        far = float((mean.get(n, zero) - batch.get(n, zero)).abs().max()) / max(largest, 1e-30)
        if far > tolerance(dtype):
            broken(
                f"got a gradient of {n} over {case.size} tasks that differs by {far:.2g} of the greatest gradient from "
                "the mean over each task alone, expected that mean; or declare needs.couples_tasks"
            )
