"""Devices: tables on a device give the same bits, and the backend of a device that is present is chosen."""

from __future__ import annotations

import gc
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import kshot
import kshot.registry.devices
from kshot import ClassificationTasks, Cpu, Engine, Pool
from kshot.cli import main
from kshot.devices import Tables, gathered_sample, move, sample_on
from kshot.errors import RunError, Unavailable
from kshot.registry import registry as registry_module
from kshot.runs.plan import Plan
from kshot.runs.recipe import configure
from kshot.testing import sample_learner, sample_tasks

CPU = torch.device("cpu")


def pool(dtype: Any = np.uint8) -> Pool:
    x = np.random.default_rng(0).integers(0, 256, (40, 3, 4, 4)).astype(dtype)
    return Pool.of(x / np.float32(7) if dtype == np.float32 else x, np.repeat(np.arange(8), 5))


def tasks_of(one: Pool) -> ClassificationTasks:
    return ClassificationTasks({"train": one, "test": one}, way=3, shot=1, query=2)


def tensors(episode: kshot.Episode) -> list[torch.Tensor]:
    return [episode.support.x, episode.support.y, episode.support.key, episode.query.x, episode.query.y]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_table_gives_the_bits_of_the_pool(dtype):
    """A device that multiplied by 1 / 255 would give other last bits, so each of the 256 quotients is looked up."""
    one = pool(dtype)
    tables = Tables(CPU, free=lambda: 1 << 20)
    ids = np.array([[0, 39, 7], [7, 1, 0]])
    assert torch.equal(tables.gather(one, ids), one.gather(ids))
    every = Pool.of(np.arange(256, dtype=np.uint8).repeat(2).reshape(-1, 1), np.arange(512) // 2)
    assert torch.equal(tables.gather(every, np.arange(512)), every.gather(np.arange(512)))
    size = one.x.numel() * one.x.element_size()
    assert tables.describe() == {"on_device": size + 512, "on_host": 0}


def test_uint8_is_looked_up_not_divided(monkeypatch):
    """The quotients are computed once, on the host, before the first table."""
    one, tables, ids = pool(), Tables(CPU, free=lambda: 1 << 20), np.array([[3, 9]])
    expected = one.gather(ids)
    monkeypatch.setattr(torch.Tensor, "div_", None)
    monkeypatch.setattr(torch.Tensor, "div", None)
    assert torch.equal(tables.gather(one, ids), expected)


def test_a_table_is_copied_once_for_all_splits_and_freed_with_its_pools():
    """Splits share one tensor; the copy must not outlive it."""
    one, tables = pool(), Tables(CPU, free=lambda: 1 << 20)
    two = Pool.of(one.x, np.repeat(np.arange(8), 5), copy=False)
    assert two.x is not one.x
    assert two.x.data_ptr() == one.x.data_ptr()
    for each in (one, two):
        tables.gather(each, np.array([0]))
    assert tables.describe()["on_device"] == one.x.numel()
    del one, two, each
    gc.collect()
    assert tables.describe() == {"on_device": 0, "on_host": 0}


def test_a_table_takes_half_of_the_free_memory_at_most():
    """Else episodes are gathered on the host, with the same numbers, and the result can say so."""
    one = pool()
    size = one.x.numel()
    for free, place in ((2 * size, "on_device"), (2 * size - 1, "on_host")):
        tables = Tables(CPU, free=lambda free=free: free)
        assert torch.equal(tables.gather(one, np.array([2])), one.gather(np.array([2])))
        assert tables.describe()[place] == size


def test_memory_that_is_refused_leaves_the_table_on_the_host(monkeypatch):
    """Free memory may be in pieces."""
    one, tables = pool(), Tables(CPU, free=lambda: 1 << 20)

    def refuse(*_: Any) -> None:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "to", refuse)
        assert tables._table(one) is None
    assert torch.equal(tables.gather(one, np.array([2])), one.gather(np.array([2])))


def test_a_pool_of_another_class_computes_its_own_examples():
    """The view degraded has such pools; a copy of their table would be undegraded."""

    class Negative(Pool):
        def gather(self, ids: Any) -> torch.Tensor:
            return 1 - super().gather(ids)

    one = pool()
    negative = Negative(one.x, one.rows, one.counts)
    tables, ids = Tables(CPU, free=lambda: 1 << 20), np.array([[3]])
    assert torch.equal(tables.gather(negative, ids), negative.gather(ids))
    tasks = tasks_of(negative)
    assert torch.equal(tasks.sample("train", [0]).query.x, 1 - tasks_of(one).sample("train", [0]).query.x)


def test_tasks_sample_the_same_episodes_from_a_table():
    """To the bit, in every field."""
    tasks, tables = tasks_of(pool()), Tables(CPU, free=lambda: 1 << 20)
    for indices in ([0, 1], range(2, 5), [9]):
        a, b = tasks.sample("train", indices), gathered_sample(tasks_of(pool()), "train", indices, tables)
        assert all(map(torch.equal, tensors(a), tensors(b)))
        assert a.origin.indices == b.origin.indices


