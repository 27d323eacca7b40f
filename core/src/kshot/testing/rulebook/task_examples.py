"""Rules for tasks: which examples and classes episodes and splits may share, and how labels are assigned."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kshot.episode import Origin
from kshot.testing.rulebook.rule import broken
from kshot.testing.rulebook.task_overlaps import Repeats, check_contents
from kshot.testing.rulebook.task_rule import EPISODES, labelled_by_actions, tasks_rule
from kshot.testing.subjects import TasksSubject


def _no_identities(subject: TasksSubject) -> str | None:
    if "identities" in subject.spec.provides:
        return None
    if reason := labelled_by_actions(subject):
        return reason  # two demonstrations may observe the same
    if subject.spec.kind == "classification":
        return None
    origin = subject.tasks.sample(subject.spec.splits[0], [0]).origin
    return None if origin is not None and origin.support_ids is not None else "their examples have no identities"


@tasks_rule(_no_identities)
def support_and_query_disjoint(subject: TasksSubject) -> None:
    """No example is both in the support and in the query of an episode. This is checked by identities, and in
    classification also by contents, which show an overlap that missing or wrong identities hide: inputs of queries are
    those of the support, bit for bit, no more often than duplicates among queries explain, or in at most 2 % of
    queries.
    """
    for split in subject.spec.splits:
        repeats = Repeats("support")
        for episode in subject.many(split, 32):
            origin = episode.origin
            if subject.spec.kind == "classification":
                repeats.add(episode)
                if "identities" not in subject.spec.provides and (origin is None or origin.support_ids is None):
                    continue
            if origin is None or origin.support_ids is None or origin.query_ids is None:
                broken(
                    f"split {split!r}: got an origin without support_ids and query_ids, expected both, because the "
                    "spec provides identities"
                )
            for ids, x in ((origin.support_ids, episode.support.x), (origin.query_ids, episode.query.x)):
                if ids.shape != tuple(x.shape[:2]):
                    broken(f"split {split!r}: got identities of shape {ids.shape}, expected {tuple(x.shape[:2])}")
            for i, s, q in zip(origin.indices, origin.support_ids, origin.query_ids, strict=True):
                if both := sorted(set(s.tolist()) & set(q.tolist())):
                    broken(
                        f"episode {i} of split {split!r}: got the examples {both[:5]} in both support and query, "
                        "expected none"
                    )
        repeats.check(split)


def _unless_unlabelled(field: str, otherwise: str) -> Callable[[TasksSubject], str | None]:
    """Return a test that says why a rule does not apply: no unlabelled examples, or no such field in the origin."""

    def reason(subject: TasksSubject) -> str | None:
        if "unlabelled" not in subject.spec.provides:
            return "they provide no unlabelled examples"
        origin = subject.tasks.sample(subject.spec.splits[0], [0]).origin
        return None if getattr(origin, field, None) is not None else otherwise

    return reason


def _nothing_unlabelled(subject: TasksSubject) -> str | None:
    return None if "unlabelled" in subject.spec.provides else "they provide no unlabelled examples"


@tasks_rule(_nothing_unlabelled)
def unlabelled_disjoint(subject: TasksSubject) -> None:
    """If unlabelled examples have identities, none of them is in the episode's support or query, and none occurs
    twice. With or without identities, they are not the queries, bit for bit, more often than duplicates explain.
    """
    with_identities = _unless_unlabelled("unlabelled_ids", "they have no identities")(subject) is None
    for split in subject.spec.splits:
        repeats = Repeats("unlabelled")
        for episode in subject.many(split, 32):
            if subject.spec.kind == "classification":
                repeats.add(episode)
            if not with_identities:
                continue
            origin, x = episode.origin, episode.support.unlabelled
            if origin is None or origin.unlabelled_ids is None or x is None:
                broken(
                    f"split {split!r}: got episodes whose unlabelled examples have no identities, expected all "
                    "episodes to have them, because the first one does"
                )
            for name in ("unlabelled_ids", "unlabelled_y"):
                array = origin.arrays().get(name)
                if array is not None and array.shape != tuple(x.shape[:2]):
                    broken(f"split {split!r}: got origin.{name} of shape {array.shape}, expected {tuple(x.shape[:2])}")
            _check_no_overlap(origin, split)
        repeats.check(split)


def _check_no_overlap(origin: Origin, split: str) -> None:
    arrays = origin.arrays()
    for b, i in enumerate(origin.indices):
        unlabelled = arrays["unlabelled_ids"][b].tolist()
        if len(set(unlabelled)) < len(unlabelled):
            broken(f"episode {i} of split {split!r}: got an unlabelled example twice, expected each once")
        for name in ("support", "query"):
            shown = arrays.get(f"{name}_ids")
            if shown is not None and (both := sorted(set(unlabelled) & set(shown[b].tolist()))):
                broken(
                    f"episode {i} of split {split!r}: got the examples {both[:5]} both unlabelled and in {name}, "
                    "expected none"
                )


@tasks_rule(
    _unless_unlabelled("unlabelled_y", "the origin does not say which classes their unlabelled examples belong to")
)
def unlabelled_shuffled(subject: TasksSubject) -> None:
    """If the origin gives the labels of unlabelled examples, their order does not reveal these labels. Over 400
    episodes, each label (and -1, for examples of other classes) occurs in each place as often as its share requires,
    within Bernstein's bound. A random order passes with a probability of more than 1 - 1e-6.
    """
    # Labels [U] of the unlabelled examples, grouped by their number U and the way N.
    labels_by_size: dict[tuple[int, int], list[np.ndarray[Any, Any]]] = defaultdict(list)
    for episode in subject.many(subject.spec.splits[0], EPISODES):
        assert episode.origin is not None
        truth = episode.origin.unlabelled_y
        if truth is None:
            broken(
                "got an episode whose origin has no unlabelled_y, expected all episodes to have it, because the first "
                "one does"
            )
        for row in truth:
            labels_by_size[(len(row), episode.support.way or 0)].append(row)
    log_odds = math.log(2 * sum(U * (N + 1) for U, N in labels_by_size) / 1e-6)
    for (U, N), labels in labels_by_size.items():
        placed = np.stack(labels)[:, :, None] == np.arange(-1, N)  # [episodes, U, N + 1]
        # A label with share p of an episode's places is in a given place with probability p: its count over the
        # episodes has mean sum(p) and variance sum(p (1 - p)).
        share = placed.mean(1)
        expected, variance = share.sum(0), (share * (1 - share)).sum(0)
        for label in range(N + 1):
            counts = placed[:, :, label].sum(0)
            place = int(np.abs(counts - expected[label]).argmax())
            bound = bernstein(float(variance[label]), log_odds)
            if abs(counts[place] - expected[label]) > bound:
                broken(
                    f"got label {label - 1} in place {place} of the {U} unlabelled examples in {counts[place]} of "
                    f"{len(labels)} episodes, expected {expected[label]:.0f} ± {bound:.0f}; put them in random order"
                )


def _nothing_to_tell_splits_by(subject: TasksSubject) -> str | None:
    if subject.spec.split_by == "index":
        return "their splits differ by episode numbers only"
    if len(subject.spec.splits) < 2:
        return "they have one split"
    return None


@tasks_rule(_nothing_to_tell_splits_by)
def splits_disjoint(subject: TasksSubject) -> None:
    """No two splits share a class (``split_by="class"``) or an example (``split_by="example"``). They are compared by
    the rows of a common table, by class names if these are unique within each split, by identities if there are no
    tables, and by contents, of which at most half may occur in another split (real data have duplicates), but not all
    of a class. A split that is exactly the union of two or more others, without the test split (``trainval``), may
    share with these.
    """
    tasks, spec = subject.tasks, subject.spec
    pools = {s: tasks.pool(s) for s in spec.splits} if hasattr(tasks, "pool") else {}
    names: dict[str, list[str]] = {}
    ids: dict[str, set[int]] = {}
    for split in spec.splits:
        if split in pools:
            names[split] = list(pools[split].names)
            ids[split] = set(pools[split].table()[0].tolist())
        else:
            # Without a table, collect what the origins of 64 episodes name.
            sampled = [e.origin for e in subject.many(split, 64) if e.origin is not None]
            class_of = {n: c for o in sampled if o.classes is not None and o.names for n, c in _named_classes(o)}
            names[split] = list(class_of)
            ids[split] = {
                int(i) for o in sampled for a in (o.support_ids, o.query_ids) if a is not None for i in a.flat
            }
    sampled_contents: dict[str, dict[int, set[bytes]]] = {}
    views = {s: _united_by(s, ids if pools else names) for s in spec.splits}
    for i, a in enumerate(spec.splits):
        for b in spec.splits[i + 1 :]:
            if a in views[b] or b in views[a]:
                continue
            unique = all(len(set(names[s])) == len(names[s]) for s in (a, b))
            shared = sorted(set(names[a]) & set(names[b]))
            if spec.split_by == "class" and unique and shared:
                broken(
                    f"splits {a!r} and {b!r}: got {len(shared)} classes in both, expected none: {', '.join(shared[:5])}"
                )
            comparable = not pools or pools[a].x.data_ptr() == pools[b].x.data_ptr()
            if comparable and (pools or spec.split_by == "example") and (both := sorted(ids[a] & ids[b])):
                broken(f"splits {a!r} and {b!r}: got {len(both)} examples in both, expected none: {both[:5]}")
            if pools and not comparable:
                _check_contents(a, b, *(_contents(pools[s]) for s in (a, b)))
            if not pools and spec.kind == "classification":
                check_contents(subject, a, b, sampled_contents)
                check_contents(subject, b, a, sampled_contents)


def _united_by(split: str, members: Mapping[str, Collection[Any]]) -> list[str]:
    """Return the splits whose union is exactly ``split``, or an empty list."""
    own = set(members[split])
    smaller = [s for s, others in members.items() if s not in (split, "test") and others and set(others) < own]
    return smaller if len(smaller) > 1 and set().union(*(members[s] for s in smaller)) == own else []


def _named_classes(origin: Any) -> set[tuple[str, int]]:
    return {(origin.names[c], int(c)) for c in origin.classes.flat}


def _contents(pool: Any) -> list[bytes]:
    """Return the bytes of at most 2,000 examples, spread over the pool."""
    ids = pool.table()[0]
    chosen = ids[:: max(1, len(ids) // 2000)]
    return [x.tobytes() for x in pool.x[torch.from_numpy(chosen)].numpy()]


def _check_contents(a: str, b: str, first: list[bytes], second: list[bytes]) -> None:
    contents = set(second)
    repeated = sum(x in contents for x in first)
    if repeated * 2 > len(first):
        broken(
            f"splits {a!r} and {b!r}: got {repeated} of {len(first)} examples of {a!r} in {b!r} too, bit for bit, "
            "expected at most half"
        )


def no_classes(subject: TasksSubject) -> str | None:
    """Return why it is not known which classes labels stand for, or None if it is."""
    if subject.spec.kind != "classification":
        return f"their kind is {subject.spec.kind}"
    origin = subject.tasks.sample(subject.spec.splits[0], [0]).origin
    if origin is None or origin.classes is None:
        return "origin.classes is None, so it is not known which class a label stands for"
    return None


@tasks_rule(no_classes)
def labels_uniform(subject: TasksSubject) -> None:
    """Labels are assigned to an episode's classes at random: over 400 episodes, each label stands equally often for the
    class with the smallest number, for the class with the second smallest number, and so on, within Bernstein's bound.
    A random assignment passes with a probability of more than 1 - 1e-6.
    """
    # For each way N, how often the class of each rank (row) got each label (column).
    tables: dict[int, np.ndarray[Any, Any]] = {}
    for _, _, origin in subject.labels(EPISODES):
        assert origin is not None
        assert origin.classes is not None
        for classes in origin.classes:
            N = len(classes)
            table = tables.setdefault(N, np.zeros((N, N)))
            table[np.argsort(np.argsort(classes)), np.arange(N)] += 1
    log_odds = math.log(2 * sum(N * N for N in tables) / 1e-6)
    for N, table in tables.items():
        if N == 1:
            continue
        M = table[0].sum()
        bound = bernstein(M / N * (1 - 1 / N), log_odds)
        rank, label = np.unravel_index(np.abs(table - M / N).argmax(), table.shape)
        if abs(table[rank, label] - M / N) > bound:
            broken(
                f"got label {label} for class {rank} (in order of class numbers) in {table[rank, label]:.0f} of "
                f"{M:.0f} episodes with {N} classes, expected {M / N:.0f} ± {bound:.0f}; assign labels at random"
            )


def bernstein(variance: float, log_odds: float) -> float:
    """Compute Bernstein's bound t for a sum X of independent terms within [0, 1].

    P(|X - EX| > t) < 2 exp(-log_odds): t solves t^2 / (2 (variance + t / 3)) = log_odds.

    Args:
        variance: the variance of X.
        log_odds: minus the logarithm of half the permitted probability.
    """
    third = log_odds / 3
    return third + math.sqrt(third * third + 2 * log_odds * variance)


def _no_semantics(subject: TasksSubject) -> str | None:
    return no_classes(subject) or (None if "semantics" in subject.spec.provides else "they provide no semantics")


@tasks_rule(_no_semantics)
def semantics_move_with_labels(subject: TasksSubject) -> None:
    """Row c of the semantics describes the class that label c stands for. The vectors of a class are equal in all
    episodes, or, if a class has several vectors (such as captions), they are nearer to the class's other vectors than
    to those of the other classes of the episode: over 400 episodes, by at least four standard errors.
    """
    episodes: list[tuple[list[int], Tensor]] = []
    for episode in subject.many(subject.spec.splits[0], EPISODES):
        assert episode.origin is not None
        assert episode.origin.classes is not None
        if episode.support.semantics is None:
            broken("got an episode without semantics, expected them, because the spec provides them")
        vectors = episode.support.semantics.double().flatten(2)
        episodes += list(zip(episode.origin.classes.tolist(), vectors, strict=True))
    by_class: dict[int, list[Tensor]] = defaultdict(list)
    for classes, vectors in episodes:
        for c, v in zip(classes, vectors, strict=True):
            by_class[c].append(v)
    if all(torch.equal(v, vectors[0]) for vectors in by_class.values() for v in vectors):
        return
    # By how much a class's vector is nearer to its own mean than to the means of the episode's other classes.
    sums = {c: torch.stack(list(vectors)).sum(0) for c, vectors in by_class.items()}
    nearer = []
    for classes, vectors in episodes:
        if len(classes) < 2 or any(len(by_class[c]) < 2 for c in classes):
            continue
        # Leave the vector itself out of its class's mean, so that it is not compared with itself.
        means = torch.stack([(sums[c] - v) / (len(by_class[c]) - 1) for c, v in zip(classes, vectors, strict=True)])
        apart = (vectors[:, None] - means[None]).square().sum(-1)
        own = apart.diagonal().mean()
        nearer.append(float((apart.sum() - apart.diagonal().sum()) / (apart.numel() - len(apart)) - own))
    if len(nearer) < 2:
        return
    errors = float(np.mean(nearer)) / max(float(np.std(nearer)) / math.sqrt(len(nearer)), 1e-30)
    if errors < 4:
        broken(
            f"got vectors of one class that are nearer to each other than to those of other classes by {errors:.1f} "
            f"standard errors over {len(nearer)} episodes, expected at least 4; let row c describe the class of label c"
        )
