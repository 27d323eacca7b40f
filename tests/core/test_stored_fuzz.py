"""Changed files of a run are read rightly or refused by name, and never leave anything half loaded.

Bytes and values are changed at random, with fixed seeds. Changes of values get a new digest, as an attacker would give
them one, so that the checks behind the digest are reached.
"""

from __future__ import annotations

import copy
import json
import math
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import kshot
from kshot import Engine, registry
from kshot._engine.inputs import load_inputs
from kshot._engine.run_folder import RunFolder, digest, json_digest, load_checkpoint
from kshot.errors import KshotError
from kshot.runs.plan import Plan, build_tasks
from kshot.runs.recipe import Config, configure, layered, naming
from kshot.runs.runner import misfits
from kshot.testing import sample_learner, sample_tasks

pytestmark = pytest.mark.slow

INPUTS = {"config": (4, 250), "inputs": (3, 300), "checkpoints": (4, 250), "results": (2, 250), "recipes": (2, 300)}
"""How many seeds each test has, and how many inputs for each seed."""

NASTY: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 3, 10**15, 10**20, 10**400, 0.5, -0.5, math.nan, math.inf, -math.inf),
    *("", "x", "\0", "\x1b[2J", "²", "../../x", "a.b:c", "cpu", [], {}, [[]], [1, "a"], {"a": 1}, {"name": 5}),
)
"""Values that a careless reader fails on; sizes are small, or too large to be allocated at all."""


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Register the sample plugins, in a folder of this test."""
    monkeypatch.chdir(tmp_path)
    before = dict(registry.default._registered)
    kshot.register(sample_learner.NearestMean, name="sample-learner")
    kshot.register(sample_tasks.classification, name="sample-tasks", group="tasks")
    yield
    registry.default._registered = before


def trained(run: str) -> Path:
    """Return a small run with validation, so that its checkpoint has two sets of parameters."""
    engine = {"iterations": 4, "validate_every": 2, "validation_episodes": 3}
    kshot.runs.train("sample-learner", "sample-tasks", engine=engine, evaluate={"episodes": 4}, run=run, quiet=True)
    return Path(run)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in nested containers."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, item in items:
        yield (*at, key)
        yield from places(item, (*at, key))


def changed(value: Any, draw: random.Random, nasty: tuple[Any, ...] = NASTY) -> Any:
    """Return nested containers with one value replaced, removed or added."""
    value = copy.deepcopy(value)
    at = draw.choice(list(places(value)))
    parents = [value]
    for key in at[:-1]:
        parents.append(parents[-1][key])
    for i in range(len(at) - 1, 0, -1):  # tuples become lists, which can be changed
        if isinstance(parents[i], tuple):
            parents[i] = list(parents[i])
            parents[i - 1][at[i - 1]] = parents[i]
    inner, key, how = parents[-1], at[-1], draw.random()
    if how < 0.15:
        del inner[key]
    elif how < 0.25 and isinstance(inner, dict):
        inner[draw.choice(["extra", "name", "", "²"])] = draw.choice(nasty)
    elif isinstance(inner[key], Tensor) and how < 0.8:
        inner[key] = draw.choice(tensors(inner[key]))
    else:
        inner[key] = draw.choice(nasty)
    return value


def tensors(value: Tensor) -> list[Any]:
    """Return tensors that differ from the given one in a single respect."""
    return [
        value[None],
        value.flatten()[:1],
        value.to(torch.complex64),
        torch.full_like(value, 3).to(torch.int64),
        torch.full_like(value, math.nan) if value.is_floating_point() else value.bool(),
        torch.zeros(1).expand(2**40),
        torch.nn.Parameter(torch.zeros(value.shape)),
        torch.zeros(3, 3).to_sparse(),
        torch.zeros(value.shape, device="meta"),
        value.tolist(),
        -torch.ones(value.shape),
    ]


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Return bytes with some changed, removed, repeated or cut off."""
    bytes_, how = bytearray(content), draw.random()
    at = draw.randrange(len(bytes_))
    if how < 0.5:
        for _ in range(draw.choice([1, 1, 1, 8])):
            bytes_[draw.randrange(len(bytes_))] = draw.randrange(256)
    elif how < 0.7:
        del bytes_[at:]
    elif how < 0.85:
        del bytes_[at : at + draw.randrange(1, 50)]
    else:
        bytes_[at:at] = bytes_[at : at + 40] if draw.random() < 0.5 else draw.randbytes(20)
    return bytes(bytes_)


