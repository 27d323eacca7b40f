"""A guard notices every change of what a function depends on, and nothing else."""

import collections
import functools
import random

import attrs
import numpy as np
import pytest
import torch
from torch import nn

from kshot.inner import guards
from kshot.inner.guards import Guard, Untraceable


@attrs.define
class Slotted:
    rate: float = 0.1


class Thing:
    def __init__(self) -> None:
        self.number, self.items, self.table = 1, [1, 2], {"a": 1}
        self.queue, self.array = collections.deque([1, 2]), np.array([1.0, 2.0])
        self.net, self.slotted, self.pair = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)), Slotted(), (Slotted(), 3)
        self.myself = self

    def method(self, x):
        return x


@pytest.mark.parametrize(
    "change",
    [
        lambda t: setattr(t, "number", 2),
        lambda t: setattr(t, "number", True),
        lambda t: setattr(t, "more", 1),
        lambda t: delattr(t, "number"),
        lambda t: t.items.append(3),
        lambda t: t.items.__setitem__(0, 5),
        lambda t: t.queue.append(3),
        lambda t: t.queue.__setitem__(0, 5),
        lambda t: t.array.__setitem__(0, 5.0),
        lambda t: t.table.update(a=2),
        lambda t: t.table.update(b=2),
        lambda t: t.net.eval(),
        lambda t: setattr(t.net[1], "p", 0.2),
        lambda t: setattr(t.net[0], "weight", nn.Parameter(torch.ones(2, 2))),
        lambda t: t.net[0].weight.requires_grad_(False),
        lambda t: t.net[0].double(),
        lambda t: t.net.append(nn.ReLU()),
        lambda t: t.net[0].register_forward_hook(print),
        lambda t: setattr(t.slotted, "rate", 0.2),
        lambda t: setattr(t.pair[0], "rate", 0.2),
    ],
)
def test_a_change_is_noticed(change):
    """Of an attribute, an item, a module, a parameter or a slot."""
    thing = Thing()
    guard = Guard(thing.method)
    assert guard.holds()
    change(thing)
    assert not guard.holds()


def test_equal_values_and_new_numbers_in_tensors_are_no_change():
    """A trace reads the numbers of tensors anew."""
    thing = Thing()
    guard = Guard(thing.method)
    thing.number = int("1")
    thing.slotted.rate = float("0.1")
    with torch.no_grad():
        thing.net[0].weight.fill_(3.0)
    assert guard.holds()
    assert {id(t) for t in guard.tensors} == {id(p) for p in thing.net.parameters()}


def test_partials_closures_and_defaults_are_looked_into():
    """They carry values into a function without an object."""
    box, default = [1], {"a": 1}

    def function(x, y=default):
        return box, x

    for change in (lambda: box.append(1), lambda: default.update(a=2)):
        guard = Guard(function)
        change()
        assert not guard.holds()
    thing = Thing()
    guard = Guard(functools.partial(thing.method, x=default))
    default["a"] = 3
    assert not guard.holds()


def test_hooks_and_endless_values_are_refused(monkeypatch):
    """The effects of hooks would be missing from a trace."""
    thing = Thing()
    thing.net.register_forward_pre_hook(print)
    with pytest.raises(Untraceable, match="Sequential has hooks"):
        Guard(thing.method)
    monkeypatch.setattr(guards, "MOST_VALUES", 3)
    with pytest.raises(Untraceable, match="more than 3 values"):
        Guard(Thing().method)


class ByName(dict):
    """A dict whose items are attributes too, as many programs keep their options."""

    __getattr__ = dict.__getitem__


class Anything:
    """An object that has every attribute."""

    def __init__(self) -> None:
        self.number = 1

    def __getattr__(self, name):
        return True


def test_objects_with_attributes_of_any_name_are_guarded():
    """They are asked for no attribute that they may invent, or answer with another exception."""
    thing = Thing()
    thing.options, thing.anything = ByName(number=1), Anything()
    guard = Guard(thing.method)
    assert guard.holds()
    thing.anything.number = 2
    assert not guard.holds()
    guard = Guard(thing.method)
    thing.options["number"] = 2
    assert not guard.holds()


@pytest.mark.parametrize("held", [random.Random(0), np.random.default_rng(0), torch.Generator(), np.zeros(1001)])
def test_own_generators_and_large_arrays_are_refused(held):
    """A trace would repeat what the generator gave; a large array would be compared at every run."""
    thing = Thing()
    thing.held = held
    with pytest.raises(Untraceable, match=r"contains a random generator|keep it in a buffer"):
        Guard(thing.method)
