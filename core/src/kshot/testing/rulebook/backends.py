"""Rules for backends. They run in the one process that the tests run in, or in each of several that do the same."""

from __future__ import annotations

import json
from collections.abc import Callable

import attrs
import torch
from torch import nn

from kshot.episode import Episode
from kshot.testing import sample_tasks
from kshot.testing.compare import difference, gap, named_tensors
from kshot.testing.rulebook.rule import Rule, add, always, broken, named
from kshot.testing.subjects import BackendSubject

Check = Callable[[BackendSubject], None]


def backend_rule(unless: Callable[[BackendSubject], str | None] = always) -> Callable[[Check], Check]:
    """Put a check on the list of rules for backends."""

    def put(check: Check) -> Check:
        add(Rule(named(check), "backends", check, unless))
        return check

    return put


def net() -> nn.Module:
    """A module with convolutions, batch norm and buffers."""
    made: nn.Module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 36, 2))
    return made.eval()


@backend_rule()
def place_keeps_values(subject: BackendSubject) -> None:
    """``place`` puts a tensor on the backend's device and changes neither its values, its type nor its shape."""
    backend = subject.backend
    for tensor in (
        torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8),
        torch.arange(6),
        torch.tensor([True, False]),
        torch.zeros(2, 0),
    ):
        placed = backend.place(tensor)
        if placed.device.type != torch.device(backend.device).type:
            broken(f"a tensor was placed on {placed.device}, the backend's device is {backend.device}")
        if placed.dtype != tensor.dtype or placed.shape != tensor.shape:
            broken(f"a {tensor.dtype} of shape {tuple(tensor.shape)} became {placed.dtype} {tuple(placed.shape)}")
        if not torch.equal(placed.cpu(), tensor):
            broken(f"the values of a {tensor.dtype} tensor changed")


@backend_rule()
def place_module_in_place(subject: BackendSubject) -> None:
    """A module is placed in place: it is the same object with the same parameter objects, so that an optimizer made
    before goes on working; parameters and buffers keep their values, types and shapes.
    """
    backend, module = subject.backend, net()
    parameters = dict(module.named_parameters())
    before = {n: t.detach().clone() for n, t in module.state_dict().items()}
    placed = backend.place(module)
    if placed is not module:
        broken(f"place returned another module ({type(placed).__name__}), expected the one it was given")
    for name, p in placed.named_parameters():
        if p is not parameters.get(name):
            broken(f"parameter {name} is another object after placing; an optimizer made before would step the old one")
        if p.device.type != torch.device(backend.device).type:
            broken(f"parameter {name} is on {p.device}, the backend's device is {backend.device}")
    if found := difference(before, {n: t.detach().cpu() for n, t in placed.state_dict().items()}, 0):
        broken(f"placing a module changed it: {found}")


@backend_rule()
def place_handles_episodes(subject: BackendSubject) -> None:
    """Episodes keep their structure: the same fields with the same values, on the device, origin and way included."""
    backend = subject.backend
    for name, tasks in (
        ("classification", sample_tasks.classification(semantics=3, unlabelled=2, external=2)),
        ("regression", sample_tasks.example("regression")),
        ("objectives", sample_tasks.example("objective")),
    ):
        episode = tasks.sample("train", [0, 1])
        placed = backend.place(episode)
        if not isinstance(placed, Episode):
            broken(f"an episode of {name} became a {type(placed).__name__}")
        for path, tensor in named_tensors(attrs.evolve(placed, origin=None)).items():
            if tensor.device.type != torch.device(backend.device).type:
                broken(
                    f"{path} of an episode of {name} is on {tensor.device}, the backend's device is {backend.device}"
                )
        moved = {path: t.cpu() for path, t in named_tensors(placed).items()}
        if found := difference(named_tensors(episode), moved, 0):
            broken(f"an episode of {name} is not what it was: {found}")
        if placed.support.way != episode.support.way or placed.origin is not episode.origin:
            broken(f"an episode of {name} lost its way or origin")


