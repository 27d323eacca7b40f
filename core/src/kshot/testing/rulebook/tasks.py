"""Rules for task distributions."""

from __future__ import annotations

import io
import math
import pickle
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kshot import registry
from kshot.episode import Episode, Objective, Origin, check_finite
from kshot.errors import DataError, RunError
from kshot.protocols import Portable
from kshot.sampling import check_episode
from kshot.spec import Count, TaskSpec, bounds
from kshot.testing.compare import Facts, clones, difference, facts, rows
from kshot.testing.other_process import importable, sample_elsewhere
from kshot.testing.rulebook.rule import Rule, add, always, broken, named
from kshot.testing.subjects import TasksSubject

EPISODES = 400
"""Episodes over which the assignment of labels is judged."""

Check = Callable[[TasksSubject], None]


def tasks_rule(unless: Callable[[TasksSubject], str | None] = always) -> Callable[[Check], Check]:
    """Put a check on the list of rules for tasks."""

    def put(check: Check) -> Check:
        add(Rule(named(check), "tasks", check, unless))
        return check

    return put


def observed(subject: TasksSubject, split: str, indices: list[int], tasks: Any = None) -> Facts:
    """All that can be observed of freshly sampled episodes, copied."""
    tasks = subject.tasks if tasks is None else tasks
    return clones(facts(tasks.sample(split, indices), subject.spec.target_shape))


# --- Addressable sampling -------------------------------------------------------------------------


@tasks_rule()
def same_episodes(subject: TasksSubject) -> None:
    """Episode i of a split is the same whenever it is sampled: again, in another order, after other splits, alone or
    in a batch, and by other tasks built alike. Integers to the bit, floats to rounding.
    """
    other = subject.source.build()
    for split in subject.spec.splits:
        indices = list(subject.block(0, 4))
        singles = {i: observed(subject, split, [i]) for i in indices}
        for i in reversed(indices):
            for another in subject.spec.splits:
                subject.tasks.sample(another, [i + 1])
            if found := difference(singles[i], observed(subject, split, [i])):
                broken(f"episode {i} of split {split!r}, sampled again in another order: {found}")
        if found := difference(singles[indices[-1]], observed(subject, split, [indices[-1]], other)):
            broken(f"episode {indices[-1]} of split {split!r}, of other tasks built alike: {found}")
        mixed = indices[::-2] + indices[-2::-2]
        together = observed(subject, split, mixed)
        for place, i in enumerate(mixed):
            if found := difference(singles[i], rows(together, place)):
                broken(f"episode {i} of split {split!r}, alone and in the batch {mixed}: {found}")


@tasks_rule(lambda subject: importable(subject.source))
def same_episodes_in_another_process(subject: TasksSubject) -> None:
    """A process of its own, with another PYTHONHASHSEED, samples the same episodes."""
    split = subject.spec.splits[0]
    there = sample_elsewhere(subject.source, split, [3, 0])
    here = {f"{i}.{name}": t for i in (0, 3) for name, t in observed(subject, split, [i]).items()}
    if found := difference(here, {name: there[name] for name in here if name in there} | there):
        broken(f"split {split!r} in another process (named by episode): {found}")


def _no_seed(subject: TasksSubject) -> str | None:
    if subject.source.is_built:
        return "these tasks were given built; give their name or factory, so that they can be built with another seed"
    return None if subject.source.takes("seed") else "their factory takes no seed"


@tasks_rule(_no_seed)
def other_seed_other_episodes(subject: TasksSubject) -> None:
    """Tasks built with another seed have other episodes: of the first eight of a split, at least one differs."""
    seed = int(subject.source.options.get("seed", 0))
    other = subject.source.build(seed=seed + 1)
    for split in subject.spec.splits:
        same = [
            difference(observed(subject, split, [i]), observed(subject, split, [i], other), 0) is None for i in range(8)
        ]
        if all(same):
            broken(f"the first eight episodes of split {split!r} are the same with seed {seed} and {seed + 1}")


@tasks_rule()
def data_immutable(subject: TasksSubject) -> None:
    """Writing into a sampled episode's tensors changes no episode that is sampled later."""
    tasks = subject.source.build()  # its own, so that what is spoilt here spoils no other rule
    for split in subject.spec.splits:
        before = observed(subject, split, [0], tasks)
        again = tasks.sample(split, [0])
        for tensor in facts(again, subject.spec.target_shape).values():
            try:
                tensor.fill_(1) if tensor.is_floating_point() else tensor.fill_(0)
            except RuntimeError:
                continue  # an expanded tensor can't be written to at all
        for array in again.origin.arrays().values() if again.origin else ():
            if array.flags.writeable:
                array.fill(0)
        if found := difference(before, observed(subject, split, [0], tasks)):
            broken(f"after an episode of split {split!r} was written to, sampling it again gives another: {found}")


