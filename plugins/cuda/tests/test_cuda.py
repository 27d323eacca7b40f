"""The backend for GPUs of NVIDIA: its choices, with the processor in place of the device, and the device itself."""

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
from kshot.errors import OptionError, Unavailable
from kshot.inner import Lift
from kshot.randomness import seeded
from kshot.testing import sample_learner, sample_tasks
from kshot_cuda import Cuda
from kshot_cuda.cuda import device_of, present

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Put the processor in the place of the device; return what it is asked for, which a test may change."""
    facts: dict[str, Any] = {"bfloat16": True, "free": 1 << 30, "asked": []}
    monkeypatch.setattr("kshot_cuda.cuda.device_of", lambda index: torch.device("cpu"))
    monkeypatch.setattr("kshot_cuda.cuda.has_bfloat16", lambda device: facts["bfloat16"])
    monkeypatch.setattr("kshot_cuda.cuda.free_bytes", lambda device: facts["free"])
    monkeypatch.setattr("kshot_cuda.cuda.device_name", lambda device: "a processor")
    return facts


def images(dtype: Any = np.uint8) -> ClassificationTasks:
    x = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8)).astype(dtype)
    pool = Pool.of(x, np.repeat(np.arange(8), 5))
    return ClassificationTasks({"train": pool, "test": pool}, way=3, shot=1, query=2)


# --- Whether there is a device ----------------------------------------------------------------------------------------


def test_a_missing_device_is_an_error_that_says_what_to_do(monkeypatch):
    """Built or not with CUDA is the first thing that a user has to know."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    with pytest.raises(Unavailable, match=r"cuda: got no device .*no CUDA.*expected an NVIDIA GPU.*--backend.name=cpu"):
        kshot.backend("cuda")
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    with pytest.raises(Unavailable, match=f"built with CUDA {torch.version.cuda}"):
        Cuda()
    assert not present()


def test_listing_shows_the_plugin_without_importing_torch():
    """As with every plugin: a list of plugins needs no device."""
    code = (
        "import sys, kshot; (p,) = [p for p in kshot.plugins() if p.name == 'cuda']; "
        "print(p.state, p.group, 'torch' in sys.modules, 'kshot_cuda' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ok", "backends", "False", "False"]


def test_several_devices_have_numbers(monkeypatch):
    """Without a number it is the current device, which ``distributed`` sets."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"GPU {'AB'[i]}")
    assert device_of(None) == torch.device("cuda")
    assert device_of(1) == torch.device("cuda", 1)
    with pytest.raises(OptionError, match=r"got index=2, expected .* 0 \(GPU A\), 1 \(GPU B\)"):
        Cuda(index=2)
    with pytest.raises(OptionError, match="index"):
        kshot.backend("cuda", index=-1)


def test_it_is_chosen_only_for_a_gpu_of_nvidia(monkeypatch):
    """torch calls GPUs of AMD cuda too."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", None)
    assert present()
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert not present()


def test_it_is_chosen_if_it_is_present_and_recorded(processor, monkeypatch):
    """The result and the plan say what computed."""
    assert kshot.backend().describe()["name"] == "cpu" or torch.cuda.is_available()
    monkeypatch.setattr("kshot_cuda.cuda.present", lambda: True)
    tasks = sample_tasks.classification()
    backend = Engine(sample_learner.NearestMean(tasks.spec), tasks).evaluate(2).backend
    assert (backend["name"], backend["device"], backend["precision"]) == ("cuda", "a processor", "float32")
    assert (backend["tf32"], backend["resident"], backend["deterministic"]) == (False, True, False)