def attempt(work: Callable[[], Any], file: str, label: str) -> bool:
    """Do the work; return whether it succeeded. An error must be one of kshot and name the file or its folder."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            work()
    except KshotError as error:
        message = " ".join([str(error), *getattr(error, "__notes__", ())])
        assert file in message, f"{label}: {message}"
        assert "weights_only" not in message
        return False
    except Exception as error:
        raise AssertionError(f"{label}: {type(error).__name__}: {error}") from error
    return True


@pytest.mark.parametrize("seed", range(INPUTS["config"][0]))
def test_a_changed_config_is_used_rightly_or_refused(seed: int) -> None:
    """Using a run and evaluating it read its plan, and build what it names."""
    run, draw = trained("run"), random.Random(f"config {seed}")
    path = run / "config.json"
    whole, content = path.read_bytes(), json.loads(path.read_text())
    del content["digest"]
    accepted = 0
    for i in range(INPUTS["config"][1]):
        if i % 3 == 0:
            path.write_bytes(damaged(whole, draw))
        else:
            plan = {**content, "plan": changed(content["plan"], draw)} if i % 3 == 1 else changed(content, draw)
            path.write_text(json.dumps({**plan, "digest": json_digest(plan)} if i % 2 else plan))
        label = f"{i}: {path.read_bytes()[-2000:]!r}"
        accepted += attempt(
            lambda: kshot.Trained.of_run(run).predict(
                {"a": torch.zeros(1, 6), "b": torch.ones(1, 6)}, torch.ones(1, 6)
            ),
            "run",
            label,
        )
        if i % 2:
            attempt(lambda: kshot.runs.evaluate(run, evaluate={"episodes": 2}, quiet=True), "run", label)
        elif i % 4 == 0:
            again = Path(shutil.copytree(run, f"run-{i}"))
            if attempt(lambda again=again: Plan.of_run(again, RunFolder.open(again).config), "run", label):
                attempt(lambda again=again: kshot.runs.resume(again, quiet=True), "run", label)
    assert 10 < accepted < 240


@pytest.mark.parametrize("seed", range(INPUTS["inputs"][0]))
def test_changed_inputs_are_used_rightly_or_refused(seed: int) -> None:
    """The digest notices damage; the forms of all values are checked behind it."""
    run, draw = trained("run"), random.Random(f"inputs {seed}")
    path = run / "inputs.pt"
    whole, content = path.read_bytes(), torch.load(path, weights_only=True)
    refused = 0
    for i in range(INPUTS["inputs"][1]):
        if i % 2:
            path.write_bytes(damaged(whole, draw))
        else:
            value = changed(content, draw)
            if draw.random() < 0.9 and isinstance(value, dict) and {"spec", "prepare"} <= set(value):
                value["digest"] = digest({name: value[name] for name in ("spec", "prepare")})
            torch.save(value, path)
        refused += not attempt(lambda: load_inputs(run), "inputs.pt", f"{i}")
    assert refused > 150


def fresh() -> Engine:
    """Return an engine like that of the run."""
    tasks = kshot.tasks("sample-tasks")
    learner = kshot.learner("sample-learner", tasks.spec, seed=0)
    return Engine(learner, tasks, hooks=[Counting()])


class Counting:
    """A hook with state, which it takes apart without care."""

    def __init__(self) -> None:
        self.seen = {"iterations": 0}

    @kshot.hookimpl
    def iteration_end(self, engine: Any, iteration: int, metrics: Any) -> None:
        self.seen["iterations"] += 1

    def state_dict(self) -> dict[str, int]:
        return dict(self.seen)

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.seen = {"iterations": state["iterations"] + 0}


def everything(engine: Engine) -> str:
    """Return the digest of all that a checkpoint of the engine would have."""
    return digest({**engine.state(), "folder": str(engine.folder)})


@pytest.mark.parametrize("seed", range(INPUTS["checkpoints"][0]))
def test_a_changed_checkpoint_is_loaded_or_changes_nothing(seed: int) -> None:
    """Resuming, loading and warm starts check everything first."""
    draw = random.Random(f"checkpoint {seed}")
    engine = fresh()
    engine.train(4, validate_every=3, validation_episodes=3)
    path = engine.save("c.pt")
    whole, content = path.read_bytes(), load_checkpoint(path)
    target = fresh()
    unchanged = everything(target)
    ways: list[Callable[[Engine], Any]] = [
        lambda e: e.resume(path),
        lambda e: e.load(path),
        lambda e: e.init_from(path),
    ]
    refused = 0
    for i in range(INPUTS["checkpoints"][1]):
        if i % 4 == 0:
            path.write_bytes(damaged(whole, draw))
        else:
            value = changed(content, draw)
            try:
                sum_ = digest(value)
            except Exception:  # of tensors that have no bytes
                sum_ = ""
            torch.save({"format": "kshot-checkpoint", "version": 1, "digest": sum_, "state": value}, path)
        way = ways[i % 3]
        if attempt(partial(way, target), "c.pt", f"{i}"):
            if i % 3 == 0:
                attempt(partial(target.train, target.iteration + 2), "", f"{i}, training")
            target = fresh()
        else:
            refused += 1
            assert everything(target) == unchanged, f"{i}"
    assert refused > 120


@pytest.mark.parametrize("seed", range(INPUTS["results"][0]))
def test_a_changed_result_is_compared_rightly_or_refused(seed: int) -> None:
    """The figures of a comparison are those of whole results."""
    one, two = trained("one"), trained("two")
    draw = random.Random(f"result {seed}")
    path = two / "result.json"
    whole, content = path.read_bytes(), json.loads(path.read_text())
    two.joinpath("config.json").write_text(two.joinpath("config.json").read_text())
    other = kshot.runs.evaluate(one, evaluate={"episodes": 4}, quiet=True).to_dict()
    Path("one.json").write_text(json.dumps(other))
    for i in range(INPUTS["results"][1]):
        path.write_bytes(damaged(whole, draw)) if i % 3 == 0 else path.write_text(json.dumps(changed(content, draw)))
        Path("two.json").write_bytes(path.read_bytes())
        attempt(lambda: str(kshot.runs.compare("one.json", "two.json")), "two.json", f"{i}")


RECIPE = """
learner = "sample-learner"
seed = 1
title = "a recipe"
[tasks]
name = "sample-tasks"
way = 3
[training]
shot = 2
[optimizer]
name = "sgd"
lr = 0.1
warmup = 2
[engine]
iterations = 3
meta_batch = 2
[evaluate]
episodes = 5
[[test]]
shot = 1
"""

LINES = (
    *("lr = -1", "lr = nan", "momentum = 2", "weight_decay = -0.1", "factor = 0", "every = 0", "warmup = -3"),
    *("meta_batch = -1", "chunk = 0", "iterations = 100000000000000000000", "keep = 0", "patience = -1", "batch = -1"),
    *("episodes = 0", "way = -3", "shot = 1e3", "query = nan", "seed = 100000000000000000000", "way = 10000000000"),
    *(
        "x = " + "[" * 5000,
        "name = 5",
        "[optimizer]",
        "learner = []",
        "split = 3",
        "width = -5",
        "[[test]]",
        "test = 1",
    ),
)


@pytest.mark.parametrize("seed", range(INPUTS["recipes"][0]))
def test_a_changed_recipe_is_used_rightly_or_refused(seed: int) -> None:
    """``kshot check`` says so before anything is computed."""
    draw = random.Random(f"recipe {seed}")
    path = Path("recipe.toml")

    def configured() -> Config:
        with naming(path):
            return configure(layered(path, {}, where="train"))

    def check() -> None:
        plan, training, tests = build_tasks(Plan.of(configured()), new=True)
        misfits(plan, training, tests)

    path.write_text(RECIPE)
    check()
    for i in range(INPUTS["recipes"][1]):
        if i % 2:
            path.write_bytes(damaged(RECIPE.encode(), draw))
        else:
            lines = RECIPE.splitlines()
            lines[draw.randrange(1, len(lines)) :][:1] = []
            lines.insert(draw.randrange(1, len(lines)), draw.choice(LINES))
            path.write_text("\n".join(lines))
        label = f"{i}: {path.read_bytes()!r:.600}"
        if attempt(configured, "recipe.toml", label):
            attempt(check, "", label)


def test_the_newest_checkpoint_is_one_with_a_number(tmp_path: Path) -> None:
    """Other digits than 0 to 9 are no numbers for ``int``, and a folder is no checkpoint."""
    run = trained("run")
    for name in ("².pt", "٣.pt", "1e9.pt", "-5.pt", "99999999999999999999999.pt"):
        (run / "checkpoints" / name).touch()
    (run / "checkpoints" / "00000999.pt").mkdir()
    newest = RunFolder.open(run).newest()
    assert newest is not None
    assert newest.name == "00000004.pt"
