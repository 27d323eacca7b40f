"""Options are read from a factory's signature and checked by its annotations."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional, Protocol

import attrs
import numpy as np
import pytest

from kshot.errors import OptionError
from kshot.registry import Range
from kshot.registry.options import Option, Raw, options_of, parse_literal, type_text, validate

if TYPE_CHECKING:
    from nowhere import Unimported  # type: ignore[import-not-found]


class Encoder(Protocol):
    def encode(self, x: Any) -> Any: ...


class Owner:
    def __init__(self, *, root: Path | None = None) -> None: ...


class Flat:
    def encode(self, x: Any) -> Any:
        return x


def learner(  # type: ignore[no-untyped-def]
    spec: Any,
    width: int,
    lr: float = 0.1,
    *,
    steps: int | None = None,
    root: Path | None = None,
    name: str = "x",
    fast: bool = False,
    loss: Literal["mse", "mae", 3] = "mse",
    shape: tuple[int, int] = (1, 2),
    sizes: tuple[int, ...] = (),
    names: list[str] | None = None,
    rates: Sequence[float] = (),
    table: Mapping[str, int] | None = None,
    act: Callable[[int], int] = abs,
    encoder: Encoder | None = None,
    either: Optional[int | str] = None,  # noqa: UP045 -- the old spelling must work too
    noted: Annotated[int, "a note"] = 1,
    lost: Unimported | None = None,
    free=None,
) -> None:
    """Learns.

    Args:
        spec: of the tasks.
        width: of the hidden layers,
            all of them.
        lr (float): the inner rate.
        steps: how many.
    """


def check(**given: Any) -> dict[str, Any]:
    return validate(learner, given, who="learner 'it'", skip_positional=1, missing_ok=("width",))


def refused(**given: Any) -> str:
    with pytest.raises(OptionError) as caught:
        check(**given)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("-3", -3),
        ("1e-3", 0.001),
        (".5", 0.5),
        ("5.", 5.0),
        ("true", True),
        ("False", False),
        ("none", None),
        ("None", None),
        ("[1, 2]", [1, 2]),
        ('["a", "b"]', ["a", "b"]),
        ("{lr = 0.1}", {"lr": 0.1}),
        ('"5"', "5"),
        ("omniglot", "omniglot"),
        ("../data/a b.zip", "../data/a b.zip"),
        ("", ""),
        ("2024-01-02", "2024-01-02"),
        ("007", "007"),
        ("1\nother = 2", "1\nother = 2"),
        ("a = 3", "a = 3"),
    ],
)
def test_literal_is_toml_or_the_text_itself(text: str, value: Any) -> None:
    """A flag means what the same text means in a TOML file; other text and dates are strings."""
    parsed = parse_literal(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_options_are_the_keyword_parameters_after_the_leading_ones() -> None:
    """The arguments that the protocol defines (a learner's spec) are not options."""
    options = {option.name: option for option in options_of(learner, skip_positional=1)}
    assert "spec" not in options
    assert options["width"] == Option("width", int, None, True, "of the hidden layers, all of them.")
    assert options["lr"] == Option("lr", float, 0.1, False, "the inner rate.")
    assert options["steps"].type == "int | None"
    assert str(options["loss"]) == "loss: 'mse' | 'mae' | 3 = 'mse'"
    assert str(options["width"]) == "width: int (required)"


@pytest.mark.parametrize(
    ("name", "given", "taken"),
    [
        ("width", 3, 3),
        ("width", np.int64(3), 3),
        ("lr", 1, 1.0),
        ("lr", np.float32(0.5), 0.5),
        ("steps", None, None),
        ("steps", 2, 2),
        ("root", "a/b", Path("a/b")),
        ("root", Path("c"), Path("c")),
        ("fast", True, True),
        ("loss", "mae", "mae"),
        ("loss", 3, 3),
        ("shape", [3, 4], (3, 4)),
        ("sizes", [1, 2, 3], (1, 2, 3)),
        ("sizes", [], ()),
        ("names", ("a", "b"), ["a", "b"]),
        ("rates", [1, 0.5], (1.0, 0.5)),
        ("table", {"a": 1}, {"a": 1}),
        ("act", len, len),
        ("either", 5, 5),
        ("either", "five", "five"),
        ("noted", 4, 4),
        ("lost", "anything", "anything"),
        ("free", {1, 2}, {1, 2}),
    ],
)
def test_fitting_value_comes_back_in_the_type_of_its_parameter(name: str, given: Any, taken: Any) -> None:
    """A factory never gets a list if its signature says tuple."""
    value = check(**{name: given})[name]
    assert value == taken
    assert type(value) is type(taken)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("width", True, "got True (bool), expected int"),
        ("width", 5.0, "got 5.0 (float), expected int"),
        ("width", "5", "got '5' (str), expected int"),
        ("lr", "fast", "got 'fast' (str), expected float"),
        ("lr", False, "got False (bool), expected float"),
        ("lr", None, "got None (NoneType), expected float"),
        ("steps", "many", "got 'many' (str), expected int (or None)"),
        ("steps", 1.5, "got 1.5 (float), expected int | None"),
        ("root", 3, "got 3 (int), expected Path | None"),
        ("name", 3, "got 3 (int), expected str"),
        ("fast", 1, "got 1 (int), expected bool (true or false)"),
        ("loss", "mes", "got 'mes', expected one of 'mse', 'mae', 3; did you mean 'mse'?"),
        ("loss", 3.0, "got 3.0, expected one of 'mse', 'mae', 3"),
        ("shape", [1, 2, 3], "got [1, 2, 3] (list), expected tuple[int, int] of 2 values"),
        ("shape", "12", "got '12' (str), expected tuple[int, int]"),
        ("sizes", [1, "a"], "got [1, 'a'], expected tuple[int, ...]; of an element: got 'a' (str), expected int"),
        ("sizes", 3, "got 3 (int), expected tuple[int, ...]"),
        ("rates", "123", "got '123' (str), expected Sequence[float]"),
        (
            "table",
            {"a": "b"},
            "got {'a': 'b'}, expected Mapping[str, int]; of an element: got 'b' (str), expected int (or None)",
        ),
        ("act", 3, "got 3 (int), expected a callable"),
        ("encoder", 3, "got 3 (int), expected Encoder | None"),
        ("encoder", "conv4", "got 'conv4' (str), expected Encoder (or None)"),
        ("either", [1], "got [1] (list), expected int | str | None"),
    ],
)
def test_ill_typed_value_is_refused_with_what_was_expected(name: str, given: Any, message: str) -> None:
    """A bool is not an int, an integral float is not an int, and a string is not a sequence: nothing is guessed."""
    assert refused(**{name: given}).splitlines()[0] == f"learner 'it': {name}: {message}"


