"""Rules for learners: what they see, what they leave alone, and how queries and tasks may act on each other."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor

from kshot.randomness import seeded
from kshot.testing.cases import Case, precise
from kshot.testing.compare import changed, clones, difference, gap, held, named_tensors, tolerance
from kshot.testing.outer_steps import gradient, gradients_of, restore, state_of
from kshot.testing.rulebook.learner_rule import TABLES, learner_rule, only
from kshot.testing.rulebook.rule import broken

# --- What a learner sees --------------------------------------------------------------------------


def poisoned(y: Tensor, way: int | None, kind: str) -> Tensor:
    """Other labels than ``y``; other numbers, NaN among them, where targets are numbers; other weights of steps."""
    if kind == "objective":
        return 1 + 2 * y.flip(1)
    if y.is_floating_point():
        wrong = -1e3 * (y.nan_to_num() + 1)
        wrong.flatten()[::2] = torch.nan
        return wrong
    return (y + 1) % way if way and way > 1 else 1 - y


@learner_rule()
def query_labels_unseen(case: Case) -> None:
    """Query labels reach no prediction: after ``meta_gradient`` on an episode with wrong query labels, with the
    learner's state put back, ``adapt`` and its predictions are the same, bit for bit, as with the true ones. In a
    stream, whose input at t + 1 shows the label of t, the label y_t does not affect predictions up to t.
    """
    learner = case.warmed()
    state = state_of(learner)
    found = []
    for poison in (False, True):
        episode = case.episode(split=case.training)
        if poison:
            y = poisoned(episode.query.y, episode.support.way, case.kind)
            episode = attrs.evolve(episode, query=attrs.evolve(episode.query, y=y))
        gradient(learner, episode)
        restore(learner, state)
        found.append(case.predict(learner, case.episode(split=case.training)))
    if gap(*found) > 0:
        broken(f"with other query labels, predictions differ by {gap(*found):.2g} of the greatest one; expected no bit")
    if "stream" in case.tasks.spec.provides:
        _check_causal(case, learner)


def _check_causal(case: Case, learner: Any) -> None:
    episode, other = case.episode(), case.episode(first=case.tasks.spec.block * 7)
    x = episode.query.x
    T = min(x.shape[1], other.query.x.shape[1])
    whole = case.predict(learner, episode, x[:, :T])
    for t in {0, T // 2, T - 2} - {-1}:
        later = torch.cat([x[:, : t + 1], other.query.x[: len(x), t + 1 : T]], 1)
        seen = case.predict(learner, case.episode(), later)
        far = gap(whole[:, : t + 1], seen[:, : t + 1])
        if far > 1e-5:
            broken(
                f"with another stream from step {t + 1} on, which shows y_{t}, predictions up to step {t} differ by "
                f"{far:.2g} of the greatest one; expected the same"
            )


@learner_rule()
def adapt_changes_nothing(case: Case) -> None:
    """``adapt`` and its predictor leave parameters, buffers, gradients, ``requires_grad``, the mode of every
    submodule, the support's tensors and the states of all random generators as they were; with gradients enabled and
    without. Learners are adapted in evaluation mode.
    """
    learner = case.warmed()
    for p in learner.parameters():
        p.grad = torch.full_like(p, 0.5)
    for enabled in (False, True):
        episode = case.episode()
        shown = clones(named_tensors(episode.support))
        before = held(learner)
        with torch.set_grad_enabled(enabled):
            x = case.probe(episode)
            learner.adapt(episode.for_adapting(learner.needs.queries))(x)
        if names := changed(before, held(learner)):
            where = "enabled" if enabled else "disabled"
            broken(f"with gradients {where}, these are not as they were: {', '.join(names[:5])}")
        if found := difference(shown, named_tensors(episode.support), 0):
            broken(f"the support was written to: {found}")


@learner_rule()
def predictors_are_values(case: Case) -> None:
    """A predictor stays what it was when the learner adapts to another task: nothing of an episode stays on the
    learner.
    """
    learner = case.warmed()
    far = case.tasks.spec.block * 5
    with torch.no_grad():
        first, second = case.episode(), case.episode(first=far)
        x = case.probe(first)
        expected = case.predict(learner, case.episode(), x)
        predictor = learner.adapt(first.for_adapting(learner.needs.queries))
        learner.adapt(second.for_adapting(learner.needs.queries))(case.probe(second))
        found = predictor(x)
    if (apart := gap(expected, found)) > tolerance(found.dtype):
        broken(
            f"after the learner adapted to another task, a predictor's answers differ by {apart:.2g} of the greatest "
            "one; expected the same: what adapt learns belongs to the predictor"
        )


@learner_rule()
def deterministic(case: Case) -> None:
    """The same state and the same episode give the same predictions whatever the global random state, and the same
    gradient from the same global random state: chance while adapting comes from ``kshot.generator(key, purpose)``.
    """
    learner = case.warmed()
    found = []
    for seed in (1, 2):
        with seeded("deterministic", seed):
            found.append(case.predict(learner, case.episode()))
    if (far := gap(*found)) > 1e-6:
        broken(
            f"adapting twice to one episode, predictions differ by {far:.2g} of the greatest one; expected the same: "
            "draw from kshot.generator(support.key[b], purpose)"
        )
    found_twice = [gradients_of(learner, case.episode(split=case.training), seed=3) for _ in range(2)]
    for first, second in zip(*found_twice, strict=True):
        if where := difference(first, second, within=1e-5):
            broken(f"two gradients of one episode from the same random state: {where}")


# --- Queries and batches --------------------------------------------------------------------------


@learner_rule(only(*TABLES))
def query_permutation(case: Case) -> None:
    """Predictions follow a permutation of the queries; where ``needs.queries`` is ``independent``, each query alone
    gets the same prediction as together with the others.
    """
    learner, cast, dtype = precise(case)
    x = cast(case.episode()).query.x
    together = case.predict(learner, cast(case.episode()), x)
    order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(5))
    followed = case.predict(learner, cast(case.episode()), x[:, order])
    if (far := gap(together[:, order], followed)) > tolerance(dtype):
        broken(f"with the queries in another order, predictions differ by {far:.2g} of the greatest one")
    if learner.needs.queries == "independent":
        alone = [case.predict(learner, cast(case.episode()), x[:, i : i + 1]) for i in range(x.shape[1])]
        if (far := gap(together, torch.cat(alone, 1))) > tolerance(dtype):
            broken(
                f"one by one, queries get predictions that differ by {far:.2g} of the greatest one from those "
                "together; expected the same, or needs.queries = 'joint'"
            )


def _cannot_batch(case: Case) -> str | None:
    if case.needs.couples_tasks:
        return "it couples the tasks of a meta-batch"
    return "their blocks have one episode" if case.size < 2 else None


@learner_rule(_cannot_batch)
def batch_equals_singles(case: Case) -> None:
    """Several tasks together give the same predictions as each alone, and their gradient is the mean of the tasks'
    own, at each of the outer steps where ``meta_gradient`` is a generator; unless ``needs.couples_tasks``. In float64
    where the learner can; the gradient only where it does not draw from torch's generator while training (dropout).
    """
    learner, cast, dtype = precise(case)
    indices = range(case.size)
    together = case.predict(learner, cast(case.episode()))
    alone = torch.cat([case.predict(learner, cast(case.single(i))) for i in indices])
    if (far := gap(together, alone)) > tolerance(dtype):
        broken(
            f"{case.size} tasks adapted to together get predictions that differ by {far:.2g} of the greatest one from "
            "those of each task alone; expected the same, or needs.couples_tasks"
        )
    both = [gradients_of(learner, cast(case.episode(split=case.training)), seed=seed) for seed in (1, 2)]
    if any(difference(one, other) for one, other in zip(*both, strict=True)):
        return
    alone_each = gradients_of(learner, *(cast(case.single(i, case.training)) for i in indices))
    if len(both[0]) != len(alone_each):
        broken(
            f"on {case.size} tasks together it takes {len(both[0])} outer steps, on each alone {len(alone_each)}; "
            "expected as many, so that chunks of a meta-batch advance together"
        )
    for whole, mean in zip(both[0], alone_each, strict=True):
        _check_mean(case, whole, mean, dtype)


def _check_mean(case: Case, whole: dict[str, Tensor], mean: dict[str, Tensor], dtype: torch.dtype) -> None:
    largest = max((float(g.abs().max()) for g in mean.values() if g.numel()), default=0.0)
    for n in sorted(whole.keys() | mean.keys()):
        known = whole[n] if n in whole else mean[n]
        zero = torch.zeros_like(known)
        apart = float((mean.get(n, zero) - whole.get(n, zero)).abs().max()) / max(largest, 1e-30)
        if apart > tolerance(dtype):
            broken(
                f"the gradient of {n} over {case.size} tasks differs by {apart:.2g} of the greatest gradient from the "
                "mean over each task alone; expected the mean, or needs.couples_tasks"
            )