# --- Precision and memory format --------------------------------------------------------------------------------------


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("net", [nn.Sequential(nn.Conv2d(1, 2, 3)), nn.Linear(2, 2)])
def test_auto_precision_is_for_what_gains_by_it(processor, net, native):
    """As with cpu: convolutions on a device that computes with bfloat16; the first module decides."""
    processor["bfloat16"] = native
    expected = "bfloat16" if native and isinstance(net, nn.Sequential) else "float32"
    backend = Cuda()
    assert backend.describe()["precision"] == "auto"
    backend.place(net)
    assert backend.describe()["precision"] == expected
    backend.place(nn.Linear(2, 2) if isinstance(net, nn.Sequential) else nn.Conv2d(1, 1, 1))
    assert backend.describe()["precision"] == expected
    with backend.autocast():
        assert torch.is_autocast_enabled("cpu") is (expected == "bfloat16")
    assert Cuda(precision="bfloat16").describe()["precision"] == "bfloat16"


@pytest.mark.parametrize(
    ("net", "precision", "expected"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), "float32", "contiguous"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), "bfloat16", "channels_last"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), "float32", "channels_last"),
    ],
)
def test_auto_memory_format_is_that_of_the_cpu(processor, net, precision, expected):
    """Each module is judged by itself, and an option overrides."""
    backend = Cuda(precision=precision)
    backend.place(net)
    assert backend.describe()["memory_format"] == expected
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last) is (expected == "channels_last")
    fixed = Cuda(memory_format="channels_last")
    fixed.place(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    assert fixed.describe()["memory_format"] == "channels_last"


def test_auto_precision_is_float32_for_an_inner_loop(processor):
    """Errors of bfloat16 grow in it. Also for a learner within a learner; an option overrides."""

    class Adapting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.lift = nn.Conv2d(1, 2, 3), Lift()

    class Wrapping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Adapting()

    for learner in (Adapting(), Wrapping()):
        backend = Cuda()
        backend.place(learner)
        assert backend.describe()["precision"] == "float32"
        chosen = Cuda(precision="bfloat16")
        chosen.place(learner)
        assert chosen.describe()["precision"] == "bfloat16"


def rounding() -> tuple[Any, ...]:
    return torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision(), torch.backends.cudnn.deterministic


@pytest.mark.parametrize("convolutions", [True, False])
@pytest.mark.parametrize("products", ["highest", "high", "medium"])
@pytest.mark.parametrize("chosen", [True, False])
def test_tf32_is_as_asked_inside_and_as_before_outside(processor, chosen, products, convolutions):
    """torch rounds the factors of convolutions by default. Also after an error, and nested."""
    before = rounding()
    try:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
        outside = rounding()
        backend = Cuda(tf32=chosen, deterministic=chosen)
        assert rounding() == outside
        with backend.autocast():
            with backend.autocast():
                pass
            assert rounding() == (chosen, "high" if chosen else "highest", chosen)
        assert rounding() == outside
        with pytest.raises(LookupError), backend.autocast():
            raise LookupError
        assert rounding() == outside
        assert backend.describe()["tf32"] is chosen
    finally:
        torch.set_float32_matmul_precision(before[1])
        torch.backends.cudnn.allow_tf32 = before[0]


def test_tf32_is_off_by_default(processor):
    """Nobody should learn from a difference in the third digit that it was on."""
    assert Cuda().describe()["tf32"] is False


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="needs torch 2.9 or later")
def test_the_newer_interface_of_torch_is_used_if_the_user_used_it():
    """Then the older one raises an error. In a process of its own, which is left in that state."""
    code = """if True:
        import torch
        from contextlib import nullcontext
        from kshot_cuda.cuda import computing
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        torch.backends.cudnn.conv.fp32_precision = "ieee"
        owners = torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul
        for tf32 in (False, True):
            with computing(nullcontext(), tf32, False):
                print(*(o.fp32_precision for o in owners))
        print(*(o.fp32_precision for o in owners))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["ieee ieee ieee", "tf32 tf32 tf32", "ieee tf32 tf32"]


# --- Data -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resident", [True, False])
def test_episodes_are_those_of_the_host(processor, resident):
    """To the bit, whether they are gathered on the device or transferred; the result says which."""
    tasks, backend = images(), Cuda(resident=resident)
    a, b = images().sample("train", [3, 4]), backend.sample_on_device(tasks, "train", [3, 4])
    assert torch.equal(a.support.x, b.support.x)
    assert torch.equal(a.query.x, b.query.x)
    assert torch.equal(a.query.y, b.query.y)
    assert a.origin.indices == b.origin.indices
    assert backend.describe()["tables"] == {"on_device": 40 * 64 if resident else 0, "on_host": 0}


def test_a_table_that_does_not_fit_stays_on_the_host(processor):
    """And the description, which results record, says so."""
    processor["free"] = 40 * 64
    tasks, backend = images(), Cuda()
    assert torch.equal(backend.sample_on_device(tasks, "train", [0]).query.x, images().sample("train", [0]).query.x)
    assert backend.describe()["tables"] == {"on_device": 0, "on_host": 40 * 64}


def test_the_engine_gathers_on_the_device(processor):
    """Training and evaluation both, and the result has the size of the table."""
    tasks = images()
    results = []
    for backend in (Cuda(precision="float32"), kshot.Cpu(precision="float32")):
        with seeded("learner"):
            learner = sample_learner.NearestMean(tasks.spec)
        engine = Engine(learner, tasks, backend=backend, meta_batch=2)
        engine.train(2)
        results.append(engine.evaluate(3))
    assert results[0].backend["tables"] == {"on_device": 40 * 64, "on_host": 0}
    assert results[0].mean == results[1].mean


def test_nothing_is_pinned_without_a_gpu(processor, monkeypatch):
    """torch can't pin memory then."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: pinned.append(t) or t)
    Cuda().place(sample_tasks.classification().sample("train", [0]))
    assert pinned == []