def test_tasks_that_override_sample_only_are_not_bypassed():
    """Whether by a subclass, by an attribute of the object or by a view that passes on what it does not know."""

    class Shifted(ClassificationTasks):
        def sample(self, split: str, indices: Any) -> kshot.Episode:
            return kshot.episode.map_tensors(lambda t: t + 1, super().sample(split, indices))

    class View:
        def __init__(self, of: Any) -> None:
            self.of = of

        def __getattr__(self, name: str) -> Any:
            return getattr(self.of, name)

        def sample(self, split: str, indices: Any) -> kshot.Episode:
            return kshot.episode.map_tensors(lambda t: t + 1, self.of.sample(split, indices))

    plain, shifted, patched = tasks_of(pool()), Shifted({"train": pool()}, way=3, query=2), tasks_of(pool())
    patched.sample = View(plain).sample  # type: ignore[method-assign]
    expected = plain.sample("train", [0]).query.x + 1
    for tasks in (shifted, View(plain), patched):
        tables = Tables(CPU, free=lambda: 1 << 20)
        assert torch.equal(gathered_sample(tasks, "train", [0], tables).query.x, expected)
        assert tables.describe() == {"on_device": 0, "on_host": 0}


class Sampling(Cpu):
    """A backend with the ability ``Samples``."""

    def __init__(self) -> None:
        super().__init__(precision="float32")
        self.asked: list[tuple[str, int]] = []

    def sample_on_device(self, tasks: Any, split: str, indices: Any) -> kshot.Episode:
        self.asked.append((split, len(indices)))
        return self.place(tasks.sample(split, indices))


def test_the_engine_lets_a_backend_sample():
    """In training and in evaluation; the check of the first episodes stays on the host."""
    tasks, backend = sample_tasks.classification(), Sampling()
    engine = Engine(sample_learner.NearestMean(tasks.spec), tasks, backend=backend, meta_batch=2)
    engine.train(2)
    engine.evaluate(3)
    assert [split for split, _ in backend.asked] == ["train", "train", "test"]
    assert sample_on(Cpu(), tasks, "train", [0, 1]).size == 2


def test_move_makes_the_images_of_an_episode_contiguous():
    """Support and query are parts of one tensor; channels-last strides would decide the format of the network."""
    episode = tasks_of(pool()).sample("train", [0, 1])
    assert not episode.support.x.is_contiguous()
    moved = move(episode, CPU)
    assert moved.support.x.is_contiguous()
    assert torch.equal(moved.support.x, episode.support.x)


def test_move_pins_what_is_on_the_host(monkeypatch):
    """Pinned memory is what lets the processor go on during a transfer. What needs a gradient keeps its graph."""
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: pinned.append(t) or t)
    x, needs = torch.ones(3), torch.ones(2, requires_grad=True)
    assert move({"x": x, "needs": needs, "way": 5}, CPU, pin=True)["needs"] is needs
    assert len(pinned) == 1
    assert pinned[0] is x
    move(x, CPU)
    assert len(pinned) == 1


def test_shapes_survive_a_device_without_numbers():
    """``meta`` stands in for a device whose memory the processor can't read."""
    episode = tasks_of(pool()).sample("train", [0, 1])
    moved = move(episode, torch.device("meta"))
    for a, b in zip(tensors(episode), tensors(moved), strict=True):
        assert (a.shape, a.dtype, b.device.type) == (b.shape, b.dtype, "meta")
    net = move(nn.Sequential(nn.Flatten(2), nn.Linear(48, 7)), torch.device("meta"))
    assert net(moved.query.x).shape == (2, 6, 7)


# --- Which backend is used if none is named ---------------------------------------------------------------------------


class Fast(Cpu):
    """A backend of a device that may be present."""

    here: Any = True

    def __init__(self, precision: str = "float32") -> None:
        super().__init__(precision="float32")

    def describe(self) -> Any:
        return {"name": "fast", "precision": self.precision}


