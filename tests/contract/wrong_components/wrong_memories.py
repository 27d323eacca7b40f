"""Wrong memories, each with one fault that a plugin's author may make."""

from __future__ import annotations

from functools import partial
from typing import Any

import shelf
import torch
from torch import Tensor, nn

caught_by = partial(shelf.caught_by, group="memory")
survives = partial(shelf.survives, group="memory")
right = partial(shelf.right, group="memory")


@right()
class Addressed(nn.Module):
    """A right memory: reads and writes by the cosine of keys and slots."""

    def __init__(self, slots: int, width: int, reads: int) -> None:
        super().__init__()
        self.slots, self.width, self.reads = slots, width, reads
        self.interface_size = 2 * width + reads * width
        self.read_size = reads * width
        self.start = nn.Parameter(0.5 * torch.randn(slots, width))
        self.sharpness = nn.Parameter(torch.tensor(2.0))

    def initial_state(self, batch_size: int) -> Any:
        return {"slots": self.start.expand(batch_size, -1, -1), "last": self.start.new_zeros(batch_size, self.width)}

    def weights(self, key: Tensor, slots: Tensor) -> Tensor:
        """Compare keys [B, R, W] with slots [B, M, W]: weights [B, R, M]."""
        lengths = slots.square().sum(-1).add(1e-3).sqrt()[:, None] * key.square().sum(-1).add(1e-3).sqrt()[..., None]
        return (self.sharpness * (key @ slots.mT) / lengths).softmax(-1)

    def step(self, interface: Tensor, state: Any) -> tuple[Tensor, Any]:
        where, what, read = interface.split([self.width, self.width, self.reads * self.width], -1)
        what = what.tanh()
        write = self.weights(where[:, None], state["slots"]).mT
        slots = state["slots"] * (1 - write) + write * what[:, None]
        read_weights = self.weights(read.unflatten(-1, (self.reads, self.width)), slots)
        return (read_weights @ slots).flatten(1), {"slots": slots, "last": what}


