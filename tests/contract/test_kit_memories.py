"""The kit's rules for memories: good memories keep them, and broken ones are rejected by the rule's name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kshot.testing import RuleViolation, rules, suite


class Slots(nn.Module):
    """A good memory: writes to slots by softmax weights, then reads by other softmax weights."""

    def __init__(self, slots: int, width: int, reads: int, *, decay: float = 0.9) -> None:
        super().__init__()
        self.slots, self.width, self.reads, self.decay = slots, width, reads, decay
        self.interface_size = slots + width + reads * slots
        self.read_size = reads * width
        self.start = nn.Parameter(torch.full((slots, width), 0.1))

    def initial_state(self, batch_size: int) -> Any:
        return {"slots": self.start.expand(batch_size, -1, -1), "age": torch.zeros(batch_size).to(self.start)}

    def step(self, interface: Tensor, state: Any) -> tuple[Tensor, Any]:
        where, what, read = interface.split([self.slots, self.width, self.reads * self.slots], -1)
        written = self.decay * state["slots"] + where.softmax(-1)[..., None] * what[:, None]
        weights = read.unflatten(-1, (self.reads, self.slots)).softmax(-1)
        return (weights @ written).flatten(1), {"slots": written, "age": state["age"] + 1}


class Tuples(Slots):
    """A legitimate case: the state is a nested tuple."""

    def initial_state(self, batch_size: int) -> Any:
        state = super().initial_state(batch_size)
        return (state["slots"], (state["age"],))

    def step(self, interface: Tensor, state: Any) -> tuple[Tensor, Any]:
        reads, new = super().step(interface, {"slots": state[0], "age": state[1][0]})
        return reads, (new["slots"], (new["age"],))


class InPlace(Slots):
    """Increments the age in the state that it was given."""

    def step(self, interface: Tensor, state: Any) -> tuple[Tensor, Any]:
        reads, new = super().step(interface, state)
        return reads, {**new, "age": state["age"].add_(1)}


class Counting(Slots):
    """Counts its steps in a buffer."""

    def __init__(self, slots: int, width: int, reads: int) -> None:
        super().__init__(slots, width, reads)
        self.register_buffer("steps", torch.zeros(()))

    def step(self, interface: Tensor, state: Any) -> tuple[Tensor, Any]:
        self.steps += 1
        return super().step(interface, state)


class PythonState(Slots):
    """Has a Python number in the state."""

    def initial_state(self, batch_size: int) -> Any:
        return {**super().initial_state(batch_size), "age": 0.0}

    def step(self, interface: Tensor, state: Any) -> tuple[Tensor, Any]:
        reads, new = super().step(interface, {**state, "age": torch.tensor(state["age"])})
        return reads, {**new, "age": float(new["age"])}


class SharedState(Slots):
    """Has a tensor in the state whose first axis is not B."""

    def initial_state(self, batch_size: int) -> Any:
        return {**super().initial_state(batch_size), "age": torch.zeros(())}


class MoreThanItSays(Slots):
    """States a read_size that is one too small."""

    def __init__(self, slots: int, width: int, reads: int) -> None:
        super().__init__(slots, width, reads)
        self.read_size -= 1


class Growing(Slots):
    """Has a state that grows with every step."""

    def initial_state(self, batch_size: int) -> Any:
        return {**super().initial_state(batch_size), "past": torch.zeros(batch_size, 0, self.read_size)}

    def step(self, interface: Tensor, state: Any) -> tuple[Tensor, Any]:
        reads, new = super().step(interface, state)
        return reads, {**new, "past": torch.cat([state["past"], reads[:, None]], 1)}


class Unpicklable(Slots):
    """Keeps a local function."""

    def __init__(self, slots: int, width: int, reads: int) -> None:
        super().__init__(slots, width, reads)
        self.squash = lambda x: x.tanh()


class Mixing(Slots):
    """Centres reads over the batch."""

    def step(self, interface: Tensor, state: Any) -> tuple[Tensor, Any]:
        reads, new = super().step(interface, state)
        return reads - reads.mean(0), new


class Remembering(Slots):
    """Still has the last writes in its initial state."""

    last: Tensor | None = None

    def initial_state(self, batch_size: int) -> Any:
        state = super().initial_state(batch_size)
        return state if self.last is None else {**state, "slots": self.last.expand(batch_size, -1, -1)}

    def step(self, interface: Tensor, state: Any) -> tuple[Tensor, Any]:
        reads, new = super().step(interface, state)
        self.last = new["slots"][0].detach()
        return reads, new


class RandomReads(Slots):
    """Adds noise to reads."""

    def step(self, interface: Tensor, state: Any) -> tuple[Tensor, Any]:
        reads, new = super().step(interface, state)
        with torch.random.fork_rng(devices=[]):
            torch.seed()
            return reads + torch.randn(()), new


class Detached(Slots):
    """Detaches the interface, so that nothing about writing can be learned."""

    def step(self, interface: Tensor, state: Any) -> tuple[Tensor, Any]:
        return super().step(interface.detach(), state)


class Overflowing(Slots):
    """Takes the root of a product of squares: large interfaces overflow, and at 0 there is no slope."""

    def step(self, interface: Tensor, state: Any) -> tuple[Tensor, Any]:
        reads, new = super().step(interface, state)
        return reads * interface.exp().square().square().prod(-1, keepdim=True).sqrt(), new


class FlatWeights(Slots):
    """Has the weights of all heads in one row."""

    def initial_state(self, batch_size: int) -> Any:
        return {**super().initial_state(batch_size), "read_weights": torch.zeros(batch_size, 2 * self.slots)}

    def step(self, interface: Tensor, state: Any) -> tuple[Tensor, Any]:
        reads, new = super().step(interface, state)
        return reads, {**new, "read_weights": state["read_weights"]}


class CpuStates(Slots):
    """Builds its states on the CPU, whatever its device."""

    def initial_state(self, batch_size: int) -> Any:
        return {n: t.cpu() for n, t in super().initial_state(batch_size).items()}


BROKEN: list[tuple[str, Any, set[str]]] = [
    ("step-never-mutates-state", InPlace, set()),
    ("step-never-mutates-state", Counting, set()),
    ("state-round-trips", PythonState, {"sizes-are-true", "step-never-mutates-state", "fresh-initial-state"}),
    ("state-round-trips", SharedState, set()),
    ("sizes-are-true", MoreThanItSays, set()),
    ("sizes-are-true", Growing, set()),
    ("batch-equals-singles", Mixing, set()),
    ("copies-read-alike", Unpicklable, set()),
    ("fresh-initial-state", Remembering, {"batch-equals-singles", "deterministic", "gradients-flow"}),
    ("deterministic", RandomReads, {"state-round-trips", "batch-equals-singles", "copies-read-alike"}),
    ("gradients-flow", Detached, {"stays-finite"}),
    ("stays-finite", Overflowing, set()),
    ("weights-are-of-heads", FlatWeights, set()),
    pytest.param(
        "devices",
        CpuStates,
        set(),
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
    ),
]


@pytest.mark.parametrize("memory", [Slots, Tuples])
def test_a_good_memory_keeps_every_rule(memory: Any) -> None:
    """A rule that a legitimate memory breaks would make the kit useless."""
    report = suite(memory=memory).run()
    assert report.ok, str(report)
    assert {f.rule for f in report if f.outcome == "skipped"} <= {"devices"}


def test_sizes_and_options_are_the_users() -> None:
    """The kit asks for small sizes, but the options of the suite have precedence."""
    memory = suite(memory=Slots, options={"width": 9, "decay": 0.5}).subject().build()
    assert (memory.width, memory.slots, memory.decay) == (9, 6, 0.5)


@pytest.mark.parametrize(("rule", "memory", "also"), BROKEN, ids=lambda v: getattr(v, "__name__", None))
def test_a_broken_memory_is_rejected_by_the_rule_it_breaks(rule: str, memory: Any, also: set[str]) -> None:
    """The message names the rule, and rules that the memory keeps do not fail."""
    tried = suite(memory=memory)
    with pytest.raises(RuleViolation, match=f"^{rule}: .{{20,}}"):
        tried.verify(rule)
    assert {f.rule for f in tried.run() if f.outcome == "failed"} - also == {rule}


def test_every_rule_for_memories_has_a_memory_that_breaks_it() -> None:
    """A rule that no test breaks may be one that can't be broken."""
    tested = {getattr(case, "values", case)[0] for case in BROKEN}
    elsewhere = {"process-is-left-alone"}  # test_kit_catches.py
    assert tested | elsewhere == {rule.name for rule in rules("memories")}
