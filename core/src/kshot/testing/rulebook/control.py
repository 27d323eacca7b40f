"""Rules for control: what environments return and refuse, and how learners play in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import torch
from attrs import frozen
from torch import Tensor

from kshot.episode import Episode, Rollout, one_task, register_value, slice_tasks
from kshot.errors import DataError, KshotError
from kshot.randomness import generator, seeded
from kshot.spec import TaskSpec, bounds
from kshot.testing.cases import Case, floats_of, precise
from kshot.testing.compare import difference, gap, named_tensors, rows, tolerance
from kshot.testing.rulebook.learner_rule import learner_rule, only
from kshot.testing.rulebook.rule import broken
from kshot.testing.rulebook.task_rule import tasks_rule
from kshot.testing.subjects import TasksSubject

# --- Environments ---------------------------------------------------------------------------------


def _no_control(subject: TasksSubject) -> str | None:
    if subject.spec.kind == "control" or "environment" in subject.spec.provides:
        return None
    return f"their kind is {subject.spec.kind}"


@frozen(eq=False)
class Chance:
    """A policy that draws actions from the key of its rollout alone, and records its calls.

    Attributes:
        spec: the spec that defines the actions.
        begun: the (key, shape) of each rollout.
        seen, taken: the observation and the action of each step.
    """

    spec: TaskSpec
    begun: list[tuple[Tensor, tuple[int, int]]] = attrs.field(factory=list)
    seen: list[Tensor] = attrs.field(factory=list)
    taken: list[Tensor] = attrs.field(factory=list)

    def __call__(self, observation: Tensor) -> Tensor:
        """Return the action 0."""
        shape = (*observation.shape[: observation.ndim - len(self.spec.input_shape)], *self.spec.target_shape)
        return torch.zeros(shape, dtype=observation.dtype if self.spec.way is None else torch.int64)

    def begin(self, key: Tensor, shape: tuple[int, int]) -> Callable[[Tensor], Tensor]:
        """Draw the actions of each trajectory and step; they depend on nothing but the key."""
        self.begun.append((key, shape))
        E, T = shape
        drawn = []
        for k in key.reshape(-1):
            chance = generator(k, "conformance")
            if self.spec.way is not None:
                drawn.append(torch.randint(int(self.spec.way), (E, T), generator=chance))  # type: ignore[arg-type]
            else:
                low, high = self.spec.target_range or (-1.0, 1.0)
                drawn.append(low + (high - low) * torch.rand(E, T, *self.spec.target_shape, generator=chance))
        actions = torch.stack(drawn).reshape(*key.shape, *drawn[0].shape).movedim(key.ndim + 1, 0)

        def act(observation: Tensor) -> Tensor:
            action = actions[len(self.seen)]
            self.seen.append(observation.clone())
            self.taken.append(action.clone())
            return action.requires_grad_() if action.is_floating_point() else action

        return act


def _play(spec: TaskSpec, environment: Any, number: int = 0) -> tuple[Rollout, Chance]:
    policy = Chance(spec)
    with torch.enable_grad():  # a rollout must not keep a graph even if gradients are enabled
        return environment.rollout(policy, number), policy


def _sources(episode: Episode) -> list[tuple[str, Any]]:
    """Return the environments of support and query; demonstrations have the latter alone."""
    both = [("support", episode.support.source), ("query", episode.query.source)]
    return [(where, source) for where, source in both if source is not None]


@tasks_rule(_no_control)
def rollouts_as_specified(subject: TasksSubject) -> None:
    """A rollout is what the spec and ``kshot.episode.Rollout`` say: ``shot`` trajectories in the support and ``query``
    in the query; the observations [B, E, T, *input] that the policy saw, in order, and the actions that it returned;
    finite rewards [B, E, T], which are 0 after the end of a trajectory; ``running`` [B, E, T], true up to the end;
    scores [B, E]; and no graph. If a policy has ``begin``, it is called once per rollout, with int64 keys [B] and
    (E, T), and what it returns chooses the actions.
    """
    spec = subject.spec
    for split in spec.splits:
        indices = list(subject.block(0, 3))
        episode = subject.tasks.sample(split, indices)
        counts = {"support": spec.shot, "query": spec.query} if spec.kind == "control" else {}
        for where, environment in _sources(episode):
            count = counts.get(where)
            _check_rollout(*_play(spec, environment), spec, len(indices), count, f"split {split!r}, {where}")


def _check_rollout(played: Rollout, policy: Chance, spec: TaskSpec, B: int, count: Any, where: str) -> None:
    if len(policy.begun) != 1 or not policy.seen:
        broken(
            f"{where}: got {len(policy.begun)} calls of the policy's begin and {len(policy.seen)} of what it returned, "
            "expected one call of begin and then one call per step"
        )
    key, (E, T) = policy.begun[0]
    if key.dtype != torch.int64 or tuple(key.shape) != (B,) or len(set(key.tolist())) < B:
        broken(f"{where}: got keys {key.dtype} {key.tolist()} in begin, expected int64, one for each of {B} tasks")
    low, high = bounds(count)
    if low is not None and high is not None and not low <= E <= high:
        broken(f"{where}: got {E} trajectories, expected the spec's {count}")
    if len(policy.seen) > T:
        broken(f"{where}: got {len(policy.seen)} calls of the policy, expected at most the {T} steps given to begin")
    steps = len(policy.seen)
    expected = {
        "observations": (B, E, steps, *spec.input_shape),
        "actions": (B, E, steps, *spec.target_shape),
        "rewards": (B, E, steps),
        "running": (B, E, steps),
    }
    for name, shape in expected.items():
        recorded = getattr(played, name)
        if tuple(recorded.shape) != shape:
            broken(f"{where}: got {name} of shape {tuple(recorded.shape)}, expected {shape}")
        if recorded.requires_grad:
            broken(f"{where}: got {name} with a graph, expected none, because rollouts are data; use torch.no_grad()")
    running = played.running
    to_the_end = bool(running[..., 0].all()) and not bool((running[..., 1:] > running[..., :-1]).any())
    if running.dtype != torch.bool or not to_the_end:
        broken(f"{where}: got running {running.dtype}, expected bool: true from the first step to the end, then false")
    taken, seen = torch.stack(policy.taken, 2).detach(), torch.stack(policy.seen, 2)
    for name, recorded, actual in (("actions", played.actions, taken), ("observations", played.observations, seen)):
        if not torch.equal(recorded[running], actual[running].to(recorded.dtype)):
            broken(f"{where}: got other {name} than the policy returned or saw, expected exactly these")
    for name, values in (("rewards", played.rewards), ("observations", played.observations[running])):
        if not values.is_floating_point() or not bool(torch.isfinite(values).all()):
            broken(f"{where}: got {name} {values.dtype} that are not all finite floats, expected finite floats")
    if bool((played.rewards[~running] != 0).any()):
        broken(f"{where}: got rewards after the end of a trajectory, expected 0")
    if spec.input_range is not None:
        low_x, high_x = float(played.observations[running].min()), float(played.observations[running].max())
        if low_x < spec.input_range[0] - 1e-6 or high_x > spec.input_range[1] + 1e-6:
            broken(
                f"{where}: got observations in [{low_x:.4g}, {high_x:.4g}], expected the spec's input_range "
                f"{list(spec.input_range)}"
            )
    for name, score in played.scores.items():
        if tuple(score.shape) != (B, E):
            broken(f"{where}: got the score {name!r} of shape {tuple(score.shape)}, expected {(B, E)} (per trajectory)")


@tasks_rule(_no_control)
def rollouts_are_values(subject: TasksSubject) -> None:
    """Playing changes nothing: rollout n, played again after others, gives the same bits. Rollouts of the support are
    numbered from 0 to the spec's ``rollouts`` - 1; any other number is refused with kshot.errors.DataError. The query
    has no such limit.
    """
    spec = subject.spec
    split = spec.splits[0]
    episode = subject.tasks.sample(split, list(subject.block(0, 2)))
    for where, environment in _sources(episode):
        limit = spec.rollouts if where == "support" else None
        numbers = range(3) if limit is None else range(min(limit, 3))
        first = {n: named_tensors(_play(spec, environment, n)[0]) for n in numbers}
        for n in numbers:
            if differs := difference(first[n], named_tensors(_play(spec, environment, n)[0]), 0):
                broken(f"{where}: got another rollout {n} when played again after others, expected the same: {differs}")
        for n in [-1] if limit is None else [-1, limit]:
            _refused(lambda n=n, e=environment: _play(spec, e, n), DataError, f"{where}: rollout {n}")  # type: ignore[misc]


def _refused(act: Callable[[], object], error: type[Exception], what: str) -> None:
    try:
        act()
    except error:
        return
    except Exception as raised:
        broken(f"got {type(raised).__name__} ({raised}) for {what}, expected kshot.errors.{error.__name__}")
    broken(f"got no error for {what}, expected kshot.errors.{error.__name__}")


@tasks_rule(_no_control)
def rollouts_have_own_chance(subject: TasksSubject) -> None:
    """Random numbers depend on the task, on the rollout's number, and on whether it belongs to support or query: the
    keys given to policies all differ, and each task plays in a meta-batch in the same way as alone.
    """
    spec = subject.spec
    split = spec.splits[0]
    indices = list(subject.block(0, 3))
    episode = subject.tasks.sample(split, indices)
    keys: dict[int, str] = {}
    for where, environment in _sources(episode):
        for n in range(1 if spec.rollouts == 1 and where == "support" else 2):
            if spec.rollouts == 0 and where == "support":
                continue
            played, policy = _play(spec, environment, n)
            for b, key in enumerate(policy.begun[0][0].tolist()):
                name = f"{where} of episode {indices[b]}, rollout {n}"
                if key in keys:
                    broken(f"got the same key {key} in begin for {name} and for {keys[key]}, expected different keys")
                keys[key] = name
            for b, i in enumerate(indices):
                alone = dict(_sources(subject.tasks.sample(split, [i])))[where]
                one = named_tensors(_play(spec, alone, n)[0])
                if differs := difference(one, rows(named_tensors(played), b)):
                    broken(
                        f"{where} of episode {i}: got another rollout {n} alone than together with other tasks, "
                        f"expected the same: {differs}"
                    )


@tasks_rule(_no_control)
def wrong_actions_refused(subject: TasksSubject) -> None:
    """Actions of another shape or type, outside of 0 to ``way`` - 1, or not finite are refused with a KshotError."""
    spec = subject.spec
    still = Chance(spec)
    wrong: dict[str, Callable[[Tensor], Tensor]] = {
        "for one trajectory too few": lambda x: still(x)[:, 1:],
        "with one axis too many": lambda x: still(x)[..., None],
    }
    if spec.way is None:
        wrong["of integers"] = lambda x: still(x).long()
        wrong["that are NaN"] = lambda x: still(x) + torch.nan
    else:
        wrong["of floats"] = lambda x: still(x).float()
        wrong["beyond the last"] = lambda x: still(x) + int(spec.way)  # type: ignore[arg-type]
    environment = subject.tasks.sample(spec.splits[0], list(subject.block(0, 2))).query.source
    for what, policy in wrong.items():
        _refused(lambda p=policy: environment.rollout(p, 0), KshotError, f"actions {what}")  # type: ignore[misc]


def _not_registered(subject: TasksSubject) -> str | None:
    if reason := _no_control(subject):
        return reason
    from torch.utils import _pytree as pytree

    source = subject.tasks.sample(subject.spec.splits[0], [0]).query.source
    registered = type(source) in pytree.SUPPORTED_NODES
    return None if registered else f"{type(source).__name__} is not registered with kshot.episode.register_value"


@tasks_rule(_not_registered)
def environments_travel(subject: TasksSubject) -> None:
    """An environment that is sliced with its episode plays the remaining tasks. Without the axis B, it plays its one
    task.
    """
    spec = subject.spec
    episode = subject.tasks.sample(spec.splits[0], list(subject.block(0, 3)))
    last = episode.size - 1  # the task to compare
    for where, environment in _sources(episode):
        if spec.rollouts == 0 and where == "support":
            continue
        in_batch = rows(named_tensors(_play(spec, environment)[0]), last)
        sliced = dict(_sources(slice_tasks(episode, last, last + 1)))[where]
        if differs := difference(in_batch, named_tensors(_play(spec, sliced)[0])):
            broken(f"{where}: got another rollout of task {last} after slicing, expected the same: {differs}")
        single, policy = _play(spec, dict(_sources(one_task(episode, last)))[where])
        if policy.begun[0][0].ndim:
            broken(f"{where}: got keys of shape {tuple(policy.begun[0][0].shape)} in begin for one task, expected ()")
        if differs := difference(in_batch, {name: t[None] for name, t in named_tensors(single).items()}):
            broken(f"{where}: got another rollout of task {last} without the axis B, expected the same: {differs}")


# --- Learners -------------------------------------------------------------------------------------


@frozen(eq=False)
class Counting:
    """An environment that records the numbers of the rollouts that are played in it."""

    environment: Any
    asked: list[int]

    def rollout(self, policy: Any, number: int = 0) -> Rollout:
        """Record the number and play in the wrapped environment."""
        self.asked.append(number)
        played: Rollout = self.environment.rollout(policy, number)
        return played


register_value(Counting, "environment")


@learner_rule(only("control"))
def budget_kept(case: Case) -> None:
    """While adapting, a learner plays each rollout of the support at most once, and at most ``needs.rollouts`` of them.
    Its predictor plays no further rollouts of the support.
    """
    learner = case.warmed()
    episode = case.single(0)
    asked: list[int] = []
    support = attrs.evolve(episode.support, source=Counting(episode.support.source, asked))
    with torch.no_grad():
        predictor = learner.adapt(support)
        adapted = list(asked)
        predictor(case.probe(episode).to(floats_of(learner)))
        episode.query.source.rollout(predictor)
    if len(asked) > len(adapted):
        broken(f"got rollouts {asked[len(adapted) :]} of the support from the predictor, expected all of them in adapt")
    if len(set(asked)) < len(asked):
        broken(f"got rollouts {asked} from adapt, expected each number once; keep what was played")
    if len(asked) > learner.needs.rollouts:
        broken(f"got {len(asked)} rollouts from adapt, expected at most needs.rollouts = {learner.needs.rollouts}")


@learner_rule(only("control"))
def plays_from_own_chance(case: Case) -> None:
    """A predictor plays a rollout in the same way each time, whatever the global random state, and several tasks play
    together in the same way as each alone: random numbers come from the key that ``begin`` receives. If actions differ
    from those without ``begin``, they also differ between two keys.
    """
    learner, cast, dtype = precise(case)

    def played(episode: Episode, seed: int) -> dict[str, Tensor]:
        episode = cast(episode)
        with torch.no_grad(), seeded("plays", seed):
            predictor = learner.adapt(episode.for_adapting(learner.needs.queries))
            first, again = (named_tensors(episode.query.source.rollout(predictor)) for _ in range(2))
        if where := difference(first, again, 0):
            broken(f"got another rollout when a predictor played it a second time, expected the same: {where}")
        return first

    together, other = played(case.episode(), 1), played(case.episode(), 2)
    if where := difference(together, other, 1e-6):
        broken(
            f"got another rollout from another global random state, expected the same: {where}; draw from the key that "
            "begin receives"
        )
    _check_keys_matter(case)
    if learner.needs.couples_tasks:
        return
    for b in range(case.size):
        alone = played(case.single(b), 1)
        for name, values in rows(together, b).items():
            if (far := gap(values, alone[name])) > tolerance(dtype):
                broken(
                    f"got {name} of task {b} that differ by {far:.2g} of the greatest one in a meta-batch, expected "
                    "those of the task alone"
                )


def _check_keys_matter(case: Case) -> None:
    """Begin two rollouts of 64 trajectories with different keys, and compare their first actions."""
    learner = case.warmed()
    with torch.no_grad():
        predictor = learner.adapt(case.episode().for_adapting(learner.needs.queries))
        if not hasattr(predictor, "begin"):
            return
        x = torch.zeros(case.size, 64, *case.tasks.spec.input_shape)
        plain = predictor(x)
        first, second = (
            predictor.begin(torch.arange(case.size, dtype=torch.int64) + 1000 * number, (64, 1))(x) for number in (1, 2)
        )
    if torch.equal(first, second) and int((first != plain).sum()) >= 3:
        broken(
            "got the same random actions from begin for two keys, expected others; draw from the key that begin "
            "receives, e.g. with kshot.control.normals(key, purpose, ...)"
        )