def test_object_passes_for_a_protocol() -> None:
    """Who uses the component checks the protocol; only plain values are refused here."""
    encoder = Flat()
    assert check(encoder=encoder) == {"encoder": encoder}


def test_object_of_a_class_is_checked_by_isinstance() -> None:
    """Annotations other than plain types are classes."""

    def factory(when: datetime.date = datetime.date.max) -> None: ...

    today = datetime.date(2026, 11, 24)
    # Locals of a test are out of reach of string annotations, module globals are not.
    assert validate(factory, {"when": today}, who="it") == {"when": today}
    with pytest.raises(OptionError, match=r"when: got 5 \(int\), expected date"):
        validate(factory, {"when": 5}, who="it")


def test_all_that_is_wrong_is_said_at_once_with_the_list_of_options() -> None:
    """A user corrects a command once."""
    with pytest.raises(OptionError) as caught:
        validate(learner, {"stepz": 1, "lr": "x"}, who="learner 'it'", skip_positional=1)
    first, head, *table = str(caught.value).splitlines()
    assert first == (
        "learner 'it': stepz: unknown option; did you mean 'steps'?; lr: got 'x' (str), expected float; "
        "width: got nothing, expected int"
    )
    assert head == "its options:"
    assert table[0] == "  width: int (required)  of the hidden layers, all of them."
    assert len(table) == 18  # all parameters but spec


def test_leading_argument_can_not_be_given_as_an_option() -> None:
    """The tasks supply ``spec``."""
    assert "spec: unknown option" in refused(spec=3)


