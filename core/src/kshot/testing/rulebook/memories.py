"""Rules for memories."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from kshot.testing.compare import changed, clones, difference, gap, held, tolerance
from kshot.testing.rulebook.rule import Rule, add, always, broken, named
from kshot.testing.subjects import MemorySubject

Check = Callable[[MemorySubject], None]


def memory_rule(unless: Callable[[MemorySubject], str | None] = always) -> Callable[[Check], Check]:
    """Put a check on the list of rules for memories."""

    def put(check: Check) -> Check:
        add(Rule(named(check), "memories", check, unless))
        return check

    return put


def flat(state: Any) -> dict[str, Tensor]:
    """The leaves of a state, by number."""
    return {f"leaf {i} of the state": leaf for i, leaf in enumerate(pytree.tree_leaves(state))}


def is_module(component: object) -> bool:
    return isinstance(component, nn.Module)


def run(memory: Any, interfaces: Tensor, state: Any = None) -> tuple[Tensor, Any]:
    """Steps from ``state``, or from a wiped memory: reads [steps, B, read_size] and the last state."""
    state = memory.initial_state(interfaces.shape[1]) if state is None else state
    reads = []
    for interface in interfaces:
        read, state = memory.step(interface, state)
        reads.append(read)
    return torch.stack(reads), state


@memory_rule()
def sizes_are_true(subject: MemorySubject) -> None:
    """A memory is an ``nn.Module`` with ``interface_size`` and ``read_size``: ``step`` takes interfaces
    [B, interface_size] and returns finite reads [B, read_size] and a state of the same shapes, for any B.
    """
    memory = subject.build()
    if not is_module(memory):
        broken(f"a {type(memory).__name__} is no torch.nn.Module")
    for name in ("interface_size", "read_size"):
        if not isinstance(getattr(memory, name, None), int) or getattr(memory, name) < 1:
            broken(f"{name} is {getattr(memory, name, None)!r}, expected a positive int")
    for B in (1, 3):
        before = flat(memory.initial_state(B))
        answer = memory.step(subject.interfaces(memory, B=B)[0], memory.initial_state(B))
        if not isinstance(answer, tuple) or len(answer) != 2:
            broken(f"step returned a {type(answer).__name__}, expected (reads, state)")
        reads, state = answer
        if tuple(reads.shape) != (B, memory.read_size):
            broken(f"reads have shape {tuple(reads.shape)}, expected {(B, memory.read_size)} by read_size")
        if not bool(torch.isfinite(reads).all()):
            broken("reads are NaN or infinite")
        shapes = [{n: (tuple(t.shape), t.dtype) for n, t in leaves.items()} for leaves in (before, flat(state))]
        if shapes[0] != shapes[1]:
            broken(f"a step turned a state of shapes {shapes[0]} into {shapes[1]}")


@memory_rule()
def step_never_mutates_state(subject: MemorySubject) -> None:
    """``step`` leaves the state it is given, the interface and the memory's own tensors as they were."""
    memory = subject.build()
    interfaces = subject.interfaces(memory)
    _, state = run(memory, interfaces[:1])
    before, own, said = clones(flat(state)), held(memory), interfaces[1].clone()
    memory.step(interfaces[1], state)
    if found := difference(before, flat(state), 0):
        broken(f"the state that was given to step is not as it was: {found}")
    if names := changed(own, held(memory)):
        broken(f"after a step these are not as they were: {', '.join(names[:5])}")
    if not torch.equal(said, interfaces[1]):
        broken("step wrote into the interface")


@memory_rule()
def state_round_trips(subject: MemorySubject) -> None:
    """A state is a pytree of tensors that begin with B: saved, loaded with ``weights_only=True``, or detached, it
    goes on as before.
    """
    memory = subject.build()
    B = 3
    interfaces = subject.interfaces(memory, B=B)
    _, state = run(memory, interfaces[:2])
    for name, leaf in flat(state).items():
        if not isinstance(leaf, Tensor):
            broken(f"{name} is a {type(leaf).__name__}, expected a tensor")
        if leaf.shape[:1] != (B,):
            broken(f"{name} has shape {tuple(leaf.shape)}, expected B = {B} first")
    expected = memory.step(interfaces[2], state)[0]
    leaves, structure = pytree.tree_flatten(state)
    file = io.BytesIO()
    torch.save([leaf.detach() for leaf in leaves], file)
    file.seek(0)
    loaded = pytree.tree_unflatten(torch.load(file, weights_only=True), structure)
    detached = pytree.tree_map(lambda t: t.detach().clone(), state)
    for what, other in (("saved and loaded", loaded), ("detached", detached)):
        found = memory.step(interfaces[2], other)[0]
        if (far := gap(expected, found)) > 1e-6:
            broken(f"from a state that was {what}, reads differ by {far:.2g} of the greatest one")


