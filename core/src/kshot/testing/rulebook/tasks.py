"""Rules for tasks: an episode is determined by its split and its number alone."""

from __future__ import annotations

from kshot.errors import DataError
from kshot.testing.compare import Facts, difference, facts, rows
from kshot.testing.other_process import importable, sample_elsewhere
from kshot.testing.rulebook.process import left_alone
from kshot.testing.rulebook.rule import broken
from kshot.testing.rulebook.task_rule import observed, shapes, tasks_rule
from kshot.testing.subjects import TasksSubject


@tasks_rule()
def same_episodes(subject: TasksSubject) -> None:
    """Episode i of a split is always the same: sampled again, in another order, after other splits, alone or in a
    batch, and from tasks that were built again with the same options. Integers are equal bit for bit, floating-point
    numbers up to rounding.
    """
    other = subject.source.build()
    for split in subject.spec.splits:
        indices = list(subject.block(0, 4))
        singles = {i: observed(subject, split, [i]) for i in indices}
        # Again, in reverse order, with episodes of other splits in between.
        for i in reversed(indices):
            for another in subject.spec.splits:
                subject.tasks.sample(another, [i + 1])
            if where := difference(singles[i], observed(subject, split, [i])):
                broken(
                    f"episode {i} of split {split!r}: got another episode when sampled in another order, expected the "
                    f"same: {where}"
                )
        # From tasks that were built a second time.
        if where := difference(singles[indices[-1]], observed(subject, split, [indices[-1]], other)):
            broken(
                f"episode {indices[-1]} of split {split!r}: got another episode from tasks that were built again, "
                f"expected the same: {where}"
            )
        # In a batch whose order is mixed.
        mixed = indices[::-2] + indices[-2::-2]
        together = observed(subject, split, mixed)
        for place, i in enumerate(mixed):
            if where := difference(singles[i], rows(together, place)):
                broken(
                    f"episode {i} of split {split!r}: got another episode in the batch {mixed} than alone, expected "
                    f"the same: {where}"
                )


@tasks_rule(lambda subject: importable(subject.source))
def same_episodes_in_another_process(subject: TasksSubject) -> None:
    """Another process, with another PYTHONHASHSEED, samples the same episodes."""
    split = subject.spec.splits[0]
    there = sample_elsewhere(subject.source, split, [3, 0])
    here = {f"{i}.{name}": t for i in (0, 3) for name, t in observed(subject, split, [i]).items()}
    if where := difference(here, {name: there[name] for name in here if name in there} | there):
        broken(
            f"split {split!r}: got other episodes in another process, expected the same: {where} (names begin with the "
            "number of the episode)"
        )


def _no_seed(subject: TasksSubject) -> str | None:
    if subject.source.is_built:
        return "these tasks were given built; give their name or factory, so that they can be built with another seed"
    return None if subject.source.takes("seed") else "their factory has no option seed"


@tasks_rule(_no_seed)
def other_seed_other_episodes(subject: TasksSubject) -> None:
    """Tasks built with another seed have other episodes: at least one of the first eight of each split differs, and so
    does its key, from which learners draw their random numbers.
    """
    seed = int(subject.source.options.get("seed", 0))
    other = subject.source.build(seed=seed + 1)
    for split in subject.spec.splits:
        same = [
            difference(observed(subject, split, [i]), observed(subject, split, [i], other), 0) is None for i in range(8)
        ]
        if all(same):
            broken(
                f"got the same first eight episodes of split {split!r} with seed {seed} and with seed {seed + 1}, "
                "expected other episodes; let the seed determine the episodes"
            )
        keys = [t.sample(split, [i]).support.key.tolist() for t in (subject.tasks, other) for i in range(8)]
        if keys[:8] == keys[8:]:
            broken(
                f"got the same support.key in the first eight episodes of split {split!r} with seed {seed} and with "
                f"seed {seed + 1}, expected others; compute keys with kshot.randomness.episode_keys(seed, split, "
                "indices)"
            )


@tasks_rule()
def splits_have_own_episodes(subject: TasksSubject) -> None:
    """The first eight episodes of a split are not all the same, and no two splits have the same first eight episodes
    or the same keys.
    """
    shown: dict[str, list[Facts]] = {}
    keys: dict[str, list[int]] = {}
    for split in subject.spec.splits:
        every = [observed(subject, split, [i]) for i in range(8)]
        keys[split] = [int(each["support.key"][0]) for each in every]
        shown[split] = [{n: t for n, t in e.items() if n != "support.key" and "origin" not in n} for e in every]
        if all(difference(shown[split][0], each, 0) is None for each in shown[split][1:]):
            broken(
                f"split {split!r}: got the same episode eight times, except for its key, expected others; let each "
                "index determine its own episode"
            )
        for other in list(shown)[:-1]:
            pairs = list(zip(shown[split], shown[other], strict=True))
            if all(difference(one, another, 0) is None for one, another in pairs):
                broken(
                    f"got the same first eight episodes in splits {other!r} and {split!r}, expected others; let the "
                    "split determine the episodes"
                )
            if keys[split] == keys[other]:
                broken(
                    f"got the same support.key in the first eight episodes of splits {other!r} and {split!r}, expected "
                    "others; compute keys with kshot.randomness.episode_keys(seed, split, indices)"
                )


@tasks_rule()
def process_is_left_alone(subject: TasksSubject) -> None:
    """Sampling changes no setting of the process, and neither draws from nor seeds the global random generators of
    torch, numpy and Python.
    """
    for split in subject.spec.splits:
        with left_alone("sample", draws=False):
            subject.tasks.sample(split, list(subject.block(0, 2)))


@tasks_rule()
def data_immutable(subject: TasksSubject) -> None:
    """Writing into the tensors of a sampled episode changes no episode that is sampled later."""
    tasks = subject.source.build()  # a second instance, so that the damage done here affects no other rule
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
        if where := difference(before, observed(subject, split, [0], tasks)):
            broken(
                f"split {split!r}: got another episode 0 after writing into a sampled one, expected the same: {where}; "
                "return copies of the data"
            )


@tasks_rule()
def unknown_split_refused(subject: TasksSubject) -> None:
    """A split that the spec does not name is refused with kshot.errors.DataError."""
    try:
        subject.tasks.sample("no-such-split", [0])
    except DataError:
        return
    except Exception as raised:
        broken(
            f"sample: got {type(raised).__name__} ({raised}) for the split 'no-such-split', expected "
            "kshot.errors.DataError"
        )
    broken("sample: got an episode for the split 'no-such-split', expected kshot.errors.DataError")


@tasks_rule(lambda subject: None if subject.spec.varies else "the shape of their episodes does not vary")
def mixed_blocks_refused(subject: TasksSubject) -> None:
    """If the shape of episodes varies, episodes from two blocks of different shapes can't form a meta-batch: sampling
    them together raises kshot.errors.DataError.
    """
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
                    f"sample: got {type(raised).__name__} ({raised}) for episodes 0 and {b * block}, which have "
                    "different shapes, expected kshot.errors.DataError"
                )
            broken(
                f"sample: got one meta-batch of episodes 0 and {b * block}, which have different shapes, expected "
                "kshot.errors.DataError"
            )
    broken(
        f"got the same shape in the first 50 blocks of split {split!r}, expected different ones, because the spec's "
        "counts are ranges; state single numbers in the spec if the shape does not vary"
    )
