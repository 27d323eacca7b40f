"""A hook is heard, or refused by its name when the engine is made; and one that raises is named."""

from __future__ import annotations

import os
import signal
import types
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kshot
from kshot._engine.hook_checks import ARGUMENTS, named_hooks
from kshot.errors import HookError, OptionError, RunError
from kshot.testing import sample_learner, sample_tasks

TASKS = sample_tasks.classification()


def engine(hooks: Any, **options: Any) -> kshot.Engine:
    return kshot.Engine(sample_learner.NearestMean(TASKS.spec), TASKS, hooks=hooks, **options)


class Counter:
    """Count the outer steps that it hears of."""

    def __init__(self) -> None:
        self.heard: list[int] = []

    @kshot.hookimpl
    def iteration_end(self, iteration: int) -> None:
        self.heard.append(iteration)


class Stateful(Counter):
    """Save whatever ``value`` is."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def state_dict(self) -> Any:
        return {"value": self.value}

    def load_state_dict(self, state: Any) -> None:
        self.value = state["value"]


def hook_of(name: str, method: Any, **more: Any) -> Any:
    """Return an object of a class with one method besides those of a counter."""
    return type("Odd", (Counter,), {name: method, **more})()


def undecorated(self: Any, iteration: int) -> None: ...


def other_argument(self: Any, step: int) -> None: ...


def with_default(self: Any, iteration: int = 0) -> None: ...


def with_rest(self: Any, **values: Any) -> None: ...


def keyword_only(self: Any, *, iteration: int) -> None: ...


async def never_awaited(self: Any, iteration: int) -> None: ...


def never_run(self: Any, iteration: int) -> Any:
    yield


def copied(method: Any) -> Any:
    """Return a copy, since a decorator marks the function itself."""
    return types.FunctionType(method.__code__, method.__globals__, method.__name__, method.__defaults__)


def decorated(method: Any, **options: Any) -> Any:
    copy = copied(method)
    copy.__kwdefaults__ = method.__kwdefaults__
    return kshot.hookimpl(copy, **options)


@pytest.mark.parametrize(
    ("name", "method", "message"),
    [
        ("run_end", undecorated, r"got the method run_end without its decorator, expected @kshot.hookimpl above it"),
        ("on_run_end", undecorated, r"got the method on_run_end \(did you mean 'run_end'\?\), which is no hook"),
        ("runEnd", undecorated, r".*did you mean 'run_end'"),
        ("on_run_end", decorated(undecorated), r"got the method on_run_end, .*; did you mean 'run_end'\?"),
        ("iteration_ends", decorated(undecorated), r".*did you mean 'iteration_end'"),
        ("run_end", decorated(other_argument), r"got the argument 'step' of run_end, expected some of engine, it"),
        ("run_end", decorated(with_default), r"got a default for the argument 'iteration' of run_end"),
        ("run_end", decorated(with_rest), r"got the argument '\*\*values' of run_end, to which nothing is"),
        ("run_end", decorated(keyword_only), r"got the argument 'iteration' of run_end, to which nothing"),
        ("run_end", decorated(never_awaited), r"got the async method run_end"),
        ("run_end", decorated(never_run), r"got a generator, whose body would never run in run_end"),
        ("run_end", kshot.hookimpl(staticmethod(copied(undecorated))), r"got the method run_end without its decorator"),
        ("state_dict", lambda self: {}, r"got state_dict without load_state_dict, expected both"),
    ],
)
def test_method_that_would_not_be_called_is_refused_by_name(name: str, method: Any, message: str) -> None:
    """A hook that hears nothing would be noticed only after the training; pluggy's own errors name no argument."""
    with pytest.raises(OptionError, match=rf"^hook 'Odd': {message}"):
        engine([hook_of(name, method)])


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        ("metrics", r"hooks: got the text 'metrics', expected a list .*hooks=\['metrics'\] for one"),
        (None, r"hooks: got None, expected a list .*; use hooks=\(\) for none"),
        (Counter(), r"hooks: got a Counter, expected a list"),
        ([Counter], r"hook 'type': got the class Counter, expected an object of it: Counter\(\)"),
        ([3], r"hook 'int': got 3, which has no hook method; decorate its methods with @kshot.hookimpl"),
        ([object()], r"hook 'object': got a object, which has no hook method"),
        ({3: Counter()}, r"hooks: got the name 3, expected a string"),
        (["metrics", "metrics"], r"hooks: got the name 'metrics' twice, expected it once"),
        ([1, 2, "metricz"], r"hook 'int': got 1"),
    ],
)
def test_what_is_no_hook_is_refused(hooks: Any, message: str) -> None:
    """A class, a number, or a name instead of a list of names is a slip that must not train without the hook."""
    with pytest.raises(OptionError, match=message):
        engine(hooks)


def test_one_object_is_given_once() -> None:
    """Its methods would be called twice at each step."""
    counter = Counter()
    with pytest.raises(OptionError, match="got one object twice, as 'a' and 'b', expected it once"):
        engine({"a": counter, "b": counter})


def test_hooks_of_one_class_have_distinct_names_and_are_all_heard() -> None:
    """Their states are stored by these names, so the names depend on the order alone."""
    counters = [Counter(), Counter(), Counter()]
    assert [name for name, _ in named_hooks(counters)] == ["Counter", "Counter-2", "Counter-3"]
    engine(counters).train(2)
    assert [counter.heard for counter in counters] == [[1, 2]] * 3


