"""Rules for hooks."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import os
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kshot._engine.engine import Engine
from kshot._engine.hook_checks import check_hook
from kshot._engine.hook_specs import hookimpl
from kshot._engine.run_folder import digest
from kshot.episode import Episode, Predictor, Support
from kshot.errors import KshotError
from kshot.registry.surroundings import kept
from kshot.spec import Needs, TaskSpec
from kshot.testing import sample_tasks
from kshot.testing.rulebook.process import seed_all, states
from kshot.testing.rulebook.rule import Rule, add, always, broken, named
from kshot.testing.sample_learner import NearestMean
from kshot.testing.subjects import HookSubject

Check = Callable[[HookSubject], None]

ITERATIONS = 4
"""Outer steps of a training in which a hook is observed; it has two validations and two checkpoints."""


def hook_rule(unless: Callable[[HookSubject], str | None] = always) -> Callable[[Check], Check]:
    """Register a check as a rule for hooks; ``unless`` returns the reason why it does not apply, or None."""

    def put(check: Check) -> Check:
        add(Rule(named(check), "hooks", check, unless))
        return check

    return put


@contextlib.contextmanager
def somewhere() -> Iterator[Path]:
    """Work in an empty folder, without showing what a hook prints; the folder is removed afterwards."""
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        yield Path(folder)


def engine_of(hooks: dict[str, Any], run: Path | None = None, learner: Any = None) -> Engine:
    """Return an engine with these hooks on small tasks."""
    tasks = sample_tasks.classification()
    if learner is None:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            learner = NearestMean(tasks.spec)
    return Engine(learner, tasks, hooks=hooks, run=run)


def trained(engine: Engine) -> Engine:
    """Train and evaluate an engine, with validations and checkpoints."""
    engine.train(ITERATIONS, validate_every=2, validation_episodes=3, checkpoint_every=2)
    engine.evaluate(3)
    return engine


def implementations(hook: Any) -> dict[str, Any]:
    """Return the code of each hook method by the hook's name."""
    codes = {}
    for attribute in dir(type(hook)):
        method = getattr(hook, attribute, None) if not isinstance(getattr(type(hook), attribute), property) else None
        options = getattr(method, "kshot_impl", None)
        if isinstance(options, dict) and hasattr(method, "__code__"):
            codes[options.get("specname") or attribute] = method.__code__  # type: ignore[union-attr]
    return codes


@hook_rule()
def engine_takes_it(subject: HookSubject) -> None:
    """A hook has at least one method that is decorated with ``kshot.hookimpl``. The names and arguments of its methods
    are those of the hooks, and it has both ``state_dict`` and ``load_state_dict``, or neither.
    """
    hook = subject.build()
    try:
        check_hook("under test", hook)
    except KshotError as refusal:
        broken(str(refusal))


@hook_rule()
def heard_at_the_right_times(subject: HookSubject) -> None:
    """During a training of 4 iterations with two validations, two checkpoints and a test, each method is called as
    often as its hook says.
    """
    hook = subject.build()
    codes = implementations(hook)
    counts: Counter[Any] = Counter()

    def count(frame: Any, event: str, _: Any) -> None:
        if event == "call":
            counts[frame.f_code] += 1

    with somewhere() as folder:
        engine = engine_of({"under test": hook}, run=folder / "run")
        before = sys.getprofile()
        sys.setprofile(count)
        try:
            trained(engine)
        finally:
            sys.setprofile(before)
    expected = {"run_start": 1, "iteration_end": ITERATIONS, "evaluation_end": 3, "checkpoint_saved": 2, "run_end": 1}
    for name, code in codes.items():
        times = counts[code]
        if times != expected.get(name, times) or not times:
            broken(f"{name}: got {times} calls, expected {expected.get(name, 'at least 1')}")


