"""The CPU backend: its options do what they say, and results record them."""

import numpy as np
import pytest
import torch
from torch import nn

import kshot
from kshot import ClassificationTasks, Cpu, Engine, Lift, Pool
from kshot.errors import OptionError
from kshot.nn import conv4, encoder


class Means(nn.Module):
    needs = kshot.Needs()

    def __init__(self) -> None:
        super().__init__()
        self.encoder = encoder("conv4", (1, 16, 16), width=8)
        self.seen: set[torch.dtype] = set()

    def logits(self, support, x):
        z = self.encoder(torch.cat([support.x, x], 1))
        self.seen.add(z.dtype)
        z = kshot.functional.full_precision(z)
        S = support.x.shape[1]
        return kshot.functional.prototypical_logits(
            z[:, S:], kshot.functional.class_means(z[:, :S], support.y, support.way)
        )

    def meta_gradient(self, episodes):
        logits = self.logits(episodes.support, episodes.query.x)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), episodes.query.y.flatten())
        loss.backward()
        return {"loss": loss.detach()}

    def adapt(self, support):
        return lambda x: self.logits(support, x)


def images() -> ClassificationTasks:
    x = np.random.default_rng(0).random((40, 1, 16, 16)).astype(np.float32)
    pool = Pool.of(x, np.repeat(np.arange(8), 5))
    return ClassificationTasks({"train": pool, "test": pool}, way=3, shot=1, query=2)


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_precision_reaches_the_encoder_and_the_result(precision, dtype):
    """Autocast wraps ``meta_gradient`` and ``adapt`` from outside; losses and scores are float32."""
    engine = Engine(Means(), images(), backend=Cpu(precision=precision))
    assert engine.train(2)["loss"] > 0
    assert engine.learner.seen == {dtype}
    engine.evaluate(2)  # before the first one, the learner is tried in full precision
    engine.learner.seen.clear()
    assert engine.evaluate(2).backend["precision"] == precision
    assert engine.learner.seen == {dtype}


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("net", [nn.Sequential(nn.Conv2d(1, 2, 3)), nn.Linear(2, 2)])
def test_auto_precision_is_for_what_gains_by_it(net, native, monkeypatch):
    """Convolutions on a processor that multiplies bfloat16 natively; elsewhere it costs time, or digits for nothing.

    The first module that is placed settles it."""
    monkeypatch.setattr("kshot._engine.cpu.has_bfloat16", lambda: native)
    convolves = isinstance(net, nn.Sequential)
    backend = Cpu()
    backend.place(net)
    assert backend.describe()["precision"] == ("bfloat16" if native and convolves else "float32")
    backend.place(nn.Linear(2, 2) if convolves else nn.Conv2d(1, 1, 1))
    assert backend.describe()["precision"] == ("bfloat16" if native and convolves else "float32")


@pytest.mark.parametrize("within", [False, True])
def test_auto_precision_keeps_the_digits_of_inner_loops(within, monkeypatch):
    """In bfloat16 the meta-gradient of a convolutional MAML points elsewhere. A learner may be wrapped in another."""
    monkeypatch.setattr("kshot._engine.cpu.has_bfloat16", lambda: True)
    learner = nn.Sequential(nn.Conv2d(1, 2, 3))
    learner.lift = Lift()
    backend = Cpu()
    backend.place(nn.ModuleList([learner]) if within else learner)
    assert backend.describe()["precision"] == "float32"


def test_channels_last_restrides_weights_in_place():
    """Also a one-channel convolution's, which torch takes for channels-last already; parameters stay themselves."""
    net = conv4((1, 28, 28))
    before = {n: (p, p.detach().clone()) for n, p in net.named_parameters()}
    Cpu(memory_format="channels_last").place(net)
    for name, p in net.named_parameters():
        assert p is before[name][0]
        assert torch.equal(p, before[name][1])
        if p.ndim == 4:
            assert p.stride()[1] == 1
    contiguous = Cpu(memory_format="contiguous").place(conv4((3, 28, 28)))
    assert contiguous[0][0].weight.stride() == (27, 9, 3, 1)


@pytest.mark.parametrize(
    ("net", "precision", "expected"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), "float32", "contiguous"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)), "float32", "contiguous"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), "bfloat16", "channels_last"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), "float32", "channels_last"),
    ],
)
def test_auto_memory_format_is_the_fast_one_unless_it_costs_digits(net, precision, expected):
    """Each module is judged by itself: a backend that placed another before keeps no format."""
    backend = Cpu(precision=precision)
    assert backend.describe()["memory_format"] == "auto"
    backend.place(nn.Conv2d(1, 1, 1))
    backend.place(net.to(memory_format=torch.channels_last))
    assert backend.describe()["memory_format"] == expected
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last) is (expected == "channels_last")


@pytest.mark.parametrize("laid_out", [torch.contiguous_format, torch.channels_last])
def test_batch_statistics_have_the_digits_of_float32(laid_out):
    """Drawings are nearly constant, and a sum in single precision then loses most digits of a channel's variance."""
    torch.manual_seed(0)
    images = (torch.rand(200, 3, 28, 28) < 0.05).float().to(memory_format=laid_out)
    y = torch.arange(100)[None]
    support, query = kshot.Support(images[None, :100], y, way=100), kshot.Examples(images[None, 100:], y)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8, momentum=1.0), nn.Flatten())
    exact = net[0].double()(images.double()).var((0, 2, 3))
    backend = Cpu(precision="float32")
    learner = backend.place(encoder(net.float(), (3, 28, 28)).train())
    episode = backend.place(kshot.Episode(support, query, origin=None))
    learner(torch.cat([episode.support.x, episode.query.x], 1))
    torch.testing.assert_close(net[1].running_var.double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_images_have_the_layout_of_the_weights(memory_format):
    """Channels-last images would make a contiguous network compute channels-last; the numbers are the same."""
    x = torch.rand(2, 4, 3, 8, 8)
    laid_out = x.flatten(0, 1).to(memory_format=torch.channels_last).view(2, 4, 3, 8, 8)
    y = torch.tensor([[0, 0, 1, 1]] * 2)
    episode = kshot.Episode(kshot.Support(laid_out, y, key=torch.arange(2), way=2), kshot.Examples(laid_out, y))
    placed = Cpu(memory_format=memory_format).place(episode)
    for images in (placed.support.x, placed.query.x):
        assert torch.equal(images, x)
        assert images.is_contiguous() is (memory_format == "contiguous")


def test_threads_are_set_and_recorded():
    """And left alone where nothing is said."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert Cpu(threads=1).describe()["threads"] == torch.get_num_threads() == 1
        assert Cpu().describe()["threads"] == 1
    finally:
        torch.set_num_threads(before)
    with pytest.raises(OptionError, match="got threads=0, expected at least 1"):
        Cpu(threads=0)
    with pytest.raises(OptionError, match=r"got threads=1000000, expected at most .*, 4 for each processor"):
        Cpu(threads=1_000_000)  # torch would crash the process
    for wrong in (True, "2", 1.5):
        with pytest.raises(OptionError, match=f"got threads={wrong!r}, expected a whole number, or None"):
            Cpu(threads=wrong)


def test_keeping_freed_memory_is_an_option_that_is_recorded():
    """On Linux with glibc it takes; switched off it is not claimed."""
    assert Cpu(keep_freed_memory=False).describe()["keep_freed_memory"] is False
    assert isinstance(Cpu().describe()["keep_freed_memory"], bool)