def here() -> Any:
    if isinstance(Fast.here, Exception):
        raise Fast.here
    return Fast.here


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Register a backend and the function that says whether its device is present."""
    monkeypatch.setattr(Fast, "here", True)
    kshot.register(Fast, name="fast", group="backends")
    monkeypatch.setattr(registry_module, "devices", lambda: {"fast": f"{__name__}:here", "gone": "nowhere:present"})
    monkeypatch.setattr(kshot.registry.devices, "import_factory", lambda target: here)
    yield SimpleNamespace(factory=Fast)
    kshot.registry.default._registered.pop("fast", None)


def named(**backend: Any) -> Any:
    tables = {"learner": {"name": "sample-learner"}, "tasks": {"name": "sample-tasks"}, "backend": backend}
    return Plan.of(configure(tables, hooks=[])).backend


@pytest.fixture
def samples() -> None:
    kshot.register(sample_learner.NearestMean, name="sample-learner")
    kshot.register(sample_tasks.classification, name="sample-tasks", group="tasks")


def test_a_device_that_is_present_is_chosen_and_recorded(fast, samples):
    """By the engine, by ``kshot.backend`` and by a run, whose plan names it; what the user names is never changed."""
    assert kshot.backend().describe()["name"] == "fast"
    tasks = sample_tasks.classification()
    assert Engine(sample_learner.NearestMean(tasks.spec), tasks).evaluate(2).backend["name"] == "fast"
    assert named() == {"name": "fast"}
    assert named(precision="float32") == {"name": "fast", "precision": "float32"}
    assert named(name="cpu") == {"name": "cpu"}
    assert kshot.backend("cpu").describe()["name"] == "cpu"


def test_options_that_the_device_lacks_are_those_of_the_cpu(fast, samples):
    """A recipe with ``[backend] threads = 1`` meant the CPU before the plugin was installed, and still does."""
    assert named(threads=1) == {"name": "cpu", "threads": 1}


@pytest.mark.parametrize("state", [False, None, "yes", RuntimeError("no driver")])
def test_without_its_device_the_cpu_is_chosen(fast, state, caplog):
    """Whatever the function of a plugin does: a broken driver must not stop a training on the CPU."""
    Fast.here = state
    assert kshot.backend().describe()["name"] == "cpu"
    assert ("no driver" in caplog.text) is isinstance(state, Exception)


def test_a_disabled_device_is_not_chosen(fast, monkeypatch):
    """``KSHOT_DISABLE`` is how a user says that a plugin is not to be used."""
    monkeypatch.setenv("KSHOT_DISABLE", "fast")
    assert kshot.backend().describe()["name"] == "cpu"


def test_resuming_on_another_backend_says_so(tmp_path):
    """The numbers may not be those of an unbroken training."""
    tasks = sample_tasks.classification()

    def engine(backend: Any) -> Engine:
        learner = sample_learner.NearestMean(tasks.spec)
        return Engine(learner, tasks, backend=backend, run=tmp_path / "run", seed=0)

    engine(Cpu(precision="float32")).train(2)
    with pytest.warns(UserWarning, match=r"the backend cpu in float32 \(now cpu in bfloat16\)"):
        engine(Cpu(precision="bfloat16")).resume()
    assert engine(Cpu(precision="float32")).resume() == 2  # without a warning, which would be an error


class Missing(Fast):
    """A backend whose device has gone."""

    def __init__(self) -> None:
        if Fast.here is not True:
            raise Unavailable("missing: no device")
        super().__init__()

    def describe(self) -> Any:
        return {"name": "missing", "precision": "float32"}


def test_a_run_is_used_where_its_device_is_missing(samples, tmp_path, monkeypatch, caplog):
    """Predictions take another backend and say so; a training continues on another one only if it is named."""
    kshot.register(Missing, name="missing", group="backends")
    run = tmp_path / "run"
    small: Any = {"iterations": 2, "evaluate": {"episodes": 5}, "quiet": True, "run": run}
    try:
        trained = kshot.runs.train("sample-learner", "sample-tasks", backend="missing", **small)
        assert trained.result.backend["name"] == "missing"
        monkeypatch.setattr(Fast, "here", False)
        with pytest.raises(Unavailable, match="no device"):
            kshot.runs.resume(run, quiet=True)
        with caplog.at_level("WARNING", "kshot.runs"):
            model = kshot.Trained.of_run(run)
        assert model.backend.describe()["name"] == "cpu"
        assert "no device" in caplog.text
        with pytest.warns(UserWarning, match="the backend missing in float32"):
            resumed = kshot.runs.resume(run, backend={"name": "cpu"}, quiet=True)
        assert resumed.result.backend["name"] == "cpu"
        assert resumed.result.mean == trained.result.mean
        with pytest.raises(RunError):
            kshot.runs.resume(tmp_path / "none", backend={"name": "cpu"}, quiet=True)
    finally:
        kshot.registry.default._registered.pop("missing", None)


@pytest.mark.filterwarnings("ignore:.*was written with the backend missing")
def test_the_command_resumes_on_another_backend(samples, tmp_path, monkeypatch):
    """``kshot resume RUN --backend.name=cpu`` is what the error about a missing device advises."""
    run = tmp_path / "run"
    kshot.register(Missing, name="missing", group="backends")
    try:
        small: Any = {"iterations": 2, "evaluate": {"episodes": 5}, "quiet": True, "run": run}
        kshot.runs.train("sample-learner", "sample-tasks", backend="missing", **small)
        monkeypatch.setattr(Fast, "here", False)
        done = CliRunner().invoke(main, ["resume", str(run), "--backend.name=cpu", "--json", "--quiet"])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["results"][0]["backend"]["name"] == "cpu"
        refused = CliRunner().invoke(main, ["resume", str(run), "--learner.width=3"])
        assert "expected one of --backend.NAME" in refused.output
    finally:
        kshot.registry.default._registered.pop("missing", None)