class _Observer:
    """Record what hooks hear, and hold the values themselves as other hooks may."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    @hookimpl
    def iteration_end(self, iteration: int, metrics: Any) -> None:
        self.heard.append((iteration, dict(metrics)))


@hook_rule()
def changes_nothing(subject: HookSubject) -> None:
    """A training with the hook gives the same parameters, buffers and results as one without it, bit for bit, and shows
    other hooks the same metrics. The hook changes neither random states nor settings of the process, such as torch's
    default dtype.
    """
    observed = []
    for hooks in ({}, {"under test": subject.build()}):
        changed: list[str] = []
        others = [_Observer(), _Observer()]  # one is called before the hook, the other after it
        hooks = {"observer": others[0], **hooks, "another observer": others[1]}
        with somewhere() as folder, kept(changed.extend):
            seed_all(1729)  # a hook that seeds the generators is then seen to change their states
            engine = trained(engine_of(hooks, run=folder / "run"))
            mode = engine.learner.training, [p.requires_grad for p in engine.learner.parameters()]
            scores = engine.evaluate(3).scores
            facts: dict[str, Any] = {"parameters of the learner": digest(dict(engine.learner.state_dict()))}
            facts["modes of the learner"] = mode
            facts["metrics for other hooks"] = [other.heard for other in others]
            facts["scores"] = digest({name: torch.as_tensor(score) for name, score in scores.items()})
            observed.append((facts, states(), changed))
    (plain, plain_states, plain_changes), (with_hook, ends, changes) = observed
    # The generators were seeded above, so their states are compared with those after a training without the hook.
    more = [name for name in changes if name not in plain_changes and "random" not in name]
    more += [f"the state of {name}" for name, state in ends.items() if state != plain_states[name]]
    if more:
        broken(f"got changes of {', '.join(more)}, expected none; draw from a generator of your own")
    for name, value in plain.items():
        if with_hook[name] != value:
            broken(f"got other {name} than without the hook, expected the same; copy what you change")


@hook_rule()
def works_without_a_run_folder(subject: HookSubject) -> None:
    """A run without a folder trains and evaluates, and the hook writes nothing into the working directory."""
    with somewhere() as folder:
        trained(engine_of({"under test": subject.build()}))
        if written := sorted(os.listdir(folder)):
            broken(f"got {', '.join(written)} in the working directory, expected no file without a run folder")


@hook_rule()
def serves_a_second_run(subject: HookSubject) -> None:
    """The same object works in a second run after the first one ended, and an evaluation alone needs no training."""
    hook = subject.build()
    with somewhere() as folder:
        engine_of({"under test": hook}, run=folder / "none").evaluate(3)
        for name in ("first", "second"):
            trained(engine_of({"under test": hook}, run=folder / name))


class _Mean(nn.Module):
    """Learn regression by adding a learned constant to the mean of the support's targets."""

    needs = Needs(kinds=("regression",))

    def __init__(self) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.zeros(1))

    def predictions(self, support: Support, x: Tensor) -> Tensor:
        means = support.y.mean(1, keepdim=True) + self.constant
        return means.expand(-1, x.shape[1], -1)

    def meta_gradient(self, episodes: Episode) -> dict[str, Tensor]:
        error = (self.predictions(episodes.support, episodes.query.x) - episodes.query.y).square().mean()
        error.backward()
        return {"loss": error.detach()}

    def adapt(self, support: Support) -> Predictor:
        return lambda x: self.predictions(support, x)


@hook_rule()
def serves_any_training(subject: HookSubject) -> None:
    """A hook works in a training of any kind of tasks, whatever the names of the scores, here of regression, and in
    one without validation and without checkpoints.
    """
    with somewhere() as folder:
        tasks = sample_tasks.Lines()
        trained(Engine(_Mean(), tasks, hooks={"under test": subject.build()}, run=folder / "regression"))
        engine_of({"under test": subject.build()}, run=folder / "plain").train(ITERATIONS)


@hook_rule()
def closes_its_files(subject: HookSubject) -> None:
    """When a training has ended, a hook has closed the files that it opened."""
    hook = subject.build()
    gc.collect()
    with somewhere() as folder, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        engine = trained(engine_of({"under test": hook}, run=folder / "run"))
        del engine, hook
        gc.collect()
        left = [
            str(w.message) for w in caught if issubclass(w.category, ResourceWarning) and str(folder) in str(w.message)
        ]
    if left:
        broken(f"got {left[0]}, expected it to be closed; close it in run_end, which is called after errors too")