@pytest.mark.parametrize(
    ("name", "text", "taken"),
    [
        ("width", "5", 5),
        ("lr", "1e-3", 0.001),
        ("lr", "2", 2.0),
        ("steps", "none", None),
        ("name", "2024", "2024"),
        ("name", "none", "none"),
        ("name", "true", "true"),
        ("name", '"quoted"', "quoted"),
        ("root", "2024", Path("2024")),
        ("either", "5", 5),
        ("loss", "mae", "mae"),
        ("shape", "[1, 2]", (1, 2)),
        ("free", "[1]", [1]),
    ],
)
def test_text_of_a_flag_is_read_by_the_type_of_the_option(name: str, text: str, taken: Any) -> None:
    """A folder may be called 2024, and a run 'none'."""
    value = check(**{name: Raw(text)})[name]
    assert value == taken
    assert type(value) is type(taken)


def test_text_of_a_flag_that_does_not_fit_is_refused() -> None:
    """The message has the value as it was read."""
    assert refused(width=Raw("5.5")).splitlines()[0] == "learner 'it': width: got 5.5 (float), expected int"
    assert refused(fast=Raw("yes")).splitlines()[0].endswith("fast: got 'yes' (str), expected bool (true or false)")


def test_class_gives_the_options_of_its_init() -> None:
    """Attrs classes, plain classes, inherited initialisers and partials are all factories."""

    class Plain:
        def __init__(self, spec: Any, *, depth: int = 2) -> None:
            """
            Args:
                depth: of the tree.
            """

    class Heir(Plain):
        pass

    @attrs.frozen
    class Value:
        way: int = 5
        path: Path | None = None

    expected = (Option("depth", int, 2, False, "of the tree."),)
    assert options_of(Plain, skip_positional=1) == expected
    assert options_of(Heir, skip_positional=1) == expected
    assert [(o.name, o.annotation) for o in options_of(Value)] == [("way", int), ("path", Path | None)]
    assert validate(functools.partial(learner, width=3), {}, who="it", skip_positional=1) == {}


def test_inherited_initialiser_is_read_with_the_names_of_its_own_module() -> None:
    """A plugin's class need not import the names in its parent's annotations."""
    heir = type("Heir", (Owner,), {"__module__": "keyword"})
    assert validate(heir, {"root": "a"}, who="it") == {"root": Path("a")}


def test_factory_with_keyword_arguments_of_any_name_takes_them() -> None:
    """A factory with ``**kwargs`` accepts any name, but its named parameters are still checked."""

    def factory(way: int = 5, **more: Any) -> None: ...

    assert validate(factory, {"way": 3, "x": Raw("[1]")}, who="it") == {"way": 3, "x": [1]}
    with pytest.raises(OptionError, match=r"way: got 'a' \(str\), expected int"):
        validate(factory, {"way": "a", "x": 1}, who="it")


def test_factory_without_options_says_so() -> None:
    """The message says this instead of showing an empty list."""
    with pytest.raises(OptionError, match=r"it: way: unknown option\nit takes no options$"):
        validate(lambda: None, {"way": 3}, who="it")


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (int, "int"),
        (int | None, "int | None"),
        (tuple[int, ...], "tuple[int, ...]"),
        (Literal["a", 2], "'a' | 2"),
        (Callable[[int], str], "Callable[[int], str]"),
        (dict[str, list[float]], "dict[str, list[float]]"),
        (Any, "any"),
        (Path, "Path"),
    ],
)
def test_type_is_written_as_a_reader_would(annotation: Any, text: str) -> None:
    """Error messages have no module paths."""
    assert type_text(annotation) == text


# -------------------- numbers that can't be meant, and numbers of numpy


def ranged(
    *,
    width: Annotated[int, Range(1, 4096)] = 64,
    rate: Annotated[float, Range(above=0, below=1)] = 0.5,
    steps: Annotated[int, Range(0)] | None = None,
    sizes: tuple[Annotated[int, Range(1)], ...] = (),
    limit: Annotated[float, Range(infinite=True)] = 1.0,
    most: float = float("inf"),
    shape: int = 3,
    either: int | float | tuple[int, int] = 3,
    free: Any = None,
    text: str = "",
    root: Path | None = None,
    names: dict[str, float] | None = None,
) -> None: ...