@tasks_rule()
def unknown_split_refused(subject: TasksSubject) -> None:
    """A split that the spec does not name is refused with kshot.errors.DataError."""
    try:
        subject.tasks.sample("no-such-split", [0])
    except DataError:
        return
    except Exception as raised:
        broken(f"split 'no-such-split' raised {type(raised).__name__} ({raised}), expected kshot.errors.DataError")
    broken("split 'no-such-split' was sampled, expected kshot.errors.DataError")


@tasks_rule(lambda subject: None if subject.spec.varies else "the shape of their episodes does not vary")
def mixed_blocks_refused(subject: TasksSubject) -> None:
    """Where the shape varies, episodes of two blocks with different shapes can't be one meta-batch: DataError."""
    split, block = subject.spec.splits[0], subject.spec.block
    first = shapes(subject.tasks.sample(split, [0]))
    for b in range(1, 50):
        if shapes(subject.tasks.sample(split, [b * block])) != first:
            try:
                subject.tasks.sample(split, [0, b * block])
            except DataError:
                return
            except Exception as raised:
                broken(
                    f"episodes 0 and {b * block}, of different shapes, raised {type(raised).__name__}: {raised}; "
                    "expected kshot.errors.DataError"
                )
            broken(f"episodes 0 and {b * block} have different shapes and were sampled together, expected DataError")
    broken(f"the spec's counts are ranges, but the first 50 blocks of split {split!r} all have the same shape")


def shapes(episode: Episode) -> dict[str, tuple[int, ...]]:
    """Shapes within one task."""
    found = {"support": episode.support.x, "query": episode.query.x}
    return {name: tuple(x.shape[1:]) for name, x in found.items()} | {"way": (episode.support.way or 0,)}


# --- What the spec says ---------------------------------------------------------------------------


@tasks_rule()
def spec_is_true(subject: TasksSubject) -> None:
    """Episodes are what the spec says: shapes, types, ranges, way, shot, query and what is provided; the spec
    survives JSON; shapes vary only where counts are ranges, and then only between blocks; the origin names split and
    indices; keys are int64 [B], one an episode.
    """
    spec = subject.spec
    if TaskSpec.from_json(spec.to_json()) != spec:
        broken(f"the spec does not survive JSON: {spec} became {TaskSpec.from_json(spec.to_json())}")
    seen = set()
    for split in spec.splits:
        for first in (0, 1000 * spec.block):
            indices = list(subject.block(first, 3))
            episode = subject.tasks.sample(split, indices)
            _check_counts(episode, spec, split, indices)
            check_episode(episode, spec, f"split {split!r}")
            _check_provided(episode, spec, split)
            for i in indices:
                alone = shapes(subject.tasks.sample(split, [i]))
                if alone != shapes(episode):
                    broken(f"episode {i} of split {split!r} has shapes {alone}, but its block has {shapes(episode)}")
            seen.add(tuple(sorted(shapes(episode).items())))
    if not spec.varies and len(seen) > 1:
        broken(f"the spec's counts are no ranges, but shapes vary: {sorted(seen)}")
    if hasattr(subject.tasks, "pool"):
        for split in spec.splits:
            shape = tuple(subject.tasks.pool(split).x.shape[1:])
            if shape != spec.input_shape:
                broken(f"pool({split!r}) has inputs of shape {shape}, the spec says {spec.input_shape}")
    if subject.tasks.spec != spec:
        broken("sampling changed the spec")


