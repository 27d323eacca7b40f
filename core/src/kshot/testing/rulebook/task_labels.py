"""Rules for tasks: neither inputs nor places tell what a label is, and each label stands for another class."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kshot.testing.rulebook.rule import broken
from kshot.testing.rulebook.task_examples import bernstein, no_classes
from kshot.testing.rulebook.task_rule import EPISODES, labelled_by_actions, tasks_rule
from kshot.testing.subjects import TasksSubject

# --- Inputs ---------------------------------------------------------------------------------------


def _no_labels(subject: TasksSubject) -> str | None:
    spec = subject.spec
    if reason := labelled_by_actions(subject):
        return reason
    if spec.kind in ("classification", "regression") or (spec.kind == "sequence" and "stream" in spec.provides):
        return None
    return f"their kind is {spec.kind}" + (" without a stream of labels" if spec.kind == "sequence" else "")


@tasks_rule(_no_labels)
def inputs_hide_labels(subject: TasksSubject) -> None:
    """Inputs alone do not show labels. In classification, over 128 episodes, the mean of each input number over the
    examples of a label is on average the mean over all labels, within Bernstein's bound: labels stand for other classes
    in each episode, so nothing in an input can say which one it has. Right tasks pass with a probability of more than
    1 - 1e-6. In regression, no input number is a linear function of a target over all episodes. In a stream, the label
    of a step can't be read linearly from its own input, as it is shown one step later.
    """
    split = subject.spec.splits[0]
    if subject.spec.kind == "classification":
        for part in ("support", "query"):
            _check_means(subject, split, part)
    elif subject.spec.kind == "regression":
        _check_targets(subject, split)
    else:
        _check_stream(subject, split)


def _check_means(subject: TasksSubject, split: str, part: str) -> None:
    """Compare, for each number of an input, its mean over the examples of a label with that over all labels."""
    sums: dict[int, list[Any]] = {}  # by way N: sum of deviations [F, N], variance [F], greatest deviation, scale
    episodes = 0
    for episode in subject.many(split, 128, at_once=16):
        x, y = getattr(episode, part).x.double().flatten(2), getattr(episode, part).y
        N = episode.support.way or 1
        if not x.shape[1] or N < 2:
            continue
        member = torch.nn.functional.one_hot(y, N).double()
        if bool((member.sum(1) == 0).any()):
            continue  # a label without examples has no mean
        means = torch.einsum("bsn,bsf->bfn", member / member.sum(1, keepdim=True), x)
        away = means - means.mean(-1, keepdim=True)
        kept = sums.setdefault(N, [0.0, 0.0, 0.0, 0.0])
        kept[0] = kept[0] + away.sum(0)
        kept[1] = kept[1] + away.square().mean(-1).sum(0)  # the variance of the mean of a class drawn at random
        kept[2] = torch.maximum(torch.as_tensor(kept[2]), away.abs().amax((0, 2)))
        kept[3] = max(kept[3], float(x.abs().max()))
        episodes += episode.size
    tests = sum(kept[0].numel() for kept in sums.values())
    for N, (total, variance, greatest, scale) in sums.items():
        log_odds = math.log(2 * tests / 1e-6)
        third = greatest * log_odds / 3
        bound = third + (third.square() + 2 * log_odds * variance).sqrt() + 1e-9 * episodes * scale
        excess = total.abs() - bound[:, None]
        if bool((excess > 0).any()):
            feature, label = divmod(int(excess.argmax()), N)
            found, most = float(total[feature, label]) / episodes, float(bound[feature]) / episodes
            broken(
                f"split {split!r}: got a difference of {found:.3g} between the {part} inputs' number {feature} for "
                f"label {label} and for all labels, on average over {episodes} episodes, expected at most {most:.3g}; "
                "remove what depends on the label from the inputs, and assign labels at random"
            )


def _check_targets(subject: TasksSubject, split: str) -> None:
    """Correlate each number of an input with each target over 64 episodes."""
    rows = [(e.query.x.double().flatten(2), e.query.y.double().flatten(2)) for e in subject.many(split, 64)]
    x = torch.cat([x.flatten(0, 1) for x, _ in rows])
    y = torch.cat([y.flatten(0, 1) for _, y in rows])
    known = y.isfinite().all(1)
    x, y = x[known], y[known]
    if len(x) < 20:
        return
    x, y = (t - t.mean(0) for t in (x, y))
    lengths = x.norm(dim=0)[:, None] * y.norm(dim=0)
    correlation = (x.mT @ y).abs() / lengths.clamp_min(1e-12)
    if float(correlation.max()) > 0.999:
        feature, target = divmod(int(correlation.argmax()), y.shape[1])
        broken(
            f"split {split!r}: got a correlation of {float(correlation.max()):.4f} of the inputs' number {feature} "
            f"with target {target} over {len(x)} queries, expected at most 0.999; remove the target from the inputs"
        )


def _check_stream(subject: TasksSubject, split: str) -> None:
    """Fit the label of each step to its input on 32 episodes, and predict the labels of 32 others."""
    parts: list[tuple[Tensor, Tensor]] = [(e.query.x, e.query.y) for e in subject.many(split, 64, at_once=1)]
    if any(y.is_floating_point() for _, y in parts):
        return
    fitted, judged = (
        (
            torch.cat([x.double().flatten(2).flatten(0, 1) for x, _ in half]),
            torch.cat([(y if y.ndim == 2 else y.flatten(2)[..., 0]).flatten() for _, y in half]),  # first characters
        )
        for half in (parts[: len(parts) // 2], parts[len(parts) // 2 :])
    )
    N = int(torch.cat([fitted[1], judged[1]]).max()) + 1
    x, y = torch.nn.functional.pad(fitted[0], (0, 1), value=1.0), torch.nn.functional.one_hot(fitted[1], N).double()
    ridge = 1e-3 * x.square().sum() / x.shape[1] * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(x.mT @ x + ridge, x.mT @ y)
    guessed = (torch.nn.functional.pad(judged[0], (0, 1), value=1.0) @ weights).argmax(1)
    right = float((guessed == judged[1]).double().mean())
    chance = float(torch.bincount(judged[1], minlength=N).max()) / len(judged[1])
    if right > (1 + chance) / 2:
        broken(
            f"split {split!r}: got {right:.0%} of labels right by a linear function of the input of the same step, "
            f"expected about {chance:.0%}; show the label of step t in the input of step t + 1"
        )


# --- Places and origins ---------------------------------------------------------------------------


def _no_queries(subject: TasksSubject) -> str | None:
    if reason := labelled_by_actions(subject):
        return reason
    return None if subject.spec.kind == "classification" else f"their kind is {subject.spec.kind}"


@tasks_rule(_no_queries)
def queries_shuffled(subject: TasksSubject) -> None:
    """The queries of an episode are in random order: over 400 episodes, each label occurs in each place, and the
    queries of each two places have the same label, as often as in a random order, within Bernstein's bound. A random
    order passes with a probability of more than 1 - 1e-6.
    """
    by_size: dict[tuple[int, int], list[np.ndarray[Any, Any]]] = defaultdict(list)
    for y, way, _ in subject.labels(EPISODES):
        by_size[y.shape[1], way].extend(y)
    tests = sum(n * N + n * (n - 1) // 2 for n, N in by_size)
    log_odds = math.log(2 * max(tests, 1) / 1e-6)
    for (n, N), rows in by_size.items():
        labels = np.stack(rows)  # [episodes, n]
        if n < 2 or N < 2 or labels.min() < 0 or labels.max() >= N:
            continue  # another rule reports labels that are out of range
        placed = labels[:, :, None] == np.arange(N)  # [episodes, n, N]
        share = placed.mean(1)
        _check_places(placed.sum(0), share.sum(0), (share * (1 - share)).sum(0), log_odds, len(labels))
        # How often two places have one label: by an episode's numbers of each label, with probability p.
        count = placed.sum(1)
        p = (count * (count - 1)).sum(1) / (n * (n - 1))
        same = np.einsum("ein,ejn->ij", placed.astype(np.float64), placed.astype(np.float64))
        same[np.diag_indices(n)] = p.sum()
        i, j = np.unravel_index(np.abs(same - p.sum()).argmax(), same.shape)
        bound = bernstein(float((p * (1 - p)).sum()), log_odds)
        if abs(same[i, j] - p.sum()) > bound:
            broken(
                f"got one label for the queries {min(i, j)} and {max(i, j)} in {same[i, j]:.0f} of {len(labels)} "
                f"episodes, expected {p.sum():.0f} ± {bound:.0f}; put the queries in random order"
            )


def _check_places(
    counts: np.ndarray[Any, Any],
    expected: np.ndarray[Any, Any],
    variance: np.ndarray[Any, Any],
    log_odds: float,
    episodes: int,
) -> None:
    """Compare how often each label [N] occurs in each place [n, N] with what a random order gives."""
    for label in range(counts.shape[1]):
        place = int(np.abs(counts[:, label] - expected[label]).argmax())
        bound = bernstein(float(variance[label]), log_odds)
        if abs(counts[place, label] - expected[label]) > bound:
            broken(
                f"got label {label} for query {place} in {counts[place, label]} of {episodes} episodes, expected "
                f"{expected[label]:.0f} ± {bound:.0f}; put the queries in random order"
            )


@tasks_rule(no_classes)
def classes_differ(subject: TasksSubject) -> None:
    """The labels of an episode stand for different classes: in 400 episodes, ``origin.classes`` has no class twice."""
    for _, _, origin in subject.labels(EPISODES):
        if origin is None or origin.classes is None:
            broken("got an episode without origin.classes, expected all to have them, because the first one does")
        for b, classes in enumerate(origin.classes.tolist()):
            if len(set(classes)) < len(classes):
                broken(
                    f"episode {origin.indices[b]}: got the classes {classes}, expected each once; draw the classes of "
                    "an episode without replacement"
                )