class _Stops(NearestMean):
    """Raise an exception in one iteration."""

    iterations = 0

    def __init__(self, spec: TaskSpec, last: int) -> None:
        super().__init__(spec)
        self.last = last

    def meta_gradient(self, episodes: Any) -> Any:
        self.iterations += 1
        if self.iterations == self.last:
            raise ZeroDivisionError(f"in iteration {self.last}")
        return super().meta_gradient(episodes)


@hook_rule()
def error_of_a_training_passes(subject: HookSubject) -> None:
    """If a learner raises an exception, be it in the first iteration, it comes out of the training although the hook is
    called at its end, where the hook raises none itself: the engine would drop it, and resources stay open.
    """
    for last in (1, 2):
        _check_error_passes(subject, last)


def _check_error_passes(subject: HookSubject, last: int) -> None:
    with somewhere() as folder:
        learner = _Stops(sample_tasks.classification().spec, last)
        engine = engine_of({"under test": subject.build()}, folder / "run", learner)
        dropped = _raised_at_the_end(engine)
        try:
            engine.train(ITERATIONS)
        except Exception as raised:
            if dropped:
                broken(
                    f"run_end: got {dropped[0]} after an error in iteration {last}, expected none; use nothing that "
                    "only an iteration, a validation or the end without an error sets"
                )
            chain: BaseException | None = raised
            while chain is not None and not isinstance(chain, ZeroDivisionError):
                chain = chain.__cause__
            if chain is None:
                broken(f"got {raised!r}, expected the learner's own error")
            return
        broken("got no error of a training whose learner raises one, expected it to come out")


def _raised_at_the_end(engine: Engine) -> list[str]:
    """Return a list that fills with the errors that hooks raise in ``run_end``."""
    raised: list[str] = []
    call = engine._hooks._call

    def recorded(caller: Any, name: str, arguments: Any) -> None:
        try:
            call(caller, name, arguments)
        except BaseException as error:
            if name == "run_end":
                raised.append(str(error))
            raise

    engine._hooks._call = recorded  # type: ignore[method-assign]
    return raised


class _Obstacle:
    """Put a file in the place of the run folder when the training starts."""

    @hookimpl
    def run_start(self, engine: Any) -> None:
        path = engine.folder.path
        path.rename(path.with_name("moved"))
        path.write_text("not a folder")


@hook_rule()
def failure_is_named(subject: HookSubject) -> None:
    """If the hook can't do its work, here because the run folder is gone, the error names the hook or the file."""
    with somewhere() as folder:
        hooks = {"under-test": subject.build(), "obstacle": _Obstacle()}  # the last one is called first
        engine = engine_of(hooks, folder / "run")
        try:
            trained(engine)
        except KshotError as error:
            text = "\n".join([str(error), *getattr(error, "__notes__", ())])
            if "under-test" not in text and str(folder / "run") not in text:
                broken(f"got the message {text!r}, expected one that names the hook or the file")


def _no_state(subject: HookSubject) -> str | None:
    return None if hasattr(subject.build(), "state_dict") else "it has no state"


@hook_rule(_no_state)
def state_round_trips(subject: HookSubject) -> None:
    """The state consists of tensors and plain values. A resumed run gives another object of the hook the same state as
    was saved, and the hook goes on from it.
    """
    hook = subject.build()
    with somewhere() as folder:
        trained(engine_of({"under test": hook}, run=folder / "run"))
        other = subject.build()
        engine = engine_of({"under test": other}, run=folder / "run")
        stored: list[Any] = []
        load = engine._hooks.load

        def noted(states: Any) -> None:
            stored.append(copy.deepcopy(states["under test"]))
            load(states)

        engine._hooks.load = noted  # type: ignore[method-assign]
        engine.resume()
        if not stored or digest(other.state_dict()) != digest(stored[0]):
            broken("got another state after resuming, expected the one that was saved")
        engine.train(ITERATIONS + 2)
