"""Wrong hooks, each with one fault that a plugin's author may make."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

import shelf
import torch

import kshot

caught_by = partial(shelf.caught_by, group="hook")
survives = partial(shelf.survives, group="hook")
right = partial(shelf.right, group="hook")


@right()
class Losses:
    """A right hook: keeps the losses, and writes them into the run folder at the end."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    @kshot.hookimpl
    def iteration_end(self, metrics: Any) -> None:
        self.losses.append(metrics.get("loss", 0.0))

    @kshot.hookimpl
    def run_end(self, engine: Any, error: BaseException | None) -> None:
        if engine.folder is not None and error is None:
            (engine.folder.path / "losses.txt").write_text(str(self.losses))

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self.losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses = list(state["losses"])


@caught_by("engine-takes-it")
class Misspelt(Losses):
    """Misspells the name of a hook."""

    @kshot.hookimpl
    def iteration_ended(self, metrics: Any) -> None: ...


@caught_by("engine-takes-it")
class HalfAState:
    """Has a state that is saved, but can't be loaded."""

    @kshot.hookimpl
    def iteration_end(self, metrics: Any) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}


@caught_by("changes-nothing")
class SeedsEachIteration(Losses):
    """Seeds the generators at each iteration."""

    @kshot.hookimpl
    def iteration_end(self, metrics: Any) -> None:
        torch.manual_seed(0)
        random.seed(0)


@caught_by("changes-nothing")
class DecaysWeights(Losses):
    """Decays the weights, which is the task of an optimizer."""

    @kshot.hookimpl
    def iteration_end(self, engine: Any, metrics: Any) -> None:
        with torch.no_grad():
            for p in engine.learner.parameters():
                p.mul_(0.99)


@caught_by("changes-nothing")
class Smooths(Losses):
    """Replaces the metrics by a moving average, which other hooks then see."""

    @kshot.hookimpl
    def iteration_end(self, metrics: Any) -> None:
        self.losses.append(metrics.get("loss", 0.0))
        metrics["loss"] = sum(self.losses) / len(self.losses)


@caught_by("changes-nothing")
class Freezes(Losses):
    """Freezes the learner when the training ends."""

    @kshot.hookimpl
    def run_end(self, engine: Any) -> None:
        engine.learner.requires_grad_(False)


@caught_by("changes-nothing")
class OneThread(Losses):
    """Sets the number of torch's threads when a training begins."""

    @kshot.hookimpl
    def run_start(self) -> None:
        torch.set_num_threads(torch.get_num_threads() + 1)


@caught_by("works-without-a-run-folder")
class AlwaysWrites(Losses):
    """Writes into the run folder, also if there is none."""

    @kshot.hookimpl
    def run_start(self, engine: Any) -> None:
        (engine.folder.path / "start.txt").write_text("")


@caught_by("works-without-a-run-folder")
class WritesBesideYou(Losses):
    """Writes into the working directory."""

    @kshot.hookimpl
    def run_end(self) -> None:
        Path("losses.csv").write_text("")


@caught_by("serves-any-training")
class NeedsAccuracy(Losses):
    """Reads the accuracy of an evaluation, which only classification has."""

    @kshot.hookimpl
    def evaluation_end(self, result: Any) -> None:
        self.losses.append(float(result.scores["accuracy"].mean()))


@caught_by("serves-any-training")
class NeedsValidation(Losses):
    """Reports the best validation at the end, also if there was none."""

    @kshot.hookimpl
    def evaluation_end(self, result: Any) -> None:
        self.best = result

    @kshot.hookimpl
    def run_end(self, engine: Any, error: BaseException | None) -> None:
        if error is None:
            self.losses.append(float(len(self.best.scores)))


@caught_by("serves-a-second-run")
class RefusesASecondRun(Losses):
    """Makes its folder when a training begins, and fails if it exists."""

    folder: Any = None

    @kshot.hookimpl
    def run_start(self) -> None:
        if self.folder is not None:
            raise FileExistsError("the folder exists")
        self.folder = "made"


@caught_by("closes-its-files")
class LeavesItsFileOpen(Losses):
    """Opens a file when a training begins, and never closes it."""

    @kshot.hookimpl
    def run_start(self, engine: Any) -> None:
        if engine.folder is not None:
            self.file = open(engine.folder.path / "log.txt", "w")  # noqa: SIM115


@caught_by("error-of-a-training-passes")
class ReportsTheLastLoss(Losses):
    """Reports the last loss at the end, also of a training that failed before its first iteration ended."""

    @kshot.hookimpl
    def run_end(self, engine: Any) -> None:
        if engine.folder is not None:
            (engine.folder.path / "last.txt").write_text(str(self.losses[-1]))


@caught_by("error-of-a-training-passes")
class EndsTheProcess(Losses):
    """Ends the program if a training failed."""

    @kshot.hookimpl
    def run_end(self, error: BaseException | None) -> None:
        if error is not None:
            raise SystemExit(1)


@caught_by("state-round-trips")
class StartsAgain(Losses):
    """Begins with no losses in a resumed run."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses = []


@caught_by("state-round-trips")
class StoresItself(Losses):
    """Has an object of its own in its state."""

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self.losses), "path": Path("losses.txt")}


@survives("How long a hook may take depends on what it does: an evaluation of its own takes seconds on purpose.")
class Slow(Losses):
    """Copies all parameters at each iteration."""

    @kshot.hookimpl
    def iteration_end(self, engine: Any, metrics: Any) -> None:
        self.losses.append(sum(float(p.detach().clone().sum()) for p in engine.learner.parameters()) * 0.0)
