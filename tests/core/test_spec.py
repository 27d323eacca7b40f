"""Task specs are plain values: they round-trip through JSON and refuse what no tasks can be."""

import json

import numpy as np
import pytest

from kshot import Needs, TaskSpec
from kshot.errors import DataError


def test_specs_round_trip_through_json():
    """Ranges, provisions and shapes are the same after reading."""
    spec = TaskSpec(
        kind="classification",
        input_shape=(1, 28, 28),
        input_range=(0, 1),
        way=(5, 20),
        shot=1,
        query=5,
        block=8,
        provides={"semantics", "identities"},
        semantics_shape=(7,),
    )
    assert TaskSpec.from_json(spec.to_json()) == spec
    assert spec.varies
    assert json.loads(spec.to_json())["way"] == [5, 20]


def test_whole_numbers_of_numpy_are_taken_as_ints():
    """``way=y.max() + 1`` is a number of numpy, which JSON does not know."""
    counts = {"way": np.int64(3), "shot": (np.int32(1), np.int32(2)), "query": np.uint8(4), "block": np.int16(8)}
    spec = TaskSpec(kind="classification", input_shape=np.array([3]), **counts)
    plain = {"way": 3, "shot": (1, 2), "query": 4, "block": 8}
    assert spec.to_json() == TaskSpec(kind="classification", input_shape=(3,), **plain).to_json()
    assert [type(v) for v in (spec.way, *spec.shot, spec.query, spec.block)] == [int] * 5


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "guessing"},
        {"way": 0},
        {"way": 2.5},
        {"way": "5"},
        {"shot": -1},
        {"way": (5, 2)},
        {"block": None, "way": "many"},
        {"provides": {"luck"}},
        {"provides": "semantics"},
        {"kind": ["classification"]},
        {"input_shape": None},
        {"input_shape": "12"},
        {"input_shape": (3, -1)},
        {"input_shape": (1.5,)},
        {"target_shape": 3},
        {"semantics_shape": ["a"]},
        {"input_range": 1.0},
        {"input_range": (1.0, 0.0)},
        {"target_range": (float("nan"), 1.0)},
        {"way": (2, 3, 4)},
        {"way": True},
        {"way": {}},
        {"block": 0},
        {"block": (1, 2)},
        {"rollouts": (1, 2)},
        {"splits": "train"},
        {"splits": ()},
        {"splits": ("train", "train")},
        {"splits": 3},
        {"split_by": "luck"},
    ],
)
def test_malformed_specs_are_refused(wrong):
    """They are refused when they are made, not when episodes are sampled."""
    with pytest.raises(DataError, match="expected"):
        TaskSpec(**{"kind": "classification", "input_shape": (1,), **wrong})


@pytest.mark.parametrize("way", [1, (1, 5)])
def test_classification_needs_two_classes(way):
    """With one class, every prediction is right: "100.00 ± 0.00 % accuracy" would say nothing."""
    with pytest.raises(DataError, match=r"got way .* expected a number >= 2"):
        TaskSpec(kind="classification", input_shape=(1,), way=way)
    assert TaskSpec(kind="sequence", input_shape=(1,), way=1).way == 1


@pytest.mark.parametrize(
    "values", [{}, {"kind": "regression"}, [], None, {"kind": "regression", "input_shape": [1], "x": 1}]
)
def test_a_stored_spec_with_other_fields_is_refused(values):
    """The message lists the fields that a spec has."""
    with pytest.raises(DataError, match=r"^TaskSpec: got .*, expected kind, input_shape and any of target_shape"):
        TaskSpec.from_dict(values)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, None])
def test_a_stored_spec_that_is_no_json_is_refused(text):
    """It is told from a spec with wrong fields."""
    with pytest.raises(DataError, match=r"^TaskSpec: got text that is not JSON"):
        TaskSpec.from_json(text)


@pytest.mark.parametrize(
    "wrong",
    [
        {"kinds": "classification"},
        {"kinds": ("guessing",)},
        {"kinds": (1,)},
        {"kinds": None},
        {"invariant": "labels"},
        {"invariant": {"luck"}},
        {"queries": "together"},
        {"queries": []},
        {"unlabelled": True},
        {"semantics": "maybe"},
        {"external": "yes"},
        {"variable_way": 1},
        {"variable_parameters": None},
        {"input_range": 3},
        {"rollouts": None},
        {"rollouts": -1},
        {"actions": "some"},
    ],
)
def test_malformed_needs_are_refused(wrong):
    """``kinds="classification"`` would otherwise fit tasks of the kind ``class``, and a misspelt need be ignored."""
    with pytest.raises(DataError, match=rf"^Needs: got {next(iter(wrong))} .*, expected"):
        Needs(**wrong)
    assert Needs(kinds=["regression"], rollouts=np.int64(2)) == Needs(kinds=("regression",), rollouts=2)


@pytest.mark.parametrize("name", ["way", "shot", "query"])
def test_a_range_of_any_count_makes_the_shapes_vary(name):
    """A single range is enough for episodes that can't be stacked."""
    values = {"kind": "classification", "input_shape": (3,), "way": 5, "shot": 1, "query": 2}
    assert not TaskSpec(**values).varies
    assert TaskSpec(**{**values, name: (2, 4)}).varies


def test_names_of_external_classes_are_stored_only_if_there_are_some():
    """A spec that was stored before the field existed equals one without external classes."""
    spec = TaskSpec(kind="classification", input_shape=(3,), way=2, shot=1, query=1)
    assert "external_classes" not in spec.to_dict()
    more = TaskSpec(kind="classification", input_shape=(3,), way=2, shot=1, query=1, external_classes=["b", "a"])
    assert more.to_dict()["external_classes"] == ["b", "a"]
    assert TaskSpec.from_json(more.to_json()) == more


@pytest.mark.parametrize("wrong", ["cat", ("cat", "cat"), ("",), (1, 2), None])
def test_malformed_names_of_external_classes_are_refused(wrong):
    """A learner finds its rows by the names, so each must be a text that occurs once."""
    with pytest.raises(DataError, match=r"^TaskSpec: got external_classes .*, expected"):
        TaskSpec(kind="regression", input_shape=(3,), external_classes=wrong)