def in_range(**given: Any) -> dict[str, Any]:
    return validate(ranged, given, who="it")


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("width", 0, "got 0, expected int from 1 to 4096"),
        ("width", -3, "got -3, expected int from 1 to 4096"),
        ("width", 10**9, "got 1000000000, expected int from 1 to 4096"),
        ("width", 10**20, "got an int of 67 bits, expected one of at most 64"),
        ("width", np.bool_(True), "got True (bool), expected int"),
        ("width", b"3", "got b'3' (bytes), expected int"),
        ("rate", 0, "got 0.0, expected float above 0 and below 1"),
        ("rate", float("nan"), "got NaN, expected a number"),
        ("rate", np.float32("nan"), "got NaN, expected a number"),
        ("rate", 10**400, "got a number that is too large for a float, expected one of at most 1.8e308"),
        ("steps", -1, "got -1 (int), expected int at least 0 | None"),
        ("sizes", [3, 0], "got [3, 0], expected tuple[int at least 1, ...]; of an element: got 0, expected int at l"),
        ("shape", 10**20, "got an int of 67 bits, expected one of at most 64"),
        ("either", 10**20, "got an int of 67 bits, expected one of at most 64"),
        ("either", float("nan"), "got NaN, expected a number"),
        ("names", {"a": float("inf")}, "got {'a': inf}, expected dict[str, float] | None of finite numbers"),
        ("text", b"a", "got b'a' (bytes), expected str"),
        ("text", Path("a"), "got PosixPath('a') (PosixPath), expected str"),
        ("root", b"a", "got b'a' (bytes), expected Path | None"),
        ("root", "a\0b", "got 'a\\x00b', expected a path of characters that a file system takes (or None)"),
    ],
)
def test_number_that_can_not_be_meant_is_refused(name: str, given: Any, message: str) -> None:
    """It would end as torch's own error, as a crash of the process, or as a training that learns nothing."""
    with pytest.raises(OptionError) as caught:
        in_range(**{name: given})
    assert str(caught.value).splitlines()[0].startswith(f"it: {name}: {message}")


def test_infinity_is_taken_where_it_is_declared_or_the_default() -> None:
    """It may mean that there is no limit."""
    inf = float("inf")
    assert in_range(limit=inf, most=inf) == {"limit": inf, "most": inf}


@pytest.mark.parametrize(
    ("name", "given", "taken"),
    [
        ("width", np.uint8(3), 3),
        ("width", np.array(3), 3),
        ("rate", np.float16(0.25), 0.25),
        ("sizes", np.array([1, 2]), (1, 2)),
        ("sizes", [np.int32(4)], (4,)),
        ("free", np.int64(3), 3),
        ("text", np.str_("a"), "a"),
        ("text", type("Text", (str,), {})("a"), "a"),
        ("names", {np.str_("a"): np.float32(1)}, {"a": 1.0}),
    ],
)
def test_values_of_numpy_and_subclasses_are_taken_as_plain_ones(name: str, given: Any, taken: Any) -> None:
    """A run writes its options as JSON, which knows no other types."""
    value = in_range(**{name: given})[name]
    assert repr(value) == repr(taken)


def test_numbers_of_numpy_keep_their_type_in_a_union() -> None:
    """An int must not become the float that is named first."""

    def factory(*, either: float | int = 1, choice: Literal["a", 2] = 2, flag: bool = False) -> None: ...

    taken = validate(factory, {"either": np.int64(3), "choice": np.int64(2), "flag": np.True_}, who="it")
    assert [repr(value) for value in taken.values()] == ["3", "2", "True"]
    assert validate(factory, {"choice": np.str_("a")}, who="it") == {"choice": "a"}


def test_number_of_thousands_of_digits_on_the_command_line_is_text() -> None:
    """Python refuses to read it as a number."""
    assert parse_literal("1" * 5000) == "1" * 5000


def test_ranges_are_shown_with_the_options() -> None:
    """``kshot info`` lists them."""
    options = {option.name: str(option) for option in options_of(ranged)}
    assert options["width"] == "width: int from 1 to 4096 = 64"
    assert options["rate"] == "rate: float above 0 and below 1 = 0.5"
    assert options["limit"] == "limit: float = 1.0"


@pytest.mark.parametrize(
    ("limits", "inside", "outside"),
    [
        (Range(1, 3), [1, 3], [0, 4, 0.999, 3.001]),
        (Range(above=0), [1e-9, 1e9], [0, -1e-9]),
        (Range(0, below=1), [0, 0.999], [1, -1e-9]),
        (Range(most=0), [0, -5], [1e-9]),
    ],
)
def test_a_range_includes_its_closed_ends_only(limits: Range, inside: list[float], outside: list[float]) -> None:
    """A momentum of 1 would never forget."""
    assert all(map(limits.admits, inside))
    assert not any(map(limits.admits, outside))