def _check_counts(episode: Episode, spec: TaskSpec, split: str, indices: list[int]) -> None:
    support, query, B = episode.support, episode.query, len(indices)
    where = f"split {split!r}, episodes {indices}"
    if support.key.dtype != torch.int64 or tuple(support.key.shape) != (B,):
        broken(f"{where}: support.key is {support.key.dtype} {tuple(support.key.shape)}, expected int64 ({B},)")
    if len(set(support.key.tolist())) < B:
        broken(f"{where}: support.key is {support.key.tolist()}, expected a different number for each episode")
    if support.query_x is not None:
        broken(f"{where}: support.query_x is there; the engine adds query inputs where a learner declares its need")
    if episode.origin is None or episode.origin.split != split or list(episode.origin.indices) != indices:
        broken(f"{where}: the origin is {episode.origin}, expected one with this split and these indices")
    for name, x in (
        ("support.x", support.x),
        ("support.y", support.y),
        ("query.x", query.x),
        ("query.y", query.y),
    ):
        if len(x) != B:
            broken(f"{where}: {name} has shape {tuple(x.shape)}, expected B = {B} first")
    if spec.kind == "classification":
        low, high = bounds(spec.way)
        if low is None or high is None or support.way is None or not low <= support.way <= high:
            broken(f"{where}: support.way is {support.way}, the spec says {spec.way}")
        for name, y, count in (("shot", support.y, spec.shot), ("query", query.y, spec.query)):
            _check_each_class(y, support.way, count, f"{where}: {name}")
    elif spec.kind == "regression":
        for name, y, count in (("shot", support.y, spec.shot), ("query", query.y, spec.query)):
            if not _within(y.shape[1], count):
                broken(f"{where}: {y.shape[1]} examples, the spec says {name} = {count}")
            if tuple(y.shape[2:]) != spec.target_shape:
                broken(
                    f"{where}: targets of shape {tuple(y.shape[2:])}, the spec's target_shape is {spec.target_shape}"
                )
    elif spec.kind == "sequence":
        if support.x.shape[1]:
            broken(f"{where}: the support has {support.x.shape[1]} examples, expected none in a sequence")
        if query.x.shape[:2] != query.y.shape[:2] or tuple(query.y.shape[2:]) != spec.target_shape:
            broken(
                f"{where}: targets {tuple(query.y.shape)} and inputs {tuple(query.x.shape)}, expected one target of "
                f"shape {spec.target_shape} a step"
            )
    elif spec.kind == "control":
        for name, source in (("support", support.source), ("query", query.source)):
            if not hasattr(source, "rollout"):
                broken(f"{where}: {name}.source is {type(source).__name__}, expected an Environment")
    elif not (isinstance(support.source, Objective) and isinstance(query.source, Objective)):
        broken(
            f"{where}: the sources are {type(support.source).__name__} and {type(query.source).__name__}, "
            "expected kshot.Objective"
        )


def _within(n: int, count: Count | None) -> bool:
    low, high = bounds(count)
    return low is None or high is None or low <= n <= high


def _check_each_class(y: Tensor, way: int, count: Count | None, where: str) -> None:
    """Every label has as many examples as the spec says."""
    if y.is_floating_point() or (y.numel() and (int(y.min()) < 0 or int(y.max()) >= way)):
        return  # check_episode says so better
    for b, row in enumerate(y):
        for label, n in enumerate(torch.bincount(row, minlength=way).tolist()):
            if not _within(n, count):
                broken(f"{where}: task {b} has {n} examples of label {label}, the spec says {count}")


def _check_provided(episode: Episode, spec: TaskSpec, split: str) -> None:
    support, origin = episode.support, episode.origin
    there = {
        "semantics": support.semantics is not None,
        "unlabelled": support.unlabelled is not None,
        "external": episode.external is not None,
        "identities": origin is not None and origin.support_ids is not None and origin.query_ids is not None,
    }
    for name, present in there.items():
        if name in spec.provides and not present:
            broken(f"split {split!r}: the spec provides {name}, but the episodes have none")
    if support.semantics is not None and "semantics" in spec.provides:
        expected = (episode.size, support.way, *(spec.semantics_shape or ()))
        if tuple(support.semantics.shape) != expected:
            broken(f"split {split!r}: semantics have shape {tuple(support.semantics.shape)}, expected {expected}")
    if support.unlabelled is not None:
        _check_unlabelled(support.unlabelled, spec, f"split {split!r}: unlabelled inputs", episode.size)


def _check_unlabelled(x: Tensor, spec: TaskSpec, what: str, B: int) -> None:
    if x.shape[0] != B or tuple(x.shape[2:]) != spec.input_shape or x.dtype != torch.float32:
        shape = (B, "U", *spec.input_shape)
        broken(f"{what} are {x.dtype} of shape {tuple(x.shape)}, expected torch.float32 of shape {shape}")
    check_finite(x, what)
    if spec.input_range is not None and x.numel():
        low, high = float(x.min()), float(x.max())
        if low < spec.input_range[0] - 1e-6 or high > spec.input_range[1] + 1e-6:
            broken(f"{what} lie in [{low:.4g}, {high:.4g}], the spec's input_range is {list(spec.input_range)}")


