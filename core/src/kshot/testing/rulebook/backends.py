"""Rules for backends.

They run in the process of the tests; to test several processes, the same rules run in each of them.
"""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable

import attrs
import torch
from torch import nn

from kshot.episode import Episode
from kshot.testing import sample_tasks
from kshot.testing.compare import difference, gap, named_tensors
from kshot.testing.rulebook.process import left_alone
from kshot.testing.rulebook.rule import Rule, add, always, broken, named
from kshot.testing.subjects import BackendSubject

Check = Callable[[BackendSubject], None]


def backend_rule(unless: Callable[[BackendSubject], str | None] = always) -> Callable[[Check], Check]:
    """Register a check as a rule for backends; ``unless`` returns the reason why it does not apply, or None."""

    def put(check: Check) -> Check:
        add(Rule(named(check), "backends", check, unless))
        return check

    return put


def net() -> nn.Module:
    """Build a module with a convolution, batch norm and buffers."""
    module: nn.Module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 36, 2))
    return module.eval()


@backend_rule()
def place_keeps_values(subject: BackendSubject) -> None:
    """``place`` moves a tensor to the backend's device and changes neither its values nor its type nor its shape."""
    backend = subject.backend
    for tensor in (
        torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8),
        torch.arange(6),
        torch.tensor([True, False]),
        torch.zeros(2, 0),
    ):
        placed = backend.place(tensor)
        if placed.device.type != torch.device(backend.device).type:
            broken(f"place: got a tensor on {placed.device}, expected it on the backend's device {backend.device}")
        if placed.dtype != tensor.dtype or placed.shape != tensor.shape:
            broken(
                f"place: got {placed.dtype} {tuple(placed.shape)} for a tensor {tensor.dtype} {tuple(tensor.shape)}, "
                "expected the same type and shape"
            )
        if not torch.equal(placed.cpu(), tensor):
            broken(f"place: got other values in a {tensor.dtype} tensor, expected the same")


@backend_rule()
def place_module_in_place(subject: BackendSubject) -> None:
    """``place`` changes a module in place: it returns the same object with the same parameter objects, so that an
    optimizer that was built before still works. Parameters and buffers keep their values, types and shapes, and each
    submodule its mode.
    """
    backend, module = subject.backend, net()
    module.train()
    module.get_submodule("1").eval()
    modes = {name: m.training for name, m in module.named_modules()}
    parameters = dict(module.named_parameters())
    before = {n: t.detach().clone() for n, t in module.state_dict().items()}
    placed = backend.place(module)
    if placed is not module:
        broken(f"place: got another module ({type(placed).__name__}), expected the one that was given")
    for name, p in placed.named_parameters():
        if p is not parameters.get(name):
            broken(
                f"place: got another object as parameter {name}, expected the same one; an optimizer that was built "
                "before would update the old one"
            )
        if p.device.type != torch.device(backend.device).type:
            broken(f"place: got parameter {name} on {p.device}, expected it on the backend's device {backend.device}")
    if where := difference(before, {n: t.detach().cpu() for n, t in placed.state_dict().items()}, 0):
        broken(f"place: got other values in a module, expected the same: {where}")
    if other := [name or "the module" for name, m in placed.named_modules() if m.training != modes[name]]:
        broken(f"place: got another mode (training) of {', '.join(other)}, expected the mode as it was")


