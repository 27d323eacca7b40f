"""Run the program that the processes of test_distributed.py start.

Started by torchrun as ``at_work.py FOLDER``, each process saves its values in FOLDER/found-RANK.pt. Imported,
``work(backend)`` computes the same values in one process. Started as ``at_work.py kshot ...``, the file is the command
line, with the small learners and tasks of this file registered.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kshot
from kshot import Engine, Episode, Needs, Support, TaskDistribution, TaskSpec, Training
from kshot.errors import KshotError
from kshot.randomness import seeded
from kshot.testing import sample_tasks, suite


class NearestMean(nn.Module):
    """Classify by prototypes behind batch norm, which has running statistics.

    Args:
        spec: the spec of the tasks.
        width: length of the embedding.
        fails: the failure of rank 1 from iteration 3 on: '' for none, ``raises``, ``killed``, ``stuck``, or ``asked``,
            which is a signal to stop. It happens once: a file of that name in the current folder records it.
    """

    needs = Needs(kinds=("classification",), variable_way=True)
    training_defaults = Training(optimizer="sgd", lr=0.1, meta_batch=5, iterations=20)

    def __init__(self, spec: TaskSpec, *, width: int = 8, fails: str = "") -> None:
        super().__init__()
        net = nn.Sequential(nn.Linear(spec.input_shape[0], width), nn.BatchNorm1d(width), nn.Tanh())
        self.encoder = kshot.nn.Encoder(net)
        self.fails = fails

    def losses(self, episodes: Episode) -> Tensor:
        """Return the loss of each task [B]."""
        logits, y = self.logits(episodes.support, episodes.query.x), episodes.query.y
        return F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view_as(y).mean(1)

    def logits(self, support: Support, x: Tensor) -> Tensor:
        z, n = self.encoder(torch.cat([support.x, x], 1)), support.x.shape[1]
        means = kshot.functional.class_means(z[:, :n], support.y, support.way or 0)
        return kshot.functional.prototypical_logits(z[:, n:], means)

    def meta_gradient(self, episodes: Episode) -> Any:
        assert episodes.origin is not None
        if self.fails and os.environ.get("RANK") == "1" and episodes.origin.indices[0] >= 10:
            fail(self.fails)
        loss = self.losses(episodes).mean()
        loss.backward()
        return {"loss": loss.detach()}

    def adapt(self, support: Support) -> Any:
        return lambda x: self.logits(support, x)


def fail(how: str) -> None:
    """Fail in the given way, unless this has happened before."""
    if Path(how).exists():
        return
    Path(how).touch()
    if how == "raises":
        raise LookupError("no such thing on this rank")
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "asked":
        os.kill(os.getpid(), signal.SIGTERM)
    else:
        time.sleep(600)


class Pseudo(NearestMean):
    """Write a pseudo-gradient, as Reptile does."""

    def meta_gradient(self, episodes: Episode) -> Any:
        with torch.no_grad():
            scale = self.losses(episodes).mean()
        for p in self.parameters():
            p.grad = 0.1 * scale * p.detach() + (0 if p.grad is None else p.grad)
        return {"scale": scale}


class Thrice(NearestMean):
    """Take three outer steps on each meta-batch."""

    def meta_gradient(self, episodes: Episode) -> Iterator[Any]:
        for _ in range(3):
            yield NearestMean.meta_gradient(self, episodes)


class Coupled(NearestMean):
    """Weigh each task by its share of the loss, which couples the tasks of a meta-batch."""

    needs = Needs(kinds=("classification",), variable_way=True, couples_tasks=True)

    def meta_gradient(self, episodes: Episode) -> Any:
        losses = self.losses(episodes)
        (losses * (losses / losses.sum()).detach()).sum().backward()
        return {"loss": losses.detach().mean()}


LEARNERS = {made.__name__: made for made in (NearestMean, Pseudo, Thrice, Coupled)}
META_BATCHES = (5, 4, 1)
"""Meta-batches that two ranks cannot divide, that they can divide, and that are smaller than two."""


class InFloat64:
    """A view that converts the tasks below to float64."""

    def __init__(self, of: TaskDistribution) -> None:
        self.of, self.spec, self.seed = of, of.spec, 0

    def sample(self, split: str, indices: Any) -> Episode:
        episode = self.of.sample(split, indices)
        return kshot.episode.map_tensors(lambda t: t.double() if t.is_floating_point() else t, episode)


def blobs(seed: int = 0) -> TaskDistribution:
    """Make small classification tasks."""
    return sample_tasks.classification(seed=seed)


def learner(made: type[NearestMean], seed: int = 3) -> NearestMean:
    """Make a learner with the same parameters in every process."""
    with seeded("initialisation", seed):
        return made(blobs().spec)


def work(backend: Any) -> dict[str, Any]:
    """Compute all values that are compared between processes."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name, made in LEARNERS.items():
        for meta_batch in META_BATCHES:
            for double in (False, True):
                tasks: Any = InFloat64(blobs()) if double else blobs()
                begun = learner(made).double() if double else learner(made)
                engine = Engine(begun, tasks, backend=backend, meta_batch=meta_batch)
                metrics = dict(engine.train(20))
                found[f"{name} {meta_batch} {double}"] = {"state": engine.learner.state_dict(), "metrics": metrics}
    result = Engine(learner(NearestMean), blobs(), backend=backend).evaluate(90)
    found["scores"] = {name: torch.from_numpy(values) for name, values in result.scores.items()}
    found["recorded"] = json.dumps(dict(result.backend))
    found["kit"] = {finding.rule: f"{finding.outcome} {finding.message}" for finding in suite(backend=backend).run()}
    return found


def disagree(backend: Any) -> dict[str, str]:
    """Return the errors that occur when rank 1 has other parameters, tasks or options than rank 0."""
    odd = backend.world.rank
    made = {
        "parameters": lambda: Engine(learner(NearestMean, seed=odd), blobs(), backend=backend),
        "tasks": lambda: Engine(learner(NearestMean), blobs(seed=odd), backend=backend),
        "option": lambda: Engine(learner(NearestMean), blobs(), backend=backend, meta_batch=2 + odd),
    }
    found = {}
    for what, make in made.items():
        try:
            make().train(2)
        except KshotError as error:
            found[what] = f"{type(error).__name__}: {error}"
    return found


UNDISTURBED = ("train", "at-work", "blobs", "--backend=distributed", "--engine.checkpoint_every=1", "--iterations=8")


def register() -> None:
    """Register the learner and the tasks of this file for the command line."""
    kshot.register(NearestMean, name="at-work")
    kshot.register(blobs, name="blobs", group="tasks")


if __name__ == "__main__":
    from kshot.cli import main

    register()
    if sys.argv[1] == "kshot":
        sys.argv = ["kshot", *sys.argv[2:]]
        main()
    folder = Path(sys.argv[1])
    kshot._engine.door.check_episode = lambda *_: None  # the door asks for float32
    backend = kshot.backend("distributed")
    found = {**work(backend), "disagreements": disagree(backend)}
    torch.save(found, folder / f"found-{backend.world.rank}.pt")
    main([*UNDISTURBED, f"--run={folder / 'undisturbed'}", "--quiet"])