@tasks_rule(lambda subject: None if subject.source.plugin is not None else "they were not asked for by a plugin's name")
def manifest_is_true(subject: TasksSubject) -> None:
    """The kinds that the plugin's manifest states, where it states any, include that of the tasks."""
    plugin = subject.source.plugin
    if plugin is not None and plugin.kinds and subject.spec.kind not in plugin.kinds:
        broken(f"the manifest says {', '.join(plugin.kinds)}, but spec.kind is {subject.spec.kind}")


def _no_preparation(subject: TasksSubject) -> str | None:
    made = subject.tasks.preparation if isinstance(subject.tasks, Portable) else None
    return "how they prepare examples is not written down" if made is None else None


@tasks_rule(_no_preparation)
def preparation_travels(subject: TasksSubject) -> None:
    """What ``preparation`` writes down is names, numbers and tensors, and a function that another process finds."""
    tasks: Any = subject.tasks
    file = io.BytesIO()
    torch.save(tasks.preparation.to_dict(), file)
    file.seek(0)
    try:
        assert callable(registry.preparation(torch.load(file, weights_only=True)))
    except pickle.UnpicklingError as error:
        broken(f"its options are more than names, numbers, tensors and preparations ({str(error)[-200:]})")
    except RunError as error:
        broken(str(error))


# --- Classes and examples -------------------------------------------------------------------------


def _no_identities(subject: TasksSubject) -> str | None:
    if "identities" in subject.spec.provides:
        return None
    origin = subject.tasks.sample(subject.spec.splits[0], [0]).origin
    return None if origin is not None and origin.support_ids is not None else "their examples have no identities"


@tasks_rule(_no_identities)
def support_and_query_disjoint(subject: TasksSubject) -> None:
    """No example is in both the support and the query of an episode."""
    for split in subject.spec.splits:
        for episode in subject.many(split, 32):
            origin = episode.origin
            if origin is None or origin.support_ids is None or origin.query_ids is None:
                broken(
                    f"split {split!r}: the spec provides identities, but the origin has no support_ids and query_ids"
                )
            for ids, x in ((origin.support_ids, episode.support.x), (origin.query_ids, episode.query.x)):
                if ids.shape != tuple(x.shape[:2]):
                    broken(f"split {split!r}: identities have shape {ids.shape}, expected {tuple(x.shape[:2])}")
            for i, s, q in zip(origin.indices, origin.support_ids, origin.query_ids, strict=True):
                if both := sorted(set(s.tolist()) & set(q.tolist())):
                    broken(f"episode {i} of split {split!r} has examples {both[:5]} in support and in query")


def _unknown_unlabelled(subject: TasksSubject) -> str | None:
    if "unlabelled" not in subject.spec.provides:
        return "they provide no unlabelled examples"
    origin = subject.tasks.sample(subject.spec.splits[0], [0]).origin
    known = origin is not None and origin.unlabelled_ids is not None
    return None if known else "their unlabelled examples have no identities"


@tasks_rule(_unknown_unlabelled)
def unlabelled_disjoint(subject: TasksSubject) -> None:
    """Where unlabelled examples have identities: none is in the episode's support or query, and none comes twice."""
    for split in subject.spec.splits:
        for episode in subject.many(split, 32):
            origin, x = episode.origin, episode.support.unlabelled
            if origin is None or origin.unlabelled_ids is None or x is None:
                broken(f"split {split!r}: some episodes have unlabelled examples with identities, others don't")
            for name in ("unlabelled_ids", "unlabelled_y"):
                array = origin.arrays().get(name)
                if array is not None and array.shape != tuple(x.shape[:2]):
                    broken(f"split {split!r}: origin.{name} has shape {array.shape}, expected {tuple(x.shape[:2])}")
            _check_apart(origin, split)


def _check_apart(origin: Origin, split: str) -> None:
    arrays = origin.arrays()
    for b, i in enumerate(origin.indices):
        unlabelled = arrays["unlabelled_ids"][b].tolist()
        if len(set(unlabelled)) < len(unlabelled):
            broken(f"episode {i} of split {split!r} has an unlabelled example twice")
        for name in ("support", "query"):
            shown = arrays.get(f"{name}_ids")
            if shown is not None and (both := sorted(set(unlabelled) & set(shown[b].tolist()))):
                broken(f"episode {i} of split {split!r} has examples {both[:5]} unlabelled and in {name}")