@backend_rule()
def autocast_is_a_context(subject: BackendSubject) -> None:
    """``autocast()`` gives a new context each time, which may be nested, ends with what was before (after an error
    too), and computes the same to the precision of bfloat16.
    """
    backend = subject.backend
    device = torch.device(backend.device).type

    def mode() -> tuple[bool, torch.dtype, bool, torch.dtype]:
        return (
            torch.is_autocast_enabled(device),
            torch.get_autocast_dtype(device),
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
        )

    before, module = mode(), backend.place(net())
    x = backend.place(torch.linspace(-1, 1, 128).view(2, 1, 8, 8))
    plain = module(x)
    with backend.autocast():
        inside = mode()
        with backend.autocast():
            nested = module(x)
        if mode() != inside:
            broken(f"after a nested autocast the mode is {mode()}, expected {inside}")
        if not torch.is_grad_enabled():
            broken("autocast turned gradients off")
    if mode() != before:
        broken(f"after autocast the mode is {mode()}, expected {before}")
    try:
        with backend.autocast():
            raise LookupError
    except LookupError:
        pass
    else:
        broken("autocast swallowed an error that was raised inside")
    if mode() != before:
        broken(f"after an error in autocast the mode is {mode()}, expected {before}")
    if (far := gap(plain, nested)) > 0.1:
        broken(f"under autocast a small net's outputs differ by {far:.2g} of the greatest one")


@backend_rule()
def world_is_consistent(subject: BackendSubject) -> None:
    """``world`` has a rank within its size; a gathering is every rank's tensor in order, a reduction their sum, and
    what is broadcast is rank 0's; in a world of one, all of these are what came.
    """
    world, place = subject.backend.world, subject.backend.place
    if not 0 <= world.rank < world.size:
        broken(f"rank is {world.rank} of {world.size}, expected 0 <= rank < size")
    everyones = [torch.tensor([1.0, 2.0, 4.0]) * (rank + 1) for rank in range(world.size)]
    gathered = world.all_gather(place(everyones[world.rank].clone()))
    if len(gathered) != world.size:
        broken(f"all_gather gave {len(gathered)} tensors in a world of {world.size}")
    for rank, (found, expected) in enumerate(zip(gathered, everyones, strict=True)):
        if not torch.equal(found.cpu(), expected):
            broken(f"all_gather gave {found.tolist()} for the {expected.tolist()} of rank {rank}")
    for name, expected in (("all_reduce", torch.stack(everyones).sum(0)), ("broadcast", everyones[0])):
        found = getattr(world, name)(place(everyones[world.rank].clone()))
        if found is None or not torch.equal(found.cpu(), expected):
            broken(
                f"{name} of {everyones[world.rank].tolist()} on rank {world.rank} of {world.size} gave {found}, "
                f"expected {expected.tolist()}"
            )


@backend_rule()
def world_keeps_types_and_shapes(subject: BackendSubject) -> None:
    """What ranks give one another keeps its type, its shape and its device, the CPU or the backend's: gradients and
    statistics in any precision, counters, bytes; single numbers, empty tensors, and tensors in any memory format.
    """
    world, place = subject.backend.world, subject.backend.place
    kinds = {
        "float32": torch.ones(2, 3),
        "float64": torch.full((2,), 1 / 3, dtype=torch.float64),
        "int64": torch.tensor([2**40 + 1]),
        "uint8": torch.tensor([7, 8], dtype=torch.uint8),
        "a number": torch.tensor(3.0),
        "an empty tensor": torch.zeros(0),
        "a channels-last tensor": torch.arange(36.0).view(1, 3, 4, 3).to(memory_format=torch.channels_last),
        "a transposed tensor": torch.arange(6.0).view(2, 3).t(),
    }
    for what, tensor in kinds.items():
        for sent in (tensor, place(tensor)):
            answers = {
                "all_reduce": world.all_reduce(sent.clone()) if world.rank == 0 else world.all_reduce(sent * 0),
                "broadcast": world.broadcast(sent.clone()),
                **{f"all_gather [{r}]": found for r, found in enumerate(world.all_gather(sent.clone()))},
            }
            for name, found in answers.items():
                if (found.dtype, found.shape, found.device) != (sent.dtype, sent.shape, sent.device):
                    broken(
                        f"{name} of {what} ({sent.dtype}, {tuple(sent.shape)}, on {sent.device}) gave {found.dtype}, "
                        f"{tuple(found.shape)}, on {found.device}"
                    )
                if not torch.equal(found, sent):
                    broken(f"{name} of {what} gave {found.tolist()}, expected {sent.tolist()}")


@backend_rule()
def describe_is_plain(subject: BackendSubject) -> None:
    """``describe()`` is a mapping that JSON can write, with at least ``name`` and ``precision`` as text."""
    said = subject.backend.describe()
    try:
        again = json.loads(json.dumps(dict(said), allow_nan=False))
    except (TypeError, ValueError) as raised:
        broken(f"describe() gave {said!r}, which JSON can't write: {raised}")
    for name in ("name", "precision"):
        if not isinstance(again.get(name), str):
            broken(f"describe() has {name} = {again.get(name)!r}, expected text; results record it")
