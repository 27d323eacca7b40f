"""Rules for memories."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from kshot.testing.compare import changed, clones, difference, gap, tolerance, watched
from kshot.testing.rulebook.process import left_alone
from kshot.testing.rulebook.rule import Rule, add, always, broken, named
from kshot.testing.subjects import MemorySubject

Check = Callable[[MemorySubject], None]


def memory_rule(unless: Callable[[MemorySubject], str | None] = always) -> Callable[[Check], Check]:
    """Register a check as a rule for memories; ``unless`` returns the reason why it does not apply, or None."""

    def put(check: Check) -> Check:
        add(Rule(named(check), "memories", check, unless))
        return check

    return put


def flat(state: Any) -> dict[str, Tensor]:
    """Return the leaves of a state, named by number."""
    return {f"leaf {i} of the state": leaf for i, leaf in enumerate(pytree.tree_leaves(state))}


def is_module(component: object) -> bool:
    """Say whether a component is an ``nn.Module``."""
    return isinstance(component, nn.Module)


def run(memory: Any, interfaces: Tensor, state: Any = None) -> tuple[Tensor, Any]:
    """Run steps from ``state`` or the initial state; return the reads [steps, B, read_size] and the last state."""
    state = memory.initial_state(interfaces.shape[1]) if state is None else state
    reads = []
    for interface in interfaces:
        read, state = memory.step(interface, state)
        reads.append(read)
    return torch.stack(reads), state


@memory_rule()
def sizes_are_true(subject: MemorySubject) -> None:
    """A memory is an ``nn.Module`` with positive integers ``interface_size`` and ``read_size``. ``step`` takes
    interface vectors [B, interface_size] and returns finite reads [B, read_size] and a state of the same shapes, for
    any B.
    """
    memory = subject.build()
    if not is_module(memory):
        broken(f"got a {type(memory).__name__}, expected a torch.nn.Module")
    for name in ("interface_size", "read_size"):
        if not isinstance(getattr(memory, name, None), int) or getattr(memory, name) < 1:
            broken(f"{name}: got {getattr(memory, name, None)!r}, expected a positive int")
    for B in (1, 3):
        before = flat(memory.initial_state(B))
        answer = memory.step(subject.interfaces(memory, B=B)[0], memory.initial_state(B))
        if not isinstance(answer, tuple) or len(answer) != 2:
            broken(f"step: got a {type(answer).__name__}, expected (reads, state)")
        reads, state = answer
        if tuple(reads.shape) != (B, memory.read_size):
            broken(f"step: got reads of shape {tuple(reads.shape)}, expected {(B, memory.read_size)} by read_size")
        if not bool(torch.isfinite(reads).all()):
            broken("step: got reads that are NaN or infinite, expected finite ones")
        shapes = [{n: (tuple(t.shape), t.dtype) for n, t in leaves.items()} for leaves in (before, flat(state))]
        if shapes[0] != shapes[1]:
            broken(f"step: got a state of shapes {shapes[1]}, expected those of the state before, {shapes[0]}")


@memory_rule()
def step_never_mutates_state(subject: MemorySubject) -> None:
    """``step`` changes neither the state that it is given, nor the interface vector. ``step`` and ``initial_state``
    change neither the memory's own tensors nor what is trained of it (``requires_grad``), nor its mode.
    """
    memory = subject.build()
    interfaces = subject.interfaces(memory)
    own = watched(memory)
    _, state = run(memory, interfaces[:1])
    before, interface = clones(flat(state)), interfaces[1].clone()
    memory.step(interfaces[1], state)
    if where := difference(before, flat(state), 0):
        broken(f"step: got changes in the state that it was given, expected a new state: {where}")
    if names := changed(own, watched(memory)):
        broken(f"step or initial_state: got changes in {', '.join(names[:5])}, expected none")
    if not torch.equal(interface, interfaces[1]):
        broken("step: got changes in the interface vector, expected none")


@memory_rule()
def state_round_trips(subject: MemorySubject) -> None:
    """A state is a pytree of tensors whose first axis is B. After saving and loading it with ``weights_only=True``, or
    after detaching it, the memory continues with the same reads.
    """
    memory = subject.build()
    B = 3
    interfaces = subject.interfaces(memory, B=B)
    _, state = run(memory, interfaces[:2])
    for name, leaf in flat(state).items():
        if not isinstance(leaf, Tensor):
            broken(f"{name}: got a {type(leaf).__name__}, expected a tensor")
        if leaf.shape[:1] != (B,):
            broken(f"{name}: got shape {tuple(leaf.shape)}, expected B = {B} as first axis")
    expected = memory.step(interfaces[2], state)[0]
    leaves, structure = pytree.tree_flatten(state)
    file = io.BytesIO()
    torch.save([leaf.detach() for leaf in leaves], file)
    file.seek(0)
    loaded = pytree.tree_unflatten(torch.load(file, weights_only=True), structure)
    detached = pytree.tree_map(lambda t: t.detach().clone(), state)
    for what, other in (("saved and loaded", loaded), ("detached", detached)):
        reads = memory.step(interfaces[2], other)[0]
        if (far := gap(expected, reads)) > 1e-6:
            broken(f"got reads that differ by {far:.2g} of the greatest one from a state {what}, expected the same")


@memory_rule()
def batch_equals_singles(subject: MemorySubject) -> None:
    """Three episodes together get the same reads as each episode alone."""
    memory = subject.build()
    interfaces = subject.interfaces(memory)
    together, _ = run(memory, interfaces)
    alone = torch.cat([run(memory, interfaces[:, b : b + 1])[0] for b in range(interfaces.shape[1])], 1)
    if (far := gap(together, alone)) > tolerance(together.dtype):
        broken(f"got reads of three episodes that differ by {far:.2g} of the greatest, expected those of each alone")


@memory_rule()
def fresh_initial_state(subject: MemorySubject) -> None:
    """``initial_state(B)`` does not depend on earlier use of the memory, and is the same for each episode of a batch of
    any size.
    """
    memory = subject.build()
    before = clones(flat(memory.initial_state(3)))
    run(memory, subject.interfaces(memory, B=2))
    after = flat(memory.initial_state(3))
    if where := difference(before, after, 0):
        broken(f"initial_state: got another state after use, expected the same: {where}")
    one = flat(memory.initial_state(1))
    for name, leaf in after.items():
        if not torch.equal(leaf, one[name].expand_as(leaf)):
            broken(f"initial_state(3): got another {name} than that of initial_state(1), expected the same three times")


@memory_rule()
def deterministic(subject: MemorySubject) -> None:
    """The same interface vectors give the same reads: a memory draws no random numbers."""
    memory = subject.build()
    interfaces = subject.interfaces(memory)
    first, second = (run(memory, interfaces)[0] for _ in range(2))
    if (far := gap(first, second)) > 1e-6:
        broken(f"got reads that differ by {far:.2g} of the greatest one for the same interfaces, expected the same")


@memory_rule()
def gradients_flow(subject: MemorySubject) -> None:
    """The gradient of the last reads with respect to the interface vectors is finite and not 0 everywhere. If a small
    change of the interface vector of one step, or of one parameter, changes the last reads, then the gradient with
    respect to it is not 0: nothing on the way is detached. This is checked in float64, if the memory can compute in it.
    """
    memory = subject.build()
    interfaces = subject.interfaces(memory, steps=4).requires_grad_()
    reads, _ = run(memory, interfaces)
    if not reads.requires_grad:
        broken("got reads without a gradient, expected them to depend on the interface vectors")
    weights = torch.linspace(-1, 1, reads[-1].numel()).view_as(reads[-1])
    (slope,) = torch.autograd.grad((reads[-1] * weights).sum(), interfaces, allow_unused=True)
    if slope is None or not bool(torch.isfinite(slope).all()):
        broken(
            f"got a {'missing' if slope is None else 'NaN or infinite'} gradient of the reads with respect to the "
            "interface vectors, expected a finite one"
        )
    if not bool((slope != 0).any()):
        broken("got a gradient of the reads that is 0 for all interface vectors, expected it not to be")
    try:
        exact = subject.build().double()
        run(exact, subject.interfaces(exact, steps=4, dtype=torch.float64))
    except Exception:
        return  # it computes in float32 only, in which small changes are lost
    _check_nothing_detached(subject, exact)


def _check_nothing_detached(subject: MemorySubject, memory: Any) -> None:
    """Compare which steps and parameters change the last reads with those that have a gradient."""
    interfaces = subject.interfaces(memory, steps=4, dtype=torch.float64).requires_grad_()
    parameters = {n: p for n, p in memory.named_parameters() if p.requires_grad}
    reads = run(memory, interfaces)[0][-1]
    weights = torch.linspace(-1, 1, reads.numel()).to(reads).view_as(reads)
    slopes = torch.autograd.grad((reads * weights).sum(), [interfaces, *parameters.values()], allow_unused=True)
    generator = torch.Generator().manual_seed(3)

    def change(t: Tensor) -> float:
        """Return by how much the last reads change if ``t`` does by a millionth, in millionths."""
        noise = torch.randn(t.shape, generator=generator).to(t)
        with torch.no_grad():
            t.add_(1e-6 * noise)
            moved = run(memory, interfaces)[0][-1]
            t.sub_(1e-6 * noise)
        return float((moved - reads.detach()).abs().max()) * 1e6

    steps = {f"the interface vector of step {s + 1} of 4": (interfaces[s], slopes[0]) for s in range(len(interfaces))}
    named = {f"the parameter {n}": (p, slope) for (n, p), slope in zip(parameters.items(), slopes[1:], strict=True)}
    for s, (name, (t, slope)) in enumerate({**steps, **named}.items()):
        own = slope if slope is None or s >= len(steps) else slope[s]
        if (own is None or not bool((own != 0).any())) and (sensitivity := change(t.detach())) > 1e-3:
            broken(
                f"got no gradient of the last reads with respect to {name}, which changes them (by {sensitivity:.2g} "
                "times its own change), expected one; detach nothing, and use tensors instead of Python numbers"
            )


@memory_rule()
def stays_finite(subject: MemorySubject) -> None:
    """Large interface vectors do no harm, nor do zeros: over 64 steps with interface vectors that are ten times as
    large, and over 8 steps with zeros, the reads and their gradients with respect to the interface vectors stay finite.
    """
    memory = subject.build()
    large = 10 * subject.interfaces(memory, steps=64)
    for what, interfaces in (("of size 10", large), ("of zeros", torch.zeros_like(large[:8]))):
        interfaces.requires_grad_()
        reads, _ = run(memory, interfaces)
        for t, read in enumerate(reads):
            if not bool(torch.isfinite(read).all()):
                broken(f"got NaN or infinite reads at step {t + 1} for interface vectors {what}, expected finite ones")
        (slope,) = torch.autograd.grad(reads.sum(), interfaces)
        if not bool(torch.isfinite(slope).all()):
            broken(
                f"got a NaN or infinite gradient of the reads for interface vectors {what}, expected a finite one; "
                "add a small number before square roots and divisions"
            )


@memory_rule()
def process_is_left_alone(subject: MemorySubject) -> None:
    """Building a memory, ``initial_state`` and ``step`` change no setting of the process, such as torch's default
    dtype, and the latter two neither draw from nor seed the global random generators.
    """
    with left_alone("building it"):
        memory = subject.build()
    with left_alone("initial_state and step", draws=False):
        run(memory, subject.interfaces(memory))


@memory_rule()
def weights_are_of_heads(subject: MemorySubject) -> None:
    """If a state has ``read_weights`` or ``write_weights``, their shape is [B, heads, M], as plots expect."""
    memory = subject.build()
    _, state = run(memory, subject.interfaces(memory, B=3))
    named = state if isinstance(state, Mapping) else getattr(state, "_asdict", dict)()
    for name in ("read_weights", "write_weights"):
        if name in named and (named[name].ndim != 3 or len(named[name]) != 3):
            broken(f"{name}: got shape {tuple(named[name].shape)} for 3 episodes, expected [3, heads, slots]")


def _no_accelerator(_: MemorySubject) -> str | None:
    return None if torch.cuda.is_available() else "this machine has no CUDA device"


@memory_rule(_no_accelerator)
def devices(subject: MemorySubject) -> None:
    """A memory moved to another device builds its states there and gives the same reads up to rounding."""
    memory = subject.build()
    interfaces = subject.interfaces(memory)
    here, _ = run(memory, interfaces)
    there, _ = run(memory.to("cuda"), interfaces.to("cuda"))
    if (far := gap(here, there.cpu())) > 2e-2:
        broken(f"got reads on cuda that differ by {far:.2g} of the greatest one, expected those of the CPU")