@backend_rule()
def place_keeps_gradients(subject: BackendSubject) -> None:
    """``place`` detaches and freezes nothing: a placed tensor passes its gradient to the tensor that was given, each
    parameter of a module is trained or frozen (``requires_grad``) as before, and keeps its ``.grad``.
    """
    backend = subject.backend
    given = torch.linspace(-1, 1, 6).requires_grad_()
    placed = backend.place(given)
    if not placed.requires_grad:
        broken("place: got a tensor that does not require a gradient for one that does, expected it to; do not detach")
    (3 * placed).sum().backward()
    if given.grad is None or not torch.equal(given.grad, torch.full_like(given, 3.0)):
        broken(f"place: got the gradient {given.grad} of a placed tensor times 3, expected 3 for each number")
    module = net()
    for n, p in enumerate(module.parameters()):
        p.requires_grad_(n % 2 == 0)
        p.grad = torch.full_like(p, float(n)) if n % 2 == 0 else None
    before = {name: (p.requires_grad, p.grad) for name, p in module.named_parameters()}
    before = {name: (flag, None if g is None else g.clone()) for name, (flag, g) in before.items()}
    for name, p in backend.place(module).named_parameters():
        flag, g = before[name]
        if p.requires_grad != flag:
            broken(f"place: got requires_grad = {p.requires_grad} for parameter {name}, expected {flag} as before")
        same = p.grad is None if g is None else p.grad is not None and torch.equal(p.grad.cpu(), g)
        if not same:
            broken(
                f"place: got another gradient (.grad) of parameter {name}, expected it to be moved with the parameter"
            )


@backend_rule()
def place_keeps_nothing(subject: BackendSubject) -> None:
    """A backend keeps no reference to tensors and episodes that it has placed, so that their memory is freed."""
    backend = subject.backend
    values = {"a tensor": torch.ones(3), "an episode": sample_tasks.classification().sample("train", [0])}
    placed = [(what, backend.place(value)) for what, value in values.items()]
    # Another rule reports a backend that turns an episode into something else.
    inside = [(what, value.query.x if isinstance(value, Episode) else value) for what, value in placed]
    alive = [(what, weakref.ref(tensor)) for what, tensor in inside if isinstance(tensor, torch.Tensor)]
    del values, placed, inside
    gc.collect()
    if kept := [what for what, ref in alive if ref() is not None]:
        broken(f"place: got a reference that is kept to {' and '.join(kept)} that was placed, expected none")


@backend_rule()
def process_is_left_alone(subject: BackendSubject) -> None:
    """``place`` and ``autocast`` change no setting of the process after they have ended, and neither draw from nor seed
    the global random generators.
    """
    backend, module = subject.backend, net()
    with left_alone("place", draws=False):
        backend.place(module)
        backend.place(torch.ones(2))
        backend.place(sample_tasks.classification().sample("train", [0]))
    with left_alone("autocast", draws=False), backend.autocast():
        pass


@backend_rule()
def place_handles_episodes(subject: BackendSubject) -> None:
    """``place`` keeps the structure of episodes: the same fields with the same values, including origin and way."""
    backend = subject.backend
    for name, tasks in (
        ("classification", sample_tasks.classification(semantics=3, unlabelled=2, external=2)),
        ("regression", sample_tasks.example("regression")),
        ("objectives", sample_tasks.example("objective")),
    ):
        episode = tasks.sample("train", [0, 1])
        placed = backend.place(episode)
        if not isinstance(placed, Episode):
            broken(f"place: got a {type(placed).__name__} for an episode of {name}, expected an Episode")
        for path, tensor in named_tensors(attrs.evolve(placed, origin=None)).items():
            if tensor.device.type != torch.device(backend.device).type:
                broken(
                    f"place: got {path} of an episode of {name} on {tensor.device}, expected it on the backend's "
                    f"device {backend.device}"
                )
        moved = {path: t.cpu() for path, t in named_tensors(placed).items()}
        if where := difference(named_tensors(episode), moved, 0):
            broken(f"place: got other values in an episode of {name}, expected the same: {where}")
        if placed.support.way != episode.support.way or placed.origin is not episode.origin:
            broken(
                f"place: got another way or origin for an episode of {name}, expected way {episode.support.way} and "
                "the same origin object"
            )