def _unknown_truth(subject: TasksSubject) -> str | None:
    if "unlabelled" not in subject.spec.provides:
        return "they provide no unlabelled examples"
    origin = subject.tasks.sample(subject.spec.splits[0], [0]).origin
    known = origin is not None and origin.unlabelled_y is not None
    return None if known else "the origin does not say what their unlabelled examples are"


@tasks_rule(_unknown_truth)
def unlabelled_shuffled(subject: TasksSubject) -> None:
    """Where the origin says what unlabelled examples are: their place does not tell. Over 400 episodes, each label
    (and -1, of examples of other classes) is in each place as often as its share says, by Bernstein's bound; a fair
    order passes with a probability of more than 1 - 1e-6.
    """
    found: dict[tuple[int, int], list[np.ndarray[Any, Any]]] = defaultdict(list)
    for episode in subject.many(subject.spec.splits[0], EPISODES):
        assert episode.origin is not None
        truth = episode.origin.unlabelled_y
        if truth is None:
            broken("some episodes say what their unlabelled examples are, others don't")
        for row in truth:
            found[(len(row), episode.support.way or 0)].append(row)
    log_odds = math.log(2 * sum(U * (N + 1) for U, N in found) / 1e-6)
    for (U, N), rows_ in found.items():
        placed = np.stack(rows_)[:, :, None] == np.arange(-1, N)  # [episodes, U, N + 1]
        share = placed.mean(1)
        expected, variance = share.sum(0), (share * (1 - share)).sum(0)
        for label in range(N + 1):
            counts = placed[:, :, label].sum(0)
            place = int(np.abs(counts - expected[label]).argmax())
            bound = bernstein(float(variance[label]), log_odds)
            if abs(counts[place] - expected[label]) > bound:
                broken(
                    f"of {len(rows_)} episodes, label {label - 1} is in place {place} of the {U} unlabelled examples "
                    f"in {counts[place]}, expected {expected[label]:.0f} ± {bound:.0f}: their order is not random"
                )


def _nothing_to_tell_splits_by(subject: TasksSubject) -> str | None:
    if subject.spec.split_by == "index":
        return "their splits differ by episode numbers only"
    if len(subject.spec.splits) < 2:
        return "they have one split"
    return None


