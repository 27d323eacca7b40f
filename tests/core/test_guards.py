"""A guard notices every change of what a function depends on, and nothing else."""

import functools

import attrs
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