@backend_rule()
def autocast_is_a_context(subject: BackendSubject) -> None:
    """``autocast()`` returns a new context each time. Contexts may be nested, restore the previous mode at their end
    (also after an error), let errors propagate, and compute the same results up to the precision of bfloat16.
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
            broken(f"autocast: got the mode {mode()} after a nested context, expected {inside}")
        if not torch.is_grad_enabled():
            broken("autocast: got disabled gradients inside, expected them enabled")
    if mode() != before:
        broken(f"autocast: got the mode {mode()} afterwards, expected {before}")
    try:
        with backend.autocast():
            raise LookupError
    except LookupError:
        pass
    else:
        broken("autocast: got no error although one was raised inside, expected it to propagate")
    if mode() != before:
        broken(f"autocast: got the mode {mode()} after an error inside, expected {before}")
    if (far := gap(plain, nested)) > 0.1:
        broken(f"autocast: got outputs of a small net that differ by {far:.2g} of the greatest, expected at most 0.1")


@backend_rule()
def world_is_consistent(subject: BackendSubject) -> None:
    """``world.rank`` is less than ``world.size``. ``all_gather`` returns the tensors of all ranks in order,
    ``all_reduce`` their sum, and ``broadcast`` the tensor of rank 0. In a world of one process, each returns what it
    was given.
    """
    world, place = subject.backend.world, subject.backend.place
    if not 0 <= world.rank < world.size:
        broken(f"world: got rank {world.rank} of size {world.size}, expected 0 <= rank < size")
    # Every rank can compute the tensors of all others, so that it knows what to expect.
    everyones = [torch.tensor([1.0, 2.0, 4.0]) * (rank + 1) for rank in range(world.size)]
    gathered = world.all_gather(place(everyones[world.rank].clone()))
    if len(gathered) != world.size:
        broken(f"all_gather: got {len(gathered)} tensors, expected {world.size}, one per rank")
    for rank, (answer, expected) in enumerate(zip(gathered, everyones, strict=True)):
        if not torch.equal(answer.cpu(), expected):
            broken(f"all_gather: got {answer.tolist()} of rank {rank}, expected {expected.tolist()}")
    for name, expected in (("all_reduce", torch.stack(everyones).sum(0)), ("broadcast", everyones[0])):
        answer = getattr(world, name)(place(everyones[world.rank].clone()))
        if answer is None or not torch.equal(answer.cpu(), expected):
            broken(
                f"{name}: got {answer} for {everyones[world.rank].tolist()} on rank {world.rank} of {world.size}, "
                f"expected {expected.tolist()}"
            )


@backend_rule()
def world_keeps_types_and_shapes(subject: BackendSubject) -> None:
    """Tensors that ranks exchange keep their type, shape and device (the CPU or the backend's). They may be gradients
    and statistics of any precision, counters, bytes, single numbers, empty tensors, and tensors of any memory format.
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
    if torch.device(subject.backend.device).type == "mps":
        del kinds["float64"]  # the GPU of a Mac has none
    for what, tensor in kinds.items():
        for sent in (tensor, place(tensor)):
            answers = {
                "all_reduce": world.all_reduce(sent.clone()) if world.rank == 0 else world.all_reduce(sent * 0),
                "broadcast": world.broadcast(sent.clone()),
                **{f"all_gather [{r}]": answer for r, answer in enumerate(world.all_gather(sent.clone()))},
            }
            for name, answer in answers.items():
                if (answer.dtype, answer.shape, answer.device) != (sent.dtype, sent.shape, sent.device):
                    broken(
                        f"{name} of {what}: got {answer.dtype}, {tuple(answer.shape)}, on {answer.device}, expected "
                        f"{sent.dtype}, {tuple(sent.shape)}, on {sent.device}"
                    )
                if not torch.equal(answer, sent):
                    broken(f"{name} of {what}: got {answer.tolist()}, expected {sent.tolist()}")


@backend_rule()
def describe_is_plain(subject: BackendSubject) -> None:
    """``describe()`` returns a mapping that JSON can write, in which ``name`` and ``precision`` are strings."""
    description = subject.backend.describe()
    try:
        again = json.loads(json.dumps(dict(description), allow_nan=False))
    except (TypeError, ValueError) as raised:
        broken(f"describe: got {description!r}, expected a mapping that JSON can write: {raised}")
    for name in ("name", "precision"):
        if not isinstance(again.get(name), str):
            broken(f"describe: got {name} = {again.get(name)!r}, expected a string, because results record it")
