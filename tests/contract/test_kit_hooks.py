"""The kit's rules for hooks: the built-in hooks keep them, and broken ones are rejected by the rule's name."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kshot
from kshot.testing import RuleViolation, rules, suite

metrics = suite(hook="metrics")
progress = suite(hook="progress", options={"seconds": 0})


class Losses:
    """A good hook: keeps the losses, and writes them into the run folder at the end."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    @kshot.hookimpl
    def iteration_end(self, metrics: Any) -> None:
        self.losses.append(metrics["loss"])

    @kshot.hookimpl
    def run_end(self, engine: Any, error: BaseException | None) -> None:
        if engine.folder is not None and error is None:
            (engine.folder.path / "losses.txt").write_text(str(self.losses))

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self.losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses = list(state["losses"])


losses = suite(hook=Losses)


class Undecorated(Losses):
    """Overrides a method without the decorator."""

    def iteration_end(self, metrics: Any) -> None: ...


class HearsOnce(Losses):
    """Removes its method once it was called."""

    @kshot.hookimpl
    def iteration_end(self, engine: Any, metrics: Any) -> None:
        engine._hooks._manager.unregister(self)


class Nudges(Losses):
    """Changes the learner."""

    @kshot.hookimpl
    def iteration_end(self, engine: Any, metrics: Any) -> None:
        with torch.no_grad():
            next(engine.learner.parameters()).add_(1)


class Draws(Losses):
    """Draws from the process's generators."""

    @kshot.hookimpl
    def iteration_end(self, metrics: Any) -> None:
        torch.rand(1), np.random.rand(), random.random()


class WritesHere(Losses):
    """Writes into the working directory."""

    @kshot.hookimpl
    def run_start(self) -> None:
        Path("losses.txt").write_text("")


class OnlyOnce(Losses):
    """Serves one run."""

    used = False

    @kshot.hookimpl
    def run_start(self) -> None:
        assert not self.used
        self.used = True


class Exits(Losses):
    """Ends the program when a training ends."""

    @kshot.hookimpl
    def run_end(self) -> None:
        raise SystemExit(0)


class Forgets(Losses):
    """Does not restore its state."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Arrays(Losses):
    """Has an array of numpy in its state."""

    def state_dict(self) -> dict[str, Any]:
        return {"losses": np.array(self.losses)}


class NeedsTraining(Losses):
    """Works only in a run that trains."""

    start: int

    @kshot.hookimpl
    def run_start(self, iteration: int) -> None:
        self.start = iteration

    @kshot.hookimpl
    def evaluation_end(self, iteration: int) -> None:
        assert iteration >= self.start


@pytest.mark.parametrize(
    ("hook", "rule", "message"),
    [
        (Undecorated, "engine-takes-it", "got the method iteration_end without its decorator"),
        (HearsOnce, "heard-at-the-right-times", "iteration_end: got 1 calls, expected 4"),
        (Nudges, "changes-nothing", "got other parameters of the learner than without the hook"),
        (
            Draws,
            "changes-nothing",
            "got changes of the state of torch's generator, the state of numpy's generator, the state of Python's gene",
        ),
        (WritesHere, "works-without-a-run-folder", "got losses.txt in the working directory"),
        (OnlyOnce, "serves-a-second-run", "hook 'under test' raised in run_start"),
        (NeedsTraining, "serves-a-second-run", "hook 'under test' raised in evaluation_end"),
        (Exits, "serves-a-second-run", "hook 'under test' raised in run_end: SystemExit"),
        (Forgets, "state-round-trips", "got another state after resuming, expected the one that was saved"),
        (Arrays, "state-round-trips", r"'losses'\]: got numpy.ndarray"),
    ],
)
def test_broken_hook_is_rejected_by_the_name_of_the_rule(hook: Any, rule: str, message: str) -> None:
    """Each breaks one promise and keeps the protocol otherwise."""
    with pytest.raises(RuleViolation, match=f"^{rule}: .*{message}"):
        suite(hook=hook).verify(rule)


def test_rules_are_of_the_group() -> None:
    """``kshot.testing.rules`` lists them as those of other groups."""
    assert {rule.group for rule in rules("hooks")} == {"hooks"}
    assert all(rule.statement for rule in rules("hooks"))