def test_run_keeps_all_hooks_of_one_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``kshot.runs.train`` names objects as the engine does; a later one must not replace an earlier one."""
    monkeypatch.chdir(tmp_path)
    kshot.register(sample_learner.NearestMean, name="sample-learner")
    kshot.register(sample_tasks.classification, name="sample-tasks", group="tasks")
    counters = [Counter(), Counter()]
    options: dict[str, Any] = {"iterations": 2, "evaluate": {"episodes": 2}, "quiet": True, "no_run": True}
    kshot.runs.train("sample-learner", "sample-tasks", hooks=counters, **options)
    assert [counter.heard for counter in counters] == [[1, 2]] * 2


def test_properties_of_a_hook_are_not_evaluated() -> None:
    """A property may need what a run sets first."""
    hook = hook_of("late", property(lambda self: 1 / 0))
    engine([hook]).train(1)
    assert hook.heard == [1]


def test_optional_hook_of_another_version_is_allowed() -> None:
    """A plugin may be written for several versions of kshot, and says so with pluggy's ``optionalhook``."""
    hook = hook_of("run_paused", decorated(undecorated, optionalhook=True))
    engine([hook]).train(1)
    assert hook.heard == [1]


def test_arguments_are_those_of_the_specs() -> None:
    """Messages list them."""
    assert ARGUMENTS["iteration_end"] == ("engine", "iteration", "metrics")


# -------------------- states


@pytest.mark.parametrize("value", [np.float64(0.5), [np.int64(3)], {"a": torch.ones(2)}, (1, None, "x", True)])
def test_state_of_plain_values_is_saved_and_resumed(value: Any, tmp_path: Path) -> None:
    """Numbers of numpy are stored as numbers."""
    engine([Stateful(value)], run=tmp_path / "run").train(2)
    other = Stateful(None)
    assert engine([other], run=tmp_path / "run").resume() == 2
    assert repr(other.value) == repr(value.item() if isinstance(value, np.generic) else eval_plain(value))


def eval_plain(value: Any) -> Any:
    return [item.item() for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("value", [np.ones(2), Path("x"), deque([1]), Counter(), lambda: None])
def test_state_that_can_not_be_read_again_is_refused_before_training(value: Any, tmp_path: Path) -> None:
    """Otherwise the run would be lost: it could not be resumed."""
    message = r"^hook 'Stateful'\['value'\]: got "
    with pytest.raises(HookError, match=message):
        engine([Stateful(value)], run=tmp_path / "run").train(2)
    engine([Stateful(value)]).train(1)  # nothing is saved without a run folder


# -------------------- exceptions


def raising(error: BaseException) -> Callable[..., None]:
    def iteration_end(self: Any, iteration: int) -> None:
        raise error

    return iteration_end


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt(), GeneratorExit(), ZeroDivisionError("oh")])
def test_hook_that_raises_is_named_and_does_not_end_the_program(error: BaseException) -> None:
    """SystemExit with code 0 would pass for a training that succeeded, and KeyboardInterrupt for Ctrl-C."""
    bad = type("Bad", (), {"iteration_end": kshot.hookimpl(raising(error))})()
    with pytest.raises(HookError, match=rf"^hook 'Bad' raised in iteration_end: {type(error).__name__}\("):
        engine([Counter(), bad]).train(2)


def test_ctrl_c_while_a_hook_is_called_interrupts() -> None:
    """The user's own interrupt is not an error of the hook."""
    press = kshot.hookimpl(lambda self, iteration: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        engine([type("Slow", (), {"iteration_end": press})()]).train(2)


def test_error_of_kshot_in_a_hook_says_which_hook() -> None:
    """A hook may evaluate with a wrong option; the message alone does not say who asked for it."""
    refuse = kshot.hookimpl(lambda self, engine: engine.evaluate(episodes=0))
    bad = type("Bad", (), {"run_start": refuse})()
    with pytest.raises(OptionError, match="got episodes=0") as caught:
        engine([bad]).train(1)
    assert caught.value.__notes__ == ["while hook 'Bad' was called at run_start"]


def test_second_of_two_hooks_of_one_class_is_named() -> None:
    """They share their code, so the object tells them apart."""

    class Fussy(Counter):
        bad = False

        @kshot.hookimpl
        def run_start(self) -> None:
            assert not self.bad

    second = Fussy()
    second.bad = True
    with pytest.raises(HookError, match="hook 'Fussy-2' raised in run_start"):
        engine([Fussy(), second, Fussy()]).train(1)


def test_every_hook_is_called_at_the_end_of_a_run() -> None:
    """Each has resources to release, whether or not another one fails at it."""
    ended = []

    class Ends:
        @kshot.hookimpl
        def run_end(self) -> None:
            ended.append(self)
            raise ValueError("can't end")

    with pytest.raises(HookError, match=r"hook 'Ends-2' raised in run_end: ValueError\(\"can't end\"\)"):
        engine([Ends(), Ends()]).train(1)
    assert len(ended) == 2


def test_metrics_that_can_not_be_written_name_the_file(tmp_path: Path) -> None:
    """The disk may be full, or somebody may have put a folder in the file's place."""

    class Obstacle:
        @kshot.hookimpl
        def run_start(self, engine: Any) -> None:
            (engine.folder.path / "metrics.jsonl").mkdir()

    with pytest.raises(RunError, match=r"^could not open .*metrics.jsonl: "):
        engine(["metrics", Obstacle()], run=tmp_path / "run").train(1)
