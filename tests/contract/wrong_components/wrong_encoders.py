"""Wrong encoders, each with one fault that a plugin's author may make."""

from __future__ import annotations

from functools import partial
from typing import Any

import shelf
import torch
from torch import Tensor, nn

from kshot import TaskSpec
from kshot.errors import DataError
from kshot.nn import PictureEncoder, Tune, tuned

caught_by = partial(shelf.caught_by, group="encoder")
survives = partial(shelf.survives, group="encoder")
right = partial(shelf.right, group="encoder")


def network(spec: TaskSpec) -> nn.Sequential:
    """Return a small convolutional network for pictures, with random weights that are always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )


@right()
class Pictures(PictureEncoder):
    """A right encoder of pictures."""

    def __init__(self, spec: TaskSpec, *, tune: Tune = "none") -> None:
        super().__init__(network(spec), spec.input_shape, size=(16, 16), tune=tune)


@right()
class Anything(nn.Module):
    """A right encoder of inputs of any shape, without weights or options."""

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).tanh()


@caught_by("embeds-each-input")
class Maps(Pictures):
    """Returns feature maps."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).view(len(x), 8, 2, 2)


@caught_by("embeds-each-input")
class Squeezes(Pictures):
    """Drops the first axis of a single input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze(0)


@caught_by("embeds-each-input")
class ReturnsADictionary(Pictures):
    """Returns what its library returns."""

    def forward(self, x: Tensor) -> Any:
        return {"features": super().forward(x)}


@caught_by("embeds-each-input")
class DividesByZero(Pictures):
    """Has numbers that are not finite."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 0


@caught_by("tells-inputs-apart")
class Saturates(Pictures):
    """Scales its inputs so much that nothing of them is left."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).abs().add(100).sigmoid()


@caught_by("is-deterministic")
class DropsInEvaluation(Pictures):
    """Drops features in evaluation mode too."""

    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x)
        return z * (torch.rand_like(z) > 0.5)


@caught_by("is-deterministic")
class NewWeightsEachTime(Anything):
    """Draws a projection with a generator of its own, which has no fixed seed."""

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        generator = torch.Generator()
        generator.seed()
        self.register_buffer("scale", torch.rand(1, generator=generator) + 1)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = super().forward(x) * self.scale
        return z


@caught_by("embeds-each-input-alone")
class NormalisesByTheBatch(Pictures):
    """Standardises embeddings over the inputs that are embedded together."""

    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x)
        return (z - z.mean(0)) / (z.std(0, correction=0) + 1)


@caught_by("embeds-each-input-alone")
class AddsPlaces(Anything):
    """Adds a position to each input, as if the batch were a sequence."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.arange(len(x))[:, None]


@caught_by("embedding-changes-nothing")
class StaysInTrainingMode(Pictures):
    """Puts its network into training mode, whose batch norm then has other statistics."""

    def forward(self, x: Tensor) -> Tensor:
        self.net.train()
        return super().forward(x)


@caught_by("embedding-changes-nothing")
class ScalesInPlace(Anything):
    """Normalises the inputs that it is given in place."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(0.5))


@caught_by("embedding-changes-nothing")
class CountsInABuffer(Anything):
    """Counts its inputs in a buffer."""

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)  # type: ignore[operator]
        return super().forward(x)


@caught_by("building-leaves-the-process-alone")
class DoublesByDefault(Anything):
    """Sets torch's default type when it is built."""

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        torch.set_default_dtype(torch.float64)


@survives("The registry restores torch's random state after building an encoder, so the seed reaches nothing else.")
class SeedsTorch(Anything):
    """Seeds torch when it is built."""

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        torch.manual_seed(0)


@caught_by("tune-decides-what-is-trained")
class IgnoresTune(Pictures):
    """Has the option and freezes nothing."""

    def __init__(self, spec: TaskSpec, *, tune: Tune = "none") -> None:
        super().__init__(spec, tune="all")


@caught_by("tune-decides-what-is-trained")
class TrainsOtherWeights(Pictures):
    """Begins with random weights if it is trained."""

    def __init__(self, spec: TaskSpec, *, tune: Tune = "none") -> None:
        super().__init__(spec, tune=tune)
        if tune == "all":
            with torch.no_grad():
                self.net[0].weight.mul_(2)  # type: ignore[index]


@caught_by("state-is-complete")
class SavesItsBufferAlone(Pictures):
    """Leaves the weights out of its state, as they are those of a file."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if "weight" not in name}

    def load_state_dict(self, state: Any, strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict(state, False, assign)


@caught_by("copies-embed-alike")
class HoldsALambda(Anything):
    """Keeps a function that can't be pickled."""

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        self.then = lambda z: 2 * z

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.then(super().forward(x))
        return z


@caught_by("refuses-other-inputs")
class RefusesInItsLibrary(Pictures):
    """Takes inputs of any shape, and fails at the first of them in its library."""

    def __init__(self, spec: TaskSpec, *, tune: Tune = "none") -> None:
        nn.Module.__init__(self)
        self.net = tuned(network(spec), tune)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.net(x)
        return z


@caught_by("refuses-other-inputs")
class RefusesWithoutAReason(Pictures):
    """Refuses inputs without naming their shape."""

    def __init__(self, spec: TaskSpec, *, tune: Tune = "none") -> None:
        try:
            super().__init__(spec, tune=tune)
        except DataError:
            raise DataError("got wrong inputs, expected pictures") from None


@survives("The kit can't know which normalisation a network was trained with; embeddings are only less useful.")
class WrongMean(Pictures):
    """Normalises by the statistics of other networks."""

    def __init__(self, spec: TaskSpec, *, tune: Tune = "none") -> None:
        super().__init__(spec, tune=tune)
        self.mean.fill_(0)
