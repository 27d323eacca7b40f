"""The backend for GPUs of Macs: its choices, with the processor in place of the device, and the device itself."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import kshot
from kshot import ClassificationTasks, Engine, Pool
from kshot.errors import MisfitError, Unavailable
from kshot.randomness import global_generators, seeded
from kshot.testing import sample_learner, sample_tasks
from kshot_mps import Mps
from kshot_mps.mps import present

mac = pytest.mark.skipif(not torch.backends.mps.is_available(), reason="needs a Mac with a GPU")


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Put the processor in the place of the device; return what it is asked for, which a test may change."""
    facts: dict[str, Any] = {"free": 1 << 30}
    monkeypatch.setattr("kshot_mps.mps.device", lambda: torch.device("cpu"))
    monkeypatch.setattr("kshot_mps.mps.free_bytes", lambda: facts["free"])
    return facts


def images(dtype: Any = np.uint8) -> ClassificationTasks:
    x = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8)).astype(dtype)
    pool = Pool.of(x, np.repeat(np.arange(8), 5))
    return ClassificationTasks({"train": pool, "test": pool}, way=3, shot=1, query=2)


@pytest.mark.parametrize(("built", "says"), [(False, "without"), (True, "with")])
def test_a_missing_device_is_an_error_that_says_what_to_do(monkeypatch, built, says):
    """Built or not with MPS is the first thing that a user has to know."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: built)
    with pytest.raises(
        Unavailable, match=rf"mps: got no device .*built {says} MPS.*expected a Mac.*--backend.name=cpu"
    ):
        kshot.backend("mps")
    assert not present()


def test_listing_shows_the_plugin_without_importing_torch():
    """As with every plugin: a list of plugins needs no device."""
    code = (
        "import sys, kshot; (p,) = [p for p in kshot.plugins() if p.name == 'mps']; "
        "print(p.state, p.group, 'torch' in sys.modules, 'kshot_mps' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ok", "backends", "False", "False"]


def test_it_is_chosen_if_it_is_present_and_recorded(processor, monkeypatch):
    """The result says what computed."""
    monkeypatch.setattr("kshot_mps.mps.present", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    tasks = sample_tasks.classification()
    backend = Engine(sample_learner.NearestMean(tasks.spec), tasks).evaluate(2).backend
    assert (backend["name"], backend["precision"], backend["resident"]) == ("mps", "float32", True)


def test_precision_is_float32_unless_asked(processor):
    """Whether bfloat16 gains anything there was not measured."""
    backend = Mps()
    backend.place(nn.Conv2d(1, 2, 3))
    assert backend.describe()["precision"] == "float32"
    with backend.autocast():
        assert not torch.is_autocast_enabled("cpu")
    with Mps(precision="bfloat16").autocast():
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
        assert torch.is_autocast_enabled("cpu")


def test_auto_memory_format_is_that_of_the_cpu(processor):
    """Each module is judged by itself, and an option overrides."""
    backend = Mps()
    backend.place(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    assert backend.describe()["memory_format"] == "contiguous"
    backend.place(nn.Conv2d(3, 4, 3))
    assert backend.describe()["memory_format"] == "channels_last"
    fixed = Mps(memory_format="contiguous")
    fixed.place(nn.Conv2d(3, 4, 3))
    assert fixed.describe()["memory_format"] == "contiguous"


@pytest.mark.parametrize(
    "value", [torch.zeros(2, dtype=torch.float64), nn.Linear(2, 3).double(), [torch.zeros(1, 1) + 0j]]
)
def test_float64_is_refused_by_name(processor, value):
    """torch's own message does not say what to do. complex64 is taken."""
    if isinstance(value, list):
        assert Mps().place(value)[0].dtype == torch.complex64
        return
    with pytest.raises(MisfitError, match=r"mps: got a torch.float64 tensor .*expected .*--backend.name=cpu"):
        Mps().place(value)


@pytest.mark.parametrize(("resident", "free"), [(True, 1 << 30), (True, 100), (False, 1 << 30)])
def test_episodes_are_those_of_the_host(processor, resident, free):
    """To the bit, whether they are gathered on the device or transferred; the result says which."""
    processor["free"] = free
    tasks, backend = images(), Mps(resident=resident)
    a, b = images().sample("train", [3, 4]), backend.sample_on_device(tasks, "train", [3, 4])
    assert torch.equal(a.support.x, b.support.x)
    assert torch.equal(a.query.x, b.query.x)
    fits = free > 100
    expected = {"on_device": 40 * 64 if fits else 0, "on_host": 0 if fits else 40 * 64}
    assert backend.describe()["tables"] == (expected if resident else {"on_device": 0, "on_host": 0})


def test_shapes_on_a_device_without_numbers(monkeypatch):
    """On ``meta``, all that is placed has the shape, and the network computes shapes."""
    monkeypatch.setattr("kshot_mps.mps.device", lambda: torch.device("meta"))
    monkeypatch.setattr("kshot_mps.mps.free_bytes", lambda: 1 << 30)
    backend = Mps()
    episode = backend.sample_on_device(images(), "train", [0, 1])
    assert (episode.support.x.device.type, episode.support.x.shape) == ("meta", (2, 3, 1, 8, 8))
    net = backend.place(nn.Sequential(nn.Flatten(2), nn.Linear(64, 5)))
    assert net(episode.query.x).shape == (2, 6, 5)


def test_dropout_on_the_device_is_seeded(monkeypatch):
    """torch.mps has one generator, under another name than those of torch.cuda."""
    own = torch.Generator().manual_seed(3)
    monkeypatch.setattr(torch.mps, "_get_default_mps_generator", lambda: own)
    assert global_generators(torch.device("mps"))[1] is own
    before = own.get_state()
    draws = []
    for _ in range(2):
        with seeded("dropout", 1, device=torch.device("mps")):
            draws.append(torch.rand(3, generator=own))
    assert torch.equal(*draws)
    assert torch.equal(own.get_state(), before)


@mac
def test_gradients_on_a_gpu_agree_with_the_processor():
    """Up to the order of sums."""
    gradients = []
    for backend in (Mps(), kshot.Cpu(precision="float32", memory_format="contiguous")):
        tasks = images()
        with seeded("learner"):
            learner = backend.place(sample_learner.NearestMean(tasks.spec))
        learner.meta_gradient(backend.place(tasks.sample("train", range(4))))
        gradients.append(torch.cat([p.grad.flatten().cpu() for p in learner.parameters()]))
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) < 1e-4


@mac
def test_gathered_on_a_gpu_they_are_the_bits_of_the_host():
    """A GPU might multiply by 1 / 255."""
    episode = Mps().sample_on_device(images(), "train", range(8))
    assert torch.equal(episode.query.x.cpu(), images().sample("train", range(8)).query.x)
