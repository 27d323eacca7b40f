"""The kit's rules for backends: the CPU keeps them, and broken backends are rejected by the rule's name."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

from kshot import Cpu, Episode
from kshot._engine.cpu import OneProcess
from kshot.errors import Unavailable
from kshot.testing import RuleViolation, rules, suite


class Plain(Cpu):
    """The CPU without settings that remain for the rest of the process."""

    def __init__(self) -> None:
        super().__init__(precision="float32", memory_format="contiguous", keep_freed_memory=False)


class Halving(Plain):
    """Places tensors as bfloat16."""

    def place(self, x: Any) -> Any:
        return x.bfloat16() if isinstance(x, Tensor) and x.is_floating_point() else super().place(x)


class Copying(Plain):
    """Places a copy of a module."""

    def place(self, x: Any) -> Any:
        return copy.deepcopy(x) if isinstance(x, nn.Module) else super().place(x)


class Replacing(Plain):
    """Gives the module new parameters."""

    def place(self, x: Any) -> Any:
        if isinstance(x, nn.Module):
            for m in x.modules():
                for name, p in list(m.named_parameters(recurse=False)):
                    setattr(m, name, nn.Parameter(p.detach().clone()))
        return x


class Forgetting(Plain):
    """Drops the origin of an episode."""

    def place(self, x: Any) -> Any:
        return attrs.evolve(x, origin=None) if isinstance(x, Episode) else super().place(x)


class Flattening(Plain):
    """Turns an episode into a list."""

    def place(self, x: Any) -> Any:
        return [x.support, x.query] if isinstance(x, Episode) else super().place(x)


class LeavesTheMode(Plain):
    """Changes the default type in autocast, and does not restore it after an error."""

    @contextmanager
    def autocast(self) -> Iterator[None]:  # type: ignore[override]
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        yield
        torch.set_default_dtype(before)  # not after an error


class Swallowing(Plain):
    """Suppresses errors in autocast."""

    @contextmanager
    def autocast(self) -> Iterator[None]:  # type: ignore[override]
        with suppress(LookupError):
            yield


class OneBased(Plain):
    """Numbers ranks from 1."""

    class World(OneProcess):
        rank = 1

        def all_gather(self, tensor: Tensor) -> list[Tensor]:
            return [tensor, tensor]

    world = World()


class Doubling(Plain):
    """Doubles what it reduces."""

    class World(OneProcess):
        def all_reduce(self, tensor: Tensor) -> Tensor:
            return tensor * 2

    world = World()


class Narrowing(Plain):
    """Sends everything as float32."""

    class World(OneProcess):
        def all_gather(self, tensor: Tensor) -> list[Tensor]:
            return [tensor.float().to(tensor.dtype)]

    world = World()


class Flat(Plain):
    """Returns a number as a vector of length one."""

    class World(OneProcess):
        def broadcast(self, tensor: Tensor) -> Tensor:
            return tensor if tensor.ndim else tensor[None]

    world = World()


class Undescribed(Plain):
    """Describes itself with an object."""

    def describe(self) -> Any:
        return {"name": "cpu", "precision": torch.float32}


BROKEN: list[tuple[str, Any]] = [
    ("place-keeps-values", Halving),
    ("place-module-in-place", Copying),
    ("place-module-in-place", Replacing),
    ("place-handles-episodes", Forgetting),
    ("place-handles-episodes", Flattening),
    ("autocast-is-a-context", LeavesTheMode),
    ("autocast-is-a-context", Swallowing),
    ("world-is-consistent", OneBased),
    ("world-is-consistent", Doubling),
    ("world-keeps-types-and-shapes", Narrowing),
    ("world-keeps-types-and-shapes", Flat),
    ("describe-is-plain", Undescribed),
]
# Rules that break by the same fault: the small net of autocast-is-a-context can't compute with bfloat16 inputs, and a
# world that returns other values does so for every type. New parameters have no gradients.
ALSO = {
    Halving: {"autocast-is-a-context"},
    Copying: {"place-keeps-gradients"},
    Replacing: {"place-keeps-gradients"},
    OneBased: {"world-keeps-types-and-shapes"},
    Doubling: {"world-keeps-types-and-shapes"},
}


@pytest.fixture(autouse=True)
def _default_dtype() -> Iterator[None]:
    """Restore the default type, so that a broken backend does not affect later tests."""
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("call", "wrong", "said"),
    [
        ("all_reduce", lambda tensors: tensors[0], "all_reduce: got .* on rank 1 of 2, expected .3.0, 6.0, 12.0"),
        ("broadcast", lambda tensors: tensors[1], "broadcast: got .* on rank 1 of 2, expected .1.0, 2.0, 4.0"),
        ("all_gather", lambda tensors: tensors[::-1], "all_gather: got .* of rank 0"),
    ],
)
def test_a_world_of_two_that_mixes_up_its_ranks_is_rejected(call: str, wrong: Any, said: str) -> None:
    """To test several processes, the kit runs in each of them; this is the view of the second one."""
    tensors = [torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2.0, 4.0, 8.0])]

    class World:
        rank, size = 1, 2

        def all_reduce(self, _: Tensor) -> Tensor:
            return tensors[0] + tensors[1]

        def broadcast(self, _: Tensor) -> Tensor:
            return tensors[0]

        def all_gather(self, _: Tensor) -> list[Tensor]:
            return tensors

    backend = Plain()
    backend.world = World()
    tried = suite(backend=backend)
    assert tried.verify("world-is-consistent") is None
    setattr(backend.world, call, lambda _: wrong(tensors))
    with pytest.raises(RuleViolation, match=said):
        tried.verify("world-is-consistent")


@pytest.mark.parametrize("options", [{}, {"precision": "bfloat16"}, {"memory_format": "contiguous"}])
def test_the_cpu_keeps_every_rule(options: dict[str, Any]) -> None:
    """The CPU keeps all rules with each of its precisions and memory formats."""
    report = suite(backend="cpu", options={"keep_freed_memory": False, **options}).run()
    assert [f.outcome for f in report] == ["passed"] * len(rules("backends")), str(report)


def test_a_backend_may_be_given_built() -> None:
    """A device may be hard to build, so the kit accepts the object itself."""
    assert suite(backend=Plain()).run().ok


def test_an_unavailable_backend_is_skipped_with_its_own_reason() -> None:
    """If the device is missing on this machine, the backend is not at fault."""

    def backend() -> Any:
        raise Unavailable("no such device here")

    report = suite(backend=backend).run()
    assert {f.outcome for f in report} == {"skipped"}
    assert all("no such device here" in f.message for f in report)


@pytest.mark.parametrize(("rule", "backend"), BROKEN, ids=lambda v: getattr(v, "__name__", None))
def test_a_broken_backend_is_rejected_by_the_rule_it_breaks(rule: str, backend: Any) -> None:
    """The message names the rule, and rules that the backend keeps do not fail."""
    tried = suite(backend=backend)
    with pytest.raises(RuleViolation, match=f"^{rule}: .{{20,}}"):
        tried.verify(rule)
    torch.set_default_dtype(torch.float32)
    failed = {f.rule for f in tried.run() if f.outcome == "failed"}
    assert failed - ALSO.get(backend, set()) == {rule}


def test_every_rule_for_backends_has_a_backend_that_breaks_it() -> None:
    """A rule that no test breaks may be one that can't be broken."""
    elsewhere = {"place-keeps-gradients", "place-keeps-nothing", "process-is-left-alone"}  # test_kit_catches.py
    assert {rule for rule, _ in BROKEN} | elsewhere == {rule.name for rule in rules("backends")}