def test_it_is_the_local_backend_of_several_processes(processor, monkeypatch):
    """They sample, place and describe by it."""
    pytest.importorskip("kshot_distributed", reason="needs kshot-distributed")
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    for name, value in alone.items():
        monkeypatch.setenv(name, value)
    backend: Any = kshot.backend("distributed", local={"name": "cuda", "precision": "float32"})
    tasks = images()
    episode = backend.sample_on_device(tasks, "train", [0])
    assert torch.equal(episode.query.x, images().sample("train", [0]).query.x)
    assert backend.describe()["local"]["tables"] == {"on_device": 40 * 64, "on_host": 0}


def test_shapes_on_a_device_without_numbers(processor, monkeypatch):
    """On ``meta``, all that is placed has the shape, and the network computes shapes."""
    monkeypatch.setattr("kshot_cuda.cuda.device_of", lambda index: torch.device("meta"))
    backend = Cuda(precision="float32")
    episode = backend.sample_on_device(images(), "train", [0, 1])
    assert (episode.support.x.device.type, episode.support.x.shape) == ("meta", (2, 3, 1, 8, 8))
    net = backend.place(nn.Sequential(nn.Flatten(2), nn.Linear(64, 5)))
    assert net(episode.query.x).shape == (2, 6, 5)


# --- On the device itself ---------------------------------------------------------------------------------------------


@gpu
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_gathered_on_a_gpu_they_are_the_bits_of_the_host(dtype):
    """A GPU would multiply by 1 / 255."""
    episode = Cuda().sample_on_device(images(dtype), "train", range(8))
    assert torch.equal(episode.query.x.cpu(), images(dtype).sample("train", range(8)).query.x)


@gpu
@pytest.mark.parametrize(("precision", "allowed"), [("float32", 1e-4), ("bfloat16", 0.1)])
def test_gradients_on_a_gpu_agree_with_the_processor(precision, allowed):
    """In float32 up to the order of sums: TF32 would be ten times further off."""
    gradients = []
    for backend in (Cuda(precision=precision), kshot.Cpu(precision="float32", memory_format="contiguous")):
        tasks = images()
        with seeded("learner"):
            learner = backend.place(sample_learner.NearestMean(tasks.spec))
        with backend.autocast():
            learner.meta_gradient(backend.place(tasks.sample("train", range(4))))
        gradients.append(torch.cat([p.grad.flatten().cpu() for p in learner.parameters()]))
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) < allowed