@memory_rule()
def batch_equals_singles(subject: MemorySubject) -> None:
    """Three episodes together read the same as each alone."""
    memory = subject.build()
    interfaces = subject.interfaces(memory)
    together, _ = run(memory, interfaces)
    alone = torch.cat([run(memory, interfaces[:, b : b + 1])[0] for b in range(interfaces.shape[1])], 1)
    if (far := gap(together, alone)) > tolerance(together.dtype):
        broken(f"reads of three episodes together differ by {far:.2g} of the greatest one from those of each alone")


@memory_rule()
def fresh_initial_state(subject: MemorySubject) -> None:
    """``initial_state(B)`` does not depend on what the memory was used for before, and is the same for each episode
    of a batch of any size.
    """
    memory = subject.build()
    before = clones(flat(memory.initial_state(3)))
    run(memory, subject.interfaces(memory, B=2))
    after = flat(memory.initial_state(3))
    if found := difference(before, after, 0):
        broken(f"after use, initial_state gives another state: {found}")
    one = flat(memory.initial_state(1))
    for name, leaf in after.items():
        if not torch.equal(leaf, one[name].expand_as(leaf)):
            broken(f"{name} of initial_state(3) is not that of initial_state(1), three times")


@memory_rule()
def deterministic(subject: MemorySubject) -> None:
    """The same interfaces give the same reads: a memory draws nothing at random."""
    memory = subject.build()
    interfaces = subject.interfaces(memory)
    first, second = (run(memory, interfaces)[0] for _ in range(2))
    if (far := gap(first, second)) > 1e-6:
        broken(f"the same interfaces twice give reads that differ by {far:.2g} of the greatest one")


@memory_rule()
def gradients_flow(subject: MemorySubject) -> None:
    """What was written can be learned: the last reads have finite gradients, not all 0, by the interfaces."""
    memory = subject.build()
    interfaces = subject.interfaces(memory, steps=4).requires_grad_()
    reads, _ = run(memory, interfaces)
    if not reads.requires_grad:
        broken("reads don't depend on the interfaces: they have no gradient")
    weights = torch.linspace(-1, 1, reads[-1].numel()).view_as(reads[-1])
    (slope,) = torch.autograd.grad((reads[-1] * weights).sum(), interfaces, allow_unused=True)
    if slope is None or not bool(torch.isfinite(slope).all()):
        broken(f"the gradient of the reads by the interfaces is {'missing' if slope is None else 'NaN or infinite'}")
    if not bool((slope != 0).any()):
        broken("the gradient of the reads by the interfaces is 0 everywhere")


@memory_rule()
def stays_finite(subject: MemorySubject) -> None:
    """A controller that is sure of itself does no harm: over 64 steps of interfaces ten times as large, reads and their
    gradients by the interfaces stay finite.
    """
    memory = subject.build()
    interfaces = (10 * subject.interfaces(memory, steps=64)).requires_grad_()
    reads, _ = run(memory, interfaces)
    for t, read in enumerate(reads):
        if not bool(torch.isfinite(read).all()):
            broken(f"reads of step {t + 1} are NaN or infinite with interfaces of a size of 10")
    (slope,) = torch.autograd.grad(reads.sum(), interfaces)
    if not bool(torch.isfinite(slope).all()):
        broken("the gradient of the reads by interfaces of a size of 10 is NaN or infinite")


@memory_rule()
def weights_are_of_heads(subject: MemorySubject) -> None:
    """Where a state names ``read_weights`` or ``write_weights``, they are [B, heads, M]: what is drawn of a memory."""
    memory = subject.build()
    _, state = run(memory, subject.interfaces(memory, B=3))
    named = state if isinstance(state, Mapping) else getattr(state, "_asdict", dict)()
    for name in ("read_weights", "write_weights"):
        if name in named and (named[name].ndim != 3 or len(named[name]) != 3):
            broken(f"{name} of 3 episodes have shape {tuple(named[name].shape)}, expected [3, heads, slots]")


def _no_accelerator(_: MemorySubject) -> str | None:
    return None if torch.cuda.is_available() else "this machine has no CUDA device"


@memory_rule(_no_accelerator)
def devices(subject: MemorySubject) -> None:
    """Moved to another device, a memory makes its states there and reads the same to rounding."""
    memory = subject.build()
    interfaces = subject.interfaces(memory)
    here, _ = run(memory, interfaces)
    there, _ = run(memory.to("cuda"), interfaces.to("cuda"))
    if (far := gap(here, there.cpu())) > 2e-2:
        broken(f"reads on cuda differ by {far:.2g} of the greatest one from those on the CPU")