@tasks_rule(_nothing_to_tell_splits_by)
def splits_disjoint(subject: TasksSubject) -> None:
    """No two splits share a class (``split_by="class"``) or an example (``"example"``): told by the rows of a common
    table, by names that are unique within each split, by identities where they are the only thing there is, and by
    contents, of which at most half may be met again in another split (real data have duplicates). A split that is
    exactly two or more others together, without the test split (``trainval``), is a view of them and may.
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
            sampled = [e.origin for e in subject.many(split, 64) if e.origin is not None]
            found = {n: c for o in sampled if o.classes is not None and o.names for n, c in _named_classes(o)}
            names[split] = list(found)
            ids[split] = {
                int(i) for o in sampled for a in (o.support_ids, o.query_ids) if a is not None for i in a.flat
            }
    views = {s: _parts(s, ids if pools else names) for s in spec.splits}
    for i, a in enumerate(spec.splits):
        for b in spec.splits[i + 1 :]:
            if a in views[b] or b in views[a]:
                continue
            unique = all(len(set(names[s])) == len(names[s]) for s in (a, b))
            shared = sorted(set(names[a]) & set(names[b]))
            if spec.split_by == "class" and unique and shared:
                broken(f"splits {a!r} and {b!r} share {len(shared)} classes: {', '.join(shared[:5])}")
            comparable = not pools or pools[a].x.data_ptr() == pools[b].x.data_ptr()
            if comparable and (pools or spec.split_by == "example") and (both := sorted(ids[a] & ids[b])):
                broken(f"splits {a!r} and {b!r} share {len(both)} examples: {both[:5]}")
            if pools and not comparable:
                _check_contents(a, b, *(_contents(pools[s]) for s in (a, b)))


def _parts(split: str, members: Mapping[str, Collection[Any]]) -> list[str]:
    """The splits of which ``split`` is exactly the union, if it is one."""
    own = set(members[split])
    parts = [s for s, held in members.items() if s not in (split, "test") and held and set(held) < own]
    return parts if len(parts) > 1 and set().union(*(members[s] for s in parts)) == own else []


def _named_classes(origin: Any) -> set[tuple[str, int]]:
    return {(origin.names[c], int(c)) for c in origin.classes.flat}


def _contents(pool: Any) -> list[bytes]:
    """The bytes of at most 2,000 examples, spread over the pool."""
    ids = pool.table()[0]
    chosen = ids[:: max(1, len(ids) // 2000)]
    return [x.tobytes() for x in pool.x[torch.from_numpy(chosen)].numpy()]


def _check_contents(a: str, b: str, first: list[bytes], second: list[bytes]) -> None:
    held = set(second)
    met = sum(x in held for x in first)
    if met * 2 > len(first):
        broken(f"{met} of {len(first)} examples of split {a!r} are in split {b!r} too, bit for bit")


def _no_classes(subject: TasksSubject) -> str | None:
    if subject.spec.kind != "classification":
        return f"their kind is {subject.spec.kind}"
    origin = subject.tasks.sample(subject.spec.splits[0], [0]).origin
    if origin is None or origin.classes is None:
        return "origin.classes is None: it does not say which class a label stands for"
    return None


@tasks_rule(_no_classes)
def labels_uniform(subject: TasksSubject) -> None:
    """Labels are given to an episode's classes at random: over 400 episodes, each label stands for the class with the
    least number, with the second least, ... equally often. The bound is Bernstein's; a fair assignment passes it with
    a probability of more than 1 - 1e-6.
    """
    tables: dict[int, np.ndarray[Any, Any]] = {}
    for episode in subject.many(subject.spec.splits[0], EPISODES):
        assert episode.origin is not None
        assert episode.origin.classes is not None
        for classes in episode.origin.classes:
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
                f"of {M:.0f} episodes with {N} classes, label {label} stands for class {rank} (in order of class "
                f"numbers) in {table[rank, label]:.0f}, expected {M / N:.0f} ± {bound:.0f}: labels aren't random"
            )


def bernstein(variance: float, log_odds: float) -> float:
    """t such that P(|X - EX| > t) < 2 exp(-log_odds') for a sum X of variance ``variance`` of terms within [0, 1]."""
    third = log_odds / 3
    return third + math.sqrt(third * third + 2 * log_odds * variance)


def _no_semantics(subject: TasksSubject) -> str | None:
    return _no_classes(subject) or (None if "semantics" in subject.spec.provides else "they provide no semantics")


@tasks_rule(_no_semantics)
def semantics_move_with_labels(subject: TasksSubject) -> None:
    """Row c of the semantics describes the class that label c stands for. Vectors of one class are equal in all
    episodes, or (captions, of which a class has several) nearer to that class's other vectors than to those of the
    other classes of the episode: over 400 episodes by at least four standard errors.
    """
    episodes: list[tuple[list[int], Tensor]] = []
    for episode in subject.many(subject.spec.splits[0], EPISODES):
        assert episode.origin is not None
        assert episode.origin.classes is not None
        if episode.support.semantics is None:
            broken("the spec provides semantics, but the episodes have none")
        vectors = episode.support.semantics.double().flatten(2)
        episodes += list(zip(episode.origin.classes.tolist(), vectors, strict=True))
    by_class: dict[int, list[Tensor]] = defaultdict(list)
    for classes, vectors in episodes:
        for c, v in zip(classes, vectors, strict=True):
            by_class[c].append(v)
    if all(torch.equal(v, found[0]) for found in by_class.values() for v in found):
        return
    sums = {c: torch.stack(found).sum(0) for c, found in by_class.items()}
    nearer = []
    for classes, vectors in episodes:
        if len(classes) < 2 or any(len(by_class[c]) < 2 for c in classes):
            continue
        # The class's mean over the other episodes, so that no vector is compared with itself.
        means = torch.stack([(sums[c] - v) / (len(by_class[c]) - 1) for c, v in zip(classes, vectors, strict=True)])
        apart = (vectors[:, None] - means[None]).square().sum(-1)
        own = apart.diagonal().mean()
        nearer.append(float((apart.sum() - apart.diagonal().sum()) / (apart.numel() - len(apart)) - own))
    if len(nearer) < 2:
        return
    errors = float(np.mean(nearer)) / max(float(np.std(nearer)) / math.sqrt(len(nearer)), 1e-30)
    if errors < 4:
        broken(
            f"vectors of one class are no nearer to each other than to those of other classes ({errors:.1f} standard "
            f"errors over {len(nearer)} episodes, expected at least 4): row c does not describe label c"
        )
