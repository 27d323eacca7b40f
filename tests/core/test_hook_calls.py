"""Test that no hook harms another: at the end of a run, and when states are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import kshot
from kshot import Engine, Needs
from kshot.errors import HookError, RunError
from kshot.testing import sample_tasks


class Still(nn.Module):
    """A learner with one parameter, which it does not change."""

    needs = Needs(variable_way=True)

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))

    def meta_gradient(self, episodes: Any) -> Any:
        return {"loss": 0.0}

    def adapt(self, support: Any) -> Any:
        return lambda x: self.w.expand(*x.shape[:2], support.way)


def engine(*hooks: Any, run: Path | None = None) -> Engine:
    return Engine(Still(), sample_tasks.classification(), hooks=list(hooks), run=run)


class Ends:
    """Note the end of a run, and raise there if asked to."""

    def __init__(self, raises: bool = False) -> None:
        self.raises, self.ended = raises, False

    @kshot.hookimpl
    def run_end(self, error: BaseException | None) -> None:
        self.ended = True
        if self.raises:
            raise ZeroDivisionError("oh")


class Stops:
    """Raise in an iteration."""

    @kshot.hookimpl
    def iteration_end(self) -> None:
        raise ArithmeticError("first")


class Counts:
    """Keep a number as its state, and refuse to load any if asked to."""

    def __init__(self, number: int, refuses: bool = False) -> None:
        self.number, self.refuses = number, refuses

    @kshot.hookimpl
    def iteration_end(self) -> None:
        self.number += 1

    def state_dict(self) -> dict[str, int]:
        return {"number": self.number}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if self.refuses and state["number"] < 100:
            raise KeyError("another")
        self.number = state["number"]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_hook_that_raises_at_the_end_keeps_none_of_the_others_from_ending(place: int) -> None:
    """They have files to close, whichever is called first."""
    hooks = [Ends(i == place) for i in range(3)]
    with pytest.raises(HookError, match="ZeroDivisionError"):
        engine(*hooks).train(1)
    assert [hook.ended for hook in hooks] == [True] * 3


def test_an_error_at_the_end_hides_no_earlier_one() -> None:
    """What ended the training is what the user must know."""
    last = Ends(raises=True)
    with pytest.raises(HookError, match="ArithmeticError"):
        engine(last, Stops()).train(1)
    assert last.ended


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_if_a_hook_refuses_its_state_all_keep_theirs(order: tuple[int, int], tmp_path: Path) -> None:
    """The engine too: a refused checkpoint changes nothing."""
    engine(Counts(0), Counts(0), run=tmp_path / "r").train(2)
    hooks = [Counts(100), Counts(100)]
    hooks[order[0]].refuses = True
    again = engine(*hooks, run=tmp_path / "r")
    with pytest.raises(RunError, match="got a state that a hook can't load"):
        again.resume()
    assert [hook.number for hook in hooks] == [100, 100]
    assert again.iteration == 0
