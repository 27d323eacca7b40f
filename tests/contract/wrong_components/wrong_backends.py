"""Wrong backends, each with one fault that a plugin's author may make."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import attrs
import shelf
import torch
from torch import Tensor, nn

from kshot import Cpu, Episode
from kshot._engine.cpu import OneProcess

caught_by = partial(shelf.caught_by, group="backend")
survives = partial(shelf.survives, group="backend")
right = partial(shelf.right, group="backend")


@right()
class Plain(Cpu):
    """A right backend: the CPU without settings that remain for the rest of the process."""

    def __init__(self) -> None:
        super().__init__(precision="float32", memory_format="contiguous", keep_freed_memory=False)


@caught_by("place-keeps-gradients")
class DetachesTensors(Plain):
    """Detaches tensors when it copies them."""

    def place(self, x: Any) -> Any:
        return x.detach().clone() if isinstance(x, Tensor) else super().place(x)


@caught_by("place-keeps-gradients")
class WithoutGradients(Plain):
    """Copies modules under no_grad by way of their data, and loses their gradients."""

    def place(self, x: Any) -> Any:
        if isinstance(x, nn.Module):
            for p in x.parameters():
                p.grad = None
        return super().place(x)


@caught_by("place-keeps-gradients")
class Freezes(Plain):
    """Freezes the parameters of a module that it places."""

    def place(self, x: Any) -> Any:
        return x.requires_grad_(False) if isinstance(x, nn.Module) else super().place(x)


@caught_by("place-keeps-gradients")
class Thaws(Plain):
    """Makes all parameters trainable, also those that were frozen."""

    def place(self, x: Any) -> Any:
        return x.requires_grad_(True) if isinstance(x, nn.Module) else super().place(x)


@caught_by("place-module-in-place")
class Evaluates(Plain):
    """Puts modules into evaluation mode."""

    def place(self, x: Any) -> Any:
        return x.eval() if isinstance(x, nn.Module) else super().place(x)


@caught_by("place-module-in-place")
class Trains(Plain):
    """Puts modules into training mode."""

    def place(self, x: Any) -> Any:
        return x.train() if isinstance(x, nn.Module) else super().place(x)


@caught_by("place-keeps-values")
class Narrows(Plain):
    """Places integers as 32-bit integers."""

    def place(self, x: Any) -> Any:
        return x.int() if isinstance(x, Tensor) and x.dtype == torch.int64 else super().place(x)


@caught_by("place-handles-episodes")
class DropsSemantics(Plain):
    """Builds a new support from the fields that its author knew."""

    def place(self, x: Any) -> Any:
        if not isinstance(x, Episode):
            return super().place(x)
        return attrs.evolve(x, support=attrs.evolve(x.support, semantics=None, unlabelled=None))


@caught_by("process-is-left-alone")
class SeedsWhenPlacing(Plain):
    """Seeds torch when it places a module."""

    def place(self, x: Any) -> Any:
        torch.manual_seed(0)
        return super().place(x)


@caught_by("process-is-left-alone")
class FastProducts(Plain):
    """Sets the precision of matrix products in autocast, and does not restore it."""

    @contextmanager
    def autocast(self) -> Iterator[None]:  # type: ignore[override]
        torch.set_float32_matmul_precision("medium")
        yield


@caught_by("autocast-is-a-context")
class OneContext(Plain):
    """Returns the same context each time."""

    def __init__(self) -> None:
        super().__init__()
        self.context = self.once()

    @contextmanager
    def once(self) -> Iterator[None]:
        yield

    def autocast(self) -> Any:
        return self.context


@caught_by("autocast-is-a-context")
class Inference(Plain):
    """Computes in inference mode."""

    def autocast(self) -> Any:
        return torch.inference_mode()


@caught_by("autocast-is-a-context")
class HalfPrecision(Plain):
    """Computes with one digit."""

    @contextmanager
    def autocast(self) -> Iterator[None]:  # type: ignore[override]
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float16)
        yield
        torch.set_default_dtype(before)


@caught_by("world-is-consistent")
class GathersNothing(Plain):
    """Gathers the tensors of the other ranks only."""

    class World(OneProcess):
        def all_gather(self, tensor: Tensor) -> list[Tensor]:
            return []

    world = World()


@caught_by("world-is-consistent")
class ReducesInPlace(Plain):
    """Reduces in place, and returns nothing."""

    class World(OneProcess):
        def all_reduce(self, tensor: Tensor) -> Any:
            return None

    world = World()


@survives("In a world of one process a mean is the sum; the rules catch it where they run in several processes.")
class Averages(Plain):
    """Reduces to the mean instead of the sum."""

    class World(OneProcess):
        def all_reduce(self, tensor: Tensor) -> Tensor:
            return tensor / self.size if tensor.is_floating_point() else tensor

    world = World()


@caught_by("place-keeps-nothing")
class KeepsAll(Plain):
    """Keeps every tensor that it places."""

    def __init__(self) -> None:
        super().__init__()
        self.placed: list[Any] = []

    def place(self, x: Any) -> Any:
        self.placed.append(x)
        return super().place(x)


@caught_by("describe-is-plain")
class DescribesByObject(Plain):
    """Describes its device by an object."""

    def describe(self) -> Any:
        return {**super().describe(), "device": self.device}