@right()
class LastInput(nn.Module):
    """A right memory of one row, which each step replaces: only the step before matters."""

    def __init__(self, slots: int, width: int, reads: int) -> None:
        super().__init__()
        self.interface_size = self.read_size = width

    def initial_state(self, batch_size: int) -> Tensor:
        return torch.zeros(batch_size, self.read_size)

    def step(self, interface: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return state, interface


@caught_by("gradients-flow")
class DetachesState(Addressed):
    """Detaches its slots at each step, so that nothing that it wrote can be learned."""

    def step(self, interface: Tensor, state: Any) -> tuple[Tensor, Any]:
        reads, new = super().step(interface, state)
        return reads, {n: t.detach() for n, t in new.items()}


@caught_by("gradients-flow")
class DetachesStart(Addressed):
    """Detaches its learned initial slots."""

    def initial_state(self, batch_size: int) -> Any:
        return {n: t.detach() for n, t in super().initial_state(batch_size).items()}


@caught_by("gradients-flow")
class DetachesReads(Addressed):
    """Returns reads without a graph."""

    def step(self, interface: Tensor, state: Any) -> tuple[Tensor, Any]:
        reads, new = super().step(interface, state)
        return reads.detach(), new


@caught_by("gradients-flow")
class WithoutGradients(Addressed):
    """Writes under no_grad."""

    def step(self, interface: Tensor, state: Any) -> tuple[Tensor, Any]:
        with torch.no_grad():
            _, new = super().step(interface, state)
        reads, _ = super().step(interface, state)
        return reads, new


@caught_by("gradients-flow")
class PlainSharpness(Addressed):
    """Uses the value of a parameter, as a Python number."""

    def weights(self, key: Tensor, slots: Tensor) -> Tensor:
        lengths = slots.square().sum(-1).add(1e-3).sqrt()[:, None] * key.square().sum(-1).add(1e-3).sqrt()[..., None]
        return (float(self.sharpness) * (key @ slots.mT) / lengths).softmax(-1)


@caught_by("step-never-mutates-state")
class Freezes(Addressed):
    """Freezes its parameters at the first step."""

    def step(self, interface: Tensor, state: Any) -> tuple[Tensor, Any]:
        self.sharpness.requires_grad_(False)
        return super().step(interface, state)


@caught_by("step-never-mutates-state")
class ChangesMode(Addressed):
    """Puts itself into training mode when it begins an episode."""

    def initial_state(self, batch_size: int) -> Any:
        self.train()
        return super().initial_state(batch_size)


@caught_by("process-is-left-alone")
class SeedsItsStart(Addressed):
    """Seeds torch to draw the same initial slots each time."""

    def initial_state(self, batch_size: int) -> Any:
        torch.manual_seed(0)
        slots = 0.1 * torch.randn(self.slots, self.width).to(self.start)
        return {**super().initial_state(batch_size), "slots": (self.start + slots).expand(batch_size, -1, -1)}


@caught_by("process-is-left-alone")
class DoublesByDefault(Addressed):
    """Sets torch's default type when it is built."""

    def __init__(self, slots: int, width: int, reads: int) -> None:
        super().__init__(slots, width, reads)
        torch.set_default_dtype(torch.float64)


@caught_by("stays-finite")
class Cosine(Addressed):
    """Divides by the length of a key, which may be 0."""

    def weights(self, key: Tensor, slots: Tensor) -> Tensor:
        lengths = slots.norm(dim=-1)[:, None] * key.norm(dim=-1)[..., None]
        return (self.sharpness * (key @ slots.mT) / lengths).softmax(-1)


@caught_by("stays-finite")
class Exponential(Addressed):
    """Normalises weights without subtracting their greatest logit."""

    def weights(self, key: Tensor, slots: Tensor) -> Tensor:
        e = (self.sharpness * (key @ slots.mT)).exp()
        return e / e.sum(-1, keepdim=True)


@caught_by("step-never-mutates-state")
class WritesInPlace(Addressed):
    """Writes into the slots of the state that it was given."""

    def step(self, interface: Tensor, state: Any) -> tuple[Tensor, Any]:
        reads, new = super().step(interface, state)
        state["last"].copy_(new["last"].detach())
        return reads, new


@caught_by("step-never-mutates-state")
class SquashesInPlace(Addressed):
    """Squashes the interface vector in place."""

    def step(self, interface: Tensor, state: Any) -> tuple[Tensor, Any]:
        return super().step(interface.clamp_(-0.5, 0.5) if not interface.requires_grad else interface, state)


@caught_by("state-round-trips")
class StateOnItself(Addressed):
    """Keeps the slots on itself, and returns an empty state."""

    kept: Any = None

    def initial_state(self, batch_size: int) -> Any:
        self.kept = super().initial_state(batch_size)
        return {"step": torch.zeros(batch_size)}

    def step(self, interface: Tensor, state: Any) -> tuple[Tensor, Any]:
        reads, self.kept = super().step(interface, self.kept)
        return reads, {"step": state["step"] + 1}


@caught_by("deterministic")
class CountsOnItself(Addressed):
    """Writes in turn to the slots, by a counter that no state has."""

    turn = 0

    def step(self, interface: Tensor, state: Any) -> tuple[Tensor, Any]:
        reads, new = super().step(interface, state)
        self.turn += 1
        return reads * (1 + self.turn % self.slots), new


@caught_by("batch-equals-singles")
class NormalisedOverBatch(Addressed):
    """Standardises what it writes over the batch."""

    def step(self, interface: Tensor, state: Any) -> tuple[Tensor, Any]:
        return super().step(interface - interface.mean(0), state)


@caught_by("sizes-are-true")
class ForgetsTheReads(Addressed):
    """States the size of one read, whatever their number."""

    def __init__(self, slots: int, width: int, reads: int) -> None:
        super().__init__(slots, width, reads)
        self.read_size = width


@caught_by("fresh-initial-state")
class RandomStart(Addressed):
    """Draws its initial slots anew for each episode."""

    def initial_state(self, batch_size: int) -> Any:
        state = super().initial_state(batch_size)
        return {**state, "slots": state["slots"] + 0.1 * torch.randn(state["slots"].shape)}


@survives("The kit has no other device than the CPU here; the rule devices catches it on a machine with CUDA.")
class StartsOnTheCpu(Addressed):
    """Begins with a state on the CPU, whatever its device."""

    def initial_state(self, batch_size: int) -> Any:
        return {**super().initial_state(batch_size), "last": torch.zeros(batch_size, self.width)}
